# SPDX-License-Identifier: Apache-2.0
"""The address of an app that asks for one by DHCP: busybox's udhcpc, run by the host in the app's network.

The host's and not the app's, so that every tree can have it; in the host's other namespaces, so that nothing in the
app can see it or reach the host by it. It renews the lease, and ends at the app's end. Our hook `lease` sets the
address and notes it, where App.address finds it.
"""

from pathlib import Path

from dre import daemon, dnsmasq, lxcconfig
from dre.app import App
from dre.errors import TimedOutError
from dre.run import need, run

TRIES, PAUSE, AGAIN = 5, 2, 3  # questions, seconds between them, seconds before all of it is done again


def check() -> None:
    """Raise MissingError where the programs are not installed."""
    for program in ("nsenter", "udhcpc"):
        need(program)


def acquire(app: App, init: int, wait: bool) -> None:
    """Have the running app ask; with *wait* until it has an address. Raises TimedOutError, and MissingError."""
    if daemon.find("udhcpc", _pid_file(app)) is not None:
        return
    check()
    dnsmasq.hosts(app.conf).mkdir(parents=True, exist_ok=True)  # on a bridge of others nobody has made it
    said = app.lease_file.with_suffix(".said")
    client = ["udhcpc", "-i", "eth0", "-p", str(_pid_file(app)), "-s", f"{lxcconfig.share()}/lease", "-R"]
    client += ["-t", str(TRIES if wait else 1), "-T", str(PAUSE), "-A", str(AGAIN), "-n" if wait else "-b"]
    names = {"DRE_LEASE": str(app.lease_file), "DRE_HOSTS": str(dnsmasq.hosts(app.conf) / app.name)}
    names["DRE_NAMES"] = f"{app.name}.{app.conf.bridge_domain} {app.name}"
    # By a shell, because the client keeps its outputs when it goes on as a daemon: we would wait for their end.
    shell = ["sh", "-c", 'exec >"$0" 2>&1 && exec "$@"', str(said)]
    done = run([*shell, "nsenter", f"--net=/proc/{init}/ns/net", *client], check=False, env=names)
    if done.returncode != 0:
        last = [*said.read_text(errors="replace").splitlines(), "no message"][0]
        raise TimedOutError(f"{app.name}: no address by DHCP on {app.conf.bridge_if}: {last}")
    daemon.settle("udhcpc", _pid_file(app))


def release(app: App) -> None:
    """End the client of an app that has ended, and forget its address."""
    if _pid_file(app).exists() or app.lease_file.exists():
        daemon.end("udhcpc", _pid_file(app))
        for file in (app.lease_file, app.lease_file.with_suffix(".said")):
            file.unlink(missing_ok=True)


def _pid_file(app: App) -> Path:
    return app.lease_file.with_suffix(".udhcpc")
