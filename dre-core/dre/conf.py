# SPDX-License-Identifier: Apache-2.0
"""The settings of all programs: /etc/dre.conf and its drop-ins, read once, parsed and never executed.

The shipped etc/dre.conf is the reference of the keys; this module is their types. Nothing else opens the files.
Every program begins here and wants few of the values: what makes one of a text is loaded when it is wanted, and so are
regular expressions, paths and the types of annotations, all slow to load.
"""

from __future__ import annotations

import os
import stat

from dre import units
from dre.errors import UsageError

TYPE_CHECKING = False  # as of the module typing
if TYPE_CHECKING:
    import ipaddress
    import re
    from collections.abc import Callable
    from pathlib import Path
    from typing import Any

    from dre import streams

DEFAULT = "/etc/dre.conf"
_SERVER = (
    r"mysql://([A-Za-z0-9._-]+@)?[A-Za-z0-9.-]+(:[0-9]{1,5})?/[A-Za-z0-9_]+(\?[a-z_]+=/[^\s&]+(&[a-z_]+=/[^\s&]+)*)?"
)
_IN_INTERFACES = frozenset("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789_.-")
_OCTETS = frozenset(map(str, range(256)))
_LENGTHS = frozenset(f"{length:{form}}" for length in range(8, 31) for form in ("d", "02d"))
_BARE = _IN_INTERFACES | frozenset("/:,%+@")  # needs no quotes


def _match(pattern: str, text: str) -> re.Match[str] | None:
    import re

    return re.fullmatch(pattern, text)


def _interface(text: str) -> str:
    if not (text[:1].isalpha() and len(text) < 16 and _IN_INTERFACES.issuperset(text)):
        raise UsageError(f"expected a network interface name of at most 15 characters, got {text!r}")
    return text


def _of_host(text: str) -> None:
    quad, _, length = text.partition("/")
    numbers = [int(word) for word in quad.split(".") if word in _OCTETS]
    if len(numbers) == quad.count(".") + 1 == 4 and length in _LENGTHS:
        rest = (1 << 32 - int(length)) - 1
        if 0 < int.from_bytes(numbers, "big") & rest < rest:  # neither the network itself nor all of its hosts
            return
    raise UsageError(f"expected the address of a host and a length from 8 to 30 such as 10.231.0.1/24, got {text!r}")


def _address(text: str) -> ipaddress.IPv4Interface:
    _of_host(text)
    import ipaddress

    return ipaddress.IPv4Interface(text)


def _address6(text: str) -> ipaddress.IPv6Interface | None:
    import ipaddress

    try:
        address = ipaddress.IPv6Interface(text) if text else None
        if address and (address.network.prefixlen != 64 or address.is_link_local or address.ip == address.network[0]):
            raise ValueError
        return address
    except ValueError:
        raise UsageError(f"expected nothing, or a host's address with /64 such as fd00:d::1/64, got {text!r}") from None


def _link(text: str) -> str:
    return _interface(text) if text else ""


def _ip(text: str) -> str:
    import ipaddress

    try:
        return str(ipaddress.IPv4Address(text))
    except ValueError:
        raise UsageError(f"expected an IPv4 address, got {text!r}") from None


def _ips(text: str) -> tuple[str, ...]:
    return tuple(_ip(word) for word in text.split())


def _netmask(text: str) -> str:
    import ipaddress

    try:
        if str(ipaddress.IPv4Network(f"0.0.0.0/{text}").netmask) == text:
            return text
    except ValueError:
        pass  # refused below, as a length and a host mask are
    raise UsageError(f"expected a netmask such as 255.255.255.0, got {text!r}")


def _mac(text: str) -> str:
    if text != "auto" and not _match(r"[0-9a-f]{2}(:[0-9a-f]{2}){5}", text.lower()):
        raise UsageError(f"expected 'auto' or the first address of a range such as 52:54:00:00:00:01, got {text!r}")
    return text.lower()


def _port(text: str) -> int:
    if not _match(r"[0-9]{1,5}", text) or not 0 < int(text) < 65536:
        raise UsageError(f"expected a port from 1 to 65535, got {text!r}")
    return int(text)


def _listen(text: str) -> tuple[str, int]:
    host, _, port = text.rpartition(":")
    if not _match(r"[A-Za-z0-9.-]+|\[[0-9a-fA-F:.]+\]", host):
        raise UsageError(f"expected HOST:PORT, got {text!r}")
    return host, _port(port)


def _yes(text: str) -> bool:
    if text not in ("yes", "no"):
        raise UsageError(f"expected yes or no, got {text!r}")
    return text == "yes"


def _domain(text: str) -> str:
    if not _match(r"[a-z0-9]([a-z0-9-]*[a-z0-9])?(\.[a-z0-9]([a-z0-9-]*[a-z0-9])?)*", text) or len(text) > 200:
        raise UsageError(f"expected a domain such as dre or apps.example.org, got {text!r}")
    return text


def _range(text: str) -> str | tuple[ipaddress.IPv4Address, ipaddress.IPv4Address]:
    if text in ("auto", "no"):
        return text
    import ipaddress

    first, dash, last = text.partition("-")
    try:
        if not dash or ipaddress.IPv4Address(first) > ipaddress.IPv4Address(last):
            raise ValueError
        return ipaddress.IPv4Address(first), ipaddress.IPv4Address(last)
    except ValueError:
        raise UsageError(f"expected auto, no, or FIRST-LAST such as 10.231.0.224-10.231.0.254, got {text!r}") from None


def _ids(text: str) -> tuple[int, int] | None:
    if text == "auto":
        return None
    match = _match(r"([0-9]{5,10}):([0-9]{5,10})", text)
    first, count = map(int, match.groups()) if match else (0, 0)
    if first < 65536 or count < 65536 or first + count >= 1 << 32:
        raise UsageError(f"expected auto or FIRST:COUNT, both 65536 or more, such as 1879048192:6553600, got {text!r}")
    return first, count


def _absolute(text: str) -> None:
    if not text.startswith("/") or "/../" in f"{text}/":
        raise UsageError(f"expected an absolute path, got {text!r}")


def _path(text: str) -> Path:
    _absolute(text)
    from pathlib import Path

    return Path(text)


def _each_absolute(text: str) -> None:
    if not text.split():
        raise UsageError("expected absolute paths separated by spaces, got none")
    for word in text.split():
        _absolute(word)


def _paths(text: str) -> tuple[Path, ...]:
    _each_absolute(text)
    return tuple(map(_path, text.split()))


def _log_size(text: str) -> int:
    size = units.size(text)
    if size < 4096:
        raise UsageError(f"expected a size of at least 4K, got {text!r}")
    return size


def _url(text: str) -> str:
    if not _match(r"https://[A-Za-z0-9.-]+(:[0-9]{1,5})?|unix:/\S+", text):
        raise UsageError(f"expected https://HOST[:PORT] or unix:/PATH, got {text!r}")
    return text


def _maybe_listen(text: str) -> tuple[str, int] | None:
    return None if text == "no" else _listen(text)


def _rate(text: str) -> int:
    if not _match(r"[0-9]{1,7}", text):
        raise UsageError(f"expected a number of requests per second, or 0 for no limit, got {text!r}")
    return int(text)


def _database(text: str) -> str:
    if not _match(r"sqlite:/\S+|" + _SERVER, text):
        raise UsageError(f"expected sqlite:/PATH or mysql://[USER@]HOST[:PORT]/NAME, got {text!r}")
    return text


def _account(text: str) -> str:
    if not _match(_SERVER, text) and text:
        raise UsageError(f"expected nothing, or mysql://[USER@]HOST[:PORT]/NAME, got {text!r}")
    return text


def _optional(text: str) -> Path | None:
    return _path(text) if text else None


def _virt(text: str) -> str:
    if text not in ("auto", "kvm", "tcg"):
        raise UsageError(f"expected auto, kvm or tcg, got {text!r}")
    return text


def _correlator(text: str) -> str:
    if text not in ("sec", "dre"):
        raise UsageError(f"expected sec or dre, got {text!r}")
    return text


def _word(text: str) -> str:
    if not _match(r"\S+", text):
        raise UsageError(f"expected one word, got {text!r}")
    return text


def _heads(text: str) -> int:
    if not _match(r"[1-9][0-9]{0,11}", text):
        raise UsageError(f"expected a number of tree heads from 1, got {text!r}")
    return int(text)


def _bits(text: str) -> int:
    if text not in ("2048", "3072", "4096"):
        raise UsageError(f"expected 2048, 3072 or 4096, got {text!r}")
    return int(text)


def _key_store(text: str) -> str:
    if text != "file" and not _match(r"(pkcs11|tpm2):\S+", text):
        raise UsageError(f"expected file, pkcs11:token=LABEL?module-path=/PATH or tpm2:TCTI, got {text!r}")
    return text


def _http(text: str) -> str:
    if text and not _match(r"https?://[^\s@]+", text):
        raise UsageError(f"expected nothing, or a URL such as https://tsa.example.org/tsr, got {text!r}")
    return text


def _streams(text: str) -> streams.Policies:
    from dre import streams

    return streams.parse(text)


class Key:
    """One key: its default, and the *kind* that makes a value of a text.

    Of what is set the value is made at once, for what is wrong is refused where it is read; with a *check*, which
    refuses the same, only when it is asked for, as that of a default is.
    """

    def __init__(self, default: str, kind: Callable[[str], Any], check: Callable[[str], None] | None = None) -> None:
        self.default = default
        self.kind = kind
        self.check = check

    def __set_name__(self, owner: type, name: str) -> None:
        self.name = name

    def __get__(self, conf: Conf | None, owner: type) -> Any:
        if conf is None:
            return self
        value = conf.values.get(self.name, self)
        if value is self or (self.check is not None and isinstance(value, str)):
            value = conf.values[self.name] = self.kind(self.default if value is self else value)
        return value

    def __set__(self, conf: Conf, value: Any) -> None:
        raise AttributeError(f"{self.name}: settings are not changed")

    def read(self, text: str) -> Any:
        """What is kept of *text*: the value, or the checked text. Raises UsageError."""
        if self.check is None:
            return self.kind(text)
        self.check(text)
        return text


def _key(default: str, kind: Callable[[str], Any], check: Callable[[str], None] | None = None) -> Any:
    return Key(default, kind, check)


def _place(default: str) -> Any:
    return Key(default, _path, _absolute)


class Conf:
    """All settings, typed; the attribute `bridge_if` is the key DRE_BRIDGE_IF, and so on."""

    __slots__ = ("values",)

    bridge_if: str = _key("br0", _interface)
    default_sshd_port: int = _key("22", _port)
    sys_default_base: str = _key("default", _word)
    sys_default_netmask: str = _key("255.255.255.0", _netmask)
    sys_default_gateway: str = _key("10.231.0.1", _ip)
    sys_default_dns: tuple[str, ...] = _key("10.231.0.1", _ips)
    sys_default_mac: str = _key("auto", _mac)
    sys_default_memory: int = _key("512M", units.size)
    sys_uri: str = _key("qemu:///system", _word)
    sys_virt: str = _key("auto", _virt)

    bridge_address: ipaddress.IPv4Interface = _key("10.231.0.1/24", _address, _of_host)
    bridge_address6: ipaddress.IPv6Interface | None = _key("", _address6)
    bridge_uplink: str = _key("", _link)
    bridge_nat: bool = _key("yes", _yes)
    bridge_dns: bool = _key("yes", _yes)
    bridge_domain: str = _key("dre", _domain)
    bridge_dhcp: str | tuple[ipaddress.IPv4Address, ipaddress.IPv4Address] = _key("auto", _range)

    core_state_dir: Path = _place("/var/lib/dre")
    core_run_dir: Path = _place("/run/dre")
    core_etc_dir: Path = _place("/etc/dre")
    core_log_dir: Path = _place("/var/log/dre")
    app_lxc_path: Path = _place("/var/lib/lxc")
    app_ids: tuple[int, int] | None = _key("auto", _ids)
    app_log_max: int = _key("16M", _log_size)

    monitor_sink: Path = _place("/run/dre/events.sock")
    monitor_pipes: tuple[Path, ...] = _key("/run/dre/script", _paths, _each_absolute)
    monitor_window: float = _key("200ms", units.duration)
    monitor_correlator: str = _key("sec", _correlator)
    monitor_four_eyes: bool = _key("no", _yes)

    dbox_listen: tuple[str, int] | None = _key("127.0.0.1:8443", _maybe_listen)
    dbox_page_listen: tuple[str, int] | None = _key("127.0.0.1:8444", _maybe_listen)
    dbox_redirect_listen: tuple[str, int] | None = _key("127.0.0.1:8080", _maybe_listen)
    dbox_client_rate: int = _key("5000", _rate)
    dbox_url: str = _key("https://localhost:8443", _url)
    dbox_database: str = _key("sqlite:/var/lib/dre/dbox/dbox.sqlite", _database)
    dbox_database_reader: str = _key("", _account)
    dbox_database_admin: str = _key("", _account)
    dbox_database_password_file: Path | None = _key("", _optional)
    dbox_streams: streams.Policies = _key("", _streams)
    dbox_reserve: int = _key("64M", units.size)
    dbox_certs_dir: Path = _place("/etc/dre/certs/dbox")
    dbox_key_period: float = _key("24h", units.duration)
    dbox_key_heads: int = _key("1000000", _heads)
    dbox_key_bits: int = _key("3072", _bits)
    dbox_key_store: str = _key("file", _key_store)
    dbox_key_passphrase_file: Path | None = _key("", _optional)
    dbox_witnesses: Path | None = _key("", _optional)
    dbox_tsa_url: str = _key("", _http)
    dbox_tsa_ca: Path | None = _key("", _optional)
    dbox_anchor_age: float = _key("24h", units.duration)
    dbox_compat_md5: bool = _key("no", _yes)

    def __init__(self, **values: Any) -> None:
        """*values* in place of defaults."""
        unknown = [name for name in values if key_of(name) not in KEYS]
        if unknown:
            raise TypeError(f"no such settings: {', '.join(unknown)}")
        self.values = values

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Conf) and self._all() == other._all()

    def __hash__(self) -> int:
        return hash(self._all())

    def _all(self) -> tuple[Any, ...]:
        return tuple(getattr(self, item.name) for item in KEYS.values())

    def place(self, name: str) -> str:
        """The path *name* as a text, for who wants no more of it."""
        return os.path.normpath(str(self.values.get(name, KEYS[key_of(name)].default)))


def key_of(name: str) -> str:
    """The key whose value is the attribute *name* of Conf."""
    return f"DRE_{name.upper()}"


KEYS: dict[str, Key] = {key_of(name): item for name, item in vars(Conf).items() if isinstance(item, Key)}


def load(path: str | None = None) -> Conf:
    """Read *path* (default /etc/dre.conf, which may be absent) and its drop-ins `<path>.d/*.conf` in name order.

    A later assignment wins. Raises UsageError naming file, line, key and what was expected.
    """
    main = path or DEFAULT
    there = os.path.exists(main)  # noqa: PTH110 - see above of paths
    if path and not there:
        raise UsageError(f"{main}: no such file")
    texts = tuple((file, _read(file)) for file in [*([main] if there else []), *_drop_ins(f"{main}.d")])
    if texts not in _KNOWN:
        values: dict[str, Any] = {}
        for file, text in texts:
            values.update(_assignments(file, text))
        if len(_KNOWN) >= 8:
            _KNOWN.clear()
        _KNOWN[texts] = Conf(**values)
    return _KNOWN[texts]


_KNOWN: dict[tuple[tuple[str, str], ...], Conf] = {}  # who serves reads the files for each request; they seldom change


def _drop_ins(directory: str) -> list[str]:
    try:
        return [f"{directory}/{name}" for name in sorted(os.listdir(directory)) if name.endswith(".conf")]
    except (FileNotFoundError, NotADirectoryError, PermissionError):
        return []


def _read(file: str) -> str:
    try:
        # Without waiting: what is given instead of a file may be a FIFO that nobody writes to.
        fd = os.open(file, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        try:
            trusted(file, os.fstat(fd))
            blocks = []
            while block := os.read(fd, 1 << 16):
                blocks.append(block)
        finally:
            os.close(fd)
        return b"".join(blocks).decode()
    except OSError as error:
        raise UsageError(f"{file}: {error.strerror}") from None
    except UnicodeDecodeError:
        raise UsageError(f"{file}: not UTF-8 text") from None


def _assignments(file: str, text: str) -> dict[str, Any]:
    values: dict[str, Any] = {}
    for number, line in enumerate(text.split("\n"), 1):
        line = line.strip(" \t")  # what sh skips, and no other blank
        if not line or line.startswith("#"):
            continue
        values.update([_assignment(f"{file}:{number}", line)])
    return values


def trusted(file: str, status: os.stat_result) -> None:
    """Refuse a file that someone else than root (or the caller) could have written."""
    if not stat.S_ISREG(status.st_mode):
        raise UsageError(f"{file}: not a regular file")
    if status.st_uid not in (0, os.geteuid()):
        raise UsageError(f"{file}: must be owned by root, not by uid {status.st_uid}")
    if status.st_mode & stat.S_IWOTH or (status.st_mode & stat.S_IWGRP and status.st_gid != 0):
        raise UsageError(f"{file}: must not be writable by others (mode {stat.S_IMODE(status.st_mode):04o})")


def _assignment(where: str, line: str) -> tuple[str, Any]:
    # Named first and by itself: sh would do something with these that a parser would not.
    for character in "$`\\":
        if character in line.partition("=")[2]:
            raise UsageError(f"{where}: {line.partition('=')[0]}: {character!r} is not allowed in a value")
    key, equals, rest = line.partition("=")
    value = _unquoted(rest)
    if not equals or not (key.isascii() and key.isidentifier()) or value is None:
        raise UsageError(f'{where}: expected KEY="value", got {line[:60]!r}')
    if not value.isprintable():
        raise UsageError(f"{where}: {key}: control characters are not allowed in {value!r}")
    item = KEYS.get(key)
    if item is None:
        raise UsageError(f"{where}: {key}: unknown key; dre.conf(5) lists them")
    try:
        return item.name, item.read(value)
    except UsageError as error:
        raise UsageError(f"{where}: {key}: {error}") from None


def _unquoted(text: str) -> str | None:
    """The value that *text* gives, which a comment may follow; None when sh would make something else of it."""
    mark = text[:1]
    if mark in ("'", '"') and mark in text[1:]:
        value, _, rest = text[1:].partition(mark)
    else:
        value = text.replace("\t", " ").partition(" ")[0]
        rest = text[len(value) :]
        if not _BARE.issuperset(value):
            return None
    comment = rest.lstrip(" \t")
    return value if not rest or (comment != rest and comment.startswith("#")) else None
