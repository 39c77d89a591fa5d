use std::cmp::Ordering;
use std::collections::{BTreeSet, HashSet};
use std::fs::{self, File};
use std::io;
use std::path::{MAIN_SEPARATOR, Path, PathBuf};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use luthier_artifact::{Digest, FileStat, Key, Observer, file_names, remove, vector_bytes};
use ndarray::ArrayViewMut2;
use rusqlite::types::Value;
use rusqlite::{
    Connection, ErrorCode, OpenFlags, OptionalExtension, Row, TransactionBehavior, ffi, params, params_from_iter,
};

use crate::lock::{Gate, Pass};
use crate::run::Run;
use crate::{Error, Execution, PastExecution, Result, salvage};

/// Changes with `schema.sql` and with what its columns hold. Kept in SQLite's `user_version`.
const LAYOUT: i64 = 3;

/// SQLite's `application_id` is this number plus the layout. If the two places disagree on the
/// layout, the header is damaged.
const APPLICATION: i64 = 0x4c55_5400;

/// How long to wait for another process's transaction.
const BUSY_TIMEOUT: Duration = Duration::from_secs(60);

/// How often a long statement looks whether the user interrupts.
const WATCH_INTERVAL: Duration = Duration::from_millis(50);

/// After how many rows a long loop looks whether the user interrupts.
const ROWS_BETWEEN_LOOKS: usize = 1024;

/// The tables that are copied row by row from a damaged index. Features are searched for page by
/// page.
const SMALL_TABLES: [&str; 5] = ["execution", "run", "export", "file", "folder"];

/// `index.sqlite`: everything small, and the features of single images.
///
/// A damaged index is replaced by a new one with all that is whole. Other processes may have the
/// damaged file open, and their writes must not be lost with it. So a transaction that writes holds
/// the [`Gate`] shared. It first checks that the file that is open is still the file at the path,
/// and opens the file at the path if it is not. Replacing the file holds the gate exclusively. The
/// crate's documentation says why this is enough.
#[derive(Debug)]
pub(super) struct Index {
    path: PathBuf,
    /// `None` for an index that is only read.
    gate: Option<Gate>,
    opened: Mutex<Opened>,
}

#[derive(Debug)]
struct Opened {
    connection: Connection,
    file: Option<FileId>,
}

impl Index {
    pub(super) fn open(path: &Path) -> Result<Self> {
        let gate = Gate::new(&path.with_extension("lock"))?;
        let (seen, opened) = {
            let _pass = enter(path, &gate)?;
            (FileId::of(path), Opened::new(path))
        };
        let opened = match opened {
            Err(Error::Index { source, .. }) if is_damaged(&source) => mend(path, &gate, seen, &source)?,
            other => other?,
        };
        Ok(Index {
            path: path.to_owned(),
            gate: Some(gate),
            opened: Mutex::new(opened),
        })
    }

    /// Opens an index that cannot be written. SQLite then takes no locks and ignores the
    /// write-ahead log. Rows may be missing or fail their checksums; both are misses.
    pub(super) fn open_read_only(path: &Path) -> Result<Self> {
        let wrap = wrap(path);
        let name = path
            .display()
            .to_string()
            .replace('%', "%25")
            .replace('?', "%3f")
            .replace('#', "%23");
        let flags = OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_URI | OpenFlags::SQLITE_OPEN_NO_MUTEX;
        let connection = Connection::open_with_flags(format!("file:{name}?immutable=1"), flags).map_err(&wrap)?;
        check_layout(path, &connection)?;
        Ok(Index {
            path: path.to_owned(),
            gate: None,
            opened: Mutex::new(Opened { connection, file: None }),
        })
    }

    /// Runs a query. If the query meets damage, it runs again on what is whole, so it must start
    /// from nothing each time.
    pub(super) fn with<T>(&self, mut query: impl FnMut(&mut Connection) -> rusqlite::Result<T>) -> Result<T> {
        let mut opened = self.opened();
        match query(&mut opened.connection) {
            Err(error) if is_damaged(&error) && self.gate.is_some() => {
                self.mend(&mut opened, &error)?;
                query(&mut opened.connection)
            }
            other => other,
        }
        .map_err(wrap(&self.path))
    }

    /// Runs statements in one transaction. It takes the write lock at its start: a transaction that
    /// begins with a read could fail for good if another process wrote in between.
    pub(super) fn write<T>(&self, mut query: impl FnMut(&Connection) -> rusqlite::Result<T>) -> Result<T> {
        self.alter(|connection| {
            let transaction = connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
            let value = query(&transaction)?;
            transaction.commit()?;
            Ok(value)
        })
    }

    /// Runs `work`. When the user interrupts, SQLite ends the statement that is running, and undoes
    /// what the statement has changed. A single statement can take minutes in a large index.
    pub(super) fn watched<T>(&self, observer: &dyn Observer, work: impl FnOnce() -> Result<T>) -> Result<T> {
        let handle = self.opened().connection.get_interrupt_handle();
        let (done, is_done) = mpsc::channel::<()>();
        std::thread::scope(|scope| {
            // Between two statements an interrupt has no effect, so it is repeated.
            scope.spawn(move || {
                while is_done.recv_timeout(WATCH_INTERVAL) == Err(RecvTimeoutError::Timeout) {
                    if observer.is_interrupted() {
                        handle.interrupt();
                    }
                }
            });
            let value = work();
            drop(done);
            value
        })
    }

    /// Gives the space of deleted rows back to the file system.
    pub(super) fn shrink(&self) -> Result<()> {
        self.alter(|connection| {
            connection.execute_batch("VACUUM")?;
            connection.query_row("PRAGMA wal_checkpoint(TRUNCATE)", [], |_| Ok(()))
        })
    }

    /// What SQLite finds wrong with the file, if anything. The index is then replaced by a new one
    /// with all that is whole.
    pub(super) fn check(&self) -> Result<Option<String>> {
        let complaint: String =
            self.with(|connection| connection.query_row("PRAGMA integrity_check(1)", [], |row| row.get(0)))?;
        if complaint == "ok" {
            return Ok(None);
        }
        // The first line of a complaint about a page only names the database.
        let complaint = complaint.lines().last().unwrap_or_default().to_owned();
        self.mend(&mut self.opened(), &corrupt(&complaint))?;
        Ok(Some(complaint))
    }

    /// Runs a query that writes, on the file that is at the path now.
    fn alter<T>(&self, mut query: impl FnMut(&mut Connection) -> rusqlite::Result<T>) -> Result<T> {
        let gate = self.gate.as_ref().ok_or_else(|| Error::ReadOnly {
            path: self.path.clone(),
        })?;
        let mut opened = self.opened();
        let mut attempt = |opened: &mut Opened| {
            let _pass = enter(&self.path, gate)?;
            let current = FileId::of(&self.path);
            if opened.file != current {
                *opened = Opened::new(&self.path).inspect_err(|error| {
                    // This is the file to mend. After any other error the next attempt opens it.
                    if error.is_damaged() {
                        opened.file = current;
                    }
                })?;
            }
            query(&mut opened.connection).map_err(wrap(&self.path))
        };
        match attempt(&mut opened) {
            Err(Error::Index { source, .. }) if is_damaged(&source) => {
                self.mend(&mut opened, &source)?;
                attempt(&mut opened)
            }
            other => other,
        }
    }

    fn mend(&self, opened: &mut Opened, cause: &rusqlite::Error) -> Result<()> {
        let gate = self.gate.as_ref().ok_or_else(|| Error::ReadOnly {
            path: self.path.clone(),
        })?;
        opened.close(Some(gate));
        *opened = mend(&self.path, gate, opened.file, cause)?;
        Ok(())
    }

    /// A poisoned lock does no harm: SQLite rolls a transaction back when it is dropped.
    fn opened(&self) -> MutexGuard<'_, Opened> {
        self.opened.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn execution(&self, key: &Digest) -> Result<Option<Execution>> {
        self.with(|connection| {
            connection
                .prepare_cached("SELECT key, stage, parts, outputs, seconds, checksum FROM execution WHERE key = ?")?
                .query_row([key.as_bytes()], execution)
                .optional()
        })
        .map(Option::flatten)
    }

    pub(super) fn executions_of(&self, stage: &str) -> Result<Vec<Execution>> {
        self.with(|connection| {
            connection
                .prepare("SELECT key, stage, parts, outputs, seconds, checksum FROM execution WHERE stage = ?")?
                .query_map([stage], execution)?
                .filter_map(rusqlite::Result::transpose)
                .collect()
        })
    }

    pub(super) fn record(&self, execution: &Execution) -> Result<()> {
        let Execution {
            key,
            outputs,
            seconds,
            references,
        } = execution;
        let digest = key.digest();
        let parts = serde_json::to_string(&key.parts).expect("plain data always serialize");
        let outputs = serde_json::to_string(&(outputs, references)).expect("plain data always serialize");
        let sum = checksum(&[
            digest.as_bytes(),
            key.stage.as_bytes(),
            parts.as_bytes(),
            outputs.as_bytes(),
        ]);
        self.write(|connection| {
            connection.execute(
                "INSERT OR REPLACE INTO execution (key, stage, parts, outputs, seconds, checksum) VALUES (?, ?, ?, ?, ?, ?)",
                params![digest.as_bytes(), key.stage, parts, outputs, seconds, sum],
            )
        })?;
        Ok(())
    }

    pub(super) fn executions(&self) -> Result<Vec<Execution>> {
        self.with(|connection| {
            connection
                .prepare("SELECT key, stage, parts, outputs, seconds, checksum FROM execution")?
                .query_map([], execution)?
                .filter_map(rusqlite::Result::transpose)
                .collect()
        })
    }

    /// What the executions of a stage cost.
    pub(super) fn costs(&self, stage: &str) -> Result<Vec<PastExecution>> {
        self.with(|connection| {
            let mut select = connection.prepare(
                "SELECT key, stage, parts, outputs, seconds, checksum, embedded FROM execution WHERE stage = ? ORDER BY key",
            )?;
            let rows = select.query_map([stage], |row| {
                let n_embedded: Option<i64> = row.get(6)?;
                Ok(execution(row)?.map(|Execution { key, seconds, .. }| PastExecution {
                    key,
                    seconds,
                    n_embedded: n_embedded.map(|count| count as usize),
                }))
            })?;
            rows.filter_map(rusqlite::Result::transpose).collect()
        })
    }

    pub(super) fn record_embedded(&self, key: &Digest, n_images: usize) -> Result<()> {
        self.write(|connection| {
            connection.execute(
                "UPDATE execution SET embedded = ? WHERE key = ?",
                params![n_images as i64, key.as_bytes()],
            )
        })?;
        Ok(())
    }

    /// The recorded runs, oldest first; those that fail their checksum are left out with a warning.
    pub(super) fn runs(&self) -> Result<Vec<Run>> {
        self.with(|connection| runs(connection))
    }

    /// Lets `change` rewrite the runs of a project, given oldest first.
    pub(super) fn change_runs(&self, project: &str, change: impl Fn(&mut Vec<Run>)) -> Result<()> {
        self.write(|connection| {
            let before: Vec<Run> = runs(connection)?
                .into_iter()
                .filter(|run| run.project == project)
                .collect();
            let mut after = before.clone();
            change(&mut after);
            for run in before.iter().filter(|run| after.iter().all(|kept| kept.id != run.id)) {
                connection.execute("DELETE FROM run WHERE id = ?", [run.id])?;
            }
            for run in after.iter().filter(|run| !before.contains(run)) {
                store_run(connection, run)?;
            }
            Ok(())
        })
    }

    pub(super) fn file_digests<'a>(
        &self,
        folder: &str,
        files: impl Iterator<Item = (&'a str, FileStat)> + Clone,
    ) -> Result<Vec<Option<Digest>>> {
        // One sweep over the rows below the folder, beside the files. Both are in order, so no file
        // needs a lookup of its own.
        let (first, end) = below(folder);
        self.with(|connection| {
            let mut select = connection.prepare_cached(
                "SELECT size, mtime_ns, inode, digest, checksum, path FROM file WHERE path >= ? AND path < ? ORDER BY path",
            )?;
            let mut rows = select.query([&first, &end])?;
            let mut row = rows.next()?;
            let mut found = Vec::with_capacity(files.size_hint().0);
            for (file, stat) in files.clone() {
                let mut known = None;
                while let Some(at) = row {
                    let path = at.get_ref(5)?.as_str()?;
                    match path.get(first.len()..).unwrap_or_default().cmp(file) {
                        Ordering::Less => row = rows.next()?,
                        Ordering::Greater => break,
                        Ordering::Equal => {
                            let (seen, digest) = (file_stat(at)?, digest(at, 3)?);
                            let is_whole = at.get_ref(4)?.as_blob()? == file_checksum(path, &seen, &digest);
                            known = (seen == stat && is_whole).then_some(digest);
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
            connection.execute(
                "INSERT OR IGNORE INTO folder (path, checksum) VALUES (?, ?)",
                params![folder, folder_checksum(folder)],
            )?;
            let mut insert = connection.prepare_cached(
                "INSERT OR REPLACE INTO file (path, size, mtime_ns, inode, digest, checksum) VALUES (?, ?, ?, ?, ?, ?)",
            )?;
            for (file, stat, digest) in files.clone() {
                let path = first.clone() + file;
                insert.execute(params![
                    path,
                    stat.size as i64,
                    stat.mtime_ns,
                    stat.inode as i64,
                    digest.as_bytes(),
                    file_checksum(&path, &stat, &digest)
                ])?;
            }
            Ok(())
        })
    }

    pub(super) fn feature_digests(&self, descriptor: &Digest, images: &[Digest]) -> Result<Vec<Option<Digest>>> {
        self.with(|connection| {
            let transaction = connection.transaction()?;
            let mut select =
                transaction.prepare_cached("SELECT vector, checksum FROM feature WHERE extractor = ? AND image = ?")?;
            let mut find = |image: &Digest| {
                let mut rows = select.query([descriptor.as_bytes(), image.as_bytes()])?;
                let Some(row) = rows.next()? else { return Ok(None) };
                let vector = digest(row, 0)?;
                if row.get_ref(1)?.as_blob()? == feature_checksum(descriptor, image, &vector) {
                    return Ok(Some(vector));
                }
                tracing::warn!(
                    "cached features of image {} fail their checksum; to be computed again",
                    image.short()
                );
                Ok(None)
            };
            images.iter().map(&mut find).collect()
        })
    }

    /// Stores the vectors of images in one transaction.
    pub(super) fn store_features(&self, descriptor: &Digest, rows: &[(Digest, Vec<f32>)]) -> Result<()> {
        self.write(|connection| {
            rows.iter().try_for_each(|(image, features)| {
                insert_feature(connection, descriptor, image, &vector_bytes(features.into()))
            })
        })
    }

    /// The places of those vectors that are not stored as they are here: missing or damaged.
    ///
    /// The stored bytes are compared with the given ones, which is cheaper than a digest of them.
    pub(super) fn unstored(&self, vectors: &[Vec<u8>]) -> Result<Vec<usize>> {
        self.with(|connection| {
            let transaction = connection.transaction()?;
            let mut select = transaction.prepare_cached("SELECT bytes FROM vector WHERE digest = ?")?;
            let mut unstored = Vec::new();
            for (place, bytes) in vectors.iter().enumerate() {
                let mut found = select.query([Digest::of(bytes).as_bytes()])?;
                let is_stored = match found.next()? {
                    Some(found) => found.get_ref(0)?.as_blob()? == bytes,
                    None => false,
                };
                if !is_stored {
                    unstored.push(place);
                }
            }
            Ok(unstored)
        })
    }

    /// Stores vectors. Replaces damaged ones.
    pub(super) fn store_vectors(&self, vectors: &[&Vec<u8>]) -> Result<()> {
        if vectors.is_empty() {
            return Ok(());
        }
        self.write(|connection| {
            vectors
                .iter()
                .try_for_each(|bytes| insert_vector(connection, bytes).map(drop))
        })
    }

    /// Reads vectors into the rows of a matrix. The result is the places of the vectors that are
    /// missing or damaged.
    pub(super) fn read_vectors(&self, vectors: &[Digest], mut into: ArrayViewMut2<'_, f32>) -> Result<Vec<usize>> {
        self.with(|connection| {
            let transaction = connection.transaction()?;
            let mut select = transaction.prepare_cached("SELECT bytes FROM vector WHERE digest = ?")?;
            let mut lost = Vec::new();
            for (place, (digest, mut row)) in vectors.iter().zip(into.outer_iter_mut()).enumerate() {
                let mut found = select.query([digest.as_bytes()])?;
                let bytes = match found.next()? {
                    Some(found) => found.get_ref(0)?.as_blob()?,
                    None => &[],
                };
                if bytes.len() != 4 * row.len() || Digest::of(bytes) != *digest {
                    lost.push(place);
                    continue;
                }
                let values = bytes.chunks_exact(4);
                for (value, bytes) in row.iter_mut().zip(values) {
                    *value = f32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]);
                }
            }
            Ok(lost)
        })
    }

    /// Forgets vectors, and every row that says that an image has one of them.
    pub(super) fn forget_vectors(&self, vectors: &[Digest]) -> Result<()> {
        if vectors.is_empty() {
            return Ok(());
        }
        self.write(|connection| {
            let mut delete = connection.prepare_cached("DELETE FROM vector WHERE digest = ?")?;
            for vector in vectors {
                delete.execute([vector.as_bytes()])?;
            }
            // In one sweep over all rows. A row and its vector come and go together.
            connection.execute(
                "DELETE FROM feature WHERE vector NOT IN (SELECT digest FROM vector)",
                [],
            )?;
            Ok(())
        })
    }

    pub(super) fn export(&self, path: &Path) -> Result<Option<(FileStat, Digest)>> {
        let path = file_names::name_of(path);
        let found = self.with(|connection| {
            connection
                .prepare_cached("SELECT size, mtime_ns, inode, source, checksum FROM export WHERE path = ?")?
                .query_row([&path], |row| {
                    Ok((file_stat(row)?, digest(row, 3)?, row.get::<_, Vec<u8>>(4)?))
                })
                .optional()
        })?;
        Ok(found
            .and_then(|(stat, source, sum)| (sum == export_checksum(&path, &stat, &source)).then_some((stat, source))))
    }

    pub(super) fn remember_export(&self, path: &Path, stat: &FileStat, source: &Digest) -> Result<()> {
        let path = file_names::name_of(path);
        self.write(|connection| {
            connection.execute(
                "INSERT OR REPLACE INTO export (path, size, mtime_ns, inode, source, checksum) VALUES (?, ?, ?, ?, ?, ?)",
                params![
                    path,
                    stat.size as i64,
                    stat.mtime_ns,
                    stat.inode as i64,
                    source.as_bytes(),
                    export_checksum(&path, stat, source)
                ],
            )
        })?;
        Ok(())
    }
}

/// For upkeep.
impl Index {
    pub(super) fn count(&self, table: &str) -> Result<u64> {
        self.with(|connection| {
            connection.query_row(&format!("SELECT count(*) FROM {table}"), [], |row| row.get::<_, i64>(0))
        })
        .map(|count| count as u64)
    }

    /// How many images have vectors of each descriptor, and their size in bytes.
    pub(super) fn count_features(&self) -> Result<Vec<(Digest, u64, u64)>> {
        self.with(|connection| {
            connection
                .prepare(
                    "SELECT extractor, count(*), coalesce(sum(length(bytes)), 0)
                     FROM feature LEFT JOIN vector ON digest = vector GROUP BY extractor",
                )?
                .query_map([], |row| {
                    Ok((
                        digest(row, 0)?,
                        row.get::<_, i64>(1)? as u64,
                        row.get::<_, i64>(2)? as u64,
                    ))
                })?
                .collect()
        })
    }

    /// Descriptor and image of every row of features.
    pub(super) fn feature_keys(&self) -> Result<Vec<(Digest, Digest)>> {
        self.with(|connection| {
            connection
                .prepare("SELECT extractor, image FROM feature")?
                .query_map([], |row| Ok((digest(row, 0)?, digest(row, 1)?)))?
                .collect()
        })
    }

    pub(super) fn execution_keys(&self) -> Result<Vec<Digest>> {
        self.with(|connection| {
            connection
                .prepare("SELECT key FROM execution")?
                .query_map([], |row| digest(row, 0))?
                .collect()
        })
    }

    /// The files whose digest is known by their stat; rows that fail their checksum are left out.
    pub(super) fn files(&self) -> Result<Vec<(PathBuf, FileStat, Digest)>> {
        self.with(|connection| {
            let mut select = connection.prepare("SELECT size, mtime_ns, inode, digest, checksum, path FROM file")?;
            let rows = select.query_map([], |row| {
                let (stat, digest, path) = (file_stat(row)?, digest(row, 3)?, row.get::<_, String>(5)?);
                let is_whole = row.get::<_, Vec<u8>>(4)? == file_checksum(&path, &stat, &digest);
                Ok(is_whole.then(|| (path_of_row(&path), stat, digest)))
            })?;
            rows.filter_map(rusqlite::Result::transpose).collect()
        })
    }

    /// The folders that were scanned; rows that fail their checksum are left out.
    pub(super) fn folders(&self) -> Result<Vec<PathBuf>> {
        self.with(|connection| {
            let mut select = connection.prepare("SELECT path, checksum FROM folder ORDER BY path")?;
            let rows = select.query_map([], |row| {
                let path: String = row.get(0)?;
                let is_whole = row.get::<_, Vec<u8>>(1)? == folder_checksum(&path);
                Ok(is_whole.then(|| file_names::path_of(&path)))
            })?;
            rows.filter_map(rusqlite::Result::transpose).collect()
        })
    }

    /// The bytes of the pages that hold something.
    pub(super) fn bytes_in_use(&self) -> Result<u64> {
        self.with(|connection| {
            let number = |name| connection.pragma_query_value(None, name, |row| row.get::<_, i64>(0));
            Ok((number("page_count")? - number("freelist_count")?) * number("page_size")?)
        })
        .map(|bytes| bytes as u64)
    }

    /// Deletes rows of features, given by descriptor and image, and counts them.
    pub(super) fn forget_features(&self, rows: &[(Digest, Digest)], observer: &dyn Observer) -> Result<u64> {
        let keys = |(descriptor, image): &(Digest, Digest)| vec![blob(descriptor), blob(image)];
        self.forget(
            "feature WHERE extractor = ? AND image = ?",
            rows.iter().map(keys).collect(),
            observer,
        )
    }

    /// Deletes the vectors that no row of features has.
    pub(super) fn forget_unused_vectors(&self, observer: &dyn Observer) -> Result<u64> {
        let rows = vec![Vec::new()];
        self.forget(
            "vector WHERE digest NOT IN (SELECT vector FROM feature)",
            rows,
            observer,
        )
    }

    /// Checks every row of features and every vector, and deletes what is damaged or of no use. The
    /// result is the number of rows, and of deleted rows.
    pub(super) fn forget_damaged_features(&self, observer: &dyn Observer) -> Result<(u64, u64)> {
        // The rows first: another process may add a row meanwhile, and adds its vector with it.
        let rows: Vec<(Digest, Digest, Option<Digest>)> = self.with(|connection| {
            connection
                .prepare("SELECT extractor, image, vector, checksum FROM feature")?
                .query_map([], |row| {
                    let (descriptor, image, vector) = (digest(row, 0)?, digest(row, 1)?, digest(row, 2)?);
                    let is_whole = row.get_ref(3)?.as_blob()? == feature_checksum(&descriptor, &image, &vector);
                    Ok((descriptor, image, is_whole.then_some(vector)))
                })?
                .collect()
        })?;
        let (whole, damaged): (HashSet<Digest>, Vec<Digest>) = self.with(|connection| {
            let mut select = connection.prepare("SELECT digest, bytes FROM vector")?;
            let mut vectors = select.query([])?;
            let (mut whole, mut damaged) = (HashSet::new(), Vec::new());
            while let Some(vector) = vectors.next()? {
                if (whole.len() + damaged.len()).is_multiple_of(ROWS_BETWEEN_LOOKS) {
                    go_on(observer)?;
                }
                let expected = digest(vector, 0)?;
                if Digest::of(vector.get_ref(1)?.as_blob()?) == expected {
                    whole.insert(expected);
                } else {
                    damaged.push(expected);
                }
            }
            Ok((whole, damaged))
        })?;
        let n_rows = rows.len() as u64;
        let useless: Vec<(Digest, Digest)> = (rows.into_iter())
            .filter(|(_, _, vector)| vector.is_none_or(|vector| !whole.contains(&vector)))
            .map(|(descriptor, image, _)| (descriptor, image))
            .collect();
        self.forget_features(&useless, observer)?;
        self.forget_vectors(&damaged)?;
        Ok((n_rows, useless.len() as u64))
    }

    pub(super) fn forget_executions(&self, keys: &[Digest], observer: &dyn Observer) -> Result<u64> {
        self.forget(
            "execution WHERE key = ?",
            keys.iter().map(|key| vec![blob(key)]).collect(),
            observer,
        )
    }

    pub(super) fn forget_runs(&self, ids: &[i64], observer: &dyn Observer) -> Result<u64> {
        self.forget(
            "run WHERE id = ?",
            ids.iter().map(|id| vec![Value::Integer(*id)]).collect(),
            observer,
        )
    }

    pub(super) fn forget_files(&self, paths: &[PathBuf], observer: &dyn Observer) -> Result<u64> {
        self.forget("file WHERE path = ?", paths.iter().map(path_value).collect(), observer)
    }

    pub(super) fn forget_folders(&self, paths: &[PathBuf], observer: &dyn Observer) -> Result<u64> {
        self.forget(
            "folder WHERE path = ?",
            paths.iter().map(path_value).collect(),
            observer,
        )
    }

    /// Deletes the runs, exports, folders and files' stats that fail their checksum, and counts
    /// them.
    pub(super) fn forget_damaged_records(&self) -> Result<u64> {
        self.write(|connection| {
            let mut n_forgotten = 0;
            let whole: Vec<i64> = runs(connection)?.into_iter().map(|run| run.id).collect();
            let ids: Vec<i64> = (connection.prepare("SELECT id FROM run")?)
                .query_map([], |row| row.get(0))?
                .collect::<rusqlite::Result<_>>()?;
            for id in ids.into_iter().filter(|id| !whole.contains(id)) {
                n_forgotten += connection.execute("DELETE FROM run WHERE id = ?", [id])?;
            }
            let folders: Vec<(String, Vec<u8>)> = (connection.prepare("SELECT path, checksum FROM folder")?)
                .query_map([], |row| Ok((row.get(0)?, row.get(1)?)))?
                .collect::<rusqlite::Result<_>>()?;
            for (path, sum) in folders {
                if sum != folder_checksum(&path) {
                    n_forgotten += connection.execute("DELETE FROM folder WHERE path = ?", [path])?;
                }
            }
            for (table, last) in [("file", "digest"), ("export", "source")] {
                let mut damaged = Vec::new();
                let mut select = connection.prepare(&format!(
                    "SELECT size, mtime_ns, inode, {last}, checksum, path FROM {table}"
                ))?;
                let mut rows = select.query([])?;
                while let Some(row) = rows.next()? {
                    let (stat, digest, path) = (file_stat(row)?, digest(row, 3)?, row.get::<_, String>(5)?);
                    let expected = match table {
                        "file" => file_checksum(&path, &stat, &digest),
                        _ => export_checksum(&path, &stat, &digest),
                    };
                    if row.get::<_, Vec<u8>>(4)? != expected {
                        damaged.push(path);
                    }
                }
                for path in damaged {
                    n_forgotten += connection.execute(&format!("DELETE FROM {table} WHERE path = ?"), [path])?;
                }
            }
            Ok(n_forgotten as u64)
        })
    }

    fn forget(&self, what: &str, rows: Vec<Vec<Value>>, observer: &dyn Observer) -> Result<u64> {
        if rows.is_empty() {
            return Ok(0);
        }
        self.write(|connection| {
            let mut delete = connection.prepare(&format!("DELETE FROM {what}"))?;
            let mut n_forgotten = 0;
            for (place, row) in rows.iter().enumerate() {
                if place.is_multiple_of(ROWS_BETWEEN_LOOKS) {
                    go_on(observer)?;
                }
                n_forgotten += delete.execute(params_from_iter(row))?;
            }
            Ok(n_forgotten as u64)
        })
    }
}

/// The path of a file, given by its folder and its name below that, which may be a path from the root.
fn path_of_row(path: &str) -> PathBuf {
    let from_root = path.find("//").map_or(path, |place| &path[place + 1..]);
    file_names::path_of(from_root)
}

fn path_value(path: impl AsRef<Path>) -> Vec<Value> {
    vec![Value::Text(file_names::name_of(path.as_ref()))]
}

fn blob(digest: &Digest) -> Value {
    Value::Blob(digest.as_bytes().to_vec())
}

impl Drop for Index {
    fn drop(&mut self) {
        // The last connection that closes an index removes its log, by name. The name must not
        // belong to another file.
        let gate = self.gate.as_ref();
        self.opened
            .get_mut()
            .unwrap_or_else(PoisonError::into_inner)
            .close(gate);
    }
}

impl Opened {
    fn new(path: &Path) -> Result<Self> {
        let connection = connect(path)?;
        Ok(Opened {
            connection,
            file: FileId::of(path),
        })
    }

    fn close(&mut self, gate: Option<&Gate>) {
        let pass = gate.map(Gate::together);
        if let Some(Err(error)) = &pass {
            tracing::warn!("{error}");
        }
        match Connection::open_in_memory() {
            Ok(nothing) => drop(std::mem::replace(&mut self.connection, nothing)),
            Err(error) => tracing::warn!("{error}"),
        }
    }
}

/// Tells files apart, whatever their names.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct FileId {
    device: u64,
    inode: u64,
}

impl FileId {
    /// `None` if there is no file, and on systems without such numbers. There, an open file cannot
    /// be replaced.
    #[cfg(unix)]
    fn of(path: &Path) -> Option<Self> {
        use std::os::unix::fs::MetadataExt;
        let metadata = fs::metadata(path).ok()?;
        Some(FileId {
            device: metadata.dev(),
            inode: metadata.ino(),
        })
    }

    #[cfg(not(unix))]
    fn of(_: &Path) -> Option<Self> {
        None
    }
}

fn connect(path: &Path) -> Result<Connection> {
    let wrap = wrap(path);
    let connection = Connection::open(path).map_err(understand).map_err(&wrap)?;
    // SQLite knows whether the file can be written only after it has read the header.
    layout(&connection).map_err(understand).map_err(&wrap)?;
    let mut connection = match connection.is_readonly("main").map_err(understand).map_err(&wrap)? {
        true => return Err(why_read_only(path, connection)),
        false => connection,
    };
    prepare(&connection).map_err(understand).map_err(&wrap)?;
    use_write_ahead_log(path, &connection)?;
    // Two processes may both find no tables. The second waits for the lock, and then finds them.
    let transaction = connection
        .transaction_with_behavior(TransactionBehavior::Immediate)
        .map_err(understand)
        .map_err(&wrap)?;
    if layout(&transaction).map_err(understand).map_err(&wrap)? == 0 {
        make(&transaction).map_err(understand).map_err(&wrap)?;
    }
    transaction.commit().map_err(understand).map_err(&wrap)?;
    check_layout(path, &connection)?;
    Ok(connection)
}

/// Why SQLite opened a file only for reading: the file cannot be written, or its header asks for a
/// newer SQLite.
fn why_read_only(path: &Path, connection: Connection) -> Error {
    drop(connection);
    match File::options().append(true).open(path) {
        Ok(_) => wrap(path)(corrupt("header asks for another version")),
        Err(error) => Error::io(path)(error),
    }
}

fn prepare(connection: &Connection) -> rusqlite::Result<()> {
    connection.busy_timeout(BUSY_TIMEOUT)?;
    // Finds damage where it is, before it has effects elsewhere.
    connection.pragma_update(None, "cell_size_check", true)?;
    connection.pragma_update(None, "trusted_schema", false)?;
    connection.pragma_update(None, "page_size", salvage::PAGE as i64)?;
    // In KiB. This holds the pages that are read to look up a hundred thousand images.
    connection.pragma_update(None, "cache_size", -65_536)?;
    // With the log, NORMAL survives a killed process. A power cut can lose the last transactions,
    // and never damages the file.
    connection.pragma_update(None, "synchronous", "NORMAL")
}

fn make(connection: &Connection) -> rusqlite::Result<()> {
    connection.execute_batch(include_str!("schema.sql"))?;
    connection.pragma_update(None, "application_id", APPLICATION + LAYOUT)?;
    connection.pragma_update(None, "user_version", LAYOUT)
}

/// Switches the write-ahead log on. It is a property of the file, so only the first process changes
/// anything. While another process does the same, SQLite fails at once, whatever the timeout.
fn use_write_ahead_log(path: &Path, connection: &Connection) -> Result<()> {
    let start = Instant::now();
    loop {
        match connection.pragma_update_and_check(None, "journal_mode", "WAL", |row| row.get::<_, String>(0)) {
            Err(error)
                if matches!(
                    error.sqlite_error_code(),
                    Some(ErrorCode::DatabaseBusy | ErrorCode::DatabaseLocked)
                ) && start.elapsed() < BUSY_TIMEOUT =>
            {
                std::thread::sleep(Duration::from_millis(10));
            }
            Ok(found) if found != "wal" => {
                return Err(Error::SharedMemory {
                    path: path.to_owned(),
                    found,
                });
            }
            done => return done.map(drop).map_err(understand).map_err(wrap(path)),
        }
    }
}

/// Checks that the index has this layout, with every table. What a user added to it, such as an
/// index or a view, does no harm.
fn check_layout(path: &Path, connection: &Connection) -> Result<()> {
    let wrap = wrap(path);
    let found = layout(connection).map_err(understand).map_err(&wrap)?;
    if found != LAYOUT {
        let application: i64 = connection
            .pragma_query_value(None, "application_id", |row| row.get(0))
            .map_err(understand)
            .map_err(&wrap)?;
        // Layout 1 had no application id.
        let is_layout = application == APPLICATION + found || (found, application) == (1, 0);
        return Err(if is_layout {
            Error::Layout {
                path: path.to_owned(),
                expected: LAYOUT,
                found,
            }
        } else {
            wrap(corrupt("header is damaged"))
        });
    }
    let expected = Connection::open_in_memory()
        .and_then(|empty| make(&empty).and_then(|()| structure(&empty)))
        .map_err(&wrap)?;
    let found = structure(connection).map_err(understand).map_err(&wrap)?;
    match expected.difference(&found).next() {
        None => Ok(()),
        Some(missing) => Err(wrap(corrupt(&format!("{missing} is missing")))),
    }
}

/// The columns and the unique keys of each table, whatever the text that defines them.
fn structure(connection: &Connection) -> rusqlite::Result<BTreeSet<String>> {
    let columns = "
        SELECT printf('column %s.%s %s %d %d', tables.name, columns.name, columns.type, columns.\"notnull\", columns.pk)
        FROM sqlite_schema AS tables, pragma_table_info(tables.name) AS columns
        WHERE tables.type = 'table'";
    let unique = "
        SELECT printf('unique key %s(%s)', tables.name, group_concat(columns.name))
        FROM sqlite_schema AS tables, pragma_index_list(tables.name) AS keys, pragma_index_info(keys.name) AS columns
        WHERE tables.type = 'table' AND keys.\"unique\" AND keys.origin <> 'c'
        GROUP BY tables.name, keys.name";
    let mut found = BTreeSet::new();
    for query in [columns, unique] {
        let mut select = connection.prepare(query)?;
        let rows = select.query_map([], |row| row.get(0))?;
        for row in rows {
            found.insert(row?);
        }
    }
    Ok(found)
}

fn layout(connection: &Connection) -> rusqlite::Result<i64> {
    connection.pragma_query_value(None, "user_version", |row| row.get(0))
}

fn wrap(path: &Path) -> impl Fn(rusqlite::Error) -> Error {
    move |source| match source.sqlite_error_code() {
        Some(ErrorCode::OperationInterrupted) => Error::Interrupted,
        _ => Error::Index {
            path: path.to_owned(),
            source,
        },
    }
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

fn corrupt(what: &str) -> rusqlite::Error {
    rusqlite::Error::SqliteFailure(ffi::Error::new(ffi::SQLITE_CORRUPT), Some(what.to_owned()))
}

/// Whether an error says that the file does not hold what was written. Either SQLite finds a page
/// damaged, or a value has a type that is never written there.
pub(crate) fn is_damaged(error: &rusqlite::Error) -> bool {
    match error {
        rusqlite::Error::SqliteFailure(failure, _) => {
            matches!(failure.code, ErrorCode::NotADatabase | ErrorCode::DatabaseCorrupt)
        }
        rusqlite::Error::FromSqlConversionFailure(..)
        | rusqlite::Error::IntegralValueOutOfRange(..)
        | rusqlite::Error::InvalidColumnType(..)
        | rusqlite::Error::Utf8Error(..) => true,
        _ => false,
    }
}

/// Takes an error in a statement for damage while an index is being opened. The statements are
/// always the same there, so SQLite does not understand the header or the schema. A flipped byte in
/// the number of the file's format is such a case.
fn understand(error: rusqlite::Error) -> rusqlite::Error {
    match &error {
        rusqlite::Error::SqlInputError { .. } => corrupt(&error.to_string()),
        rusqlite::Error::SqliteFailure(failure, _) if failure.code == ErrorCode::Unknown => corrupt(&error.to_string()),
        _ => error,
    }
}

/// Replaces a damaged index, unless another process has replaced it since the file was `seen`. Then
/// opens the index at the path.
fn mend(path: &Path, gate: &Gate, seen: Option<FileId>, cause: &rusqlite::Error) -> Result<Opened> {
    let _alone = gate.alone()?;
    put_back(path)?;
    if FileId::of(path) == seen {
        replace(path, cause)?;
    }
    Opened::new(path)
}

/// Replaces a damaged index by a new one with all that is whole. The damaged one is kept for
/// inspection.
///
/// If the process is killed between two steps, [`put_back`] undoes the steps.
fn replace(path: &Path, cause: &rusqlite::Error) -> Result<()> {
    let (new, aside) = (beside(path, ".new"), beside(path, ".damaged"));
    for left_over in [
        ".new",
        ".new-wal",
        ".new-shm",
        ".damaged",
        ".damaged-wal",
        ".damaged-shm",
    ] {
        remove(&beside(path, left_over))?;
    }
    let (n_features, n_rows) = fill(path, &beside(path, "-wal"), &new).inspect_err(|_| {
        // On a full disk this makes room.
        let _ = remove(&new);
    })?;
    File::open(&new)
        .and_then(|file| file.sync_all())
        .map_err(Error::io(&new))?;
    // With a second name for the damaged file there is an index at every instant. Not every file
    // system has second names.
    fs::hard_link(path, &aside)
        .or_else(|_| fs::rename(path, &aside))
        .map_err(Error::io(path))?;
    // SQLite would take a log that stays behind for the log of the new file.
    for of_log in ["-wal", "-shm"] {
        rename_if_there(&beside(path, of_log), &beside(path, &format!(".damaged{of_log}")))?;
    }
    fs::rename(&new, path).map_err(Error::io(path))?;
    remove(&beside(path, ".damaged-shm"))?;
    tracing::warn!(
        "{}: damaged ({cause}); moved to {}; a new index begins with what was whole: features of {n_features} images, \
         {n_rows} records",
        path.display(),
        aside.display()
    );
    Ok(())
}

/// Takes the gate shared. First undoes a replacement that was cut off.
fn enter<'a>(path: &Path, gate: &'a Gate) -> Result<Pass<'a>> {
    loop {
        let pass = gate.together()?;
        if !is_half_replaced(path) {
            return Ok(pass);
        }
        drop(pass);
        let _alone = gate.alone()?;
        put_back(path)?;
    }
}

/// Whether a replacement was cut off: the damaged index has its second name, and no new index has
/// taken its place. The caller holds the gate, so the process that was replacing the index is dead.
fn is_half_replaced(path: &Path) -> bool {
    let aside = beside(path, ".damaged");
    match FileId::of(path) {
        Some(file) => FileId::of(&aside) == Some(file),
        None => aside.is_file() && !path.exists(),
    }
}

/// Undoes a replacement that was cut off. The damaged index gets its log back, which may hold rows
/// that are nowhere else. It is searched again when the damage is next met.
fn put_back(path: &Path) -> Result<()> {
    if !is_half_replaced(path) {
        return Ok(());
    }
    for of_log in ["-wal", "-shm"] {
        rename_if_there(&beside(path, &format!(".damaged{of_log}")), &beside(path, of_log))?;
    }
    // Last, because the second name says that there is something to undo.
    let aside = beside(path, ".damaged");
    if path.exists() {
        return Ok(remove(&aside)?);
    }
    fs::rename(&aside, path).map_err(Error::io(path))
}

/// The path of the index with a suffix after its name.
fn beside(path: &Path, suffix: &str) -> PathBuf {
    path.with_extension(format!("sqlite{suffix}"))
}

fn rename_if_there(from: &Path, to: &Path) -> Result<()> {
    match fs::rename(from, to) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(Error::io(from)(error)),
        _ => Ok(()),
    }
}

/// Makes a new index of what is whole in a damaged one. The result is the number of images whose
/// features it has, and of other rows.
fn fill(old: &Path, old_log: &Path, new: &Path) -> Result<(usize, usize)> {
    let connection = connect(new)?;
    let wrap = wrap(new);
    connection.execute_batch("BEGIN").map_err(&wrap)?;
    // Before SQLite reads the old file: SQLite may write the log into it.
    let mut n_features = 0;
    salvage::carve(old, old_log, |row| {
        let insert = if is_feature(&row) {
            "INSERT OR IGNORE INTO feature VALUES (?, ?, ?, ?)"
        } else if is_vector(&row) {
            "INSERT OR IGNORE INTO vector VALUES (?, ?)"
        } else {
            return Ok(false);
        };
        n_features += usize::from(row.len() == 4)
            * connection
                .prepare_cached(insert)
                .and_then(|mut insert| insert.execute(params_from_iter(row)))
                .map_err(&wrap)?;
        Ok(true)
    })?;
    let n_rows = salvage::copy_readable(old, &connection, &SMALL_TABLES).map_err(&wrap)?;
    connection.execute_batch("COMMIT").map_err(&wrap)?;
    connection.close().map_err(|(_, error)| wrap(error))?;
    Ok((n_features, n_rows))
}

/// Whether a row, given by its columns in order, is a row of features that passes its checksum.
fn is_feature(row: &[Value]) -> bool {
    match row {
        [
            Value::Blob(descriptor),
            Value::Blob(image),
            Value::Blob(vector),
            Value::Blob(sum),
        ] => *sum == checksum(&[descriptor, image, vector]),
        _ => false,
    }
}

/// Whether a row is a vector with its digest.
fn is_vector(row: &[Value]) -> bool {
    match row {
        [Value::Blob(digest), Value::Blob(bytes)] => digest == Digest::of(bytes).as_bytes(),
        _ => false,
    }
}

fn runs(connection: &Connection) -> rusqlite::Result<Vec<Run>> {
    let mut select = connection.prepare_cached("SELECT id, project, record, checksum FROM run ORDER BY id")?;
    let mut rows = select.query([])?;
    let mut runs = Vec::new();
    while let Some(row) = rows.next()? {
        let (id, project, record, sum): (i64, String, String, Vec<u8>) =
            (row.get(0)?, row.get(1)?, row.get(2)?, row.get(3)?);
        let run = Run::read(id, &project, &record);
        match run.filter(|_| sum == run_checksum(id, &project, &record)) {
            Some(run) => runs.push(run),
            None => tracing::warn!("the record of run {id} fails its checksum; taken as missing"),
        }
    }
    Ok(runs)
}

/// Stores a run under its id. A run with the id 0 is stored as the newest.
fn store_run(connection: &Connection, run: &Run) -> rusqlite::Result<()> {
    let record = run.record();
    connection.execute(
        "INSERT OR REPLACE INTO run (id, project, record, checksum) VALUES (?, ?, ?, zeroblob(16))",
        params![(run.id != 0).then_some(run.id), run.project, record],
    )?;
    let id = connection.last_insert_rowid();
    connection.execute(
        "UPDATE run SET checksum = ? WHERE id = ?",
        params![run_checksum(id, &run.project, &record), id],
    )?;
    Ok(())
}

/// The first 16 bytes of blake3 over the parts, each preceded by its length.
fn checksum(parts: &[&[u8]]) -> [u8; 16] {
    let mut bytes = Vec::new();
    for part in parts {
        bytes.extend((part.len() as u64).to_le_bytes());
        bytes.extend(*part);
    }
    *Digest::of(&bytes)
        .as_bytes()
        .first_chunk()
        .expect("a digest has 32 bytes")
}

/// The bounds of the paths below a folder: the first possible path, and the first path that comes
/// after all of them.
fn below(folder: &str) -> (String, String) {
    let folder = folder.strip_suffix(MAIN_SEPARATOR).unwrap_or(folder);
    let after = char::from(MAIN_SEPARATOR as u8 + 1);
    (format!("{folder}{MAIN_SEPARATOR}"), format!("{folder}{after}"))
}

/// Inserts a vector, or replaces a damaged one. The result is its digest.
fn insert_vector(connection: &Connection, bytes: &[u8]) -> rusqlite::Result<Digest> {
    let digest = Digest::of(bytes);
    connection
        .prepare_cached("INSERT OR REPLACE INTO vector (digest, bytes) VALUES (?, ?)")?
        .execute(params![digest.as_bytes(), bytes])?;
    Ok(digest)
}

/// Inserts the features of an image, f32 little-endian.
fn insert_feature(connection: &Connection, descriptor: &Digest, image: &Digest, bytes: &[u8]) -> rusqlite::Result<()> {
    let vector = insert_vector(connection, bytes)?;
    let sum = feature_checksum(descriptor, image, &vector);
    connection
        .prepare_cached("INSERT OR REPLACE INTO feature (extractor, image, vector, checksum) VALUES (?, ?, ?, ?)")?
        .execute(params![descriptor.as_bytes(), image.as_bytes(), vector.as_bytes(), sum])?;
    Ok(())
}

fn feature_checksum(descriptor: &Digest, image: &Digest, vector: &Digest) -> [u8; 16] {
    checksum(&[descriptor.as_bytes(), image.as_bytes(), vector.as_bytes()])
}

fn file_checksum(path: &str, stat: &FileStat, digest: &Digest) -> [u8; 16] {
    let FileStat { size, mtime_ns, inode } = stat;
    checksum(&[
        path.as_bytes(),
        &size.to_le_bytes(),
        &mtime_ns.to_le_bytes(),
        &inode.to_le_bytes(),
        digest.as_bytes(),
    ])
}

fn folder_checksum(path: &str) -> [u8; 16] {
    checksum(&[b"folder", path.as_bytes()])
}

fn export_checksum(path: &str, stat: &FileStat, source: &Digest) -> [u8; 16] {
    checksum(&[b"export", &file_checksum(path, stat, source)])
}

fn run_checksum(id: i64, project: &str, record: &str) -> [u8; 16] {
    checksum(&[b"run", &id.to_le_bytes(), project.as_bytes(), record.as_bytes()])
}

/// The stat in columns 0 to 2: size, mtime_ns, inode. SQLite's integers are signed, but the bits
/// stay the same.
fn file_stat(row: &Row<'_>) -> rusqlite::Result<FileStat> {
    Ok(FileStat {
        size: row.get::<_, i64>(0)? as u64,
        mtime_ns: row.get(1)?,
        inode: row.get::<_, i64>(2)? as u64,
    })
}

pub(super) fn digest(row: &Row<'_>, column: usize) -> rusqlite::Result<Digest> {
    row.get::<_, [u8; 32]>(column).map(Digest::from_bytes)
}

/// A recorded execution, or `None` if the row fails its checksum.
fn execution(row: &Row<'_>) -> rusqlite::Result<Option<Execution>> {
    let key_digest = digest(row, 0)?;
    let (stage, parts, outputs): (String, String, String) = (row.get(1)?, row.get(2)?, row.get(3)?);
    let sum: Vec<u8> = row.get(5)?;
    let expected = checksum(&[
        key_digest.as_bytes(),
        stage.as_bytes(),
        parts.as_bytes(),
        outputs.as_bytes(),
    ]);
    let (Ok(parts), Ok((outputs, references))) = (serde_json::from_str(&parts), serde_json::from_str(&outputs)) else {
        return Ok(None);
    };
    if sum != expected {
        tracing::warn!("cached record of stage {stage} fails its checksum; taken as missing");
        return Ok(None);
    }
    Ok(Some(Execution {
        key: Key { stage, parts },
        outputs,
        seconds: row.get(4)?,
        references,
    }))
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;

    /// Interrupts the second time that it is asked.
    #[derive(Default)]
    struct Impatient(AtomicUsize);

    impl Observer for Impatient {
        fn task(&self, _: &str, _: u64) -> Box<dyn luthier_artifact::Task + '_> {
            Box::new(())
        }
        fn is_interrupted(&self) -> bool {
            self.0.fetch_add(1, Ordering::Relaxed) > 0
        }
    }

    #[test]
    fn a_statement_that_would_take_for_ever_ends_when_the_user_interrupts() {
        let folder = tempfile::tempdir().unwrap();
        let index = Index::open(&folder.path().join("index.sqlite")).unwrap();
        let for_ever = "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n) SELECT count(*) FROM n";
        let count = || index.with(|connection| connection.query_row(for_ever, [], |row| row.get::<_, i64>(0)));
        let start = Instant::now();
        let error = index.watched(&Impatient::default(), count).unwrap_err();
        assert!(matches!(error, Error::Interrupted), "{error}");
        assert!(start.elapsed() < Duration::from_secs(2), "{:?}", start.elapsed());
        assert_eq!(index.watched(&(), || index.count("run")).unwrap(), 0);
    }
}
