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
from conftest import ROOT, environment, program

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
    """The directory of both libraries and of the examples, as `make` builds them."""
    place = tmp_path_factory.mktemp("libdre")
    call("make", "-C", LIBRARY, f"BUILD={place}", "CFLAGS=-O2 -g -Werror", "libraries", "examples")
    return place


def edges_of(place, *flags):
    """The program that looks for what can go wrong, with the library inside."""
    sources = [HERE / "libdre_edges.c", *(LIBRARY / f"src/{name}.c" for name in ("serve", "verbs", "app"))]
    libraries = ["-ljson-c", "-lm", "-pthread"]
    call("gcc", "-std=c11", "-g", *flags, f"-I{LIBRARY}/include", *sources, *libraries, "-o", place / "edges")
    return place / "edges"


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
    edges = edges_of(tmp_path, "-O1", f"-fsanitize={sanitizer}", "-fno-sanitize-recover=all")
    assert call(edges, HERE / "coprocess") == "0 failures\n"


@pytest.mark.skipif(not FULL, reason="as before a release: DRE_FULL=1")
def test_valgrind_finds_nothing(tmp_path):
    valgrind = ["valgrind", "--quiet", "--leak-check=full", "--child-silent-after-fork=yes", "--error-exitcode=9"]
    assert call(*valgrind, edges_of(tmp_path), HERE / "coprocess", "without-kill") == "0 failures\n"


def declared(kind):
    """The functions that the header of *kind* declares, by name, with their blanks evened out."""
    text = call("gcc", "-E", "-P", f"-I{LIBRARY}/include", LIBRARY / f"include/dre/dre{kind}.h")
    found = re.findall(rf"^[\w *]+?\*?\b(?P<name>dre_{kind}_\w+)\([^;]*\);", text, re.MULTILINE)
    return {name: " ".join(re.search(rf"^.*\b{name}\([^;]*\);", text, re.MULTILINE)[0].split()) for name in found}


@pytest.mark.parametrize("kind", ["app", "sys"])
def test_the_manual_declares_what_the_header_does(kind):
    pages = [(LIBRARY / f"man/{page}.3.rst").read_text() for page in ("libdre", f"libdre{kind}")]
    if kind == "sys":  # the page of both has the four that are alike as apps have them
        pages[0] = pages[0].replace("dre_app", "dre_sys")
    manual = " ".join(" ".join(pages).split())
    assert [prototype for prototype in declared(kind).values() if prototype not in manual] == []


@pytest.mark.parametrize("kind", ["app", "sys"])
@pytest.mark.skipif(not shutil.which("abidiff", path="/usr/bin"), reason="needs abigail-tools")
@pytest.mark.skipif(os.uname().machine != "x86_64", reason="the record is of x86_64")
def test_the_interface_is_the_one_on_record(built, kind):
    """What was added, compatible or not, is recorded by tests/c/record-abi."""
    options = ["--exported-interfaces-only", "--no-show-locs"]
    assert call("abidiff", *options, HERE / f"libdre{kind}.abi", built / f"libdre{kind}.so.0") == ""


@pytest.mark.parametrize("kind", ["app", "sys"])
def test_a_library_shows_what_its_header_declares_and_nothing_else(built, kind):
    names = {
        line.split()[-1].split("@")[0]
        for line in call("nm", "-D", "--defined-only", built / f"libdre{kind}.so.0").splitlines()
    }
    assert names == set(declared(kind)) | {"LIBDRE_0"}


@pytest.mark.skipif(os.geteuid() != 0, reason="the process that serves must be root")
def test_the_commands_understand_every_call(tmp_path, built, settings):
    """With all that a struct can say: what is refused is refused for what is not there."""
    conf = settings(DRE_SYS_URI="qemu+unix:///system?socket=/nonexistent/libvirt-sock", DRE_SYS_VIRT="tcg")
    words = ["-std=gnu11", f"-I{LIBRARY}/include", HERE / "libdre_verbs.c", f"-L{built}", f"-Wl,-rpath,{built}"]
    call("gcc", *words, "-ldreapp", "-ldresys", "-o", tmp_path / "verbs")
    assert call(tmp_path / "verbs", conf, program("dre-app"), program("dre-sys")) == "0 failures\n"


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
