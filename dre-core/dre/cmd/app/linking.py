# SPDX-License-Identifier: Apache-2.0
"""dre-app isolate and rejoin: an app cut off from the network, and connected again."""

from typing import Any

from dre import network, verbs
from dre.cli import Context
from dre.cmd.app.running import each_held


def add(table: Any) -> None:
    """Add these verbs to *table*."""
    verbs.add_names(verbs.changing(table, "isolate", _isolate, "cut apps off from the network; they run on"))
    verbs.add_names(verbs.changing(table, "rejoin", _rejoin, "connect isolated apps again"))


def _isolate(ctx: Context) -> None:
    each_held(ctx, network.isolate)


def _rejoin(ctx: Context) -> None:
    each_held(ctx, network.rejoin)
