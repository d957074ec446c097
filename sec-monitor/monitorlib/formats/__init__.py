# SPDX-License-Identifier: Apache-2.0
"""Events in the forms of others: what the modules here, one for each format, have in common.

Each has `records(blocks)`, which takes octets apart into (line number, record), `read(record)`, which makes an event or
raises EventError, and but for snmptrap `write(event)`, the octets of one record. A record of None is one too large.
What others wrote is a Foreign event; an event that one of ours wrote in their form comes back as it was.
"""

import functools
import json
import re
from collections.abc import Callable, Iterable, Iterator
from typing import Any, BinaryIO, NamedTuple

from dre import event
from dre.event import Event, EventError

LARGEST = 4 * 1024 * 1024  # octets of a record
BLOCK = 65536  # octets read at once
SHOWN = 200  # characters of an event in a text for people
_UNFIT = re.compile(r"[^A-Za-z0-9_.:@+-]")  # in a part of a source
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]")
_MOMENT = re.compile(
    r"(\d{4}-\d\d-\d\d)[Tt ]((?:[01]\d|2[0-3]):[0-5]\d:[0-5]\d)(?:\.(\d+))?([Zz]|[+-]\d\d:\d\d)", re.ASCII
)


def _no_number(word: str) -> Any:
    raise ValueError(f"{word} is no number of JSON")


_decode = json.JSONDecoder(object_pairs_hook=event.once, parse_constant=_no_number).decode
_encode = json.JSONEncoder(ensure_ascii=False, separators=(",", ":"), allow_nan=False).encode


class Foreign(NamedTuple):
    """An event made from another's record, its time, source, type and sev sure to be right: see Event.

    Where it is too long its data may be shortened.
    """

    time: str
    source: str
    type: str
    sev: int
    data: dict[str, Any]
    id: str = ""  # hexadecimal digits, or none


def blocks(stream: BinaryIO, before: Callable[[], None]) -> Iterator[bytes]:
    """The octets of *stream* as they come; *before* is called ahead of each wait for more."""
    while True:
        before()
        block = stream.read1(BLOCK)  # type: ignore[attr-defined]  # of BufferedReader
        if not block:
            return
        yield block


def lines(blocks: Iterable[bytes]) -> Iterator[tuple[int, bytes | None]]:
    """The lines, numbered from 1, without their newline; None for one of more than LARGEST octets."""
    number = held = 0
    parts: list[bytes] = []  # of the line whose end has not come yet
    for block in blocks:
        first, *others = block.split(b"\n")
        held += len(first)
        if held <= LARGEST:
            parts.append(first)
        if others:
            number += 1
            yield number, b"".join(parts) if held <= LARGEST else None
            for line in others[:-1]:
                number += 1
                yield number, line
            parts, held = [others[-1]], len(others[-1])
    if held:
        yield number + 1, b"".join(parts) if held <= LARGEST else None


def filled(blocks: Iterable[bytes]) -> Iterator[tuple[int, bytes | None]]:
    """Those lines that are not blank."""
    return ((number, line) for number, line in lines(blocks) if line is None or line.strip())


def text(octets: bytes) -> str:
    """*octets* as text; what is not UTF-8 reads as `\\xff`."""
    return octets.decode("utf-8", "backslashreplace")


def strict(octets: bytes) -> Any:
    """The value of JSON *octets*: UTF-8, no key twice, no NaN. Raises EventError."""
    try:
        return _decode(octets.decode())
    except (ValueError, RecursionError) as error:
        raise EventError(f"not JSON: {error}") from None


@functools.lru_cache(maxsize=4096)
def place(host: str, program: str) -> tuple[str, dict[str, str]]:
    """The source `/host:HOST/PROGRAM`, and as `host` and `program` those names that had to be changed for it.

    Each other character becomes "-", and a name ends after 64; without a host it is this one.
    """
    source = f"/host:{_UNFIT.sub('-', host[:64])}" if host else event.host()
    if program:
        source += f"/{_UNFIT.sub('-', program[:64])}"
    fits = {"host": host, "program": program}
    return source, {key: name for key, name in fits.items() if len(name) > 64 or _UNFIT.search(name)}


def path(source: str) -> str:
    """*source*, a path or a URI, in the form of ours: `https://h/a b` becomes `/https:/h/a-b`."""
    parts = [_UNFIT.sub("-", part) for part in source.split("/") if part]
    return "/" + "/".join(parts) if parts else event.host()


def kind(name: str, part: str) -> str:
    """*name* as a type: small letters, digits, "-" and "."; what has no form of part.what gets *part* before it."""
    words = [re.sub(r"[^a-z0-9]+", "-", word).strip("-") for word in name.lower().split(".")]
    made = ".".join(word for word in words if word)
    return made if "." in made and made[0].isalpha() else f"{part}.{made or 'event'}"


def moment(said: str) -> str:
    """The event time of an RFC 3339 timestamp; less than a millisecond is left off. Raises EventError."""
    found = _MOMENT.fullmatch(said)
    if not found:
        raise EventError(f"{said[:60]!r} is not a time as in RFC 3339")
    day, clock, part, zone = found.groups()
    if zone not in "Zz" and zone[1:] != "00:00":
        day, _, clock = _universal(f"{day}T{clock}{zone}").partition(" ")
    _universal(f"{day}T00:00:00Z")  # is there such a day?
    return f"{day}T{clock}.{(part or '')[:3]:0<3}Z"


@functools.lru_cache(maxsize=256)
def _universal(said: str) -> str:
    import datetime  # only where a time is not UTC

    try:
        return str(datetime.datetime.fromisoformat(said).astimezone(datetime.UTC).replace(tzinfo=None))
    except (ValueError, OverflowError) as error:
        raise EventError(f"{said!r}: {error}") from None


def said(made: Event) -> str:
    """*made* in a few words for people, on one line: its `message`, else its data as key=value."""
    message = made.data.get("message")
    shown = message if isinstance(message, str) else " ".join(f"{key}={value}" for key, value in made.data.items())
    return _CONTROL.sub(" ", shown[:SHOWN])


def names(source: str) -> tuple[str, str]:
    """The host and the program that *source* names, "" for what it does not name."""
    parts = source[1:].split("/")
    host = parts[0].removeprefix("host:") if parts[0].startswith("host:") else ""
    return host, parts[-1] if len(parts) > 1 or not host else ""


@functools.lru_cache(maxsize=4096)
def number(word: str) -> int | str:
    """*word*, as a number when it is a short decimal one that reads back as written."""
    return int(word) if len(word) < 16 and word.isascii() and word.isdecimal() and str(int(word)) == word else word


def line(made: Event | Foreign) -> bytes:
    """The line of *made*, shortened when it is foreign and too long. Raises EventError."""
    if isinstance(made, Event):
        return event.format(made)
    octets = _written(made)
    if len(octets) > event.LIMIT - event.ROOM:
        octets = _written(_shortened(made, len(octets)))
        if len(octets) > event.LIMIT - event.ROOM:
            raise EventError(f"event {made.type} has {len(octets)} octets, even shortened")
    return octets


def whole(made: Event | Foreign) -> Event:
    """*made* as an event, shortened as line() does it. Raises EventError."""
    return made if isinstance(made, Event) else event.parse(line(made))


def _written(made: Foreign) -> bytes:
    """What event.format() makes of it, in half the time: only its data can hold what cannot be written."""
    head = f'{{"time":"{made.time}","source":"{made.source}","type":"{made.type}","sev":{made.sev},"data":'
    tail = f',"id":"{made.id}"}}\n' if made.id else "}\n"
    written = head + _json(made.data) + tail
    try:
        return written.encode()
    except UnicodeEncodeError as error:  # a lone surrogate
        raise EventError(f"event {made.type} cannot be written: {error}") from None


def _shortened(made: Foreign, size: int) -> Foreign:
    """*made*, *size* octets, with its longest texts cut and other long values left out; `cut` counts those octets."""
    over = size + len(f',"cut":{size}') - (event.LIMIT - event.ROOM)
    sizes = {key: len(_json(value).encode()) for key, value in made.data.items()}
    data, cut = dict(made.data), 0
    for key in sorted(sizes, key=lambda key: -sizes[key]):
        kept = _beginning(data[key], sizes[key] - over) if isinstance(data[key], str) else ""
        gone = sizes[key]
        if kept:
            data[key] = kept
            gone -= len(_json(kept).encode())
        else:
            del data[key]
            over -= len(_json(key).encode()) + 2
        over -= gone
        cut += gone
        if over <= 0:
            break
    return made._replace(data={**data, "cut": cut})


def _beginning(long: str, most: int) -> str:
    """As much of *long* as has *most* octets in JSON, or a little less."""
    kept = long[: max(most, 0)]
    while kept and (size := len(_json(kept).encode())) > most:
        kept = kept[: min(len(kept) * most // size, len(kept) - 1)] if most > 2 else ""
    return kept


def _json(value: Any) -> str:
    try:
        return _encode(value)
    except (ValueError, TypeError, RecursionError) as error:  # NaN, too deep
        raise EventError(f"an event cannot be written: {error}") from None
