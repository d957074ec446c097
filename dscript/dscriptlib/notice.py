# SPDX-License-Identifier: Apache-2.0
"""What a person is to know: a line of the log directory's notify.log, and handed on by programs of actions.d.

Each program there whose name begins with `notify-` is told, as nobody, once for a request. The line is there first, and
whatever becomes of them.
"""

import os
import re
from dataclasses import replace

from dre import event, files
from dre.errors import DreError

from dscriptlib.steps import FailedStep, Setting, Told

PROGRAM = re.compile(r"notify-[a-z0-9-]{1,40}")  # never what an editor or dpkg leaves beside it
PATIENCE = 20.0  # seconds that each of them has


def tell(setting: Setting, to: str, words: str) -> list[Told]:
    """Write the notice and hand it on; what the programs said. Raises FailedStep where there are some and none did."""
    _write(setting, to, words)
    programs = setting.conf.core_etc_dir / "actions.d"
    names = [path.name for path in sorted(programs.glob("notify-*")) if PROGRAM.fullmatch(path.name)]
    told: list[Told] = []
    wrong: list[str] = []
    for name in names:
        try:
            told += _hand_on(setting, name, to, words)
        except FailedStep as failure:
            told += failure.told
            wrong.append(str(failure))
        except DreError as failure:
            wrong.append(str(failure))
    if names and len(wrong) == len(names):
        raise FailedStep(f"{to}: it is in notify.log, but was not handed on: {'; '.join(wrong)}", told)
    return told


def _hand_on(setting: Setting, name: str, to: str, words: str) -> list[Told]:
    from dscriptlib import programs  # late: most notices need none

    request, timeout = f"{setting.request}-{name}", min(setting.timeout, PATIENCE)
    own = replace(setting, request=request, timeout=timeout)
    return programs.run(own, [name], "nobody", {"DRE_NOTIFY_TO": to, "DRE_NOTIFY_TEXT": words})


def _write(setting: Setting, to: str, words: str) -> None:
    """Append the notice, durably and once for a request, also when it is asked again after a crash. Raises OSError."""
    directory = setting.conf.core_log_dir
    directory.mkdir(mode=0o755, parents=True, exist_ok=True)
    with files.lock(directory / ".notify.lock", timeout=5.0), (directory / "notify.log").open("ab+") as log:
        log.seek(max(0, log.seek(0, os.SEEK_END) - 1024 * 1024))
        if f" request={setting.request} ".encode() not in log.read():
            line = f"{event.stamp()} to={to} request={setting.request} {setting.script.name}/{setting.response}: "
            log.write(f"{line}{words}\n".encode())
            log.flush()
            os.fdatasync(log.fileno())
