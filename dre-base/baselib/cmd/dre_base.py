# SPDX-License-Identifier: Apache-2.0
"""dre-base: make, list, check, import and delete what containers are based on: images of systems, trees of apps."""

import argparse
import os
from collections.abc import Callable, Sequence
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

from dre import cli, units
from dre.errors import FAILED, UsageError

from baselib import sources, trees
from baselib.store import Store, store
from baselib.wish import Wish

COLUMNS: list[cli.Column] = [
    ("NAME", "name", 4),
    ("TYPE", "type", 5),
    ("SUITE", "suite", 5),
    ("CREATED", "created", 7),
    ("SIZE", "size", 4),
    ("PACKAGES", "packages", 8),
]
# The options that only an image has.
_IMAGE_ONLY = ("name", "size", "ssh_key", "if_older")


def make(ctx: cli.Context) -> None:
    cli.need_root("dre-base --tree" if ctx.args.tree is not None else "dre-base")
    os.umask(0o022)  # what is made is for others to read
    wish = Wish(ctx.args.suite or sources.default_suite(), ctx.args.mirror, tuple(ctx.args.package))
    place = store(ctx.conf, ctx.args.output)
    try:
        if ctx.args.tree is not None:
            given = [word for word in _IMAGE_ONLY if getattr(ctx.args, word) is not None]
            if given:
                raise UsageError(f"--{given[0].replace('_', '-')} is for images, not for --tree")
            name = ctx.args.tree
            made = trees.create(place, name, wish, ctx.args.replace, _progress(ctx, name))
        else:
            name = _default_name(ctx)
            made = _image(ctx, place, name, wish)
    finally:
        ctx.progress("")
    if not made:
        ctx.say(f"{name}: already there")


def _image(ctx: cli.Context, place: Store, name: str, wish: Wish) -> bool:
    from baselib import disk, images, keys  # not for a tree

    args = ctx.args
    size = units.size(args.size) if args.size is not None else 2 << 30
    found = tuple(keys.read(Path(args.ssh_key))) if args.ssh_key is not None else ()
    asked = images.ImageWish(wish, -(-size // disk.MIB) * disk.MIB, found)
    older = units.duration(args.if_older) if args.if_older is not None else None
    return images.create(place, name, asked, replace=args.replace, older=older, progress=_progress(ctx, name))


def _default_name(ctx: cli.Context) -> str:
    name: str = ctx.args.name if ctx.args.name is not None else ctx.conf.sys_default_base
    if ctx.args.name is None and "/" in name:
        raise UsageError(f"DRE_SYS_DEFAULT_BASE is a path, {name}; give --name NAME")
    return name


def _progress(ctx: cli.Context, name: str) -> Callable[[str], None]:
    tell = ctx.say if ctx.args.debug else ctx.progress
    return lambda stage: tell(f"{name}: {stage}")


def list_(ctx: cli.Context) -> None:
    place = store(ctx.conf, ctx.args.output)
    ctx.out.table([_row(place, name) for name in place.names()], COLUMNS)


def _row(place: Store, name: str) -> dict[str, Any]:
    """The fields of a tree or an image, the same for both; what one does not have is None."""
    from baselib import images

    kind = place.kind(name)
    made = asdict(trees.manifest(place, name) if kind == "tree" else images.manifest(place, name))
    row = {"name": made["name"], "type": kind, **dict.fromkeys(field.name for field in fields(images.Manifest)), **made}
    row["path"] = str(place.directory / name)
    row["packages"] = len(made["packages"]) if made["packages"] is not None else None
    return row


def check(ctx: cli.Context) -> int:
    cli.need_root("dre-base check")
    from baselib import images

    place = store(ctx.conf, ctx.args.output)
    with place.locked(units.name(ctx.args.name)):  # it may have to be finished first
        kind = place.kind(ctx.args.name)
    code = 0
    for finding in (trees if kind == "tree" else images).findings(place, ctx.args.name):
        code = FAILED
        if ctx.out.as_json:
            ctx.out.json({"name": ctx.args.name, **finding})
        else:
            package, expected, found = (finding[key] or "-" for key in ("package", "expected", "found"))
            ctx.out.line(f"{ctx.args.name}: {finding['finding']}: {package}: expected {expected}, found {found}")
    return code


def delete(ctx: cli.Context) -> None:
    cli.need_root("dre-base delete")
    from baselib import usage

    place, name = store(ctx.conf, ctx.args.output), ctx.args.name
    with place.locked(name):
        if place.kind(name) == "tree":
            trees.manifest(place, name)  # what dre-base did not make it does not remove
            trees.refuse_used(place, name)
        else:
            usage.refuse_image(place, name)
        place.drop(name)


def import_(ctx: cli.Context) -> None:
    cli.need_root("dre-base import")
    from baselib import importing

    os.umask(0o022)
    args, place = ctx.args, store(ctx.conf, ctx.args.output)
    try:
        importing.take(place, args.name, Path(args.file), args.format, args.replace, _progress(ctx, args.name))
    finally:
        ctx.progress("")


def make_parser() -> argparse.ArgumentParser:
    parser = cli.parser(
        "dre-base", "Make the image that systems are based on; list, check, import, delete images and trees."
    )
    what = parser.add_mutually_exclusive_group()
    what.add_argument("--name", metavar="NAME", help="make the image NAME (default: DRE_SYS_DEFAULT_BASE)")
    what.add_argument("--tree", metavar="NAME", help="make the tree NAME, for apps")
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
    parser.add_argument("--size", help="virtual size of the image's disk (default: 2G)")
    parser.add_argument("--ssh-key", metavar="FILE", help="public keys that root may come in with")
    _replace(parser)
    parser.add_argument("--if-older", metavar="TIME", help="make the image again when it is older, such as 7d")
    _output(parser, None)
    parser.set_defaults(function=make)
    verbs = parser.add_subparsers(title="verbs", metavar="VERB")
    _output(cli.verb(verbs, "list", list_, "print the trees and images"))
    for name, function, help in (
        ("check", check, "compare a tree or an image with its manifest"),
        ("delete", delete, "remove a tree or an image that no container uses"),
        ("import", import_, "make an image of a disk: qcow2, raw, vmdk, vdi, vhdx, vpc"),
    ):
        verb = cli.verb(verbs, name, function, help)
        _output(verb)
        if function is import_:
            from dre.images import FORMATS

            verb.add_argument("--format", choices=FORMATS, help="format of the disk (default: as it shows)")
            _replace(verb, argparse.SUPPRESS)
        verb.add_argument("name", metavar="NAME")
        if function is import_:
            verb.add_argument("file", metavar="FILE")
    return parser


def _replace(parser: argparse.ArgumentParser, default: Any = False) -> None:
    parser.add_argument("--replace", action="store_true", default=default, help="make it again although it is there")


def _output(parser: argparse.ArgumentParser, default: str | None = argparse.SUPPRESS) -> None:
    parser.add_argument(
        "--output", metavar="DIR", default=default, help="directory of trees and images (default: where --base looks)"
    )


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code."""
    return cli.main(make_parser(), argv)
