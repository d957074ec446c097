# SPDX-License-Identifier: Apache-2.0
"""Where deployed scripts lie: every version under its SHA-256, the one in force under its name.

A run that was begun under one version is finished under it, also when another was deployed meanwhile.
"""

import contextlib
import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from dre import files
from dre.conf import Conf
from dre.errors import DreError, UsageError

from dscriptlib import check, load, watching
from dscriptlib.model import Monitor, Script
from dscriptlib.steps.threshold import typed

Deployed = frozenset[tuple[str, int, int]]  # name, inode and time of change of each file
Thresholds = dict[str, dict[str, str]]  # id of a monitor → above or below, and clear, as scripts write them
EVERY = 0.2  # seconds between two probes of an http monitor


def directory(conf: Conf) -> Path:
    """The directory of all that D-Script keeps."""
    return conf.core_state_dir / "script"


def put(conf: Conf, script: Script) -> None:
    """Put the kept version *script* in force; a crash leaves the old version or the new one."""
    base = directory(conf)
    (base / "deployed").mkdir(mode=0o755, parents=True, exist_ok=True)
    octets = (base / "versions" / f"{script.sha256}.yaml").read_bytes()
    if in_force(conf, script.name) != script.sha256:  # it has thresholds of its own
        _thresholds(conf, script.name).unlink(missing_ok=True)
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
    text = json.dumps(compiled(script, thresholds(conf, script.name)), indent=1) + "\n"
    if not target.exists() or target.read_text() != text:
        files.write_atomic(target, text)


def compiled(script: Script, changed: Thresholds | None = None) -> dict[str, Any]:
    """The monitors of *script* as dre-watch reads them, with the thresholds that steps have *changed*."""
    sampled = []
    for monitor in script.monitors:
        if monitor.watch not in watching.KINDS:
            with contextlib.suppress(UsageError):  # of another version of the script
                monitor = replace(monitor, **typed(monitor, (changed or {}).get(monitor.id, {})))
            sampled.append(_monitor(monitor))
    return {"script": script.name, "monitors": sampled}


def _thresholds(conf: Conf, name: str) -> Path:
    return directory(conf) / "thresholds" / f"{name}.json"


def thresholds(conf: Conf, name: str) -> Thresholds:
    """What steps `threshold` have changed in the monitors of the script *name*."""
    try:
        found: Thresholds = json.loads(_thresholds(conf, name).read_bytes())
    except FileNotFoundError:
        found = {}
    return found


def change_threshold(conf: Conf, script: Script, monitor: str, texts: Mapping[str, str]) -> None:
    """Have the monitor of *script* watched by other bounds, by its own ones again where *texts* is empty."""
    with files.lock(conf.core_run_dir / "lock" / "dscript-thresholds", timeout=30.0):
        changed = {**thresholds(conf, script.name), monitor: dict(texts)}
        path = _thresholds(conf, script.name)
        path.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
        files.write_atomic(path, json.dumps({key: value for key, value in changed.items() if value}) + "\n")
    current = in_force(conf, script.name)  # another version may have come while this one ends
    watch(conf, (version(conf, current) if current else None) or script)


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
