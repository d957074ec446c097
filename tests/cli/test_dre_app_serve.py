# SPDX-License-Identifier: Apache-2.0
"""dre-app --serve: requests on stdin, answers on stdout in their order, and nothing ends the process but EOF."""

import fcntl
import json
import os

import pytest
from conftest import nobody

root = pytest.mark.skipif(os.geteuid() != 0, reason="needs root: verbs of dre-app do")


@pytest.fixture
def serve(run, app_settings):
    def call(*requests, options=(), prefix=()):
        lines = b"".join(
            request if isinstance(request, bytes) else json.dumps({"id": number, "argv": request}).encode() + b"\n"
            for number, request in enumerate(requests)
        )
        done = run("dre-app", "--config", app_settings, "--serve", *options, stdin=lines, prefix=prefix)
        assert done.returncode == 0, done.stderr.decode()
        return [json.loads(line) for line in done.stdout.decode().splitlines()]

    return call


def codes(answers):
    return [answer["code"] for answer in answers]


@root
def test_answers_in_order(serve, tmp_path):
    create = ["create", "web1", "--ip", "none", "--base", str(tmp_path / "tree"), "--", "httpd", "ä"]
    answers = serve(create, ["list"], ["status", "web1"], ["destroy", "web1"], ["list"], ["status", "web1"])
    assert [answer["id"] for answer in answers] == [0, 1, 2, 3, 4, 5]
    assert codes(answers) == [0, 0, 1, 0, 0, 3]
    assert [row["name"] for row in answers[1]["rows"]] == ["web1"]
    assert answers[2]["rows"][0]["state"] == "stopped"
    assert answers[4]["rows"] == []
    assert answers[5]["error"] == "web1: no such app"
    assert all(list(answer)[:4] == ["id", "code", "rows", "error"] for answer in answers)


@root
def test_what_a_verb_starts_has_the_settings_of_the_process(serve, tmp_path):
    """A move on this host starts a receiver; with the host's settings the app would be another one's."""
    create = ["create", "web1", "--ip", "none", "--base", str(tmp_path / "tree")]
    answers = serve(create, ["migrate", "web1", "localhost", "--as", "web2"], ["list"], ["status", "web2"])
    assert codes(answers) == [0, 0, 0, 1], answers
    assert [row["name"] for row in answers[2]["rows"]] == ["web2"]
    assert (tmp_path / "lxc/web2").is_dir() and not (tmp_path / "lxc/web1").exists()


def test_bad_lines_are_answered_and_the_process_lives(serve):
    answers = serve(
        b"x\n",
        b"\n",
        b"[" * 900_000 + b"\n",
        b'{"id":1,"argv":["' + b"x" * (1 << 20) + b'"]}\n',
        b'{"id":2,"argv":["list\\u0000"]}\n',
        b'{"id":3,"argv":[' + b'"",' * 250_000 + b'""]}\n',
        b'{"id":4,"argv":["status"]}',
    )
    assert codes(answers) == [2] * 7
    assert [answer["id"] for answer in answers] == [None, None, None, None, 2, 3, 4]
    assert all(answer["error"] and answer["rows"] == [] for answer in answers)
    assert "NAME" in answers[-1]["error"]


@pytest.mark.parametrize(
    "argv",
    [
        [],
        ["nope"],
        ["--serve"],
        ["--version"],
        ["list", "--help"],
        ["--config", "/etc/dre.conf", "list"],
        ["list", "--config", "/etc/dre.conf"],
        ["--allow", "list", "list"],
        ["--names", "a*", "recover"],
        ["console", "web1"],
        ["log", "web1", "--follow"],
        ["stat", "--interval", "1"],
        ["snapshot"],
        ["start", "../web1"],
        ["start", "web1", "--", "x"],
    ],
)
def test_refused(serve, argv):
    (answer,) = serve(argv)
    assert answer["code"] == 2 and answer["error"] and "\n" not in answer["error"]


@root
def test_request_id(serve, tmp_path):
    create = ["create", "web1", "--ip", "none", "--base", str(tmp_path / "tree")]
    once = [*create, "--request-id", "r1"]
    assert codes(serve(once, once, create, [*once, "--memory", "1M"])) == [0, 0, 1, 2]
    assert codes(serve(once, ["destroy", "web1"])) == [0, 0]


@root
def test_allow_and_names(serve, tmp_path):
    base = ["--ip", "none", "--base", str(tmp_path / "tree")]
    serve(["create", "web1", *base], ["create", "db1", *base])
    options = ("--allow", "list,status,snapshot list,destroy,recover", "--names", "web*")
    answers = serve(
        ["list"],
        ["status", "web1"],
        ["status", "db1"],
        ["destroy", "web1", "db1"],
        ["snapshot", "list", "web1"],
        ["snapshot", "delete", "web1", "x"],
        ["create", "web2", *base],
        ["recover"],
        options=options,
    )
    assert codes(answers) == [0, 1, 4, 4, 0, 4, 4, 4]
    assert [row["name"] for row in answers[0]["rows"]] == ["web1"]
    several = serve(["status", "web1"], ["status", "db1"], ["status", "web2"], options=("--names", "db1,web1"))
    assert codes(several) == [1, 1, 4]
    assert sorted(row["name"] for row in serve(["list"])[0]["rows"]) == ["db1", "web1"]


def test_allow_names_verbs(run):
    done = run("dre-app", "--serve", "--allow", "list,nope")
    assert (done.returncode, b"'nope' is not a verb" in done.stderr) == (2, True)


def test_takes_no_verb(run):
    assert run("dre-app", "--serve", "list").returncode == 2
    assert run("dre-app", "list", "--serve").returncode == 2


def test_without_privilege(serve):
    assert codes(serve(["list"], ["create", "web1"], prefix=nobody())) == [4, 4]


@root
def test_deadline_ends_what_waits_for_a_lock(serve, tmp_path):
    lock = tmp_path / "run/lock/app-web1"
    lock.parent.mkdir(parents=True)
    with lock.open("w") as stream:
        fcntl.flock(stream, fcntl.LOCK_EX)
        answers = serve(b'{"id":1,"argv":["start","web1"],"deadline":0.3}\n', ["list"])
    assert codes(answers) == [5, 0]
    assert codes(serve(["start", "web1"])) == [3]


@root
def test_several_failures_are_all_told(serve):
    (answer,) = serve(["start", "a", "b"])
    assert (answer["code"], answer["error"]) == (3, "a: no such app\nb: no such app")
