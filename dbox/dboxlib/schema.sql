-- SPDX-License-Identifier: Apache-2.0
-- The log of one D-Box, version 2. Rows are only ever added; the triggers stop accidents, the tree proves the rest.
-- A header is made again from the columns of its entry, and an entry takes less than 100 octets besides its own.

CREATE TABLE log (
    version INTEGER NOT NULL,
    origin TEXT NOT NULL,
    box TEXT NOT NULL          -- serial number of the D-Box
) STRICT;

CREATE TABLE epoch (           -- one row for each start of a sequencer; the newest one alone may append
    number INTEGER PRIMARY KEY,
    time TEXT NOT NULL,
    holder TEXT NOT NULL
) STRICT;

CREATE TABLE source (          -- who writes to which stream
    number INTEGER PRIMARY KEY,
    writer TEXT NOT NULL,
    stream TEXT NOT NULL,
    UNIQUE (writer, stream)
) STRICT;

CREATE TABLE type (            -- of events; only for searching
    number INTEGER PRIMARY KEY,
    name TEXT NOT NULL UNIQUE
) STRICT;

CREATE TABLE entry (
    number INTEGER PRIMARY KEY CHECK (number >= 0),  -- index in the tree
    source INTEGER NOT NULL,
    seq INTEGER NOT NULL,
    time INTEGER NOT NULL,     -- milliseconds since the epoch
    type INTEGER,              -- of the event, where the octets are one
    digest BLOB NOT NULL,      -- SHA-256 of salt and octets
    leaf BLOB NOT NULL,        -- the first 8 octets of the leaf hash: they tell which entry was changed
    octets BLOB,               -- NULL once erased, and then the salt too
    salt BLOB,
    UNIQUE (source, seq)
) STRICT;

CREATE TABLE present (         -- in which blocks of 256 entries a source (kind 0) or type (kind 1) is to be found
    kind INTEGER NOT NULL,
    value INTEGER NOT NULL,
    block INTEGER NOT NULL,
    PRIMARY KEY (kind, value, block)
) STRICT, WITHOUT ROWID;

CREATE TABLE erased (          -- what is left to say of octets that are gone
    entry INTEGER PRIMARY KEY REFERENCES entry,
    length INTEGER NOT NULL,
    time TEXT NOT NULL,
    reason TEXT NOT NULL,
    first TEXT NOT NULL,       -- fingerprints of the two who wanted it; empty: the retention of the stream
    second TEXT NOT NULL
) STRICT;

CREATE TABLE head (
    size INTEGER PRIMARY KEY CHECK (size >= 0),
    note TEXT NOT NULL
) STRICT;

CREATE TABLE anchor (          -- what third parties said of tree heads
    number INTEGER PRIMARY KEY,
    kind TEXT NOT NULL CHECK (kind IN ('witness', 'rfc3161')),
    name TEXT NOT NULL,
    size INTEGER NOT NULL REFERENCES head,
    time TEXT NOT NULL,
    octets BLOB NOT NULL
) STRICT;

CREATE TABLE certificate (
    number INTEGER PRIMARY KEY,
    kind TEXT NOT NULL CHECK (kind IN ('centre', 'manufacturer', 'owner', 'sign', 'note')),
    fingerprint TEXT NOT NULL UNIQUE,
    pem TEXT NOT NULL
) STRICT;

CREATE TABLE client (          -- the newest row of a fingerprint counts
    number INTEGER PRIMARY KEY,
    fingerprint TEXT NOT NULL,
    name TEXT NOT NULL,
    role TEXT NOT NULL CHECK (role IN ('writer', 'reader', 'auditor', 'admin', 'revoked')),
    time TEXT NOT NULL,
    streams TEXT NOT NULL DEFAULT '',  -- those of a writer, separated by spaces; none: any
    local TEXT NOT NULL DEFAULT '',    -- 'USER EXECUTABLE' of one who comes by the local socket
    until TEXT NOT NULL DEFAULT ''     -- when the role ends, as an old certificate's does after its renewal
) STRICT;
CREATE INDEX client_fingerprint ON client (fingerprint, number);

CREATE TABLE signature (       -- the specification's signed digest of an entry
    entry INTEGER PRIMARY KEY REFERENCES entry,
    certificate INTEGER NOT NULL REFERENCES certificate,
    time TEXT NOT NULL,
    value BLOB NOT NULL
) STRICT;

-- INSERT OR REPLACE deletes without a delete trigger, so taken keys are refused before the insert.
CREATE TRIGGER entry_next BEFORE INSERT ON entry
WHEN NEW.number != (SELECT coalesce(max(number) + 1, 0) FROM entry)
    OR EXISTS (SELECT 1 FROM entry WHERE source = NEW.source AND seq = NEW.seq)
BEGIN SELECT raise(ABORT, 'entries are only appended'); END;
CREATE TRIGGER entry_kept BEFORE UPDATE OF number, source, seq, time, type, digest, leaf ON entry
BEGIN SELECT raise(ABORT, 'entries are only appended'); END;
CREATE TRIGGER entry_erased BEFORE UPDATE OF octets, salt ON entry
WHEN NEW.octets IS NOT NULL OR NEW.salt IS NOT NULL OR NOT EXISTS (SELECT 1 FROM erased WHERE entry = NEW.number)
BEGIN SELECT raise(ABORT, 'octets are kept, or erased with a reason'); END;
CREATE TRIGGER entry_stays BEFORE DELETE ON entry BEGIN SELECT raise(ABORT, 'entries are only appended'); END;

CREATE TRIGGER head_next BEFORE INSERT ON head
WHEN NEW.size <= (SELECT max(size) FROM head)
BEGIN SELECT raise(ABORT, 'tree heads only grow'); END;
CREATE TRIGGER head_kept BEFORE UPDATE ON head BEGIN SELECT raise(ABORT, 'tree heads are only appended'); END;
CREATE TRIGGER head_stays BEFORE DELETE ON head BEGIN SELECT raise(ABORT, 'tree heads are only appended'); END;

CREATE TRIGGER epoch_kept BEFORE UPDATE ON epoch BEGIN SELECT raise(ABORT, 'epochs stay'); END;
CREATE TRIGGER epoch_stays BEFORE DELETE ON epoch BEGIN SELECT raise(ABORT, 'epochs stay'); END;
CREATE TRIGGER source_kept BEFORE UPDATE ON source BEGIN SELECT raise(ABORT, 'sources stay'); END;
CREATE TRIGGER source_stays BEFORE DELETE ON source BEGIN SELECT raise(ABORT, 'sources stay'); END;
CREATE TRIGGER erased_kept BEFORE UPDATE ON erased BEGIN SELECT raise(ABORT, 'reasons stay'); END;
CREATE TRIGGER erased_stays BEFORE DELETE ON erased BEGIN SELECT raise(ABORT, 'reasons stay'); END;
CREATE TRIGGER anchor_kept BEFORE UPDATE ON anchor BEGIN SELECT raise(ABORT, 'anchors stay'); END;
CREATE TRIGGER anchor_stays BEFORE DELETE ON anchor BEGIN SELECT raise(ABORT, 'anchors stay'); END;
CREATE TRIGGER certificate_kept BEFORE UPDATE ON certificate BEGIN SELECT raise(ABORT, 'certificates stay'); END;
CREATE TRIGGER certificate_stays BEFORE DELETE ON certificate BEGIN SELECT raise(ABORT, 'certificates stay'); END;
CREATE TRIGGER client_kept BEFORE UPDATE ON client BEGIN SELECT raise(ABORT, 'add a row instead'); END;
CREATE TRIGGER client_stays BEFORE DELETE ON client BEGIN SELECT raise(ABORT, 'add a row instead'); END;
CREATE TRIGGER signature_kept BEFORE UPDATE ON signature BEGIN SELECT raise(ABORT, 'signatures stay'); END;
CREATE TRIGGER signature_stays BEFORE DELETE ON signature BEGIN SELECT raise(ABORT, 'signatures stay'); END;
