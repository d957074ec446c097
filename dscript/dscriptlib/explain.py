# SPDX-License-Identifier: Apache-2.0
"""A script as plain sentences, for those who agree to it; in English and in Japanese.

Everything that decides what will happen is said. The sentence of a step is also what a simulation prints.
"""

import re
from collections.abc import Iterator

from dscriptlib.model import Expect, Monitor, Response, Script, Step, Trigger
from dscriptlib.phrases import PHRASES, Phrases
from dscriptlib.steps import KINDS

LANGUAGES = tuple(PHRASES)
OTHER = {"above": "below", "below": "above"}


def explain(script: Script, lang: str) -> Iterator[str]:
    """The lines that say what *script* does."""
    for line in _script(script, lang):
        yield tidy(line, lang)


def tidy(text: str, lang: str) -> str:
    """*text* as it is set: Japanese has no spaces between its own letters."""
    return re.sub(r"(?<=[^\x00-\x7f]) (?=[^\x00-\x7f])", "", text) if lang == "ja" else text


def _script(script: Script, lang: str) -> Iterator[str]:
    say = PHRASES[lang]
    agreed = script.agreed
    yield say["script"].format(name=script.name)
    if agreed.get("goal"):
        yield say["goal"].format(goal=agreed["goal"])
    for key in ("case", "evidence", "revision"):
        if agreed.get(key):
            yield say[key].format(value=agreed[key])
    if agreed.get("by"):
        yield say["by"].format(by=say["and"].join(agreed["by"]))
    if agreed.get("parameters"):
        values = ", ".join(f"{name} = {value}" for name, value in agreed["parameters"].items())
        yield say["parameters"].format(values=values)
    if script.monitors:
        yield ""
        yield say["watched"]
    for monitor in script.monitors:
        yield f"  {monitor.id}: {watched(monitor, lang)}"
    for response in script.responses:
        yield ""
        yield from _response(script, response, lang)


def _response(script: Script, response: Response, lang: str) -> Iterator[str]:
    say = PHRASES[lang]
    own = say["for goal"].format(goal=response.goal) if response.goal else ""
    yield say["response"].format(id=response.id) + own
    if response.when:
        yield "  " + say["when"].format(when=say["or"].join(_trigger(trigger, lang) for trigger in response.when))
    else:
        yield "  " + say["never"]
    for number, step in enumerate(response.steps, 1):
        yield f"    {number}. {step_sentence(step, lang)}"
        for line in _terms(response, step, lang):
            yield f"       {line}"
    if any(KINDS[step.action].needs_proof for step in response.steps):
        yield "  " + say["proof"]
    if response.at_most is not None:
        limit = response.at_most
        yield "  " + say["at most"].format(attempts=limit.attempts, per=span(limit.per, lang))
        if limit.cooldown:
            yield "  " + say["cooldown"].format(cooldown=span(limit.cooldown, lang))
    elif response.when:
        yield "  " + say["unlimited"]
    if any(_reverts(response, step) for step in response.steps):
        yield "  " + say["if failed"]
    if response.then is not None:
        yield "  " + say["then"].format(then=response.then)
        if response.at_most is not None:
            yield "  " + say["used up"].format(then=response.then)


def _trigger(trigger: Trigger, lang: str) -> str:
    say = PHRASES[lang]
    if trigger.monitor is not None:
        return say["raised"].format(monitor=trigger.monitor)
    if trigger.after is not None:
        return say["after"].format(event=trigger.event, after=trigger.after, within=span(trigger.within, lang))
    return say["event"].format(event=trigger.event)


def _terms(response: Response, step: Step, lang: str) -> Iterator[str]:
    """What else is agreed about a step."""
    say = PHRASES[lang]
    for key, value in step.values.items():
        if value and (words := say.get(f"with {step.action} {key}")):
            yield words.format(value=value)
    if KINDS[step.action].asks:
        yield say[f"default {step.values['default']}"].format(timeout=span(step.timeout, lang))
    elif KINDS[step.action].argv is not None or step.action in ("run", "scan"):
        yield say["timeout"].format(timeout=span(step.timeout, lang))
    if step.expect is not None:
        yield _expect(step.expect, lang)
    if step.revert == "when-clear":
        yield say["when-clear"].format(back=say[f"back {step.action}"])
    elif _reverts(response, step):
        yield say["on-failure"].format(back=say[f"back {step.action}"])
    elif step.revert == "never":
        yield say["never back"]


def _expect(expect: Expect, lang: str) -> str:
    say = PHRASES[lang]
    return say["expect"].format(watch=say.get(f"kind {expect.watch}", expect.watch), within=span(expect.within, lang))


def _reverts(response: Response, step: Step) -> bool:
    """Whether *step* is taken back when the response fails."""
    if not KINDS[step.action].reversible or step.revert == "never":
        return False
    return step.revert == "on-failure" or response.if_failed == "revert"


def watched(monitor: Monitor, lang: str) -> str:
    """What *monitor* watches and when it is raised and clear."""
    say = PHRASES[lang]
    what = say[f"kind {monitor.watch}"]
    place = monitor.url or monitor.path or monitor.file or " ".join(monitor.argv)
    of = _container(monitor.of, monitor.system, say)
    what = say["of"].format(what=what, of=of) if of else what
    values = {"what": f"{what} ({place})" if place else what, "of": of}
    for key in ("type", "first", "then", "unless", "count"):
        values[key] = str(getattr(monitor, key))
    values["finding"] = say.get(f"finding {monitor.finding}", "")
    values["within"] = span(monitor.within, lang)
    values["missing"] = span(monitor.missing or 0.0, lang)
    if monitor.clear is None:
        parts = [say[f"rule {monitor.watch}"].format(**values)]
        parts += [say["from"].format(source=monitor.source)] if monitor.source else []
        parts += [say["field"].format(key=key, value=value) for key, value in monitor.fields]
        parts += [say["unless"].format(**values)] if monitor.unless else []
        return "".join(parts) + say["end"]
    way, value = ("above", monitor.above) if monitor.below is None else ("below", monitor.below)
    bound, clear = (_amount(monitor, amount or 0.0, lang) for amount in (value, monitor.clear))
    lasting = say["lasting"].format(hold=span(monitor.hold, lang)) if monitor.hold else ""
    text = say[way].format(**values, bound=bound, clear=clear, lasting=lasting)
    return text + (say["silent"].format(**values) if monitor.missing else "")


def step_sentence(step: Step, lang: str) -> str:
    """What *step* does."""
    say = PHRASES[lang]
    values = {key: str(value) for key, value in step.values.items()}
    values["it"] = _container(step.values.get("of"), step.values.get("system"), say)
    if step.action == "limit":
        given = [key for key in ("cpu", "memory", "pids") if key in values]
        values["limits"] = say["and"].join(say[f"limit {key}"].format(value=_limit(key, values[key])) for key in given)
    if step.action == "threshold":
        side = "above" if "above" in values else "below"
        values.update(bound=values[side], side=say[f"side {side}"], other=say[f"side {OTHER[side]}"])
    if step.action == "scan":
        values["finding"] = say[f"finding {values['finding']}"]
    if step.action == "run":
        values["argv"] = " ".join(step.values["argv"])
        values.setdefault("user", "nobody")
    variant = next(
        (key for key in ("tag", "text", "mount") if key in values and f"do {step.action} {key}" in say), None
    )
    return tidy(say[f"do {step.action}" + (f" {variant}" if variant else "")].format(**values), lang)


def _limit(key: str, value: str) -> str:
    if key != "memory":
        return value
    octets = int(value)
    power = next((power for power in (3, 2, 1) if octets % 1024**power == 0), 0)
    return f"{octets // 1024**power}{' KMG'[power].strip()}"


def _container(of: str | None, system: str | None, say: Phrases) -> str:
    if of is not None:
        return say["app"].format(name=of)
    return say["system"].format(name=system) if system is not None else ""


def _amount(monitor: Monitor, value: float, lang: str) -> str:
    if monitor.watch in ("cpu", "memory", "host-cpu", "host-memory", "disk"):
        return f"{value:g} %"
    if monitor.watch in ("http", "clock", "mysql"):
        return span(value, lang)
    return f"{value:g}"


def span(seconds: float, lang: str) -> str:
    """A duration in the words of *lang*."""
    for unit, length in (("d", 86400.0), ("h", 3600.0), ("m", 60.0), ("s", 1.0)):
        if seconds >= length and seconds % length == 0:
            return PHRASES[lang][unit].format(number=f"{seconds / length:g}")
    if seconds < 1:
        return PHRASES[lang]["ms"].format(number=f"{seconds * 1000:g}")
    return PHRASES[lang]["s"].format(number=f"{seconds:g}")
