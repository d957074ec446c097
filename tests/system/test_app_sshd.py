# SPDX-License-Identifier: Apache-2.0
"""--sshd-port: a real ssh gets in with the key that was named, and with nothing else."""

import json
import os
import pathlib
import shutil
import signal
import subprocess

import app_ground
import pytest
from app_ground import wait_for

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="needs root")
NAME, OTHER = "nssh1", "nssh2"
PORT = "2299"


@pytest.fixture
def app(run, settings):
    assert shutil.which("sshd", path="/usr/sbin"), "install openssh-server"
    with app_ground.Ground(run, settings) as ground:
        yield ground


@pytest.fixture(scope="module")
def keys(tmp_path_factory):
    """Two key pairs; the first is the one that is let in."""
    place = tmp_path_factory.mktemp("keys")
    for name in ("mine", "strange"):
        subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", place / name], check=True)
    return place


def ssh(app, key, *command, name=NAME, user="root", options=(), port=PORT):
    address = json.loads(app("status", name, "--json"))["ip"][0]
    words = ["BatchMode=yes", "StrictHostKeyChecking=no", "UserKnownHostsFile=/dev/null", "IdentitiesOnly=yes"]
    words += ["ConnectTimeout=10", *options]
    argv = ["ssh", "-F", "none", "-p", port, "-i", key, *(part for word in words for part in ("-o", word))]
    return subprocess.run([*argv, f"{user}@{address}", *command], capture_output=True, timeout=60, check=False)


def host_key(app, name=NAME):
    address = json.loads(app("status", name, "--json"))["ip"][0]
    argv = ["ssh-keyscan", "-T", "10", "-t", "ed25519", "-p", PORT, address]
    return subprocess.run(argv, capture_output=True, timeout=60, check=True).stdout.split()[-1]


def test_login_with_the_key_and_with_nothing_else(app, keys):
    app("create", NAME, "--sshd-port", PORT, "--ssh-key", keys / "mine.pub", "--", "/bin/sleep", "1000")
    app("start", NAME)  # which returns when it listens
    assert ssh(app, keys / "mine", "hostname").stdout.decode().strip() == NAME
    assert ssh(app, keys / "mine", "exit", "7").returncode == 7
    assert ssh(app, keys / "strange", "true").returncode == 255
    assert ssh(app, keys / "mine", "true", user="nobody").returncode == 255
    offered = ssh(app, keys / "mine", "true", options=("PubkeyAuthentication=no", "LogLevel=VERBOSE"))
    assert offered.returncode == 255 and b"Permission denied (publickey)." in offered.stderr
    log = app("log", NAME)
    assert "Accepted publickey for root" in log


def test_the_program_is_the_app_whoever_is_logged_in(app, keys):
    app("create", NAME, "--sshd-port", PORT, "--ssh-key", keys / "mine.pub", "--", "/bin/sleep", "1000")
    app("start", NAME)
    address = json.loads(app("status", NAME, "--json"))["ip"][0]
    argv = ["ssh", "-F", "none", "-q", "-tt", "-p", PORT, "-i", keys / "mine", "-o", "StrictHostKeyChecking=no"]
    argv += ["-o", "UserKnownHostsFile=/dev/null", f"root@{address}", "echo in; sleep 2000"]
    with subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as login:
        assert login.stdout.readline().strip() == b"in"
        program = next(row for row in processes(app) if row["command"] == "sleep" and is_the_program(row["outside"]))
        os.kill(program["outside"], signal.SIGKILL)
        assert login.wait(30) == 255
    assert wait_for(lambda: json.loads(app("list", "--json"))["state"] == "crashed")


def processes(app):
    return [json.loads(line) for line in app("pid", NAME, "--json").splitlines()]


def is_the_program(pid):
    return b"1000" in pathlib.Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")


def test_host_keys_are_the_apps_own_and_stay(app, keys):
    for name in (NAME, OTHER):
        app("create", name, "--sshd-port", PORT, "--ssh-key", keys / "mine.pub")
        app("start", name)
    first = host_key(app)
    assert first != host_key(app, OTHER)
    hosts = [path.read_bytes().split()[1] for path in pathlib.Path("/etc/ssh").glob("ssh_host_*.pub")]
    assert first not in hosts
    app("restart", "--timeout", "2", NAME)
    assert host_key(app) == first


def test_the_default_port_and_set(app, keys):
    key = (keys / "mine.pub").read_text().strip()
    app("create", NAME, "--ssh-key", keys / "mine.pub", "--sshd-port")
    app("start", NAME)
    assert ssh(app, keys / "mine", "true", port="22").returncode == 0
    row = json.loads(app("set", NAME, "--json"))
    assert (row["sshd-port"], row["ssh-key"]) == (22, [key])
    app("set", NAME, f"ssh-key={(keys / 'strange.pub').read_text().strip()}", f"sshd-port={PORT}")
    app("restart", "--timeout", "2", NAME)
    assert ssh(app, keys / "mine", "true").returncode == 255
    assert ssh(app, keys / "strange", "true").returncode == 0
    app("set", NAME, "sshd-port=none")
    app("restart", "--timeout", "2", NAME)
    assert ssh(app, keys / "strange", "true").returncode == 255


def test_a_tree_has_its_own(app, keys, tmp_path):
    tree = app_ground.make_tree(tmp_path / "tree", more=("ssh-keygen", "grep", "id", "bash"))
    assert "openssh-server" in app("create", NAME, "--base", tree, "--sshd-port", PORT, code=6)
    assert app("list") == ""
    full = app_ground.make_tree(tmp_path / "full", more=("sshd", "ssh-keygen", "grep", "id", "bash"))
    (full / "usr/bin/sshd").rename(full / "usr/sbin/sshd")
    (full / "etc/passwd").write_text("root:x:0:0:root:/root:/bin/bash\nsshd:x:100:65534::/run/sshd:/bin/false\n")
    before = app_ground.tree_digest(full)
    app("create", NAME, "--base", full, "--sshd-port", PORT, "--ssh-key", keys / "mine.pub")
    app("start", NAME)
    assert ssh(app, keys / "mine", "cat /etc/release; id -u").stdout == b"from the tree\n0\n"
    assert app_ground.tree_digest(full) == before


def test_what_fails_is_told(app, keys, tmp_path):
    app("create", NAME, "--sshd-port", PORT, "--ssh-key", keys / "mine.pub")
    (tmp_path / "sshd").write_text("#!/bin/sh\necho no luck today\nexit 3\n")
    (tmp_path / "sshd").chmod(0o755)
    app("push", NAME, tmp_path / "sshd", "/usr/sbin/sshd")
    assert app("start", NAME, code=1) == f"dre-app: {NAME}: its sshd has ended: no luck today"
    assert json.loads(app("list", "--json"))["state"] == "stopped"


def test_keys_that_are_none(app, keys, tmp_path):
    def refused(*words, code=2):
        return app("create", NAME, "--sshd-port", PORT, *words, code=code)

    assert "a private key" in refused("--ssh-key", keys / "mine")
    assert "cannot be read" in refused("--ssh-key", tmp_path / "none")
    (tmp_path / "empty").touch()
    assert "holds no key" in refused("--ssh-key", tmp_path / "empty")
    (tmp_path / "odd").write_text("ssh-ed25519 not base 64\n")
    assert "not a public key" in refused("--ssh-key", tmp_path / "odd")
    assert "expected a port" in app("create", NAME, "--sshd-port", "70000", code=2)
    assert app("list") == ""


def test_a_comment_is_no_command(app, keys, tmp_path):
    file = tmp_path / "file"
    key = (keys / "mine.pub").read_text().split()
    file.write_text(f"{key[0]} {key[1]} $(touch /var/owned)'; touch /var/owned; '`touch /var/owned`\n")
    app("create", NAME, "--sshd-port", PORT, "--ssh-key", file)
    app("start", NAME)
    assert ssh(app, keys / "mine", "ls", "/var").stdout.find(b"owned") == -1
    assert ssh(app, keys / "mine", "cat /run/dre-sshd-keys").stdout == file.read_bytes()
