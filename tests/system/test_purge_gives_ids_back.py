# SPDX-License-Identifier: Apache-2.0
"""A purge of dre-core leaves /etc/subuid and /etc/subgid as they were: exactly what dre-app added goes.

And of what it keeps itself only containers stay, with what they stand on.

The script of the package runs in a mount namespace with an /etc, /var/lib/dre and /var/lib/lxc of its own.
"""

import os
import subprocess

import pytest
from conftest import ROOT

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="needs root: mounts, and changes of /etc/subuid")
OURS = "root:1879048192:268304384\n"
OTHERS = "admin:100000:65536\nroot:1000000:65536\n"
SCRIPT = """
set -e
mount -t tmpfs none "$1"
mkdir "$1/up" "$1/work"
mount -t overlay -o lowerdir=/etc,upperdir="$1/up",workdir="$1/work" none /etc
for place in dre lxc; do mkdir -p /var/lib/$place && mount -t tmpfs none /var/lib/$place; done
printf %s "$3" >/etc/subuid
printf %s "$3" >/etc/subgid
mkdir -p /var/lib/dre/app/state /var/lib/dre/app/init/1-1 /var/lib/lxc/other
printf '/etc/subuid 1879048192 268304384\\n/etc/subgid 1879048192 268304384\\n' >/var/lib/dre/app/ids
eval "$4"
sh "$2" purge >&2
cat /etc/subuid
echo --
cat /etc/subgid
echo --
ls /var/lib/dre
cd /var/lib/dre && [ ! -e sys ] || echo sys/*
"""


@pytest.mark.parametrize(
    ("before", "change", "after", "left"),
    [
        (OTHERS + OURS, "", OTHERS, ""),
        (OURS, "", "", ""),
        (OTHERS + OURS, "rm /var/lib/dre/app/ids", OTHERS + OURS, ""),
        (OTHERS, "", OTHERS, ""),
        (OTHERS + OURS, "mkdir /var/lib/dre/app/state/web1", OTHERS + OURS, "app\n"),
        (OURS, "mkdir -p /var/lib/dre/app/incoming/1 /var/lib/dre/sys/warm/1", "", ""),
        (OURS, "mkdir -p /var/lib/dre/sys/state/v1 /var/lib/dre/sys/warm/1", "", "sys\nsys/state sys/warm\n"),
        (OURS, "echo 'lxc.idmap = u 0 1879113728 65536' >/var/lib/lxc/other/config", OURS, ""),
        (OURS, "echo 'lxc.idmap = u 0 100000 65536' >/var/lib/lxc/other/config", "", ""),
    ],
)
def test_purge(tmp_path, before, change, after, left):
    postrm = ROOT / "debian/dre-core.postrm"
    argv = [
        "unshare",
        "--mount",
        "--propagation",
        "private",
        "sh",
        "-c",
        SCRIPT,
        "sh",
        tmp_path,
        postrm,
        before,
        change,
    ]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout == f"{after}--\n{after}--\n{left}", done.stderr
