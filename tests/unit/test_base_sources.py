# SPDX-License-Identifier: Apache-2.0
"""Which archives dre-base takes from a host: apt reads its sources here from a directory of the test's own."""

import os
import subprocess
import sys

import pytest
from conftest import ROOT

SHARE = "/usr/share/dre-base" if os.environ.get("DRE_TEST_INSTALLED") == "1" else str(ROOT / "dre-base")
sys.path.insert(0, SHARE)
from baselib import sources  # noqa: E402
from baselib.wish import Wish  # noqa: E402
from dre.errors import DreError, UsageError  # noqa: E402

DEBIAN = """\
Types: deb
URIs: http://deb.debian.org/debian
# a comment
Suites: bookworm bookworm-updates bookworm-backports
Components: main contrib
Signed-By: /usr/share/keyrings/debian-archive-keyring.gpg

Types: deb deb-src
URIs: http://deb.debian.org/debian-security/
Suites: bookworm-security
Components: main
Signed-By:
 -----BEGIN PGP PUBLIC KEY BLOCK-----
 .
 mDMEZ
 -----END PGP PUBLIC KEY BLOCK-----
"""
NOBLE = "Types: deb\nURIs: http://archive.ubuntu.com/ubuntu/\nSuites: noble noble-updates\nComponents: main universe\n"


@pytest.fixture
def host(tmp_path, monkeypatch):
    """host(ID, CODENAME, FILE=TEXT…) makes a host with these files in sources.list.d."""

    def make(identity, codename, **files):
        parts = tmp_path / "sources.list.d"
        parts.mkdir()
        (tmp_path / "lists").mkdir()
        for name, text in files.items():
            (parts / name.replace("_", ".")).write_text(text)
        config = tmp_path / "apt.conf"
        config.write_text(
            f'Dir::Etc::sourcelist "{tmp_path}/none";\nDir::Etc::sourceparts "{parts}";\n'
            f'Dir::State::lists "{tmp_path}/lists";\nDir::State::status "/dev/null";\nDir::Cache "{tmp_path}";\n'
            f'Acquire::http::Proxy "http://127.0.0.1:3142";\nAcquire::Retries "4";\n'
        )
        monkeypatch.setenv("APT_CONFIG", str(config))
        release = tmp_path / "os-release"
        release.write_text(f'ID={identity}\nVERSION_CODENAME="{codename}"\n')
        monkeypatch.setattr(sources, "OS_RELEASE", release)
        return tmp_path

    return make


def fetched(directory, name, origin, packages=""):
    """Have the lists of bookworm from there, as `apt-get update` leaves them."""
    start = directory / "lists" / f"{name}_dists_bookworm"
    arch = subprocess.run(["dpkg", "--print-architecture"], capture_output=True, check=True).stdout.decode().strip()
    start.with_name(f"{start.name}_Release").write_text(
        f"Origin: {origin}\nSuite: bookworm\nCodename: bookworm\nArchitectures: {arch}\nComponents: main contrib\n"
        f"SHA256:\n {'0' * 64} 0 main/binary-{arch}/Packages\n"
    )
    start.with_name(f"{start.name}_main_binary-{arch}_Packages").write_text(packages.format(arch=arch))


def test_suite_is_the_hosts(host):
    host("ubuntu", "noble")
    assert sources.default_suite() == "noble"


def test_without_a_codename_the_suite_must_be_given(host):
    directory = host("arch", "")
    (directory / "os-release").write_text("ID=arch\n")
    with pytest.raises(UsageError, match="give --suite"):
        sources.default_suite()


def test_debian_with_its_updates_and_keys_and_without_backports(host):
    host("debian", "bookworm", debian_sources=DEBIAN)
    stanzas = sources.of_host("bookworm").split("\n\n")
    head = "Types: deb\nURIs: http://deb.debian.org/debian/\nSuites: {}\nComponents: main contrib\n"
    key = "Signed-By: /usr/share/keyrings/debian-archive-keyring.gpg"
    assert stanzas[0] == head.format("bookworm") + key
    assert stanzas[1] == head.format("bookworm-updates") + key
    assert stanzas[2].startswith(
        "Types: deb\nURIs: http://deb.debian.org/debian-security/\nSuites: bookworm-security\n"
    )
    assert stanzas[2].endswith(
        "Signed-By:\n -----BEGIN PGP PUBLIC KEY BLOCK-----\n .\n mDMEZ\n -----END PGP PUBLIC KEY BLOCK-----\n"
    )
    assert len(stanzas) == 3


def test_ubuntu(host):
    host("ubuntu", "noble", ubuntu_sources=NOBLE + "Signed-By: /usr/share/keyrings/ubuntu-archive-keyring.gpg\n")
    text = sources.of_host("noble")
    assert text.count("Components: main universe\nSigned-By: /usr/share/keyrings/ubuntu-archive-keyring.gpg\n") == 2


def test_one_line_form(host):
    line = "deb [arch=amd64 signed-by=/etc/apt/keyrings/x.gpg] https://mirror.example/debian bookworm main\n"
    host("debian", "bookworm", debian_list=f"# {line}{line}")
    assert sources.of_host("bookworm") == (
        "Types: deb\nURIs: https://mirror.example/debian/\nSuites: bookworm\nComponents: main\n"
        "Signed-By: /etc/apt/keyrings/x.gpg\n"
    )


def test_one_line_form_without_a_key(host):
    host("debian", "bookworm", debian_list="deb http://mirror.example/debian bookworm main\n")
    assert "Signed-By" not in sources.of_host("bookworm") and "mirror.example" in sources.of_host("bookworm")


def test_nothing_for_another_suite_and_nothing_from_a_local_repository(host):
    host("debian", "bookworm", debian_sources=DEBIAN, dre_list="deb [trusted=yes] file:/srv/repo bookworm main\n")
    assert sources.of_host("trixie") == ""
    assert "file:" not in sources.of_host("bookworm")


def test_other_vendors_are_left_out_once_apt_knows_who_they_are(host):
    vendor = "deb [trusted=yes] http://vendor.example/apt bookworm main\n"
    directory = host("debian", "bookworm", debian_sources=DEBIAN, vendor_list=vendor)
    fetched(directory, "deb.debian.org_debian", "Debian")
    fetched(directory, "vendor.example_apt", "Vendor")
    text = sources.of_host("bookworm")
    assert "deb.debian.org" in text and "vendor.example" not in text


PACKAGES = """\
Package: hello
Version: 2.10-3
Architecture: {arch}
Provides: greeting
Filename: pool/hello.deb
Size: 1

"""
LIST = "deb [trusted=yes] http://deb.debian.org/debian bookworm main\n"


def test_a_package_in_no_list_is_refused_while_nothing_is_made(host):
    directory = host("debian", "bookworm", debian_list=LIST)
    fetched(directory, "deb.debian.org_debian", "Debian", PACKAGES)
    sources.look_up(Wish("bookworm", packages=("hello:amd64", "hello=2.10-3", "greeting")))
    with pytest.raises(DreError, match="^helo=1.0: not in the host's package lists of bookworm"):
        sources.look_up(Wish("bookworm", packages=("hello", "helo=1.0")))


@pytest.mark.parametrize(
    ("suite", "mirror", "origin"),
    [
        ("bookworm", None, None),
        ("trixie", None, "Debian"),
        ("bookworm", None, "Vendor"),
        ("bookworm", "http://x", "Debian"),
    ],
)
def test_where_the_lists_are_not_at_hand_the_archive_is_asked(host, suite, mirror, origin):
    directory = host("debian", "bookworm", debian_list=LIST)
    if origin:
        fetched(directory, "deb.debian.org_debian", origin, PACKAGES)
    sources.look_up(Wish(suite, mirror, ("helo",)))


def test_proxy_and_retries_are_carried_over_and_nothing_that_runs(host):
    directory = host("debian", "bookworm")
    with (directory / "apt.conf").open("a") as config:
        config.write('DPkg::Post-Invoke { "touch /tmp/x"; };\nAPT::Update::Post-Invoke { "touch /tmp/x"; };\n')
    options = sources.apt_options()
    assert 'Acquire::http::Proxy "http://127.0.0.1:3142";' in options
    assert 'Acquire::Retries "4";' in options
    assert not [option for option in options if not option.startswith("Acquire::")]


@pytest.mark.parametrize(
    "words",
    [
        {"suite": ""},
        {"suite": "Bookworm"},
        {"suite": "bookworm main"},
        {"suite": "--help"},
        {"suite": "bookworm", "mirror": "ftp://x/"},
        {"suite": "bookworm", "mirror": "http://x/ bookworm main\ndeb http://y/"},
        {"suite": "bookworm", "mirror": ""},
        {"suite": "bookworm", "packages": ("hello", "?essential")},
        {"suite": "bookworm", "packages": ("a,b",)},
        {"suite": "bookworm", "packages": ("./x.deb",)},
        {"suite": "bookworm", "packages": ("hello/../x",)},
    ],
)
def test_a_wish_holds_only_what_apt_takes_as_meant(words):
    with pytest.raises(UsageError):
        Wish(**words)


def test_wishes_that_are_fine():
    Wish("noble", "https://mirror.example:8080/ubuntu", ("libc6:amd64", "g++", "hello=2.10-3+b1"))
