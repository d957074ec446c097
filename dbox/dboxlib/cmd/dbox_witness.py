# SPDX-License-Identifier: Apache-2.0
"""dbox-witness: cosign the tree heads of logs on another host, or ask such witnesses for the log here."""

import argparse
import contextlib
import signal
import sys
import threading
import time
from collections.abc import Callable, Sequence
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from dre import cli, evidence, files, trust, witness
from dre.errors import DreError, MissingError, NotFoundError, UsageError
from dre.witness import Vkey, Witness

BUSY = 64  # requests at a time; more wait
SLOW = 10.0  # seconds in which a request has to be here


def make_parser() -> argparse.ArgumentParser:
    """The parser of dbox-witness."""
    parser = cli.parser("dbox-witness", "Cosign tree heads that continue what was seen before, or have them cosigned.")
    what = parser.add_mutually_exclusive_group()
    what.add_argument(
        "--make-key", metavar="NAME", help="make the key of a witness called NAME, and print its public half"
    )
    what.add_argument("--log-key", metavar="CHAIN", help="print the key of the log whose certificates are in CHAIN")
    what.add_argument("--serve", metavar="LOGS", help="be a witness of the logs whose keys are in the file LOGS")
    what.add_argument("--ask", action="store_true", help="on the D-Box: ask DRE_DBOX_WITNESSES and DRE_DBOX_TSA_URL")
    parser.add_argument("--key", metavar="F", type=Path, help="file of the witness's key")
    parser.add_argument(
        "--listen",
        metavar="HOST:PORT",
        type=_listen,
        default=("127.0.0.1", 8445),
        help="where to serve (127.0.0.1:8445)",
    )
    parser.add_argument(
        "--state", metavar="DIR", type=Path, help="what was seen of each log (witness of the state directory)"
    )
    parser.set_defaults(function=_witness)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run dbox-witness."""
    return cli.main(make_parser(), argv)


def _listen(text: str) -> tuple[str, int]:
    host, _, port = text.rpartition(":")
    if not host or not port.isdecimal() or int(port) > 65535:
        raise argparse.ArgumentTypeError(f"expected HOST:PORT, got {text!r}")
    return host, int(port)


def _witness(ctx: cli.Context) -> int:
    args = ctx.args
    if args.ask:
        return _ask(ctx)
    if args.log_key:
        for key in log_keys(_read(Path(args.log_key))):
            ctx.out.line(key.format())
        return 0
    if not args.make_key and not args.serve:
        raise UsageError("expected one of --make-key, --log-key, --serve, --ask")
    if args.key is None:
        raise UsageError("--make-key and --serve need --key F")
    if args.make_key:
        if args.key.exists():
            raise DreError(f"{args.key}: there is a key already; nothing was changed")
        made = witness.make_key(args.make_key)
        files.write_atomic(args.key, made.format(), 0o400)
        ctx.out.line(made.public.format())
        return 0
    return _serve(ctx)


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except FileNotFoundError:
        raise NotFoundError(f"{path}: no such file") from None
    except OSError as error:
        raise UsageError(f"{path}: {error.strerror}") from None


def log_keys(chain: bytes) -> list[Vkey]:
    """The keys of logs among certificates: Ed25519, by which C2SP knows a log."""
    from cryptography import x509
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

    found = []
    for certificate in trust.certificates(chain, "certificates"):
        public = certificate.public_key()
        if isinstance(public, Ed25519PublicKey):
            names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
            for url in names.get_values_for_type(x509.UniformResourceIdentifier):
                raw = public.public_bytes(*witness.RAW)
                found.append(Vkey(evidence.origin(url.removeprefix("https://")), evidence.ED25519, raw))
    if not found:
        raise NotFoundError("no Ed25519 key of a log among these certificates")
    return found


# --- Being a witness ---


def _serve(ctx: cli.Context) -> int:
    args = ctx.args
    key = witness.parse_secret(_read(args.key).decode(errors="replace"))
    logs = [one.key for one in witness.parse_keys(_read(Path(args.serve)).decode(errors="replace"), args.serve)]
    if not logs or any(one.kind != evidence.ED25519 for one in logs):
        raise UsageError(f"{args.serve}: expected keys of logs, as dbox-witness --log-key prints them")
    state = args.state or ctx.conf.core_state_dir / "witness"
    state.mkdir(mode=0o755, parents=True, exist_ok=True)
    made = Witness(key, logs, state)
    try:
        server = _Server(args.listen, _handler(made.add_checkpoint))
    except OSError as error:
        raise DreError(f"{args.listen[0]}:{args.listen[1]}: cannot listen: {error.strerror or error}") from None
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: threading.Thread(target=server.shutdown, daemon=True).start())
    host, port = server.server_address[:2]
    sys.stderr.write(f"dbox-witness: {key.public.name} listening on http://{host!s}:{port}\n")
    with contextlib.closing(server.socket):
        server.serve_forever()
    return 0


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 128

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.free = threading.BoundedSemaphore(BUSY)

    def process_request(self, request: Any, client_address: Any) -> None:
        self.free.acquire()
        super().process_request(request, client_address)

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        try:
            super().process_request_thread(request, client_address)
        finally:
            self.free.release()

    def handle_error(self, request: Any, client_address: Any) -> None:
        error = sys.exc_info()[1]
        if not isinstance(error, OSError):  # a peer that went away is no news
            sys.stderr.write(f"dbox-witness: {error}\n")


def _handler(answer: Callable[[bytes, int], witness.Answer]) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        timeout = SLOW

        def do_POST(self) -> None:
            length = self.headers.get("Content-Length", "")
            if self.path != "/add-checkpoint":
                self._send(witness.Answer(404, "no such resource\n"), close=True)
            elif not length.isdecimal() or int(length) > witness.LARGEST:
                self._send(witness.Answer(413, f"at most {witness.LARGEST} octets\n"), close=True)
            else:
                body = self.rfile.read(int(length))
                self._send(answer(body, int(time.time())))

        def do_GET(self) -> None:
            self._send(witness.Answer(405, "POST /add-checkpoint\n"), close=True)

        def _send(self, told: witness.Answer, close: bool = False) -> None:
            body = told.body.encode()
            self.close_connection |= close
            self.send_response(told.status)
            self.send_header("Content-Type", told.kind)
            self.send_header("Content-Length", str(len(body)))
            if close:
                self.send_header("Connection", "close")
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: Any) -> None:
            """Who asks is a log that will ask again: nothing to write down."""

    return Handler


# --- Asking ---


def _ask(ctx: cli.Context) -> int:
    """Ask everybody; one who does not answer does not keep the others from being asked."""
    from dre import event

    try:
        from dboxlib import anchoring, anchors, remote, store
    except ImportError as error:
        raise MissingError(f"--ask is for the D-Box: {error}; apt-get install dbox") from None
    conf = ctx.conf
    known = anchoring.witnesses(conf)
    asked = [one for one in known if one.url]
    if not asked and not conf.dbox_tsa_url:
        raise UsageError("nobody to ask: DRE_DBOX_WITNESSES names no URL, and DRE_DBOX_TSA_URL is empty")
    failed, forks = [], []
    with (
        contextlib.closing(remote.connect(conf)) as log,
        contextlib.closing(store.open(conf.dbox_database, password_file=conf.dbox_database_password_file)) as opened,
    ):
        before = {name: size for kind, name, size, _, _ in opened.anchors() if kind == "witness"}
        for one in asked:
            try:
                size = anchoring.ask_witness(log, one, before.get(one.key.name, 0))
                ctx.say(f"witness {one.key.name}: cosigned {size} entries")
            except anchoring.ForkError as error:
                forks.append(str(error))
            except DreError as error:
                failed.append(str(error))
        if conf.dbox_tsa_url:
            try:
                ctx.say(f"{conf.dbox_tsa_url}: stamped {anchoring.ask_authority(conf, log)} entries")
            except DreError as error:
                failed.append(str(error))
        state = anchors.Anchors(conf, opened).judge(log.newest()[0].size)
        origin = opened.origin
    source = event.host() + "/dbox"
    for reason in forks:
        event.emit(conf, "dbox.tampered", source, {"log": origin, "reason": reason, "by": "dbox-witness"}, 1)
    if state.state != anchors.GREEN:
        event.emit(conf, "dbox.anchor.old", source, {"log": origin, "reason": state.reason}, 4)
        failed.append(state.reason)
    if forks or failed:
        raise DreError("; ".join([*forks, *failed]))
    return 0
