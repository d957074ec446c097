# SPDX-License-Identifier: Apache-2.0
"""CloudEvents 1.0 in JSON: one, a batch, or one (of either) a line.

Names map one to one; sev, goal, seen, late, skew and claimed are extension attributes, late and skew as text, since
CloudEvents have no fractions. What has no place in an event stands in its data under `ce`: see read().
"""

import base64
import hashlib
import json
import re
from collections.abc import Iterable, Iterator
from typing import Any

from dre import event
from dre.event import Event, EventError

from monitorlib.formats import LARGEST, filled, kind, moment, path, strict

_ID = re.compile(r"[A-Za-z0-9._:-]{1,64}")  # what the intake takes
_ATTRIBUTE = re.compile(r"[a-z0-9]+")
_CORE = frozenset({"specversion", "id", "source", "type", "time", "data", "data_base64"})
_FRACTIONS = ("late", "skew")


def records(blocks: Iterable[bytes]) -> Iterator[tuple[int, Any]]:
    """Objects of JSON with the line they begin on, or the line itself where it holds none."""
    numbered = filled(blocks)
    first: list[tuple[int, bytes | None]] = [one for _, one in zip(range(1), numbered, strict=False)]
    if first and not _is_json(first[0][1]):  # a document of several lines, or a bad line
        size = 0
        for number, line in numbered:
            first.append((number, line))
            size += len(line or b"")
            if line is None or size > LARGEST:
                break
        else:
            whole = b"\n".join(line or b"" for _, line in first)
            if _is_json(whole):
                first = [(first[0][0], whole)]
    for part in (first, numbered):
        for number, line in part:
            yield from _members(number, line)


def _is_json(octets: bytes | None) -> bool:
    """Whether *octets* are whole; what is refused in them is read()'s to say."""
    try:
        json.loads((octets or b"").decode())
    except (ValueError, RecursionError):
        return False
    return True


def _members(number: int, line: bytes | None) -> Iterator[tuple[int, Any]]:
    try:
        value = line if line is None else strict(line)
    except EventError as error:
        value = error
    if isinstance(value, list):
        yield from ((number, one) for one in value)
    else:
        yield number, value if value is not None or line is None else "null"


def read(record: Any) -> Event:
    """The event of one CloudEvent, an object of JSON. Raises EventError.

    An object in data stays as it is. The source, type and id where ours had to differ, other attributes, and data
    that are no object become data.ce; an object that has a `ce` of its own goes into it as ce.data then.
    """
    if isinstance(record, EventError):
        raise record
    if not isinstance(record, dict):
        raise EventError(f"a CloudEvent is a JSON object, not {str(record)[:60]}")
    given = {key: value for key, value in record.items() if value is not None}
    for key in given:
        if key != "data_base64" and not _ATTRIBUTE.fullmatch(key):
            raise EventError(f"attribute {key[:60]!r}: CloudEvents have small letters and digits")
    for key in ("specversion", "id", "source", "type"):
        if not isinstance(given.get(key), str) or not given[key]:
            raise EventError(f"a CloudEvent needs {key}, a text that is not empty")
    if given["specversion"] != "1.0":
        raise EventError(f"specversion {given['specversion'][:20]!r}: 1.0 is understood")
    if not isinstance(given.get("time", ""), str):
        raise EventError("time must be text")
    optional = {key: _ours(key, given.pop(key)) for key in event.OPTIONAL if key in given and key != "id"}
    made, aside = _renamed(given)
    if _ID.fullmatch(given["id"]):
        optional["id"] = given["id"]
    else:
        optional["id"] = hashlib.sha256(given["id"].encode(errors="replace")).hexdigest()[:16]
        aside["id"] = given["id"]
    sev = given.pop("sev", 6)
    aside.update((key, value) for key, value in given.items() if key not in _CORE)
    if aside.get("datacontenttype") == "application/json":
        del aside["datacontenttype"]  # it is that where nothing is said
    time = moment(given["time"]) if "time" in given else event.stamp()
    ready = Event(time, made["source"], made["type"], sev, _data(given, aside), optional)
    return ready if len(optional) == 1 else event.parse(event.format(ready))  # which looks at what else is optional


def _renamed(given: dict[str, Any]) -> tuple[dict[str, str], dict[str, Any]]:
    """Source and type in our form, and those of the CloudEvent that differ from it."""
    made = {"source": given["source"], "type": given["type"]}
    try:
        event.format(Event("2000-01-01T00:00:00.000Z", made["source"], made["type"]))
    except EventError:
        made = {"source": path(given["source"]), "type": kind(given["type"], "cloudevents")}
    return made, {key: given[key] for key in made if made[key] != given[key]}


def _ours(key: str, value: Any) -> Any:
    """The value of an attribute that an event has too."""
    if key in _FRACTIONS and isinstance(value, str):
        return strict(value.encode(errors="replace"))
    return value


def _data(given: dict[str, Any], aside: dict[str, Any]) -> dict[str, Any]:
    """The data of the event; *aside* is what else is to be kept."""
    if "data_base64" in given:
        if "data" in given:
            raise EventError("a CloudEvent has data or data_base64")
        try:
            base64.b64decode(given["data_base64"], validate=True)
        except (ValueError, TypeError):
            raise EventError("data_base64 is not base64") from None
        aside["data_base64"] = given["data_base64"]
        return {"ce": aside}
    data = given.get("data", {})
    if isinstance(data, dict) and not (aside and "ce" in data):
        return {**data, "ce": aside} if aside else data
    return {"ce": {**aside, "data": data}}


def write(made: Event) -> bytes:
    """The CloudEvent of *made* on one line; without an id it gets one that depends on the event alone."""
    identity = made.optional.get("id") or hashlib.sha256(event.format(made)).hexdigest()[:16]
    fields = {
        "specversion": "1.0",
        "id": identity,
        "source": made.source,
        "type": made.type,
        "time": made.time,
        "datacontenttype": "application/json",
        "sev": made.sev,
        **{key: made.optional[key] for key in event.OPTIONAL if key in made.optional and key != "id"},
        "data": made.data,
    }
    for key in _FRACTIONS:
        if key in fields:
            fields[key] = json.dumps(fields[key])
    return json.dumps(fields, ensure_ascii=False, separators=(",", ":"), allow_nan=False).encode() + b"\n"
