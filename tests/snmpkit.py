# SPDX-License-Identifier: Apache-2.0
"""A real snmptrapd of a test's own, and snmptrap, which sends it traps and informs."""

import os
import pathlib
import shutil
import signal
import socket
import subprocess
import time

from programs import environment
from unpacked import unpacked


def net_snmp():
    """net-snmp's programs by name: the host's, or from their packages."""
    if shutil.which("snmptrap") and os.access("/usr/sbin/snmptrapd", os.X_OK):
        return {"snmptrap": ["snmptrap"], "snmptrapd": ["/usr/sbin/snmptrapd"]}
    place = unpacked("snmp", "snmp", "snmptrapd", "libsnmp40", "libsnmp-base", "libnetsnmptrapd40", "libpci3")
    (library,) = place.glob("usr/lib/*/libnetsnmptrapd.so.40")
    path = f"LD_LIBRARY_PATH={library.parent}"
    return {
        "snmptrap": ["env", path, place / "usr/bin/snmptrap"],
        "snmptrapd": ["env", path, place / "usr/sbin/snmptrapd"],
    }


class Traps:
    """snmptrapd in *directory*, whose traphandle is the line *handler* for sh."""

    def __init__(self, programs, directory, handler):
        self.programs, self.directory = programs, directory
        directory.mkdir(exist_ok=True)
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
            probe.bind(("127.0.0.1", 0))
            self.address = f"127.0.0.1:{probe.getsockname()[1]}"
        script = directory / "handler"
        lines = "".join(f"export {key}='{value}'\n" for key, value in environment().items() if key.startswith("PY"))
        script.write_text(f"#!/bin/sh\nexec 2>>{directory}/said\n{lines}{handler}\n")
        script.chmod(0o755)
        (directory / "d.conf").write_text(f"disableAuthorization yes\ntraphandle default {script}\n")
        self.env = {
            **environment(),
            "MIBS": "",
            "SNMP_PERSISTENT_DIR": str(directory / "p"),
            "SNMPCONFPATH": str(directory),
        }
        argv = ["-f", "-C", "-c", directory / "d.conf", "-On", "-Lf", directory / "log", f"udp:{self.address}"]
        self.daemon = subprocess.Popen([*programs["snmptrapd"], *argv], env=self.env, stderr=subprocess.DEVNULL)

    def __enter__(self):
        deadline = time.monotonic() + 30
        listening = f":{int(self.address.rpartition(':')[2]):04X} "
        while listening not in pathlib.Path("/proc/net/udp").read_text():
            assert time.monotonic() < deadline and self.daemon.poll() is None
            time.sleep(0.05)
        return self

    def __exit__(self, *error):
        self.daemon.send_signal(signal.SIGTERM)
        self.daemon.wait(30)

    def send(self, version, *argv, community="secret"):
        """Send one; flags may stand with the version."""
        command = [*self.programs["snmptrap"], *version.split(), "-c", community, self.address, *map(str, argv)]
        subprocess.run(command, env=self.env, check=True, timeout=60, capture_output=True)

    def said(self):
        """What the handlers wrote to stderr."""
        said = self.directory / "said"
        return said.read_text() if said.exists() else ""
