# SPDX-License-Identifier: Apache-2.0
"""dre-sys: system containers. The table of its verbs; the code of each stands in the module named here."""

import argparse
import sys
from collections.abc import Sequence

from dre import cli, verbs

GROUPS = {
    "making": ("create", "destroy"),
    "setting": ("set",),
    "service": ("log", "console", "autostart", "autostop"),
    "running": ("start", "stop", "restart", "freeze", "thaw", "recover"),
    "inside": ("exec", "push", "pull"),
    "reading": ("list", "status"),
    "sampling": ("stat",),
    "limiting": ("limit",),
    "linking": ("isolate", "rejoin"),
    "copying": ("clone", "rename", "export", "import"),
    "moving": ("migrate",),
    "saving": ("snapshot", "checkpoint", "undo"),
}


def make_parser(argv: Sequence[str] | None = None) -> argparse.ArgumentParser:
    """The parser of dre-sys, which is also the source of its completion; with *argv* only what that needs of it."""
    modules = {verb: f"dre.cmd.sys.{module}" for module, names in GROUPS.items() for verb in names}
    text = "System containers: make, run, limit, save, undo and move virtual machines."
    return verbs.parser("dre-sys", text, modules, argv)


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point."""
    words = sys.argv[1:] if argv is None else argv
    return cli.main(make_parser(words), words)
