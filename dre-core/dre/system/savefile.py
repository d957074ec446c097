# SPDX-License-Identifier: Apache-2.0
"""The file that libvirt saves a domain's memory in, given another definition: so a guest goes on under another name.

The head is src/qemu/qemu_saveimage.h of libvirt: magic, version, length of XML and cookie together, whether it ran,
compression, where the cookie begins, 14 words without use; then XML, cookie, and what QEMU wrote. libvirt itself takes
a changed definition only for the same name and UUID.
"""

import struct
from collections.abc import Callable
from pathlib import Path
from xml.etree.ElementTree import Element

from dre.errors import DreError
from dre.system import domain as definitions

_HEAD = struct.Struct("<16s19I")
_MAGIC, _VERSION = b"LibvirtQemudSave", 2
_LONGEST = 1 << 24


def head(path: Path) -> bytes:
    """All that stands before the memory. Raises DreError for a file of another kind."""
    with path.open("rb") as stream:
        octets = stream.read(_HEAD.size)
        found = _HEAD.unpack(octets) if len(octets) == _HEAD.size else (b"",)
        if found[0] != _MAGIC or found[1] != _VERSION or not found[5] < found[2] < _LONGEST:
            raise DreError(f"{path}: a save file of a libvirt that this version does not know")
        return octets + stream.read(found[2])


def rewrite(path: Path, octets: bytes, change: Callable[[Element], None]) -> None:
    """Give the file *path*, whose head was *octets*, the definition that *change* makes of the one in there.

    It is done in place, and the memory is not copied. Raises DreError where there is no room, or no definition.
    """
    words, body = list(_HEAD.unpack(octets[: _HEAD.size])), octets[_HEAD.size :]
    length, cookie = words[2], words[5]
    xml, rest = body[: cookie or length].rstrip(b"\0"), body[cookie:].rstrip(b"\0") if cookie else b""
    try:
        top = definitions.parse(xml.decode())
        change(top)
    except (AttributeError, SyntaxError, ValueError) as error:  # a ParseError is a SyntaxError
        raise DreError(f"{path}: no definition of libvirt's in it: {error!r}") from None
    for channel in top.iterfind("devices/channel/source"):
        channel.attrib.pop("path", None)  # libvirt gives each domain its own
    text = definitions.to_xml(top).encode() + b"\0"
    if len(text) + len(rest) + 1 > length:
        raise DreError(f"{path}: no room for another definition")
    words[5] = len(text) if rest else 0
    with path.open("r+b") as stream:
        stream.write(_HEAD.pack(*words) + (text + rest).ljust(length, b"\0"))
