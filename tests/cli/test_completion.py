# SPDX-License-Identifier: Apache-2.0
"""Every command completes its verbs and options in bash, from its own parser."""

import os
import pathlib
import re
import subprocess

import pytest
from conftest import DIRECTORIES, ROOT, environment

INSTALLED = pathlib.Path("/usr/share/bash-completion/completions")
COMMANDS = [
    (directory, command)
    for directory in DIRECTORIES
    for line in re.findall(r"^S?BIN = (.*)$", (ROOT / directory / "Makefile").read_text(), re.MULTILINE)
    for command in line.split()
]


def completion(directory, command, tmp_path):
    """The completion file: the installed one, or made as the build makes it."""
    if os.environ.get("DRE_TEST_INSTALLED") == "1":
        return INSTALLED / command
    library = re.search(r"^LIB = (\S+)$", (ROOT / directory / "Makefile").read_text(), re.MULTILINE)
    module = f"{library[1] if library else 'dre'}.cmd.{command.replace('-', '_')}"
    path = f"{ROOT / directory}:{ROOT / 'dre-core'}"
    made = subprocess.run(
        ["/usr/bin/python3", ROOT / "packaging/completion", module],
        env={**environment(), "PYTHONPATH": path},
        capture_output=True,
        check=True,
        timeout=60,
    )
    file = tmp_path / command
    file.write_bytes(made.stdout)
    return file


def complete(file, *words):
    """What bash offers after *words*, the last of which is the one being typed."""
    script = """
        source "$1"; shift
        function=$(complete -p "$1" | sed 's/.*-F \\([^ ]*\\) .*/\\1/')
        COMP_WORDS=("$@"); COMP_CWORD=$(($# - 1))
        "$function" "$1" "${!#}" "${COMP_WORDS[COMP_CWORD - 1]}"
        printf '%s\\n' "${COMPREPLY[@]}"
    """
    shell = ["bash", "--norc", "-u", "-c", script, "bash", file, *words]
    env = environment()
    if os.environ.get("DRE_TEST_INSTALLED") != "1":
        env["PATH"] = f"{ROOT / 'dre-core'}:{env['PATH']}"
    done = subprocess.run(shell, capture_output=True, text=True, check=False, timeout=60, env=env)
    assert done.returncode == 0, done.stderr
    return done.stdout.split()


@pytest.mark.parametrize(("directory", "command"), COMMANDS)
def test_completes_options(directory, command, tmp_path):
    assert "--version" in complete(completion(directory, command, tmp_path), command, "--ver")


@pytest.mark.parametrize(
    ("directory", "command", "typed", "verb"),
    [
        ("dre-core", "dre-app", "sna", "snapshot"),
        ("dre-core", "dre-app", "snapshot lo", "load"),
        ("dre-core", "dre-app", "--config x.conf sna", "snapshot"),
        ("dre-core", "dre-bridge", "sh", "show"),
        ("sec-monitor", "dre-monitor", "ru", "run"),
        ("dscript", "dscript", "dep", "deploy"),
    ],
)
def test_completes_a_verb(directory, command, typed, verb, tmp_path):
    assert complete(completion(directory, command, tmp_path), command, *typed.split()) == [verb]


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root: dre-app makes overlays and devices")
def test_completes_names_and_tags(run, settings, tmp_path):
    (tmp_path / "lxc").mkdir()
    (tmp_path / "tree/bin").mkdir(parents=True)
    (tmp_path / "tree/bin/sh").touch()
    config = settings(DRE_APP_LXC_PATH=tmp_path / "lxc")
    for argv in (("create", "web1"), ("create", "db1"), ("snapshot", "save", "web1", "good")):
        more = ("--base", tmp_path / "tree", "--ip", "none") if argv[0] == "create" else ()
        assert run("dre-app", "--config", config, *argv, *more).returncode == 0
    file = completion("dre-core", "dre-app", tmp_path)

    def offered(*words):
        return complete(file, "dre-app", "--config", config, *words)

    assert offered("start", "w") == ["web1"]
    assert offered("stop", "--timeout", "2", "web1", "") == ["db1", "web1"]
    assert offered("limit", "d") == ["db1"]
    assert offered("snapshot", "load", "web1", "") == ["good"]
    assert offered("undo", "web1", "g") == ["good"]
    assert offered("create", "w") == []
    assert offered("push", "web1", "") == []  # then bash completes files
    assert "--timeout" in offered("stop", "web1", "--t")
    assert offered("exec", "web1", "--", "w") == []
