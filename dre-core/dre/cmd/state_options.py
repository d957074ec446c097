# SPDX-License-Identifier: Apache-2.0
"""The options of verbs that save states, of apps and of systems."""

import argparse

from dre import verbs
from dre.errors import UsageError


def add_description(verb: argparse.ArgumentParser) -> None:
    """Add --description."""
    text = "why it was saved, one line"
    verb.add_argument("--description", metavar="TEXT", default="", type=_description, help=text)


@verbs.kind
def _description(text: str) -> str:
    if not text.isprintable() or len(text) > 200:
        raise UsageError("a description is one line of at most 200 characters")
    return text
