//! The file of the index, as SQLite keeps it.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use luthier_artifact::remove;
use rusqlite::{Connection, ErrorCode, OpenFlags, TransactionBehavior, ffi};

use super::{KINDS, RECORDS, store, whole};
use crate::lock::Lock;
use crate::{Error, Result};

/// Changes with `schema.sql` and with what its records hold. Kept in SQLite's `user_version`.
const LAYOUT: i64 = 5;

/// SQLite's `application_id` is this number plus the layout. If the two places disagree on the
/// layout, the header is damaged.
const APPLICATION: i64 = 0x4c55_5400;

/// How long to wait for another process's transaction.
const BUSY_TIMEOUT: Duration = Duration::from_secs(60);

/// The records of `index.sqlite`. Those that fail their checksum are missing, with a warning.
///
/// All of them can be made again in seconds. So a damaged index is replaced by a new one, which begins
/// with what SQLite can still read. That needs the cache's lock exclusively: SQLite removes the log of
/// an index by its name, and the name must not belong to another file. While other processes have the
/// cache open, this process goes on with an empty index in memory.
#[derive(Debug)]
pub(crate) struct Index {
    path: PathBuf,
    lock: Arc<Lock>,
    connection: Mutex<Connection>,
}

impl Index {
    pub(crate) fn open(path: &Path, lock: Arc<Lock>) -> Result<Self> {
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
    pub(crate) fn copy(from: &Path, to: &Path) -> Result<()> {
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

    /// Gives the space of deleted records back to the file system.
    pub(crate) fn shrink(&self) -> Result<()> {
        self.with(|connection| {
            connection.execute_batch("VACUUM")?;
            connection.query_row("PRAGMA wal_checkpoint(TRUNCATE)", [], |_| Ok(()))
        })
    }

    /// What SQLite finds wrong with the file, if anything. The index is then replaced by a new one
    /// with all that can be read.
    pub(crate) fn check(&self) -> Result<Option<String>> {
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

/// Checks that the index has this layout, with every column. What a user added to it, such as an
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

/// The columns of the table, with their places in its key.
fn structure(connection: &Connection) -> rusqlite::Result<BTreeSet<String>> {
    let columns = "SELECT printf('column %s %s %d %d', name, type, \"notnull\", pk) FROM pragma_table_info('record')";
    let mut select = connection.prepare(columns)?;
    select.query_map([], |row| row.get(0))?.collect()
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

/// Copies the whole records, as far as SQLite can read them.
fn copy_readable(old: &Path, new: &Connection) -> rusqlite::Result<usize> {
    let Ok(old) = Connection::open_with_flags(old, OpenFlags::SQLITE_OPEN_READ_ONLY) else {
        return Ok(0);
    };
    let transaction = new.unchecked_transaction()?;
    let mut n_copied = 0;
    // SQLite reads as far as the first damage. Each kind is looked up by itself, so that damage in one is not the end.
    for kind in KINDS {
        let Ok(mut select) = old.prepare(RECORDS) else { break };
        let Ok(mut rows) = select.query([kind]) else { continue };
        while let Ok(Some(row)) = rows.next() {
            if let Ok(Some((key, value))) = whole(kind, row) {
                store(&transaction, kind, key, value)?;
                n_copied += 1;
            }
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
