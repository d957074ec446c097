# SPDX-License-Identifier: Apache-2.0
"""Fixtures for every ring: run a program as a user would, and settings that stay off the host.

Programs come from the checkout, or from the installed packages when DRE_TEST_INSTALLED=1. A skip becomes a
failure when DRE_REQUIRE_ALL=1.
"""

import compileall
import contextlib
import os
import pathlib
import shutil
import signal
import subprocess
import tempfile
import threading

import pytest
from grounds import pytest_collection_modifyitems, pytest_xdist_make_scheduler
from programs import DIRECTORIES, ROOT, environment, program

# Tests have them from here, and pytest its hooks.
__all__ = [
    "DIRECTORIES",
    "ROOT",
    "environment",
    "nobody",
    "program",
    "pytest_collection_modifyitems",
    "pytest_xdist_make_scheduler",
    "restored",
]

# A shell's background job is born with SIGINT ignored, and so would be every program that a test starts. A worker of
# pytest-xdist, which may load this in another thread, has it from the process that started it.
if threading.current_thread() is threading.main_thread():
    signal.signal(signal.SIGINT, signal.default_int_handler)

with contextlib.suppress(ImportError):  # only unit tests need it
    import hypothesis

    # A busy machine is no bug: no deadline per example. No database either: a failure prints how to repeat it.
    hypothesis.settings.register_profile("dre", deadline=None, database=None, print_blob=True)
    hypothesis.settings.load_profile("dre")


def pytest_configure(config):
    """Once per run, before its workers: $DRE_TEST_RUN, which they share (see once.py), and compiled modules.

    Programs are run with PYTHONDONTWRITEBYTECODE=1, so that those of the checkout were compiled at each start.
    """
    if hasattr(config, "workerinput"):
        return
    os.environ["DRE_TEST_RUN"] = tempfile.mkdtemp(prefix="dre-test-run-")
    if os.environ.get("DRE_TEST_INSTALLED") != "1":
        for directory in DIRECTORIES:
            compileall.compile_dir(ROOT / directory, quiet=2)


def pytest_unconfigure(config):
    if not hasattr(config, "workerinput"):
        shutil.rmtree(os.environ.pop("DRE_TEST_RUN"), ignore_errors=True)


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_makereport(item, call):
    report = (yield).get_result()
    if report.skipped and os.environ.get("DRE_REQUIRE_ALL") == "1":
        report.outcome = "failed"
        report.longrepr = f"skipped, but DRE_REQUIRE_ALL=1: {report.longrepr}"


def nobody():
    """What to put before a command to run it without privilege: a user namespace of its own, where root is no one.

    Unlike another user it still reads the checkout, wherever that lies.
    """
    return ["unshare", "--user"] if os.geteuid() == 0 else []


def restored(place, make):
    """Have in the directory *place* what make() made there at the first call, of which a copy is kept beside it."""
    kept = place.with_name(f"{place.name}-kept")
    if not kept.exists():
        make()
        source, target = place, kept
    else:
        shutil.rmtree(place)
        source, target = kept, place
    subprocess.run(["cp", "-a", "-T", source, target], check=True)


@pytest.fixture
def run():
    """run(NAME, ARG…, stdin=b"", timeout=180) → CompletedProcess with octets; never raises on a status."""

    def call(name, *argv, stdin=b"", timeout=180, prefix=(), **kwargs):
        return subprocess.run(
            [*prefix, program(name), *map(str, argv)],
            input=stdin,
            capture_output=True,
            timeout=timeout,
            env=environment(),
            check=False,
            **kwargs,
        )

    return call


@pytest.fixture(scope="module")
def module_path(tmp_path_factory):
    """Like tmp_path, but one for all tests of a module."""
    return tmp_path_factory.mktemp("module")


@pytest.fixture
def public_path():
    """Like tmp_path, but any user gets to what lies in it; those of pytest are root's alone, made so again by any."""
    with tempfile.TemporaryDirectory(prefix="dre-test-", dir="/var/tmp", ignore_cleanup_errors=True) as name:
        path = pathlib.Path(name)
        path.chmod(0o711)
        yield path


@pytest.fixture
def settings(tmp_path):
    """settings(KEY=value…) → path of a dre.conf whose places all lie below tmp_path."""

    def write(**keys):
        values = {
            "DRE_CORE_STATE_DIR": tmp_path / "state",
            "DRE_CORE_RUN_DIR": tmp_path / "run",
            "DRE_CORE_ETC_DIR": tmp_path / "etc",
            "DRE_CORE_LOG_DIR": tmp_path / "log",
            "DRE_MONITOR_SINK": tmp_path / "run/events.sock",
            "DRE_MONITOR_PIPES": tmp_path / "run/script",
            "DRE_DBOX_DATABASE": f"sqlite:{tmp_path}/state/dbox/dbox.sqlite",
            "DRE_DBOX_CERTS_DIR": tmp_path / "etc/certs/dbox",
            **keys,
        }
        path = tmp_path / "dre.conf"
        path.write_text("".join(f'{key}="{value}"\n' for key, value in values.items()))
        path.chmod(0o644)
        return str(path)

    return write


@pytest.fixture
def app_settings(settings, tmp_path):
    """Settings for dre-app on scratch directories, with a tree to stand on at tmp_path/tree."""
    (tmp_path / "lxc").mkdir(exist_ok=True)
    (tmp_path / "tree/bin").mkdir(parents=True, exist_ok=True)
    (tmp_path / "tree/bin/sh").touch()
    return settings(DRE_APP_LXC_PATH=tmp_path / "lxc", DRE_BRIDGE_ADDRESS="10.231.101.1/24")


@pytest.fixture
def app(run, app_settings):
    """dre-app on them: what it printed, or said when it failed."""

    def call(*argv, code=0, stderr=False, prefix=()):
        done = run("dre-app", "--config", app_settings, *argv, prefix=prefix)
        said = done.stderr.decode()
        assert done.returncode == code and "Traceback" not in said, f"{argv}: {done.returncode}: {said}"
        return said if code or stderr else done.stdout.decode()

    return call
