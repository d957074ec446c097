# SPDX-License-Identifier: Apache-2.0
"""The evidence of what happened: fetched from the D-Box, then verified with dboxd stopped and without any network.

Verifying is `dbox-verify` alone; nothing of D-RE's code is used here to judge it.
"""

import json
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from demolib.forgery import Case
from demolib.places import CERTS, HOME
from demolib.programs import Failed, dre, status

READER = "reader"


@dataclass(frozen=True)
class Entry:
    """One entry as fetched: its octets and its receipt lie in files, as somebody would carry them away."""

    index: int
    octets: Path
    receipt: Path

    @property
    def event(self) -> dict[str, Any]:
        """The event that the octets are."""
        return json.loads(self.octets.read_bytes())


def count() -> int:
    """How many entries the D-Box has."""
    return len(dre("dbox-get", "--client", READER, "--list").splitlines())


def fetch(directory: Path) -> tuple[list[Entry], Path]:
    """All entries, and the certificates that their verification needs beside the root."""
    directory.mkdir(parents=True, exist_ok=True)
    chain = directory / "chain.pem"
    chain.write_bytes(dre("dbox-get", "--client", READER, "--certs"))
    with ThreadPoolExecutor(2) as pool:
        return list(pool.map(lambda index: _fetch(directory, index), range(count()))), chain


def _fetch(directory: Path, index: int) -> Entry:
    entry = Entry(index, directory / f"{index}.octets", directory / f"{index}.receipt")
    entry.octets.write_bytes(dre("dbox-get", "--client", READER, str(index), "--octets"))
    entry.receipt.write_bytes(dre("dbox-get", "--client", READER, str(index), "--proof"))
    return entry


def verify(entries: Iterable[Entry], chain: Path) -> list[int]:
    """The indexes of the entries that dbox-verify accepts in a network namespace without any network."""
    root = CERTS / "root.pem"
    with ThreadPoolExecutor(2) as pool:
        codes = pool.map(lambda entry: (entry.index, _verify(root, chain, entry.receipt, entry.octets)[0]), entries)
        return [index for index, code in codes if code == 0]


def accepted(cases: Sequence[Case], directory: Path) -> list[str]:
    """The names of the forgeries that dbox-verify did not refuse with a reason; there should be none."""
    with ThreadPoolExecutor(2) as pool:
        refused = pool.map(
            lambda numbered: _refused(directory / f"forged-{numbered[0]}", numbered[1]), enumerate(cases)
        )
        return [case.name for case, fine in zip(cases, refused, strict=True) if not fine]


def _refused(directory: Path, case: Case) -> bool:
    directory.mkdir()
    for name in ("root", "chain", "receipt", "octets"):
        (directory / name).write_bytes(getattr(case, name))
    code, said = _verify(*(directory / name for name in ("root", "chain", "receipt", "octets")))
    # A program that fell over has refused nothing.
    return code in (1, 2) and said.startswith("dbox-verify: ") and "Traceback" not in said


def _verify(root: Path, chain: Path, receipt: Path, octets: Path) -> tuple[int, str]:
    files = ["--root", str(root), "--certs", str(chain), str(receipt), str(octets)]
    done = status("unshare", "--net", "dbox-verify", *files)
    return done.returncode, done.stderr.decode(errors="replace")


def foreign() -> tuple[bytes, bytes]:
    """Root and chain of a D-Box that has nothing to do with ours, made for the purpose."""
    place = HOME / "foreign"
    place.mkdir()
    conf = place / "dre.conf"
    settings = {"CORE_STATE_DIR": place, "CORE_ETC_DIR": place / "etc", "DBOX_CERTS_DIR": place / "certs"}
    lines = [f'DRE_{key}="{path}"\n' for key, path in settings.items()]
    conf.write_text("".join(lines) + f'DRE_DBOX_DATABASE="sqlite:{place}/dbox/dbox.sqlite"\n')
    done = status("dbox-init", "--config", str(conf))
    if done.returncode != 0:
        raise Failed(f"dbox-init of a second D-Box: {done.stderr.decode(errors='replace').strip()}")
    return (place / "certs/root.pem").read_bytes(), (place / "certs/chain.pem").read_bytes()
