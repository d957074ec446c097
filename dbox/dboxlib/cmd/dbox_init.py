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
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from dre import cli, files, units
from dre.errors import DreError, UsageError

from dboxlib import places, registration
from dboxlib.clients import ROLES
from dboxlib.places import Places

if TYPE_CHECKING:
    from cryptography import x509

    from dboxlib import pki


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
    box = parser.add_argument_group("making the D-Box")
    box.add_argument(
        "--import-owner", metavar="FILE", type=Path, help="PKCS#12 file of the owner: key, certificate, all above"
    )
    box.add_argument("--passphrase-file", metavar="F", type=Path, help="file with the passphrase of that file")
    box.add_argument(
        "--keep-ca",
        metavar="DIR",
        type=Path,
        help="keep the keys above the owner's in DIR; else they are never written",
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
    making = args.import_owner or args.passphrase_file or args.keep_ca
    if making and (named or given or args.clients or args.renew_due is not None or args.revoke or args.renew):
        raise UsageError("--import-owner, --passphrase-file and --keep-ca are for making the D-Box, not for clients")
    if (args.import_owner is None) != (args.passphrase_file is None):
        raise UsageError("--import-owner and --passphrase-file go together")
    if args.import_owner and args.keep_ca:
        raise UsageError("--keep-ca: there are no keys above an imported owner's")
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
    if ctx.args.keep_ca and ctx.args.keep_ca.exists():
        raise DreError(f"{ctx.args.keep_ca}: is there already; keys of a CA go into a directory of their own")
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
    ctx.say(f"log {origin}: keys in {where.certs}; give {where.certs / 'root.pem'} to those who shall verify")


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

    from dboxlib import keystore, pki, rotation, store

    conf = ctx.conf
    box = secrets.token_hex(8)
    host = re.sub(r"[^A-Za-z0-9.-]", "-", socket.gethostname()) or "localhost"
    origin = f"{host}/dbox/{box}"
    keys = keystore.of(conf)
    owner, above = _authorities(ctx, box)
    key = keys.make(conf.dbox_key_bits)
    sign = pki.sign_certificate(owner, box, origin, keys.load(key).public_key(), conf.dbox_key_period)
    note = pki.note_key(owner, box, origin)
    server = pki.server(owner, box, _names(ctx, host))
    clients = pki.client_authority(box)
    chain = [owner.certificate, *above[:-1]]
    user = places.owner()

    def put(path: Path, octets: bytes, mode: int, to: tuple[int, int] | None = None) -> None:
        files.write_atomic(path, octets, mode)
        places.give(path, to)

    (aside / "clients").mkdir(mode=0o755)
    passphrase = secrets.token_urlsafe(24).encode()
    put(aside / "owner.p12", pki.pack_owner(owner, above, passphrase), 0o400)
    put(aside / "owner.pass", passphrase, 0o400)
    put(aside / "root.pem", pki.pem(above[-1]), 0o444)
    signing = [sign, note.certificate, *chain]
    put(aside / "chain.pem", b"".join(map(pki.pem, signing)), 0o644)
    put(aside / "note.key", pki.key_pem(note.key), 0o400, user)
    put(aside / "server.key", pki.key_pem(server.key), 0o400)  # servers read it as root, before they give that up
    put(aside / "server.crt", b"".join(map(pki.pem, [server.certificate, *chain])), 0o444)
    put(aside / "client-ca.pem", pki.pem(clients.certificate), 0o444)
    put(aside / "client-ca.key", pki.key_pem(clients.key), 0o400)

    kinds = ["sign", "note", "owner", "manufacturer", "centre"][: len(signing)]
    kinds += ["centre"] * (len(signing) - len(kinds))  # an imported owner may have more above it
    rows = [
        (kind, trust.fingerprint(certificate), pki.pem(certificate).decode())
        for kind, certificate in zip(kinds, signing, strict=True)
    ]
    where.state.mkdir(mode=0o700, parents=True, exist_ok=True)
    places.give(where.state, user)
    put(where.sign_key, key, 0o400, user)
    rotation.discard(where, keys)
    rotation.prepare(where, keys, owner, (box, origin), conf.dbox_key_bits, conf.dbox_key_period)
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


def _authorities(ctx: cli.Context, box: str) -> tuple["pki.Issued", list["x509.Certificate"]]:
    """The owner, made or imported, and the certificates above up to the root. Keys above the owner's end here."""
    from dboxlib import owner, pki

    args = ctx.args
    if args.import_owner:
        return owner.imported(args.import_owner, args.passphrase_file)
    root = pki.authority("D-RE root", box, 3, None, 30)
    centre = pki.authority("DEOS centre", box, 2, root, 25)
    manufacturer = pki.authority("D-Box manufacturer", box, 1, centre, 20)
    if args.keep_ca:
        args.keep_ca.mkdir(mode=0o700)
        for name, issued in (("root", root), ("centre", centre), ("manufacturer", manufacturer)):
            files.write_atomic(args.keep_ca / f"{name}.key", pki.key_pem(issued.key), 0o400)
            files.write_atomic(args.keep_ca / f"{name}.crt", pki.pem(issued.certificate), 0o444)
    above = [manufacturer.certificate, centre.certificate, root.certificate]
    return pki.authority("D-Box owner", box, 0, manufacturer, 15), above


def _names(ctx: cli.Context, host: str) -> list[str]:
    """The names under which clients may find the server."""
    names = ["localhost", "127.0.0.1", host, "d-box", urlsplit(ctx.conf.dbox_url).hostname or "localhost"]
    return list(dict.fromkeys(names))
