# SPDX-License-Identifier: Apache-2.0
"""A log with keys of its own, made in process, and the hands of somebody who may write everything in its database.

What an attacker makes is made here from the formats, not by the code that is attacked.
"""

import base64
import functools
import hashlib
import json
import os
import pathlib
import shutil
import sqlite3
import sys
import warnings

sys.path.insert(0, str(pathlib.Path(__file__).parents[1] / "dbox"))
warnings.simplefilter("ignore", UserWarning)

ORIGIN = "h7.example/dbox/0123456789abcdef"
WRITER = "a" * 64
BEGIN = 1_790_000_000_000  # milliseconds; inside the keys' periods only by `now`


class Keys:
    """The chain of one D-Box, and what signs its tree heads."""

    def __init__(self, origin=ORIGIN):
        from dboxlib import pki
        from dre import trust

        self.origin = origin
        bits = 2048  # larger keys take seconds to make
        self.root = pki.authority("root", "B1", 3, None, 20, bits)
        self.centre = pki.authority("centre", "B1", 2, self.root, 20, bits)
        self.manufacturer = pki.authority("manufacturer", "B1", 1, self.centre, 20, bits)
        self.owner = pki.authority("owner", "B1", 0, self.manufacturer, 20, bits)
        self.sign = pki.sign_key(self.owner, "B1", origin)
        self.note = pki.note_key(self.owner, "B1", origin)
        names = ("centre", "manufacturer", "owner", "sign", "note")
        self.chain = [(name, getattr(self, name).certificate) for name in names]
        self.certificates = [(name, trust.fingerprint(one), pki.pem(one).decode()) for name, one in self.chain]
        self.own = trust.fingerprint(self.owner.certificate)
        self.root_pem = pki.pem(self.root.certificate)

    def new_sign_key(self):
        """Another sign key by the owner, as old as the first."""
        from cryptography import x509
        from cryptography.hazmat.primitives import hashes
        from cryptography.hazmat.primitives.asymmetric import rsa
        from dboxlib import pki

        key, like = rsa.generate_private_key(public_exponent=65537, key_size=2048), self.sign.certificate
        builder = x509.CertificateBuilder(like.issuer, like.subject, key.public_key(), x509.random_serial_number())
        builder = builder.not_valid_before(like.not_valid_before).not_valid_after(like.not_valid_after)
        for extension in like.extensions:
            builder = builder.add_extension(extension.value, extension.critical)
        return pki.Issued(key, builder.sign(self.owner.key, hashes.SHA256()))

    def head(self, size, root, time, origin=None, sign=None, note=None):
        """A signed tree head, whatever it says."""
        from cryptography.hazmat.primitives import hashes
        from cryptography.hazmat.primitives.asymmetric import padding
        from dre import trust

        origin = origin or self.origin
        text = f"{origin}\n{size}\n{base64.b64encode(root).decode()}\ntime {time}\n"
        rsa, ed = (sign or self.sign).key, (note or self.note).key
        lines = ""
        for key, value in (
            (rsa, rsa.sign(text.encode(), padding.PKCS1v15(), hashes.SHA256())),
            (ed, ed.sign(text.encode())),
        ):
            identity = trust.key_id(self.origin, key.public_key())[1]
            lines += f"— {self.origin} {base64.b64encode(identity + value).decode()}\n"
        return text + "\n" + lines


@functools.lru_cache(maxsize=4)
def keys(origin=ORIGIN):
    return Keys(origin)


def stamp(milliseconds):
    from dre import event

    return event.stamp(milliseconds / 1000)


def now():
    import time

    return int(time.time() * 1000)


def header(origin, stream, writer, time, seq, octets, salt=b"", digest=None, length=None):
    return (
        f"dre-entry/v1\nlog {origin}\nstream {stream}\nwriter {writer}\ntime {stamp(time)}\nseq {seq}\n"
        f"length {len(octets) if length is None else length}\n"
        f"digest sha256 {digest or hashlib.sha256(salt + octets).hexdigest()}\n"
    ).encode()


def leaf(octets):
    return hashlib.sha256(b"\0" + octets).digest()


def root(leaves):
    """MTH of RFC 6962, written from its text."""
    if not leaves:
        return hashlib.sha256(b"").digest()
    if len(leaves) == 1:
        return leaves[0]
    k = 1
    while 2 * k < len(leaves):
        k *= 2
    return hashlib.sha256(b"\1" + root(leaves[:k]) + root(leaves[k:])).digest()


class Forge:
    """The database of a log at *path* under *keys*."""

    def __init__(self, path, made=None):
        self.path = path
        self.keys = made or keys()
        self.time = now()

    def create(self):
        from dboxlib import store

        store.create(f"sqlite:{self.path}", self.keys.origin, "B1", self.keys.certificates)
        self.db = sqlite3.connect(self.path, isolation_level=None)
        return self.free()

    def open(self):
        self.db = sqlite3.connect(self.path, isolation_level=None)
        return self.free()

    def copy(self, path):
        """Another one with the same content, and no trigger or constraint to stop an attacker."""
        shutil.copy(self.path, path)
        other = Forge(path, self.keys).open()
        other.time = self.time
        return other

    def free(self):
        for (name,) in self.db.execute("SELECT name FROM sqlite_master WHERE type = 'trigger'").fetchall():
            self.db.execute(f"DROP TRIGGER {name}")
        self.db.execute("PRAGMA ignore_check_constraints = ON")
        return self

    def close(self):
        self.db.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        self.db.close()

    def run(self, statement, *values):
        return self.db.execute(statement, values).fetchall()

    def source(self, writer, stream):
        found = self.run("SELECT number FROM source WHERE writer = ? AND stream = ?", writer, stream)
        if found:
            return found[0][0]
        number = self.run("SELECT coalesce(max(number), 0) + 1 FROM source")[0][0]
        self.run("INSERT INTO source (number, writer, stream) VALUES (?, ?, ?)", number, writer, stream)
        return number

    def size(self):
        return self.run("SELECT coalesce(max(number) + 1, 0) FROM entry")[0][0]

    def add(self, parts, writer=WRITER, stream="app", seq=None, salt=b"", time=None):
        """Entries as the D-Box would write them, without a tree head; returns the first index."""
        source, first = self.source(writer, stream), self.size()
        if seq is None:
            seq = 1 + self.run("SELECT coalesce(max(seq), 0) FROM entry WHERE source = ?", source)[0][0]
        self.time = time or self.time + 5
        rows = []
        for at, octets in enumerate(parts):
            text = header(self.keys.origin, stream, writer, self.time, seq + at, octets, salt)
            digest = hashlib.sha256(salt + octets).digest()
            row = (first + at, source, seq + at, self.time, digest, leaf(text)[:8], octets, salt or None)
            rows.append(row)
        self.db.executemany(
            "INSERT INTO entry (number, source, seq, time, digest, leaf, octets, salt) VALUES (?,?,?,?,?,?,?,?)", rows
        )
        return first

    def own(self, kind, data):
        """An entry of the D-Box itself."""
        fields = {"time": stamp(self.time), "source": "/host:h/dbox", "type": kind, "sev": 5, "data": data}
        return self.add([json.dumps(fields, separators=(",", ":")).encode()], self.keys.own, "dbox")

    def headers(self):
        names = {number: (writer, stream) for number, writer, stream in self.run("SELECT * FROM source")}
        lengths = dict(self.run("SELECT entry, length FROM erased"))
        for number, source, seq, time, digest, octets in self.run(
            "SELECT number, source, seq, time, digest, octets FROM entry ORDER BY number"
        ):
            writer, stream = names[source]
            length = lengths[number] if octets is None else len(octets)
            yield number, header(self.keys.origin, stream, writer, time, seq, b"", b"", digest.hex(), length)

    def leaves(self):
        return [leaf(text) for _, text in self.headers()]

    def fit(self):
        """Let the kept part of each leaf fit what stands in the row now."""
        for number, text in list(self.headers()):
            self.run("UPDATE entry SET leaf = ? WHERE number = ?", leaf(text)[:8], number)

    def sign(self, size=None, leaves=None, time=None, **by):
        """A tree head over the first *size* entries; returns its note."""
        leaves = self.leaves() if leaves is None else leaves
        size = len(leaves) if size is None else size
        text = self.keys.head(size, root(leaves[:size]), stamp(time or self.time), **by)
        self.run("INSERT OR REPLACE INTO head VALUES (?, ?)", size, text)
        return text

    def resign(self, **by):
        """Sign all tree heads again over what stands there now."""
        leaves = self.leaves()
        for size, note in self.run("SELECT size, note FROM head ORDER BY size"):
            time = note.split("\n")[3][5:]
            text = self.keys.head(size, root(leaves[:size]), time, **by)
            self.run("UPDATE head SET note = ? WHERE size = ?", text, size)

    def note(self, size):
        return self.run("SELECT note FROM head WHERE size = ?", size)[0][0]

    def set(self, number, **columns):
        for column, value in columns.items():
            self.run(f"UPDATE entry SET {column} = ? WHERE number = ?", value, number)

    def remove(self, number):
        self.run("DELETE FROM entry WHERE number = ?", number)

    def renumber(self, above, by):
        """Move the entries above a number."""
        self.run("UPDATE entry SET number = -1 - number WHERE number > ?", above)
        self.run("UPDATE entry SET number = -1 - number + ? WHERE number < 0", by)

    def erase(self, number, reason=True):
        """Remove octets and salt, with a reason or without."""
        if reason:
            ((length,),) = self.run("SELECT length(octets) FROM entry WHERE number = ?", number)
            self.run("INSERT INTO erased VALUES (?, ?, ?, 'wrong', 'x', 'y')", number, length, stamp(self.time))
        self.set(number, octets=None, salt=None)

    def cosign(self, key, size):
        """What a witness says of a tree head."""
        text = self.note(size).split("\n\n")[0] + "\n"
        line = key.cosign(text, self.time // 1000).line().encode()
        values = ("witness", key.public.name, size, stamp(self.time), line)
        self.run("INSERT INTO anchor (kind, name, size, time, octets) VALUES (?, ?, ?, ?, ?)", *values)

    def url(self):
        return f"sqlite:{self.path}"

    def audit(self, marks=(), memory=None, judge=lambda anchor, note: None):
        """The report of an audit of this database."""
        from dboxlib import database, store
        from dre import audit, trust
        from dre.evidence import VerifyError

        self.close()
        try:
            here = store.open(self.url())
            source = database.Database(here)
            try:
                keys = trust.load(self.keys.root_pem, source.chain())
            except VerifyError as error:
                report = audit.Report(self.keys.origin, True)
                report.findings.append(audit.Finding("certificate", 0, str(error)))
                return report
            return audit.Auditor(source, keys, marks, memory, judge).run()
        finally:
            here.close()
            self.open()


class _Maria:
    """A connection to MariaDB that takes SQLite's statements."""

    def __init__(self, socket, name):
        import pymysql

        self.connection = pymysql.connect(unix_socket=str(socket), database=name, autocommit=True, charset="utf8mb4")
        self.execute("SET check_constraint_checks = 0")

    def execute(self, statement, values=()):
        cursor = self.connection.cursor()
        text = statement.replace("INSERT OR REPLACE", "REPLACE").replace("%", "%%").replace("?", "%s")
        cursor.execute(text if values else text.replace("%%", "%"), values or None)
        return cursor

    def executemany(self, statement, rows):
        self.connection.cursor().executemany(statement.replace("?", "%s"), rows)

    def close(self):
        self.connection.close()


class MariaForge(Forge):
    """The same log in a database of a MariaDB server of our own."""

    TABLES = ("log", "source", "erased", "head", "anchor", "certificate")

    def __init__(self, server, sample):
        from dboxlib import store

        self.server, self.keys, self.time = server, sample.keys, sample.time
        self.names = ["f" + os.urandom(6).hex() for _ in range(2)]
        for name in self.names:
            server.sql(f"CREATE DATABASE {name};")
            store.create(server.url(name), self.keys.origin, "B1", self.keys.certificates)
        whole, self.path = self.names
        base = _Maria(server.socket, whole)
        sample.open()
        for table in ("source", "entry", "erased", "head"):
            rows = sample.run(f"SELECT * FROM {table}")
            base.executemany(f"INSERT INTO {table} VALUES ({', '.join('?' * len(rows[0]))})", rows)
        sample.db.close()
        base.close()
        self.db = _Maria(server.socket, self.path)

    def reset(self, sample):
        """Everything as it was before the attack."""
        self.time = sample.time
        for table in self.TABLES:
            self.run(f"DELETE FROM {table}")
            self.run(f"INSERT INTO {table} SELECT * FROM {self.names[0]}.{table}")
        self.run("DROP TABLE entry")
        self.run(f"CREATE TABLE entry LIKE {self.names[0]}.entry")
        self.run(f"INSERT INTO entry SELECT * FROM {self.names[0]}.entry")
        return self

    def url(self):
        return self.server.url(self.path)

    def close(self):
        pass

    def open(self):
        return self


def mark(note, what="a witness"):
    from dre import audit, evidence

    parsed = evidence.parse_note(note)
    return audit.Mark(evidence.parse_head(parsed.text), what, parsed)
