# SPDX-License-Identifier: Apache-2.0
"""dre-sys refuses what is wrong with one line and the right status, before anything is made.

No hypervisor is asked: the settings name one that is not there.
"""

import json
import os

import pytest
from conftest import nobody

NOWHERE = "qemu+unix:///system?socket=/nonexistent/libvirt-sock"


@pytest.fixture
def conf(settings):
    return settings(DRE_SYS_URI=NOWHERE, DRE_SYS_VIRT="tcg")


def refused(done, status, *words):
    """The one line of a refusal."""
    assert (done.returncode, done.stdout) == (status, b"")
    line, *usage = done.stderr.decode().splitlines()
    assert line.startswith("dre-sys: ")
    assert [word for word in words if word not in line] == []
    assert all(text.startswith("usage: ") for text in usage) and len(usage) <= 1
    return line


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (["create", "--no-such"], ["--no-such"]),
        (["create", "UPPER"], ["'UPPER'", "not a name"]),
        (["create", "a" * 32], ["not a name"]),
        (["create", "s1", "--memory", "0"], ["--memory", "'0'", "32M"]),
        (["create", "s1", "--memory", "1T"], ["--memory", "'1T'", "this host"]),
        (["create", "s1", "--memory", "abc"], ["--memory", "'abc'", "not a size"]),
        (["create", "s1", "--vcpus", "0"], ["--vcpus", "'0'"]),
        (["create", "s1", "--cpu", "-5"], ["--cpu"]),
        (["create", "s1", "--mac", "01:00:00:00:00:01"], ["--mac", "'01:00:00:00:00:01'"]),
        pytest.param(
            ["create", "s1", "--disk-size", "1K"],
            ["disk-size", "'1K'"],
            marks=pytest.mark.skipif(os.geteuid() != 0, reason="who is not root is refused before that"),
        ),
        (["start"], ["NAME"]),
        (["start", "s1", "--wait", "soon"], ["--wait", "'soon'"]),
        (["limit", "s1", "--io", "fast"], ["--io", "'fast'"]),
        (["snapshot"], ["a verb is missing"]),
        (["snapshot", "prune", "s1", "--keep", "0"], ["--keep", "'0'"]),
        (["checkpoint", "save", "s1", "dre-before"], ["'dre-before'", "own"]),
        (["stat", "--interval", "0"], ["--interval"]),
        (["nonsense"], ["nonsense"]),
    ],
)
def test_wrong_arguments_are_named(run, conf, argv, words):
    refused(run("dre-sys", "--config", conf, *argv), 2, *words)


@pytest.mark.skipif(os.geteuid() != 0, reason="who is not root is refused before that")
@pytest.mark.parametrize(
    "argv", [["list"], ["status", "s1"], ["start", "s1"], ["destroy", "s1"], ["checkpoint", "save", "s1"], ["stat"]]
)
def test_without_libvirt_it_says_what_to_type(run, conf, argv):
    line = refused(run("dre-sys", "--config", conf, *argv), 6, NOWHERE)
    assert "try: " in line or "apt-get install" in line


@pytest.mark.parametrize(
    "argv", [["list"], ["start", "s1"], ["limit", "s1", "--cpu", "50"], ["exec", "s1", "--", "id"]]
)
def test_who_is_not_root_is_refused(run, conf, argv):
    refused(run("dre-sys", "--config", conf, *argv, prefix=nobody()), 4, "needs root")


@pytest.mark.skipif(os.geteuid() != 0, reason="the process that serves must be root")
def test_serve_answers_errors_and_lives(run, conf):
    asked = [
        {"id": 1, "argv": ["list"]},
        {"id": 2, "argv": ["create", "s1", "--memory", "0"]},
        {"id": 3, "argv": ["exec"]},
    ]
    done = run("dre-sys", "--config", conf, "--serve", stdin="".join(json.dumps(one) + "\n" for one in asked).encode())
    answers = [json.loads(line) for line in done.stdout.splitlines()]
    assert [(answer["id"], answer["code"], answer["rows"]) for answer in answers] == [
        (1, 6, []),
        (2, 2, []),
        (3, 2, []),
    ]
