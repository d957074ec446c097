# SPDX-License-Identifier: Apache-2.0
"""dre-sys isolate and rejoin: a system cut off from the network, and connected again."""

from typing import Any

from dre import verbs
from dre.cli import Context
from dre.cmd.sys.running import each_held
from dre.system import isolation


def add(table: Any) -> None:
    """Add these verbs to *table*."""
    verbs.add_names(verbs.changing(table, "isolate", _isolate, "cut systems off from the network; they run on"))
    verbs.add_names(verbs.changing(table, "rejoin", _rejoin, "connect isolated systems again"))


def _isolate(ctx: Context) -> None:
    each_held(ctx, lambda system: isolation.isolate(system, True))


def _rejoin(ctx: Context) -> None:
    each_held(ctx, lambda system: isolation.isolate(system, False))
