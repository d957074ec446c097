# SPDX-License-Identifier: Apache-2.0
"""dboxd: serve one log by HTTPS and on the local socket, in the foreground, until SIGTERM.

This process has no key but that of its TLS server and cannot write the database: entries go to the sequencer, a
process of its own. Where none answers, dboxd starts one and ends it with itself. It ends, too, when one of its own
processes has been killed: only root could start that again, and so who started dboxd has to.
"""

import argparse
import contextlib
import os
import signal
import socket
import sys
import threading
from collections.abc import Sequence
from typing import Any

from dre import cli, files, privilege
from dre.errors import DreError, MissingError, UsageError

from dboxlib import front, intake, places, redirect, sequencer_process
from dboxlib.intake import Peer
from dboxlib.page import accounts
from dboxlib.places import Places


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
        import cheroot  # noqa: F401
    except ImportError:
        raise MissingError("python3-cheroot is not installed; apt-get install python3-cheroot") from None
    where = places.of(ctx.conf)
    if not (where.certs / "root.pem").exists():
        raise UsageError(f"{where.certs}: no keys of a D-Box; dbox-init makes them")
    run = ctx.conf.core_run_dir / "dbox"
    with files.lock(run / "dboxd.lock", timeout=2.0), contextlib.ExitStack() as undo:
        # All that needs root, and all that forks, comes before the first thread.
        keeper = undo.enter_context(sequencer_process.start(ctx.conf))
        handed_over = intake.start(intake.listen(run / "intake.sock"))
        undo.callback(handed_over.close)
        application = _Late()
        servers = _servers(ctx, where, application, undo)
        if ctx.conf.dbox_page_listen:
            accounts.prepare(ctx.conf)
        _drop()
        application.ready = undo.enter_context(front.application(ctx.conf))
        _work(ctx, servers, handed_over, keeper)


class _Late:
    """The application before the log is open: cheroot wants one when it is made."""

    ready: Any

    def __call__(self, environ: dict[str, Any], start: Any) -> Any:
        return self.ready(environ, start)


def _servers(ctx: cli.Context, where: Places, application: _Late, undo: contextlib.ExitStack) -> list[Any]:
    """The servers of the settings, bound to their ports; the first one also serves the local socket."""
    from dboxlib import server

    conf, made = ctx.conf, []
    files_of_tls = (where.certs / "server.crt", where.certs / "server.key", where.certs / "client-ca.pem")
    api = server.context(*files_of_tls) if conf.dbox_listen else None
    made.append(server.make(application, conf.dbox_listen, api))
    if conf.dbox_page_listen:
        tls = server.context(*files_of_tls, required=False)
        made.append(server.make(application, conf.dbox_page_listen, tls, threads=8))
        if conf.dbox_redirect_listen:
            port = conf.dbox_page_listen[1]
            made.append(server.make(redirect.make(port), conf.dbox_redirect_listen, None, threads=2))
    bound = []
    for one in made:
        try:
            one.prepare()
        except OSError as error:
            where_to = address(one.bind_addr)
            if one.application is application:
                raise DreError(f"{where_to}: cannot listen: {error.strerror or error}") from None
            sys.stderr.write(f"dboxd: {where_to}: ignoring, http:// leads nobody to the page: {error}\n")
            continue
        undo.callback(one.stop)
        bound.append(one)
    return bound


def _work(ctx: cli.Context, servers: list[Any], handed_over: socket.socket, keeper: int | None) -> None:
    """Serve until SIGTERM. Raises DreError when a process of ours has ended before that."""
    lost: list[str] = []

    def lose(what: str) -> None:
        lost.append(what)
        signal.pthread_kill(ours, signal.SIGTERM)

    def take(connection: socket.socket, peer: Peer | None) -> None:
        servers[0].take(connection, peer)

    def receive() -> None:
        intake.receive(handed_over, take)
        lose("the doorkeeper of the local socket")

    def watch(pid: int) -> None:
        with contextlib.suppress(ChildProcessError):  # we end, and have waited for it already
            ended = os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)
            if ended and ended.si_code != os.CLD_EXITED:  # else another sequencer has taken over, and we only read
                lose("the keeper of the sequencer")

    ours = threading.get_ident()
    threads = [threading.Thread(target=one.serve, name="front", daemon=True) for one in servers[1:]]
    threads.append(threading.Thread(target=receive, name="intake", daemon=True))
    if keeper is not None:
        threads.append(threading.Thread(target=watch, args=(keeper,), name="keeper", daemon=True))
    # Handlers come late: before this point nothing is lost by ending at once.
    signal.signal(signal.SIGTERM, _end)
    signal.signal(signal.SIGINT, _end)
    with contextlib.suppress(_Ended):
        for thread in threads:
            thread.start()
        listens = f"https://{address(ctx.conf.dbox_listen)}" if ctx.conf.dbox_listen else "the local socket"
        sys.stderr.write(f"dboxd: listening on {listens}\n")
        servers[0].serve()
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if lost:
        raise DreError(f"{lost[0]} has ended, and dboxd with it")


def _drop() -> None:
    """Go on as the web user: keys are read and ports are bound, so root is not needed any more.

    setuid(2) in Python applies to all threads, those of the servers included.
    """
    if os.geteuid() != 0:
        return
    name = places.WEB if places.user(places.WEB) else places.USER
    user = places.user(name)
    if user is None:
        sys.stderr.write(f"dboxd: no user {places.WEB} on this host: going on as root\n")
        return
    uid, gid = user
    privilege.become(uid, gid, os.getgrouplist(name, gid))


def address(listen: tuple[str, int]) -> str:
    """HOST:PORT."""
    return f"{listen[0]}:{listen[1]}"


class _Ended(SystemExit):
    """SIGTERM or SIGINT came."""


def _end(number: int, frame: Any) -> None:
    raise _Ended
