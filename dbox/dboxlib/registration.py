# SPDX-License-Identifier: Apache-2.0
"""The client half of dbox-init: issue, renew and revoke client certificates, and register local writers.

What a role is and which change is allowed is `dboxlib.clients`; this module makes the files that go with it. Each
verb may be killed anywhere and called again.
"""

import contextlib
import os
import pwd
import time
from collections.abc import Iterator
from datetime import datetime, timezone
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dre import cli, event, files, units
from dre.errors import DreError, MissingError, NotFoundError, UsageError

from dboxlib import clients, places
from dboxlib.clients import REVOKED, Client
from dboxlib.places import Places

if TYPE_CHECKING:
    from cryptography import x509

COLUMNS: list[cli.Column] = [
    ("NAME", "client", 16),
    ("ROLE", "role", 8),
    ("EXPIRES", "expires", 24),
    ("UNTIL", "until", 24),
    ("STREAMS", "streams", 12),
    ("USER", "user", 10),
    ("EXECUTABLE", "executable", 24),
    ("FINGERPRINT", "fingerprint", 64),
]


def register(ctx: cli.Context, where: Places) -> None:
    """Issue a certificate for a new client, or change role and streams of one that is there."""
    args = ctx.args
    bound = clients.streams(args.stream or ())
    user = _user(args.owner)
    with _table(ctx, where) as table:
        crt, key = _pair(where, args.client)
        known = _registered(table, crt)
        if known is None or known.role == REVOKED:  # a revoked certificate never comes back into force
            if crt.exists():
                key.unlink(missing_ok=True)
                crt.unlink()
            _issue(where, table.box, args.client, crt, key, user)
            known = None
        elif (known.role, known.streams, known.until) == (args.role, bound, ""):
            raise DreError(f"client {args.client!r} is there already, as {args.role}; nothing was changed")
        _spool(ctx, args.client, user)
        clients.change(table, Client(0, _fingerprint(crt), args.client, args.role, "", bound))
    told(ctx)
    ctx.say(f"client {args.client}: {args.role}, certificate {crt}")


def register_local(ctx: cli.Context, where: Places) -> None:
    """Register a user and executable for the local socket; there is no certificate."""
    args = ctx.args
    user, _, executable = args.local.partition(":")
    if args.owner:
        raise UsageError("--owner is for a certificate's key; a local client belongs to its user")
    fingerprint, told_as = clients.local(user, executable or clients.ANY)
    belongs = _user(user)
    if executable and executable != clients.ANY:
        real = os.path.realpath(executable)  # as the kernel tells it
        if not os.access(real, os.X_OK) or not Path(real).is_file():
            raise NotFoundError(f"{executable}: no such executable on this host")
        fingerprint, told_as = clients.local(user, real)
    with _table(ctx, where) as table:
        known = clients.find(table, fingerprint)
        wanted = Client(0, fingerprint, args.client, args.role, "", clients.streams(args.stream or ()), told_as)
        if known is not None and known.holds(event.stamp()) and _same(known, wanted):
            raise DreError(f"client {args.client!r} is there already, as {args.role}; nothing was changed")
        _spool(ctx, args.client, belongs)
        clients.change(table, wanted)
    told(ctx)
    ctx.say(f"client {args.client}: {args.role}, local: user {told_as.replace(' ', ', executable ', 1)}")


def revoke(ctx: cli.Context, where: Places) -> None:
    """Take every role from a client, its old certificates and local registrations included."""
    name = ctx.args.client
    with _table(ctx, where) as table:
        mine = [one for one in clients.current(table) if one.name == name]
        if not mine:
            raise NotFoundError(f"no client {name!r} is registered here")
        for one in mine:
            if one.role != REVOKED:
                clients.change(table, Client(0, one.fingerprint, name, REVOKED, "", "", one.local))
        for path in reversed(_pair(where, name)):
            path.unlink(missing_ok=True)
            _next(path).unlink(missing_ok=True)
    told(ctx)
    ctx.say(f"client {name}: revoked")


def renew(ctx: cli.Context, where: Places) -> None:
    """A new key and certificate for one client; the old certificate counts until the grace is over."""
    with _table(ctx, where) as table:
        crt, _ = _pair(where, ctx.args.client)
        if not crt.exists():
            raise NotFoundError(
                f"{crt}: no certificate to renew; dbox-init --client {ctx.args.client} --role … makes one"
            )
        _renew(ctx, where, table, ctx.args.client)
    told(ctx)


def renew_due(ctx: cli.Context, where: Places) -> None:
    """Renew every certificate of this directory that ends within the given time, and finish what was cut off."""
    before = time.time() + ctx.args.renew_due
    failed = []
    with _table(ctx, where) as table:
        for crt in sorted((where.certs / "clients").glob("*.crt")):
            known = _registered(table, crt)
            if known is None or known.role == REVOKED:
                continue  # nothing would be gained
            if _end(crt).timestamp() < before or known.until or _next(crt).exists():
                try:
                    _renew(ctx, where, table, crt.stem)
                except (DreError, OSError) as error:  # the others are still due
                    failed.append(f"{crt.stem}: {error}")
    told(ctx)
    if failed:
        raise DreError("not renewed: " + "; ".join(failed))


def show(ctx: cli.Context, where: Places) -> None:
    """Print every client: the registration that counts, and when its certificate ends where it lies here."""
    with _table(ctx, where) as table:
        found, ends = clients.current(table), {}
        for crt in (where.certs / "clients").glob("*.crt"):
            ends[_fingerprint(crt)] = event.stamp(_end(crt).timestamp())
        empty: dict[str, Any] = {key: None for _, key, _ in COLUMNS}
        ctx.out.table(
            (
                {**empty, "streams": [], **one.fields(), "time": one.time, "expires": ends.get(one.fingerprint)}
                for one in found
            ),
            COLUMNS,
        )


def told(ctx: cli.Context) -> None:
    """Let a running sequencer write the entries of what was registered now; without one it does so at its start."""
    from dboxlib import message, remote

    sequencer = remote.Remote(message.place(ctx.conf))
    with contextlib.suppress(MissingError), contextlib.closing(sequencer):
        sequencer.log_clients()


def _renew(ctx: cli.Context, where: Places, table: Any, name: str) -> None:
    """New pair beside the old one, registered, put in its place; then the old one gets its last day.

    The pair in place may be the new one already, after a call that was killed: the registration of each says so.
    """
    crt, key = _pair(where, name)
    old, new_crt, new_key = _registered(table, crt), _next(crt), _next(key)
    if old is None or not (old.holds(event.stamp()) or (old.until and new_crt.exists())):
        raise DreError(f"client {name!r} has no role now: nothing to renew")
    if not new_crt.exists():
        owner = key.stat() if key.exists() else None
        user = (owner.st_uid, owner.st_gid) if owner and os.geteuid() == 0 else None
        _issue(where, table.box, name, new_crt, new_key, user)
    fingerprint = _fingerprint(new_crt)
    if clients.find(table, fingerprint) is None:
        clients.change(table, Client(0, fingerprint, name, old.role, "", old.streams))
    until = old.until or event.stamp(time.time() + ctx.args.grace)
    if not old.until:
        clients.change(table, Client(0, old.fingerprint, name, old.role, "", old.streams, "", until))
    if new_key.exists():
        new_key.rename(key)
    new_crt.rename(crt)
    files.fsync_dir(crt.parent)
    ctx.say(f"client {name}: new certificate {crt}, the old one counts until {until}")


def _issue(where: Places, box: str, name: str, crt: Path, key: Path, user: tuple[int, int] | None) -> None:
    """Key first, certificate last: a certificate that is there has its key."""
    from dre import trust

    from dboxlib import pki, signer

    if not (where.certs / "client-ca.key").exists():
        raise NotFoundError(f"{where.certs / 'client-ca.key'}: no client CA; run dbox-init first")
    authority = pki.Issued(
        signer.load_key((where.certs / "client-ca.key").read_bytes()),
        trust.certificates((where.certs / "client-ca.pem").read_bytes(), "client-ca.pem")[0],
    )
    issued = pki.client(authority, box, name)
    key.unlink(missing_ok=True)
    files.write_atomic(key, pki.key_pem(issued.key), 0o400)
    places.give(key, user)
    files.write_atomic(crt, pki.pem(issued.certificate), 0o444)


def _same(one: Client, other: Client) -> bool:
    return (one.name, one.role, one.streams) == (other.name, other.role, other.streams)


@contextlib.contextmanager
def _table(ctx: cli.Context, where: Places) -> Iterator[Any]:
    from dboxlib import store

    if not (where.certs / "client-ca.pem").exists():
        raise NotFoundError(f"{where.certs / 'client-ca.pem'}: no client CA; run dbox-init first")
    with contextlib.closing(store.administering(ctx.conf)) as table:
        yield table


def _pair(where: Places, name: str) -> tuple[Path, Path]:
    return where.certs / "clients" / f"{name}.crt", where.certs / "clients" / f"{name}.key"


def _next(path: Path) -> Path:
    """The place of a renewed certificate or key before it counts; no client is called so."""
    return path.with_name(f"{path.name}.next")


def _certificate(crt: Path) -> "x509.Certificate":
    from dre import trust

    return trust.certificates(crt.read_bytes(), str(crt))[0]


def _fingerprint(crt: Path) -> str:
    from dre import trust

    return trust.fingerprint(_certificate(crt))


def _end(crt: Path) -> datetime:
    from dre import trust

    return datetime.fromisoformat(trust.period([_certificate(crt)])[1].replace("Z", "+00:00")).astimezone(timezone.utc)


def _registered(table: clients.Table, crt: Path) -> Client | None:
    """The registration of the certificate that lies there; None without one, or of one cut off before it was."""
    return clients.find(table, _fingerprint(crt)) if crt.exists() else None


def _spool(ctx: cli.Context, name: str, user: tuple[int, int] | None) -> None:
    spool = ctx.conf.core_state_dir / "spool" / "dbox" / units.name(name)
    spool.mkdir(mode=0o700, parents=True, exist_ok=True)
    places.give(spool, user)


def _user(name: str | None) -> tuple[int, int] | None:
    if name is None:
        return None
    try:
        entry = pwd.getpwnam(name)
    except KeyError:
        raise NotFoundError(f"no user {name!r} on this host") from None
    return entry.pw_uid, entry.pw_gid
