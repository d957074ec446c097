# SPDX-License-Identifier: Apache-2.0
"""An sshd in the app beside its program: what its script does for it, who may log in, and whether it has come up.

It is OpenSSH's of the app's base, with a configuration of ours: root alone, by key alone. Its host key is the app's
own and lies in its delta. It ends with the app, as every process in it does.
"""

import os
import re
import shlex
import time
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from dre.errors import DreError, MissingError, TimedOutError, UsageError
from dre.spec import Spec

if TYPE_CHECKING:  # dre.app needs this module
    from dre.app import App

DEFAULT_PORT = 0  # in a Spec still to be checked: the one of the settings
KEYS = Path("/root/.ssh")  # whose authorized_keys and *.pub may log in when nobody is named
PROGRAM = "usr/sbin/sshd"
ENDED = "dre-app: sshd ended with status"
_HOST_KEY = "/etc/ssh/ssh_host_dre_ed25519_key"
_READY = "run/dre-sshd.pid"
_WAIT = 20.0  # seconds until it listens; a slow machine makes a key first
_KEY = re.compile(r"(?:[^#]*[ \t])?(?:ssh-|ecdsa-|sk-)[a-z0-9@.-]+ [A-Za-z0-9+/]{40,}={0,2}(?: .*)?")

_CONFIG = f"""Port {{port}}
HostKey {_HOST_KEY}
AuthorizedKeysFile /run/dre-sshd-keys
PidFile /{_READY}
AuthenticationMethods publickey
PasswordAuthentication no
KbdInteractiveAuthentication no
PermitRootLogin prohibit-password
AllowUsers root
UsePAM no
UseDNS no
Subsystem sftp internal-sftp
"""

# What the app's script does before its program, and after it: who is logged in shall not keep an app alive. Root
# without an entry in shadow is taken for locked where systemd answers for him; `*` is no password, but not locked.
_BEFORE = f"""(
sshd=
end() {{{{
for file in /proc/[0-9]*/stat; do
{{{{ read -r line <"$file"; }}}} 2>/dev/null || continue
file=${{{{file%/stat}}}}
set -- ${{{{line##*) }}}}
[ -z "$sshd" ] || [ "$2" != "$sshd" ] || kill -KILL "${{{{file#/proc/}}}}"
done
[ -z "$sshd" ] || kill "$sshd"
exit
}}}}
trap end TERM
printf %s {{config}} >/run/dre-sshd-config
printf %s {{keys}} >/run/dre-sshd-keys
grep -qs '^root:' /etc/shadow || (umask 077 && echo 'root:*:::::::' >>/etc/shadow)
mkdir -p /run/sshd /etc/ssh
[ -s {_HOST_KEY} ] || {{{{
rm -f {_HOST_KEY}
ssh-keygen -q -t ed25519 -N '' -C dre-app -f {_HOST_KEY}
}}}}
/{PROGRAM} -D -e -f /run/dre-sshd-config &
sshd=$!
wait $sshd
echo "{ENDED} $?"
) &
sshd=$!
"""
AFTER = "kill $sshd 2>/dev/null\nwait $sshd\n"


def port(word: str) -> int | None:
    """A port, DEFAULT_PORT for `default`, or None for `none`. Raises UsageError."""
    if word in ("none", "default"):
        return None if word == "none" else DEFAULT_PORT
    if not re.fullmatch(r"[0-9]{1,5}", word) or not 0 < int(word) < 65536:
        raise UsageError(f"sshd-port {word!r}: expected a port, default or none")
    return int(word)


def is_key(line: str) -> bool:
    """Whether *line* is a public key as authorized_keys has it."""
    return line.isprintable() and _KEY.fullmatch(line) is not None


def keys(words: list[str]) -> tuple[str, ...]:
    """The lines for authorized_keys of what was given: files, or keys themselves. Raises UsageError."""
    return tuple(line for word in words for line in ([word] if _KEY.fullmatch(word) else _read(Path(word))))


def _read(file: Path) -> list[str]:
    try:
        lines = [line.strip() for line in file.read_text().splitlines()]
    except (OSError, UnicodeDecodeError, ValueError) as error:
        raise UsageError(f"ssh-key {str(file)!r}: cannot be read: {getattr(error, 'strerror', 'not text')}") from None
    if any("PRIVATE KEY" in line for line in lines):
        raise UsageError(f"ssh-key {file}: a private key; give its public half, {file}.pub")
    found = [line for line in lines if line and not line.startswith("#")]
    for line in found:
        if not is_key(line):
            raise UsageError(f"ssh-key {file}: not a public key: {line[:40]!r}")
    if not found:
        raise UsageError(f"ssh-key {file}: holds no key")
    return found


def check(app: "App", spec: Spec) -> Spec:
    """*spec* with its port and keys settled. Raises MissingError when its base has no sshd, UsageError without keys."""
    if spec.sshd_port is None:
        return spec
    if spec.halt is not None:
        raise DreError(f"{app.name}: sshd-port: it has an init of its own, which can start one")
    base = Path("/" if spec.base == "host" else spec.base)
    if not os.path.lexists(base / PROGRAM) and not os.path.lexists(app.delta / PROGRAM):
        raise MissingError(f"{app.name}: sshd-port: {spec.base} has no /{PROGRAM}; install openssh-server there")
    allowed = spec.ssh_keys or keys_of_root()
    if not allowed:
        raise UsageError(f"{app.name}: sshd-port: nobody could log in: {KEYS} holds no public key; give --ssh-key FILE")
    return replace(spec, sshd_port=spec.sshd_port or app.conf.default_sshd_port, ssh_keys=allowed)


def keys_of_root() -> tuple[str, ...]:
    """Those that may log in as root of the host. Raises UsageError where they cannot be read."""
    files = [KEYS / "authorized_keys", *sorted(KEYS.glob("*.pub"))] if KEYS.is_dir() else []
    found = dict.fromkeys(line for file in files if file.is_file() and file.stat().st_size for line in _read(file))
    return tuple(found)


def script(spec: Spec) -> str:
    """The lines of the app's script that start it, to be followed by AFTER once the program has ended."""
    config = shlex.quote(_CONFIG.format(port=spec.sshd_port))
    return _BEFORE.format(config=config, keys=shlex.quote("".join(f"{line}\n" for line in spec.ssh_keys)))


def await_ready(app: "App", spec: Spec, init: int | None) -> None:
    """Wait until the sshd of the app that has just started listens. Raises DreError with its last words."""
    if spec.sshd_port is None or init is None:
        return
    deadline = time.monotonic() + _WAIT
    pause = 0.005
    while not os.path.lexists(f"/proc/{init}/root/{_READY}"):  # written once it listens
        said = app.log.read_text(errors="replace") if app.log.exists() else ""
        if f"\n{ENDED}" in f"\n{said}":
            before = said.partition(ENDED)[0].split("\n")
            reason = next((line for line in reversed(before) if line.strip()), "it said nothing").strip()
            raise DreError(f"{app.name}: its sshd has ended: {reason}")
        if not Path(f"/proc/{init}").exists():
            return  # so has the app, and that is no matter of its sshd
        if time.monotonic() > deadline:
            raise TimedOutError(f"{app.name}: its sshd does not listen within {_WAIT:g} s")
        time.sleep(pause)  # nothing wakes us when it listens; the pause grows to 50 ms
        pause = min(pause * 1.5, 0.05)
