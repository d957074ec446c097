# SPDX-License-Identifier: Apache-2.0
"""What a person is to know, as a line of the log directory's notify.log. Sending it on is the work of a rule."""

import os

from dre import event, files

from dscriptlib.steps import Setting


def write(setting: Setting, to: str, words: str) -> None:
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
