# SPDX-License-Identifier: Apache-2.0
"""Does one phase of one step: calls dre-app or dre-sys by an argv with a deadline, or acts within this process.

Asking again under the same request id is the probe after a crash: it answers with the first outcome.
"""

import functools
import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from dre import dbox, event, run
from dre.conf import Conf
from dre.errors import DreError

from dscriptlib import seen, store
from dscriptlib.core import Act
from dscriptlib.model import Script, Step
from dscriptlib.seen import State
from dscriptlib.steps import KINDS, FailedStep, Setting, Told, Values


class GoneError(DreError):
    """The process that does the steps is gone: what came of a step is not known here."""


@dataclass(frozen=True)
class Outcome:
    """What came of it: *error* is None when it was done."""

    error: str | None
    seconds: float
    former: Mapping[str, str] | None = None
    told: tuple[Told, ...] = ()
    before: State | None = None  # of what was acted on; None, too, when the action may have begun before
    after: State | None = None


class Doer:
    """Performs steps with the settings of one engine; dry, it only says that they went well."""

    def __init__(self, conf: Conf, config: str | None, dry: bool = False) -> None:
        self.conf = conf
        self.options = ["--config", config] if config else []
        self.dry = dry

    def argv(self, script: Script, act: Act) -> list[str]:
        """What *act* runs; for a step within this process, its name and values, to be shown."""
        step = _step(script, act)
        kind = KINDS[step.action]
        if kind.argv is None and kind.compensate is None:
            words = {key: value for key, value in step.values.items() if key != "argv"}
            if act.phase == "revert":
                words = {key: value for key, value in words.items() if key == "monitor"} | dict(act.former or {})
            return [step.action, *step.values.get("argv", ()), *(f"{key}={value}" for key, value in words.items())]
        own = "dre-sys" if "system" in step.values else "dre-app"
        program = [kind.program or own, *self.options]
        if act.phase == "read":
            assert kind.ask_former is not None
            return [*program, *kind.ask_former(step.values)]
        request = [] if kind.program else ["--request-id", act.request]
        if act.phase == "revert":
            assert kind.compensate is not None
            return [*program, *kind.compensate(step.values, act.former or {}), *request]
        assert kind.argv is not None
        return [*program, *kind.argv(step.values), *request]

    def do(self, script: Script, act: Act, again: bool = False) -> Outcome:
        """Do *act* and wait for its end, at most for the timeout of the step; *again*: it was asked for before."""
        step = _step(script, act)
        about = (act.events, act.about, step.timeout, tuple(self.options))
        setting = Setting(self.conf, script, act.response, act.request, *about)
        before = None if again else self._look(setting, act, step)
        begin = time.monotonic()
        try:
            former, told = self._do(setting, act, step)
            error = None
        except FailedStep as failure:
            former, told, error = None, failure.told, str(failure)
        except (DreError, OSError, ValueError) as failure:
            former, told, error = None, (), str(failure)
        seconds = time.monotonic() - begin
        # Who could not look before and has failed now would only be kept from telling so by a second look.
        blind = error is not None and before is not None and "why" in before
        return Outcome(error, seconds, former, told, before, before if blind else self._look(setting, act, step))

    def _look(self, setting: Setting, act: Act, step: Step) -> State | None:
        if self.dry or act.phase == "read":
            return None
        return seen.look(setting, KINDS[step.action], step.values)

    def _do(self, setting: Setting, act: Act, step: Step) -> tuple[Mapping[str, str] | None, tuple[Told, ...]]:
        kind = KINDS[step.action]
        if self.dry:
            return ((kind.former(step.values, {}) if kind.former else {}) if act.phase == "read" else None), ()
        if kind.act is not None:
            return _here(setting, act, step.values)
        octets = self.call(setting.script, self.argv(setting.script, act), step.timeout)
        if act.phase != "read":
            return None, ()
        row = json.loads(octets.splitlines()[-1] if octets.strip() else "null")
        if kind.former is None or not isinstance(row, dict):
            raise DreError(f"{step.action}: the answer is not one object")
        return kind.former(step.values, row), ()

    def call(self, script: Script, argv: Sequence[str], timeout: float) -> bytes:
        """What the program prints that a step of *script* calls. Raises DreError."""
        return run.run(argv, timeout=timeout).stdout

    def watch(self, script: Script) -> None:
        """Tell dre-watch of the monitors of *script*."""
        store.watch(self.conf, script)

    def record(self, line: bytes) -> None:
        """Put *line* into the D-Box's spool."""
        self._recorder.record("script", line)

    def drain(self) -> None:
        """Hand the spool on to the D-Box."""
        self._recorder.drain(2.0)

    def send(self, line: bytes) -> None:
        """Send *line* to the monitor."""
        octets = line + b"\n"
        if not event.send(self.conf.monitor_sink, octets):
            event.spool(self.conf.core_state_dir / "spool" / "event", octets)

    @functools.cached_property
    def _recorder(self) -> dbox.Recorder:
        return dbox.Recorder(self.conf, "dscript")


def _here(setting: Setting, act: Act, values: Values) -> tuple[Mapping[str, str] | None, tuple[Told, ...]]:
    """What a step does within this process."""
    kind = KINDS[_step(setting.script, act).action]
    if act.phase == "read":
        assert kind.read is not None
        return kind.read(setting, values), ()
    if act.phase == "revert":
        assert kind.take_back is not None
        kind.take_back(setting, values, act.former or {})
        return None, ()
    assert kind.act is not None
    return None, tuple(kind.act(setting, values))


def _step(script: Script, act: Act) -> Step:
    return script.response(act.response).steps[act.step]
