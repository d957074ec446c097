# SPDX-License-Identifier: Apache-2.0
"""What tests/grounds.py names is there: a test that is left for a release does not leave it by another name."""

import re

import grounds
import pytest
from programs import ROOT

SYSTEM = ROOT / "tests" / "system"


@pytest.mark.parametrize("file", sorted(grounds.LONG))
def test_each_that_is_left_for_a_release_is_there(file):
    text = (SYSTEM / f"{file}.py").read_text()
    for name in grounds.LONG[file]:
        assert re.search(rf"^def {name.partition('[')[0]}\(", text, re.MULTILINE), name
