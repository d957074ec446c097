# SPDX-License-Identifier: Apache-2.0
"""Stories (2) and (3) of the CD shop as their scripts are shipped, with the real monitor, engine, D-Box and dre-app.

Only names and addresses are others, for the demonstration has apps of those names.
"""

import contextlib
import http.server
import json
import os
import pathlib
import shutil
import subprocess
import threading
import time

import app_ground
import dboxkit
import dscriptkit
import pytest
from app_ground import Ground, kernel, make_tree, wait_for
from conftest import ROOT, environment, program

pytestmark = [
    pytest.mark.skipif(os.geteuid() != 0, reason="needs root"),
    pytest.mark.skipif(
        os.environ.get("DRE_TEST_INSTALLED") != "1", reason="what a program of `run` calls is installed"
    ),
]
# Its memory is full when a file says so, and not any more when it has been started anew.
GROW = "until [ -e /grow ]; do sleep 0.2; done; rm /grow; dd if=/dev/zero bs=60M count=1 | sleep 1000"
LIMIT = 64 << 20


@pytest.fixture
def tmp_path(public_path):
    """sec and the engine are users of their own."""
    return public_path


class Story:
    """A shipped script, deployed with *changes*; the monitor and the engine."""

    def __init__(self, ground, name, changes):
        self.ground, self.place, self.processes = ground, ground.place, []
        rules = self.place / "etc/rules.d"
        rules.mkdir(parents=True)
        shutil.copy(ROOT / "sec-monitor/rules/shop.sec", rules)
        text = (ROOT / "dscript/scripts" / name).read_text()
        for old, new in changes.items():
            assert old in text
            text = text.replace(old, new)
        (self.place / name).write_text(text)
        assert ground.run("dscript", "--config", ground.config, "deploy", self.place / name).returncode == 0

    @contextlib.contextmanager
    def at_work(self):
        directories = {str(pathlib.Path(program(name)).parent) for name in ("dre-app", "dscript", "dre-monitor")}
        env = {**environment(), "PATH": ":".join([*sorted(directories), environment()["PATH"]])}
        try:
            for words in (("dre-monitor", "run"), ("dscript", "run", "--user", "daemon")):
                argv = [program(words[0]), "--config", self.ground.config, *words[1:]]
                log = (self.place / f"{words[0]}.log").open("wb")
                self.processes.append(subprocess.Popen(argv, env=env, stderr=log))
                assert wait_for((self.place / "run/events.sock").exists)
            assert wait_for(lambda: self.records("start"))
            yield
        finally:
            for process in self.processes:
                process.terminate()
            for process in self.processes:
                process.wait(30)

    def records(self, kind):
        return dscriptkit.records(self.place, kind)

    def ends(self, response):
        """How the runs of *response* ended."""
        tells = [json.loads(one["line"]) for one in self.records("tell")]
        told = [one["data"] for one in tells if one["type"] == "script.response.done"]
        return [(one["outcome"], one["restored"]) for one in told if one["response"] == response]


def act(place, name):
    """Have the shipped program *name* among those that a script may call."""
    (place / "etc/actions.d").mkdir(parents=True)
    shutil.copy(ROOT / "dscript/actions" / name, place / "etc/actions.d")


def pid(name):
    return int(subprocess.run(["lxc-info", "-n", name, "-pH"], capture_output=True, text=True).stdout)


def used(name):
    v2 = os.path.exists("/sys/fs/cgroup/cgroup.controllers")
    return int(kernel(pid(name), "memory", "memory.current" if v2 else "memory.usage_in_bytes"))


def state(name):
    return subprocess.run(["lxc-info", "-n", name, "-sH"], capture_output=True, text=True).stdout.strip()


def test_memory_that_runs_full_restarts_the_app_and_what_depends_on_it(run, settings):
    with Ground(run, settings) as ground:
        tree = str(make_tree(ground.place / "tree"))
        ground("create", "t-app", "--base", tree, "--ip", "none", "--memory", str(LIMIT), "--", "sh", "-c", GROW)
        ground("create", "t-web", "--base", tree, "--ip", "none")
        ground("start", "t-app", "t-web")
        act(ground.place, "diagnose")
        ours = {"of: shop-app": "of: t-app", "of: shop-web": "of: t-web"}
        ours["[diagnose, shop-app]"] = f"[diagnose, t-app, {ground.config}]"
        story = Story(ground, "shop-memory.yaml", ours)
        with story.at_work():
            before = pid("t-app"), pid("t-web")
            assert used("t-app") < LIMIT // 2
            ground("exec", "t-app", "--", "sh", "-c", ": >/grow")
            assert wait_for(lambda: used("t-app") > LIMIT * 0.9, 20)
            assert wait_for(lambda: story.ends("restart-shop")) == [("done", True)], story.records("outcome")
            assert used("t-app") < LIMIT // 2
            after = pid("t-app"), pid("t-web")
            assert not set(before) & set(after)
        (raised,) = [one for one in story.records("event") if '"watch.raised"' in one["line"]]
        said = json.loads(raised["line"])["data"]
        assert raised["proven"] and said["id"] == "full" and said["value"] > 90
        told = [json.loads(one["line"])["data"] for one in story.records("outcome")]
        assert [one["action"] for one in told] == ["run", "restart", "restart"]
        seen = [one[when]["pid"] for one in told[1:] for when in ("before", "after")]
        assert seen == [before[0], after[0], before[1], after[1]]
        assert not (story.place / "log/notify.log").exists()


class Slow(http.server.ThreadingHTTPServer):
    """A web server that takes half a second for an answer while `job` is the number of a process that runs."""

    daemon_threads = True

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Answer)
        self.job = None
        threading.Thread(target=self.serve_forever, daemon=True).start()

    def __exit__(self, *error):
        self.shutdown()
        self.server_close()


class Answer(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        if self.server.job and os.path.exists(f"/proc/{self.server.job}"):
            time.sleep(0.5)
        with contextlib.suppress(OSError):
            self.send_response(200)
            self.end_headers()

    def log_message(self, *args):
        pass


@pytest.fixture
def box():
    made = dboxkit.copy(**app_ground.SETTINGS)
    yield made.start()
    dboxkit.remove(made)


def test_a_batch_job_that_makes_the_shop_slow_is_found_in_the_d_box_and_stopped(run, box):
    box.good("dbox-init", "--client", "dscript", "--role", "writer")
    with Ground(run, lambda **keys: str(box.conf)) as ground, Slow() as shop:
        tree = str(make_tree(ground.place / "tree"))
        for name in ("batch-old", "batch-t1", "t-web"):
            ground("create", name, "--base", tree, "--ip", "none")
        ground("start", "batch-old")
        shutil.rmtree(box.path / "state/spool/event")  # nobody will record that
        act(box.path, "stop-batch")
        address = {"http://10.231.77.11/": f"http://127.0.0.1:{shop.server_port}/"}
        story = Story(ground, "shop-batch.yaml", {**address, "[stop-batch]": f"[stop-batch, 1 hour, {box.conf}]"})
        with story.at_work():
            ground("start", "t-web", "batch-t1")
            shop.job = pid("batch-t1")
            assert wait_for(lambda: story.ends("stop-batch"), 90) == [("done", True)], story.records("outcome")
            assert [state(name) for name in ("batch-t1", "batch-old", "t-web")] == ["STOPPED", "RUNNING", "RUNNING"]
        found = box.good("dbox-get", "--search", "stream=script", "type=script.run.output").decode().split()
        assert b"stopped batch-t1" in box.good("dbox-get", found[0], "--octets")
        assert (box.path / "log/notify.log").read_text().count("\n") == 1  # that one batch job was started
