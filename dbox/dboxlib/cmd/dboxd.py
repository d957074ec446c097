# SPDX-License-Identifier: Apache-2.0
"""dboxd: serve one log over HTTPS, in the foreground, until SIGTERM."""

import argparse
import contextlib
import os
import signal
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from dre import cli, event, files, trust
from dre.errors import DreError, MissingError, UsageError

from dboxlib import pki, places, rotation
from dboxlib.places import Places
from dboxlib.sequencer import Sequencer
from dboxlib.signer import Signer, load_key
from dboxlib.store import Store
from dboxlib.wsgi import Application


def make_parser() -> argparse.ArgumentParser:
    """The parser of dboxd."""
    parser = cli.parser("dboxd", "Serve the D-Box: append-only log with signed tree heads, over HTTPS.")
    parser.set_defaults(function=_serve)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run dboxd."""
    return cli.main(make_parser(), argv)


def _serve(ctx: cli.Context) -> None:
    try:
        from dboxlib import server
    except ImportError:
        raise MissingError("python3-cheroot is not installed; apt-get install python3-cheroot") from None
    where, certs = places.of(ctx.conf), ctx.conf.dbox_certs_dir
    _ready(where)
    note_key = _read_key(certs / "note.key")
    owner = _owner(certs)
    tls = server.context(certs / "server.crt", certs / "server.key", certs / "client-ca.pem")
    application = _Late()
    web = server.make(application, ctx.conf.dbox_listen, tls)
    try:
        web.prepare()
    except OSError as error:
        raise DreError(f"{_address(ctx)}: cannot listen: {error.strerror or error}") from None
    try:
        _drop(ctx)
        with files.lock(where.state / "dboxd.lock", timeout=2.0), _log(ctx, where, note_key, owner) as log:
            application.ready = log
            # Handlers come last: before this point nothing is lost by ending at once.
            signal.signal(signal.SIGTERM, _end)
            signal.signal(signal.SIGINT, _end)
            sys.stderr.write(f"dboxd: listening on https://{_address(ctx)}\n")
            with contextlib.suppress(_Ended):
                web.serve()
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
            signal.signal(signal.SIGINT, signal.SIG_IGN)
            web.stop()
    finally:
        web.stop()


class _Late:
    """The application before the log is open: cheroot wants one when it is made."""

    ready: Application

    def __call__(self, environ: dict[str, Any], start: Any) -> Any:
        return self.ready(environ, start)


@contextlib.contextmanager
def _log(ctx: cli.Context, where: Places, note_key: Any, owner: pki.Issued | None) -> Iterator[Application]:
    """The log, read back and ready; its queue is finished on the way out."""
    store = Store(where.database)
    signer = Signer(store.origin, rotation.recover(where, store), note_key, owner)
    sequencer = Sequencer(store, signer)

    def told(fingerprint: str) -> None:
        event.emit(ctx.conf, "dbox.key.rotated", event.host() + "/dbox", {"key": fingerprint, "log": store.origin}, 5)

    sequencer.rotate = rotation.Rotation(where, store.box, signer, ctx.conf.dbox_key_period, told)
    authority = trust.certificates(store.certificate("owner").encode(), "owner")[0]
    sequencer.start(trust.fingerprint(authority))
    try:
        sequencer.log_clients()
        yield Application(store, sequencer)
    finally:
        sequencer.stop()


def _ready(where: Places) -> None:
    if not (where.certs / "root.pem").exists():
        raise UsageError(f"{where.certs}: no keys of a D-Box; dbox-init makes them")


def _read_key(path: Path) -> Any:
    try:
        return load_key(path.read_bytes())
    except FileNotFoundError:
        raise UsageError(f"{path}: no such file; dbox-init makes it") from None


def _owner(certs: Path) -> pki.Issued | None:
    """The owner's key, if it is here and we may read it; dboxd works without, but cannot replace sign keys."""
    try:
        return pki.unpack_owner((certs / "owner.p12").read_bytes(), (certs / "owner.pass").read_bytes())
    except (FileNotFoundError, PermissionError):
        return None
    except ValueError as error:
        raise DreError(f"{certs / 'owner.p12'}: {error}") from None


def _drop(ctx: cli.Context) -> None:
    """Go on as the D-Box's own user: keys are read and the port is bound, so root is not needed any more.

    setuid(2) in Python applies to all threads, those of the server included.
    """
    if os.geteuid() != 0:
        return
    user = places.owner()
    if user is None:
        sys.stderr.write(f"dboxd: no user {places.USER} on this host: going on as root\n")
        return
    uid, gid = user
    os.initgroups(places.USER, gid)
    os.setresgid(gid, gid, gid)
    os.setresuid(uid, uid, uid)


def _address(ctx: cli.Context) -> str:
    host, port = ctx.conf.dbox_listen
    return f"{host}:{port}"


class _Ended(SystemExit):
    """SIGTERM or SIGINT came."""


def _end(number: int, frame: Any) -> None:
    raise _Ended
