# SPDX-License-Identifier: Apache-2.0
"""What the installed packages put on the host: commands, pages, completion, users; and no service that runs."""

import gzip
import os
import pathlib
import pwd
import re
import subprocess

import pytest
from conftest import DIRECTORIES, ROOT, environment

pytestmark = pytest.mark.skipif(
    os.environ.get("DRE_TEST_INSTALLED") != "1", reason="for installed packages: DRE_TEST_INSTALLED=1"
)


def commands():
    for directory in DIRECTORIES:
        makefile = (ROOT / directory / "Makefile").read_text()
        for place, variable in (("/usr/sbin", "SBIN"), ("/usr/bin", "BIN")):
            found = re.search(rf"^{variable} = (.*)$", makefile, re.MULTILINE)
            for command in found[1].split() if found else []:
                page = next((ROOT / directory / "man").glob(f"{command}.[158].rst"))
                yield command, f"{place}/{command}", page.name.split(".")[-2]


@pytest.mark.parametrize(("command", "path", "section"), commands())
def test_command_page_and_completion_are_in_their_places(command, path, section):
    assert os.access(path, os.X_OK)
    page = pathlib.Path(f"/usr/share/man/man{section}/{command}.{section}.gz")
    assert f"\n{command} \\- ".encode() in gzip.decompress(page.read_bytes())
    assert pathlib.Path("/usr/share/bash-completion/completions", command).is_file()


@pytest.mark.parametrize(("command", "path", "section"), commands())
def test_command_runs_without_privilege_from_anywhere(command, path, section):
    done = subprocess.run(
        [path, "--version"], user="nobody", cwd="/", env=environment(), capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(f"{command} (D-RE) ")


def test_users_exist_and_cannot_log_in():
    for user in ("dre-sec", "dre-sysmon", "dscript", "dbox"):
        assert pwd.getpwnam(user).pw_shell in ("/usr/sbin/nologin", "/bin/false")


@pytest.mark.parametrize("service", ["dboxd", "dre-monitor", "dscript"])
def test_service_is_there_but_not_enabled(service):
    assert os.access(f"/etc/init.d/{service}", os.X_OK)
    units = [
        path
        for path in ("/lib/systemd/system", "/usr/lib/systemd/system")
        if os.path.exists(f"{path}/{service}.service")
    ]
    assert units
    assert not list(pathlib.Path("/etc").glob(f"rc[2-5].d/S??{service}"))
    assert not list(pathlib.Path("/etc/systemd/system").rglob(f"{service}.service"))


def test_lxcfs_did_not_come_along():
    done = subprocess.run(["dpkg-query", "-W", "-f", "${db:Status-Status}", "lxcfs"], capture_output=True, text=True)
    assert done.stdout != "installed"
