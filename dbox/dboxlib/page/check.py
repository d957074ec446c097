# SPDX-License-Identifier: Apache-2.0
"""What the page itself proves of entries and tree heads before it says so; everything is unverified until then.

The three states of an entry are separate: `included` (octets → header → leaf → root of the newest tree head), `signed`
(that tree head, by keys that lead to this box's root certificate) and `anchored` (a third party outside the box has
said that it saw a tree head over this entry). Each is good, bad or open; nothing is good because a check is missing.
"""

import contextlib
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from dre import evidence, trust
from dre.conf import Conf
from dre.errors import DreError, NotFoundError, UsageError
from dre.evidence import FormatError, Head, Header, Note, Receipt, VerifyError

from dboxlib import anchors
from dboxlib.log import Log

GOOD, BAD, OPEN, WAIT = "good", "bad", "open", "wait"
POLICY = {anchors.GREEN: GOOD, anchors.AMBER: WAIT, anchors.NONE: OPEN}
WORDS = {GOOD: "verified", BAD: "FAILED", OPEN: "unverified", WAIT: "too old"}


@dataclass(frozen=True)
class Verdict:
    """One state of an entry, or the result of one check."""

    what: str
    state: str = OPEN
    says: str = ""

    @property
    def word(self) -> str:
        """The state in a word, so that colour is not all that tells it."""
        return WORDS[self.state]


@dataclass
class Finding:
    """An entry as it is stored, and what was proven of it."""

    number: int
    header: Header | None = None
    text: str = ""  # the header as it is hashed
    octets: bytes | None = None  # None: erased, or not there
    salt: bytes = b""
    head: Head | None = None
    receipt: Receipt | None = None
    verdicts: list[Verdict] = field(default_factory=list)

    @property
    def failure(self) -> str:
        """Which check failed first; empty when none."""
        return next((f"{one.what}: {one.says}" for one in self.verdicts if one.state == BAD), "")


class Checker:
    """Checks against the root certificate that lies beside the settings, not against what the database says."""

    def __init__(self, conf: Conf, store: Any, log: Log) -> None:
        self.conf, self.store, self.log = conf, store, log
        self.anchors = anchors.Anchors(conf, store)
        self._loaded: tuple[bytes, bytes, trust.Trust] | None = None
        self._told: set[int] = set()
        warnings.filterwarnings("ignore", category=UserWarning, module="cryptography")

    # --- One entry ---

    def entry(self, number: int) -> Finding:
        """The entry *number* and its three states. Raises NotFoundError outside of the log."""
        head, note = self.log.newest()
        if number >= head.size:
            raise NotFoundError(f"no entry {number}: the log has {head.size}")
        found = Finding(number, head=head)
        found.verdicts = [self._included(found, note), self._signed(note, head), Verdict("anchored")]
        if found.verdicts[0].state == BAD:
            self.tampered(number)
        found.verdicts[2] = self._anchored(found)
        return found

    def _included(self, found: Finding, note: Note) -> Verdict:
        what, number, head = "included", found.number, found.head
        assert head is not None
        try:
            kept = self.store.payload(number)
            if kept is None:
                return Verdict(what, BAD, f"entry {number} is missing from the database")
            header, found.octets, found.salt = kept
            found.text = header.decode(errors="backslashreplace")
            found.header = evidence.parse_header(header)
            path = tuple(self.log.inclusion(number, head.size))
            found.receipt = Receipt(header, number, path, note, found.salt)
            if found.octets is not None:
                evidence.bind(found.receipt, found.octets)
                return Verdict(what, GOOD, f"octets, header and path lead to the root of the tree head of {head.size}")
            evidence.verify_inclusion(evidence.leaf_hash(header), number, head.size, path, head.root)
            return Verdict(what, GOOD, "its octets were erased; its header still leads to the root of the tree head")
        except (VerifyError, FormatError) as error:
            self._rest(found)
            return Verdict(what, BAD, str(error))
        except (DreError, IndexError) as error:
            return Verdict(what, OPEN, f"could not be checked: {error}")

    def _rest(self, found: Finding) -> None:
        """The header of an entry whose octets were changed: it convicts them."""
        found.octets = None
        with contextlib.suppress(DreError):
            kept = self.store.provable(found.number)
            if kept is not None:
                found.text, found.header = kept[0].decode(), evidence.parse_header(kept[0])

    def _signed(self, note: Note, head: Head) -> Verdict:
        try:
            self.trust().head(note)
        except (VerifyError, FormatError) as error:
            return Verdict("signed", BAD, str(error))
        except (DreError, OSError) as error:
            return Verdict("signed", OPEN, f"could not be checked: {error}")
        says = f"tree head of {head.time} by keys that lead to root.pem on this box"
        return Verdict("signed", GOOD, says)

    def _anchored(self, found: Finding) -> Verdict:
        """Whether a tree head that a third party confirmed has this very header in it."""
        what, why = "anchored", ""
        if not found.text:
            return Verdict(what, OPEN, "there is no header that could be looked for")
        leaf = evidence.leaf_hash(found.text.encode())
        for one in self.anchors.over(found.number):
            if not one.proven or one.head is None:
                why = f"{one.who}: {one.why}"
                continue
            try:
                path = self.log.inclusion(found.number, one.size)
                evidence.verify_inclusion(leaf, found.number, one.size, path, one.head.root)
            except VerifyError:
                return Verdict(what, BAD, f"{one.who} confirmed a tree head of {one.size} that has another entry here")
            except (DreError, IndexError) as error:
                return Verdict(what, OPEN, f"could not be checked: {error}")
            return Verdict(what, GOOD, f"{one.who} confirmed at {one.proven} a tree head of {one.size} with this entry")
        return Verdict(what, OPEN, why or "no third party has confirmed a tree head over this entry")

    def policy(self) -> tuple[Verdict, list[Any]]:
        """How old the newest anchor is, and whether the log continues it; and the newest of each third party."""
        found = self.anchors.newest()
        for one in found:
            if one.proven and one.head is not None and (verdict := self._continues(one.head)).state == BAD:
                return Verdict("anchors", BAD, f"{one.who}: {verdict.says}"), found
        judged = self.anchors.judge(self.log.newest()[0].size)
        return Verdict("anchors", POLICY[judged.state], judged.reason), found

    def tampered(self, number: int) -> None:
        """Have the log look itself, tell the monitor, and remember; once for each entry."""
        if number not in self._told:
            self._told.add(number)
            with contextlib.suppress(DreError, IndexError):
                self.log.tampered(number)

    @property
    def seen_bad(self) -> list[int]:
        """Entries that failed when the page showed them."""
        return sorted(self._told)

    # --- Keys and tree heads ---

    def root(self) -> bytes:
        """The root certificate. Raises OSError."""
        return (self.conf.dbox_certs_dir / "root.pem").read_bytes()

    def trust(self) -> trust.Trust:
        """The keys that count now. Raises VerifyError, FormatError, OSError."""
        root, chain = self.root(), self.store.chain().encode()
        if self._loaded is None or self._loaded[:2] != (root, chain):
            self._loaded = (root, chain, trust.load(root, chain))
        return self._loaded[2]

    def newest(self) -> tuple[Head, Note, Verdict]:
        """The newest tree head and whether it is signed."""
        head, note = self.log.newest()
        return head, note, self._signed(note, head)

    def head(self, text: str) -> list[Verdict]:
        """Check a tree head that somebody holds against this log."""
        note = _note(text)
        head = evidence.parse_head(note.text)
        verdicts = [self._signed(note, head)]
        if verdicts[0].state == GOOD:
            verdicts.append(self._continues(head))
        return verdicts

    def _continues(self, head: Head) -> Verdict:
        """Whether the log that is here continues *head*."""
        what, (now, _) = "consistent", self.log.newest()
        if head.origin != now.origin:
            return Verdict(what, BAD, f"it is of log {head.origin}, this is log {now.origin}")
        if head.size > now.size:
            says = f"it has {head.size} entries, this log only {now.size}: the log was cut off, or is an old copy"
            return Verdict(what, BAD, says)
        return self._compared(head, now)

    def _compared(self, old: Head, new: Head) -> Verdict:
        what = "consistent"
        try:
            proof: Sequence[bytes] = self.log.consistency(old.size, new.size) if 0 < old.size < new.size else []
            evidence.verify_consistency(old.size, old.root, new.size, new.root, proof)
        except VerifyError as error:
            says = (
                f"two signed tree heads of {old.size} entries with different roots" if old.size == new.size else error
            )
            return Verdict(what, BAD, f"{says}: the log was forked or changed; keep both as evidence")
        except (DreError, IndexError) as error:
            return Verdict(what, OPEN, f"could not be compared: {error}")
        same = "the same tree" if old.size == new.size else f"the first {old.size} entries are the same in both"
        return Verdict(what, GOOD, same)

    def compare(self, one: str, other: str) -> list[Verdict]:
        """Check two tree heads against each other."""
        notes = [_note(text) for text in (one, other)]
        heads = [evidence.parse_head(note.text) for note in notes]
        verdicts = []
        for which, note, head in zip(("first", "second"), notes, heads, strict=True):
            signed = self._signed(note, head)
            verdicts.append(Verdict(f"{which} signed", signed.state, signed.says))
        if heads[0].origin != heads[1].origin:
            return [*verdicts, Verdict("consistent", BAD, "they are of different logs")]
        if any(one.state != GOOD for one in verdicts):
            return verdicts
        old, new = sorted(heads, key=lambda head: head.size)
        if new.size > self.log.newest()[0].size:
            says = f"this log has fewer than {new.size} entries: it was cut off, or is an old copy"
            return [*verdicts, Verdict("consistent", BAD, says)]
        return [*verdicts, self._compared(old, new)]

    def proof(self, receipt: bytes, octets: bytes) -> list[Verdict]:
        """Check a receipt that somebody holds, with the octets where they came along. Raises FormatError."""
        given = evidence.parse_receipt(receipt)
        header, head = evidence.parse_header(given.header), evidence.parse_head(given.note.text)
        verdicts = []
        try:
            leaf = evidence.leaf_hash(given.header)
            evidence.verify_inclusion(leaf, given.index, head.size, given.path, head.root)
            verdicts.append(
                Verdict("included", GOOD, f"entry {given.index} of {header.log}, {header.stream} {header.seq}")
            )
        except VerifyError as error:
            verdicts.append(Verdict("included", BAD, str(error)))
        if not octets:
            verdicts.append(Verdict("octets", OPEN, "none were given: only the header was checked"))
        else:
            match = header.length == len(octets) and header.digest == evidence.digest(octets, given.salt)
            says = "they match the digest in the header" if match else "they do not match the digest in the header"
            verdicts.append(Verdict("octets", GOOD if match else BAD, says))
        verdicts.append(self._signed(given.note, head))
        if verdicts[-1].state == GOOD:
            verdicts.append(self._continues(head))
        return verdicts


def _note(text: str) -> Note:
    """A note that somebody pasted or sent; browsers end lines in their own way. Raises UsageError."""
    if not text.strip():
        raise UsageError("no tree head was given")
    return evidence.parse_note(text.replace("\r\n", "\n").strip("\n") + "\n")
