# SPDX-License-Identifier: Apache-2.0
"""Another host to migrate to: an sshd of the test, behind it dre-app with settings, paths and bridge of its own."""

import contextlib
import os
import pathlib
import shlex
import shutil
import socket
import subprocess
import tempfile
import threading
import time

import app_ground
from conftest import environment, program

BRIDGE = {"DRE_BRIDGE_IF": "dret6", "DRE_BRIDGE_ADDRESS": "10.231.106.1/24", "DRE_BRIDGE_NAT": "no"}


def free_port():
    with socket.create_server(("127.0.0.1", 0)) as server:
        return server.getsockname()[1]


class There:
    """The other host, called `there` in its ssh_config. Root of an app must be able to reach its files: not in /tmp."""

    def __init__(self, run, *allowed, network=None):
        self.run, self.allowed = run, allowed
        self.place = pathlib.Path(tempfile.mkdtemp(prefix="dre-there-", dir="/var/tmp"))  # noqa: S108
        self.place.chmod(0o711)
        self.lxc = self.place / "lxc"
        self.lxc.mkdir(mode=0o711)
        self.trees = self.place / "state/base"
        self.trees.mkdir(parents=True)
        (self.place / "state").chmod(0o711)
        self.config = self.place / "dre.conf"
        keys = {f"DRE_CORE_{part.upper()}_DIR": self.place / part for part in ("state", "run", "etc", "log")}
        keys |= {**app_ground.SETTINGS, **BRIDGE, "DRE_APP_LXC_PATH": self.lxc}
        if network:
            keys["DRE_BRIDGE_ADDRESS"] = network
        keys["DRE_MONITOR_SINK"] = self.place / "run/events.sock"
        self.config.write_text("".join(f'{key}="{value}"\n' for key, value in keys.items()))
        self.config.chmod(0o644)

    def __enter__(self):
        self._keys()
        pathlib.Path("/run/sshd").mkdir(exist_ok=True)
        self.sshd = subprocess.Popen(["/usr/sbin/sshd", "-D", "-e", "-f", self.place / "sshd_config"],
                                     stderr=(self.place / "sshd.log").open("wb"))  # fmt: skip
        assert app_ground.wait_for(self._answers), (self.place / "sshd.log").read_text()
        return self

    def __exit__(self, *error):
        with contextlib.suppress(ProcessLookupError):
            for child in self.sessions():
                os.kill(child, 9)
        self.sshd.kill()
        self.sshd.wait()
        for name in self("list").splitlines():
            self("destroy", "--force", name.split()[0])
        self.run("dre-bridge", "--config", str(self.config), "down")
        shutil.rmtree(self.place)

    def _answers(self):
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", self.port), timeout=1):
            return True
        return False

    def _keys(self):
        self.port = free_port()
        for name in ("host", "user", "other"):
            subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", self.place / name], check=True)
        env = {key: value for key, value in environment().items() if key in ("PATH", "PYTHONPATH")}
        env["PATH"] = os.environ.get("DRE_TEST_CRIU", "/usr/sbin") + ":" + env["PATH"]
        words = ["env", *(f"{key}={value}" for key, value in env.items()), program("dre-app"), "--config",
                 str(self.config), "receive", *self.allowed]  # fmt: skip
        forced = shlex.join(words).replace('"', '\\"')
        key = (self.place / "user.pub").read_text()
        (self.place / "authorized_keys").write_text(f'restrict,command="{forced}" {key}')
        (self.place / "sshd_config").write_text(f"""Port {self.port}
ListenAddress 127.0.0.1
HostKey {self.place}/host
PidFile none
StrictModes no
UsePAM yes
PermitRootLogin forced-commands-only
AuthorizedKeysFile {self.place}/authorized_keys
""")
        self.trust("host")
        self.ssh_config = self.place / "ssh_config"
        self.ssh_config.write_text(f"""Host there
HostName 127.0.0.1
Port {self.port}
User root
IdentityFile {self.place}/user
IdentitiesOnly yes
UserKnownHostsFile {self.place}/known_hosts
GlobalKnownHostsFile none
""")

    def trust(self, name):
        """Let the sender know the host by the public key *name*; None: by none."""
        kind, key = (self.place / f"{name}.pub").read_text().split()[:2] if name else ("", "")
        text = f"[127.0.0.1]:{self.port} {kind} {key}\n" if name else ""
        (self.place / "known_hosts").write_text(text)

    def sessions(self):
        """The processes of sshd that serve a connection."""
        found = []
        for entry in filter(str.isdecimal, os.listdir("/proc")):
            with contextlib.suppress(OSError):
                parent = pathlib.Path("/proc", entry, "stat").read_text().rpartition(")")[2].split()[1]
                if int(parent) == self.sshd.pid:
                    found.append(int(entry))
        return found

    def __call__(self, *argv, code=0, stdin=b""):
        """stdout of dre-app there, or its words on stderr with another code than 0."""
        done = self.run("dre-app", "--config", str(self.config), *argv, stdin=stdin, timeout=300)
        assert done.returncode == code, f"{argv}: {done.returncode}: {done.stderr.decode()}"
        return (done.stderr if code else done.stdout).decode().removesuffix("\n")

    def received(self):
        """How many octets of archives have come so far."""
        return sum(path.stat().st_size for path in self.place.glob("state/app/incoming/*/delta.part"))

    def wait_for_octets(self, least):
        """Wait until so many have come."""
        deadline = time.monotonic() + 180  # in a guest that has to share its processor
        while self.received() < least:
            assert time.monotonic() < deadline, f"only {self.received()} octets came"
            time.sleep(0.01)

    @contextlib.contextmanager
    def growing(self):
        """Within it, what has come only grows, until all is there: nothing is sent twice."""
        sizes, over = [self.received()], threading.Event()

        def watch():
            while not over.wait(0.005):
                sizes.append(self.received())

        watcher = threading.Thread(target=watch)
        watcher.start()
        try:
            yield
        finally:
            over.set()
            watcher.join()
        grown = sizes[: sizes.index(max(sizes)) + 1]
        assert grown[0] >= 2 << 20 and len(grown) > 2
        assert grown == sorted(grown), "octets that had come were sent again"

    def events(self):
        """The lines of events that were emitted there."""
        spool = self.place / "state/spool/event/emitted.jsonl"
        return spool.read_text().splitlines() if spool.exists() else []
