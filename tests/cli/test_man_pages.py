# SPDX-License-Identifier: Apache-2.0
"""Every command has a man page that names all its verbs and options, and dre.conf(5) names all settings."""

import importlib
import re
import sys

import pytest
from conftest import ROOT
from dre import conf
from test_completion import COMMANDS

SECTIONS = ("SYNOPSIS", "DESCRIPTION", "EXIT STATUS", "FILES", "EXAMPLES", "SEE ALSO")


def source(directory, command):
    """The page as it is written."""
    pages = list((ROOT / directory / "man").glob(f"{command}.[158].rst"))
    assert len(pages) == 1, f"{command}: {len(pages)} pages"
    return pages[0]


def parsers(parser):
    """*parser* and those of its verbs, and of their verbs."""
    yield parser
    for action in parser._actions:
        if hasattr(action, "choices") and isinstance(action.choices, dict):
            for inner in {id(one): one for one in action.choices.values()}.values():
                yield from parsers(inner)


def words(parser):
    """Every verb and long option of *parser*."""
    for one in parsers(parser):
        for action in one._actions:
            yield from (option for option in action.option_strings if option.startswith("--"))
            if isinstance(action.choices, dict):
                yield from action.choices


@pytest.mark.parametrize(("directory", "command"), COMMANDS)
def test_page_names_every_verb_and_option(directory, command, monkeypatch):
    makefile = (ROOT / directory / "Makefile").read_text()
    library = re.search(r"^LIB = (\S+)$", makefile, re.MULTILINE)
    monkeypatch.setattr(sys, "path", [str(ROOT / directory), *sys.path])
    name = f"{library[1] if library else 'dre'}.cmd.{command.replace('-', '_')}"
    text = source(directory, command).read_text()
    missing = [word for word in words(importlib.import_module(name).make_parser()) if word not in text]
    assert missing == []


@pytest.mark.parametrize(("directory", "command"), COMMANDS)
def test_page_has_the_usual_sections(directory, command):
    text = source(directory, command).read_text()
    assert [section for section in SECTIONS if not re.search(rf"^{section}\n", text, re.MULTILINE)] == []


def test_settings_page_and_shipped_file_name_every_key_with_its_default():
    page = (ROOT / "dre-core/man/dre.conf.5.rst").read_text()
    shipped = (ROOT / "etc/dre.conf").read_text()
    for key, item in conf.KEYS.items():
        assert f'#{key}="{item.default}"' in shipped
        assert re.search(rf"^\*\*{key}\*\*", page, re.MULTILINE), f"{key} is not in dre.conf(5)"
        assert f'"{item.default}"' in page.partition(f"**{key}**")[2].partition("\n**DRE_")[0], key
