# SPDX-License-Identifier: Apache-2.0
"""Another host as its libvirt gives it: the way there, files in its directories by storage volumes. Knows no systems.

No shell is needed there: a directory pool of libvirt makes a directory, a volume of it a file, and a stream fills it,
all on the one connection. The pools are transient and ours; one that the host has for a directory is used and left.
"""

import contextlib
import hashlib
import os
import queue
import re
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, urlsplit
from xml.etree.ElementTree import Element, SubElement

from dre import peer
from dre.errors import DreError, TimedOutError, UsageError
from dre.system import domain as definitions
from dre.system import hypervisor

_ALIVE = 3, 3  # seconds between two signs of life, and how many may be missed: a cut link is noticed
_PIECE = 256 << 10  # octets of one message of a stream; a little less than what the oldest libvirt takes
_SCHEMES = {"qemu": True, "qemu+tls": True, "qemu+ssh": True, "qemu+tcp": False}  # and whether nobody can listen
# Of libvirt's URI parameters; `command`, `netcat` and others would run a program, `no_verify` believe any host.
_PARAMETERS = ("keyfile", "known_hosts", "pkipath", "socket", "mode")
_HOLE = 1 << 20  # octets of a hole that is not sent
_OURS = "dre-"


@dataclass(frozen=True)
class Way:
    """How to reach the libvirt of a host: as it was typed, and as a URI."""

    host: str
    uri: str

    @property
    def private(self) -> bool:
        """Whether nobody on the way can listen."""
        return _SCHEMES[urlsplit(self.uri).scheme]


def way(text: str) -> Way:
    """The way to `[user@]host`, by ssh, or to the libvirt that a URI names. Raises UsageError."""
    if "://" not in text:
        host = peer.host(text)
        return Way(host, f"qemu+ssh://{f'[{host}]' if host.count(':') > 1 else host}/system?no_tty=1")
    try:
        parts = urlsplit(text)
        name, _ = parts.hostname, parts.port
    except ValueError:
        name = None
    if not name or not re.fullmatch(r"[!-~]+", text):
        raise UsageError(f"{text!r} is not the URI of another host's libvirt")
    if parts.scheme not in _SCHEMES or parts.path != "/system":
        raise UsageError(f"{text}: expected {', '.join(_SCHEMES)} and /system, such as qemu+ssh://{name}/system")
    for key, _ in parse_qsl(parts.query, keep_blank_values=True):
        if key not in _PARAMETERS:
            raise UsageError(f"{text}: parameter {key}: expected one of {', '.join(_PARAMETERS)}")
    end = ("&" if parts.query else "?") + "no_tty=1" if parts.scheme == "qemu+ssh" else ""
    return Way(text, text + end)


class Host:
    """An open connection to the libvirt there."""

    def __init__(self, way: Way, wait: float) -> None:
        self.way = way
        self.connection = _opened(way, wait)

    def __enter__(self) -> "Host":
        return self

    def __exit__(self, *error: object) -> None:
        import libvirt

        with contextlib.suppress(libvirt.libvirtError):
            self.connection.close()

    def find(self, key: str) -> Any:
        """The domain of that name or UUID there, or None."""
        import libvirt

        look = self.connection.lookupByUUIDString if len(key) == 36 else self.connection.lookupByName
        with self.translated(key):
            try:
                return look(key)
            except libvirt.libvirtError as error:
                if hypervisor.code(error) == libvirt.VIR_ERR_NO_DOMAIN:
                    return None
                raise

    @contextlib.contextmanager
    def translated(self, what: str) -> Iterator[None]:
        """Errors of libvirt within as ours, naming the host."""
        with hypervisor.translated(f"{self.way.host}: {what}"):
            yield

    @contextlib.contextmanager
    def directory(self, path: Path, make: bool = False) -> "Iterator[Directory | None]":
        """The directory *path* there; None when there is none, and *make* does not make it."""
        pool, ours = self._pool(path, make)
        if pool is None:
            yield None
            return
        try:
            yield Directory(self, path, pool)
        finally:
            if ours:
                _drop(pool)

    def _pool(self, path: Path, make: bool) -> tuple[Any, bool]:
        """A pool of that directory, and whether it is ours."""
        import libvirt

        with self.translated(str(path)):
            for pool in self.connection.listAllStoragePools(libvirt.VIR_CONNECT_LIST_STORAGE_POOLS_DIR):
                with contextlib.suppress(libvirt.libvirtError):
                    if definitions.parse(pool.XMLDesc()).findtext("target/path") == str(path):
                        if not pool.isActive():
                            pool.create()
                        pool.refresh()
                        return pool, pool.name().startswith(_OURS)
            try:
                return self.connection.storagePoolCreateXML(_pool_xml(path)), True
            except libvirt.libvirtError:
                if not make:
                    return None, False
            build = libvirt.VIR_STORAGE_POOL_CREATE_WITH_BUILD
            return self.connection.storagePoolCreateXML(_pool_xml(path, 0o711), build), True

    def rmdir(self, path: Path) -> None:
        """Remove the directory *path* there where it is empty."""
        import libvirt

        with contextlib.suppress(libvirt.libvirtError):
            pool, ours = self._pool(path, False)
            if pool is None or not ours:
                return
            _drop(pool)
            pool = self.connection.storagePoolDefineXML(_pool_xml(path))
            try:
                pool.delete()
            finally:
                pool.undefine()

    def make_quiet(self, identity: str) -> bool:
        """Have libvirt there make a bridge that leads nowhere; False where it cannot: not every host has that part."""
        import libvirt

        name = quiet_bridge(identity)
        top = Element("network")
        SubElement(top, "name").text = name
        SubElement(top, "bridge", name=name, stp="off", delay="0")
        try:
            self.connection.networkCreateXML(definitions.to_xml(top))
        except libvirt.libvirtError:
            return False
        return True

    def end_quiet(self, identity: str) -> None:
        """Remove that bridge, when it is there."""
        import libvirt

        with contextlib.suppress(libvirt.libvirtError):
            self.connection.networkLookupByName(quiet_bridge(identity)).destroy()

    def forget_pools(self) -> None:
        """Remove the pools that a killed command has left."""
        import libvirt

        with self.translated("storage pools"):
            for pool in self.connection.listAllStoragePools(libvirt.VIR_CONNECT_LIST_STORAGE_POOLS_TRANSIENT):
                if pool.name().startswith(_OURS):
                    _drop(pool)


def quiet_bridge(identity: str) -> str:
    """The name of the bridge there that leads nowhere, of the move *identity*."""
    return f"dreq{identity[:10]}"


@dataclass(frozen=True)
class Directory:
    """A directory there, while its pool is up."""

    host: Host
    path: Path
    pool: Any

    def sizes(self) -> dict[str, int]:
        """The files in it and how many octets each has."""
        with self.host.translated(str(self.path)):
            return {volume.name(): self._size(volume) for volume in self.pool.listAllVolumes()}

    def _size(self, volume: Any) -> int:
        import libvirt

        return int(volume.infoFlags(libvirt.VIR_STORAGE_VOL_GET_PHYSICAL)[2])

    def make(self, name: str, size: int, mode: int, backing: tuple[Path, str] | None = None) -> Any:
        """Make the file *name*: of *size* octets, or with *backing* a qcow2 disk of that size on another."""
        top = Element("volume", type="file")
        SubElement(top, "name").text = name
        SubElement(top, "capacity", unit="bytes").text = str(size)
        SubElement(top, "allocation", unit="bytes").text = "0"
        target = SubElement(top, "target")
        SubElement(target, "format", type="qcow2" if backing else "raw")
        permissions = SubElement(target, "permissions")
        for key, value in (("mode", f"{mode:04o}"), ("owner", "0"), ("group", "0")):
            SubElement(permissions, key).text = value
        if backing and backing[0] != Path():
            store = SubElement(top, "backingStore")
            SubElement(store, "path").text = str(backing[0])
            SubElement(store, "format", type=backing[1])
        with self.host.translated(str(self.path / name)):
            return self.pool.createXML(definitions.to_xml(top))

    def remove(self, name: str) -> None:
        """Remove the file *name*, when it is there."""
        import libvirt

        with contextlib.suppress(libvirt.libvirtError):
            self.pool.storageVolLookupByName(name).delete()

    def fill(self, volume: Any, source: Path, told: Callable[[int], None]) -> str:
        """Fill a new volume with what *source* holds, but for its holes; the sha256 of it. *told* hears of each piece.

        What *told* raises ends it. Each part is a stream of its own: after an error libvirt 9 answers a hole that is
        sent as one by closing the connection.
        """
        name = str(self.path / volume.name())
        digest = hashlib.sha256()
        with self.host.translated(name), source.open("rb") as stream:
            size, here, sent = os.fstat(stream.fileno()).st_size, 0, 0
            for begin, end in _parts(stream.fileno(), size):
                _zeros(digest, begin - here)
                os.lseek(stream.fileno(), begin, os.SEEK_SET)
                with self._stream() as way:
                    volume.upload(way, begin, end - begin, 0)
                    _send(way, stream.fileno(), end - begin, digest, told)
                here, sent = end, sent + end - begin
            _zeros(digest, size - here)
            found, allocated = self._size(volume), int(volume.info()[2])
        if found != size:
            raise DreError(f"{self.host.way.host}: {name}: has {found} octets, sent were {size}")
        # libvirt has been seen to lose the error of a full disk. Less is right, too, where a file system compresses.
        if allocated < sent and self.digest(volume.name(), lambda _: None) != digest.hexdigest():
            raise DreError(f"{self.host.way.host}: {name}: is not what was sent: No space left there?")
        return digest.hexdigest()

    @contextlib.contextmanager
    def _stream(self) -> Iterator[Any]:
        """A stream to or from there."""
        import libvirt

        way = self.host.connection.newStream()
        try:
            yield way
            way.finish()
        except BaseException:
            with contextlib.suppress(libvirt.libvirtError):
                way.abort()
            raise

    def digest(self, name: str, told: Callable[[int], None]) -> str:
        """The sha256 of the file *name*, which is read for that."""
        digest = hashlib.sha256()
        for piece in self._read(name, 0):
            digest.update(piece)
            told(len(piece))
        return digest.hexdigest()

    def read(self, name: str, most: int = 1 << 20) -> bytes:
        """The first octets of the file *name*."""
        return b"".join(self._read(name, most))

    def _read(self, name: str, most: int) -> Iterator[bytes]:
        with self.host.translated(str(self.path / name)), self._stream() as way:
            self.pool.storageVolLookupByName(name).download(way, 0, most)
            while piece := way.recv(_PIECE):
                yield piece


def _parts(fd: int, size: int) -> Iterator[tuple[int, int]]:
    """Begin and end of each part of a file that is not a large hole."""
    begin = end = 0
    while end < size:
        try:
            data = os.lseek(fd, end, os.SEEK_DATA)
        except OSError:  # ENXIO: nothing more
            break
        if data - end > _HOLE:
            if end > begin:
                yield begin, end
            begin = data
        end = os.lseek(fd, data, os.SEEK_HOLE)
    if end > begin:
        yield begin, end


def _zeros(digest: Any, length: int) -> None:
    nothing = bytes(_PIECE)
    while length > 0:
        digest.update(nothing[:length])
        length -= _PIECE


def _send(way: Any, fd: int, length: int, digest: Any, told: Callable[[int], None]) -> None:
    while length > 0:
        piece = os.read(fd, min(length, _PIECE - 24))
        if not piece:
            raise DreError("the file became shorter while it was sent")
        digest.update(piece)
        length -= len(piece)
        told(len(piece))
        while piece:
            piece = piece[way.send(piece) :]


def _pool_xml(path: Path, mode: int | None = None) -> str:
    top = Element("pool", type="dir")
    SubElement(top, "name").text = _OURS + hashlib.sha256(str(path).encode()).hexdigest()[:16]
    target = SubElement(top, "target")
    SubElement(target, "path").text = str(path)
    if mode is not None:
        permissions = SubElement(target, "permissions")
        for key, value in (("mode", f"{mode:04o}"), ("owner", "0"), ("group", "0")):
            SubElement(permissions, key).text = value
    return definitions.to_xml(top)


def _drop(pool: Any) -> None:
    """End a pool of ours; its directory stays."""
    import libvirt

    with contextlib.suppress(libvirt.libvirtError):
        pool.destroy()


def _opened(way: Way, wait: float) -> Any:
    """A connection whose other end is known to live. Raises TimedOutError, or what libvirt says as ours."""
    import libvirt

    _run_events()
    answers: queue.SimpleQueue[Any] = queue.SimpleQueue()

    def work() -> None:  # libvirt knows no deadline for this
        try:
            answers.put(libvirt.open(way.uri))
        except libvirt.libvirtError as error:
            answers.put(error)

    threading.Thread(target=work, daemon=True).start()
    try:
        found = answers.get(timeout=wait)
    except queue.Empty:
        raise TimedOutError(f"{way.host}: its libvirt does not answer within {wait:g} s") from None
    with hypervisor.translated(f"{way.host}: no libvirt answers there"):
        if isinstance(found, libvirt.libvirtError):
            raise found
        found.setKeepAlive(*_ALIVE)
    return found


def listening(uri: str) -> Any:
    """A connection by which libvirt's events are heard."""
    import libvirt

    _run_events()
    return libvirt.open(uri)


_events = threading.Lock()
_running: list[int] = []  # the process whose loop of events runs


def _run_events() -> None:
    """Run libvirt's loop of events, without which it does not notice that the other end has gone."""
    import libvirt

    def work() -> None:
        while True:
            try:
                libvirt.virEventRunDefaultImpl()
            except libvirt.libvirtError:
                time.sleep(0.1)

    with _events:
        if os.getpid() in _running:
            return
        if not _running:
            libvirt.virEventRegisterDefaultImpl()
        _running[:] = [os.getpid()]
        threading.Thread(target=work, daemon=True).start()
