# SPDX-License-Identifier: Apache-2.0
"""`scan`: have the D-System Monitor look into a system now; that it finds something is no failure.

What it finds it tells by events of its own, which monitors `watch: sysmon` see. To ask again is to look again.
"""

from dre import run, units
from dre.errors import DONE, FAILED, DreError

from dscriptlib import words
from dscriptlib.steps import Key, Kind, Setting, Told, Values, word

PROGRAMS = {
    "hidden.process": "dre-lms",
    "hidden.module": "dre-lms",
    "hidden.file": "dre-libra",
    "hook": "dre-lms",
    "keylogger": "dre-foxykbd",
    "inconsistent": "dre-lms",
}


def _act(setting: Setting, values: Values) -> list[Told]:
    mount = ["--mount", values["mount"]] if "mount" in values else []
    argv = [PROGRAMS[values["finding"]], *setting.options, *mount, values["system"]]
    done = run.run(argv, timeout=setting.timeout, check=False)
    if done.returncode not in (DONE, FAILED):
        said = done.stderr.decode(errors="replace").strip().splitlines() or ["no message"]
        raise DreError(f"{' '.join(argv)}: could not look, exit status {done.returncode}: {said[-1]}")
    found = "finding" if done.returncode == FAILED else "clean"
    return [Told("script.scan", {"system": values["system"], "finding": values["finding"], "result": found}, 6)]


def _problem(values: Values) -> str | None:
    if "finding" in values and ("mount" in values) != (values["finding"] == "hidden.file"):
        return "say 'mount', a directory on NFS in the system, of hidden.file and of nothing else"
    return None


STEP = Kind(
    keys={"system": Key(units.name), "finding": Key(word(*PROGRAMS)), "mount": Key(words.path, required=False)},
    needs_proof=True,
    act=_act,
    problem=_problem,
)
