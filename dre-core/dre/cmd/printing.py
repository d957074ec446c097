# SPDX-License-Identifier: Apache-2.0
"""How the verbs that apps and systems both have print what they found: lines of a log, properties, tags."""

from collections.abc import Callable, Iterable, Mapping
from typing import Any

from dre import cli
from dre.cli import Context


def log(ctx: Context, name: str, lines: Iterable[bytes], follow: bool) -> None:
    """The lines of the log of *name*; with *follow* each at once. A terminal is not commanded by what is in them."""
    terminal = ctx.out.stream.isatty()
    for line in lines:
        text = line.decode(errors="replace").rstrip("\r\n")
        if ctx.out.as_json:
            ctx.out.json({"name": name, "line": text})
        else:
            ctx.out.line(cli.harmless(text) if terminal else text)
        if follow:
            ctx.out.stream.flush()


def properties(
    ctx: Context, row: dict[str, Any], found: object, known: Mapping[str, Any], field_of: Callable[[str], str]
) -> None:
    """The *known* properties of the Spec *found*, a line for each value; as JSON one object, begun with *row*."""
    for key, item in sorted(known.items()):
        value = getattr(found, field_of(key))
        words = item.show(value)
        row[key] = words if item.many else value
        if not ctx.out.as_json:
            for word in words or ["-"]:
                ctx.out.line(f"{key} {word}")
    if ctx.out.as_json:
        ctx.out.json(row)


def tag(ctx: Context, name: str, tag: str) -> None:
    """A state of *name* that was saved, or deleted, without its tag having been typed."""
    if ctx.out.as_json:
        ctx.out.json({"name": name, "tag": tag})
    else:
        ctx.out.line(f"{name} {tag}")
