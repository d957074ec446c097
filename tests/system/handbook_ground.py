# SPDX-License-Identifier: Apache-2.0
"""A reader of the handbook, who types its lines as they stand there.

Only what a test must not touch is replaced: the settings, by programs of the same names in front of PATH that add
--config; `sudo`, which root needs not; and `systemctl`, which notes what it was asked to start.
"""

import pathlib
import shlex
import subprocess

import handbook
from conftest import environment, program

COMMANDS = ("dre-app", "dbox-init", "dbox-put", "dbox-get", "dbox-verify", "dbox-export", "dbox-audit")


class Reader:
    """Somebody at a shell in the directory *place*, with the settings *config*."""

    def __init__(self, place, config):
        self.place = pathlib.Path(place)
        self.bin = self.place / "bin"
        self.bin.mkdir()
        for name in COMMANDS:
            self._script(name, f'exec {program(name)} --config {shlex.quote(str(config))} "$@"')
        self._script("sudo", 'exec "$@"')
        self._script("systemctl", f'[ "$1 $2" = "enable --now" ] || exit 9\ntouch {self.place}/"started-$3"')

    def _script(self, name, text):
        path = self.bin / name
        path.write_text(f"#!/bin/sh\n{text}\n")
        path.chmod(0o755)

    def types(self, block, instead=None):
        """What the lines of *block* printed, each of which must end with 0; paths may stand *instead* of others."""
        text = block.text
        for old, new in (instead or {}).items():
            assert old in text
            text = text.replace(old, str(new))
        env = environment()
        env["PATH"] = f"{self.bin}:{env['PATH']}"
        done = subprocess.run(
            ["bash", "-e", "-o", "pipefail", "-c", text], cwd=self.place, env=env, capture_output=True, timeout=120
        )
        assert done.returncode == 0, f"{block.where}: {done.stderr.decode()}"
        return done.stdout.decode()


def marked(page):
    """The blocks of *page* that are to be run, in order."""
    return [block for block in handbook.blocks(handbook.HANDBOOK / page) if block.kind == "sh run"]
