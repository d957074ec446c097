# SPDX-License-Identifier: Apache-2.0
"""dscript called in the test's own process, which saves a start of Python each time, and what its journal holds."""

import contextlib
import importlib
import io
import json
import pathlib
import subprocess
import sys

from programs import program


def call(*argv):
    """The CompletedProcess that dscript with these arguments would be, with octets; the checkout's or the installed."""
    place = str(pathlib.Path(program("dscript")).resolve().parent)
    if place not in sys.path:
        sys.path.insert(0, place)
    main = importlib.import_module("dscriptlib.cmd.dscript").main
    words = [str(word) for word in argv]
    with contextlib.redirect_stdout(io.StringIO()) as out, contextlib.redirect_stderr(io.StringIO()) as said:
        status = main(words)
    return subprocess.CompletedProcess(["dscript", *words], status, out.getvalue().encode(), said.getvalue().encode())


def records(place, kind=None):
    """The records, of one *kind* or all, that an engine whose state is below *place* has written to the end."""
    found = []
    for path in sorted((place / "state/script/journal").glob("*.log")):
        octets = path.read_bytes()
        found += [json.loads(line[9:]) for line in octets[: octets.rfind(b"\n") + 1].splitlines()]
    return [record for record in found if kind in (None, record["kind"])]
