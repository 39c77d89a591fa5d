-- The index of the cache. Every row has a checksum over all that a result depends on, so that a
-- damaged row is a miss, never a wrong result.

-- What a file's bytes were when it last had this stat.
CREATE TABLE IF NOT EXISTS file (
    path     TEXT PRIMARY KEY,
    size     INTEGER NOT NULL,
    mtime_ns INTEGER NOT NULL,
    inode    INTEGER NOT NULL,
    digest   BLOB NOT NULL,
    checksum BLOB NOT NULL
) STRICT, WITHOUT ROWID;

-- The folders that were scanned. They tell a drive that is not plugged in from photographs that were
-- deleted.
CREATE TABLE IF NOT EXISTS folder (
    path     TEXT PRIMARY KEY,
    checksum BLOB NOT NULL
) STRICT, WITHOUT ROWID;

-- What a stage made of a key: the names and digests of its outputs, and what they refer to, as JSON.
-- Seconds and embedded images are for estimates only, and are not part of the checksum.
CREATE TABLE IF NOT EXISTS execution (
    key      BLOB PRIMARY KEY,
    stage    TEXT NOT NULL,
    parts    TEXT NOT NULL,
    outputs  TEXT NOT NULL,
    seconds  REAL NOT NULL,
    embedded INTEGER,
    checksum BLOB NOT NULL
) STRICT, WITHOUT ROWID;

-- The runs of a project, newest last: when, how far, with which keys, and what the cache spared them,
-- as JSON. A project is known by its output folder.
CREATE TABLE IF NOT EXISTS run (
    id       INTEGER PRIMARY KEY,
    project  TEXT NOT NULL,
    record   TEXT NOT NULL,
    checksum BLOB NOT NULL
) STRICT;

-- Files written for the user, and what they were made from. A file is written again only if one of
-- the two changed.
CREATE TABLE IF NOT EXISTS export (
    path     TEXT PRIMARY KEY,
    size     INTEGER NOT NULL,
    mtime_ns INTEGER NOT NULL,
    inode    INTEGER NOT NULL,
    source   BLOB NOT NULL,
    checksum BLOB NOT NULL
) STRICT, WITHOUT ROWID;
