# SPDX-License-Identifier: Apache-2.0
"""Replacing the sign key when it is old: the new key is made and stored first, the old one destroyed last.

Order on disk: `sign.key.next` durable → entry, tree head and new certificate in one transaction → old key
overwritten → `sign.key.next` renamed to `sign.key`. Killed anywhere, `recover` goes on from what the database says.
"""

import os
import time
from collections.abc import Callable

from cryptography import x509
from dre import event, files, trust
from dre.errors import DreError

from dboxlib import pki
from dboxlib.places import Places
from dboxlib.signer import Signer, load_key, period
from dboxlib.store import Store


class Rotation:
    """Called by the sequencer between batches."""

    def __init__(self, places: Places, box: str, signer: Signer, age: float, told: Callable[[str], None]) -> None:
        self.places = places
        self.box = box
        self.signer = signer
        self.age = age
        self.told = told  # gets the fingerprint of the new key
        self.warned = False

    def __call__(self, now: bool = False) -> tuple[pki.Issued, Callable[[], None]] | None:
        """The next key and what to do once it is in force; None while the present one is young enough and not *now*."""
        begin = event.seconds(period(self.signer.sign.certificate)[0])
        if not now and (time.time() - begin < self.age or self.warned):
            return None
        if self.signer.owner is None:
            self.warned = True
            raise DreError("its period is over, but the owner's key is not at hand (owner.p12; dboxd started as root)")
        sign = pki.sign_key(self.signer.owner, self.box, self.signer.origin)
        files.write_atomic(self.places.next_key, pki.key_pem(sign.key), 0o400)

        def finish() -> None:
            destroy(self.places)
            self.told(trust.fingerprint(sign.certificate))

        return sign, finish


def destroy(places: Places) -> None:
    """Put the next key in the place of the old one, whose octets are overwritten first.

    On a file system that copies on write, or on flash, old octets may survive below us; no program can help that.
    """
    if places.sign_key.exists():
        places.sign_key.chmod(0o600)
        with places.sign_key.open("r+b") as stream:
            stream.write(os.urandom(os.fstat(stream.fileno()).st_size))
            stream.flush()
            os.fsync(stream.fileno())
    places.next_key.rename(places.sign_key)
    files.fsync_dir(places.state)


def recover(places: Places, store: Store) -> pki.Issued:
    """The sign key that the database says is in force, after finishing or forgetting a rotation that was cut off."""
    certificate = x509.load_pem_x509_certificate(store.certificate("sign").encode())
    if places.next_key.exists():
        if _fits(places.next_key.read_bytes(), certificate):
            destroy(places)
        else:
            places.next_key.unlink()
    octets = places.sign_key.read_bytes()
    if not _fits(octets, certificate):
        raise DreError(f"{places.sign_key}: not the key of the newest sign certificate in {places.database}")
    return pki.Issued(load_key(octets), certificate)


def _fits(octets: bytes, certificate: x509.Certificate) -> bool:
    try:
        return pki.same_key(load_key(octets), certificate)
    except DreError:
        return False  # torn or overwritten: certainly not the key in force
