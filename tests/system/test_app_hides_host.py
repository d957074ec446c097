# SPDX-License-Identifier: Apache-2.0
"""With the host as base, what is private to the host cannot be read from inside; each place is read."""

import os
import pathlib
import uuid

import pytest
from app_ground import Ground

DIRECTORIES = ("/etc/dre", "/var/lib/dre", "/var/lib/lxc", "/root", "/home", "/run")
FILES = ("/etc/shadow", "/etc/shadow-", "/etc/gshadow", "/etc/gshadow-", "/etc/ssh/ssh_host_ed25519_key")


@pytest.fixture
def secret():
    """A word planted in every hidden place of the host that is there, and removed again."""
    word = f"t-secret-{uuid.uuid4().hex}"
    planted, made = [], []
    for directory in DIRECTORIES:
        if not os.path.isdir(directory):
            os.mkdir(directory)
            made.append(directory)
        path = pathlib.Path(directory, word)
        path.write_text(word)
        planted.append(path)
    key = pathlib.Path("/etc/ssh/ssh_host_ed25519_key")
    if not key.exists():
        if not key.parent.exists():
            key.parent.mkdir()
            made.append(str(key.parent))
        key.write_text(word)
        planted.append(key)
    yield word
    for path in planted:
        path.unlink()
    for directory in made:
        os.rmdir(directory)


def test_hidden(run, settings, secret):
    with Ground(run, settings) as app:
        own = app.place / "state" / secret
        own.parent.mkdir()
        own.write_text(secret)
        app("create", "t-hide")
        app("start", "t-hide")
        for path in (*DIRECTORIES, str(own.parent)):
            assert os.path.exists(f"{path}/{secret}"), "the test looks at the wrong place"
            listing = app("exec", "t-hide", "--", "sh", "-c", f"ls -A {path}; cat {path}/{secret} 2>/dev/null; true")
            assert secret not in listing, path
        for path in FILES:
            seen = app("exec", "t-hide", "--", "sh", "-c", f"cat {path} 2>/dev/null; true")
            assert seen == "", path
        # Root inside can unmount, but nothing is uncovered by it.
        app("exec", "t-hide", "--", "sh", "-c", "umount -l /root /home /etc/shadow 2>/dev/null; true")
        assert secret not in app("exec", "t-hide", "--", "ls", "-A", "/root", "/home")
        assert app("exec", "t-hide", "--", "cat", "/etc/shadow") == ""
        # And what the host needs is shared.
        assert (
            app("exec", "t-hide", "--", "cat", "/etc/debian_version")
            == pathlib.Path("/etc/debian_version").read_text().strip()
        )
