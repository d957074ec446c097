# SPDX-License-Identifier: Apache-2.0
"""The handbook's lines on evidence, on two persons and on more hosts, marked `sh run`, do what it says, in their order.

They end with a script in force that two have signed, and with an export that verifies.
"""

import os
import re
import shutil
import subprocess

import dboxkit
import pytest
from conftest import environment, program
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
    making, more, recording, draining, verifying, seeing, whole, auditing, accounts, erasing = marked("evidence.md")
    said = reader.types(making)
    assert {line.split()[0] for line in said.splitlines()} >= {"writer", "reader", "auditor"}
    assert (box.path / "started-dboxd").exists()
    box.start()  # as the unit would
    reader.types(more, instead={"--owner dscript": "--owner root"})  # the user comes with the package
    found = re.search(r"^(\d+) .* system ", reader.types(recording), re.MULTILINE)
    reader.types(draining)
    reader.types(verifying, instead={"/etc/dre/certs/dbox": box.certs})
    reader.types(seeing)
    _two_persons(box, reader)
    reader.types(whole)
    listed = subprocess.run(["tar", "-tf", box.path / "evidence.tar"], capture_output=True, text=True, check=True)
    assert {"origin.txt", "certs.pem"} <= set(listed.stdout.split())
    sizes = [(box.path / name).stat().st_size for name in ("evidence.tar", "falsified.tar")]
    assert sizes[0] == sizes[1]
    _without_anything_else(box)
    reader.types(auditing)
    assert "carol" in reader.types(accounts)
    reader.types(erasing, instead={"4711": found[1]})
    assert box.run("dbox-get", "--client", "reader", found[1], "--octets").returncode != 0
    _as_it_grows(box, reader)


def _as_it_grows(box, reader):
    """Another host writes, too, and what is to be looked at every day is there."""
    registering, writing = marked("growing.md")
    reader.types(registering)
    reader.types(writing)
    assert (box.path / "receipt").read_text().startswith("c2sp.org/tlog-proof")
    (looking,) = marked("security.md")
    said = reader.types(looking)
    assert "host7 " in said and "clean: log " in said.splitlines()[-1]


def _without_anything_else(box):
    """What verified does so where there is nothing else but the root certificate, and the other copy does not."""
    alone = box.path / "alone"
    alone.mkdir()
    for name in ("evidence.tar", "falsified.tar", "root.pem"):
        shutil.copy(box.path / name, alone)
    (alone / "dre.conf").write_text(f'DRE_CORE_STATE_DIR="{alone}/state"\nDRE_CORE_ETC_DIR="{alone}/etc"\n')
    found = {}
    for name in ("evidence.tar", "falsified.tar"):
        words = ("dbox-verify", "--config", alone / "dre.conf", "--root", alone / "root.pem", alone / name)
        done = subprocess.run([program(words[0]), *words[1:]], capture_output=True, text=True, env=environment())
        found[name] = done.returncode, done.stdout
    assert found["evidence.tar"][0] == 0 and found["evidence.tar"][1].startswith("clean: log ")
    assert found["falsified.tar"][0] == 1
    assert "its octets do not match the digest in its header\nfirst bad index" in found["falsified.tar"][1]


def _two_persons(box, reader):
    """A script is in force by root alone, then the same version by two."""
    for name, kind in (("web.yaml", "yaml"), ("case.yaml", "")):
        (box.path / name).write_text(next(b.text for b in blocks(HANDBOOK / "scripts.md") if b.kind == kind))
    _, deploying, agreeing, comparing = marked("scripts.md")
    reader.types(deploying)
    said = reader.types(agreeing, instead={"/etc/dre/certs/dbox": box.certs})
    assert "deploy" in said and "approve" in said
    agreed = list((box.path / "state/script/agreed").rglob("*"))
    assert [path for path in agreed if path.is_file() and b"approve bob" in path.read_bytes()]
    deployed = box.path / "state/script/deployed/web.yaml"
    assert deployed.read_text() == (box.path / "web.yaml").read_text()
    assert reader.types(comparing).count("web/") >= 2
    assert "It gets no more" in (box.path / "case.html").read_text()
