-- The index of the cache. Every row that a result depends on carries a checksum over its columns:
-- a damaged row is a miss, never a wrong result.

-- What a file's bytes were when it last had this stat.
CREATE TABLE file (
    path     TEXT PRIMARY KEY,
    size     INTEGER NOT NULL,
    mtime_ns INTEGER NOT NULL,
    inode    INTEGER NOT NULL,
    digest   BLOB NOT NULL,
    checksum BLOB NOT NULL
) WITHOUT ROWID;

-- Which vector an extractor made of an image.
CREATE TABLE feature (
    extractor BLOB NOT NULL,
    image     BLOB NOT NULL,
    vector    BLOB NOT NULL,
    checksum  BLOB NOT NULL,
    PRIMARY KEY (extractor, image)
) WITHOUT ROWID;

-- Features, f32 little-endian, by the digest of their bytes.
CREATE TABLE vector (
    digest BLOB NOT NULL UNIQUE,
    bytes  BLOB NOT NULL
);

-- What a stage made of a key: names and digests of its outputs, as JSON. How long it took and how many images it embedded
-- serve estimates alone, which is why the checksum leaves them out.
CREATE TABLE execution (
    key      BLOB PRIMARY KEY,
    stage    TEXT NOT NULL,
    parts    TEXT NOT NULL,
    outputs  TEXT NOT NULL,
    seconds  REAL NOT NULL,
    embedded INTEGER,
    checksum BLOB NOT NULL
) WITHOUT ROWID;

-- Which keys the runs of a project used, newest last. A project is known by its output folder.
CREATE TABLE run (
    id      INTEGER PRIMARY KEY AUTOINCREMENT,
    project TEXT NOT NULL,
    time    INTEGER NOT NULL
);
CREATE TABLE run_stage (
    run   INTEGER NOT NULL REFERENCES run (id) ON DELETE CASCADE,
    stage TEXT NOT NULL,
    key   BLOB NOT NULL,
    PRIMARY KEY (run, stage)
) WITHOUT ROWID;

-- Files written for the user, and from what: they are written again only if either changed.
CREATE TABLE export (
    path     TEXT PRIMARY KEY,
    size     INTEGER NOT NULL,
    mtime_ns INTEGER NOT NULL,
    inode    INTEGER NOT NULL,
    source   BLOB NOT NULL
) WITHOUT ROWID;
