# SPDX-License-Identifier: Apache-2.0
"""What a base is at a moment, so that a snapshot can tell later whether it still fits what lies below it.

A delta means something only above the files that it was made over. Here only names, versions and times are looked at,
never the contents of a base: that must cost some milliseconds, not minutes.
"""

import hashlib
import re
from pathlib import Path
from typing import Any

from dre.spec import Spec

MANIFEST = "etc/dre-base.json"  # of a tree that dre-base made
_STATUS = "var/lib/dpkg/status"
# Of a tree that dpkg knows nothing of.
_LOOKED_AT = ("", "bin", "etc", "lib", "sbin", "usr", "usr/bin", "usr/lib", "usr/sbin")
_NAMED = 3  # of the packages that differ, how many a message names


def of(spec: Spec) -> dict[str, Any]:
    """The identity of the app's base: `manifest`, the digest of dre-base's; `packages` with their versions; and
    `entries`, a digest of what lies on top, where there is neither. What is not there is null."""
    root = Path("/") if spec.base == "host" else Path(spec.base)
    manifest, packages = _manifest(root), _packages(root)
    entries = _entries(root) if manifest is None and packages is None else None
    return {"manifest": manifest, "packages": packages, "entries": entries}


def changes(saved: dict[str, Any], now: dict[str, Any]) -> str | None:
    """In words, how the base differs from what it was; None when it does not."""
    if saved == now:
        return None
    before, after = saved["packages"] or {}, now["packages"] or {}
    differing = sorted(name for name in before.keys() | after.keys() if before.get(name) != after.get(name))
    if not differing:
        return f"{MANIFEST} is another" if saved["manifest"] != now["manifest"] else "its files are others"
    listed = [f"{name} {before.get(name, 'none')} → {after.get(name, 'none')}" for name in differing[:_NAMED]]
    more = f" and {len(differing) - _NAMED} more" if len(differing) > _NAMED else ""
    return f"{', '.join(listed)}{more}"


def _manifest(root: Path) -> str | None:
    try:
        return hashlib.sha256((root / MANIFEST).read_bytes()).hexdigest()
    except OSError:
        return None


def _packages(root: Path) -> dict[str, str] | None:
    """Name and version of each package in the database of dpkg, which is quicker to read than to ask."""
    try:
        text = (root / _STATUS).read_text(errors="replace")
    except OSError:
        return None
    found = {}
    for block in text.split("\n\n"):
        fields = dict(re.findall(r"^(Package|Architecture|Version|Status): (.*)$", block, re.MULTILINE))
        if fields.get("Status", "").endswith(" installed"):
            found[f"{fields.get('Package')}:{fields.get('Architecture')}"] = fields.get("Version", "")
    return found


def _entries(root: Path) -> str:
    """A digest of the names, types, sizes and times in the directories that every root file system has."""
    total = hashlib.sha256()
    for place in _LOOKED_AT:
        directory = root / place
        if directory.is_symlink() or not directory.is_dir():
            continue
        for path in sorted(directory.iterdir()):
            status = path.lstat()
            # A directory's time changes with what is mounted or made in it, and says nothing of it.
            seen = () if path.is_dir() else (status.st_size, status.st_mtime_ns)
            total.update(f"{place}/{path.name} {status.st_mode} {seen}\n".encode(errors="replace"))
    return total.hexdigest()
