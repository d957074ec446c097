# SPDX-License-Identifier: Apache-2.0
"""`notify`: tell a person, by a line in the log directory's notify.log and an event `script.notify`.

Sending it on (mail, pager) is the work of a rule on that event.
"""

import os

from dre import event, files, units

from dscriptlib.steps import Key, Kind, Setting, Told, Values, text


def _act(setting: Setting, values: Values) -> list[Told]:
    words = values.get("text", "the responses agreed for this did not help; please look")
    directory = setting.conf.core_log_dir
    directory.mkdir(mode=0o755, parents=True, exist_ok=True)
    path = directory / "notify.log"
    # A step asked again after a crash finds its own request in the log and does not tell the person twice.
    with files.lock(directory / ".notify.lock", timeout=5.0), path.open("ab+") as log:
        log.seek(max(0, log.seek(0, os.SEEK_END) - 1024 * 1024))
        if f" request={setting.request} ".encode() not in log.read():
            line = f"{event.stamp()} to={values['to']} request={setting.request} {setting.script}/{setting.response}: "
            log.write(f"{line}{words}\n".encode())
            log.flush()
            os.fdatasync(log.fileno())
    return [Told("script.notify", {"to": values["to"], "text": words}, sev=1)]


STEP = Kind(
    keys={"to": Key(units.name), "text": Key(text(500), required=False)},
    needs_proof=False,
    act=_act,
)
