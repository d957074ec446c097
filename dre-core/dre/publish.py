# SPDX-License-Identifier: Apache-2.0
"""Ports of the host that lead to running apps: one nftables table per bridge, always loaded as a whole.

It is made anew from the Specs of the apps that run, in one transaction, so a killed command leaves the old rules or
the new ones, and the next start or stop makes them right. Ports are given to one app only, running or not.
"""

import contextlib
import socket
from collections.abc import Iterable, Iterator
from pathlib import Path

from dre import app as apps
from dre import bridge, files, lxcconfig, nat, network
from dre.app import App
from dre.conf import Conf
from dre.errors import DreError, UsageError
from dre.spec import Publish, Spec


def check(app: App, spec: Spec) -> Spec:
    """Refuse what *spec* cannot have: a port that another app or a process has. Wants network.reserved."""
    if not spec.publish:
        return spec
    if spec.ip is None:
        raise UsageError("publish: needs an address: --ip none has no network")
    if not nat.forwards(app.conf):
        raise DreError('publish: this host does not forward to the bridge; set DRE_BRIDGE_NAT="yes"')
    for number, item in enumerate(spec.publish):
        if any(map(item.clashes, spec.publish[:number])):
            raise UsageError(f"publish: {item} is given twice")
    for name, other in network.others(app):
        for item in other.publish:
            if any(map(item.clashes, spec.publish)):
                raise DreError(f"{app.name}: port {item.port} of the host is published by app {name}")
    free(app, spec)
    return spec


def check_change(app: App, spec: Spec) -> Spec:
    """What `set` checks; `create` does it itself once it has an address."""
    return check(app, spec) if app.exists() else spec


def _wants(conf: Conf, name: str) -> tuple[Publish, ...]:
    try:
        return App(conf, name).spec().publish
    except DreError:  # half made, or half removed
        return ()


def free(app: App, spec: Spec) -> None:
    """Refuse a port on which a process of the host listens. It would be cut off from those who talk to it."""
    for item in spec.publish:
        kind = socket.SOCK_STREAM if item.protocol == "tcp" else socket.SOCK_DGRAM
        with socket.socket(socket.AF_INET, kind) as probe:
            if item.protocol == "tcp":
                probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # connections that end do not count
            try:
                probe.bind((item.address or "", item.outside))
            except OSError as error:
                raise DreError(f"{app.name}: cannot publish port {item.port} of the host: {error.strerror}") from None


def change(app: App, old: Spec, new: Spec) -> None:
    """Give a running app the ports of its *new* Spec, which is stored; what `set` does."""
    refresh(app.conf)
    turn_back(app, new)


def turn_back(app: App, spec: Spec) -> None:
    """Let what a running app sends to its own published port come back by the port of the bridge it came from."""
    link = lxcconfig.link(app.conf, spec)
    if spec.publish and link:
        with contextlib.suppress(FileNotFoundError):  # it has ended just now
            Path("/sys/class/net", link, "brport/hairpin_mode").write_text("1")


def begin(app: App, spec: Spec) -> None:
    """Have the ports lead to an app that is about to start, unless a process listens there."""
    if spec.publish:
        free(app, spec)
        refresh(app.conf, starting=app.name)


def end(app: App) -> None:
    """Have no port lead to an app that has ended."""
    if f'"{app.name}"' in _loaded(app.conf):
        refresh(app.conf, ended=app.name)


def refresh(conf: Conf, starting: str = "", ended: str = "") -> None:
    """Make the rules anew."""
    with files.lock(conf.core_run_dir / "lock" / f"publish-{conf.bridge_if}"):
        rules = list(_rules(conf, starting, ended))
        table = f"table ip {nat.table(conf.bridge_if)}-publish"
        if not rules:
            _admit_localhost(conf, False)
        nat.nft(f"add {table}\ndelete {table}\n" + (_table(conf, table, rules) if rules else ""))
        if rules:
            _admit_localhost(conf, True)
        file = _file(conf)
        file.parent.mkdir(parents=True, exist_ok=True)
        files.remove_halves(file)
        files.write_atomic(file, "\n".join(rules))


def _rules(conf: Conf, starting: str, ended: str) -> Iterator[str]:
    for name in apps.names(conf):
        app = App(conf, name)
        wanted = _wants(conf, name) if name != ended else ()
        address = (app.address() if wanted and (name == starting or app.init_pid()) else None) or ""
        for item in wanted if address else ():
            host = f"ip daddr {item.address}" if item.address else "fib daddr type local"
            to = f"dnat to {address.partition('/')[0]}:{item.inside}"
            yield f'{host} {item.protocol} dport {item.outside} {to} comment "{name}"'


def _table(conf: Conf, table: str, rules: Iterable[str]) -> str:
    lines = "".join(f"\t\t{rule}\n" for rule in rules)
    net = conf.bridge_address.network
    return f"""{table} {{
\tchain prerouting {{
\t\ttype nat hook prerouting priority dstnat; policy accept;
{lines}\t}}
\tchain output {{
\t\ttype nat hook output priority -100; policy accept;
{lines}\t}}
\tchain postrouting {{
\t\ttype nat hook postrouting priority srcnat; policy accept;
\t\tip saddr 127.0.0.0/8 oifname "{conf.bridge_if}" masquerade
\t\tip saddr {net} ip daddr {net} ct status dnat masquerade
\t}}
\tchain guard {{
\t\ttype filter hook prerouting priority raw; policy accept;
\t\tiifname "{conf.bridge_if}" ip daddr 127.0.0.0/8 drop
\t}}
}}
"""


def _admit_localhost(conf: Conf, on: bool) -> None:
    """Let what the host sends from 127.0.0.1 out to the bridge; only while the table guards the way back."""
    if not bridge.foreign(conf.bridge_if) and Path("/sys/class/net", conf.bridge_if).exists():
        Path("/proc/sys/net/ipv4/conf", conf.bridge_if, "route_localnet").write_text("1" if on else "0")


def _file(conf: Conf) -> Path:
    return conf.core_run_dir / "bridge" / conf.bridge_if / "published"


def _loaded(conf: Conf) -> str:
    try:
        return _file(conf).read_text()
    except FileNotFoundError:
        return ""
