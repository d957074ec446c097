# SPDX-License-Identifier: Apache-2.0
"""dre-sys exec, push and pull: programs and files in systems, by the guest's agent."""

import os
import stat
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from dre import cli, files, spec, units, verbs
from dre.cli import Context
from dre.errors import DreError, NotFoundError, UsageError
from dre.system import recovery
from dre.system.agent import CHUNK, Agent

INPUT = 64 << 20  # octets of standard input; it passes through the memory of host and guest


def add(table: Any) -> None:
    """Add these verbs to *table*."""
    execute = cli.verb(table, "exec", _exec, "run a program in a running system; its exit status passes through")
    text = "kill it after S seconds (default: never)"
    execute.add_argument("--timeout", type=verbs.kind(units.duration), metavar="S", help=text)
    execute.add_argument("--env", action="append", default=[], metavar="K=V", help="environment of the program")
    verbs.add_name(execute)
    verbs.add_command(execute, "after --: the program and its arguments")
    push = verbs.changing(table, "push", _push, "copy a file into a running system")
    verbs.add_name(push)
    push.add_argument("source", metavar="SRC", help="file of the host; -: standard input")
    push.add_argument("target", metavar="DST", help="path in the system")
    verbs.endless(push, lambda args: bool(args.source == "-"))
    pull = cli.verb(table, "pull", _pull, "copy a file out of a running system")
    verbs.add_name(pull)
    pull.add_argument("source", metavar="SRC", help="path in the system")
    pull.add_argument("target", metavar="DST", help="file of the host; -: standard output")
    verbs.endless(pull, lambda args: bool(args.target == "-"))


def _agent(ctx: Context, verb: str) -> Agent:
    cli.need_root(f"dre-sys {verb}")
    system = recovery.look(ctx.conf, ctx.args.name)
    domain = system.need()
    state = system.state()
    if state != "running":
        raise DreError(f"{system.name}: cannot {verb}: it is {state}")
    return Agent(system.name, domain)


def _exec(ctx: Context) -> int:
    args = ctx.args
    if not args.command:
        raise UsageError("exec: the command after -- is missing")
    if any("\0" in word for word in args.command):
        raise UsageError("exec: a NUL cannot stand in an argument")
    env = spec.env(args.env)
    agent = _agent(ctx, "exec")
    stdin = ctx.given()
    if len(stdin) > INPUT:
        raise UsageError(f"exec: more than {INPUT} bytes of standard input; dre-sys push them")
    ended = agent.run(args.command, stdin, args.timeout, env)
    return ctx.pass_on(ended.status, ended.stdout, ended.stderr, ended.cut)


def _push(ctx: Context) -> None:
    args = ctx.args
    _need_absolute(args.target)
    agent = _agent(ctx, "push")
    if args.source == "-":
        agent.write(_pieces(sys.stdin.fileno()), args.target)
        return
    try:
        fd = os.open(args.source, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        raise NotFoundError(f"{args.source}: no such file") from None
    try:
        found = os.fstat(fd)
        if not stat.S_ISREG(found.st_mode):
            raise UsageError(f"{args.source}: not a file")
        agent.write(_pieces(fd), args.target)
    finally:
        os.close(fd)
    done = agent.run(["/bin/chmod", f"{stat.S_IMODE(found.st_mode):o}", "--", args.target])
    if done.status != 0:
        raise DreError(f"{agent.name}: {args.target}: written, but its mode could not be set")


def _pieces(fd: int) -> Iterator[bytes]:
    while piece := os.read(fd, CHUNK):
        yield piece


def _need_absolute(path: str) -> None:
    if not path.startswith("/") or "\0" in path:
        raise UsageError(f"{path!r}: expected an absolute path in the system")


def _pull(ctx: Context) -> None:
    args = ctx.args
    _need_absolute(args.source)
    agent = _agent(ctx, "pull")
    if args.target == "-":
        for piece in agent.read(args.source):
            sys.stdout.buffer.write(piece)
        sys.stdout.buffer.flush()
        return
    target = Path(args.target)
    if target.is_dir():
        target /= Path(args.source).name
    temporary = target.with_name(f".{target.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("xb") as stream:
            for piece in agent.read(args.source):
                stream.write(piece)
        temporary.rename(target)
        files.fsync_dir(target.parent)
    finally:
        temporary.unlink(missing_ok=True)
