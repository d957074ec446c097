# SPDX-License-Identifier: Apache-2.0
"""The handbook's lines on systems, typed in their order: at one host, and of moving at two, at rest and while it runs.

The hosts have root's directory of ssh, sshd's own and the names of a real pair; only the keys that a reader copies from
one to the other are put in for him, and where QEMU's certificates are.
"""

import os
import re
import subprocess
import time

import pytest
from conftest import environment
from handbook import Reader, lines, marked
from system_ground import BRIDGE, NETWORK, Host, There, need

KEY = "ssh-ed25519 AAAA... root@host1"
HOSTS = ("host1", "host2")


class Named(There):
    """A second host that QEMU of the first finds by its name."""

    def apart(self):
        lines = super().apart()
        conf = self.place / "host/etc-libvirt/qemu.conf"
        conf.write_text(conf.read_text().replace(f'"{self.address}.2"', '"host2"'))
        return lines


@pytest.fixture
def pair():
    need("ssh", "sshd", "ssh-keygen", "ssh-keyscan", "openssl", "virt-ssh-helper")
    with Host() as here, Named(here) as there:
        (here.place / "hosts").write_text(f"127.0.0.1 localhost\n{there.address}.1 host1\n{there.address}.2 host2\n")
        for host, name in ((here, HOSTS[0]), (there, HOSTS[1])):
            _furnish(host, here.place / "hosts", name)
        yield here, there


def _furnish(host, hosts, name):
    """Root's ssh, sshd's keys, names and a place for certificates, in the namespace of *host* alone."""
    for part in ("root-ssh", "etc-ssh", "pki"):
        (host.place / part).mkdir(mode=0o755)
    os.makedirs("/root/.ssh", mode=0o700, exist_ok=True)
    os.makedirs("/run/sshd", exist_ok=True)
    host.call("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", host.place / "etc-ssh/ssh_host_ed25519_key")
    for mine, path in (
        (host.place / "root-ssh", "/root/.ssh"),
        (host.place / "etc-ssh", "/etc/ssh"),
        (hosts, "/etc/hosts"),
    ):
        host.call("mount", "--bind", mine, path)
    conf = host.place / "host/etc-libvirt/qemu.conf"
    conf.write_text(conf.read_text() + f'default_tls_x509_cert_dir = "{host.place}/pki"\n')
    host.end_libvirt()
    host.begin_libvirt()
    if name == HOSTS[1]:
        env = environment() | {"PATH": f"{host.place}/reader/bin:{environment()['PATH']}"}
        given = " ".join(f"{key}={text}" for key, text in env.items() if key in ("PATH", "PYTHONPATH"))
        options = ("UsePAM=no", "StrictModes=no", f"PidFile={host.place}/sshd.pid", f"SetEnv={given}")
        words = [word for option in (*options, "HostKey=/etc/ssh/ssh_host_ed25519_key") for word in ("-o", option)]
        host.call("/usr/sbin/sshd", "-f", "/dev/null", *words)


def test_systems_move_as_it_is_written(pair):
    here, there = pair
    readers = {
        name: Reader(host.place / "reader", host.conf, host.inside) for name, host in zip(HOSTS, pair, strict=True)
    }
    _at_one_host(here, readers[HOSTS[0]])
    said = {}
    for number, block in enumerate(marked("migration.md", *(f"sh {name}" for name in HOSTS))):
        name = block.kind.split()[1]
        instead = {}
        if KEY in block.text:  # the one that the block before it has printed
            instead[KEY] = re.search(r"^ssh-ed25519 .*$", said[number - 1], re.MULTILINE)[0]
        if "/etc/pki/qemu" in block.text:
            for other in HOSTS:
                _certificates(block, readers, pair, other)
            continue
        if "create pay6" in block.text:
            instead["create pay6"] = f"create pay6 --base {here.counting()} --memory 64M --ip {NETWORK}.6/24"
        said[number] = readers[name].types(block, instead)
    assert said.popitem()[1].endswith("running\n")
    assert [host.virsh("list", "--all", "--name").split() for host in pair] == [[], ["pay5", "pay6"]]
    assert there.virsh("domstate", "pay6").strip() == "shut off"
    before = _counted(there)
    deadline = time.monotonic() + 60
    while _counted(there) < before + 3:
        assert time.monotonic() < deadline, "pay5 does not count any more"
        time.sleep(0.1)
    _the_keys_do_nothing_else(here)


def _at_one_host(host, reader):
    """pay1 is limited, cut off, saved with its memory and goes back to that; in the end it is pay5."""
    for block in marked("network.md", "sh sys"):
        assert "attach" in block.text or BRIDGE in reader.types(block)
    _begin(host)
    reader.types(marked("network.md", "sh sys")[-1])  # attach, with something to attach
    limiting, isolating, starting = marked("containers.md", "sh sys")
    assert reader.types(limiting).count("pay1 ") == 5
    reader.types(isolating)
    reader.types(starting)
    host.dre("destroy", "--force", "pay1")  # the second host has no control groups, and takes none that was limited
    _begin(host)
    scheduling, saving = marked("undo.md", "sh sys")
    reader.types(scheduling)
    (agent,) = [line for line in lines(saving) if "apt-get" in line]
    reader.types(saving, {agent: "true"})  # nobody in this guest does as he is told
    (moving,) = marked("migration.md", "sh sys")
    reader.types(moving)
    assert host.dre("status", "pay5").stdout == "running\n"


def _begin(host):
    """pay1 runs."""
    host.dre("create", "pay1", "--base", host.counting(), "--memory", "64M", "--ip", f"{NETWORK}.5/24")
    host.dre("start", "pay1")


def _certificates(block, readers, pair, name):
    """The block for host1, typed at the host *name* with its own files and names, after the reader has copied them."""
    host, reader = pair[HOSTS.index(name)], readers[name]
    if name != HOSTS[0]:
        subprocess.run(["cp", "-r", readers[HOSTS[0]].place / "pki", reader.place], check=True)
    reader.types(block, {"/etc/pki/qemu": host.place / "pki", **({} if name == HOSTS[0] else {HOSTS[0]: name})})


def _counted(host):
    lines = (host.place / "log/sys/pay5.log").read_bytes().split(b"\n")[:-1]
    return max(int(line, 16) for line in lines if len(line) == 8)


def _the_keys_do_nothing_else(here):
    """Neither gives a shell; libvirt by the key for apps is refused and does not wait for ever."""
    for key, told in (("id_ed25519", "is for dre-app receive alone"), ("id_libvirt", "")):
        words = (
            "-o",
            "BatchMode=yes",
            "-o",
            "IdentitiesOnly=yes",
            "-i",
            f"/root/.ssh/{key}",
            "root@host2",
            "echo shell",
        )
        done = here.call("ssh", *words, check=False, timeout=60)
        assert "shell\n" not in done.stdout and told in done.stderr
    done = here.call("virsh", "-c", "qemu+ssh://root@host2/system?no_tty=1", "version", check=False, timeout=60)
    assert done.returncode == 1 and "is for dre-app receive alone" in done.stderr
