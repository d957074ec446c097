# SPDX-License-Identifier: Apache-2.0
"""The programs and the packages tell the same version."""

import re

import dre
from conftest import ROOT


def test_changelog_has_the_version_of_the_programs():
    first = (ROOT / "debian/changelog").read_text().partition("\n")[0]
    assert re.sub(r"(\+local\.|~).*", "", re.search(r"\((.*)\)", first)[1]) == dre.__version__
