# SPDX-License-Identifier: Apache-2.0
"""dbox-init: make the keys, certificates and database of a D-Box, and client certificates."""

import argparse
import contextlib
import os
import re
import secrets
import shutil
import socket
from collections.abc import Callable, Sequence
from pathlib import Path
from urllib.parse import urlsplit

from dre import cli, files, units
from dre.errors import DreError, UsageError

from dboxlib import places, registration
from dboxlib.clients import ROLES
from dboxlib.places import Places


def make_parser() -> argparse.ArgumentParser:
    """The parser of dbox-init."""
    parser = cli.parser("dbox-init", "Make the keys, certificates and database of a D-Box, or a client certificate.")
    parser.add_argument(
        "--client", metavar="NAME", type=units.name, help="issue a client certificate, or change its role"
    )
    parser.add_argument("--role", choices=ROLES, help="what the client may do")
    parser.add_argument(
        "--stream", metavar="S", action="append", type=units.name, help="a stream that a writer is bound to; repeatable"
    )
    parser.add_argument("--owner", metavar="USER", help="user who may read the client's key (default: the caller)")
    parser.add_argument(
        "--local", metavar="USER[:EXE]", help="no certificate: who comes by the local socket as USER, running EXE"
    )
    verb = parser.add_mutually_exclusive_group()
    verb.add_argument("--revoke", action="store_true", help="take every role from the client NAME")
    verb.add_argument("--renew", action="store_true", help="a new certificate for the client NAME, of the same role")
    verb.add_argument(
        "--renew-due", metavar="TIME", type=units.duration, help="renew all client certificates that end within TIME"
    )
    verb.add_argument("--clients", action="store_true", help="list the clients and their roles")
    parser.add_argument(
        "--grace", metavar="TIME", type=units.duration, default=7 * 86400.0, help="how long a renewed one counts (7d)"
    )
    parser.set_defaults(function=_init)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run dbox-init."""
    return cli.main(make_parser(), argv)


def _init(ctx: cli.Context) -> None:
    work = _work(ctx.args)
    where = places.of(ctx.conf)
    with files.lock(ctx.conf.core_run_dir / "lock" / "dbox-init"):
        work(ctx, where)


def _work(args: argparse.Namespace) -> Callable[[cli.Context, Places], None]:
    """Which of its things dbox-init is asked to do. Raises UsageError."""
    named, given = args.client is not None, args.role or args.stream or args.owner or args.local
    if args.clients or args.renew_due is not None:
        if named or given:
            raise UsageError("--clients and --renew-due concern all clients: no --client, --role, --stream, …")
        return registration.show if args.clients else registration.renew_due
    if args.revoke or args.renew:
        if not named or given:
            raise UsageError("--revoke and --renew go with --client NAME alone")
        return registration.revoke if args.revoke else registration.renew
    if named != (args.role is not None) or (given and not named):
        raise UsageError("--client and --role go together, and --stream, --owner and --local go with them")
    if args.stream and args.role != "writer":
        raise UsageError("only a writer is bound to streams")
    if not named:
        return _make_box
    return registration.register_local if args.local else registration.register


# --- The D-Box ---


def _make_box(ctx: cli.Context, where: Places) -> None:
    """All or nothing: everything is made aside, and the rename of the certificates' directory is the last step."""
    if where.certs.exists() and any(where.certs.iterdir()):
        raise DreError(f"{where.certs}: there are keys of a D-Box already; nothing was changed")
    _no_entries(where)
    where.certs.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
    for rest in where.certs.parent.glob(f".{where.certs.name}.*.tmp"):
        shutil.rmtree(rest)  # of a dbox-init that was killed
    aside = where.certs.with_name(f".{where.certs.name}.{os.getpid()}.tmp")
    aside.mkdir(mode=0o700)
    try:
        origin = _fill(ctx, where, aside)
        aside.chmod(0o755)
        aside.rename(where.certs)
        files.fsync_dir(where.certs.parent)
    except BaseException:
        shutil.rmtree(aside, ignore_errors=True)
        raise
    from dboxlib.page import accounts

    accounts.prepare(ctx.conf)
    ctx.say(f"log {origin}: keys in {where.certs}; move {where.certs / 'ca'} to a safe place now")


def _no_entries(where: Places) -> None:
    """Refuse a database that holds entries: they would lose their keys."""
    from dboxlib import store

    if where.database.exists():
        with contextlib.closing(store.open(where.database, True)) as found:
            if found.entries():
                raise DreError(f"{where.database}: holds entries of the log {found.origin}; move it away first")


def _fill(ctx: cli.Context, where: Places, aside: Path) -> str:
    """Make all keys; the CA keys and public files in *aside*, sign key and database in the state directory."""
    from dre import trust

    from dboxlib import pki, store

    box = secrets.token_hex(8)
    host = re.sub(r"[^A-Za-z0-9.-]", "-", socket.gethostname()) or "localhost"
    origin = f"{host}/dbox/{box}"
    root = pki.authority("D-RE root", box, 3, None, 30)
    centre = pki.authority("DEOS centre", box, 2, root, 25)
    manufacturer = pki.authority("D-Box manufacturer", box, 1, centre, 20)
    owner = pki.authority("D-Box owner", box, 0, manufacturer, 15)
    sign, note = pki.sign_key(owner, box, origin), pki.note_key(owner, box, origin)
    server = pki.server(owner, box, _names(ctx, host))
    clients = pki.client_authority(box)
    chain = [owner.certificate, manufacturer.certificate, centre.certificate]
    user = places.owner()

    def put(path: Path, octets: bytes, mode: int, to: tuple[int, int] | None = None) -> None:
        files.write_atomic(path, octets, mode)
        places.give(path, to)

    (aside / "ca").mkdir(mode=0o700)
    (aside / "clients").mkdir(mode=0o755)
    for name, issued in (("root", root), ("centre", centre), ("manufacturer", manufacturer)):
        put(aside / "ca" / f"{name}.key", pki.key_pem(issued.key), 0o400)
        put(aside / "ca" / f"{name}.crt", pki.pem(issued.certificate), 0o444)
    passphrase = secrets.token_urlsafe(24).encode()
    put(aside / "owner.p12", pki.pack_owner(owner, [*chain[1:], root.certificate], passphrase), 0o400)
    put(aside / "owner.pass", passphrase, 0o400)
    put(aside / "root.pem", pki.pem(root.certificate), 0o444)
    signing = [sign.certificate, note.certificate, *chain]
    put(aside / "chain.pem", b"".join(map(pki.pem, signing)), 0o644)
    put(aside / "note.key", pki.key_pem(note.key), 0o400, user)
    put(aside / "server.key", pki.key_pem(server.key), 0o400, user)
    put(aside / "server.crt", b"".join(map(pki.pem, [server.certificate, *chain])), 0o444)
    put(aside / "client-ca.pem", pki.pem(clients.certificate), 0o444)
    put(aside / "client-ca.key", pki.key_pem(clients.key), 0o400)

    kinds = ("sign", "note", "owner", "manufacturer", "centre")
    rows = [
        (kind, trust.fingerprint(certificate), pki.pem(certificate).decode())
        for kind, certificate in zip(kinds, signing, strict=True)
    ]
    where.state.mkdir(mode=0o700, parents=True, exist_ok=True)
    places.give(where.state, user)
    put(where.sign_key, pki.key_pem(sign.key), 0o400, user)
    if where.url.startswith("mysql:"):
        store.create(where.url, origin, box, rows[::-1], password_file=where.password_file)
        return origin
    fresh = where.database.with_name(f".{where.database.name}.tmp")
    for rest in (fresh, where.database):
        for ending in ("", "-wal", "-shm"):
            rest.with_name(rest.name + ending).unlink(missing_ok=True)
    store.create(fresh, origin, box, rows[::-1])  # the chain is listed newest first: the leaves before their issuers
    fresh.chmod(0o600)
    places.give(fresh, user)
    fresh.rename(where.database)
    files.fsync_dir(where.state)
    return origin


def _names(ctx: cli.Context, host: str) -> list[str]:
    """The names under which clients may find the server."""
    names = ["localhost", "127.0.0.1", host, "d-box", urlsplit(ctx.conf.dbox_url).hostname or "localhost"]
    return list(dict.fromkeys(names))
