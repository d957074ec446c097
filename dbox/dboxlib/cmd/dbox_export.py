# SPDX-License-Identifier: Apache-2.0
"""dbox-export: write a whole log into one file that can be verified where there is no D-Box."""

import argparse
import os
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from dre import cli, evidence, files
from dre.errors import DreError

from dboxlib import export, store
from dboxlib.database import Database
from dboxlib.store import Store


def make_parser() -> argparse.ArgumentParser:
    """The parser of dbox-export."""
    parser = cli.parser("dbox-export", "Write a whole log into one tar file, for dbox-verify, dbox-audit, dbox-import.")
    parser.add_argument("file", metavar="FILE", help="where to; - is stdout")
    parser.add_argument("--database", metavar="DB", help="another database than DRE_DBOX_DATABASE")
    parser.set_defaults(function=_export)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run dbox-export."""
    return cli.main(make_parser(), argv)


def _export(ctx: cli.Context) -> None:
    args, conf = ctx.args, ctx.conf
    password = conf.dbox_database_password_file
    here = store.open(args.database, password_file=password) if args.database else store.reading(conf)
    if args.file == "-":
        _write(here, sys.stdout.fileno())
        return
    # Beside its name until it is whole: a half export must not lie there under a name that somebody trusts.
    target = Path(args.file)
    temporary = target.with_name(f".{target.name}.{os.getpid()}.tmp")
    fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    try:
        try:
            size = _write(here, fd)
            os.fsync(fd)
        finally:
            os.close(fd)
        temporary.rename(target)
        files.fsync_dir(target.parent)
    finally:
        temporary.unlink(missing_ok=True)
    ctx.say(f"{args.file}: {size} entries of log {here.origin}")


def _write(here: Store, fd: int) -> int:
    """Write the log up to its newest tree head; how many entries that are."""
    note = here.head()
    if note is None:
        raise DreError(f"{here.path}: no tree head: nothing that could be verified")
    size = evidence.parse_head(evidence.parse_note(note).text).size
    source = Database(here)
    with os.fdopen(fd, "wb", closefd=False) as stream:
        anchors = (anchor for anchor in source.anchors() if anchor.size <= size)
        writer = export.Writer(stream, export.Title(here.origin, here.box, size), source.chain(), anchors)
        writer.heads(text for at, text in here.heads() if at <= size)
        writer.entries(_entries(here, size))
        writer.close()
    return size


def _entries(here: Store, size: int) -> Iterator[tuple[bytes, bytes, bytes | None]]:
    query = "SELECT octets, salt FROM entry WHERE number < ? ORDER BY number"
    rows = here.engine.walk(query, (size,))
    for (_, header, _, _, _), (octets, salt) in zip(here.walk(0, size, octets=False), rows, strict=True):
        yield header, salt or b"", octets
