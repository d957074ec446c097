# SPDX-License-Identifier: Apache-2.0
"""The signed repository gives binaries and source to apt, in both forms of sources, and apt refuses a changed one.

Everything lies in scratch directories: the apt of the host does not notice.
"""

import os
import pathlib
import re
import shutil
import subprocess

import pytest
from conftest import ROOT

CODENAME = subprocess.run([ROOT / "packaging/codename"], capture_output=True, text=True, check=True).stdout.strip()
PACKAGES = re.findall(r"^Package: (.*)$", (ROOT / "debian/control").read_text(), re.MULTILINE)


@pytest.fixture
def repo(tmp_path):
    """A copy of repo/ that a test may damage."""
    if not (ROOT / "repo/dists").is_dir():
        pytest.fail("no repo/: make repo comes first")
    return shutil.copytree(ROOT / "repo", tmp_path / "repo")


@pytest.fixture
def apt(tmp_path, repo):
    """apt(FORM, ARG…): apt-get with nothing but *repo* as its source, in its one-line or deb822 form."""
    for name in ("lists/partial", "cache/archives/partial", "sources.list.d", "work"):
        (tmp_path / name).mkdir(parents=True)
    (tmp_path / "status").touch()

    def call(form, *argv, program="apt-get"):
        key = repo / "dre-archive-keyring.pgp"
        for old in (tmp_path / "sources.list.d").iterdir():
            old.unlink()
        if form == "one-line":
            lines = [f"{kind} [signed-by={key}] file:{repo} {CODENAME} universe\n" for kind in ("deb", "deb-src")]
            (tmp_path / "sources.list.d/dre.list").write_text("".join(lines))
        else:
            made = subprocess.run([ROOT / "packaging/sources-for", repo, key], capture_output=True, check=True)
            (tmp_path / "sources.list.d/dre.sources").write_bytes(made.stdout)
        options = {
            "Dir::Etc::SourceList": "/dev/null",
            "Dir::Etc::SourceParts": tmp_path / "sources.list.d",
            "Dir::State::Lists": tmp_path / "lists",
            "Dir::State::Status": tmp_path / "status",
            "Dir::Cache": tmp_path / "cache",
            "APT::Sandbox::User": "root",
        }
        return subprocess.run(
            [program, *(f"-o{key}={value}" for key, value in options.items()), *argv],
            cwd=tmp_path / "work",
            env={"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "LC_ALL": "C.UTF-8"},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )

    return call


@pytest.mark.parametrize("form", ["one-line", "deb822"])
def test_apt_get_source(apt, form, tmp_path):
    updated = apt(form, "update")
    assert updated.returncode == 0, updated.stderr
    assert "W:" not in updated.stderr
    got = apt(form, "source", "dre")
    assert got.returncode == 0, got.stderr
    (unpacked,) = (path for path in (tmp_path / "work").iterdir() if path.is_dir())
    assert (unpacked / "debian/control").read_text() == (ROOT / "debian/control").read_text()
    assert (unpacked / "dre-core/dre/event.py").exists()


def test_every_package_is_offered(apt):
    assert apt("deb822", "update").returncode == 0
    listed = apt("deb822", "dumpavail", program="apt-cache").stdout
    assert set(PACKAGES) <= set(re.findall(r"^Package: (.*)$", listed, re.MULTILINE))


def test_a_changed_index_is_refused(apt, repo):
    for index in (repo / "dists" / CODENAME).rglob("Packages*"):
        index.write_bytes(index.read_bytes() + b"\n")
    assert apt("deb822", "update").returncode != 0


def test_a_signature_by_another_key_is_refused(apt, repo, tmp_path):
    home = tmp_path / "gpg"
    home.mkdir(mode=0o700)
    gpg = ["gpg", "--homedir", home, "--batch", "--quiet"]
    subprocess.run([*gpg, "--passphrase", "", "--quick-gen-key", "other", "ed25519", "sign"], check=True, timeout=60)
    exported = subprocess.run([*gpg, "--export"], check=True, capture_output=True, timeout=60).stdout
    subprocess.run(["gpgconf", "--homedir", home, "--kill", "all"], check=True, timeout=60)
    (repo / "dre-archive-keyring.pgp").write_bytes(exported)
    updated = apt("deb822", "update")
    assert updated.returncode != 0
    assert "NO_PUBKEY" in updated.stderr


def test_a_changed_package_is_refused(apt, repo, tmp_path):
    (package,) = (repo / "pool").rglob("python3-dre_*.deb")
    octets = bytearray(package.read_bytes())
    octets[-1] ^= 1
    package.write_bytes(octets)
    assert apt("deb822", "update").returncode == 0
    got = apt("deb822", "download", "python3-dre")
    assert got.returncode != 0
    assert not list((tmp_path / "work").glob("*.deb"))


def test_everybody_may_read_it():
    for path in [ROOT / "repo", *(ROOT / "repo").rglob("*")]:
        assert path.stat().st_mode & 0o044 == 0o044, path


def test_no_secret_is_in_it():
    assert not [path for path in (ROOT / "repo").rglob("*") if "secret" in path.name or "private" in path.name]
    assert os.stat(ROOT / "build/archive-key").st_mode & 0o077 == 0
    assert pathlib.Path(ROOT / "build/archive-key/secret.pgp").stat().st_mode & 0o077 == 0
