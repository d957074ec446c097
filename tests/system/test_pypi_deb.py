# SPDX-License-Identifier: Apache-2.0
"""`make pypi-deb` turns a source archive with setup.py and long description into a .deb, and says why of any other."""

import io
import shutil
import subprocess
import tarfile

import pytest
from conftest import ROOT, environment

SETUP = """from setuptools import setup
setup(name="dre-sample", version="1.0", description="d", long_description="A sample.", author="a",
      author_email="a@example.org", url="https://example.org", py_modules=["dre_sample"])
"""
INFO = "Metadata-Version: 2.1\nName: dre-sample\nVersion: 1.0\n\n"


@pytest.fixture
def convert(tmp_path):
    """convert(FILES) → CompletedProcess, for a source archive of FILES; what it makes lands in tmp_path/dist."""
    (tmp_path / "packaging").mkdir()
    program = shutil.copy(ROOT / "packaging/pypi-deb", tmp_path / "packaging")

    def call(files):
        archive = tmp_path / "dre-sample-1.0.tar.gz"
        with tarfile.open(archive, "w:gz") as tar:
            for name, text in files.items():
                entry = tarfile.TarInfo(f"dre-sample-1.0/{name}")
                entry.size = len(text.encode())
                tar.addfile(entry, io.BytesIO(text.encode()))
        return subprocess.run(
            [program, archive], env=environment(), capture_output=True, text=True, timeout=300, check=False
        )

    return call


def test_makes_a_package(convert, tmp_path):
    done = convert({"setup.py": SETUP, "dre_sample.py": "", "PKG-INFO": INFO + "A sample.\n"})
    assert done.returncode == 0, done.stderr
    (package,) = (tmp_path / "dist").glob("*.deb")
    listed = subprocess.run(["dpkg-deb", "-c", package], capture_output=True, text=True, check=True).stdout
    assert "/dist-packages/dre_sample.py" in listed


def test_refuses_what_has_no_setup_py(convert, tmp_path):
    done = convert({"pyproject.toml": "", "PKG-INFO": INFO + "A sample.\n"})
    assert (done.returncode, (tmp_path / "dist").exists()) == (1, False)
    assert "has no setup.py" in done.stderr


@pytest.mark.parametrize("info", [INFO, INFO + "UNKNOWN\n"])
def test_refuses_what_has_no_long_description(convert, info):
    done = convert({"setup.py": SETUP, "dre_sample.py": "", "PKG-INFO": info})
    assert done.returncode == 1
    assert "has no long description" in done.stderr
