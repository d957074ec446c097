# SPDX-License-Identifier: Apache-2.0
"""dre-base: make, list, check and delete the trees that containers are based on."""

import argparse
from collections.abc import Sequence
from dataclasses import asdict

from dre import cli
from dre.errors import FAILED, UsageError

from baselib import sources, trees

COLUMNS: list[cli.Column] = [
    ("NAME", "name", 4),
    ("SUITE", "suite", 5),
    ("CREATED", "created", 7),
    ("SIZE", "size", 4),
    ("PACKAGES", "packages", 8),
]


def make(ctx: cli.Context) -> None:
    if ctx.args.tree is None:
        raise UsageError("--tree NAME or a verb is missing; system images are not built by this version")
    cli.need_root("dre-base --tree")
    name = ctx.args.tree
    wish = trees.Wish(ctx.args.suite or sources.default_suite(), ctx.args.mirror, tuple(ctx.args.package))
    try:
        made = trees.store(ctx.conf, ctx.args.output).create(
            name, wish, ctx.args.replace, lambda stage: ctx.progress(f"{name}: {stage}")
        )
    finally:
        ctx.progress("")
    if not made:
        ctx.say(f"{name}: already there")


def list_(ctx: cli.Context) -> None:
    store = trees.store(ctx.conf, ctx.args.output)
    rows = [asdict(store.manifest(name)) for name in store.names()]
    for row in rows:
        row["path"] = str(store.directory / row["name"])
        row["packages"] = len(row["packages"])
    ctx.out.table(rows, COLUMNS)


def check(ctx: cli.Context) -> int:
    cli.need_root("dre-base check")
    store = trees.store(ctx.conf, ctx.args.output)
    code = 0
    for finding in store.findings(ctx.args.name):
        code = FAILED
        if ctx.out.as_json:
            ctx.out.json({"name": ctx.args.name, **finding})
        else:
            package, expected, found = (finding[key] or "-" for key in ("package", "expected", "found"))
            ctx.out.line(f"{ctx.args.name}: {finding['finding']}: {package}: expected {expected}, found {found}")
    return code


def delete(ctx: cli.Context) -> None:
    cli.need_root("dre-base delete")
    trees.store(ctx.conf, ctx.args.output).delete(ctx.args.name)


def make_parser() -> argparse.ArgumentParser:
    parser = cli.parser("dre-base", "Make, list, check and delete the trees that containers are based on.")
    parser.add_argument("--tree", metavar="NAME", help="make the tree NAME")
    parser.add_argument("--suite", help="release to install (default: the host's)")
    parser.add_argument("--mirror", metavar="URL", help="archive to install from (default: the host's)")
    parser.add_argument(
        "--package",
        metavar="PKG",
        nargs="+",
        action="extend",
        default=[],
        help="package to install on top of the smallest system; may be repeated",
    )
    parser.add_argument("--replace", action="store_true", help="make it again although it is there")
    _output(parser, None)
    parser.set_defaults(function=make)
    verbs = parser.add_subparsers(title="verbs", metavar="VERB")
    _output(cli.verb(verbs, "list", list_, "print the trees"))
    for name, function, help in (
        ("check", check, "compare the packages of a tree with its manifest"),
        ("delete", delete, "remove a tree that no app uses"),
    ):
        verb = cli.verb(verbs, name, function, help)
        _output(verb)
        verb.add_argument("name", metavar="NAME")
    return parser


def _output(parser: argparse.ArgumentParser, default: str | None = argparse.SUPPRESS) -> None:
    parser.add_argument(
        "--output", metavar="DIR", default=default, help="directory of the trees (default: where dre-app looks)"
    )


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code."""
    return cli.main(make_parser(), argv)
