# SPDX-License-Identifier: Apache-2.0
"""dbox-user: accounts of the page, for people without a client certificate."""

import argparse
import contextlib
from collections.abc import Iterator, Sequence
from typing import Any

from dre import cli, event, files, units
from dre.errors import NotFoundError, UsageError

from dboxlib import clients, registration
from dboxlib.clients import REVOKED, ROLES, Client
from dboxlib.page import accounts
from dboxlib.page.accounts import Accounts

COLUMNS: list[cli.Column] = [("NAME", "name", 16), ("ROLE", "role", 8), ("SINCE", "time", 24)]


def make_parser() -> argparse.ArgumentParser:
    """The parser of dbox-user."""
    parser = cli.parser("dbox-user", "Make, change and list the accounts of the page of the D-Box.")
    parser.add_argument("name", metavar="NAME", nargs="?", type=units.name, help="the account")
    parser.add_argument("--role", choices=ROLES, help="what it may do; a new account gets a password, too")
    parser.add_argument("--stream", metavar="S", action="append", type=units.name, help="a stream a writer is bound to")
    what = parser.add_mutually_exclusive_group()
    what.add_argument("--password", action="store_true", help="another password, asked for, or a line of stdin")
    what.add_argument("--generate", action="store_true", help="another password, made by chance and printed")
    what.add_argument("--revoke", action="store_true", help="take role and password away")
    what.add_argument("--list", action="store_true", help="list the accounts")
    parser.set_defaults(function=_user)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run dbox-user."""
    return cli.main(make_parser(), argv)


def _user(ctx: cli.Context) -> None:
    args = ctx.args
    if args.list == (args.name is not None):
        raise UsageError("expected the NAME of an account, or --list alone")
    if (args.list or args.revoke) and (args.role or args.stream):
        raise UsageError("--role and --stream go with a NAME that gets them")
    if args.stream and args.role != "writer":
        raise UsageError("--stream goes with --role writer")
    if not (args.list or args.revoke or args.role or args.password or args.generate):
        raise UsageError("expected what is to be done: --role, --password, --generate or --revoke")
    with files.lock(ctx.conf.core_run_dir / "lock" / "dbox-init"), _table(ctx) as table:
        kept = Accounts(accounts.prepare(ctx.conf))
        (_list if args.list else _revoke if args.revoke else _change)(ctx, table, kept)


def _change(ctx: cli.Context, table: Any, kept: Accounts) -> None:
    """Role, password, or both; either way sessions that are open end, because the registration is a new one."""
    args, identity = ctx.args, accounts.fingerprint(ctx.args.name)
    known, there = clients.find(table, identity), args.name in kept.names()
    if known is None or known.role == REVOKED:
        if args.role is None:
            raise NotFoundError(f"no account {args.name!r}; --role makes one")
        there = False
    role = args.role or (known.role if known else "")
    bound = clients.streams(args.stream or ()) if args.role else known.streams if known else ""
    password = accounts.ask_password(args.name, args.generate) if args.password or args.generate or not there else None
    clients.change(table, Client(0, identity, args.name, role, "", bound))
    if password is not None:
        kept.set_password(args.name, password)
    registration.told(ctx)
    if args.generate and password is not None:
        ctx.out.json({"name": args.name, "password": password}) if ctx.out.as_json else ctx.out.line(password)
    ctx.say(f"account {args.name}: {role}")


def _revoke(ctx: cli.Context, table: Any, kept: Accounts) -> None:
    identity = accounts.fingerprint(ctx.args.name)
    if clients.find(table, identity) is None:
        raise NotFoundError(f"no account {ctx.args.name!r}")
    clients.change(table, Client(0, identity, ctx.args.name, REVOKED, ""))
    kept.forget(ctx.args.name)
    registration.told(ctx)
    ctx.say(f"account {ctx.args.name}: revoked")


def _list(ctx: cli.Context, table: Any, kept: Accounts) -> None:
    now, rows = event.stamp(), []
    for name in kept.names():
        client = clients.find(table, accounts.fingerprint(name))
        role = client.role if client and client.holds(now) else None
        rows.append({"name": name, "role": role, "time": client.time if client else None})
    ctx.out.table(rows, COLUMNS)


@contextlib.contextmanager
def _table(ctx: cli.Context) -> Iterator[Any]:
    from dboxlib import store

    with contextlib.closing(store.administering(ctx.conf)) as table:
        yield table
