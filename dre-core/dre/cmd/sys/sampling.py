# SPDX-License-Identifier: Apache-2.0
"""dre-sys stat: what systems use, without asking the guests."""

from typing import Any

from dre import cli
from dre.cli import Context
from dre.cmd import repeating
from dre.system import look

COLUMNS = (
    ("NAME", "name", 12),
    ("STATE", "state", 8),
    ("CPU%", "cpu", 6),
    ("MEMORY", "memory", 11),
    ("LIMIT", "memory_limit", 11),
    ("READ/S", "io_read", 10),
    ("WRITE/S", "io_write", 10),
    ("RX/S", "net_rx", 10),
    ("TX/S", "net_tx", 10),
)


def add(table: Any) -> None:
    """Add these verbs to *table*."""
    repeating.add_repetition(cli.verb(table, "stat", _stat, "print use of cpu, memory, disk and net"), "NAME")


def _stat(ctx: Context) -> None:
    cli.need_root("dre-sys stat")
    repeating.repeat(ctx, look.Watch(ctx.conf, ctx.args.names, details=ctx.out.as_json).look, COLUMNS)
