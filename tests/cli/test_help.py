# SPDX-License-Identifier: Apache-2.0
"""Every command of ours: --help, --version, an unknown option; and every manual page builds without a warning."""

import io
import os
import re

import docutils.core
import pytest
from conftest import DIRECTORIES, ROOT

COMMANDS = sorted(
    path.name
    for directory in DIRECTORIES
    for path in (ROOT / directory).iterdir()
    if path.is_file() and os.access(path, os.X_OK)
)
PAGES = sorted(page for directory in DIRECTORIES for page in (ROOT / directory / "man").glob("*.rst"))
VERSION = re.search(r'__version__ = "([^"]+)"', (ROOT / "dre-core/dre/__init__.py").read_text())[1]


def test_there_are_commands_and_pages():
    assert {"dre-app", "dre-bridge", "dre-base"} <= set(COMMANDS)
    assert {"dre.7.rst", "dre.conf.5.rst"} <= {page.name for page in PAGES}


@pytest.mark.parametrize("name", COMMANDS)
def test_version(run, name):
    done = run(name, "--version")
    assert (done.returncode, done.stdout, done.stderr) == (0, f"{name} (D-RE) {VERSION}\n".encode(), b"")


@pytest.mark.parametrize("name", COMMANDS)
def test_help(run, name):
    done = run(name, "--help")
    assert (done.returncode, done.stderr) == (0, b"")
    text = done.stdout.decode()
    assert text.startswith(f"usage: {name} ")
    for option in ("--config FILE", "--json", "--quiet", "--debug", "--version", "--help"):
        assert option in text, option


@pytest.mark.parametrize("name", COMMANDS)
def test_unknown_option(run, name):
    done = run(name, "--no-such-option")
    assert (done.returncode, done.stdout) == (2, b"")
    first, usage = done.stderr.decode().splitlines()
    assert first.startswith(f"{name}: ") and "--no-such-option" in first
    assert usage.startswith(f"usage: {name} ")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_page_builds_without_a_warning(page):
    """As `rst2man --strict --report=1` builds it."""
    warnings = io.StringIO()
    text = docutils.core.publish_string(
        page.read_bytes(),
        source_path=str(page),
        writer_name="manpage",
        settings_overrides={"report_level": 1, "halt_level": 5, "warning_stream": warnings},
    )
    assert warnings.getvalue() == ""
    number = page.name.split(".")[-2]
    assert re.search(rb'^\.TH "?[^ ]+"? "?' + number.encode() + rb'"? .*"D-RE"', text, re.MULTILINE), page.name
