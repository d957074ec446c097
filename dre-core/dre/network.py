# SPDX-License-Identifier: Apache-2.0
"""The network of apps as the host has it: their addresses, their isolation, the rates of their links.

All of it is done at the host's end of an app's link, where root inside cannot reach. The bridge itself is
dre.bridge's, names and DHCP are dre.dnsmasq's. Wants the app's lock, as dre.lifecycle does.
"""

import contextlib
import ipaddress
import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from dre import app as apps
from dre import bridge, dnsmasq, files, lease, lxcconfig, nat, publish
from dre.app import App
from dre.conf import Conf
from dre.errors import DreError, MissingError, UsageError
from dre.run import run
from dre.spec import AUTO, DHCP, Spec


def nameserver(conf: Conf) -> str | None:
    """The name server that apps on the bridge should ask; None where they have to ask the host's."""
    return str(conf.bridge_address.ip) if dnsmasq.serves(conf) and not bridge.foreign(conf.bridge_if) else None


@contextlib.contextmanager
def reserved(conf: Conf) -> Iterator[None]:
    """Hold what apps share, addresses and published ports: nobody else gives one away meanwhile."""
    with files.lock(conf.core_run_dir / "lock" / "addresses"):
        yield


def address(app: App, wanted: str | None) -> str | None:
    """The address to give, with its length, or `dhcp`; *wanted* may be `none`, and `auto` or None for the next free.

    Wants `reserved`. Raises UsageError, or DreError when it is taken.
    """
    if wanted == "none":
        return None
    if wanted == DHCP:
        if dnsmasq.dhcp_range(app.conf) is None and not bridge.foreign(app.conf.bridge_if):
            raise UsageError(f"--ip dhcp: {app.conf.bridge_if} gives no addresses: set DRE_BRIDGE_DHCP")
        lease.check()
        return wanted
    from dre.system import address as systems  # not for a list

    taken = {app.conf.bridge_address.ip, *taken_by_apps(app), *systems.taken(app.conf)}
    taken |= {address for _, address, _ in dnsmasq.reservations(app.conf)}
    if wanted is None or wanted == AUTO:
        return next_free(app.conf, app.name, taken)
    return checked(app.conf, app.name, wanted, taken)


def taken_by_apps(app: App) -> set[ipaddress.IPv4Address]:
    """The addresses of all apps but *app*."""
    given = {spec.ip for _, spec in others(app)} - {None, DHCP}
    return {ipaddress.IPv4Interface(str(ip)).ip for ip in given}


def others(app: App) -> Iterator[tuple[str, Spec]]:
    """The other apps, as they are and as a `set` that was killed will make them: what they have is taken."""
    for name in apps.names(app.conf):
        if name == app.name:
            continue
        other = App(app.conf, name)
        with contextlib.suppress(DreError):  # half made, or half removed
            yield name, other.spec()
        intent = other.intent()
        if intent is not None and intent["verb"] == "set":
            yield name, Spec.from_json(json.dumps(intent["new"]))


def next_free(conf: Conf, name: str, taken: set[ipaddress.IPv4Address]) -> str:
    """The first address of the bridge's network, with its length, that is neither *taken* nor DHCP's to give."""
    network = conf.bridge_address.network
    leases = dnsmasq.dhcp_range(conf)
    for candidate in network.hosts():
        if candidate not in taken and not (leases and leases[0] <= candidate <= leases[1]):
            return f"{candidate}/{network.prefixlen}"
    raise DreError(f"{name}: no free address in {network}")


def checked(conf: Conf, name: str, wanted: str, taken: set[ipaddress.IPv4Address]) -> str:
    """*wanted*, an address of the bridge's network with its length that can be had. Raises UsageError or DreError."""
    network = conf.bridge_address.network
    try:
        chosen = ipaddress.IPv4Interface(wanted if "/" in wanted else "")
    except ValueError:
        raise UsageError(f"--ip {wanted!r}: expected ADDR/LEN, dhcp or none") from None
    if chosen.network != network or chosen.ip in (network.network_address, network.broadcast_address):
        raise UsageError(f"--ip {wanted}: not an address of {network}, the network of {conf.bridge_if}")
    leases = dnsmasq.dhcp_range(conf)
    if leases and leases[0] <= chosen.ip <= leases[1]:
        raise DreError(f"{name}: address {chosen.ip} is one that DHCP gives, {leases[0]} to {leases[1]}")
    if chosen.ip in taken:
        raise DreError(f"{name}: address {chosen.ip} is taken")
    return wanted


def check_address(app: App, spec: Spec) -> Spec:
    """*spec* with the address it asks for, as `set ip=…` wants it; `create` does it itself, under `reserved`."""
    return replace(spec, ip=address(app, spec.ip or "none")) if app.exists() else spec


def isolate(app: App) -> bool:
    """Cut the app off, running or not; False when it was. Its processes go on, and so does what goes by LXC."""
    return _set_isolated(app, True)


def rejoin(app: App) -> bool:
    """Connect the app again; False when it was connected."""
    return _set_isolated(app, False)


def _set_isolated(app: App, isolated: bool) -> bool:
    spec = app.need()
    if spec.isolated == isolated:
        apply_isolation(app, spec)  # somebody may have set the link up, or flushed the rules
        return False
    app.begin(verb="isolate", isolated=isolated)
    try:
        app.store(replace(spec, isolated=isolated))
        apply_isolation(app, app.spec())
    except Exception:
        app.store(spec)
        with contextlib.suppress(DreError):  # the first is the one to tell
            apply_isolation(app, spec)
        app.done()
        raise
    _tell(app, isolated)
    init = app.init_pid()
    if init is not None and spec.ip == DHCP and not isolated and app.address() is None:
        lease.release(app)  # it would ask again in its own time only
        complete(app, app.spec(), init)
    return True


def resume(app: App, isolated: bool) -> None:
    """Do to its end an isolate or rejoin whose intent is written; one killed before it changed the Spec is undone."""
    spec = app.spec()
    app.refresh(spec)
    apply_isolation(app, spec)
    if spec.isolated == isolated:
        _tell(app, isolated)
    else:
        app.done()


def _tell(app: App, isolated: bool) -> None:
    app.emit("isolated" if isolated else "rejoined")
    app.done()


def apply_isolation(app: App, spec: Spec) -> None:
    """Make the kernel agree with *spec*: the bridge drops what comes from and goes to its port, and the link is down.

    The rule goes by the name of the link and so can be there before it: LXC gives the app no moment of freedom.
    """
    link = lxcconfig.link(app.conf, spec)
    if link is None:
        return
    if spec.isolated:
        drop(app.conf, link)
        _set_link(link, "down")
    else:
        _set_link(link, "up")
        admit(app.conf, link)


def _set_link(link: str, state: str) -> None:
    if not _exists(link):
        return
    done = run(["ip", "link", "set", link, state], check=False)
    if done.returncode != 0 and _exists(link):  # else the app has ended just now
        raise DreError(f"{link}: cannot be set {state}: {done.stderr.decode(errors='replace').strip()}")


def _exists(link: str) -> bool:
    return Path("/sys/class/net", link).exists()


def drop(conf: Conf, link: str) -> None:
    """Have the bridge drop all that comes from *link* and goes to it, whether it is there yet or not."""
    # All of it may be there already: `add` is content with that, but would add a rule twice.
    table = f"bridge {nat.table(conf.bridge_if)}"
    nat.nft(f"""add table {table}
add set {table} isolated {{ type ifname; }}
add chain {table} from {{ type filter hook prerouting priority filter; }}
add chain {table} to {{ type filter hook postrouting priority filter; }}
flush chain {table} from
flush chain {table} to
add rule {table} from iifname @isolated drop
add rule {table} to oifname @isolated drop
add element {table} isolated {{ "{link}" }}
""")


def admit(conf: Conf, link: str) -> None:
    """End what `drop` began; no matter when it never did."""
    if nat.has_table("bridge", conf.bridge_if):
        element = f'element bridge {nat.table(conf.bridge_if)} isolated {{ "{link}" }}'
        nat.nft(f"add {element}\ndelete {element}\n")  # one that is not there cannot be deleted


def prepare(app: App, spec: Spec) -> None:
    """What must be there before LXC makes the link of a starting app."""
    if spec.ip is None:
        return
    bridge.up(app.conf)
    if spec.isolated:
        apply_isolation(app, spec)
    if spec.ip != DHCP:
        publish.begin(app, spec)
        dnsmasq.name(app.conf, app.name, spec.ip)


def complete(app: App, spec: Spec, init: int | None) -> None:
    """What has to follow once the app has started; may be repeated."""
    if spec.isolated:
        apply_isolation(app, spec)
    publish.turn_back(app, spec)
    if spec.limits.net is not None:
        limit(app, spec, spec.limits.net)
    if spec.ip == DHCP and init is not None:
        lease.acquire(app, init, wait=not spec.isolated)
    if spec.publish:  # again: another app that started or ended meanwhile has not seen this one running
        publish.refresh(app.conf)


def clear(app: App, spec: Spec) -> None:
    """Remove what was there for a run of the app that has ended."""
    publish.end(app)
    lease.release(app)
    dnsmasq.forget(app.conf, app.name)
    link = lxcconfig.link(app.conf, spec)
    if link is None:
        return
    if _exists(link):
        run(["ip", "link", "del", link], check=False)  # the kernel may have been faster
    if spec.isolated:
        admit(app.conf, link)
    if spec.limits.net is not None:  # Linux from 6.16 on keeps the rule for the next link of that name
        run(["nft", "delete", "chain", "netdev", nat.table(app.conf.bridge_if), link], check=False, timeout=10)


def limit(app: App, spec: Spec, rate: int | None) -> None:
    """Limit the network of the running app to *rate* each way, and read it back; None lifts it."""
    link = lxcconfig.link(app.conf, spec)
    if link is None or not _exists(link) or rates(app.conf, link) == (rate, rate):
        return
    set_rate(app.conf, link, rate, rate)
    taken = rates(app.conf, link)
    if taken != (rate, rate):
        raise DreError(f"{link}: the kernel made {taken} of a network rate of {rate}")


def set_rate(conf: Conf, link: str, receive: int | None, send: int | None) -> None:
    """Limit what the app on *link* receives and sends, in octets per second; None lifts a limit.

    What it receives waits in a queue; what it sends too fast is dropped as it comes, for a queue there would need a
    device of its own. Both limits or none are set; they end with the link. Raises MissingError where the kernel cannot.
    """
    before = rates(conf, link)
    _set_receive(link, receive, before[0])
    try:
        _set_send(conf, link, send)
    except DreError:
        _set_receive(link, before[0], receive)
        raise


def rates(conf: Conf, link: str) -> tuple[int | None, int | None]:
    """What the kernel has as limits of *link*: receive and send."""
    queues = json.loads(run(["tc", "-j", "qdisc", "show", "dev", link, "root"], timeout=10).stdout or b"[]")
    receive = next((int(queue["options"]["rate"]) for queue in queues if queue.get("kind") == "tbf"), None)
    found = run(["nft", "-j", "list", "chain", "netdev", nat.table(conf.bridge_if), link], check=False, timeout=10)
    rules = json.loads(found.stdout)["nftables"] if found.returncode == 0 else []
    limits = [part["limit"] for item in rules for part in item.get("rule", {}).get("expr", ()) if "limit" in part]
    return receive, int(limits[0]["rate"]) * _UNITS[limits[0].get("rate_unit", "bytes")] if limits else None


_UNITS = {"bytes": 1, "kbytes": 1 << 10, "mbytes": 1 << 20}
_LEAST_BURST = 128 << 10  # two of the largest packets that a link hands over at once


def _set_receive(link: str, rate: int | None, present: int | None) -> None:
    if rate is None:
        if present is not None:
            run(["tc", "qdisc", "del", "dev", link, "root"], timeout=10)
        return
    burst = max(rate // 20, _LEAST_BURST)
    queue = ["tbf", "rate", f"{rate * 8}bit", "burst", str(burst), "latency", "100ms"]
    done = run(["tc", "qdisc", "replace", "dev", link, "root", *queue], check=False, timeout=10)
    if done.returncode != 0:
        said = done.stderr.decode(errors="replace").strip().partition("\n")[0]
        kind = MissingError if "unknown" in said or "not found" in said else DreError
        raise kind(f"{link}: this kernel cannot limit what comes in (sch_tbf): {said}")


def _set_send(conf: Conf, link: str, rate: int | None) -> None:
    chain = f"netdev {nat.table(conf.bridge_if)} {link}"
    # The kernel lets through what one second may bring, and the burst, before it begins to drop.
    rule = "" if rate is None else f"limit rate over {rate} bytes/second burst {_LEAST_BURST} bytes drop"
    end = f"add rule {chain} {rule}" if rule else f"delete chain {chain}"
    try:
        nat.nft(f"""add table netdev {nat.table(conf.bridge_if)}
add chain {chain} {{ type filter hook ingress device "{link}" priority filter; }}
flush chain {chain}
{end}
""")
    except MissingError:
        raise
    except DreError as error:
        raise MissingError(f"{link}: this kernel cannot limit what goes out (nft_limit at ingress): {error}") from None
