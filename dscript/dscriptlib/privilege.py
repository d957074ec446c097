# SPDX-License-Identifier: Apache-2.0
"""Whom the engine and the page become when root starts them, and what they are given for that.

The engine owns the journal and takes answers in; the page reads the journal and leaves answers, as a user of its own,
so that who takes it over reaches neither the engine nor its journal. Scripts, versions and persons stay root's.
"""

import os
import pwd
import stat
from pathlib import Path

from dre import privilege

ENGINE, PAGE = "dscript", "dscript-page"


def account(name: str) -> pwd.struct_passwd:
    """The user *name*, whom we can become. Raises DreError."""
    return privilege.account(name, "dscript", ENGINE)


def drop(user: pwd.struct_passwd, journal: Path, answers: Path) -> None:
    """Become *user*, who is the engine. What is open already stays so."""
    journal.mkdir(mode=0o750, parents=True, exist_ok=True)
    answers.mkdir(mode=0o700, parents=True, exist_ok=True)
    _own(journal, user.pw_uid, user.pw_gid)
    for entry in journal.iterdir():
        _own(entry, user.pw_uid, user.pw_gid)
    _share(answers, user.pw_gid)
    privilege.become(user.pw_uid, user.pw_gid, os.getgrouplist(user.pw_name, user.pw_gid))


def become_page(place: Path, journal: Path, answers: Path) -> None:
    """Become the user of the page, who owns *place*. Without one of its own that is the engine's."""
    names = [entry.pw_name for entry in pwd.getpwall()]
    user = account(PAGE if PAGE in names else ENGINE)
    group = pwd.getpwnam(ENGINE).pw_gid if ENGINE in names else user.pw_gid
    os.chown(place, user.pw_uid, user.pw_gid)
    os.chown(journal, -1, group)
    journal.chmod(0o2750)
    for entry in journal.glob("[0-9]*.log"):
        _own(entry, -1, group)
    _share(answers, group)
    privilege.become(user.pw_uid, user.pw_gid, [user.pw_gid, group])


def _share(answers: Path, group: int) -> None:
    """Let the engine and the page, both of *group*, leave answers and take them away."""
    os.chown(answers, -1, group)
    answers.chmod(0o2770)


def _own(path: Path, uid: int, gid: int) -> None:
    """Give a directory or a file away; a link that somebody put there, of either kind, leads to nothing."""
    fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        found = os.fstat(fd)
        if stat.S_ISDIR(found.st_mode) or (stat.S_ISREG(found.st_mode) and found.st_nlink == 1):
            os.fchown(fd, uid, gid)
    finally:
        os.close(fd)
