# SPDX-License-Identifier: Apache-2.0
"""dre-app: application containers. The table of its verbs; the code of each stands in the module named here."""

from __future__ import annotations

import sys

from dre.cmd.app import listing

TYPE_CHECKING = False  # as of the module typing, which is slow to load
if TYPE_CHECKING:
    import argparse
    from collections.abc import Sequence

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
    from dre import verbs

    modules = {verb: f"dre.cmd.app.{module}" for module, names in GROUPS.items() for verb in names}
    text = "Application containers: make, run, limit, save and undo services."
    return verbs.parser("dre-app", text, modules, argv)


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point."""
    words = list(sys.argv[1:] if argv is None else argv)
    if listing.is_plain(words):
        return listing.main(words)
    from dre import cli  # what reads arguments is slower to load than a list takes

    return cli.main(make_parser(words), words)
