# SPDX-License-Identifier: Apache-2.0
"""dscript called in the test's own process: a test that calls it often need not start Python as often."""

import contextlib
import importlib
import io
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
