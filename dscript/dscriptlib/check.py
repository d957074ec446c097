# SPDX-License-Identifier: Apache-2.0
"""Whether the parts of a loaded script fit together. Everything here is a look at values; nothing is run."""

from collections.abc import Iterator

from dscriptlib import load
from dscriptlib.model import Finding, Place, Response, Script

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
        if monitor.above is not None and monitor.clear is not None and monitor.clear >= monitor.above:
            yield error(monitor.at, f"monitor {monitor.id!r}: clear must be below above, or it would never be clear")
    for response in script.responses:
        for at, text in _unknown(script, response):
            yield error(at, text)
        for at, text in _chain(script, response):
            yield error(at, text)
        if response.when and response.at_most is None:
            text = f"response {response.id!r} can repeat without end; say at-most: {{attempts: N, per: TIME}}"
            yield Finding(file, response.at, "warning", text)


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
