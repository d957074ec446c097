# SPDX-License-Identifier: Apache-2.0
"""A log leaves its D-Box as one file, is verified there, found out when it was changed, and becomes a log again."""

import contextlib
import io
import sqlite3
import subprocess
import tarfile
import zipfile

import dboxforge
import dboxkit
import pytest

OCTETS = b"octets \x00\xff of the entry\n"
INDEX = 7  # of an entry that is changed


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A directory with dre.conf, root.pem, log.tar, entry.zip, and a database that made them."""
    path = tmp_path_factory.mktemp("export")
    log = dboxforge.Forge(path / "dbox.sqlite").create()
    log.own("dbox.started", {})
    log.sign()
    for number in range(20):
        log.add([b"entry %d" % number])
        log.sign()
    log.add([b"line %d" % number for number in range(5000)])
    log.sign()
    log.add([OCTETS], salt=b"s" * 32)
    log.sign()
    log.erase(3)
    log.own("dbox.erased", {"entry": 3, "reason": "wrong", "first": "x", "second": "y"})
    log.sign()
    log.close()
    (path / "root.pem").write_bytes(log.keys.root_pem)
    (path / "dre.conf").write_text(
        f'DRE_DBOX_CERTS_DIR="{path}"\nDRE_DBOX_DATABASE="sqlite:{path}/dbox.sqlite"\nDRE_CORE_STATE_DIR="{path}/state"\n'
    )
    assert run(path, "dbox-export", "log.tar").stderr == b"dbox-export: log.tar: 5023 entries of log %s\n" % (
        dboxforge.ORIGIN.encode()
    )
    return path


def run(path, name, *argv, **kwargs):
    from conftest import environment

    return subprocess.run(
        [dboxkit.program(name), "--config", path / "dre.conf", *argv],
        cwd=path,
        capture_output=True,
        check=False,
        timeout=60,
        env=environment(),
        **kwargs,
    )


def test_the_same_log_gives_the_same_file_and_verifies_without_network(whole):
    assert run(whole, "dbox-export", "-").stdout == (whole / "log.tar").read_bytes()
    before = ["unshare", "-n"] if dboxkit.is_root() else []
    from conftest import environment

    done = subprocess.run(
        [*before, dboxkit.program("dbox-verify"), "--config", "dre.conf", "log.tar"],
        cwd=whole, capture_output=True, check=False, env=environment(), timeout=60,
    )  # fmt: skip
    assert done.returncode == 0 and done.stdout.startswith(b"clean: log "), done
    assert run(whole, "dbox-verify", "--quiet", "log.tar").stdout == b""
    assert run(whole, "dbox-audit", "--export", "log.tar").returncode == 0
    assert [name for name, _ in members(whole)] == [
        "origin.txt",
        "certs.pem",
        "anchors.jsonl",
        "heads-0",
        "entries-0",
        "entries-4096",
    ]


def test_it_becomes_a_log_again(whole, tmp_path):
    path = tmp_path / "old.sqlite"
    done = run(whole, "dbox-import", "--database", str(path), "log.tar")
    assert done.returncode == 0, done.stderr
    assert path.stat().st_mode & 0o777 == 0o444 and sorted(tmp_path.iterdir()) == [path]
    assert run(whole, "dbox-audit", "--forget", "--database", str(path)).returncode == 0
    with contextlib.closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True)) as database:
        ((octets, salt),) = database.execute("SELECT octets, salt FROM entry WHERE number = 5021").fetchall()
        assert (octets, salt) == (OCTETS, b"s" * 32)
        assert database.execute("SELECT octets FROM entry WHERE number = 3").fetchone() == (None,)
    again = run(whole, "dbox-export", "--database", str(path), "-").stdout
    assert again == (whole / "log.tar").read_bytes()
    assert run(whole, "dbox-import", "--database", str(path), "log.tar").returncode == 1
    assert run(whole, "dbox-import", "log.tar").returncode == 2


def members(whole):
    with tarfile.open(whole / "log.tar") as tar:
        return [(member.name, tar.extractfile(member).read()) for member in tar.getmembers()]


def written(path, parts):
    with tarfile.open(path, "w", format=tarfile.USTAR_FORMAT) as tar:
        for name, octets in parts:
            member = tarfile.TarInfo(name)
            member.size = len(octets)
            tar.addfile(member, io.BytesIO(octets))


def framed(change, kind):
    """Change the frames of the first member of a kind."""

    def call(parts):
        from dre import dbox

        made = []
        for name, octets in parts:
            if name == kind:
                frames = dbox.unframe(octets)
                change(frames)
                octets = dbox.frame(frames)
            made.append((name, octets))
        return made

    return call


def octets_of(frames):
    frames[3 * INDEX + 2] = b"forged"


def header_of(frames):
    frames[3 * INDEX] = frames[3 * INDEX].replace(b"seq 7\n", b"seq 8\n")


def both(frames):
    import hashlib

    frames[3 * INDEX + 2] = b"entry X"
    old, new = (hashlib.sha256(text).hexdigest().encode() for text in (b"entry 6", b"entry X"))
    assert old in frames[3 * INDEX]
    frames[3 * INDEX] = frames[3 * INDEX].replace(old, new)


def removed(frames):
    del frames[3 * INDEX : 3 * INDEX + 3]


def gone(frames):
    frames[3 * INDEX + 2] = b""


def head(frames):
    frames[INDEX] = frames[INDEX].replace(b"\ntime 2", b"\ntime 3")


CHANGES = {
    "control": (lambda parts: parts, 0, b"clean"),
    "octets": (framed(octets_of, "entries-0"), 1, b"first bad index 7 "),
    "header": (framed(header_of, "entries-0"), 1, b"first bad index 7 "),
    "octets and header": (framed(both, "entries-0"), 1, b"first bad index 7 "),
    "an entry removed": (framed(removed, "entries-0"), 2, b"expected entries-4095"),
    "octets erased": (framed(gone, "entries-0"), 1, b"no entry of the log says why"),
    "a tree head": (framed(head, "heads-0"), 1, b"first bad index 7 "),
    "no tree heads": (lambda parts: [part for part in parts if part[0] != "heads-0"], 1, b"nothing here is signed"),
    "the tail": (lambda parts: parts[:-1], 1, b"tail 4096: "),
    "another log": (lambda parts: [(parts[0][0], parts[0][1].replace(b"h7", b"h8")), *parts[1:]], 1, b"bad index 0"),
    "order": (lambda parts: [*parts[:-2], parts[-1], parts[-2]], 2, b"expected entries-0"),
    "a name": (lambda parts: [*parts, ("extra", b"x")], 2, b"stands in the wrong place"),
    "no certificates": (lambda parts: [parts[0], ("certs.pem", b""), *parts[2:]], 2, b"PEM"),
}  # fmt: skip


@pytest.mark.parametrize("name", CHANGES)
def test_a_changed_export(whole, tmp_path, name):
    change, code, said = CHANGES[name]
    written(tmp_path / "log.tar", change(members(whole)))
    done = run(whole, "dbox-verify", str(tmp_path / "log.tar"))
    assert done.returncode == code and said in done.stdout + done.stderr, done
    if name in ("octets", "no tree heads", "a name"):
        target = tmp_path / "made.sqlite"
        assert run(whole, "dbox-import", "--database", str(target), str(tmp_path / "log.tar")).returncode == code
        assert not target.exists() and len(list(tmp_path.iterdir())) == 1


def test_an_export_that_was_cut_is_never_verified(whole, tmp_path):
    octets = (whole / "log.tar").read_bytes()
    for size in (0, 100, 512, 5000, len(octets) // 2, len(octets) - 20_000):
        (tmp_path / "cut.tar").write_bytes(octets[:size])
        assert run(whole, "dbox-verify", str(tmp_path / "cut.tar")).returncode in (1, 2), size


@pytest.fixture(scope="module")
def page_zip(whole):
    """A zip as the page gives it for one entry."""
    from dboxlib import store
    from dre import evidence

    here = store.open(f"sqlite:{whole}/dbox.sqlite")
    header, octets, salt = here.payload(5021)
    tree = evidence.Tree()
    tree.append(leaf for _, _, leaf in here.headers())
    note = evidence.parse_note(here.head())
    size = evidence.parse_head(note.text).size
    receipt = evidence.Receipt(header, 5021, tuple(tree.inclusion(5021, size)), note, salt)
    parts = {"entry.tlog-proof": receipt.format().encode(), "entry.octets": octets, "chain.pem": here.chain().encode()}
    here.close()
    return parts


def test_a_zip_of_one_entry(whole, tmp_path, page_zip):
    def verify(parts, **more):
        with zipfile.ZipFile(tmp_path / "entry.zip", "w", zipfile.ZIP_DEFLATED) as archive:
            for name, octets in {**parts, **more}.items():
                archive.writestr(name, octets)
        return run(whole, "dbox-verify", str(tmp_path / "entry.zip"))

    done = verify(page_zip)
    assert done.returncode == 0 and done.stdout.startswith(b"verified: entry 5021 "), done
    assert verify({**page_zip, "entry.octets": b"other"}).returncode == 1
    assert verify({**page_zip, "entry.octets": b""}).returncode == 2
    assert verify(page_zip, more=b"x").returncode == 2
    assert verify({key: page_zip[key] for key in ("chain.pem", "entry.octets")}).returncode == 2
    other = dboxforge.keys("h7.example/dbox/another")
    assert verify({**page_zip, "chain.pem": "".join(pem for _, _, pem in other.certificates)}).returncode == 1
    octets = (tmp_path / "entry.zip").read_bytes()
    for cut in (octets[:100], octets[: len(octets) // 2], b"PK\x03\x04" + b"\0" * 600):
        (tmp_path / "entry.zip").write_bytes(cut)
        assert run(whole, "dbox-verify", str(tmp_path / "entry.zip")).returncode == 2


def test_wrong_arguments(whole):
    (whole / "receipt").write_text("c2sp.org/tlog-proof@v1\n")
    for argv in (["receipt"], ["dre.conf"], ["missing"], ["--certs", "root.pem", "log.tar"]):
        done = run(whole, "dbox-verify", *argv)
        assert done.returncode == 2 and done.stderr.count(b"\n") == 1, done
