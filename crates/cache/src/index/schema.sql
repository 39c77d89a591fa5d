-- The index of the cache. The checksum is over all of a record, so that a damaged record is a miss,
-- never a wrong result.
CREATE TABLE IF NOT EXISTS record (
    kind     TEXT NOT NULL,
    key      BLOB NOT NULL,
    value    BLOB NOT NULL,
    checksum BLOB NOT NULL,
    PRIMARY KEY (kind, key)
) STRICT, WITHOUT ROWID;
