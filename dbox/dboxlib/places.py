# SPDX-License-Identifier: Apache-2.0
"""Where a D-Box keeps what, derived from the settings; and the user that owns it."""

import os
import pwd
from dataclasses import dataclass
from pathlib import Path

from dre.conf import Conf

USER = "dbox"  # of the sequencer: its keys, and the database that only it writes
WEB = "dbox-web"  # of the servers in front, which read


@dataclass(frozen=True)
class Places:
    """All paths of one D-Box."""

    certs: Path
    database: Path  # of SQLite; on a server, what its directory holds is the sign key alone
    url: str
    password_file: Path | None = None

    @property
    def state(self) -> Path:
        """The directory of the database: owned by the D-Box's user."""
        return self.database.parent

    @property
    def sign_key(self) -> Path:
        """The current sign key: beside the database, since dboxd itself replaces it."""
        return self.state / "sign.key"

    @property
    def next_key(self) -> Path:
        """The next sign key, prepared by root."""
        return self.state / "sign.key.next"

    @property
    def next_certificate(self) -> Path:
        """Its certificate: the pair is whole when this is there."""
        return self.state / "sign.crt.next"


def of(conf: Conf) -> Places:
    """The places that *conf* names."""
    if conf.dbox_database.startswith("mysql:"):
        url = conf.dbox_database_admin or conf.dbox_database
        database = conf.core_state_dir / "dbox" / "dbox.sqlite"
        return Places(conf.dbox_certs_dir, database, url, conf.dbox_database_password_file)
    return Places(conf.dbox_certs_dir, Path(conf.dbox_database.removeprefix("sqlite:")), conf.dbox_database)


def owner() -> tuple[int, int] | None:
    """uid and gid of the D-Box's user; None without one, or when we are not root."""
    return user(USER)


def user(name: str) -> tuple[int, int] | None:
    """uid and gid of a user of ours; None without one, or when we are not root."""
    if os.geteuid() != 0:
        return None
    try:
        entry = pwd.getpwnam(name)
    except KeyError:
        return None
    return entry.pw_uid, entry.pw_gid


def give(path: Path, to: tuple[int, int] | None) -> None:
    """Make *path* belong to *to*, where there is such a user."""
    if to is not None:
        os.chown(path, *to, follow_symlinks=False)
