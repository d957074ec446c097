# SPDX-License-Identifier: Apache-2.0
"""Replacing the sign key: the next one is prepared by root, put in force by the sequencer, and the old one destroyed.

Certifying a sign key takes the owner's key, which only root reads; so `prepare` (dbox-rotate, dbox-init) leaves the
next key with its certificate beside the present one, and the sequencer needs no more than these.

Order on disk: `sign.key.next`, then `sign.crt.next`, both durable → entry, tree head and new certificate in one
transaction → old key overwritten → `sign.key.next` renamed to `sign.key`, `sign.crt.next` removed. Killed anywhere,
`recover` goes on from what the database says.
"""

import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from cryptography import x509
from dre import event, evidence, files, handover, trust
from dre.errors import DreError, MissingError

from dboxlib import pki, places, searching
from dboxlib.keystore import KeyStore
from dboxlib.log import Log
from dboxlib.places import Places
from dboxlib.signer import Signer, SignKey, period
from dboxlib.store import Store

HANDED_OVER = handover.TYPE  # of the entry that names the old key, the new one and the size of its tree head


class Rotation:
    """Called by the sequencer between batches; *age* in seconds and *heads* are what one key may reach."""

    def __init__(
        self,
        where: Places,
        store: Store,
        keys: KeyStore,
        signer: Signer,
        age: float,
        heads: int,
        told: Callable[[str], None],
    ) -> None:
        self.where = where
        self.keys = keys
        self.signer = signer
        self.age = age
        self.heads = heads
        self.told = told  # gets the fingerprint of the new key
        self.warned = False
        self.since, self.before = _in_force_since(store, signer)

    def __call__(self, now: bool = False) -> tuple[SignKey, Callable[[], None]] | None:
        """The next key and what to do once it is in force; None while the present one may go on and not *now*."""
        if not now and (self.warned or not self._due()):
            return None
        found = prepared(self.where, self.keys, 0.0)
        if found is None:
            self.warned = not now
            raise DreError("no next key is prepared; dbox-rotate --prepare makes one, as root")
        octets, sign = found

        def finish() -> None:
            destroy(self.where, self.keys, octets)
            self.since, self.before, self.warned = time.time(), 0, False
            self.told(trust.fingerprint(sign.certificate))

        return sign, finish

    def _due(self) -> bool:
        if self.before + self.signer.heads >= self.heads:
            return True
        return time.time() - self.since >= self.age


def _in_force_since(store: Store, signer: Signer) -> tuple[float, int]:
    """When the present key took over, and how many tree heads it has signed already."""
    size, when = -1, period(signer.sign.certificate)[0]
    for index, time_of in handovers(store):
        size, when = index + 1, time_of
    return event.seconds(when), store.heads_after(size)


def handovers(store: Store) -> Iterator[tuple[int, str]]:
    """Index and time of the entries of all changes of the sign key."""
    after = -1
    while True:
        rows = list(searching.find(store, {"stream": handover.STREAM, "type": HANDED_OVER, "after": after}, 1000))
        for row in rows:
            if "more" not in row:
                yield int(row["index"]), str(row["time"])
        if not rows:
            return
        after = int(rows[-1]["index"])


def proofs(store: Store, log: Log) -> Iterator[tuple[evidence.Receipt, bytes]]:
    """Receipt and octets of each change, under the last tree head of the old key; what `dre.handover` learns from."""
    for index, _ in handovers(store):
        header, octets, salt = store.payload(index) or (b"", None, b"")
        size, text = next(store.heads(index, 1))
        if octets is not None and size == index + 1:
            note = evidence.parse_note(text)
            yield evidence.Receipt(header, index, tuple(log.inclusion(index, size)), note, salt), octets


def prepare(where: Places, keys: KeyStore, owner: pki.Issued, log: tuple[str, str], bits: int, age: float) -> bool:
    """Make the next key and certificate unless they are there; *log* is box and origin. True when made."""
    if prepared(where, keys, age) is not None:
        return False
    user = places.owner()
    discard(where, keys)
    for path in (where.next_key, where.next_certificate):
        files.remove_halves(path)  # of one that was killed
    octets = keys.make(bits)
    certificate = pki.sign_certificate(owner, *log, keys.load(octets).public_key(), age)
    for path, content, mode in ((where.next_key, octets, 0o400), (where.next_certificate, pki.pem(certificate), 0o400)):
        files.write_atomic(path, content, mode)
        places.give(path, user)
    return True


def prepared(where: Places, keys: KeyStore, left: float) -> tuple[bytes, SignKey] | None:
    """The next key, if it is there and its certificate is valid for *left* seconds more."""
    try:
        octets, pem = where.next_key.read_bytes(), where.next_certificate.read_bytes()
        certificate = trust.certificates(pem, str(where.next_certificate))[0]
    except (FileNotFoundError, DreError):
        return None
    begin, end = map(event.seconds, period(certificate))
    if not begin <= time.time() <= end - left or not _fits(keys, octets, certificate):
        return None
    return octets, SignKey(keys.load(octets), certificate)


def discard(where: Places, keys: KeyStore) -> None:
    """Remove a next key that is of no use."""
    where.next_certificate.unlink(missing_ok=True)
    if where.next_key.exists():
        keys.destroy(where.next_key.read_bytes())
        _overwrite(where.next_key)
        where.next_key.unlink()


def destroy(where: Places, keys: KeyStore, octets: bytes) -> None:
    """Put the next key, whose file holds *octets*, in the place of the old one, which is destroyed first.

    On a file system that copies on write, or on flash, old octets may survive below us; no program can help that.
    """
    if where.sign_key.exists():
        old = where.sign_key.read_bytes()
        if old != octets:
            keys.destroy(old)
            _overwrite(where.sign_key)
    if where.next_key.exists() and where.next_key.read_bytes() == octets:
        where.next_key.rename(where.sign_key)
    else:
        files.write_atomic(where.sign_key, octets, 0o400)
    where.next_certificate.unlink(missing_ok=True)
    files.fsync_dir(where.state)


def _overwrite(path: Path) -> None:
    path.chmod(0o600)
    with path.open("r+b") as stream:
        stream.write(os.urandom(os.fstat(stream.fileno()).st_size))
        stream.flush()
        os.fsync(stream.fileno())


def recover(where: Places, store: Store, keys: KeyStore) -> SignKey:
    """The sign key that the database says is in force, after finishing or forgetting a rotation that was cut off."""
    certificate = x509.load_pem_x509_certificate(store.certificate("sign").encode())
    if where.next_key.exists():
        octets = where.next_key.read_bytes()
        if _fits(keys, octets, certificate):
            destroy(where, keys, octets)
        elif prepared(where, keys, 0.0) is None:
            discard(where, keys)
    try:
        octets = where.sign_key.read_bytes()
        key = keys.load(octets)
    except MissingError:
        raise
    except (DreError, OSError) as error:
        raise DreError(f"{where.sign_key}: {error}") from None
    if not pki.same_key(key, certificate):
        raise DreError(f"{where.sign_key}: not the key of the newest sign certificate in {where.database}")
    return SignKey(key, certificate)


def _fits(keys: KeyStore, octets: bytes, certificate: x509.Certificate) -> bool:
    try:
        return pki.same_key(keys.load(octets), certificate)
    except MissingError:
        raise
    except DreError:
        return False  # torn or overwritten: certainly not the key in force
