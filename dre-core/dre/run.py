# SPDX-License-Identifier: Apache-2.0
"""The only door to other programs: an argv list, never a shell string, with a deadline."""

import os
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path

from dre.errors import DreError, MissingError, TimedOutError

# Which Debian package brings a program that may be missing; asked only to word the error.
PACKAGES = {
    "dnsmasq": "dnsmasq-base",
    "ip": "iproute2",
    "lxc-attach": "lxc",
    "mmdebstrap": "mmdebstrap",
    "nft": "nftables",
    "openssl": "openssl",
    "sec": "sec",
    "tar": "tar",
}


def run(
    argv: Sequence[str],
    *,
    timeout: float = 60.0,
    stdin: bytes | None = None,
    check: bool = True,
    env: Mapping[str, str] | None = None,
    cwd: str | None = None,
) -> subprocess.CompletedProcess[bytes]:
    """Run *argv*, wait for at most *timeout* seconds, and return what it printed (octets).

    LC_ALL is C, so that messages can be quoted; *env* is added to the caller's environment. With *check* a
    status other than 0 raises DreError with the command and its last words. Raises MissingError when the
    program is not installed and TimedOutError (after SIGKILL) when it did not end in time.
    """
    environment = {**os.environ, "LC_ALL": "C", **(env or {})}
    try:
        done = subprocess.run(
            list(argv),
            input=stdin,
            stdin=subprocess.DEVNULL if stdin is None else None,
            capture_output=True,
            timeout=timeout,
            env=environment,
            cwd=cwd,
            check=False,
        )
    except FileNotFoundError:
        raise missing(argv[0]) from None
    except subprocess.TimeoutExpired:
        raise TimedOutError(f"{' '.join(argv)}: no answer within {timeout:g} s") from None
    if check and done.returncode != 0:
        said = done.stderr.decode(errors="replace").strip() or done.stdout.decode(errors="replace").strip()
        last = said.splitlines()[-1] if said else "no message"
        raise DreError(f"{' '.join(argv)}: exit status {done.returncode}: {last}")
    return done


def missing(program: str) -> MissingError:
    """The error for a *program* that is not installed, naming its Debian package."""
    name = Path(program).name
    package = PACKAGES.get(name)
    hint = f"; apt-get install {package}" if package else ""
    return MissingError(f"{program}: no such program{hint}")


def need(program: str) -> str:
    """The path of *program*; raises MissingError when it is not in PATH."""
    path = shutil.which(program)
    if path is None:
        raise missing(program)
    return path
