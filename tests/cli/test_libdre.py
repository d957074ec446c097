# SPDX-License-Identifier: Apache-2.0
"""libdreapp and its co-process: what can go wrong between them, and what the caller's process notices of it: nothing.

The co-process is one that answers as it should, or as it should not; the real one is in tests/system/test_libdreapp.py.
"""

import ctypes
import os
import re
import shutil
import subprocess

import pytest
from conftest import ROOT, environment

LIBRARY, HERE = ROOT / "libdre", ROOT / "tests/c"
FULL = os.environ.get("DRE_FULL") == "1"
pytestmark = pytest.mark.skipif(
    not (shutil.which("gcc", path="/usr/bin") and os.path.exists("/usr/include/json-c/json.h")),
    reason="needs gcc and libjson-c-dev",
)


def call(*argv):
    done = subprocess.run(list(map(str, argv)), capture_output=True, text=True, env=environment(), timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """The directory of both libraries, as `make` builds them."""
    place = tmp_path_factory.mktemp("libdre")
    shutil.copytree(LIBRARY, place / "libdre", ignore=shutil.ignore_patterns("build"))
    call("make", "-C", place / "libdre", "CFLAGS=-O2 -g -Werror")
    return place / "libdre/build"


@pytest.mark.parametrize(
    "sanitizer",
    [
        "undefined",
        *(
            pytest.param(name, marks=pytest.mark.skipif(not FULL, reason="as before a release: DRE_FULL=1"))
            for name in ("address,undefined", "thread")
        ),
    ],
)
def test_whatever_the_coprocess_does(tmp_path, sanitizer):
    sources = [HERE / "libdre_edges.c", *(LIBRARY / f"src/{name}.c" for name in ("serve", "verbs", "app"))]
    flags = ["-std=c11", "-g", "-O1", f"-fsanitize={sanitizer}", "-fno-sanitize-recover=all"]
    call("gcc", *flags, f"-I{LIBRARY}/include", *sources, "-ljson-c", "-lm", "-pthread", "-o", tmp_path / "edges")
    assert call(tmp_path / "edges", HERE / "coprocess") == "0 failures\n"


@pytest.mark.parametrize("kind", ["app", "sys"])
def test_a_library_shows_what_its_header_declares_and_nothing_else(built, kind):
    names = {
        line.split()[-1].split("@")[0]
        for line in call("nm", "-D", "--defined-only", built / f"libdre{kind}.so.0").splitlines()
    }
    text = call("gcc", "-E", "-P", f"-I{LIBRARY}/include", LIBRARY / f"include/dre/dre{kind}.h")
    declared = set(re.findall(rf"\b(dre_{kind}_\w+)\(", text))
    assert names == declared | {"LIBDRE_0"}


def test_by_dlopen_and_beside_each_other(built):
    for kind in ("app", "sys"):
        library = ctypes.CDLL(str(built / f"libdre{kind}.so.0"), mode=os.RTLD_LOCAL | os.RTLD_NOW)
        handle = ctypes.c_void_p()
        assert getattr(library, f"dre_{kind}_open")(None, ctypes.byref(handle)) == 0
        assert handle.value
        getattr(library, f"dre_{kind}_close")(handle)


def test_from_cpp(tmp_path, built):
    if not shutil.which("g++", path="/usr/bin"):
        pytest.skip("needs g++")
    source = tmp_path / "user.cpp"
    source.write_text(
        "#include <dre/dreapp.h>\n#include <dre/dresys.h>\n"
        "int main() { dre_options options = DRE_OPTIONS_INIT; dre_app *app; dre_sys *sys;\n"
        "if (dre_app_open(&options, &app) || dre_sys_open(nullptr, &sys)) return 1;\n"
        "dre_app_close(app); dre_sys_close(sys); return 0; }\n"
    )
    libraries = [f"-L{built}", f"-Wl,-rpath,{built}", "-ldreapp", "-ldresys"]
    call("g++", "-Wall", "-Wextra", "-Werror", f"-I{LIBRARY}/include", source, *libraries, "-o", tmp_path / "user")
    call(tmp_path / "user")
