# SPDX-License-Identifier: Apache-2.0
"""How a command ends: the one place that turns what a verb raised into an exit code and a line on stderr.

Apart from dre.cli, which reads arguments, for the commands that have none to read. Loads nothing that is slow.
"""

from __future__ import annotations

import os
import sys

from dre.errors import FAILED, USAGE, DreError, NotPermittedError

TYPE_CHECKING = False  # as of the module typing, which is slow to load
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import NoReturn


def call(prog: str, work: Callable[[], int | None], debug: bool) -> int:
    """Do *work* of program *prog* and return the exit code; with *debug* an error is told with its traceback."""
    if None in (sys.stdin, sys.stdout, sys.stderr):
        _fill_closed()
    try:
        code = work()
        sys.stdout.flush()
        return code or 0
    except SystemExit as asked:  # --help and --version end this way
        return int(asked.code or 0)
    except BrokenPipeError:
        # The reader left, as `| head` does. Python would complain again when it flushes at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    except KeyboardInterrupt:
        return 130
    except (DreError, OSError) as error:
        code, message = failure(error)
        return _fail(prog, message, code, debug)


def _fill_closed() -> None:
    """Put something behind standard streams that are closed: else a file of ours would get their numbers."""
    for fd, name in enumerate(("stdin", "stdout", "stderr")):
        if getattr(sys, name) is None:
            # What is written to a closed standard output must fail; complaints of a closed standard error cannot.
            os.open(os.devnull, os.O_WRONLY if name == "stderr" else os.O_RDONLY)  # takes the lowest number, *fd*
            setattr(sys, name, os.fdopen(fd, "r" if name == "stdin" else "w", closefd=False))


def leave(code: int) -> NoReturn:
    """End the process at once: for Python to take itself apart costs more than most verbs."""
    try:
        sys.stdout.flush()
    except OSError:
        code = code or FAILED  # call has told of what could not be written
    sys.stderr.flush()
    os._exit(code)


def failure(error: DreError | OSError) -> tuple[int, str]:
    """The exit code and the message of what a verb raised."""
    if isinstance(error, DreError):
        return error.code, str(error)
    code = NotPermittedError.code if isinstance(error, PermissionError) else FAILED
    return code, f"{error.filename or 'input or output'}: {error.strerror or error}"


def _fail(prog: str, message: str, code: int, debug: bool) -> int:
    if debug:
        import traceback  # slow, and rarely wanted

        traceback.print_exc()
    first, _, rest = message.partition("\n")
    sys.stderr.write(f"{prog}: {first}\n")
    if rest and code == USAGE:
        sys.stderr.write(f"{rest}\n")
    return code


def need_root(what: str) -> None:
    """Raise NotPermittedError unless the caller is root; *what* says for what."""
    if os.geteuid() != 0:
        raise NotPermittedError(f"{what} needs root")
