# SPDX-License-Identifier: Apache-2.0
"""dre-lms on a real guest: what a root-kit hides there is named from outside, and a busy guest is not accused."""

import contextlib
import json
import os
import pathlib
import re
import subprocess
import time

import dboxkit
import dscriptkit
import pytest
from guests import READY
from module_guest import compiled, give
from programs import ROOT, environment, program

FULL = os.environ.get("DRE_FULL") == "1"
SCANS = 10_000 if FULL else 20
NAMES = {"list", "idr", "tree"}
# Processes come and go as fast as they can, with threads and in namespaces of their own; a module comes and goes.
STORM = """
for name in one two; do
    setsid sh -c 'while :; do (true); done' </dev/null >/dev/null 2>&1 &
done
setsid sh -c 'while :; do unshare --fork --pid true; modprobe dummy; rmmod dummy; done' </dev/null >/dev/null 2>&1 &
"""
# Containers come and go, too; each is counted.
CONTAINERS = """
setsid sh -c 'n=0
while :; do
    dre-app create storm --ip none -- /bin/sleep 1000 && dre-app start storm && dre-app destroy --force storm &&
        n=$((n + 1)) && echo $n >/root/containers
done' </dev/null >/root/containers.log 2>&1 &
"""
# A task for each level of tests/vm/lms_rootkit; at the end the root-kit itself is hidden, too.
HIDE = """
for level in 1 2 3; do
    setsid sleep 1000$level </dev/null >/dev/null 2>&1 &
    echo $!
done
sleep 1
for level in 1 2 3; do
    insmod /root/hider.ko pid=$(pgrep -f -x "sleep 1000$level") level=$level
    rmmod hider
done
insmod /root/hider.ko hide=2
"""
# What a way of tests/vm/lms_rootkit/hooker.c is told as, and whether it hides a file from ls(1) with any kernel.
WAYS = {
    "table": ("syscall", "getdents64 217", False),
    "dispatch": ("dispatch", "__x64_sys_getdents64", True),
    "jump": ("function", "__x64_sys_getdents64", True),
    "ftrace": ("ftrace", "__x64_sys_getdents64", True),
    "probe": ("probe", "filldir64", True),
    "return": ("probe", "filldir64", False),
    "gate": ("interrupt", "21", False),
}
KEPT = ["module-1-hooker.core", "report.json", "SHA256SUMS"]
SECRET = b'secret"is"this' * 3  # nowhere in its program
# A process that has a file, a socket and something in memory, and then is hidden.
EVIL = """
import os, socket
held = open('/root/held', 'w')
door = socket.create_server(('127.0.0.1', 4444))
word = ''.join(chr(ord(c) + 1) for c in 'rdbqds!hr!sghr') * 3
if os.fork() == 0:
    os.setsid()
    import time
    time.sleep(100000)
"""
TRACING = "/sys/kernel/tracing"
# The kernel's own: kprobes at the begin of functions, by the function tracer; behind it, which get optimised; events of
# system calls; and the tracer of functions.
TRACE = f"""set -e
mountpoint -q {TRACING} || mount -t tracefs tracefs {TRACING}
mountpoint -q /sys/kernel/debug || mount -t debugfs debugfs /sys/kernel/debug
cd {TRACING}
echo p:one __x64_sys_getdents64 >kprobe_events
echo r:two do_sys_openat2 >>kprobe_events
for name in openat close read write newfstat; do
    echo p:at_$name __x64_sys_$name+5 >>kprobe_events || echo p:at_$name __x64_sys_$name+9 >>kprobe_events
done
echo 1 >events/kprobes/enable
echo 1 >events/syscalls/enable
echo '__x64_sys_*' >set_ftrace_filter
echo function >current_tracer
n=0
until grep -q OPTIMIZED /sys/kernel/debug/kprobes/list; do
    n=$((n + 1))
    [ $n -lt 60 ] || {{ cat /sys/kernel/debug/kprobes/list; exit 1; }}
    sleep 1
done
"""


@pytest.fixture
def kit(guest, tmp_path_factory):
    """The root-kits for the kernel that runs in the guest, which has them as /root/hider.ko and /root/hooker.ko."""
    give(guest, "lms_rootkit", tmp_path_factory.getbasetemp())


def lms(host, *argv, conf=None, **kwargs):
    """dre-lms on the host of the guests."""
    return host.call(program("dre-lms"), "--config", conf or host.conf, "guest1", *argv, check=False, **kwargs)


def found(host, *argv):
    """What it finds, by number or name: what that is missing in."""
    done = lms(host, "--json", *argv, timeout=3600)
    assert done.returncode == 1, done.stdout + done.stderr
    rows = [json.loads(line) for line in done.stdout.splitlines()]
    return {row.get("pid", row.get("name")): set(row["views_missing"]) for row in rows}


def recorded(box, stream, net):
    """The octets of each entry of *stream* of a D-Box in the network *net*, proven, by its number in the stream."""
    found, place = {}, box.path / "entry"
    for line in box.good("dbox-get", "--json", "--search", f"stream={stream}", before=net).splitlines():
        row = json.loads(line)
        octets, proof = (box.good("dbox-get", row["index"], word, before=net) for word in ("--octets", "--proof"))
        place.write_bytes(octets)
        place.with_suffix(".proof").write_bytes(proof)
        box.good("dbox-verify", place.with_suffix(".proof"), place)
        found[int(row["seq"])] = octets
    return found


def private(host):
    """Let the guest go on with memory that no other process can map."""
    place = "/run/dre-vm/guest1.save"
    host.virsh("save", "guest1", place)
    shared = host.virsh("save-image-dumpxml", place)
    (host.place / "private.xml").write_text(re.sub("<access mode='shared'/>", "<access mode='private'/>", shared))
    host.virsh("restore", place, "--xml", host.seen / "private.xml")


def test_what_is_hidden_is_named_and_a_busy_guest_is_not_accused(guest, ground, kit):
    guest.ok(STORM + (CONTAINERS if FULL else ""))
    done = lms(ground, "--interval", "20ms", "--count", SCANS, timeout=3600)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    if FULL:
        assert int(guest.ok("cat /root/containers")) >= 3, guest.ok("tail /root/containers.log")
    first, second, third = map(int, guest.ok(HIDE).split())
    assert guest.call(f"ps -p {second},{third}").returncode == 1  # inside there is no trace of them
    assert guest.call("grep hider /proc/modules || ls /sys/module/hider").returncode != 0
    hidden = {first: {"list"}, second: NAMES, third: NAMES, "hider": {"list", "sysfs", "tree"}}
    assert found(ground) == hidden
    seen = [json.loads(line) for line in lms(ground, "--ps", "--json").stdout.splitlines()]
    assert {row["pid"]: row["comm"] for row in seen if row["views_missing"]} == dict.fromkeys(
        (first, second, third), "sleep"
    )
    private(ground)
    assert found(ground, "--interval", "20ms", "--count", SCANS) == hidden


def test_hooks_are_named_and_gone_when_they_are_put_back(guest, ground, kit):
    guest.ok("touch /root/hidden-by-the-kit")
    for way, (kind, name, hides) in WAYS.items():
        guest.ok(f"insmod /root/hooker.ko way={way}")
        assert not hides or "hidden-by-the-kit" not in guest.ok("ls /root").split(), way
        done = lms(ground, "--json")
        rows = [json.loads(line) for line in done.stdout.splitlines()]
        told = [(row["type"], row["hook"], row["name"], row["module"]) for row in rows]
        assert (done.returncode, told) == (1, [("sysmon.hook", kind, name, "hooker")]), way
        guest.ok("rmmod hooker")
        assert "hidden-by-the-kit" in guest.ok("ls /root").split()
    done = lms(ground)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


@pytest.mark.skipif(not FULL, reason="takes a guest of its own: DRE_FULL=1, as before a release")
def test_what_the_kernel_hooks_itself_is_not_told(guest, ground, tmp_path):
    """Its tracer of functions, kprobes, optimised or not, events of system calls, and programs of BPF at functions."""
    guest.push(compiled("bpf_at", tmp_path), "/root/bpf_at")
    told = guest.ok("/root/bpf_at __x64_sys_getdents64 __x64_sys_umask")
    assert told.count("at __x64_sys_") == 2
    guest.ok(TRACE)
    done = lms(ground, "--interval", "100ms", "--count", "20")
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert "bpf_trampoline" in guest.ok("grep bpf_trampoline /proc/kallsyms")  # else it proves nothing
    guest.ok(f"grep -q __x64_sys_ {TRACING}/trace && grep -q OPTIMIZED /sys/kernel/debug/kprobes/list")


def test_a_report_has_what_a_hidden_process_has(guest, ground, kit):
    guest.ok(["sh", "-c", 'printf %s "$0" >/root/evil.py', EVIL])
    guest.ok("cd / && python3 /root/evil.py </dev/null >/dev/null 2>&1")
    pid = int(guest.ok("pgrep -f -x 'python3 /root/evil.py'"))
    seen = guest.ok(["cat", f"/proc/{pid}/maps"]).splitlines()
    maps = [line.split() for line in seen if "[vsyscall]" not in line]
    guest.ok(f"insmod /root/hider.ko pid={pid} level=2")
    done = lms(ground, "--report", ground.seen / "report")
    assert done.returncode == 1, done.stdout + done.stderr
    place = ground.place / "report"
    told = json.loads((place / f"task-{pid}.json").read_text())
    assert told["arguments"] == ["python3", "/root/evil.py"] and told["exe"].startswith("/usr/bin/python3")
    assert (told["cwd"], told["root"], told["memory"]["complete"]) == ("/", "/", True)
    assert "/root/held" in [file["path"] for file in told["files"]]
    (door,) = told["sockets"]
    assert (door["family"], door["state"], door["local"]) == ("inet", "LISTEN", "127.0.0.1:4444")
    core, held = (place / f"memory-{pid}.core").read_bytes(), told["memory"]["octets"]
    assert SECRET not in EVIL.encode() and SECRET in core, f"{core.count(SECRET[:14])} words in {held} octets"
    check = subprocess.run(["sha256sum", "--check", "SHA256SUMS"], cwd=place, capture_output=True)
    assert check.returncode == 0, check.stdout
    areas = [(area["begin"], area["end"], area["file"]) for area in told["memory"]["areas"]]
    lines = [(*words[0].split("-"), words[5] if words[5:] and words[5][0] == "/" else None) for words in maps]
    assert areas == [(f"{int(begin, 16):#x}", f"{int(end, 16):#x}", name) for begin, end, name in lines]


def test_a_report_is_evidence_in_the_dbox_when_there_is_one(guest, ground, kit):
    """What was found while it was away waits for it; dbox-verify and sha256sum are the witnesses."""
    guest.ok("insmod /root/hooker.ko way=table")
    box, net = dboxkit.copy(), ("nsenter", "--net", "--target", str(ground.first_pid()), "--")
    try:
        box.good("dbox-init", "--client", "sysmon", "--role", "writer")
        conf = ground.place / "dbox.conf"
        added = f'DRE_DBOX_CERTS_DIR="{box.certs}"\nDRE_DBOX_URL="https://localhost:{box.port}"\n'
        conf.write_text(ground.conf.read_text() + added)
        conf.chmod(0o644)
        away = lms(ground, "--report", ground.seen / "one.tar", conf=conf)
        assert away.returncode == 1 and "waits for the D-Box" in away.stderr, away.stdout + away.stderr
        box.start(before=net)
        done = lms(ground, "--report", ground.seen / "two", conf=conf)
        assert (done.returncode, done.stderr) == (1, ""), done.stdout + done.stderr
        events = [json.loads(octets)["data"] for octets in recorded(box, "sysmon", net).values()]
        assert [event["path"] for event in events] == [str(ground.seen / name) for name in ("one.tar", "two")]
        pieces = recorded(box, "sysmon-report", net)
        for event in events:
            whole = b"".join(pieces[number] for number in range(event["first"], event["last"] + 1))
            (ground.place / "back.tar").write_bytes(whole)
            digest = subprocess.run(["sha256sum", ground.place / "back.tar"], capture_output=True, text=True).stdout
            assert digest.split()[0] == event["archive"]
            names = subprocess.run(["tar", "-tf", ground.place / "back.tar"], capture_output=True, text=True).stdout
            assert [name.partition("/")[2] for name in names.split()] == KEPT
        assert whole.count(b"hidden-by-the-kit") > 0  # the module's code
        assert (ground.place / "one.tar").stat().st_size == events[0]["octets"]
    finally:
        dboxkit.remove(box)


def test_the_processes_of_a_guest_are_those_that_it_knows(guest, ground):
    def outside():
        done = lms(ground, "--ps", "--json")
        assert done.returncode == 0, done.stdout + done.stderr
        return {(row["pid"], row["ppid"], row["comm"]) for row in map(json.loads, done.stdout.splitlines())}

    def inside():
        words = (line.split(None, 2) for line in guest.ok("ps -e -o pid=,ppid=,comm=").splitlines())
        return {(int(pid), int(ppid), name[:15]) for pid, ppid, name in words if not name.startswith("kworker")}

    first, seen, second, again = inside(), outside(), inside(), outside()
    assert first & second - seen == set()  # what was there all the time
    assert {row for row in seen & again if not row[2].startswith("kworker")} - second == set()
    assert len(seen) > 50


def test_a_system_that_does_not_run_or_is_none_is_not_clean(guest, ground):
    guest.stop()
    done = lms(ground)
    assert done.returncode == 6 and "does not run" in done.stderr
    assert ground.call(program("dre-lms"), "--config", ground.conf, "nosuch", check=False).returncode == 3


# As the shipped shop-intruder.yaml, with a look that an event asks for, and a way back that this guest has.
INTRUDER = f"""\
dscript: 1
name: intruder
monitors:
  - {{id: hidden, watch: sysmon, finding: hidden.process, system: guest1, within: 1h}}
responses:
  - id: look
    when: {{event: shop.look}}
    steps: [{{action: scan, system: guest1, finding: hidden.process, timeout: 5m}}]
    at-most: {{attempts: 9, per: 1h}}
    then: call
  - id: clean
    when: hidden
    steps:
      - {{action: isolate, system: guest1, timeout: 1m, revert: never}}
      - {{action: checkpoint, system: guest1, tag: found, timeout: 10m}}
      - {{action: undo, system: guest1, tag: {READY}, timeout: 10m}}
      - {{action: rejoin, system: guest1, timeout: 1m}}
      - {{action: notify, to: owner, text: guest1 had a hidden process}}
    at-most: {{attempts: 1, per: 1d}}
    then: call
  - {{id: call, steps: [{{action: notify, to: owner}}]}}
"""


class Watched:
    """The monitor and the engine, which is a user of its own, at work on the host of the guests."""

    def __init__(self, host):
        self.host, self.place, self.processes = host, host.place, []
        self.conf = host.seen / "script.conf"
        text = host.conf.read_text() + f'DRE_MONITOR_PIPES="{host.seen}/run/script"\n'
        rules = (ROOT / "sec-monitor/rules/shop.sec").read_text()
        for path, octets in ((self.conf, text), ("etc/rules.d/shop.sec", rules), ("intruder.yaml", INTRUDER)):
            host.call("install", "-D", "-m", "644", "/dev/stdin", host.seen / path, stdin=octets.encode())
        host.call("rm", "-rf", host.seen / "state/spool/event")  # what other tests found, for a monitor to take in

    def __enter__(self):
        self.begin("dre-monitor", "run", "--without", "watch")
        self.wait((self.place / "run/events.sock").exists, "the intake")
        self.begin("dscript", "run", "--user", "daemon", self.host.seen / "intruder.yaml")
        self.wait(lambda: self.records("start"), "the engine")
        return self

    def __exit__(self, *error):
        for process in self.processes:
            children = pathlib.Path(f"/proc/{process.pid}/task/{process.pid}/children")  # of nsenter, which waits
            with contextlib.suppress(FileNotFoundError, ValueError, ProcessLookupError):
                os.kill(int(children.read_text()), 15)
        for process in self.processes:
            process.wait(60)

    def begin(self, name, *words):
        env = environment()
        env["PATH"] = ":".join(
            sorted({str(pathlib.Path(program(p)).parent) for p in ("dre-sys", "dre-lms")}) + [env["PATH"]]
        )
        argv = [*self.host.inside, program(name), "--config", self.conf, *words]
        log = (self.place / f"{name}.log").open("wb")
        self.processes.append(subprocess.Popen(list(map(str, argv)), env=env, stderr=log))

    def wait(self, condition, what, timeout=60):
        deadline = time.monotonic() + timeout
        while not (found := condition()):
            assert time.monotonic() < deadline, f"{what}: not within {timeout} s: {self.said()}"
            time.sleep(0.1)
        return found

    def said(self):
        return [path.read_text()[-2000:] for path in self.place.glob("d*.log")] + self.records("outcome")

    def records(self, kind):
        return dscriptkit.records(self.place, kind)

    def told(self, type):
        return [data for one in self.records("tell") if f'"type":"{type}"' in one["line"]
                for data in [json.loads(one["line"])["data"]]]  # fmt: skip

    def ends(self):
        return [(end["response"], end["outcome"]) for end in self.told("script.response.done")]

    def look(self, number):
        """Have a script look into the guest; whether it found something."""
        self.host.call(program("dre-event"), "--config", self.conf, "--send", "shop.look")
        return self.wait(lambda: self.told("script.scan")[number - 1 :], "the look", 300)[0]["result"]


def test_a_script_has_it_look_and_what_is_found_is_cut_off_kept_and_undone(guest, ground, kit):
    """By the real monitor, engine, dre-lms and dre-sys; the guest, its disk and libvirt tell what was done."""
    port = ground.virsh("domiflist", "guest1").split()[0]
    guest.ok("touch /root/mark")
    with Watched(ground) as watched:
        assert watched.look(1) == "clean"
        done = guest.call(HIDE)
        assert done.returncode == 0, (done.stderr, watched.said(), watched.records("event"))
        hidden = done.stdout.split()[1]
        assert watched.look(2) == "finding"
        watched.wait(lambda: ("clean", "done") in watched.ends(), "the response", 600)
        outcomes = [one for one in watched.records("outcome") if one["response"] == "clean"]
        assert [one["error"] for one in outcomes] == [None] * 5
        assert [outcomes[0][when]["isolated"] for when in ("before", "after")] == [False, True]
        raised = [one for one in watched.records("event") if '"sysmon.hidden.process"' in one["line"]]
        assert hidden in [str(json.loads(one["line"])["data"]["pid"]) for one in raised if one["proven"]]
        assert set(ground.virsh("snapshot-list", "guest1", "--name").split()) == {READY, "found"}
        assert ground.virsh("domif-getlink", "guest1", port).split()[-1] == "up"
        assert guest.call("ls /root/mark").returncode != 0  # it is as it was before all this
        assert watched.look(3) == "clean"
    ground.dre("checkpoint", "delete", "guest1", "found")
    assert "guest1 had a hidden process" in (ground.place / "log/notify.log").read_text()
