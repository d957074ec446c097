# SPDX-License-Identifier: Apache-2.0
"""Trees: root file systems that containers use as their lower layer, read-only. Made by mmdebstrap, kept in a store."""

import json
import os
import re
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path

from dre import event, files
from dre.errors import DreError, UsageError
from dre.run import run

from baselib import debian, packages, sources
from baselib.store import BUILD_TIMEOUT, MARKS, Store, octets
from baselib.wish import Wish

MANIFEST = MARKS["tree"]


@dataclass(frozen=True)
class Manifest:
    """What a tree was made from and what was in it then."""

    name: str
    suite: str
    mirror: str | None
    wanted: list[str]
    created: str
    size: int
    sha256: str  # of the package list
    packages: dict[str, str] = field(repr=False)


def create(store: Store, name: str, wish: Wish, replace: bool, progress: debian.Progress) -> bool:
    """Make tree *name*; False when it is there already, made from the same wish.

    Raises DreError when it is there from another one and not *replace*, or when mmdebstrap fails.
    """
    with store.locked(name, timeout=BUILD_TIMEOUT):
        if store.there(name, "tree"):
            made = manifest(store, name)
            if not replace:
                if (made.suite, made.mirror, made.wanted) == (wish.suite, wish.mirror, wish.wanted):
                    return False
                raise DreError(f"{name}: already there, made with other options; use --replace")
            refuse_used(store, name)
        sources.look_up(wish)
        with store.making(name) as new:
            debian.bootstrap(new, wish, progress)
            _seal(new, name, wish)
        return True


def manifest(store: Store, name: str) -> Manifest:
    """The manifest of tree *name*. Raises NotFoundError, and UsageError where it cannot be read."""
    file = store.path(name) / MANIFEST
    try:
        made = Manifest(**json.loads(file.read_bytes()))
        if not isinstance(made.packages, dict):
            raise TypeError("packages is not an object")
        return made
    except (ValueError, TypeError) as error:
        raise UsageError(f"{file}: not a manifest: {error}") from None


def findings(store: Store, name: str) -> Iterator[packages.Finding]:
    """Where the packages of tree *name* differ from its manifest. Raises as `manifest` does."""
    with store.locked(name):
        made, now = manifest(store, name), packages.installed(store.path(name))
    yield from packages.altered(made.packages, made.sha256)
    yield from packages.differences(made.packages, now)


def users(store: Store, name: str) -> list[str]:
    """The apps that have tree *name* as their lower layer, and the mounts that do, sorted."""
    tree = store.directory / name
    names = re.compile(rb"(?<![\w.-])" + re.escape(os.fsencode(tree)) + rb"(?![\w.-])")
    apps, state = store.conf.app_lxc_path, store.conf.core_state_dir / "app/state"
    told = [file for file in (*apps.glob("*/config"), *state.glob("*/app.json")) if names.search(octets(file))]
    linked = [lower for lower in apps.glob("*/lower") if tree.exists() and lower.samefile(tree)]
    found = {file.parent.name for file in (*told, *linked)}
    for line in octets(Path("/proc/self/mountinfo")).splitlines():
        if names.search(line.partition(b" - ")[2]):  # the part with lowerdir=
            found.add(f"the mount on {line.split()[4].decode(errors='replace')}")
    return sorted(found)


def refuse_used(store: Store, name: str) -> None:
    """Raise DreError while an app uses tree *name*."""
    found = users(store, name)
    if found:
        raise DreError(f"{name}: used by {', '.join(found)}; destroy them first")


def _seal(new: Path, name: str, wish: Wish) -> None:
    """Take out what is this host's, write the manifest as the last file, and make all of it durable."""
    (new / "etc/hostname").unlink(missing_ok=True)
    for key in (new / "etc/ssh").glob("ssh_host_*_key*"):  # else all containers of this tree would share them
        key.unlink()
    held = packages.installed(new)
    size = sum(entry.lstat().st_blocks * 512 for entry in new.rglob("*"))
    made = Manifest(name, wish.suite, wish.mirror, wish.wanted, event.stamp(), size, packages.sha256(held), held)
    run(["sync", "--file-system", str(new)], timeout=600)
    files.write_atomic(new / MANIFEST, json.dumps(asdict(made), indent=1) + "\n")
