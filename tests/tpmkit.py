# SPDX-License-Identifier: Apache-2.0
"""A TPM 2.0 of a test's own: swtpm on two ports of the loopback, with its state in a directory."""

import contextlib
import importlib.util
import shutil
import socket
import subprocess
import time

import pytest


def needed():
    """Skip without what it takes."""
    if shutil.which("swtpm", path="/usr/bin:/usr/local/bin") is None:
        pytest.skip("swtpm is not installed")
    if importlib.util.find_spec("tpm2_pytss") is None:  # not imported here: beside unittest.mock it pretends only
        pytest.skip("python3-tpm2-pytss is not installed")


def free_pair():
    """A free port whose neighbour is free too: that one is for control."""
    while True:
        with socket.socket() as one, socket.socket() as two, contextlib.suppress(OSError):
            one.bind(("127.0.0.1", 0))
            port = one.getsockname()[1]
            two.bind(("127.0.0.1", port + 1))
            return port


@contextlib.contextmanager
def tpm(directory):
    """The TCTI under which it answers."""
    port = free_pair()
    argv = ["swtpm", "socket", "--tpm2", "--flags", "not-need-init,startup-clear", "--tpmstate", f"dir={directory}"]
    argv += ["--server", f"type=tcp,port={port}", "--ctrl", f"type=tcp,port={port + 1}"]
    process = subprocess.Popen(argv, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        deadline = time.monotonic() + 10
        while True:
            assert process.poll() is None and time.monotonic() < deadline, "swtpm does not answer"
            with contextlib.suppress(OSError):
                socket.create_connection(("127.0.0.1", port + 1)).close()
                break
            time.sleep(0.02)
        yield f"swtpm:host=127.0.0.1,port={port}"
    finally:
        process.kill()
        process.wait()
