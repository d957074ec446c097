# SPDX-License-Identifier: Apache-2.0
"""Where a system can be sent to, what of a file is sent, and what another host's paths make of a definition."""

import contextlib
import os
import types
from xml.etree import ElementTree

import libvirt
import pytest
from dre.errors import DreError, MissingError, TimedOutError, UsageError
from dre.system import carrying, hypervisor, live, migrate, remote, transit


@pytest.mark.parametrize(
    ("text", "uri", "private"),
    [
        ("h", "qemu+ssh://h/system?no_tty=1", True),
        ("me@h.example", "qemu+ssh://me@h.example/system?no_tty=1", True),
        ("fe80::1", "qemu+ssh://[fe80::1]/system?no_tty=1", True),
        ("qemu+tls://h/system?pkipath=/p", "qemu+tls://h/system?pkipath=/p", True),
        ("qemu+ssh://me@h:22/system?keyfile=/k", "qemu+ssh://me@h:22/system?keyfile=/k&no_tty=1", True),
        ("qemu+tcp://[::1]:16509/system", "qemu+tcp://[::1]:16509/system", False),
    ],
)
def test_a_way_is_one_by_ssh_or_what_a_uri_says(text, uri, private):
    way = remote.way(text)
    assert (way.uri, way.private) == (uri, private)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "-oProxyCommand=x",
        "a b",
        "h/x",
        "h?command=x",
        "xen://h/system",
        "qemu:///system",
        "qemu+ssh://h/session",
        "qemu+ssh://h/system?command=/bin/sh",
        "qemu+ssh://h/system?netcat=/bin/sh",
        "qemu+ssh://h/system?no_verify=1",
        "qemu+tls://h:x/system",
        "qemu+ssh://h\n/system",
        "qemu+unix://h/system",
    ],
)
def test_what_is_no_way_is_refused(text):
    with pytest.raises(UsageError):
        remote.way(text)


def test_all_of_a_file_is_sent_but_large_holes(tmp_path):
    path = tmp_path / "file"
    with path.open("wb") as stream:
        for begin in (0, 512 << 10, 8 << 20):  # the first hole is a small one
            stream.seek(begin)
            stream.write(b"x" * 4096)
        stream.truncate(16 << 20)
    with path.open("rb") as stream:
        found = list(remote._parts(stream.fileno(), 16 << 20))
        assert [(begin, end >= begin + 4096) for begin, end in found] == [(0, True), (8 << 20, True)]
        assert all(data in (b"", b"\0") for data in {bytes({*rest}) for rest in holes(stream, found, 16 << 20)})
    path.write_bytes(b"")
    with path.open("rb") as stream:
        assert list(remote._parts(stream.fileno(), 0)) == []


def holes(stream, parts, size):
    """The octets that lie outside of *parts*."""
    for begin, end in zip([0, *(end for _, end in parts)], [*(begin for begin, _ in parts), size], strict=True):
        yield os.pread(stream.fileno(), end - begin, begin)


def test_only_what_lies_elsewhere_is_put_elsewhere():
    top = ElementTree.fromstring(
        "<domain><os><kernel>/a/k</kernel><initrd>/a/i</initrd></os><devices><disk><source file='/a/d'/></disk>"
        "<disk><source file='/a/dd'/></disk></devices></domain>"
    )
    carrying.relocate(top, {"/a/k": "/b/k", "/a/d": "/b/d"})
    assert (top.findtext("os/kernel"), top.findtext("os/initrd")) == ("/b/k", "/a/i")
    assert [source.get("file") for source in top.iter("source")] == ["/b/d", "/a/dd"]


def test_a_definition_bears_one_move():
    top = ElementTree.fromstring("<domain><metadata><x:y xmlns:x='urn:x'/></metadata></domain>")
    for stage in (migrate.ARRIVING, migrate.ARRIVED):
        migrate.set_mark(top, "1f", stage)
    moves = top.findall(f"metadata/{{{migrate.NAMESPACE}}}move")
    assert [(move.get("id"), move.text) for move in moves] == [("1f", "arrived")]
    assert len(top.find("metadata")) == 2


def test_a_move_that_is_too_late_ends():
    meter = carrying.Meter("s1", None, 0.0, lambda _: None)
    with pytest.raises(TimedOutError):
        meter(1)


class There:
    """A libvirt that takes what is sent, tells of no error, and has *kept* of it, in blocks of *allocated* octets."""

    def __init__(self, kept, allocated, size):
        self.kept, self.allocated, self.size = kept, allocated, size
        self.way, self.connection = types.SimpleNamespace(host="there"), self
        self.translated = lambda name: contextlib.nullcontext()
        self.newStream = self.storageVolLookupByName = lambda *_: self
        self.upload = self.download = self.finish = self.abort = lambda *_: None
        self.send, self.name = len, lambda: "disk"

    def recv(self, _):
        piece, self.kept = self.kept, b""
        return piece

    def info(self):
        return [0, self.size, self.allocated]

    def infoFlags(self, _):
        return [0, self.size, self.size]


def test_an_error_that_libvirt_lost_is_found(tmp_path):
    octets = os.urandom(1 << 20)
    (tmp_path / "disk").write_bytes(octets)
    for kept, allocated, whole in (
        (octets, 1 << 20, True),
        (octets, 1 << 19, True),  # a file system that compresses
        (octets[: 1 << 19] + bytes(1 << 19), 1 << 19, False),
    ):
        there = There(kept, allocated, len(octets))
        directory = remote.Directory(there, tmp_path, there)
        with contextlib.nullcontext() if whole else pytest.raises(DreError, match="No space"):
            directory.fill(there, tmp_path / "disk", lambda _: None)


def test_a_move_under_way_has_a_connection_that_nobody_else_calls():
    """libvirt 9.0 may hold back what a second thread calls until the first one's answer is there."""
    system = types.SimpleNamespace(name="test", conf=types.SimpleNamespace(sys_uri="test:///default"))
    common = hypervisor.connect(system.conf)
    used = []

    def work(domain):
        used.extend([domain.name(), domain.connect()])
        assert used[1] is not common
        raise libvirt.libvirtError("did not move")

    watch = transit.Watch(system)
    watch.begin(work)
    assert watch.ended(60)
    assert used[0] == "test"
    assert used[1] is not common
    assert [str(error) for error in watch.failure] == ["did not move"]
    with pytest.raises(libvirt.libvirtError):  # and it is closed
        used[1].getHostname()
    hypervisor._connected.cache_clear()  # libvirt's objects complain when they outlive the modules


@pytest.mark.parametrize("key", ["default", "migrate"])
def test_where_qemu_has_no_certificates_it_is_told_before(tmp_path, monkeypatch, key):
    """libvirt tells it when all else is done, as an end of file."""
    conf = tmp_path / "qemu.conf"
    monkeypatch.setattr(live, "_QEMU_CONF", conf)
    lines = f'#migrate_tls_x509_cert_dir = "/nowhere"\ndefault_tls_x509_cert_dir = "{tmp_path}"\n'
    conf.write_text(lines if key == "default" else f'{lines}migrate_tls_x509_cert_dir = "{tmp_path}/more"\n')
    place = tmp_path if key == "default" else tmp_path / "more"
    with pytest.raises(MissingError, match=f"{place}/ca-cert.pem: no such file"):
        live._need_certificate()
    place.mkdir(exist_ok=True)
    (place / "ca-cert.pem").touch()
    live._need_certificate()


@pytest.mark.parametrize(
    ("there", "told"),
    [
        (["/run/systemd/system/", "/lib/systemd/system/libvirtd.socket", "/usr/sbin/libvirtd"], "systemctl start"),
        (["/run/systemd/system/", "/usr/sbin/libvirtd"], "apt-get install libvirt-daemon-system"),
        (["/etc/init.d/libvirtd", "/usr/sbin/libvirtd"], "service libvirtd start"),
        (["/usr/sbin/libvirtd"], "libvirtd -d"),
        ([], "apt-get install libvirt-daemon-system"),
    ],
)
def test_what_to_type_where_libvirt_does_not_answer(tmp_path, monkeypatch, there, told):
    for name in there:
        path = tmp_path / name[1:]
        path.parent.mkdir(parents=True, exist_ok=True)
        path.mkdir() if name.endswith("/") else path.touch()
    monkeypatch.setattr(hypervisor, "Path", lambda name: tmp_path / name[1:])
    assert told in hypervisor.remedy()
