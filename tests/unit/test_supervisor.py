# SPDX-License-Identifier: Apache-2.0
"""The supervisor of programs: what they print comes back, and nothing of them outlives the one that asked for them."""

import contextlib
import errno
import fcntl
import os
import pathlib
import shutil
import signal
import time

import pytest
from dre import run
from dre.errors import DreError
from dre.supervisor import Supervisor

LIMIT = 1 << 20


@pytest.fixture
def supervisor():
    made = Supervisor()
    yield made
    if made._channel is not None:
        made._channel.close()
        os.waitpid(made._pid, 0)


def shell(supervisor, script, stdin=b"", limit=LIMIT):
    return supervisor.run(("/bin/sh", "-c", script), stdin, limit)


def ended(pid):
    """Whether process *pid* ends within some seconds."""
    end = time.monotonic() + 20
    while time.monotonic() < end:
        try:
            if pathlib.Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z":
                return True
        except (FileNotFoundError, ProcessLookupError):
            return True
        time.sleep(0.01)
    return False


def pid_in(path):
    """The process number that somebody writes to *path* as a line."""
    end = time.monotonic() + 20
    while time.monotonic() < end:
        with contextlib.suppress(FileNotFoundError):
            text = path.read_text()
            if text.endswith("\n"):
                return int(text)
        time.sleep(0.01)
    raise AssertionError(f"{path}: not written")


def test_what_programs_read_and_print_passes(supervisor):
    for number in range(3):
        done = shell(supervisor, f"cat; echo err >&2; exit {number}", b"in" * 100_000)
        assert (done.status, done.stdout, done.stderr, done.cut) == (number, b"in" * 100_000, b"err\n", False)
    done = shell(supervisor, "head -c 3000000 /dev/zero", limit=1000)
    assert (done.stdout, done.cut) == (bytes(1000), True)


def test_many_arguments_arrive(supervisor):
    words = [str(number) * 50 for number in range(4000)]
    done = supervisor.run(("/usr/bin/printf", "%s\n", *words), b"", LIMIT)
    assert done.stdout.decode().split() == words


def test_signals_end_programs_as_ever(supervisor):
    assert shell(supervisor, "kill -9 $$").status == 128 + 9
    assert shell(supervisor, "kill -PIPE $$").status == 128 + signal.SIGPIPE


def test_a_missing_program_is_an_error_and_the_next_is_run(supervisor):
    with pytest.raises(FileNotFoundError):
        supervisor.run(("/no/such/program",), b"", LIMIT)
    assert shell(supervisor, "echo on").stdout == b"on\n"


def test_programs_run_from_memory_that_nobody_can_write_to(supervisor, tmp_path):
    """As LXC's own begin anew to do; these need not."""
    program = tmp_path / "readlink"
    shutil.copy("/usr/bin/readlink", program)
    for _ in range(2):
        assert supervisor.run((str(program), "/proc/self/exe"), b"", LIMIT).stdout == b"/memfd:readlink (deleted)\n"
    program.unlink()
    shutil.copy("/usr/bin/printf", program)  # an upgrade
    assert supervisor.run((str(program), "new\n"), b"", LIMIT).stdout == b"new\n"
    script = "import fcntl; print(fcntl.fcntl(open('/proc/self/exe', 'rb'), fcntl.F_GET_SEALS))"
    all_that_lxc_wants = fcntl.F_SEAL_SEAL | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_WRITE
    assert int(supervisor.run(("/usr/bin/python3", "-c", script), b"", LIMIT).stdout) == all_that_lxc_wants


def test_programs_run_where_the_host_forbids_to_run_from_memory(supervisor, monkeypatch):
    def forbidden(*_):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))

    monkeypatch.setattr(os, "memfd_create", forbidden)
    assert supervisor.run(("/usr/bin/readlink", "/proc/self/exe"), b"", LIMIT).stdout == b"/usr/bin/readlink\n"


def test_no_descriptors_of_ours_are_in_programs(supervisor, tmp_path):
    with (tmp_path / "lock").open("w"):
        shell(supervisor, "true")
        assert shell(supervisor, "ls /proc/$$/fd").stdout.split() == [b"0", b"1", b"2"]


def test_what_a_program_leaves_is_killed(supervisor, tmp_path):
    """Here all of it; of what runs in an app only that which its end does not give to the app."""
    done = shell(supervisor, f"sleep 3494 >/dev/null 2>&1 & echo $! >{tmp_path}/pid")
    assert done.status == 0 and ended(pid_in(tmp_path / "pid"))
    assert shell(supervisor, "echo on").stdout == b"on\n"


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_programs_end_with_the_one_that_asked_for_them(tmp_path, number):
    asking = os.fork()
    if asking == 0:
        script = f"sleep 3495 & echo $! >{tmp_path}/child; echo $$ >{tmp_path}/program; wait"
        shell(Supervisor(), script)
        os._exit(0)
    pids = [pid_in(tmp_path / name) for name in ("child", "program")]
    os.kill(asking, number)
    os.waitpid(asking, 0)
    assert all(map(ended, pids))


def test_the_supervisor_ends_with_its_owner(tmp_path):
    asking = os.fork()
    if asking == 0:
        supervisor = Supervisor()
        shell(supervisor, "true")
        (tmp_path / "pid").write_text(f"{supervisor._pid}\n")
        time.sleep(3496)
        os._exit(0)
    pid = pid_in(tmp_path / "pid")
    os.kill(asking, signal.SIGKILL)
    os.waitpid(asking, 0)
    assert ended(pid)


def test_a_killed_supervisor_is_told_and_replaced(supervisor):
    with pytest.raises(DreError, match="killed"):
        shell(supervisor, "kill -9 $PPID; sleep 1")
    assert shell(supervisor, "echo on").stdout == b"on\n"
    os.kill(supervisor._pid, signal.SIGKILL)
    with pytest.raises(DreError, match="killed"):
        shell(supervisor, "true")
    assert run.children(os.getpid()) == []
