-- SPDX-License-Identifier: Apache-2.0
-- The log of one D-Box. Rows are only ever added; the triggers stop accidents, the tree proves the rest.

CREATE TABLE log (
    version INTEGER NOT NULL,
    origin TEXT NOT NULL,
    box TEXT NOT NULL          -- serial number of the D-Box
) STRICT;

CREATE TABLE entry (
    number INTEGER PRIMARY KEY CHECK (number >= 0),  -- index in the tree
    writer TEXT NOT NULL,
    stream TEXT NOT NULL,
    seq INTEGER NOT NULL,
    time TEXT NOT NULL,
    type TEXT,                 -- of the event, where the octets are one; only for searching
    header BLOB NOT NULL,
    octets BLOB,
    salt BLOB NOT NULL DEFAULT x'',
    leaf BLOB NOT NULL,
    UNIQUE (writer, stream, seq)
) STRICT;
CREATE INDEX entry_stream ON entry (stream, number);
CREATE INDEX entry_type ON entry (type, number) WHERE type IS NOT NULL;

CREATE TABLE head (
    size INTEGER PRIMARY KEY CHECK (size >= 0),
    note TEXT NOT NULL
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

CREATE TABLE signature (       -- the specification's signed digest of an entry, made when first asked for
    entry INTEGER PRIMARY KEY REFERENCES entry,
    key TEXT NOT NULL,         -- fingerprint of the sign key's certificate
    time TEXT NOT NULL,
    value BLOB NOT NULL
) STRICT;

-- INSERT OR REPLACE deletes without a delete trigger, so taken keys are refused before the insert.
CREATE TRIGGER entry_next BEFORE INSERT ON entry
WHEN NEW.number != (SELECT coalesce(max(number) + 1, 0) FROM entry)
    OR EXISTS (SELECT 1 FROM entry WHERE writer = NEW.writer AND stream = NEW.stream AND seq = NEW.seq)
BEGIN SELECT raise(ABORT, 'entries are only appended'); END;
CREATE TRIGGER entry_kept BEFORE UPDATE ON entry BEGIN SELECT raise(ABORT, 'entries are only appended'); END;
CREATE TRIGGER entry_stays BEFORE DELETE ON entry BEGIN SELECT raise(ABORT, 'entries are only appended'); END;

CREATE TRIGGER head_next BEFORE INSERT ON head
WHEN NEW.size <= (SELECT max(size) FROM head)
BEGIN SELECT raise(ABORT, 'tree heads only grow'); END;
CREATE TRIGGER head_kept BEFORE UPDATE ON head BEGIN SELECT raise(ABORT, 'tree heads are only appended'); END;
CREATE TRIGGER head_stays BEFORE DELETE ON head BEGIN SELECT raise(ABORT, 'tree heads are only appended'); END;

CREATE TRIGGER certificate_kept BEFORE UPDATE ON certificate BEGIN SELECT raise(ABORT, 'certificates stay'); END;
CREATE TRIGGER certificate_stays BEFORE DELETE ON certificate BEGIN SELECT raise(ABORT, 'certificates stay'); END;
CREATE TRIGGER client_kept BEFORE UPDATE ON client BEGIN SELECT raise(ABORT, 'add a row instead'); END;
CREATE TRIGGER client_stays BEFORE DELETE ON client BEGIN SELECT raise(ABORT, 'add a row instead'); END;
CREATE TRIGGER signature_kept BEFORE UPDATE ON signature BEGIN SELECT raise(ABORT, 'signatures stay'); END;
CREATE TRIGGER signature_stays BEFORE DELETE ON signature BEGIN SELECT raise(ABORT, 'signatures stay'); END;
