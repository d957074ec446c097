# SPDX-License-Identifier: Apache-2.0
"""The handbook's lines on evidence and on two persons, marked `sh run`, do what it says, in their order.

They end with a script in force that two have signed, and with an export that verifies.
"""

import os
import subprocess

import dboxkit
import pytest
from handbook import HANDBOOK, Reader, blocks, marked

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
    _two_persons(box, reader)
    reader.types(whole)
    listed = subprocess.run(["tar", "-tf", box.path / "evidence.tar"], capture_output=True, text=True, check=True)
    assert {"origin.txt", "certs.pem"} <= set(listed.stdout.split())
    with (box.path / "evidence.tar").open("r+b") as tar:  # and what verified does not when an octet is another
        octets = tar.read()
        tar.seek(octets.index(b"what was seen"))
        tar.write(b"what was sEen")
    done = box.run("dbox-verify", "--root", box.path / "root.pem", box.path / "evidence.tar")
    assert done.returncode == 1


def _two_persons(box, reader):
    """A script is in force by root alone, then another version by two."""
    (box.path / "web.yaml").write_text(next(b.text for b in blocks(HANDBOOK / "scripts.md") if b.kind == "yaml"))
    _, deploying, agreeing = marked("scripts.md")
    reader.types(deploying)
    with (box.path / "web.yaml").open("a") as script:
        script.write("# another version\n")
    said = reader.types(agreeing, instead={"/etc/dre/certs/dbox": box.certs})
    assert "deploy" in said and "approve" in said
    agreed = list((box.path / "state/script/agreed").rglob("*"))
    assert [path for path in agreed if path.is_file() and b"approve bob" in path.read_bytes()]
    deployed = box.path / "state/script/deployed/web.yaml"
    assert deployed.read_text().endswith("# another version\n")
