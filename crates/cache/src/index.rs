use std::cmp::Ordering;
use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io;
use std::path::{MAIN_SEPARATOR, Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use luthier_artifact::{Digest, FileStat, Key, Observer, file_names, remove};
use rusqlite::types::Value;
use rusqlite::{
    Connection, ErrorCode, OpenFlags, OptionalExtension, Row, TransactionBehavior, ffi, params, params_from_iter,
};

use crate::lock::Lock;
use crate::run::Run;
use crate::{Error, Execution, PastExecution, Result};

/// Changes with `schema.sql` and with what its columns hold. Kept in SQLite's `user_version`.
const LAYOUT: i64 = 4;

/// SQLite's `application_id` is this number plus the layout. If the two places disagree on the
/// layout, the header is damaged.
const APPLICATION: i64 = 0x4c55_5400;

/// How long to wait for another process's transaction.
const BUSY_TIMEOUT: Duration = Duration::from_secs(60);

/// After how many rows a long loop looks whether the user interrupts.
const ROWS_BETWEEN_LOOKS: usize = 1024;

/// The tables of `schema.sql`.
const TABLES: [&str; 5] = ["execution", "run", "export", "file", "folder"];

/// `index.sqlite`: what stages made of keys, the runs, and what is known of files.
///
/// All of it can be made again in seconds. So a damaged index is replaced by a new one, which begins
/// with what SQLite can still read. That needs the cache's lock exclusively: SQLite removes the log of
/// an index by its name, and the name must not belong to another file. While other processes have the
/// cache open, this process goes on with an empty index in memory.
#[derive(Debug)]
pub(super) struct Index {
    path: PathBuf,
    lock: Arc<Lock>,
    connection: Mutex<Connection>,
}

impl Index {
    pub(super) fn open(path: &Path, lock: Arc<Lock>) -> Result<Self> {
        let connection = match connect(path) {
            Err(Error::Index { source, .. }) if is_damaged(&source) => renew(path, &lock, &source)?,
            other => other?,
        };
        Ok(Index {
            path: path.to_owned(),
            lock,
            connection: Mutex::new(connection),
        })
    }

    /// Copies an index that cannot be written, with its write-ahead log, to where there is none. If
    /// there is no room for them, a warning says so, and nothing is copied.
    pub(super) fn copy(from: &Path, to: &Path) -> Result<()> {
        let copy = |suffix| {
            // Not `fs::copy`: it copies the permissions too, and this copy is to be written.
            let mut file = File::open(beside(from, suffix))?;
            io::copy(&mut file, &mut File::create(beside(to, suffix))?)
        };
        // The log comes second: what a process moves from it to the index meanwhile, it still has.
        let error = match copy("").and_then(|_| copy("-wal")) {
            Ok(_) => return Ok(()),
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            Err(error) => Error::io(from)(error),
        };
        if !error.is_disk_full() {
            return Err(error);
        }
        tracing::warn!(
            "{}: no room for a copy of it at {}: stages run again, features are found",
            from.display(),
            to.display()
        );
        ["", "-wal"]
            .iter()
            .try_for_each(|suffix| Ok(remove(&beside(to, suffix))?))
    }

    /// Runs a query. If the query meets damage, it runs again on a new index, so it must start
    /// from nothing each time.
    pub(super) fn with<T>(&self, mut query: impl FnMut(&mut Connection) -> rusqlite::Result<T>) -> Result<T> {
        let mut connection = self.connection();
        match query(&mut connection) {
            Err(error) if is_damaged(&error) => {
                self.renew(&mut connection, &error)?;
                query(&mut connection)
            }
            other => other,
        }
        .map_err(wrap(&self.path))
    }

    /// Runs statements in one transaction. It takes the write lock at its start: a transaction that
    /// begins with a read could fail for good if another process wrote in between.
    pub(super) fn write<T>(&self, mut query: impl FnMut(&Connection) -> rusqlite::Result<T>) -> Result<T> {
        self.with(|connection| {
            let transaction = connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
            let value = query(&transaction)?;
            transaction.commit()?;
            Ok(value)
        })
    }

    /// Gives the space of deleted rows back to the file system.
    pub(super) fn shrink(&self) -> Result<()> {
        self.with(|connection| {
            connection.execute_batch("VACUUM")?;
            connection.query_row("PRAGMA wal_checkpoint(TRUNCATE)", [], |_| Ok(()))
        })
    }

    /// What SQLite finds wrong with the file, if anything. The index is then replaced by a new one
    /// with all that can be read.
    pub(super) fn check(&self) -> Result<Option<String>> {
        let complaint: String =
            self.with(|connection| connection.query_row("PRAGMA integrity_check(1)", [], |row| row.get(0)))?;
        if complaint == "ok" {
            return Ok(None);
        }
        // The first line of a complaint about a page only names the database.
        let complaint = complaint.lines().last().unwrap_or_default().to_owned();
        self.renew(&mut self.connection(), &corrupt(&complaint))?;
        Ok(Some(complaint))
    }

    fn renew(&self, connection: &mut Connection, cause: &rusqlite::Error) -> Result<()> {
        // Closed first: the damaged file gets another name.
        *connection = in_memory(&self.path)?;
        *connection = renew(&self.path, &self.lock, cause)?;
        Ok(())
    }

    /// A poisoned lock does no harm: SQLite rolls a transaction back when it is dropped.
    fn connection(&self) -> MutexGuard<'_, Connection> {
        self.connection.lock().unwrap_or_else(PoisonError::into_inner)
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
fn is_damaged(error: &rusqlite::Error) -> bool {
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

/// Replaces a damaged index by a new one with what SQLite can still read. The damaged one is kept for
/// inspection. A process that is killed meanwhile leaves none, or an empty one: all is made again.
fn renew(path: &Path, lock: &Lock, cause: &rusqlite::Error) -> Result<Connection> {
    let _alone = match lock.exclusive() {
        Err(Error::InUse { .. }) => {
            tracing::warn!(
                "{}: damaged ({cause}); another process has it open, so this process goes on without it: \
                 stages run again, features are found",
                path.display()
            );
            return in_memory(path);
        }
        other => other?,
    };
    let aside = beside(path, ".damaged");
    for suffix in ["-wal", "-shm", ""] {
        let (from, to) = (beside(path, suffix), beside(path, &format!(".damaged{suffix}")));
        match fs::rename(&from, &to) {
            // A log of another damaged index does not belong to this one.
            Err(error) if error.kind() == io::ErrorKind::NotFound => remove(&to)?,
            other => other.map_err(Error::io(&from))?,
        }
    }
    let connection = connect(path)?;
    let n_rows = copy_readable(&aside, &connection).map_err(wrap(path))?;
    tracing::warn!(
        "{}: damaged ({cause}); moved to {}; a new index begins with {n_rows} of its records",
        path.display(),
        aside.display()
    );
    Ok(connection)
}

/// Copies the rows of all tables, as far as SQLite can read them. Rows are checked when they are used.
fn copy_readable(old: &Path, new: &Connection) -> rusqlite::Result<usize> {
    let Ok(old) = Connection::open_with_flags(old, OpenFlags::SQLITE_OPEN_READ_ONLY) else {
        return Ok(0);
    };
    let transaction = new.unchecked_transaction()?;
    let mut n_copied = 0;
    for table in TABLES {
        let Ok(mut select) = old.prepare(&format!("SELECT * FROM {table}")) else {
            continue;
        };
        let width = select.column_count();
        let places = vec!["?"; width].join(", ");
        let Ok(mut insert) = new.prepare(&format!("INSERT OR IGNORE INTO {table} VALUES ({places})")) else {
            continue;
        };
        let Ok(mut rows) = select.query([]) else { continue };
        while let Ok(Some(row)) = rows.next() {
            let values: rusqlite::Result<Vec<Value>> = (0..width).map(|column| row.get(column)).collect();
            let Ok(values) = values else { continue };
            n_copied += match insert.execute(params_from_iter(values)) {
                // A value of another type than its column.
                Err(error) if error.sqlite_error_code() == Some(ErrorCode::ConstraintViolation) => 0,
                other => other?,
            };
        }
    }
    transaction.commit()?;
    Ok(n_copied)
}

/// An empty index that is gone when the process ends.
fn in_memory(path: &Path) -> Result<Connection> {
    let connection = Connection::open_in_memory().map_err(wrap(path))?;
    make(&connection).map_err(wrap(path))?;
    Ok(connection)
}

/// The path of the index with a suffix after its name.
fn beside(path: &Path, suffix: &str) -> PathBuf {
    path.with_extension(format!("sqlite{suffix}"))
}

fn runs(connection: &Connection) -> rusqlite::Result<Vec<Run>> {
    let mut select = connection.prepare_cached("SELECT id, project, record, checksum FROM run ORDER BY id")?;
    let mut rows = select.query([])?;
    let mut runs = Vec::new();
    while let Some(row) = rows.next()? {
        let (id, project, record, sum): (i64, String, String, Vec<u8>) =
            (row.get(0)?, row.get(1)?, row.get(2)?, row.get(3)?);
        let run: Option<Run> = serde_json::from_str(&record).ok();
        match run.filter(|_| sum == run_checksum(id, &project, &record)) {
            Some(run) => runs.push(Run { id, project, ..run }),
            None => tracing::warn!("the record of run {id} fails its checksum; taken as missing"),
        }
    }
    Ok(runs)
}

/// Stores a run under its id. A run with the id 0 is stored as the newest.
fn store_run(connection: &Connection, run: &Run) -> rusqlite::Result<()> {
    let record = serde_json::to_string(run).expect("plain data always serialize");
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

#[cfg(all(test, target_os = "linux"))]
mod tests {
    use super::*;

    #[test]
    fn an_index_that_finds_no_room_is_not_copied() {
        let folder = tempfile::tempdir().unwrap();
        let [from, to] = ["index.sqlite", "copy.sqlite"].map(|name| folder.path().join(name));
        fs::write(&from, "an index").unwrap();
        // What is written there finds the disk full.
        std::os::unix::fs::symlink("/dev/full", &to).unwrap();
        Index::copy(&from, &to).unwrap();
        assert!(fs::symlink_metadata(&to).is_err());
    }
}
