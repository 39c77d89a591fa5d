//! What stages made of keys, the runs, and what is known of files: records in `index.sqlite`.
//!
//! | kind | key | value |
//! |---|---|---|
//! | `execution` | digest of the stage's key | [`Execution`] as JSON |
//! | `run` | number, 8 big-endian bytes | [`Run`] as JSON |
//! | `file` | path | stat that the file had, 24 bytes; digest that it had then |
//! | `folder` | path of a folder that was scanned | nothing |
//! | `export` | path of a file written for the user | stat, 24 bytes; digest of what the file was made from |

mod database;

use std::cmp::Ordering;
use std::path::{MAIN_SEPARATOR, Path, PathBuf};

use luthier_artifact::{Digest, FileStat, Observer, file_names};
use rusqlite::{Connection, OptionalExtension, Row, ffi, params};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

pub(super) use self::database::Index;
use crate::{Execution, Result, Run};

pub(super) const EXECUTION: &str = "execution";
pub(super) const FILE: &str = "file";
const EXPORT: &str = "export";
const FOLDER: &str = "folder";
const RUN: &str = "run";

/// Every kind of record.
const KINDS: [&str; 5] = [EXECUTION, EXPORT, FILE, FOLDER, RUN];

/// All records of a kind.
const RECORDS: &str = "SELECT key, value, checksum FROM record WHERE kind = ? ORDER BY key";

/// After how many records a long loop looks whether the user interrupts.
const RECORDS_BETWEEN_LOOKS: usize = 1024;

/// Bytes of a stat, and of a stat with a digest.
const STAT: usize = 3 * 8;
const STAT_AND_DIGEST: usize = STAT + 32;

impl Index {
    pub(super) fn execution(&self, key: &Digest) -> Result<Option<Execution>> {
        Ok(self.get(EXECUTION, key.as_bytes())?.and_then(|value| from_json(&value)))
    }

    pub(super) fn executions(&self) -> Result<Vec<Execution>> {
        let records = self.with(|connection| records(connection, EXECUTION))?;
        Ok(records.iter().filter_map(|(_, value)| from_json(value)).collect())
    }

    /// The executions of a stage. Only they are read whole: a cache may have thousands of others.
    pub(super) fn executions_of(&self, stage: &str) -> Result<Vec<Execution>> {
        #[derive(Deserialize)]
        struct Peek {
            key: Stage,
        }
        #[derive(Deserialize)]
        struct Stage {
            stage: String,
        }
        let mut records = self.with(|connection| records(connection, EXECUTION))?;
        records.retain(|(_, value)| from_json(value).is_some_and(|peek: Peek| peek.key.stage == stage));
        Ok(records.iter().filter_map(|(_, value)| from_json(value)).collect())
    }

    /// The keys of all executions, also of those whose record is damaged.
    pub(super) fn execution_keys(&self) -> Result<Vec<Digest>> {
        self.with(|connection| {
            let mut select = connection.prepare("SELECT key FROM record WHERE kind = ? ORDER BY key")?;
            let keys = select.query_map([EXECUTION], |row| row.get::<_, [u8; 32]>(0).map(Digest::from_bytes))?;
            keys.collect()
        })
    }

    pub(super) fn record(&self, execution: &Execution) -> Result<()> {
        self.put(EXECUTION, execution.key.digest().as_bytes(), &to_json(execution))
    }

    /// The recorded runs, oldest first.
    pub(super) fn runs(&self) -> Result<Vec<Run>> {
        self.with(|connection| runs(connection))
    }

    /// Lets `change` rewrite the runs of a project, given oldest first. A run with the number 0 is stored as the newest.
    pub(super) fn change_runs(&self, project: &str, change: impl Fn(&mut Vec<Run>)) -> Result<()> {
        self.write(|connection| {
            let all = runs(connection)?;
            let newest = all.last().map_or(0, |run| run.id);
            let before: Vec<Run> = all.into_iter().filter(|run| run.project == project).collect();
            let mut after = before.clone();
            change(&mut after);
            for gone in before.iter().filter(|run| after.iter().all(|kept| kept.id != run.id)) {
                delete(connection, RUN, &gone.id.to_be_bytes())?;
            }
            for run in after.iter().filter(|run| !before.contains(run)) {
                let id = if run.id == 0 { newest + 1 } else { run.id };
                store(connection, RUN, &id.to_be_bytes(), &to_json(run))?;
            }
            Ok(())
        })
    }

    pub(super) fn file_digests<'a>(
        &self,
        folder: &str,
        files: impl Iterator<Item = (&'a str, FileStat)> + Clone,
    ) -> Result<Vec<Option<Digest>>> {
        // One sweep over the records below the folder, beside the files. Both are in order, so no file
        // needs a lookup of its own.
        let (first, end) = below(folder);
        self.with(|connection| {
            let mut select = connection.prepare_cached(
                "SELECT key, value, checksum FROM record WHERE kind = ? AND key >= ? AND key < ? ORDER BY key",
            )?;
            let mut rows = select.query(params![FILE, first.as_bytes(), end.as_bytes()])?;
            let mut row = rows.next()?;
            let mut found = Vec::with_capacity(files.size_hint().0);
            for (file, stat) in files.clone() {
                let mut known = None;
                while let Some(at) = row {
                    let key = at.get_ref(0)?.as_blob()?;
                    match key.get(first.len()..).unwrap_or_default().cmp(file.as_bytes()) {
                        Ordering::Less => row = rows.next()?,
                        Ordering::Greater => break,
                        Ordering::Equal => {
                            let seen = whole(FILE, at)?.and_then(|(_, value)| stat_and_digest(value));
                            known = seen.filter(|(seen, _)| *seen == stat).map(|(_, digest)| digest);
                            break;
                        }
                    }
                }
                found.push(known);
            }
            Ok(found)
        })
    }

    pub(super) fn remember_files<'a>(
        &self,
        folder: &str,
        files: impl Iterator<Item = (&'a str, FileStat, Digest)> + Clone,
    ) -> Result<()> {
        let (first, _) = below(folder);
        self.write(|connection| {
            store(connection, FOLDER, folder.as_bytes(), &[])?;
            for (file, stat, digest) in files.clone() {
                let path = first.clone() + file;
                store(connection, FILE, path.as_bytes(), &bytes_of(&stat, &digest))?;
            }
            Ok(())
        })
    }

    /// The files whose digest is known by their stat.
    pub(super) fn files(&self) -> Result<Vec<(PathBuf, FileStat, Digest)>> {
        let records = self.with(|connection| records(connection, FILE))?;
        let file = |(key, value): &(Vec<u8>, Vec<u8>)| {
            let (stat, digest) = stat_and_digest(value)?;
            Some((path_of_file(text(key)), stat, digest))
        };
        Ok(records.iter().filter_map(file).collect())
    }

    /// The folders that were scanned.
    pub(super) fn folders(&self) -> Result<Vec<PathBuf>> {
        let records = self.with(|connection| records(connection, FOLDER))?;
        Ok(records.iter().map(|(key, _)| file_names::path_of(text(key))).collect())
    }

    pub(super) fn export(&self, path: &Path) -> Result<Option<(FileStat, Digest)>> {
        let value = self.get(EXPORT, file_names::name_of(path).as_bytes())?;
        Ok(value.and_then(|value| stat_and_digest(&value)))
    }

    pub(super) fn remember_export(&self, path: &Path, stat: &FileStat, source: &Digest) -> Result<()> {
        let path = file_names::name_of(path);
        self.put(EXPORT, path.as_bytes(), &bytes_of(stat, source))
    }

    /// How many records of a kind there are.
    pub(super) fn count(&self, kind: &str) -> Result<u64> {
        self.with(|connection| {
            let count = "SELECT count(*) FROM record WHERE kind = ?";
            connection.query_row(count, [kind], |row| row.get::<_, i64>(0))
        })
        .map(|count| count as u64)
    }

    pub(super) fn forget_executions(&self, keys: &[Digest], observer: &dyn Observer) -> Result<()> {
        self.forget(EXECUTION, keys.iter().map(|key| key.as_bytes().to_vec()), observer)
    }

    pub(super) fn forget_runs(&self, ids: &[i64], observer: &dyn Observer) -> Result<()> {
        self.forget(RUN, ids.iter().map(|id| id.to_be_bytes().to_vec()), observer)
    }

    pub(super) fn forget_files(&self, paths: &[PathBuf], observer: &dyn Observer) -> Result<()> {
        self.forget(FILE, paths.iter().map(key_of_path), observer)
    }

    pub(super) fn forget_folders(&self, paths: &[PathBuf], observer: &dyn Observer) -> Result<()> {
        self.forget(FOLDER, paths.iter().map(key_of_path), observer)
    }

    /// Deletes the records that fail their checksum, and counts them.
    pub(super) fn forget_damaged(&self) -> Result<u64> {
        self.write(|connection| {
            let mut damaged: Vec<(String, Vec<u8>)> = Vec::new();
            let mut select = connection.prepare("SELECT key, value, checksum, kind FROM record")?;
            let mut rows = select.query([])?;
            while let Some(row) = rows.next()? {
                let kind: String = row.get(3)?;
                if whole(&kind, row)?.is_none() {
                    damaged.push((kind, row.get(0)?));
                }
            }
            for (kind, key) in &damaged {
                delete(connection, kind, key)?;
            }
            Ok(damaged.len() as u64)
        })
    }

    fn get(&self, kind: &str, key: &[u8]) -> Result<Option<Vec<u8>>> {
        let select = "SELECT key, value, checksum FROM record WHERE kind = ? AND key = ?";
        let found = self.with(|connection| {
            let mut select = connection.prepare_cached(select)?;
            let value = |row: &Row<'_>| Ok(whole(kind, row)?.map(|(_, value)| value.to_vec()));
            select.query_row(params![kind, key], value).optional()
        })?;
        Ok(found.flatten())
    }

    fn put(&self, kind: &str, key: &[u8], value: &[u8]) -> Result<()> {
        self.write(|connection| store(connection, kind, key, value))
    }

    fn forget(&self, kind: &str, keys: impl Iterator<Item = Vec<u8>> + Clone, observer: &dyn Observer) -> Result<()> {
        self.write(|connection| {
            for (place, key) in keys.clone().enumerate() {
                if place.is_multiple_of(RECORDS_BETWEEN_LOOKS) {
                    go_on(observer)?;
                }
                delete(connection, kind, &key)?;
            }
            Ok(())
        })
    }
}

/// The key and the value of a row, given as key, value and checksum, if it is whole.
fn whole<'a>(kind: &str, row: &'a Row<'_>) -> rusqlite::Result<Option<(&'a [u8], &'a [u8])>> {
    let blob = |column| Ok::<_, rusqlite::Error>(row.get_ref(column)?.as_blob()?);
    let (key, value) = (blob(0)?, blob(1)?);
    if blob(2)? == checksum(kind, key, value) {
        return Ok(Some((key, value)));
    }
    tracing::warn!("a cached record of the kind {kind:?} fails its checksum; taken as missing");
    Ok(None)
}

/// The keys and values of all records of a kind, in the order of keys.
fn records(connection: &Connection, kind: &str) -> rusqlite::Result<Vec<(Vec<u8>, Vec<u8>)>> {
    let mut select = connection.prepare_cached(RECORDS)?;
    let mut rows = select.query([kind])?;
    let mut records = Vec::new();
    while let Some(row) = rows.next()? {
        records.extend(whole(kind, row)?.map(|(key, value)| (key.to_vec(), value.to_vec())));
    }
    Ok(records)
}

fn runs(connection: &Connection) -> rusqlite::Result<Vec<Run>> {
    let run = |(key, value): &(Vec<u8>, Vec<u8>)| {
        let id = i64::from_be_bytes(key.as_slice().try_into().ok()?);
        Some(Run {
            id,
            ..from_json(value)?
        })
    };
    Ok(records(connection, RUN)?.iter().filter_map(run).collect())
}

fn store(connection: &Connection, kind: &str, key: &[u8], value: &[u8]) -> rusqlite::Result<()> {
    let insert = "INSERT OR REPLACE INTO record (kind, key, value, checksum) VALUES (?, ?, ?, ?)";
    let mut insert = connection.prepare_cached(insert)?;
    insert.execute(params![kind, key, value, checksum(kind, key, value)])?;
    Ok(())
}

fn delete(connection: &Connection, kind: &str, key: &[u8]) -> rusqlite::Result<()> {
    let mut delete = connection.prepare_cached("DELETE FROM record WHERE kind = ? AND key = ?")?;
    delete.execute(params![kind, key])?;
    Ok(())
}

/// The first 16 bytes of blake3 over the parts, each preceded by its length.
fn checksum(kind: &str, key: &[u8], value: &[u8]) -> [u8; 16] {
    let parts = [kind.as_bytes(), key, value];
    let mut bytes = Vec::with_capacity(parts.iter().map(|part| 8 + part.len()).sum());
    for part in parts {
        bytes.extend((part.len() as u64).to_le_bytes());
        bytes.extend(part);
    }
    let digest = Digest::of(&bytes);
    *digest.as_bytes().first_chunk().expect("a digest has 32 bytes")
}

fn to_json(value: &impl Serialize) -> Vec<u8> {
    serde_json::to_vec(value).expect("plain data always serialize")
}

/// `None` if another version has written it.
fn from_json<T: DeserializeOwned>(value: &[u8]) -> Option<T> {
    serde_json::from_slice(value).ok()
}

fn bytes_of(stat: &FileStat, digest: &Digest) -> [u8; STAT_AND_DIGEST] {
    let FileStat { size, mtime_ns, inode } = stat;
    let mut bytes = [0; STAT_AND_DIGEST];
    let (numbers, last) = bytes.split_at_mut(STAT);
    let stat = [size.to_le_bytes(), mtime_ns.to_le_bytes(), inode.to_le_bytes()];
    numbers.copy_from_slice(stat.as_flattened());
    last.copy_from_slice(digest.as_bytes());
    bytes
}

fn stat_and_digest(value: &[u8]) -> Option<(FileStat, Digest)> {
    let value: &[u8; STAT_AND_DIGEST] = value.try_into().ok()?;
    let number = |place: usize| *value[8 * place..].first_chunk().expect("8 bytes");
    let stat = FileStat {
        size: u64::from_le_bytes(number(0)),
        mtime_ns: i64::from_le_bytes(number(1)),
        inode: u64::from_le_bytes(number(2)),
    };
    let digest = value.last_chunk().expect("32 bytes");
    Some((stat, Digest::from_bytes(*digest)))
}

/// The bounds of the paths below a folder: the first possible path, and the first path that comes
/// after all of them.
fn below(folder: &str) -> (String, String) {
    let folder = folder.strip_suffix(MAIN_SEPARATOR).unwrap_or(folder);
    let after = char::from(MAIN_SEPARATOR as u8 + 1);
    (format!("{folder}{MAIN_SEPARATOR}"), format!("{folder}{after}"))
}

fn text(key: &[u8]) -> &str {
    std::str::from_utf8(key).expect("a path is stored as text")
}

fn key_of_path(path: impl AsRef<Path>) -> Vec<u8> {
    file_names::name_of(path.as_ref()).into_bytes()
}

/// The path of a file, given by its folder and its name below that, which may be a path from the root.
fn path_of_file(path: &str) -> PathBuf {
    let from_root = path.find("//").map_or(path, |place| &path[place + 1..]);
    file_names::path_of(from_root)
}

/// Ends a loop of statements when the user interrupts, with the error with which SQLite ends a
/// statement.
fn go_on(observer: &dyn Observer) -> rusqlite::Result<()> {
    match observer.is_interrupted() {
        true => Err(rusqlite::Error::SqliteFailure(
            ffi::Error::new(ffi::SQLITE_INTERRUPT),
            None,
        )),
        false => Ok(()),
    }
}
