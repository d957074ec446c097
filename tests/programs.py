# SPDX-License-Identifier: Apache-2.0
"""Our programs as tests call them: those of the checkout, or the installed ones when DRE_TEST_INSTALLED=1."""

import os
import pathlib
import shutil

ROOT = pathlib.Path(__file__).resolve().parent.parent
DIRECTORIES = ("dre-core", "dre-base", "dbox", "sec-monitor", "dscript", "sysmon", "libdre", "libdaware")


def program(name):
    """The path of a program of ours: in the checkout, or installed."""
    if os.environ.get("DRE_TEST_INSTALLED") == "1":
        path = shutil.which(name, path="/usr/sbin:/usr/bin")
        assert path, f"{name} is not installed"
        return path
    for directory in DIRECTORIES:
        path = ROOT / directory / name
        if path.is_file():
            return str(path)
    raise AssertionError(f"no program {name} in the checkout")


def environment():
    """The environment programs run in: a clean PATH, and the checkout's modules unless the packages are tested."""
    env = {
        "PATH": "/usr/sbin:/usr/bin:/sbin:/bin",
        "HOME": os.environ.get("HOME", "/"),
        "LANG": "C.UTF-8",
        "PYTHONDONTWRITEBYTECODE": "1",
    }
    if os.environ.get("DRE_TEST_INSTALLED") != "1":
        env["PYTHONPATH"] = str(ROOT / "dre-core")
    return env
