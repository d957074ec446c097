# SPDX-License-Identifier: Apache-2.0
"""What dre-sys tells libvirt, the guest and the kernel of a system; and that a guest's agent is not believed."""

import base64
import ipaddress
import json
import sys
import threading
import types
from pathlib import Path
from xml.etree import ElementTree

import pytest
from dre import conf
from dre.errors import DreError, UsageError
from dre.system import address, domain, identity, partition, saved, virt
from dre.system.agent import Agent
from dre.system.domain import Extra, Hardware
from dre.system.spec import Spec

KEY = "ssh-ed25519 " + "A" * 68 + " me@here"


def hardware(**fields):
    wanted = {"name": "s1", "virt": "qemu", "memory": 1 << 29, "vcpus": 2, "mac": "52:54:00:00:00:01"}
    return Hardware(disk=Path("/d/disk.qcow2"), log=Path("/d/log"), bridges=("br0",), **{**wanted, **fields})


def defined(**fields):
    return ElementTree.fromstring(domain.to_xml(domain.render(hardware(**fields))))


def test_memory_can_be_looked_at_from_outside():
    top = defined()
    assert top.find("memoryBacking/source").get("type") == "memfd"
    assert top.find("memoryBacking/access").get("mode") == "shared"
    assert top.find("features/vmcoreinfo").get("state") == "on"
    assert (top.findtext("memory"), top.findtext("vcpu")) == (str(1 << 29), "2")


def test_names_and_lines_never_become_xml():
    line = "x=\"<&>\" 'y'"
    top = defined(kernel=Path("/k"), initrd=Path("/i"), command_line=line, credentials=("a<b>&",))
    assert top.findtext("os/cmdline") == line
    assert top.findtext("sysinfo/oemStrings/entry") == "a<b>&"


def test_kvm_and_its_emulator_have_their_own_processors():
    assert defined(virt="kvm").find("cpu").get("mode") == "host-model"
    assert defined().findtext("cpu/model") == "qemu64"
    assert (defined(virt="kvm").get("type"), defined().get("type")) == ("kvm", "qemu")


def test_links_have_names_of_interfaces_and_each_its_own():
    names = [domain.link("br0", name, number) for name in ("a" * 31, "b") for number in (0, 1)]
    assert len(set(names)) == 4
    assert all(len(name) <= 15 for name in names)
    assert [(bridge, mac) for bridge, _, mac in domain.links(defined())] == [("br0", "52:54:00:00:00:01")]


def test_only_disks_that_can_be_written_are_disks():
    top = defined(iso=Path("/cd.iso"), extras=(Extra(Path("/x.raw"), "raw"),))
    found = [(target, str(path), format) for target, path, format in domain.disks(top)]
    assert found == [("vda", "/d/disk.qcow2", "qcow2"), ("vdb", "/x.raw", "raw")]


def test_dedicated_processors_are_one_each_and_the_rest_for_all_else():
    top = domain.render(hardware())
    partition.pin(top, (2, 3), [True, True, True, True, False])
    assert [(pin.get("vcpu"), pin.get("cpuset")) for pin in top.iterfind("cputune/vcpupin")] == [("0", "2"), ("1", "3")]
    assert top.find("cputune/emulatorpin").get("cpuset") == "0-1"
    partition.pin(top, (), [])
    assert top.find("cputune/vcpupin") is None


def spec(**fields):
    return Spec(name="s1", base="default", created="2026-11-23T08:00:00.123Z", mac="52:54:00:00:00:01", **fields)


def test_the_kernel_hears_name_and_address(monkeypatch):
    monkeypatch.setattr(address, "name_servers", lambda _: ("10.231.0.1",))
    line = identity.command_line(conf.Conf(), spec(ip="10.231.0.7/24"), "root=LABEL=x quiet")
    assert line.split() == [
        "root=LABEL=x",
        "quiet",
        "systemd.hostname=s1",
        "ip=10.231.0.7::10.231.0.1:255.255.255.0:s1:eth0:off:10.231.0.1",
    ]
    assert "ip=" not in identity.command_line(conf.Conf(), spec(ip="dhcp"), "")


def test_credentials_hold_name_and_keys_as_tmpfiles_takes_them():
    name, extra = identity.credentials(spec(ssh_keys=(KEY,)))
    assert name == "io.systemd.credential:dre.name=s1"
    lines = base64.b64decode(extra.partition("=")[2]).decode().splitlines()
    assert lines[0] == "f+ /etc/hostname 0644 root root - s1"
    assert base64.b64decode(lines[2].rpartition(" ")[2]).decode() == KEY + "\n"


def test_the_gateway_lies_in_the_network_of_the_address():
    settings = conf.Conf(sys_default_gateway="10.9.0.254", bridge_address=ipaddress.IPv4Interface("10.231.0.1/24"))
    assert address.gateway(settings, "10.9.0.5/24") == "10.9.0.254"
    assert address.gateway(settings, "10.231.0.5/24") == "10.231.0.1"
    assert address.gateway(settings, "192.0.2.5/24") is None


def test_a_range_of_hardware_addresses_is_counted_up(tmp_path):
    settings = conf.Conf(sys_default_mac="52:54:00:00:00:fe", core_state_dir=tmp_path)
    for number, expected in enumerate(("52:54:00:00:00:fe", "52:54:00:00:00:ff", "52:54:00:00:01:00")):
        found = address.mac(settings, None)
        assert found == expected
        home = tmp_path / f"sys/state/s{number}"
        home.mkdir(parents=True)
        (home / "system.json").write_text(Spec(f"s{number}", "x", "t", found).to_json())
    with pytest.raises(DreError, match="taken"):
        address.mac(settings, "52:54:00:00:00:ff")


def test_a_spec_is_read_as_it_was_written():
    one = spec(ip="10.231.0.7/24", ssh_keys=(KEY,), after=("s2",), net=1024)
    assert Spec.from_json(one.to_json()) == one
    with pytest.raises(TypeError):
        Spec.from_json(json.dumps({**json.loads(one.to_json()), "unknown": 1}))


@pytest.fixture
def agent(monkeypatch):
    """agent(*ANSWERS) → an Agent that gets these texts, one after the other."""

    class Error(Exception):
        pass

    fake = types.SimpleNamespace(
        libvirtError=Error, VIR_ERR_AGENT_UNRESPONSIVE=86, VIR_ERR_NO_DOMAIN=42, VIR_ERR_NO_DOMAIN_SNAPSHOT=72
    )
    monkeypatch.setitem(sys.modules, "libvirt", fake)

    def make(*answers):
        left = list(answers)
        monkeypatch.setitem(sys.modules, "libvirt_qemu", types.SimpleNamespace(qemuAgentCommand=lambda *_: left.pop(0)))
        return Agent("s1", None)

    return make


def said(value):
    return json.dumps({"return": value})


@pytest.mark.parametrize(
    "answer",
    [
        "",
        "{}",
        "[]",
        "not json",
        "[" * 100_000,
        said([]),
        said({"pid": "1"}),
        '{"return":{"pid":null}}',
        "x" * (9 << 20),
    ],
)
def test_an_answer_that_is_none_is_an_error(agent, answer):
    with pytest.raises(DreError, match="guest agent's answer to guest-exec is none"):
        agent(answer).run(["true"])


@pytest.mark.parametrize(
    "status", [{}, {"exited": 1}, {"exited": True, "exitcode": 0, "out-data": "%%"}, {"exited": True, "out-data": 5}]
)
def test_a_status_that_is_none_is_an_error(agent, status):
    with pytest.raises(DreError, match="guest-exec-status"):
        agent(said({"pid": 5}), said(status), said({"pid": 6})).run(["true"])


def test_how_a_program_ended_and_what_it_printed_passes(agent):
    out = base64.b64encode(b"\x00\xff").decode()
    ended = agent(said({"pid": 5}), said({"exited": True, "exitcode": 7, "out-data": out})).run(["x"])
    assert (ended.status, ended.stdout, ended.stderr, ended.cut) == (7, b"\x00\xff", b"", False)
    ended = agent(said({"pid": 5}), said({"exited": True, "signal": 9, "out-truncated": True})).run(["x"])
    assert (ended.status, ended.cut) == (137, True)


def test_more_of_a_file_than_was_asked_for_is_refused(agent):
    much = base64.b64encode(bytes(80 << 10)).decode()
    with pytest.raises(DreError, match="guest-file-read"):
        list(agent(said(1000), said({"buf-b64": much, "eof": True}), said({})).read("/x"))


def test_an_address_outside_the_network_of_the_bridge_is_a_host_address(tmp_path):
    settings = conf.Conf(core_state_dir=tmp_path, app_lxc_path=tmp_path)
    assert address.choose(settings, "s1", "192.0.2.5/24") == "192.0.2.5/24"
    assert address.choose(settings, "s1", "192.0.2.5") == "192.0.2.5/24"
    for wrong in ("192.0.2.0/24", "192.0.2.255/24", "x", "1.2.3", "10.231.0.0/24"):
        with pytest.raises(UsageError):
            address.choose(settings, "s1", wrong)


def test_of_saved_states_it_is_known_which_was_there_before_the_other():
    parents = {"a": None, "b": "a", "c": "b", "d": "a", "lost": "gone"}
    assert [saved.ancestors(tag, parents) for tag in ("a", "b", "c", "d", "lost")] == [0, 1, 2, 1, 1]
    assert saved.ancestors("x", {"x": "y", "y": "x"}) == 2  # a circle, which libvirt does not make, has an end


def test_a_slow_libvirt_is_told_of_once_and_only_where_kvm_may_be_why(tmp_path, monkeypatch):
    monkeypatch.setattr(virt, "KVM", tmp_path)
    told, heard = [], threading.Event()

    def say(text):
        told.append(text)
        heard.set()

    with virt.patience("s1", "qemu", say, after=0.01):
        assert heard.wait(60)
    assert (len(told), told[0].startswith("s1: "), "chmod 600" in told[0]) == (1, True, True)
    with virt.patience("s1", "qemu", say, after=3600):
        pass
    for kind, device in (("kvm", tmp_path), ("qemu", tmp_path / "none")):
        monkeypatch.setattr(virt, "KVM", device)
        with virt.patience("s1", kind, say, after=3600):
            timers = [thread for thread in threading.enumerate() if isinstance(thread, threading.Timer)]
            assert not [timer for timer in timers if not timer.finished.is_set()]
    assert len(told) == 1
