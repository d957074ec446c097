-- SPDX-License-Identifier: Apache-2.0
-- The log of one D-Box on MariaDB or MySQL, version 2; schema.sql has the comments. Each statement may be repeated,
-- since none of them can be undone. That rows are only added is a matter of what the accounts may do: dbox-init(8).

CREATE TABLE IF NOT EXISTS log (
    version INT NOT NULL PRIMARY KEY, origin VARCHAR(255) NOT NULL, box VARCHAR(64) NOT NULL
) ENGINE=InnoDB CHARACTER SET ascii COLLATE ascii_bin;

CREATE TABLE IF NOT EXISTS epoch (
    number BIGINT PRIMARY KEY, time CHAR(24) NOT NULL, holder VARCHAR(255) NOT NULL
) ENGINE=InnoDB CHARACTER SET ascii COLLATE ascii_bin;

CREATE TABLE IF NOT EXISTS source (
    number MEDIUMINT UNSIGNED PRIMARY KEY, writer CHAR(64) NOT NULL, stream VARCHAR(31) NOT NULL,
    UNIQUE (writer, stream)
) ENGINE=InnoDB CHARACTER SET ascii COLLATE ascii_bin;

CREATE TABLE IF NOT EXISTS type (
    number SMALLINT UNSIGNED PRIMARY KEY, name VARCHAR(200) NOT NULL UNIQUE
) ENGINE=InnoDB CHARACTER SET utf8mb4 COLLATE utf8mb4_bin;

CREATE TABLE IF NOT EXISTS entry (
    number BIGINT PRIMARY KEY, source MEDIUMINT UNSIGNED NOT NULL, seq BIGINT NOT NULL, time BIGINT NOT NULL,
    type SMALLINT UNSIGNED, digest BINARY(32) NOT NULL, leaf BINARY(8) NOT NULL, octets LONGBLOB, salt BINARY(32),
    UNIQUE (source, seq), CHECK (number >= 0)
) ENGINE=InnoDB ROW_FORMAT=DYNAMIC;

CREATE TABLE IF NOT EXISTS present (
    kind TINYINT NOT NULL, value INT NOT NULL, block BIGINT NOT NULL, PRIMARY KEY (kind, value, block)
) ENGINE=InnoDB;

CREATE TABLE IF NOT EXISTS erased (
    entry BIGINT PRIMARY KEY, length INT NOT NULL, time CHAR(24) NOT NULL, reason VARCHAR(1000) NOT NULL,
    first VARCHAR(64) NOT NULL, second VARCHAR(64) NOT NULL
) ENGINE=InnoDB CHARACTER SET utf8mb4 COLLATE utf8mb4_bin;

CREATE TABLE IF NOT EXISTS head (
    size BIGINT PRIMARY KEY, note TEXT NOT NULL, CHECK (size >= 0)
) ENGINE=InnoDB CHARACTER SET utf8mb4 COLLATE utf8mb4_bin;

CREATE TABLE IF NOT EXISTS anchor (
    number BIGINT PRIMARY KEY AUTO_INCREMENT, kind VARCHAR(16) NOT NULL, name VARCHAR(255) NOT NULL,
    size BIGINT NOT NULL, time CHAR(24) NOT NULL, octets BLOB NOT NULL
) ENGINE=InnoDB CHARACTER SET utf8mb4 COLLATE utf8mb4_bin;

CREATE TABLE IF NOT EXISTS certificate (
    number INT PRIMARY KEY AUTO_INCREMENT, kind VARCHAR(16) NOT NULL, fingerprint CHAR(64) NOT NULL UNIQUE,
    pem TEXT NOT NULL
) ENGINE=InnoDB CHARACTER SET ascii COLLATE ascii_bin;

CREATE TABLE IF NOT EXISTS client (
    number INT PRIMARY KEY AUTO_INCREMENT, fingerprint CHAR(64) NOT NULL, name VARCHAR(255) NOT NULL,
    role VARCHAR(16) NOT NULL, time CHAR(24) NOT NULL, streams TEXT NOT NULL, local TEXT NOT NULL,
    until VARCHAR(24) NOT NULL, KEY client_fingerprint (fingerprint, number)
) ENGINE=InnoDB CHARACTER SET utf8mb4 COLLATE utf8mb4_bin;

CREATE TABLE IF NOT EXISTS signature (
    entry BIGINT PRIMARY KEY, certificate INT NOT NULL, time CHAR(24) NOT NULL, value BLOB NOT NULL
) ENGINE=InnoDB CHARACTER SET ascii COLLATE ascii_bin;
