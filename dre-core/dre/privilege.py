# SPDX-License-Identifier: Apache-2.0
"""A process of root that becomes another user for good. What it has open stays open; nothing leads back."""

import os
import pwd
from collections.abc import Sequence

from dre.errors import MissingError, NotPermittedError


def account(name: str, package: str, usual: str) -> pwd.struct_passwd:
    """The user *name* of `--user`, whom we can become; *package* makes the *usual* one.

    Raises NotPermittedError, MissingError.
    """
    if os.geteuid() != 0:
        raise NotPermittedError("--user: only root can become another user")
    try:
        return pwd.getpwnam(name)
    except KeyError:
        raise MissingError(f"no user {name} on this host; the package {package} makes {usual}") from None


def become(uid: int, gid: int, groups: Sequence[int] = ()) -> None:
    """Become the user *uid* of the group *gid* and of *groups* beside it, in all threads. Raises OSError."""
    os.setgroups(groups)
    os.setresgid(gid, gid, gid)
    os.setresuid(uid, uid, uid)
