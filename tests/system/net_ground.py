# SPDX-License-Identifier: Apache-2.0
"""What the tests of the network stand on: a bridge with NAT, names and DHCP, and somebody outside of the host.

The run directory lies in /run, because dnsmasq reads it as a user of its own; pytest's own directories are root's.
"""

import contextlib
import os
import shutil
import socket
import struct
import subprocess
import tempfile

import app_ground

BRIDGE, GATEWAY = "dret2", "10.231.102.1"
OUTSIDE, HOST = "10.231.103.2", "10.231.103.1"
SPACE = f"dret2-out-{os.getpid()}"


class NetGround(app_ground.Ground):
    """Ground on the bridge dret2 with all that a bridge can have."""

    def __init__(self, run, settings, **keys):
        self.run_dir = tempfile.mkdtemp(prefix="dret2-", dir="/run")
        os.chmod(self.run_dir, 0o755)
        own = {"DRE_BRIDGE_IF": BRIDGE, "DRE_BRIDGE_ADDRESS": f"{GATEWAY}/24", "DRE_BRIDGE_NAT": "yes"}
        own |= {"DRE_BRIDGE_DNS": "yes", "DRE_BRIDGE_DHCP": "auto", "DRE_CORE_RUN_DIR": self.run_dir}
        super().__init__(run, settings, **{**own, **keys})

    def bridge(self, *argv):
        """stdout of dre-bridge, which must end with 0."""
        done = self.run("dre-bridge", "--config", self.config, *argv)
        assert done.returncode == 0, done.stderr
        return done.stdout.decode()

    def _destroy_all(self):
        try:
            super()._destroy_all()
        finally:
            self.bridge("down", "--force")
            shutil.rmtree(self.run_dir)


@contextlib.contextmanager
def outsider():
    """A network namespace that reaches the host at HOST, and nothing else; the words to run a program in it."""

    def ip(*argv):
        subprocess.run(["ip", *argv], check=True, timeout=10)

    ip("netns", "add", SPACE)
    try:
        ip("link", "add", "dret2out", "type", "veth", "peer", "name", "eth0", "netns", SPACE)
        ip("addr", "add", f"{HOST}/24", "dev", "dret2out")
        ip("link", "set", "dret2out", "up")
        ip("-n", SPACE, "addr", "add", f"{OUTSIDE}/24", "dev", "eth0")
        ip("-n", SPACE, "link", "set", "eth0", "up")
        ip("-n", SPACE, "route", "add", "default", "via", HOST)
        with open("/proc/sys/net/ipv4/conf/dret2out/forwarding", "w") as forwarding:
            forwarding.write("1")
        yield ["ip", "netns", "exec", SPACE]
    finally:
        ip("netns", "del", SPACE)


ASK = """
import socket, sys
host, port, kind = sys.argv[1], int(sys.argv[2]), sys.argv[3]
talk = socket.socket(socket.AF_INET, socket.SOCK_STREAM if kind == "tcp" else socket.SOCK_DGRAM)
talk.settimeout(1)
talk.connect((host, port))
talk.send(b"who\\n")
print(talk.recv(100).decode())
"""
ANSWER = """
import socket, sys, threading
def tcp(port):
    with socket.create_server(("", port)) as server:
        while True:
            talk, peer = server.accept()
            talk.recv(10)
            talk.sendall(f"{sys.argv[1]} {port} {peer[0]}".encode())
            talk.close()
def udp(port):
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as server:
        server.bind(("", port))
        while True:
            server.sendto(f"{sys.argv[1]} {port} udp".encode(), server.recvfrom(10)[1])
threading.Thread(target=udp, args=(53,)).start()
threading.Thread(target=tcp, args=(81,)).start()
tcp(80)
"""


def answering(name):
    """The command of an app that tells on TCP ports 80 and 81 and UDP port 53 who it is and who asked."""
    return ["/usr/bin/python3", "-c", ANSWER, name]


def ask(host, port, kind="tcp", prefix=()):
    """What is answered at *host* and *port*; None when nothing is."""
    argv = [*prefix, "/usr/bin/python3", "-c", ASK, host, str(port), kind]
    done = subprocess.run(argv, capture_output=True, timeout=20, check=False)
    return done.stdout.decode().strip() if done.returncode == 0 else None


LOOK = """
import socket, struct, sys
name, server, kind = sys.argv[1], sys.argv[2], int(sys.argv[3])
labels = b"".join(bytes([len(label)]) + label.encode() for label in name.split("."))
query = struct.pack(">6H", 7, 0x100, 1, 0, 0, 0) + labels + struct.pack(">B2H", 0, kind, 1)
talk = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
talk.settimeout(1)
talk.sendto(query, (server, 53))
sys.stdout.buffer.write(talk.recv(512)[len(query) - 12 - len(labels) - 5:])
"""


def look_up(name, server=GATEWAY, kind=1, prefix=()):
    """The raw answer of a name server, None when there is none."""
    argv = [*prefix, "/usr/bin/python3", "-c", LOOK, name, server, str(kind)]
    done = subprocess.run(argv, capture_output=True, timeout=20, check=False)
    return done.stdout if done.returncode == 0 else None


def address(name, **where):
    """The address that DNS has for *name*: `none` when it says that there is none, None when nobody answers."""
    answer = look_up(name, **where)
    if answer is None:
        return None
    return socket.inet_ntoa(answer[-4:]) if struct.unpack(">H", answer[6:8])[0] else "none"
