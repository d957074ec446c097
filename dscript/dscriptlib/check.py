# SPDX-License-Identifier: Apache-2.0
"""Whether the parts of a loaded script fit together. Everything here is a look at values; nothing is run."""

from collections.abc import Iterator

from dre.plainyaml import Place

from dscriptlib import load, tables, watching
from dscriptlib.model import Finding, Monitor, Response, Script
from dscriptlib.steps import KINDS

CHANGES = ("restart", "undo", "migrate", "run", "thaw", "rejoin", "emit")  # what is as it was only before them
SURE = ("notify", "emit", "record")  # they need nothing but this host
PERSON = ("notify", "ask")  # actions that reach a person


def check(octets: bytes, file: str) -> tuple[Script | None, list[Finding]]:
    """The script in *octets* and all findings in the order of the file; None when it must not run."""
    script, findings = load.load(octets, file)
    if script is not None:
        findings = sorted(set(findings_of(script, file)), key=lambda finding: (finding.at, finding.text))
    if any(finding.severity == "error" for finding in findings):
        script = None
    return script, findings


def findings_of(script: Script, file: str) -> Iterator[Finding]:
    """What is wrong between the parts of *script*."""

    def error(at: Place, text: str) -> Finding:
        return Finding(file, at, "error", text)

    for monitor in script.monitors:
        for severity, at, text in _monitor(script, monitor):
            yield Finding(file, at, severity, text)
    broken = False
    for response in script.responses:
        for at, text in _unknown(script, response):
            broken = True
            yield error(at, text)
        for at, text in _chain(script, response):
            broken = True
            yield error(at, text)
        for step in response.steps:
            fits = KINDS[step.action].fits
            if fits is not None and (wrong := fits(script, step.values)):
                yield error(step.at, wrong)
        for at, text in _weak(response):
            yield Finding(file, at, "warning", text)
    reached = _reached(script)
    for response in script.responses:
        if response.id not in reached and not broken:  # else it may be just that
            text = f"response {response.id!r} can never run: it has no 'when', and no 'then' of another one leads to it"
            yield Finding(file, response.at, "warning", text)


def _monitor(script: Script, monitor: Monitor) -> Iterator[tuple[str, Place, str]]:
    if monitor.clear is not None:
        if monitor.above is not None and monitor.clear >= monitor.above:
            text = f"monitor {monitor.id!r}: clear must be below above, or it would never be clear"
            yield "error", monitor.at, text
        if monitor.below is not None and monitor.clear <= monitor.below:
            text = f"monitor {monitor.id!r}: clear must be above below, or it would never be clear"
            yield "error", monitor.at, text
    every = tables.EVERY.get(monitor.watch, 0.0) if monitor.every is None else monitor.every
    for length in (monitor.hold, monitor.missing or 0.0):
        if monitor.watch not in watching.KINDS and 0 < length < every:
            text = f"monitor {monitor.id!r} looks every {every:g} s, which is too seldom to tell that something lasts"
            yield "error", monitor.every_at, f"{text} {length:g} s; say every: {length:g}s or less"
    used = {trigger.monitor for response in script.responses for trigger in response.when}
    used |= {name for response in script.responses for step in response.steps for name in script.expected(step)}
    if monitor.id not in used:
        yield "warning", monitor.at, f"monitor {monitor.id!r} has no response: when it is raised nobody is told"


def _weak(response: Response) -> Iterator[tuple[Place, str]]:
    if response.when and response.at_most is None:
        text = f"response {response.id!r} can repeat without end; say at-most: {{attempts: N, per: TIME}}"
        yield response.at, text
    if response.if_failed != "revert":
        return
    for number, step in enumerate(response.steps):
        lasting = not KINDS[step.action].reversible and step.action in CHANGES
        later = next((other for other in response.steps[number + 1 :] if other.action not in SURE), None)
        if lasting and later is not None:
            text = f"{step.action} cannot be taken back, yet {later.action} after it may fail; let it come last,"
            yield step.at, f"{text} or do not promise if-failed: revert"


def _reached(script: Script) -> set[str]:
    """The responses that an event can lead to, by themselves or by `then`."""
    following = {response.id: response.then for response in script.responses}
    reached: set[str] = set()
    for response in script.responses:
        name: str | None = response.id if response.when else None
        while name is not None and name not in reached:
            reached.add(name)
            name = following.get(name)
    return reached


def _unknown(script: Script, response: Response) -> Iterator[tuple[Place, str]]:
    monitors = {monitor.id for monitor in script.monitors}
    kinds = {monitor.watch for monitor in script.monitors}
    for trigger in response.when:
        if trigger.monitor is not None and trigger.monitor not in monitors:
            yield trigger.at, f"unknown monitor {trigger.monitor!r}"
    if response.then is not None and response.then not in {other.id for other in script.responses}:
        yield response.then_at, f"unknown response {response.then!r}"
    for step in response.steps:
        if step.expect and step.expect.watch not in monitors | kinds:
            yield step.expect.at, f"expect: this script has no monitor {step.expect.watch!r}"
        if step.revert == "when-clear" and not script.watched(response):
            yield step.at, "revert: when-clear needs a monitor in 'when' or in an 'expect' of this response"


def _chain(script: Script, response: Response) -> Iterator[tuple[Place, str]]:
    """Follow `then`: it must not come round, and a person must stand at its end."""
    seen = [response.id]
    last = response
    while last.then is not None:
        following = [other for other in script.responses if other.id == last.then]
        if not following:
            return  # named by _unknown
        last = following[0]
        if last.id in seen:
            if last.id == response.id:
                yield response.then_at, f"escalation goes round: {' -> '.join([*seen, last.id])}"
            return
        seen.append(last.id)
    if response.when and not any(step.action in PERSON for step in last.steps):
        at = last.at if last.then is None else last.then_at
        yield at, f"escalation of {response.id!r} does not end in a person: {last.id!r} has no step notify"
