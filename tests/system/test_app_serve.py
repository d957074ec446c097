# SPDX-License-Identifier: Apache-2.0
"""dre-app --serve with real apps: a whole life in one process, programs captured, deadlines that leave nothing."""

import base64
import json
import os
import pathlib
import select
import signal
import subprocess
import time

import app_ground
import pytest
from conftest import environment, program

NAME = "t-serve"


class Server:
    """One dre-app --serve, asked request by request."""

    def __init__(self, config):
        argv = [program("dre-app"), "--config", config, "--serve"]
        self.process = subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment())
        self.number = 0

    def send(self, *argv, **more):
        self.number += 1
        line = json.dumps({"id": self.number, "argv": list(map(str, argv)), **more})
        self.process.stdin.write(line.encode() + b"\n")
        self.process.stdin.flush()

    def __call__(self, *argv, code=0, **more):
        self.send(*argv, **more)
        assert select.select([self.process.stdout], [], [], 60)[0], f"{argv}: no answer"
        answer = json.loads(self.process.stdout.readline())
        assert (answer["id"], answer["code"]) == (self.number, code), f"{argv}: {answer}"
        return answer


@pytest.fixture(scope="module")
def tree(tmp_path_factory):
    return app_ground.make_tree(tmp_path_factory.mktemp("serve") / "tree")


@pytest.fixture
def serve(run, settings):
    with app_ground.Ground(run, settings) as ground:
        server = Server(ground.config)
        server.ground = ground
        try:
            yield server
        finally:
            server.process.kill()
            server.process.wait()
            server.process.stdout.close()


def outputs(answer):
    return answer["status"], base64.b64decode(answer["stdout"]), base64.b64decode(answer["stderr"])


def children(serve):
    """The processes that --serve has started."""
    return pathlib.Path(f"/proc/{serve.process.pid}/task/{serve.process.pid}/children").read_text().split()


def host_pids(marker):
    """The processes of this host whose arguments hold *marker*."""
    found = []
    for entry in pathlib.Path("/proc").glob("[0-9]*/cmdline"):
        try:
            if marker in entry.read_bytes().split(b"\0"):
                found.append(int(entry.parent.name))
        except OSError:
            pass  # it ended
    return found


def test_a_life(serve, tree):
    before = app_ground.picture(NAME)
    own = pathlib.Path(f"/proc/{serve.process.pid}/cgroup").read_text()
    for _ in range(2):
        serve("create", NAME, "--base", tree)
        serve("start", NAME)
        (row,) = serve("status", NAME)["rows"]
        assert (row["state"], pathlib.Path(f"/proc/{row['pid']}").exists()) == ("running", True)
        assert outputs(serve("exec", NAME, "--", "cat", "/etc/release")) == (0, b"from the tree\n", b"")
        (listed,) = serve("list")["rows"]
        assert (listed["pid"], listed.keys()) == (row["pid"], row.keys())
        serve("stop", NAME)
        assert serve("status", NAME, code=1)["rows"][0]["state"] == "stopped"
        serve("destroy", NAME)
        serve("status", NAME, code=3)
        assert app_ground.picture(NAME)["lxc"] == before["lxc"]
    # LXC moves whoever starts a container into its monitor's control group; the process stays where it was.
    assert pathlib.Path(f"/proc/{serve.process.pid}/cgroup").read_text() == own
    assert len(children(serve)) == 1  # the one that does the work
    serve.process.stdin.close()
    assert serve.process.wait(10) == 0


def test_exec(serve, tree):
    serve("create", NAME, "--ip", "none", "--base", tree)
    serve("exec", NAME, "--", "true", code=1)
    serve("start", NAME)
    script = "cat; echo err >&2; exit 7"
    stdin = base64.b64encode(bytes(range(256)) * 1000).decode()
    assert outputs(serve("exec", NAME, "--", "sh", "-c", script, stdin=stdin)) == (
        7,
        bytes(range(256)) * 1000,
        b"err\n",
    )
    assert outputs(serve("exec", NAME, "--", "no-such-program"))[0] == 127
    assert outputs(serve("exec", NAME, "--", "true", stdin=stdin)) == (0, b"", b"")  # stdin that nobody reads
    assert outputs(serve("exec", NAME, "--", "sh", "-c", "kill -9 $$"))[0] == 137
    # What stays in the background holds the output open.
    assert outputs(serve("exec", NAME, "--", "sh", "-c", "sleep 3471 & echo now")) == (0, b"now\n", b"")
    assert app_ground.wait_for(lambda: host_pids(b"3471"))  # the shell may not have become it yet
    # More than an answer can hold.
    answer = serve("exec", NAME, "--", "dd", "if=/dev/zero", "bs=1M", "count=3")
    assert answer["truncated"] is True and set(outputs(answer)[1]) == {0}
    assert outputs(answer)[2].count(b"\n") == 3


def test_deadline_ends_the_program_in_the_app(serve, tree):
    serve("create", NAME, "--ip", "none", "--base", tree)
    serve("start", NAME)
    answer = serve("exec", NAME, "--", "sh", "-c", "sleep 3472; true", code=5, deadline=0.5)
    assert "status" not in answer
    assert app_ground.wait_for(lambda: not host_pids(b"3472"))
    assert outputs(serve("exec", NAME, "--", "true"))[0] == 0


def test_what_a_killed_lxc_attach_ran_ends_with_it(serve, tree):
    serve("create", NAME, "--ip", "none", "--base", tree)
    serve("start", NAME)
    serve.send("exec", NAME, "--", "sh", "-c", "sleep 3473; true")
    assert app_ground.wait_for(lambda: host_pids(b"3473"))
    (attached,) = set(host_pids(b"--clear-env")) & set(host_pids(NAME.encode()))
    os.kill(attached, signal.SIGKILL)
    assert outputs(json.loads(serve.process.stdout.readline()))[0] == 137
    assert app_ground.wait_for(lambda: not host_pids(b"3473"))
    assert outputs(serve("exec", NAME, "--", "true"))[0] == 0
    serve("stop", NAME)


@pytest.mark.parametrize("part", [0.1, 0.5, 0.9])
def test_deadline_leaves_what_the_next_verb_ends(serve, tree, part):
    before = app_ground.picture(NAME)
    serve("create", NAME, "--base", tree)
    for verb in ("start", "stop", "start"):
        begun = time.monotonic()
        serve(verb, NAME)
        took = time.monotonic() - begun
    serve("stop", NAME)
    serve.send("start", NAME, deadline=max(part * took, 0.001))
    answer = json.loads(serve.process.stdout.readline())
    assert answer["code"] in (0, 5)
    serve("start", NAME)
    assert outputs(serve("exec", NAME, "--", "true"))[0] == 0
    serve("destroy", "--force", NAME)
    assert {**app_ground.picture(NAME), "links": None} == {**before, "links": None}


def test_a_killed_child_is_told_and_replaced(serve, tree):
    serve("list")
    (child,) = children(serve)
    os.kill(int(child), signal.SIGKILL)
    answer = serve("create", NAME, "--ip", "none", "--base", tree, code=1)
    assert "killed" in answer["error"]
    serve("create", NAME, "--ip", "none", "--base", tree)
    assert children(serve) != [child]


def test_work_does_not_outlive_the_process(serve, tree):
    serve(
        "create", NAME, "--ip", "none", "--base", tree, "--", "/bin/sh", "-c", "trap '' TERM; while :; do sleep 1; done"
    )
    serve("start", NAME)
    serve.send("stop", NAME, "--timeout", "50")
    working = children(serve)
    serve.process.send_signal(signal.SIGKILL)
    assert app_ground.wait_for(lambda: not any(pathlib.Path(f"/proc/{child}").exists() for child in working))
    assert serve.ground("stop", NAME, "--timeout", "0") == ""
    assert serve.ground("list").split()[1] == "stopped"
