# SPDX-License-Identifier: Apache-2.0
"""dre-rules: read rule files of SEC without running anything from them."""

import argparse
from collections.abc import Sequence
from pathlib import Path

from dre import cli
from dre.errors import DONE, FAILED, UsageError

from monitorlib import rulecheck


def make_parser() -> argparse.ArgumentParser:
    """The arguments of dre-rules."""
    parser = cli.parser("dre-rules", "Check the rules of the event correlator.")
    verbs = parser.add_subparsers(metavar="VERB", dest="verb")
    made = cli.verb(verbs, "check", check, "Say whether rule files are acceptable; nothing in them is run.")
    made.add_argument("file", metavar="FILE", nargs="+")
    return parser


def check(ctx: cli.Context) -> int:
    """0 when all files are acceptable; 1 with FILE:LINE: REASON for each finding."""
    pipes = {path.name for path in ctx.conf.monitor_pipes}
    code = DONE
    for file in ctx.args.file:
        try:
            text = rulecheck.read(Path(file))
        except OSError as error:
            raise UsageError(f"{file}: {error.strerror}") from None
        except ValueError as error:
            findings = [rulecheck.Finding(file, 1, f"not a text in ASCII: {error}")]
        else:
            findings = rulecheck.check(file, text, pipes)
        for finding in findings:
            code = FAILED
            if ctx.args.json:
                ctx.out.json({"file": finding.file, "line": finding.line, "reason": finding.reason})
            else:
                ctx.out.line(str(finding))
    return code


def main(argv: Sequence[str] | None = None) -> int:
    """Run dre-rules."""
    return cli.main(make_parser(), argv)
