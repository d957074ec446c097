# SPDX-License-Identifier: Apache-2.0
"""dscript serve: the page where persons answer questions, in the foreground, until SIGTERM."""

import contextlib
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from dre import cli, files
from dre.conf import Conf
from dre.errors import DreError, UsageError

from dscriptlib.cmd import dscript as command

LISTEN = "127.0.0.1:8446"


def add(verbs: Any) -> None:
    """Add the verb to those of dscript."""
    serve = cli.verb(verbs, "serve", serve_page, "serve the page where persons answer questions")
    serve.add_argument("--listen", metavar="ADDRESS:PORT", default=LISTEN, help=f"where (default: {LISTEN})")
    serve.add_argument("--case", metavar="CASE", type=Path, help="a D-Case, to be shown as it stands, too")
    serve.add_argument("--url", help="how browsers reach it (default: https://localhost:PORT)")


def serve_page(ctx: cli.Context) -> None:
    """dscript serve"""
    from dscriptlib import page, questions

    host, _, port = ctx.args.listen.rpartition(":")
    if not host or not port.isdecimal() or not 0 < int(port) < 65536:
        raise UsageError(f"--listen: expected ADDRESS:PORT, got {ctx.args.listen!r}")
    try:
        tls = page.context(ctx.conf.dbox_certs_dir)
    except OSError as error:
        raise UsageError(f"{ctx.conf.dbox_certs_dir}: no key or certificates of a server: {error}") from None
    try:
        server = page.Server(ctx.conf, (host.strip("[]"), int(port)), tls, _case(ctx))
    except OSError as error:
        raise DreError(f"{ctx.args.listen}: {error.strerror}") from None
    with contextlib.closing(server.socket), _address(ctx.conf, ctx.args.url or f"https://localhost:{port}"):
        for number in (signal.SIGTERM, signal.SIGINT):
            # Not in the handler: it waits for the thread that the handler interrupts.
            signal.signal(number, lambda *_: threading.Thread(target=server.shutdown).start())
        ctx.say(f"questions are answered at {questions.place(ctx.conf).read_text().strip()}")
        sys.stderr.flush()
        server.serve_forever()


def _case(ctx: cli.Context) -> Callable[[], str] | None:
    """What makes the page of the case; it is read now, while we may."""
    from dscriptlib import case, load
    from dscriptlib.cmd import covering

    path = ctx.args.case
    if path is None:
        return None
    made = case.parse(command.read(path, load), str(path))
    return lambda: covering.page(ctx.conf, made, path.name)


@contextlib.contextmanager
def _address(conf: Conf, url: str) -> Iterator[None]:
    """Give away what we need, drop privilege, and tell where the page is while it is there."""
    from dscriptlib import answers, privilege, questions

    place = questions.place(conf)
    journal, answered = command.journal_directory(conf), answers.directory(conf)
    for directory, mode in ((place.parent, 0o755), (answered, 0o700), (journal, 0o750)):
        directory.mkdir(mode=mode, parents=True, exist_ok=True)
    if os.geteuid() == 0:
        privilege.become_page(place.parent, journal, answered)
    files.write_atomic(place, f"{url.rstrip('/')}\n", durable=False)
    try:
        yield
    finally:
        place.unlink(missing_ok=True)
