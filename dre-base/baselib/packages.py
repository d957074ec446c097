# SPDX-License-Identifier: Apache-2.0
"""The packages in a root file system: the list of them, its digest, and how two lists differ."""

import hashlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from dre.errors import UsageError
from dre.run import run

Finding = dict[str, Any]


def installed(root: Path) -> dict[str, str]:
    """Name and version of each installed package. Raises UsageError where dpkg keeps no list."""
    form = "${db:Status-Abbrev}|${binary:Package}|${Version}\n"
    admin = root / "var/lib/dpkg"
    if not (admin / "status").is_file():  # dpkg-query would take it for an empty list
        raise UsageError(f"{admin}/status: no such file")
    rows = run(["dpkg-query", f"--admindir={admin}", "-W", "-f", form]).stdout.decode().splitlines()
    return {name: version for state, name, version in (row.split("|") for row in rows) if state.startswith("ii")}


def listing(packages: Mapping[str, str]) -> str:
    """The canonical package list: `name version` lines in order of names."""
    return "".join(f"{name} {version}\n" for name, version in sorted(packages.items()))


def sha256(packages: Mapping[str, str]) -> str:
    """The digest of the canonical list."""
    return hashlib.sha256(listing(packages).encode()).hexdigest()


def differences(expected: Mapping[str, str], found: Mapping[str, str]) -> Iterator[Finding]:
    """One finding for each package that is not as expected."""
    for package in sorted(expected.keys() | found.keys()):
        was, now = expected.get(package), found.get(package)
        if was != now:
            kind = "added" if was is None else "missing" if now is None else "changed"
            yield {"finding": kind, "package": package, "expected": was, "found": now}


def altered(packages: Mapping[str, str], digest: str) -> Iterator[Finding]:
    """A finding when the list in a manifest is not the one it was written with."""
    found = sha256(packages)
    if found != digest:
        yield {"finding": "manifest", "package": None, "expected": digest, "found": found}
