-- The index of the cache. Every row carries a checksum over all that a result depends on: a damaged row is a miss, never
-- a wrong result.

-- What a file's bytes were when it last had this stat.
CREATE TABLE IF NOT EXISTS file (
    path     TEXT PRIMARY KEY,
    size     INTEGER NOT NULL,
    mtime_ns INTEGER NOT NULL,
    inode    INTEGER NOT NULL,
    digest   BLOB NOT NULL,
    checksum BLOB NOT NULL
) WITHOUT ROWID;

-- Which vector an extractor made of an image.
CREATE TABLE IF NOT EXISTS feature (
    extractor BLOB NOT NULL,
    image     BLOB NOT NULL,
    vector    BLOB NOT NULL,
    checksum  BLOB NOT NULL,
    UNIQUE (extractor, image)
);

-- Features, f32 little-endian, by the digest of their bytes.
CREATE TABLE IF NOT EXISTS vector (
    digest BLOB NOT NULL UNIQUE,
    bytes  BLOB NOT NULL
);

-- What a stage made of a key: names and digests of its outputs, as JSON. For estimates only, without a checksum: how long
-- it took, and how many images went through the network, if they did.
CREATE TABLE IF NOT EXISTS execution (
    key      BLOB PRIMARY KEY,
    stage    TEXT NOT NULL,
    parts    TEXT NOT NULL,
    outputs  TEXT NOT NULL,
    seconds  REAL NOT NULL,
    embedded INTEGER,
    checksum BLOB NOT NULL
) WITHOUT ROWID;

-- The runs of a project, newest last: when, how far, with which keys, and what the cache spared them, as JSON.
-- A project is known by its output folder.
CREATE TABLE IF NOT EXISTS run (
    id       INTEGER PRIMARY KEY,
    project  TEXT NOT NULL,
    record   TEXT NOT NULL,
    checksum BLOB NOT NULL
);

-- Files written for the user, and from what: they are written again only if either changed.
CREATE TABLE IF NOT EXISTS export (
    path     TEXT PRIMARY KEY,
    size     INTEGER NOT NULL,
    mtime_ns INTEGER NOT NULL,
    inode    INTEGER NOT NULL,
    source   BLOB NOT NULL,
    checksum BLOB NOT NULL
) WITHOUT ROWID;
