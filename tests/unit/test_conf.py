# SPDX-License-Identifier: Apache-2.0
"""dre.conf: values are read as sh reads them, never executed; what is refused is named with file, line and key."""

import contextlib
import ipaddress
import os
import pathlib
import shlex
import string
import subprocess

import pytest
from conftest import ROOT
from dre import conf
from dre.errors import UsageError
from hypothesis import given
from hypothesis import strategies as st


@pytest.fixture
def write(tmp_path):
    """write(TEXT, [NAME]) → path of dre.conf, or of a drop-in of that name."""

    def call(text, name=None):
        path = tmp_path / (f"dre.conf.d/{name}" if name else "dre.conf")
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
        path.chmod(0o644)
        return str(path)

    return call


def refusal(path):
    with pytest.raises(UsageError) as caught:
        conf.load(path)
    assert caught.value.code == 2
    return str(caught.value)


def test_defaults_are_those_of_the_shipped_file():
    shipped = (ROOT / "etc/dre.conf").read_text()
    for key, item in conf.KEYS.items():
        assert shipped.count(f'\n#{key}="{item.default}"\n') == 1, key


def test_shipped_file_holds_no_other_key_and_loads(write):
    lines = (ROOT / "etc/dre.conf").read_text().splitlines()
    set_there = [line[1:] for line in lines if line.startswith("#DRE_")]
    assert {line.partition("=")[0] for line in set_there} == set(conf.KEYS)
    assert conf.load(str(ROOT / "etc/dre.conf")) == conf.Conf()
    assert conf.load(write("\n".join(set_there))) == conf.Conf()


def test_the_specifications_keys_and_defaults():
    made = conf.Conf()
    assert (made.bridge_if, made.default_sshd_port, made.sys_default_base) == ("br0", 22, "default")
    assert (made.sys_default_mac, made.sys_default_memory) == ("auto", 512 * 1024 * 1024)
    eight = "BRIDGE_IF DEFAULT_SSHD_PORT SYS_DEFAULT_BASE SYS_DEFAULT_NETMASK SYS_DEFAULT_GATEWAY SYS_DEFAULT_DNS"
    assert {f"DRE_{key}" for key in [*eight.split(), "SYS_DEFAULT_MAC", "SYS_DEFAULT_MEMORY"]} <= set(conf.KEYS)


def test_settings_cannot_be_changed_later():
    with pytest.raises(AttributeError):
        conf.Conf().bridge_if = "br1"


@pytest.mark.parametrize(
    "value",
    [
        "$HOME",
        "$(touch /tmp/x)",
        "`touch /tmp/x`",
        "a\\nb",
        'a"; reboot; "b',
        "a' b",
        "br0\tx",
        "br0\x1b[31m",
        "br0\0",
        "",
        " br0",
        "../br0",
        "b" * 16,
        "-br0",
    ],
)
def test_hostile_values(write, value):
    path = write(f'# comment\n\nDRE_BRIDGE_IF="{value}"\n')
    assert f"{path}:3" in refusal(path)


@pytest.mark.parametrize(
    "line",
    [
        "DRE_BRIDGE_IF",
        'DRE_BRIDGE_IF = "br1"',
        'export DRE_BRIDGE_IF="br1"',
        'DRE_BRIDGE_IF="br1',
        "DRE_BRIDGE_IF='br1\"",
        'DRE_BRIDGE_IF="br1"x',
        'DRE_BRIDGE_IF="br1" "br2"',
        'DRE_BRIDGE_IF="br1"; reboot',
        'DRE_BRIDGE_IF="br1"#x',
        "DRE_BRIDGE_IF=br1#x",
        "DRE_BRIDGE_IF=br1 reboot",
        "DRE_BRIDGE_IF=(br1)",
        'DRE_BRIDGE_IF="br1"\r',
        'DRE_BRIDGE_IF="br1"\u00a0',
        "reboot",
        ". /etc/passwd",
        'DRE_BRIDGE_IF+="x"',
    ],
)
def test_lines_that_are_no_assignment(write, line):
    path = write(f"{line}\n")
    assert refusal(path).startswith(f"{path}:1: ")


def test_message_names_file_line_key_and_what_was_expected(write):
    path = write('\n\nDRE_DEFAULT_SSHD_PORT="0"\n')
    assert refusal(path) == f"{path}:3: DRE_DEFAULT_SSHD_PORT: expected a port from 1 to 65535, got '0'"


@pytest.mark.parametrize("key", ["DRE_BRIDGE_IFF", "dre_bridge_if", "PATH", "LD_PRELOAD"])
def test_unknown_key(write, key):
    path = write(f'{key}="x"\n')
    assert refusal(path).startswith(f"{path}:1: {key}: unknown key")


@pytest.mark.parametrize(
    ("key", "bad"),
    [
        ("DRE_DEFAULT_SSHD_PORT", ["", "0", "65536", "-1", "22x", "\u0662\u0662", "1e3"]),
        ("DRE_SYS_DEFAULT_NETMASK", ["", "24", "0.0.0.255", "255.0.255.0", "255.255.255"]),
        ("DRE_SYS_DEFAULT_GATEWAY", ["", "10.0.0", "10.0.0.256", "::1", "host"]),
        ("DRE_SYS_DEFAULT_DNS", ["10.0.0.1,10.0.0.2", "10.0.0.1 host"]),
        ("DRE_SYS_DEFAULT_MAC", ["", "52:54:00:00:00", "52-54-00-00-00-01", "automatic"]),
        ("DRE_SYS_DEFAULT_MEMORY", ["", "-1", "512X", "half", "1 G", "\u0661M"]),
        ("DRE_SYS_DEFAULT_BASE", ["", "two words"]),
        (
            "DRE_BRIDGE_ADDRESS",
            ["10.0.0.1", "10.0.0.0/24", "10.0.0.255/24", "10.0.0.1/31", "10.0.0.1/33", "fd00::1/64"],
        ),
        ("DRE_BRIDGE_ADDRESS", ["10.0.0.1/255.255.255.0", "10.0.0.1/", "/24", "10.0.0.1/24/24"]),
        ("DRE_BRIDGE_NAT", ["", "true", "YES", "1"]),
        ("DRE_BRIDGE_DNS", ["", "true"]),
        ("DRE_BRIDGE_DOMAIN", ["", "two words", "-dre", "dre.", "UPPER", "a/b", "a..b", "a,b"]),
        ("DRE_BRIDGE_DHCP", ["", "yes", "10.0.0.9", "10.0.0.9-", "10.0.0.9-10.0.0.8", "a-b", "10.0.0.0/24"]),
        ("DRE_CORE_STATE_DIR", ["", "var/lib/dre", "/var/../etc", "/var/lib/.."]),
        ("DRE_MONITOR_PIPES", ["", " ", "/run/dre/script run/x"]),
        ("DRE_MONITOR_WINDOW", ["", "-1s", "soon", "1 s", "1w"]),
        ("DRE_DBOX_LISTEN", ["", "8443", ":8443", "host:", "host:0", "a b:1", "host:1:2"]),
        ("DRE_DBOX_URL", ["", "http://localhost", "https://", "https://a/b", "https://a:b", "unix:run/x", "unix:"]),
        ("DRE_DBOX_PAGE_LISTEN", ["", "yes", "8444"]),
        ("DRE_DBOX_CLIENT_RATE", ["", "-1", "1.5", "12345678"]),
        ("DRE_DBOX_DATABASE", ["", "sqlite:relative", "mysql://x", "/var/lib/x"]),
    ],
)
def test_values_of_the_wrong_kind(write, key, bad):
    for value in bad:
        path = write(f'{key}="{value}"\n')
        assert refusal(path).startswith(f"{path}:1: {key}: "), value


def test_values_become_what_they_are(write):
    path = write(
        'DRE_BRIDGE_ADDRESS="10.9.0.1/16"\nDRE_BRIDGE_NAT=no\nDRE_SYS_DEFAULT_DNS="9.9.9.9 1.1.1.1"\n'
        "DRE_SYS_DEFAULT_MAC='52:54:00:AA:00:01'\nDRE_SYS_DEFAULT_MEMORY=1.5G\nDRE_MONITOR_WINDOW=2s\n"
        'DRE_DBOX_LISTEN="[::1]:8443"\nDRE_MONITOR_PIPES="/a /b"\nDRE_CORE_STATE_DIR="/srv/my dre"\n'
    )
    made = conf.load(path)
    assert made.bridge_address == ipaddress.IPv4Interface("10.9.0.1/16")
    assert made.bridge_nat is False
    assert made.sys_default_dns == ("9.9.9.9", "1.1.1.1")
    assert made.sys_default_mac == "52:54:00:aa:00:01"
    assert made.sys_default_memory == 1536 * 1024 * 1024
    assert made.monitor_window == 2.0
    assert made.dbox_listen == ("[::1]", 8443)
    assert made.monitor_pipes == (pathlib.Path("/a"), pathlib.Path("/b"))
    assert made.core_state_dir == pathlib.Path("/srv/my dre")


def test_later_lines_and_drop_ins_win_in_order_of_names(write):
    path = write('DRE_BRIDGE_IF="a"\nDRE_BRIDGE_IF="b"\n')
    assert conf.load(path).bridge_if == "b"
    write('DRE_BRIDGE_IF="d"\n', "20-x.conf")
    write('DRE_BRIDGE_IF="c"\nDRE_BRIDGE_NAT="no"\n', "10-x.conf")
    write("not read\n", "30-x.conf.dpkg-old")
    made = conf.load(path)
    assert (made.bridge_if, made.bridge_nat) == ("d", False)


def test_who_serves_gets_the_same_settings_until_a_file_changes(write):
    path = write('DRE_BRIDGE_IF="a"\n')
    first = conf.load(path)
    assert conf.load(path) is first
    write('DRE_BRIDGE_IF="b"\n', "x.conf")
    assert (conf.load(path).bridge_if, first.bridge_if) == ("b", "a")
    os.chmod(path, 0o666)
    assert "must not be writable by others" in refusal(path), "what is known is still looked at"


def test_a_drop_in_is_as_strict(write):
    path = write("")
    drop_in = write('DRE_BRIDGE_IF="$(x)"\n', "x.conf")
    assert refusal(path).startswith(f"{drop_in}:1: DRE_BRIDGE_IF: '$'")


@pytest.mark.parametrize("drop_in", [False, True])
@pytest.mark.parametrize("mode", [0o646, 0o666, 0o602])
def test_a_file_writable_by_others(write, mode, drop_in):
    path = write("")
    file = write("", "x.conf") if drop_in else path
    os.chmod(file, mode)
    assert refusal(path) == f"{file}: must not be writable by others (mode {mode:04o})"


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root to give a file away")
def test_a_file_of_another_user_or_group(write):
    path = write("")
    os.chown(path, 65534, 0)
    assert refusal(path) == f"{path}: must be owned by root, not by uid 65534"
    os.chown(path, 0, 65534)
    assert conf.load(path) == conf.Conf()
    os.chmod(path, 0o664)
    assert "must not be writable by others" in refusal(path)


def test_what_is_no_file(write, tmp_path):
    assert refusal(str(tmp_path / "none")) == f"{tmp_path}/none: no such file"
    assert "not a regular file" in refusal(str(tmp_path)) or "directory" in refusal(str(tmp_path))
    os.mkfifo(tmp_path / "fifo")
    assert refusal(str(tmp_path / "fifo")) == f"{tmp_path}/fifo: not a regular file"
    assert refusal("/dev/zero") == "/dev/zero: not a regular file"


def test_what_is_no_text(write):
    path = write(b'DRE_BRIDGE_IF="\xff"\n')
    assert refusal(path) == f"{path}: not UTF-8 text"


@given(st.text(alphabet=string.printable + "\u00a0\u2028é", max_size=30))
def test_any_line_that_is_accepted_means_the_same_to_sh(tail):
    """Written, then read by sh itself in an empty environment: the witness for 'readable by sh'."""
    line = f"DRE_SYS_DEFAULT_BASE={tail}"
    if "\n" in line or "\r" in line:
        return
    try:
        _, value = conf._assignment("x:1", line.strip(" \t"))
    except UsageError:
        return
    script = f'{line}\nprintf %s "$DRE_SYS_DEFAULT_BASE"'
    said = subprocess.run(["/bin/sh", "-c", script], capture_output=True, env={}, check=True, timeout=10)
    assert said.stdout.decode() == value


@given(st.text(max_size=40))
def test_any_text_is_accepted_or_refused_and_nothing_else(text):
    for key in conf.KEYS:
        for line in (f"{key}={text}", f'{key}="{text}"', f"{key}={shlex.quote(text)}"):
            try:
                conf._assignment("x:1", line)
            except UsageError as error:
                assert str(error).startswith("x:1: ")


OCTET = st.sampled_from(["0", "1", "127", "128", "254", "255", "256", "01", "", "1_0", "\u0661", "-1", "+1", " 1", "a"])
LENGTH = st.sampled_from(["7", "8", "08", "008", "24", "25", "29", "30", "31", "32", "", "+8", " 8", "\u0668", "2_4"])


@given(st.lists(OCTET, min_size=3, max_size=5), st.none() | LENGTH)
def test_an_address_is_what_the_library_takes_for_one(octets, length):
    text = ".".join(octets) + ("" if length is None else f"/{length}")
    try:
        there = ipaddress.IPv4Interface(text)
        good = length in ("8", "08", "24", "25", "29", "30")
        good = good and there.ip not in (there.network.network_address, there.network.broadcast_address)
    except ValueError:
        good = False
    try:
        assert conf._address(text) == there and good
    except UsageError:
        assert not good


@given(st.sampled_from([key for key, item in conf.KEYS.items() if item.check]), st.text("/.1a 2", max_size=12))
def test_what_is_only_checked_has_a_value(key, text):
    """The check of a text that becomes a value later must refuse what would not."""
    item = conf.KEYS[key]
    with contextlib.suppress(UsageError):
        made = conf.Conf(**dict([conf._assignment("x:1", f'{key}="{text}"')]))
        assert getattr(made, item.name) == item.kind(text)


def test_a_place_is_the_path_as_text(write):
    made = conf.load(write('DRE_CORE_RUN_DIR="/x//y/"\n'))
    assert [made.place("core_run_dir"), str(made.core_run_dir), made.place("core_run_dir")] == ["/x/y"] * 3
    assert made.place("core_state_dir") == str(conf.Conf().core_state_dir)
    with pytest.raises(TypeError, match="no_such"):
        conf.Conf(no_such=1)
