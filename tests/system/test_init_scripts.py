# SPDX-License-Identifier: Apache-2.0
"""The init scripts start, show and stop the services where no systemd does, here with settings of their own."""

import os
import pathlib
import subprocess
import tempfile

import dboxkit
import pytest
from app_ground import alone, make_tree
from conftest import environment

SERVICES = ["dboxd", "dre-monitor", "dre-rules", "dscript", "dre-sysmon", "dre-keep"]
DETACHING = ["dre-monitor", "dre-rules"]
PID_FILES = {}  # of those that detach by themselves, which is below the run directory of their settings

pytestmark = pytest.mark.skipif(
    os.environ.get("DRE_TEST_INSTALLED") != "1", reason="for installed packages: DRE_TEST_INSTALLED=1"
)


def call(*argv):
    return subprocess.run(
        argv, env=environment(), stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=60, check=False
    )


def pid(service):
    return int(pathlib.Path("/run", PID_FILES.get(service, f"{service}.pid")).read_text())


@pytest.fixture(scope="module")
def services():
    """/etc/default/SERVICE with scratch settings for all of them, and the keys of a D-Box; all ended after."""
    with tempfile.TemporaryDirectory(prefix="dre-init-", dir="/var/tmp") as scratch:
        os.chmod(scratch, 0o755)
        conf = pathlib.Path(scratch, "dre.conf")
        conf.write_text(
            f'DRE_CORE_STATE_DIR="{scratch}/state"\nDRE_CORE_RUN_DIR="{scratch}/run"\nDRE_CORE_ETC_DIR="{scratch}/etc"\n'
            f'DRE_CORE_LOG_DIR="{scratch}/log"\nDRE_MONITOR_SINK="{scratch}/run/events.sock"\n'
            f'DRE_MONITOR_PIPES="{scratch}/run/script"\nDRE_DBOX_DATABASE="sqlite:{scratch}/state/dbox/dbox.sqlite"\n'
            f'DRE_DBOX_CERTS_DIR="{scratch}/certs"\nDRE_DBOX_LISTEN="127.0.0.1:28443"\n'
            'DRE_DBOX_URL="https://localhost:28443"\nDRE_DBOX_KEY_BITS="2048"\n'
        )
        pathlib.Path(scratch, "etc").mkdir()
        pathlib.Path(scratch, "etc/sysmon.yaml").write_text("sysmon: 1\nlooks: [{look: lms, system: nosuch}]\n")
        made = call("dbox-init", "--config", str(conf), *map(str, dboxkit.owner()))
        assert made.returncode == 0, made.stderr
        defaults = [pathlib.Path("/etc/default", service) for service in (*SERVICES, "dre-app")]
        assert not [path for path in defaults if path.exists()], "a service of this host is configured; not touching it"
        try:
            for path in defaults:
                path.write_text(f'DAEMON_ARGS="--config {conf}"\n')
            for service in DETACHING:
                PID_FILES[service] = f"{scratch}/run/{service}.pid"
                with pathlib.Path("/etc/default", service).open("a") as default:
                    default.write(f'PIDFILE="{PID_FILES[service]}"\n')
            yield SERVICES
        finally:
            for service in SERVICES:
                call(f"/etc/init.d/{service}", "stop")
            for path in defaults:
                path.unlink(missing_ok=True)


def test_start_status_stop(services):
    for service in services:
        assert call(f"/etc/init.d/{service}", "status").returncode == 3
        started = call(f"/etc/init.d/{service}", "start")
        assert started.returncode == 0, started.stdout + started.stderr
        shown = call(f"/etc/init.d/{service}", "status")
        log = pathlib.Path("/var/log/dre", f"{service}.log")
        assert shown.returncode == 0, log.read_text()[-2000:] if log.exists() else shown.stdout
    first = {service: pid(service) for service in services}
    for service in services:
        assert call(f"/etc/init.d/{service}", "start").returncode == 0
        assert pid(service) == first[service], "started twice"
    for service in services:
        assert call(f"/etc/init.d/{service}", "restart").returncode == 0
        assert pid(service) != first[service]
        assert not os.path.exists(f"/proc/{first[service]}")
    for service in services:
        last = pid(service)
        assert call(f"/etc/init.d/{service}", "stop").returncode == 0
        assert not os.path.exists(f"/proc/{last}")
        assert call(f"/etc/init.d/{service}", "status").returncode == 3


def test_why_one_cannot_start_is_said(services):
    for service in DETACHING:
        default = pathlib.Path("/etc/default", service)
        right = default.read_text()
        default.write_text('DAEMON_ARGS="--config /nonexistent/dre.conf"\n')
        try:
            started = call(f"/etc/init.d/{service}", "start")
            assert started.returncode != 0 and "/nonexistent/dre.conf" in started.stderr
            assert call(f"/etc/init.d/{service}", "status").returncode == 3
        finally:
            default.write_text(right)


def test_apps_start_and_stop_with_the_system(services):
    name = "t-init"
    config = pathlib.Path("/etc/default/dre-app").read_text().split('"')[1].split()[1]
    tree = make_tree(pathlib.Path(config).with_name("tree"))
    with alone():
        try:
            made = call("dre-app", "--config", config, "create", name, "--base", tree, "--ip", "none", "--autostart")
            assert made.returncode == 0, made.stderr
            assert call("/etc/init.d/dre-app", "status").returncode == 3
            started = call("/etc/init.d/dre-app", "start")
            assert started.returncode == 0, started.stdout + started.stderr
            assert call("lxc-info", "-n", name, "-s", "-H").stdout == "RUNNING\n"
            assert call("/etc/init.d/dre-app", "status").returncode == 0
            assert call("/etc/init.d/dre-app", "start").returncode == 0
            assert call("/etc/init.d/dre-app", "stop").returncode == 0
            assert call("lxc-info", "-n", name, "-s", "-H").stdout == "STOPPED\n"
            assert call("/etc/init.d/dre-app", "status").returncode == 3
        finally:
            call("dre-app", "--config", config, "destroy", "--force", name)
