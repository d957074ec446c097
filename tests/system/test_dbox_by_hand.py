# SPDX-License-Identifier: Apache-2.0
"""The recipe of dbox(7), openssl and sha256sum alone, says of evidence what dbox-verify says."""

import os
import re
import shutil
import subprocess

import dboxkit
import pytest
from conftest import ROOT

OCTETS = b"some octets\n"


def recipe():
    page = (ROOT / "dbox/man/dbox.7.rst").read_text()
    part = page.partition("\nBY HAND\n")[2].partition("\nSEE ALSO\n")[0]
    return re.sub("(?m)^    ", "", part.partition("::\n")[2])


@pytest.fixture(scope="module")
def given(tmp_path_factory):
    """What a D-Box gave."""
    box, path = dboxkit.copy(), tmp_path_factory.mktemp("given")
    try:
        box.start()
        box.good("dbox-put", "--batch", "--quiet", stdin=b"".join(b"entry %d\n" % number for number in range(9)))
        (path / "receipt").write_bytes(box.put(OCTETS))
        (path / "octets").write_bytes(OCTETS)
        (path / "chain.pem").write_bytes(box.good("dbox-get", "--certs"))
        shutil.copy(box.certs / "root.pem", path)
    finally:
        dboxkit.remove(box)
    return path


@pytest.fixture
def work(given, tmp_path):
    """A copy of it, to be changed."""
    return shutil.copytree(given, tmp_path / "work")


def by_hand(work):
    env = {"PATH": "/usr/bin:/bin", "LC_ALL": "C.UTF-8"}
    return subprocess.run(
        ["sh", "-c", recipe()], cwd=work, capture_output=True, timeout=60, check=False, env={**os.environ, **env}
    )


def test_recipe_verifies(work):
    done = by_hand(work)
    assert (done.returncode, done.stdout) == (0, b"verified\n"), done.stderr


def swap(line, number):
    """Another base64 character in the middle of a line of the receipt."""

    def change(text):
        lines = text.decode().split("\n")
        at = [index for index, one in enumerate(lines) if line in one][number]
        middle = len(lines[at]) // 2 + 8
        other = "A" if lines[at][middle] != "A" else "B"
        lines[at] = lines[at][:middle] + other + lines[at][middle + 1 :]
        return "\n".join(lines).encode()

    return change


CASES = {
    "octets": ("octets", lambda octets: b"x" + octets[1:], "octets do not match"),
    "header": ("receipt", lambda text: text.replace(b"\nextra ZH", b"\nextra ZI"), "header is not in the tree"),
    "index": ("receipt", lambda text: re.sub(rb"index \d+", b"index 3", text), "header is not in the tree"),
    "size": ("receipt", lambda text: re.sub(rb"(?m)^(\S+/dbox/\S+)\n\d+$", rb"\1\n1000", text), ""),
    "rsa": ("receipt", swap("—", 0), "tree head signature"),
    "ed25519": ("receipt", swap("—", 1), "tree head signature"),
    "time": ("receipt", lambda text: text.replace(b"time 2", b"time 3"), ""),
}


@pytest.mark.parametrize("case", CASES)
def test_recipe_refuses_what_was_changed(work, case):
    name, change, said = CASES[case]
    before = (work / name).read_bytes()
    (work / name).write_bytes(change(before))
    assert (work / name).read_bytes() != before
    done = by_hand(work)
    assert done.returncode != 0 and b"verified" not in done.stdout
    assert said in done.stderr.decode()


def test_recipe_refuses_another_root(work):
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-keyout", "/dev/null", "-subj", "/CN=D-RE root"]
        + ["-out", str(work / "root.pem")],
        check=True,
        capture_output=True,
    )
    done = by_hand(work)
    assert done.returncode == 1 and b"certificate chain" in done.stderr
