# SPDX-License-Identifier: Apache-2.0
"""The one table of exit codes, as exceptions that carry a message for people.

Nothing here prints or exits: dre.cli does both, once.
"""

DONE = 0
FAILED = 1
USAGE = 2
NOT_FOUND = 3
NOT_PERMITTED = 4
TIMED_OUT = 5
MISSING = 6


class DreError(Exception):
    """Something failed; the message names the object and the reason in one line."""

    code = FAILED


class UsageError(DreError):
    """A wrong argument, or a setting that cannot be used."""

    code = USAGE


class NotFoundError(DreError):
    """No such container, snapshot or entry."""

    code = NOT_FOUND


class NotPermittedError(DreError):
    """The caller lacks a privilege or a role."""

    code = NOT_PERMITTED


class TimedOutError(DreError):
    """A deadline passed before the work was done."""

    code = TIMED_OUT


class MissingError(DreError):
    """A program, service or device that is needed is not there."""

    code = MISSING
