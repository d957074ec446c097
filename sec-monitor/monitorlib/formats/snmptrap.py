# SPDX-License-Identifier: Apache-2.0
"""What snmptrapd gives a traphandle on its standard input: a trap or an inform, of SNMP version 1, 2c or 3.

The first line is the sender's host name, the second its address, each further one an OID and a value, which may go on
over several lines. The input is one trap, to its end. The community of a trap of version 1 is a password: left out.
"""

import re
from collections.abc import Iterable, Iterator
from typing import Any

from dre import event
from dre.event import EventError

from monitorlib.formats import LARGEST, Foreign, number, place, text

SEV = 5  # of each: a trap has none
_OID = re.compile(r"(\.?(?:iso|\d+)(?:\.[\w-]+)+|[A-Za-z][\w-]*::\S+)(?:[ \t](.*))?", re.ASCII)
_ADDRESS = re.compile(r"[A-Za-z0-9/]+: \[([^\]]+)\]")
_UPTIME = {"1.3.6.1.2.1.1.3.0", "sysUpTimeInstance", "sysUpTime.0"}
_TRAP = {"1.3.6.1.6.3.1.1.4.1.0", "snmpTrapOID.0"}
_COMMUNITY = {"1.3.6.1.6.3.18.1.4.0", "snmpTrapCommunity.0"}


def records(blocks: Iterable[bytes]) -> Iterator[tuple[int, bytes | None]]:
    """The whole input as one record."""
    parts, size = [], 0
    for block in blocks:
        size += len(block)
        if size <= LARGEST:
            parts.append(block)
    if size:
        yield 1, b"".join(parts) if size <= LARGEST else None


def read(record: bytes) -> Foreign:
    """The event of one trap. Raises EventError."""
    lines = text(record.rstrip(b"\n")).split("\n")
    if len(lines) < 3:
        raise EventError("not a trap of snmptrapd: a host, its address, then a line for each OID")
    host, address = lines[0].strip(), _ADDRESS.match(lines[1])
    data: dict[str, Any] = {}
    if address:
        data["address"] = address[1]
    if not host or host == "<UNKNOWN>":
        host = address[1] if address else ""
    variables: dict[str, Any] = {}
    for oid, value in _variables(lines[2:]):
        short = oid.rpartition("::")[2]
        if short in _TRAP:
            data["trap"] = _number_form(value)
        elif short in _UPTIME:
            data["uptime"] = value
        elif short not in _COMMUNITY:
            _put(variables, oid, _value(value))
    if "trap" not in data:
        raise EventError("not a trap of snmptrapd: no snmpTrapOID")
    source, changed = place(host, "")
    return Foreign(event.stamp(), source, "snmp.trap", SEV, {**data, **variables, **changed})


def _variables(lines: list[str]) -> Iterator[tuple[str, str]]:
    """Each OID, numbers without the first ".", and its value as printed; within quotes nothing begins an OID."""
    oid, quoted = "", False
    parts: list[str] = []
    for line in lines:
        found = None if quoted else _OID.fullmatch(line)
        if found:
            if oid:
                yield oid, "\n".join(parts)
            oid, parts = _number_form(found[1]), []
            line = found[2] or ""
        elif not oid:
            raise EventError(f"{line[:60]!r} is not an OID and a value")
        parts.append(line)
        if len(parts) == 1:
            quoted = line.startswith('"') and not _closed(line[1:])
        elif quoted:
            quoted = not _closed(line)
    if oid:
        yield oid, "\n".join(parts)


def _closed(rest: str) -> bool:
    """Whether *rest* of a quoted value ends it: with a quote that no backslash escapes."""
    before = rest.rstrip().removesuffix('"')
    return rest.rstrip().endswith('"') and (len(before) - len(before.rstrip("\\"))) % 2 == 0


def _number_form(oid: str) -> str:
    return re.sub(r"^\.?iso(?=\.\d)", "1", oid).removeprefix(".")


def _value(printed: str) -> Any:
    """The value of a variable: text without its quotes, or a number."""
    if len(printed) > 1 and printed[0] == printed.rstrip()[-1] == '"':
        return re.sub(r'\\(["\\])', r"\1", printed.rstrip()[1:-1])
    return number(printed)


def _put(variables: dict[str, Any], oid: str, value: Any) -> None:
    """Add a variable; one that stands several times has a list of values."""
    if oid not in variables:
        variables[oid] = value
    elif isinstance(variables[oid], list):
        variables[oid].append(value)
    else:
        variables[oid] = [variables[oid], value]
