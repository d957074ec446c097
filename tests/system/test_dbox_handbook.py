# SPDX-License-Identifier: Apache-2.0
"""The handbook's lines on evidence that are marked `sh run` end with an export that verifies, in their order."""

import os
import subprocess

import dboxkit
import pytest
from handbook_ground import Reader, marked

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="needs root")


@pytest.fixture
def box():
    made = dboxkit.Box(dboxkit.place())
    yield made
    made.stop()
    subprocess.run(["rm", "-rf", made.path], check=True)


def test_evidence(box):
    reader = Reader(box.path, box.conf)
    making, recording, verifying, seeing, whole = marked("evidence.md")
    said = reader.types(making)
    assert {line.split()[0] for line in said.splitlines()} >= {"writer", "reader", "auditor"}
    assert (box.path / "started-dboxd").exists()
    box.start()  # as the unit would
    assert " system " in reader.types(recording)
    reader.types(verifying, instead={"/etc/dre/certs/dbox": box.certs})
    reader.types(seeing)
    reader.types(whole)
    listed = subprocess.run(["tar", "-tf", box.path / "evidence.tar"], capture_output=True, text=True, check=True)
    assert {"origin.txt", "certs.pem"} <= set(listed.stdout.split())
    with (box.path / "evidence.tar").open("r+b") as tar:  # and what verified does not when an octet is another
        octets = tar.read()
        tar.seek(octets.index(b"what was seen"))
        tar.write(b"what was sEen")
    done = box.run("dbox-verify", "--root", box.path / "root.pem", box.path / "evidence.tar")
    assert done.returncode == 1
