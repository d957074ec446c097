# SPDX-License-Identifier: Apache-2.0
"""What an app is made of, as text: nothing that a user gives can become another key, argument or command."""

import subprocess
import tempfile
from dataclasses import replace
from pathlib import Path

import pytest
from dre import app, conf, lxcconfig, spec
from dre.cgroup import Limits
from dre.errors import DreError, UsageError
from dre.spec import Bind, Spec
from hypothesis import given
from hypothesis import strategies as st

SPEC = Spec(
    name="web1",
    base="host",
    created="2026-11-23T08:00:00.123Z",
    ip="10.231.0.11/24",
    command=("/usr/bin/httpd", "-f"),
    env={"A": "b c"},
    binds=(Bind("/srv/da ta", "/data", True),),
    limits=Limits(cpu=50.0, memory=1 << 20, pids=None),
)


def test_spec_round_trip():
    assert Spec.from_json(SPEC.to_json()) == SPEC


def test_a_snapshot_restores_the_program_and_limits_but_not_the_address():
    saved = Spec(name="web1", base="host", created="x", ip="10.231.0.99/24", command=("old",), limits=Limits(pids=3))
    restored = SPEC.restored(saved)
    assert (restored.command, restored.limits.pids, restored.ip) == (("old",), 3, SPEC.ip)


def config(spec=SPEC, **changes):
    with pytest.MonkeyPatch.context() as patch, tempfile.TemporaryDirectory() as state:
        settings = conf.Conf(**{"core_state_dir": Path(state), **changes})
        patch.setattr(lxcconfig, "INIT", "/bin/sh")  # LXC's own need not be installed, and its directory not be there
        patch.setattr(lxcconfig.limits, "device_for", lambda *_: None)
        lines = lxcconfig.render(settings, spec, Path("/var/log/dre/app/web1.log")).splitlines()
    return [line.partition(" = ")[::2] for line in lines if not line.startswith("#")]


def test_configuration():
    lines = config()
    assert ("lxc.rootfs.path", "dir:/var/lib/lxc/web1/rootfs") in lines
    assert ("lxc.net.0.ipv4.address", "10.231.0.11/24") in lines
    assert ("lxc.environment", "A=b c") in lines
    assert any(value.startswith("/srv/da\\040ta data none ro,bind") for _, value in lines)
    assert all(len(value) <= 15 for key, value in lines if key == "lxc.net.0.veth.pair")


def test_without_address_there_is_no_link():
    lines = config(Spec(name="web1", base="host", created="x"))
    assert ("lxc.net.0.type", "empty") in lines
    assert not any(key == "lxc.net.0.link" for key, _ in lines)


@given(st.lists(st.text(st.characters(blacklist_characters="\0", blacklist_categories=("Cs",))), min_size=1))
def test_every_argument_reaches_the_program_as_it_is(words):
    script = lxcconfig.script(Spec(name="x", base="host", created="x", command=("printf", "%s\\0", *words)))
    first, second, end = script.partition("\n")[0], script.partition("\n")[2], script[-1]
    assert first == "exec >>/run/dre-output 2>&1" and end == "\n"
    done = subprocess.run(["/bin/sh", "-c", second], capture_output=True, check=True, env={"PATH": "/usr/bin:/bin"})
    assert done.stdout == b"".join(word.encode() + b"\0" for word in words)


@pytest.mark.parametrize("word", ["A", "=b", "A B=c", "A=b\nlxc.hook.start = /x", "A=b\rc", "1A=b"])
def test_environment_refused(word):
    with pytest.raises(UsageError):
        spec.env([word])


@pytest.mark.parametrize(
    "word",
    ["/tmp", "tmp:/x", "/tmp:x", "/tmp:/x:rw2", "/tmp:/../x", "/tmp:/", "/no/such:/x", "/tmp:/x\nlxc.a = b"],
)
def test_bind_refused(word):
    with pytest.raises(UsageError):
        spec.bind(word)


def test_bind():
    assert spec.bind("/tmp:/data/x:ro") == Bind("/tmp", "/data/x", True)


def test_link_names_differ_by_bridge_and_address():
    names = {lxcconfig.veth(bridge, ip) for bridge in ("br0", "br1") for ip in ("10.0.0.1/24", "10.0.0.2/24")}
    assert len(names) == 4


def test_usage_of_a_name_that_is_none():
    with pytest.raises(UsageError):
        app.usage(conf.Conf(), "../etc")


def test_apparmor_is_named_only_where_the_kernel_has_it_without_the_profile(tmp_path, monkeypatch):
    enabled, profiles = tmp_path / "enabled", tmp_path / "profiles"
    monkeypatch.setattr(lxcconfig, "APPARMOR", enabled)
    monkeypatch.setattr(lxcconfig, "APPARMOR_PROFILES", profiles)
    assert lxcconfig._confinement() == []
    enabled.write_text("N\n")
    assert lxcconfig._confinement() == []
    enabled.write_text("Y\n")
    assert lxcconfig._confinement() == [("lxc.apparmor.profile", "unconfined")]
    profiles.write_text("lxc-container-default (enforce)\n")
    assert lxcconfig._confinement() == [("lxc.apparmor.profile", "unconfined")]
    profiles.write_text("lxc-container-default (enforce)\nlxc-container-default-cgns (enforce)\n")
    assert lxcconfig._confinement() == []


def test_what_confines_an_app_is_not_undone():
    own = replace(SPEC, base="/tree", privileged=False, ids=(1879048192, 65536), seccomp="/etc/own.seccomp")
    saved = replace(own, privileged=True, ids=(1000000, 65536), seccomp="default", command=("old",))
    restored = own.restored(saved)
    assert (restored.privileged, restored.ids, restored.seccomp) == (False, (1879048192, 65536), "/etc/own.seccomp")
    assert restored.command == ("old",)


def test_an_unprivileged_app_sees_the_host_through_its_map():
    lines = config(replace(SPEC, base="/tree", privileged=False, ids=(1879048192, 65536)))
    assert [value for key, value in lines if key == "lxc.idmap"] == ["u 0 1879048192 65536", "g 0 1879048192 65536"]
    assert any(value.startswith("/var/lib/lxc/web1/binds/0 data none ro,bind") for _, value in lines)
    assert not any("/srv" in value or "/var/log" in value for _, value in lines)
    with pytest.raises(DreError, match="has no ids"):
        config(replace(SPEC, privileged=False))


def test_a_privileged_app_has_no_sys_admin():
    assert ("lxc.cap.drop", "sys_admin syslog") in config()
    assert not [value for key, value in config() if key == "lxc.idmap"]
