# SPDX-License-Identifier: Apache-2.0
"""Root file systems from the archive by mmdebstrap, and more packages into one. They know nothing of where they go.

All work is in namespaces that end with us: no mount and no process outlives a kill -9.
"""

import os
from collections.abc import Callable, Sequence
from pathlib import Path

from dre.errors import DreError
from dre.run import follow, need, run

from baselib import sources
from baselib.store import BUILD_TIMEOUT
from baselib.wish import Wish

Progress = Callable[[str], None]
MORTAL = ("setpriv", "--pdeathsig", "KILL")
_APART = (*MORTAL, "unshare", "--mount", "--pid", "--fork", "--kill-child=KILL", "--mount-proc")
# Nobody reads manuals inside a container; copyright files stay, as their licences ask.
OPTIONS = (
    "path-exclude=/usr/share/man/*",
    "path-exclude=/usr/share/info/*",
    "path-exclude=/usr/share/locale/*",
    "path-include=/usr/share/locale/locale.alias",
    "path-exclude=/usr/share/doc/*",
    "path-include=/usr/share/doc/*/copyright",
)
# In the namespaces: what maintainer scripts expect, and no service that starts.
# $1 is the root, $2 the work, $3 where apt keeps what it fetches.
_INSIDE = r"""
set -eu
mount -t tmpfs -o mode=755 tmpfs "$1/dev"
for node in null zero full random urandom tty; do
	: >"$1/dev/$node"
	mount --bind "/dev/$node" "$1/dev/$node"
done
mkdir "$1/dev/pts" "$1/dev/shm"
ln -s /proc/self/fd "$1/dev/fd"
mount -t devpts -o newinstance,ptmxmode=666,mode=620 devpts "$1/dev/pts"
ln -s pts/ptmx "$1/dev/ptmx"
mount -t proc proc "$1/proc"
mount -t sysfs -o ro sysfs "$1/sys"
mount -t tmpfs -o mode=755 tmpfs "$1/run"
mkdir -p "$1/run/systemd/resolve" "$1/run/lock"
cat /etc/resolv.conf >"$1/run/systemd/resolve/stub-resolv.conf"
printf '#!/bin/sh\nexit 101\n' >"$1/usr/sbin/policy-rc.d"
chmod 755 "$1/usr/sbin/policy-rc.d"
[ -z "$3" ] || mount --bind "$3" "$1/var/cache/apt/archives"
status=0
chroot "$1" sh -eu -c "$2" </dev/null || status=$?
rm -f "$1/usr/sbin/policy-rc.d"
exit $status
"""


def bootstrap(
    root: Path, wish: Wish, progress: Progress, include: Sequence[str] = (), more: Sequence[str] = ()
) -> None:
    """Make the directory *root* from *wish*; *include* takes apt's patterns, too, and *more* are mmdebstrap's options.

    Raises DreError with what mmdebstrap said.
    """
    need("mmdebstrap")
    host = "" if wish.mirror else sources.of_host(wish.suite)
    argv = [*_APART, "mmdebstrap", "--mode=root", "--variant=minbase", "--format=directory"]
    argv += [f"--dpkgopt={option}" for option in OPTIONS]
    argv += [f"--aptopt={option}" for option in sources.apt_options()]
    argv += [f"--include={package}" for package in [*include, *wish.wanted]]
    argv += [*more, "--", wish.suite, str(root)]
    if wish.mirror or host:
        argv.append(wish.mirror or "-")  # with neither, mmdebstrap knows the archive and the keyring of the suite
    said: list[str] = []

    def listen(line: str) -> None:
        if line.startswith("I: "):
            progress(line[3:])
        elif line.startswith("E: "):
            said.append(line[3:])

    status = follow(argv, listen, timeout=BUILD_TIMEOUT, stdin=host.encode())
    if status != 0:
        raise DreError(f"mmdebstrap {wish.suite}: {said[0] if said else f'exit status {status}'}")


def inside(root: Path, script: str, archives: Path | None = None) -> str:
    """What *script*, which runs apt, prints when sh runs it in *root*. Raises DreError."""
    keep = {
        key: value for key, value in os.environ.items() if key in ("SOURCE_DATE_EPOCH", "http_proxy", "https_proxy")
    }
    words = {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "HOME": "/root", "LC_ALL": "C", **keep}
    words |= {"DEBIAN_FRONTEND": "noninteractive", "DEBCONF_NONINTERACTIVE_SEEN": "true"}
    argv = [*_APART, "env", "-i", *(f"{key}={value}" for key, value in words.items()), "sh", "-c", _INSIDE, "sh"]
    done = run([*argv, str(root), script, str(archives or "")], timeout=BUILD_TIMEOUT, check=False)
    if done.returncode != 0:
        lines = done.stderr.decode(errors="replace").splitlines()
        told = [line.removeprefix("E: ") for line in lines if line.startswith("E: ")] or lines[-1:]
        raise DreError(f"apt: {told[0] if told else f'exit status {done.returncode}'}")
    return done.stdout.decode(errors="replace")


def outdated(root: Path) -> bool:
    """Ask the archives anew, and whether they have other versions than *root* holds. Raises DreError."""
    told = inside(
        root,
        "apt-get -qq -o APT::Update::Error-Mode=any update\n"
        "apt-get -qq -o APT::Install-Recommends=false --simulate dist-upgrade",
    )
    return any(line.startswith(("Inst ", "Remv ")) for line in told.splitlines())


def install(root: Path, packages: Sequence[str], archives: Path) -> None:
    """Install more *packages*, which are as `Wish` has them, into *root* that has apt's lists. Raises DreError.

    What apt fetches is in *archives*.
    """
    inside(root, f"apt-get -qq --no-install-recommends --yes install {' '.join(packages)} >&2", archives)
