# SPDX-License-Identifier: Apache-2.0
"""Programs of packages that are not installed on the host, since they would start a service: unpacked for tests."""

import subprocess

import pytest
from programs import ROOT


def unpacked(name, *packages):
    """The directory build/checkers/*name* with what is in *packages*; the test is skipped when apt has them not."""
    place = ROOT / "build/checkers" / name
    whole = place / ".whole"
    if not whole.exists():
        place.mkdir(parents=True, exist_ok=True)
        argv = ["apt-get", "-q", "download", *packages]
        done = subprocess.run(argv, cwd=place, capture_output=True, text=True, check=False, timeout=120)
        if done.returncode:
            pytest.skip(f"apt-get download {' '.join(packages)}: {done.stderr.strip()[-200:]}")
        for package in place.glob("*.deb"):
            subprocess.run(["dpkg-deb", "-x", package, place], check=True)
        whole.touch()
    return place
