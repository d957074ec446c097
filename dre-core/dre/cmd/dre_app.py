# SPDX-License-Identifier: Apache-2.0
"""dre-app: application containers. The table of its verbs; the code of each stands in the module named here."""

import argparse
import sys
from collections.abc import Sequence

from dre import cli, verbs

GROUPS = {
    "making": ("create", "adopt", "destroy"),
    "setting": ("set",),
    "service": ("log", "console", "keep", "autostart", "autostop"),
    "running": ("start", "stop", "restart", "freeze", "thaw", "recover"),
    "inside": ("exec", "push", "pull"),
    "reading": ("list", "status", "pid", "digest"),
    "sampling": ("stat", "top"),
    "limiting": ("limit",),
    "grouping": ("cgroup",),
    "linking": ("isolate", "rejoin"),
    "checkpointing": ("checkpoint",),
    "moving": ("migrate", "receive"),
    "saving": ("snapshot", "undo"),
    "copying": ("clone", "rename", "export", "import"),
}


def make_parser(argv: Sequence[str] | None = None) -> argparse.ArgumentParser:
    """The parser of dre-app, which is also the source of its completion; with *argv* only what that needs of it."""
    modules = {verb: f"dre.cmd.app.{module}" for module, names in GROUPS.items() for verb in names}
    text = "Application containers: make, run, limit, save and undo services."
    return verbs.parser("dre-app", text, modules, argv)


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point."""
    words = sys.argv[1:] if argv is None else argv
    return cli.main(make_parser(words), words)
