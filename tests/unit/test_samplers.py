# SPDX-License-Identifier: Apache-2.0
"""What one look at the host, a disk, a counter or a program tells; df, /proc and date are the witnesses."""

import os
import pathlib
import subprocess
import sys
import time

import pytest

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[2] / "sec-monitor"))

from dre import conf as settings_of  # noqa: E402
from dre.errors import UsageError  # noqa: E402
from monitorlib import samplers, watchfile  # noqa: E402
from monitorlib.crossing import Monitor, Sample  # noqa: E402


def monitor(watch, **changes):
    values = {
        "script": "s",
        "id": "m",
        "of": None,
        "url": None,
        "bound": 90.0,
        "clear": 70.0,
        "hold": 0.0,
        "every": 1.0,
    }
    return Monitor(watch=watch, **{**values, **changes})


@pytest.fixture
def made(settings, tmp_path):
    (tmp_path / "etc/actions.d").mkdir(parents=True)
    return settings_of.load(settings())


def look(made, watch, **changes):
    return samplers.make(made, monitor(watch, **changes))


def test_a_disk_is_as_full_as_df_says(made):
    said = subprocess.run(["df", "--output=pcent,ipcent", "/"], capture_output=True, text=True, check=True).stdout
    full = max(float(word.strip("%").replace("-", "0")) for word in said.splitlines()[1].split())
    assert full - 1.01 <= look(made, "disk", path="/")().value <= full  # df rounds up
    with pytest.raises(samplers.NoDataError, match="No such file"):
        look(made, "disk", path="/nonexistent")()


def test_memory_and_processors_of_the_host(made):
    said = subprocess.run(["free", "-b"], capture_output=True, text=True, check=True).stdout.splitlines()[1].split()
    assert look(made, "host-memory")().value == pytest.approx(100 * (1 - int(said[6]) / int(said[1])), abs=5)
    cpu = look(made, "host-cpu")
    assert cpu() is None  # the first
    end = time.monotonic() + 0.5
    while time.monotonic() < end:
        pass
    assert 100 / os.cpu_count() * 0.5 < cpu().value <= 100


def test_a_clock_that_nobody_sets_is_off(made):
    sample = look(made, "clock")()
    assert sample.value >= 0 and sample.bad in ("", "nobody sets it")


def test_accesses_of_the_last_minute(made):
    count = look(made, "apache", url="http://127.0.0.1:9/").counted
    assert count(0.0, 1000) is None
    assert count(30.0, 2000) == Sample(2000.0)  # 1000 in half a minute
    assert count(60.0, 3000) == Sample(2000.0)
    assert count(90.0, 3000) == Sample(1000.0)  # since 30.0
    assert count(120.0, 3000) == Sample(0.0)
    assert count(121.0, 5) is None  # a new one
    assert count(122.0, 6) == Sample(60.0)
    with pytest.raises(samplers.NoDataError, match="127.0.0.1:9"):
        look(made, "apache", url="http://127.0.0.1:9/server-status?auto")()


def plugin(made, text, mode=0o755):
    path = made.core_etc_dir / "actions.d/check"
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(mode)
    for above in path.parents:
        if above.owner() == "root" and str(above).startswith("/tmp/pytest"):
            above.chmod(0o755)  # nobody runs it
    return look(made, "command", argv=("check", "a b", "$(id)"))


def test_a_program_gives_a_number_and_a_status(made):
    assert plugin(made, "echo 91.5% of it")() == Sample(91.5)
    assert plugin(made, "echo DISK OK - 12 free")() == Sample(0.0)
    assert plugin(made, "echo 7x")() == Sample(0.0)
    assert plugin(made, "echo 3 CRITICAL; exit 2")() == Sample(3.0, "status 2: 3 CRITICAL")
    assert plugin(made, 'test "$1" = "a b" && test "$2" = "\\$(id)" && echo 5')() == Sample(5.0)
    assert plugin(made, "head -c 1000000 /dev/zero; exit 0")() == Sample(0.0)
    if os.geteuid() == 0:
        assert plugin(made, "id -u")() == Sample(65534.0)


def test_a_program_that_does_not_end_is_killed_with_all_it_started(made, monkeypatch, tmp_path):
    monkeypatch.setattr(samplers, "PATIENCE", 0.5)
    name = f"sleep {987654 + os.getpid()}"
    assert plugin(made, f"{name} & {name}")().bad.startswith("status 124")
    deadline = time.monotonic() + 5  # what was killed needs a moment to be gone
    while subprocess.run(["pgrep", "-f", f"^{name}"], check=False, capture_output=True).stdout != b"":
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_a_program_that_others_may_write_is_not_run(made):
    with pytest.raises(samplers.NoDataError, match="may write it"):
        plugin(made, "echo 1", 0o777)()
    with pytest.raises(samplers.NoDataError, match="not an executable"):
        plugin(made, "echo 1", 0o644)()
    with pytest.raises(samplers.NoDataError, match="No such file"):
        look(made, "command", argv=("other",))()


@pytest.mark.parametrize(
    "fields, reason",
    [
        ({"watch": "disk"}, "path is missing"),
        ({"watch": "disk", "path": "var"}, "absolute"),
        ({"watch": "command"}, "argv is missing"),
        ({"watch": "command", "argv": ["../x"]}, "actions.d"),
        ({"watch": "command", "argv": "id"}, "list of words"),
        ({"watch": "command", "argv": ["id"], "system": "vm1"}, "absolute"),
        ({"watch": "mysql", "above": 1, "clear": 1}, "file is missing"),
        ({"watch": "cpu", "of": "a", "system": "vm1"}, "not for cpu"),
        ({"watch": "liveness", "missing": 3}, "one of of and system"),
        ({"watch": "liveness", "missing": 3, "of": "a", "system": "b"}, "one of of and system"),
    ],
)
def test_what_is_not_to_be_watched_is_refused(fields, reason):
    with pytest.raises(UsageError, match=reason):
        watchfile._monitor("s", {"id": "m", "above": 2, "clear": 1, **fields})
