# SPDX-License-Identifier: Apache-2.0
"""dbox-rotate: prepare the next sign key as root, and put it in force."""

import argparse
import contextlib
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from dre import cli, files
from dre.errors import DreError, MissingError, NotPermittedError, UsageError

from dboxlib import places
from dboxlib.places import Places


def make_parser() -> argparse.ArgumentParser:
    """The parser of dbox-rotate."""
    parser = cli.parser("dbox-rotate", "Replace the sign key of the D-Box by the next one, and prepare the one after.")
    parser.add_argument(
        "--prepare", action="store_true", help="only prepare the next key, where none is: the log takes it when due"
    )
    parser.add_argument("--owner", metavar="FILE", type=Path, help="PKCS#12 file of the owner, if it is kept elsewhere")
    parser.add_argument("--passphrase-file", metavar="F", type=Path, help="file with the passphrase of that file")
    parser.set_defaults(function=_rotate)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run dbox-rotate."""
    return cli.main(make_parser(), argv)


def _rotate(ctx: cli.Context) -> None:
    args, where = ctx.args, places.of(ctx.conf)
    if (args.owner is None) != (args.passphrase_file is None):
        raise UsageError("--owner and --passphrase-file go together")
    if not (where.certs / "root.pem").exists():
        raise UsageError(f"{where.certs}: no keys of a D-Box; dbox-init makes them")
    if not os.access(where.state, os.W_OK):
        raise NotPermittedError(f"{where.state}: the sign key is replaced by root")
    with files.lock(ctx.conf.core_run_dir / "lock" / "dbox-rotate"):
        _prepare(ctx, where)
        if args.prepare:
            return
        _replace(ctx)
        _prepare(ctx, where)


def _prepare(ctx: cli.Context, where: Places) -> None:
    """Make the next key where none is, and tell verifiers on this host of the certificates so far."""
    from dboxlib import keystore, owner, rotation, store

    conf, args = ctx.conf, ctx.args
    keys = keystore.of(conf)
    with contextlib.closing(store.open(where.url, password_file=where.password_file)) as log:
        chain = log.chain().encode()
        if (where.certs / "chain.pem").read_bytes() != chain:
            files.write_atomic(where.certs / "chain.pem", chain, 0o644)
        if rotation.prepared(where, keys, conf.dbox_key_period) is not None:
            return
        issuer = owner.load(where.certs, args.owner, args.passphrase_file)
        if issuer.certificate not in owner.certificates(chain):
            raise UsageError(f"{args.owner or where.certs / 'owner.p12'}: not the owner of the log {log.origin}")
        bits, age = conf.dbox_key_bits, conf.dbox_key_period
        rotation.prepare(where, keys, issuer, (log.box, log.origin), bits, age)
    ctx.say(f"log {log.origin}: the next sign key is prepared")


def _replace(ctx: cli.Context) -> None:
    """Have the sequencer take the next key; where none is running, be it."""
    from dboxlib import remote

    try:
        log = remote.connect(ctx.conf)
    except MissingError:
        _offline(ctx)
    else:
        with contextlib.closing(log):
            log.rotate()
    ctx.say("the sign key was replaced")


def _offline(ctx: cli.Context) -> None:
    """In a child, because a sequencer goes on as the D-Box's own user, and we have to stay root."""
    from dboxlib import sequencer_process

    told, tell = os.pipe()
    pid = os.fork()
    if pid == 0:
        status = 1
        try:
            os.close(told)
            sequencer_process.once(ctx.conf, lambda log: log.rotate())
            status = 0
        except Exception as error:
            os.write(tell, str(error).encode()[:4000])
        finally:
            sys.stderr.flush()
            os._exit(status)
    os.close(tell)
    with os.fdopen(told, "rb") as stream:
        reason = stream.read().decode(errors="replace")
    if os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]):
        raise DreError(reason or "the sequencer ended at once")
