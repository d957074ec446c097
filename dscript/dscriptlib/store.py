# SPDX-License-Identifier: Apache-2.0
"""Where deployed scripts lie: every version under its SHA-256, the one in force under its name.

A run that was begun under one version is finished under it, also when another was deployed meanwhile.
"""

import contextlib
import hashlib
import json
import os
from pathlib import Path
from typing import Any

from dre import files
from dre.conf import Conf
from dre.errors import DreError

from dscriptlib import check, load, watching
from dscriptlib.model import Monitor, Script

Deployed = frozenset[tuple[str, int, int]]  # name, inode and time of change of each file
EVERY = 0.2  # seconds between two probes of an http monitor


def directory(conf: Conf) -> Path:
    """The directory of all that D-Script keeps."""
    return conf.core_state_dir / "script"


def put(conf: Conf, script: Script) -> None:
    """Put the kept version *script* in force; a crash leaves the old version or the new one."""
    base = directory(conf)
    (base / "deployed").mkdir(mode=0o755, parents=True, exist_ok=True)
    octets = (base / "versions" / f"{script.sha256}.yaml").read_bytes()
    files.write_atomic(base / "deployed" / f"{script.name}.yaml", octets)
    watch(conf, script)


def in_force(conf: Conf, name: str) -> str | None:
    """The SHA-256 of the file of the script *name* that is in force."""
    path = directory(conf) / "deployed" / f"{name}.yaml"
    return hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else None


def keep(conf: Conf, script: Script, octets: bytes) -> None:
    """Keep the version so that it can be loaded by its SHA-256."""
    versions = directory(conf) / "versions"
    versions.mkdir(mode=0o755, parents=True, exist_ok=True)
    path = versions / f"{script.sha256}.yaml"
    if not path.exists():
        files.write_atomic(path, octets)


def watch(conf: Conf, script: Script) -> None:
    """Compile the monitors of *script* for dre-watch; nothing is written when nothing has changed."""
    target = directory(conf) / "watch.d" / f"{script.name}.json"
    target.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
    text = json.dumps(compiled(script), indent=1) + "\n"
    if not target.exists() or target.read_text() != text:
        files.write_atomic(target, text)


def compiled(script: Script) -> dict[str, Any]:
    """The monitors of *script* as dre-watch reads them."""
    sampled = [_monitor(monitor) for monitor in script.monitors if monitor.watch not in watching.KINDS]
    return {"script": script.name, "monitors": sampled}


def _monitor(monitor: Monitor) -> dict[str, Any]:
    made: dict[str, Any] = {"id": monitor.id, "watch": monitor.watch}
    for key in ("of", "url", "system", "path", "file"):
        if (value := getattr(monitor, key)) is not None:
            made[key] = value
    if monitor.argv:
        made["argv"] = list(monitor.argv)
    for key in ("missing", "every"):
        if (value := getattr(monitor, key)) is not None:
            made[key] = value
    if monitor.watch == "liveness":
        return made
    bound = {"above": monitor.above} if monitor.below is None else {"below": monitor.below}
    made.update({**bound, "clear": monitor.clear, "for": monitor.hold})
    if monitor.watch == "http":
        made["every"] = monitor.every or EVERY
    return made


def version(conf: Conf, sha256: str) -> Script | None:
    """The version with that digest, if it was kept and is unchanged."""
    path = directory(conf) / "versions" / f"{sha256}.yaml"
    if not path.is_file():
        return None
    script, _ = load.load(load.read(path), str(path))
    return script if script is not None and script.sha256 == sha256 else None


def deployed(conf: Conf) -> list[Path]:
    """The files of the scripts in force."""
    return sorted((directory(conf) / "deployed").glob("*.yaml"))


def deployed_files(conf: Conf) -> Deployed:
    """What a deployment changes."""
    with contextlib.suppress(FileNotFoundError):
        entries = os.scandir(directory(conf) / "deployed")
        return frozenset((one.name, one.inode(), one.stat().st_mtime_ns) for one in entries)
    return frozenset()


def read(path: Path) -> tuple[Script, bytes]:
    """The script in *path* and its octets. Raises DreError naming the first error, OSError."""
    octets = load.read(path)
    script, findings = check.check(octets, str(path))
    if script is None:
        raise DreError(f"{next(finding for finding in findings if finding.severity == 'error')}")
    return script, octets
