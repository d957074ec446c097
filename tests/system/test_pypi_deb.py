# SPDX-License-Identifier: Apache-2.0
"""`make pypi-deb` turns a source archive with setup.py and long description into a .deb, and says why of any other."""

import functools
import http.server
import io
import shutil
import subprocess
import tarfile
import threading

import pytest
from conftest import ROOT, environment

SETUP = """from setuptools import setup
setup(name="dre-sample", version="1.0", description="d", long_description="A sample.", author="a",
      author_email="a@example.org", url="https://example.org", py_modules=["dre_sample"])
"""
INFO = "Metadata-Version: 2.1\nName: dre-sample\nVersion: 1.0\n\n"


def pack(archive, files):
    """A source archive of dre-sample 1.0 with *files*."""
    archive.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(archive, "w:gz") as tar:
        for name, text in files.items():
            entry = tarfile.TarInfo(f"dre-sample-1.0/{name}")
            entry.size = len(text.encode())
            tar.addfile(entry, io.BytesIO(text.encode()))
    return archive


@pytest.fixture
def convert(tmp_path):
    """convert(FILES) → CompletedProcess, for a source archive of FILES; what it makes lands in tmp_path/dist."""
    (tmp_path / "packaging").mkdir()
    program = shutil.copy(ROOT / "packaging/pypi-deb", tmp_path / "packaging")

    def call(files):
        archive = pack(tmp_path / "dre-sample-1.0.tar.gz", files)
        return subprocess.run(
            [program, archive], env=environment(), capture_output=True, text=True, timeout=300, check=False
        )

    return call


class Quiet(http.server.SimpleHTTPRequestHandler):
    """Files of a directory, and not a word."""

    def log_message(self, *_):
        pass


@pytest.fixture
def make(tmp_path):
    """make(NAME) → CompletedProcess of `make pypi-deb NAME=…`, where PyPI is what lies in tmp_path/index."""
    (tmp_path / "index").mkdir()
    (tmp_path / "packaging").mkdir()
    for name in ("Makefile", "packaging/pypi-deb", "packaging/environment.mk"):
        shutil.copy(ROOT / name, tmp_path / name)
    serve = functools.partial(Quiet, directory=tmp_path / "index")
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), serve) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        # What a build wants is here already: nothing is fetched from elsewhere.
        env = {"PIP_INDEX_URL": f"http://127.0.0.1:{server.server_port}", "PIP_NO_BUILD_ISOLATION": "false"}

        def call(name):
            argv = ["make", "-C", tmp_path, "pypi-deb", f"NAME={name}"]
            return subprocess.run(
                argv, env={**environment(), **env}, capture_output=True, text=True, timeout=300, check=False
            )

        yield call
        server.shutdown()


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


def test_make_fetches_by_name_and_refuses_what_has_only_a_pyproject(make, tmp_path):
    project = '[build-system]\nrequires = ["setuptools"]\nbuild-backend = "setuptools.build_meta"\n'
    project += '[project]\nname = "dre-sample"\nversion = "1.0"\n'
    files = {"pyproject.toml": project, "dre_sample.py": "", "PKG-INFO": INFO + "A sample.\n"}
    pack(tmp_path / "index/dre-sample/dre-sample-1.0.tar.gz", files)
    done = make("dre-sample")
    assert done.returncode == 2 and not (tmp_path / "dist").exists()  # that of make(1)
    assert "pypi-deb: dre-sample-1.0.tar.gz: has no setup.py (pyproject.toml only)" in done.stderr


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("no-such", "PyPI gives no source archive"),
        ("", "usage: make pypi-deb NAME="),
        ("../x", "is not a name on PyPI"),
    ],
)
def test_make_says_what_is_wrong_with_a_name(make, name, reason):
    done = make(name)
    assert done.returncode == 2 and reason in done.stderr
