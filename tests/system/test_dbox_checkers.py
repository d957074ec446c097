# SPDX-License-Identifier: Apache-2.0
"""Code of others accepts what a D-Box makes: pymerkle its tree and proofs, openssl both signatures of a tree head.

pymerkle comes from PyPI, for this test alone, and is never installed.
"""

import base64
import json
import re
import subprocess
import sys

import dboxforge
import pytest
from conftest import ROOT

PYMERKLE = "6.1.0"
PLACE = ROOT / "build/checkers"


@pytest.fixture(scope="module")
def pymerkle():
    """The module, from PyPI."""
    if not (PLACE / f"pymerkle-{PYMERKLE}.dist-info").is_dir():
        pip = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check", "install"]
        done = subprocess.run(
            [*pip, "--upgrade", "--target", PLACE, f"pymerkle=={PYMERKLE}"],
            capture_output=True, text=True, timeout=120, check=False,
        )  # fmt: skip
        if done.returncode:
            pytest.skip(f"PyPI does not give pymerkle: {done.stderr.strip()[-200:]}")
    sys.path.insert(0, str(PLACE))
    try:
        import pymerkle

        yield pymerkle
    finally:
        sys.path.remove(str(PLACE))


@pytest.fixture(scope="module")
def log(tmp_path_factory):
    """A log of 40 entries and its tree as our code makes it."""
    from dre import evidence

    log = dboxforge.Forge(tmp_path_factory.mktemp("log") / "dbox.sqlite").create()
    for number in range(40):
        log.add([b"entry %d" % number])
        if number % 3 == 0:
            log.sign(leaves=log.leaves())
    log.tree = evidence.Tree()
    log.texts = [text for _, text in log.headers()]
    log.tree.append(map(evidence.leaf_hash, log.texts))
    return log


@pytest.mark.parametrize("size", [1, 2, 3, 7, 8, 9, 31, 32, 33, 40])
def test_pymerkle_accepts_tree_and_proofs(log, pymerkle, size):
    from pymerkle.proof import MerkleProof

    theirs = pymerkle.InmemoryTree(algorithm="sha256")
    for text in log.texts[:size]:
        theirs.append_entry(text)
    root = log.tree.root(size)
    assert theirs.get_state(size) == root
    for index in range(size):
        leaf = theirs.get_leaf(index + 1)
        proof = theirs.prove_inclusion(index + 1, size)
        assert proof.path == [leaf, *log.tree.inclusion(index, size)]
        # Our path, in the way their verifier takes it.
        ours = MerkleProof("sha256", True, size, proof.rule, proof.subset, [leaf, *log.tree.inclusion(index, size)])
        pymerkle.verify_inclusion(leaf, root, ours)
        wrong = MerkleProof("sha256", True, size, proof.rule, proof.subset, [leaf, *[bytes(32)] * len(proof.path[1:])])
        if size > 1:
            with pytest.raises(pymerkle.InvalidProof):
                pymerkle.verify_inclusion(leaf, root, wrong)
    for old in range(1, size + 1):
        pymerkle.verify_consistency(log.tree.root(old), root, theirs.prove_consistency(old, size))


def test_pymerkle_finds_the_roots_of_all_tree_heads(log, pymerkle):
    theirs = pymerkle.InmemoryTree(algorithm="sha256")
    heads = dict(log.run("SELECT size, note FROM head ORDER BY size"))
    for number, text in enumerate(log.texts, 1):
        theirs.append_entry(text)
        if number in heads:
            assert base64.b64decode(heads[number].split("\n")[2]) == theirs.get_state(number)
    assert len(heads) == 14


def test_openssl_verifies_both_signatures_of_a_tree_head(log, tmp_path):
    from dboxlib import pki

    note = log.note(40)
    text, lines = note.split("\n\n")
    (tmp_path / "text").write_text(text + "\n")
    said = []
    for (kind, cert), line in zip(
        (("rsa", log.keys.sign), ("ed25519", log.keys.note)), lines.splitlines(), strict=True
    ):
        (tmp_path / "signature").write_bytes(base64.b64decode(line.split(" ")[2])[4:])
        (tmp_path / "cert").write_bytes(pki.pem(cert.certificate))
        public = subprocess.run(
            ["openssl", "x509", "-in", "cert", "-noout", "-pubkey"], cwd=tmp_path, capture_output=True, check=True
        ).stdout
        (tmp_path / "public").write_bytes(public)
        check = ["openssl", "dgst", "-sha256", "-verify", "public", "-signature", "signature", "text"]
        if kind == "ed25519":
            check = ["openssl", "pkeyutl", "-verify", "-pubin", "-inkey", "public", "-rawin", "-in", "text"]
            check += ["-sigfile", "signature"]
        said.append(subprocess.run(check, cwd=tmp_path, capture_output=True, check=False).returncode)
        (tmp_path / "text").write_text(text + "X\n")
        assert subprocess.run(check, cwd=tmp_path, capture_output=True, check=False).returncode != 0
        (tmp_path / "text").write_text(text + "\n")
    assert said == [0, 0]


def test_a_receipt_is_a_tlog_proof_as_specified(log):
    """The lines of https://c2sp.org/tlog-proof, read without our parser."""
    from dre import evidence

    note = evidence.parse_note(log.note(40))
    receipt = evidence.Receipt(log.texts[7], 7, tuple(log.tree.inclusion(7, 40)), note).format()
    first, extra, index, *rest = receipt.split("\n")
    assert (first, index) == ("c2sp.org/tlog-proof@v1", "index 7")
    assert base64.b64decode(extra.removeprefix("extra ")) == log.texts[7]
    path, checkpoint = rest[: rest.index("")], rest[rest.index("") + 1 :]
    assert all(len(base64.b64decode(line)) == 32 for line in path)
    assert checkpoint[:2] == [dboxforge.ORIGIN, "40"] and "\n".join(checkpoint) == note.format()
    assert re.fullmatch(r"— \S+ [A-Za-z0-9+/]+=*", checkpoint[-2]) and json.dumps(receipt)
