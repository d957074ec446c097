# SPDX-License-Identifier: Apache-2.0
"""libdaware from outside: what comes out at the log's socket, what it does with signals, and which process is which.

Most of what is checked is in tests/c/daware_edges.c; here is the other end of its sockets, and the shell.
"""

import contextlib
import ctypes
import datetime
import errno
import os
import pathlib
import re
import shutil
import signal
import socket
import subprocess
import time

import pytest
from conftest import ROOT, environment

LIBRARY, EDGES = ROOT / "libdaware", ROOT / "tests/c/daware_edges.c"
FULL = os.environ.get("DRE_FULL") == "1"
VERSION = re.search(r'__version__ = "([^"]+)"', (ROOT / "dre-core/dre/__init__.py").read_text())[1]
RECORD = re.compile(
    r"<(?P<pri>\d+)>1 (?P<time>\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6})Z \S+ (?P<app>\S+) (?P<pid>\d+) (?P<event>\S+) "
    r'\[dre@32473(?P<values>(?: [!-~]+?="(?:[^"\\\]]|\\["\\\]])*")*)\] (?P<message>.*)',
    re.DOTALL,
)
pytestmark = pytest.mark.skipif(not shutil.which("gcc", path="/usr/bin"), reason="needs gcc")


def call(*argv, **kwargs):
    done = subprocess.run(
        list(map(str, argv)), **{"capture_output": True, "text": True, "env": environment(), "timeout": 120, **kwargs}
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def built(place, *flags):
    """tests/c/daware_edges.c with the library inside."""
    words = ["-std=c11", "-g", "-O1", '-DDAWARE_VERSION="0.1.0"', *flags, f"-I{LIBRARY}/include"]
    words.append(f"-I{ROOT}/daware-mod/src")
    call("gcc", *words, EDGES, *LIBRARY.glob("src/*.c"), "-pthread", "-o", place / "edges")
    return place / "edges"


def child_of(pid):
    """The one child that process *pid* has."""
    (child,) = pathlib.Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return child


SANITIZERS = ["undefined", *(["address,undefined", "thread"] if FULL else [])]


@pytest.fixture(scope="module", params=SANITIZERS)
def edges(request, tmp_path_factory):
    return built(tmp_path_factory.mktemp("edges"), f"-fsanitize={request.param}", "-fno-sanitize-recover=all")


@pytest.mark.skipif(not FULL, reason="as before a release: DRE_FULL=1")
@pytest.mark.parametrize("what", ["log", "storm", "loop", "file"])
def test_valgrind_finds_nothing(tmp_path, log, what):
    valgrind = ["valgrind", "--quiet", "--leak-check=full", "--child-silent-after-fork=yes", "--error-exitcode=9"]
    env = {**environment(), "DAWARE_LOG": str(log.path)}
    assert call(*valgrind, built(tmp_path), what, tmp_path, env=env).splitlines()[-1] == "0 failures"


class Log:
    """The socket of a log at *path*; with *reading* no record waits."""

    def __init__(self, path):
        self.path = path
        self.open()

    def open(self):
        with contextlib.suppress(FileNotFoundError):
            self.path.unlink()
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
        self.socket.bind(str(self.path))

    def read(self):
        """What is there now, each record in its parts."""
        found = []
        with contextlib.suppress(BlockingIOError):
            while octets := self.socket.recv(1 << 20):
                assert len(octets) <= 8192
                record = RECORD.fullmatch(octets.decode())  # which it is: UTF-8
                assert record, octets
                found.append(record)
        return found


@pytest.fixture
def log(tmp_path):
    log = Log(tmp_path / "log")
    yield log
    log.socket.close()


def started(edges, what, log, **variables):
    env = {**environment(), "DAWARE_LOG": str(log.path), **variables}
    return subprocess.Popen(
        [edges, what], env=env, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )


def line(process):
    return process.stdout.readline().rstrip("\n")


def ended(process):
    rest = process.communicate(timeout=60)[0]
    assert process.returncode == 0, rest
    return rest.splitlines()


def test_records_are_of_rfc_5424_whatever_is_in_them(edges, log):
    assert ended(started(edges, "log", log))[-1] == "0 failures"
    plain, kv, utf, large, both, nothing, pairs, macro, once, *more = log.read()
    assert more == []
    assert (plain["pri"], plain["app"], plain["event"], plain["message"]) == ("27", "edge_s", "plain", "7 of them")
    assert kv["pri"] == str(19 * 8 + 6)
    assert kv["message"] == 'a]"\\b'
    assert kv["values"] == r' key="a\]\"\\b#012" b_d_key="' + 6 * "\ufffd" + '" none=""'
    assert (utf["event"], utf["message"]) == ("bad_utf", "\ufffd|\u20ac|\ufffd\ufffd|line#012end")
    assert re.fullmatch(r' cut="\d{7}"', large["values"]) and re.fullmatch("x{7000,}", large["message"])
    assert int(large["values"][6:-1]) + len(large["message"]) == 1 << 20
    assert "values-cut=" in both["values"] and "cut=" in both["values"]
    assert (nothing["event"], nothing["values"], nothing["message"]) == ("-", "", "")
    assert (pairs["values"], pairs["message"]) == (' one="1" two="2"', "of")
    assert abs(datetime.datetime.fromisoformat(plain["time"] + "+00:00").timestamp() - time.time()) < 60
    assert re.fullmatch(r' place="[^"]*daware_edges.c:\d+"', macro["values"])
    assert (macro["message"], once["event"]) == ("with place", "once")


def test_a_log_that_is_absent_and_one_that_is_restarted(edges, log):
    log.path.unlink()
    process = started(edges, "absent", log)
    assert line(process) == "absent"
    log.socket.close()
    log.open()
    process.stdin.write("\n")
    process.stdin.flush()
    assert line(process) == "sent"
    (first,) = log.read()
    assert first["values"] == ' dropped="30"'
    log.socket.close()
    log.open()
    process.stdin.write("\n")
    assert ended(process) == ["0 failures"]
    (second,) = log.read()
    assert (second["event"], second["values"]) == ("again", "")


def test_a_log_that_is_full_holds_nobody_up_and_what_was_lost_is_counted(edges, log):
    process = started(edges, "full", log)
    lost, word = line(process), line(process)
    assert word == "full"
    assert len(log.read()) == 2000 - int(lost)
    process.stdin.write("\n")
    assert ended(process) == ["0 failures"]
    first, second = log.read()
    assert (first["values"], second["values"]) == (f' dropped="{lost}"', "")


def test_many_threads_and_forks_in_the_middle(edges, log):
    process = started(edges, "threads", log)
    found = []
    while process.poll() is None:
        found += log.read()
    lost, failures = ended(process)
    found += log.read()
    assert failures == "0 failures"
    threads = [record for record in found if record["event"] == "thread"]
    assert {record["pid"] for record in threads} == {str(process.pid)}
    assert len(threads) + int(lost) == 64 * 50
    assert str(process.pid) not in {record["pid"] for record in found if record["event"] == "child"}


@pytest.mark.parametrize("what", ["storm", "loop", "terminate"])
def test_signals(edges, log, what):
    assert ended(started(edges, what, log))[-1] == "0 failures"


def test_a_file_is_saved_as_a_whole_and_nothing_else_is_left(edges, tmp_path):
    (tmp_path / "place").mkdir()
    assert call(edges, "file", tmp_path / "place") == "0 failures\n"
    assert [path.name for path in (tmp_path / "place").iterdir()] == ["saved"]


@pytest.mark.parametrize("abstract", [False, True], ids=["path", "abstract"])
def test_it_saves_before_it_ends_and_says_how_that_went(edges, log, tmp_path, abstract):
    name = f"\0daware-test-{os.getpid()}" if abstract else str(tmp_path / "notify")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(name)
        manager.settimeout(30)
        process = started(edges, "save", log, NOTIFY_SOCKET=name.replace("\0", "@"))
        assert line(process) == "ready"
        assert [manager.recv(1000) for _ in range(3)] == [b"READY=1", b"STATUS=at work ", b"WATCHDOG=1"]
        process.send_signal(signal.SIGHUP)
        assert line(process) == "reloaded"
        process.send_signal(signal.SIGTERM)
        assert process.stdout.read().splitlines() == ["first 15 in time", "second 15 in time", "third 15 in time"]
        assert process.wait(30) == -signal.SIGTERM
        assert manager.recv(1000) == b"STOPPING=1"
        assert re.fullmatch(rb"STATUS=not all is saved: 0,-5,0 in \d+ ms", manager.recv(1000))
    (record,) = log.read()
    assert (record["event"], record["pri"], record["message"]) == ("save", "27", "not all is saved")
    assert re.fullmatch(r' signal="Terminated" results="0,-5,0" ms="\d+"', record["values"])


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root, for a PID namespace")
def test_the_first_process_of_a_container_ends_as_well(edges, log):
    argv = ["unshare", "--pid", "--fork", "--kill-child", edges, "save"]
    env = {**environment(), "DAWARE_LOG": str(log.path)}
    process = subprocess.Popen(argv, env=env, stdout=subprocess.PIPE, text=True)
    assert line(process) == "ready"
    os.kill(int(child_of(process.pid)), signal.SIGTERM)
    assert line(process) == "first 15 in time"
    assert process.wait(30) == 128 + signal.SIGTERM


# --- the library as it is built, and the commands ---


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """The directory of the library, the commands and the examples, as `make` builds them."""
    place = tmp_path_factory.mktemp("libdaware")
    tools = [place / path.stem for path in LIBRARY.glob("tools/*.c")]
    assert len(tools) == 4
    call("make", "-C", LIBRARY, f"BUILD={place}", "CFLAGS=-O2 -g -Werror", "libraries", "examples", *tools)
    return place


@pytest.fixture
def tool(made, log):
    """tool(NAME, WORD…): one of the commands, started."""

    def start(name, *words, **variables):
        env = {**environment(), "DAWARE_LOG": str(log.path), "LD_LIBRARY_PATH": str(made), **variables}
        argv = [made / name, *map(str, words)]
        return subprocess.Popen(argv, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)

    return start


def outcome(process):
    out, err = process.communicate(timeout=60)
    return process.returncode, out, err


def declared():
    """The functions that the header declares, by name, with their blanks evened out and without attributes."""
    header = (LIBRARY / "include/daware.h").read_text()
    text = re.sub(r"/\*.*?\*/|\s+__attribute__\(\([^;]*?\)\)(?=;)", "", header, flags=re.DOTALL)
    lines = re.findall(r"^(?:int|void|const char \*) ?(daware_\w+)(\([^;{]*\));", text, re.MULTILINE)
    return {name: " ".join(f"{name}{rest}".split()) for name, rest in lines}


def test_the_library_shows_what_its_header_declares_and_nothing_else(made):
    lines = call("nm", "-D", "--defined-only", made / "libdaware.so.0").splitlines()
    names = {line.split()[-1].split("@")[0] for line in lines}
    assert names == set(declared()) | {"LIBDAWARE_0"}


def test_the_manual_declares_what_the_header_does():
    manual = " ".join((LIBRARY / "man/libdaware.3.rst").read_text().split())
    behind_macros = ("daware_log_at", "daware_due")
    assert [what for name, what in declared().items() if name not in behind_macros and what not in manual] == []


@pytest.mark.skipif(not shutil.which("abidiff", path="/usr/bin"), reason="needs abigail-tools")
@pytest.mark.skipif(os.uname().machine != "x86_64", reason="the record is of x86_64")
def test_the_interface_is_the_one_on_record(made):
    """What was added, compatible or not, is recorded by tests/c/record-abi."""
    options = ["--exported-interfaces-only", "--no-show-locs"]
    assert call("abidiff", *options, ROOT / "tests/c/libdaware.abi", made / "libdaware.so.0") == ""


def test_by_dlopen_and_from_cpp(made, log, tmp_path):
    library = ctypes.CDLL(str(made / "libdaware.so.0"), mode=os.RTLD_LOCAL | os.RTLD_NOW)
    assert library.daware_log(3, b"event", b"text") == -errno.ENOTCONN
    source = tmp_path / "user.cpp"
    source.write_text(
        '#include <daware.h>\nint main() { if (daware_open("cpp", 0)) return 1;\n'
        'DAWARE_ONCE(DAWARE_ERR("event", "%s", "text")); daware_close(); return 0; }\n'
    )
    libraries = [f"-L{made}", f"-Wl,-rpath,{made}", "-ldaware"]
    call("g++", "-Wall", "-Wextra", "-Werror", f"-I{LIBRARY}/include", source, *libraries, "-o", tmp_path / "user")
    call(tmp_path / "user", env={**environment(), "DAWARE_LOG": str(log.path)})
    (record,) = log.read()
    assert (record["app"], record["message"]) == ("cpp", "text")


@pytest.mark.parametrize("name", ["daware-log", "daware-notify", "daware-pid", "daware-run"])
def test_a_command_tells_how_it_is_called(tool, name):
    status, out, err = outcome(tool(name, "--help"))
    assert (status, err) == (0, "") and out.startswith(f"usage: {name} ")
    assert outcome(tool(name, "--version"))[:2] == (0, f"{name} (D-RE) {VERSION}\n")
    for words in (["--no-such-option"], []):
        status, out, err = outcome(tool(name, *words))
        assert (status, out) == (2, "") and f"usage: {name} " in err
    page = (LIBRARY / f"man/{name}.1.rst").read_text()
    source = (LIBRARY / f"tools/{name}.c").read_text()
    assert [option for option in re.findall(r'\{"([a-z-]+)", required', source) if f"**--{option}**" not in page] == []


def test_daware_log(tool, log):
    words = ["-p", "err", "--ident", "job", "done", "all is saved", "octets=5", "who=a=b"]
    assert outcome(tool("daware-log", *words)) == (0, "", "")
    (record,) = log.read()
    assert (record["pri"], record["app"], record["event"], record["message"]) == ("27", "job", "done", "all is saved")
    assert record["values"] == ' octets="5" who="a=b"'
    assert outcome(tool("daware-log", "done", "text", "=5"))[0] == 2
    assert outcome(tool("daware-log", "-p", "loud", "done", "text"))[0] == 2
    log.path.unlink()
    missing = "daware-log: the log takes nothing: No such file or directory\n"
    assert outcome(tool("daware-log", "done", "text")) == (1, "", missing)


def test_daware_notify(tool, tmp_path):
    assert outcome(tool("daware-notify", "ready")) == (0, "", "")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(str(tmp_path / "notify"))
        manager.settimeout(30)
        for told, *words in ((b"READY=1", "ready"), (b"STATUS=100%s", "status", "100%s"), (b"WATCHDOG=1", "heartbeat")):
            assert outcome(tool("daware-notify", *words, NOTIFY_SOCKET=str(tmp_path / "notify"))) == (0, "", "")
            assert manager.recv(1000) == told
            assert outcome(tool("daware-notify", *words, DAWARE_NOTIFY=str(tmp_path / "notify"))) == (0, "", "")
            assert manager.recv(1000) == told
    assert outcome(tool("daware-notify", "ready", NOTIFY_SOCKET="/nowhere"))[0] == 1
    assert outcome(tool("daware-notify", "ready", DAWARE_NOTIFY="/nowhere")) == (0, "", ""), "mostly nobody hears it"


def test_daware_run_saves_then_ends_the_program(tool, log, tmp_path):
    program = f"trap 'cat {tmp_path}/saved >{tmp_path}/seen; exit 7' TERM; echo ready; while :; do sleep 0.05; done"
    process = tool("daware-run", "--on-save", f"echo $DAWARE_SAVE_MS >{tmp_path}/saved", "--", "sh", "-c", program)
    assert line(process) == "ready"
    process.terminate()
    assert outcome(process)[0] == 7
    assert 5000 < int((tmp_path / "seen").read_text()) <= 10000
    (record,) = log.read()
    assert (record["app"], record["event"], record["message"]) == ("sh", "save", "all is saved")


def test_daware_run_does_not_wait_for_ever(tool, log):
    words = ["--on-save", "sleep 60", "--save-time", "0.2", "sh", "-c", "trap '' TERM; echo ready; sleep 60"]
    process = tool("daware-run", *words)
    assert line(process) == "ready"
    process.terminate()
    assert process.wait(30) == 128 + signal.SIGKILL
    (record,) = log.read()
    assert f'results="-{errno.ETIMEDOUT}"' in record["values"]


def test_daware_run_passes_on_how_the_program_ended(tool):
    assert outcome(tool("daware-run", "sh", "-c", "echo out; exit 5"))[:2] == (5, "out\n")
    assert outcome(tool("daware-run", "sh", "-c", "kill -9 $$"))[0] == 137
    assert outcome(tool("daware-run", "/nowhere"))[0] == 127


def test_the_counter_goes_on_where_it_was_ended(tool, tmp_path):
    counts = []
    for _ in range(2):
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
            name = tmp_path / f"notify{len(counts)}"
            manager.bind(str(name))
            manager.settimeout(30)
            process = tool("counter", tmp_path / "count", NOTIFY_SOCKET=str(name))
            assert manager.recv(1000) == b"READY=1"
        time.sleep(0.1)
        process.terminate()
        assert process.wait(30) == -signal.SIGTERM
        counts.append(int((tmp_path / "count").read_text()))
    assert 0 < counts[0] < counts[1]


PYTHON = """
import daware, os, signal, subprocess, sys, time
try:
    daware.log(daware.ERR, "early", "x")
except OSError as error:
    print(error.errno)
daware.open("snake")
daware.log(daware.WARNING, "begun", "a \\0 and \\udcff", path="/x", number=5)
daware.on_signal(signal.SIGUSR1, lambda number, sender: print("signal", number, sender == os.getpid(), flush=True))
daware.on_reload(lambda: print("reloaded", flush=True))
daware.on_save(2, lambda number, left: 1 / 0)
daware.on_save(1, lambda number, left: daware.save_file(sys.argv[1], b"saved"))
daware.on_save(3, lambda number, left: daware.save_file("/nowhere/at/all", b"saved"))
daware.ready(), daware.status("100%s"), daware.heartbeat()
print(daware.pid_inside(os.getpid(), os.getpid()) == os.getpid(), daware.dropped(), daware.version(), flush=True)
sleeper = subprocess.Popen(["sleep", "60"])
print(daware.terminate(sleeper.pid, 20000), sleeper.wait(), flush=True)
while True:
    time.sleep(1)
"""


def test_from_python(made, log, tmp_path):
    env = {**environment(), "DAWARE_LOG": str(log.path), "LD_LIBRARY_PATH": str(made)}
    env["PYTHONPATH"] = str(LIBRARY / "python")
    argv = ["/usr/bin/python3", "-c", PYTHON, tmp_path / "saved"]
    process = subprocess.Popen(argv, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert [line(process) for _ in range(3)] == ["107", f"True 0 {VERSION}", "False -15"]
    process.send_signal(signal.SIGUSR1)
    assert line(process) == f"signal {signal.SIGUSR1:d} False"
    process.send_signal(signal.SIGHUP)
    assert line(process) == "reloaded"
    process.terminate()
    status, _, err = outcome(process)
    assert status == -signal.SIGTERM and "ZeroDivisionError" in err
    assert (tmp_path / "saved").read_text() == "saved"
    begun, save = log.read()
    assert (begun["app"], begun["pri"], begun["message"]) == ("snake", "28", "a #000 and \ufffd")
    assert begun["values"] == ' path="/x" number="5"'
    assert f'results="0,-{errno.ECANCELED},-{errno.ENOENT}"' in save["values"]


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root, for a PID namespace")
def test_a_program_that_begins_in_a_container_is_heard_of_outside(edges, tool, log, public_path):
    place = public_path / "daware.sock"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as stale:
        stale.bind(str(place))
    listening = tool("daware-pid", "listen", place)
    env = {**environment(), "DAWARE_LOG": str(log.path), "DAWARE_ANNOUNCE": str(place)}
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as other:
            while other.connect_ex(str(place)) != 0:
                time.sleep(0.05)
            for text in (b"", b"PID=", b"IDENT=x", b"PID=1\nIDENT=\x1b[2J", b"x" * 10000):
                other.send(text)
        taken = f"daware-pid: {place}: Address already in use\n"
        assert outcome(tool("daware-pid", "listen", place)) == (1, "", taken)
        outcome(tool("daware-log", "event", "no program", DAWARE_ANNOUNCE=str(place)))
        argv = ["unshare", "--pid", "--fork", "--kill-child", "setpriv", "--reuid=65534", edges, "save"]
        with subprocess.Popen(argv, env=env, stdout=subprocess.PIPE, text=True) as process:
            ready, heard, outer = line(process), line(listening), child_of(process.pid)
            process.kill()
        assert (ready, heard) == ("ready", f"{outer} 1 65534 edges")
    finally:
        listening.kill()
        assert outcome(listening)[1] == ""


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root, for a PID namespace")
@pytest.mark.parametrize(
    "flags",
    [(), ("-DDAWARE_WITHOUT_MODULE",), ("-DDAWARE_WITHOUT_MODULE", "-DDAWARE_WITHOUT_IOCTL")],
    ids=["best", "ioctl", "nspid"],
)
def test_which_process_is_which(tmp_path, tool, flags):
    edges = built(tmp_path, *flags)
    argv = ["unshare", "--pid", "--fork", "--kill-child", "sh", "-c", "sleep 60 & echo $!; wait"]
    with subprocess.Popen(argv, env=environment(), stdout=subprocess.PIPE, text=True) as process:
        try:
            inner = line(process)
            shell = child_of(process.pid)
            sleep = child_of(shell)
            assert inner == "2"
            for outer, number in ((shell, 1), (sleep, inner)):
                assert call(edges, "pid", outer, number) == "0 failures\n"
                assert outcome(tool("daware-pid", "inside", outer)) == (0, f"{number}\n", "")
                assert outcome(tool("daware-pid", "outside", number, shell)) == (0, f"{outer}\n", "")
            assert outcome(tool("daware-pid", "inside", os.getpid(), shell))[0] == 3
            assert outcome(tool("daware-pid", "outside", 3999, shell))[0] == 3
        finally:
            process.kill()
