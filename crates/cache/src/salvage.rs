//! Finds what is still whole in a damaged index.
//!
//! SQLite stops reading at a damaged page. A damaged page near the root of a table hides most of
//! the table's rows. Features cost hours, so every page is searched for them. A row's checksum
//! tells whether it is genuine. A row that was deleted long ago does no harm, because features
//! never change. See "Database File Format" in SQLite's documentation, sections 1.6, 2.1 and 4.

use std::collections::HashMap;
use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};
use std::path::Path;

use rusqlite::types::Value;
use rusqlite::{Connection, OpenFlags, params_from_iter};

use crate::{Error, Result};

/// The index is made with this size of page.
pub(super) const PAGE: usize = 4096;

/// No row of features is nearly as long. A longer length is damage.
const LARGEST_ROW: usize = 1 << 24;

const LOG_HEADER: u64 = 32;
const FRAME_HEADER: usize = 24;

/// Copies the rows of tables, as far as SQLite can read them. Rows are checked when they are used.
pub(super) fn copy_readable(old: &Path, new: &Connection, tables: &[&str]) -> rusqlite::Result<usize> {
    let Ok(old) = Connection::open_with_flags(old, OpenFlags::SQLITE_OPEN_READ_ONLY) else {
        return Ok(0);
    };
    let mut n_copied = 0;
    for table in tables {
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
            if let Ok(values) = values {
                n_copied += insert.execute(params_from_iter(values))?;
            }
        }
    }
    Ok(n_copied)
}

/// Finds the rows of tables with row ids, in the file and in its write-ahead log. `accept` says
/// whether a row is genuine.
///
/// # Errors
/// [`Error::File`] if the file cannot be read, and what `accept` returns.
pub(super) fn carve(path: &Path, log: &Path, mut accept: impl FnMut(Vec<Value>) -> Result<bool>) -> Result<()> {
    let mut pages = Pages::open(path, log)?;
    let places: Vec<Place> = pages.places().collect();
    let mut page = vec![0; PAGE];
    for place in places {
        pages.read(place, &mut page).map_err(Error::io(path))?;
        // The first page begins with the header of the file.
        let start = if place == Place::File(0) { 100 } else { 0 };
        for cell in cells(&page, start) {
            // Where a later page of the log is damaged, the row may still be whole in the file.
            for prefer in [Prefer::Log, Prefer::File] {
                let row = pages.payload(&page, cell, prefer).map_err(Error::io(path))?;
                let Some(row) = row.as_deref().and_then(record) else {
                    continue;
                };
                if accept(row)? {
                    break;
                }
            }
        }
    }
    Ok(())
}

/// Where a page lies, as an offset in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Place {
    File(u64),
    Log(u64),
}

/// Which of a page's two versions is read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Prefer {
    Log,
    File,
}

struct Pages {
    file: File,
    file_bytes: u64,
    log: Option<File>,
    log_bytes: u64,
    /// The last version of each page in the log, by page number.
    latest: HashMap<u32, u64>,
}

impl Pages {
    fn open(path: &Path, log_path: &Path) -> Result<Self> {
        let file = File::open(path).map_err(Error::io(path))?;
        let file_bytes = file.metadata().map_err(Error::io(path))?.len();
        let log = match File::open(log_path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => None,
            other => Some(other.map_err(Error::io(log_path))?),
        };
        let log_bytes = match &log {
            Some(log) => log.metadata().map_err(Error::io(log_path))?.len(),
            None => 0,
        };
        let mut pages = Pages {
            file,
            file_bytes,
            log,
            log_bytes,
            latest: HashMap::new(),
        };
        pages.find_latest().map_err(Error::io(log_path))?;
        Ok(pages)
    }

    /// The frames of the log's current round carry the salts of its header. Other frames are left
    /// over from earlier rounds.
    fn find_latest(&mut self) -> io::Result<()> {
        let Some(log) = self.log.as_mut().filter(|_| self.log_bytes >= LOG_HEADER) else {
            return Ok(());
        };
        let mut header = [0; LOG_HEADER as usize];
        read_at(log, 0, &mut header)?;
        let mut frame = [0; FRAME_HEADER];
        for offset in frames(self.log_bytes) {
            read_at(log, offset, &mut frame)?;
            if frame[8..16] == header[16..24] {
                self.latest.insert(be32(&frame[..4]), offset + FRAME_HEADER as u64);
            }
        }
        Ok(())
    }

    fn places(&self) -> impl Iterator<Item = Place> + use<> {
        let in_file = (0..self.file_bytes / PAGE as u64).map(|page| Place::File(page * PAGE as u64));
        let in_log = frames(self.log_bytes).map(|offset| Place::Log(offset + FRAME_HEADER as u64));
        in_file.chain(in_log)
    }

    fn read(&mut self, place: Place, page: &mut [u8]) -> io::Result<()> {
        match (place, &mut self.log) {
            (Place::Log(offset), Some(log)) => read_at(log, offset, page),
            (Place::Log(offset) | Place::File(offset), _) => read_at(&mut self.file, offset, page),
        }
    }

    fn place(&self, number: u32, prefer: Prefer) -> Option<Place> {
        let in_log = self.latest.get(&number).filter(|_| prefer == Prefer::Log);
        let offset = u64::from(number.checked_sub(1)?) * PAGE as u64;
        match in_log {
            Some(&offset) => Some(Place::Log(offset)),
            None => (offset + PAGE as u64 <= self.file_bytes).then_some(Place::File(offset)),
        }
    }

    /// The payload of a cell: its beginning lies in the page, the rest in a chain of pages.
    fn payload(&mut self, page: &[u8], cell: usize, prefer: Prefer) -> io::Result<Option<Vec<u8>>> {
        let Some((length, local, mut next)) = begin(page, cell) else {
            return Ok(None);
        };
        let mut payload = local.to_vec();
        let mut more = [0; PAGE];
        while payload.len() < length {
            let Some(place) = self.place(next, prefer) else {
                return Ok(None);
            };
            self.read(place, &mut more)?;
            next = be32(&more[..4]);
            payload.extend(&more[4..][..(length - payload.len()).min(PAGE - 4)]);
        }
        Ok(Some(payload))
    }
}

fn frames(log_bytes: u64) -> impl Iterator<Item = u64> {
    let frame = (FRAME_HEADER + PAGE) as u64;
    (0..log_bytes.saturating_sub(LOG_HEADER) / frame).map(move |number| LOG_HEADER + number * frame)
}

fn read_at(file: &mut File, offset: u64, bytes: &mut [u8]) -> io::Result<()> {
    file.seek(SeekFrom::Start(offset))?;
    file.read_exact(bytes)
}

fn be32(bytes: &[u8]) -> u32 {
    bytes.iter().fold(0, |value, &byte| value << 8 | u32::from(byte))
}

/// Where the cells of a leaf of a table begin; none if the page is no such leaf.
fn cells(page: &[u8], start: usize) -> Vec<usize> {
    const TABLE_LEAF: u8 = 13;
    let Some((&[TABLE_LEAF, _, _, high, low, ..], pointers)) = page[start..].split_at_checked(8) else {
        return Vec::new();
    };
    let n_cells = usize::from(high) << 8 | usize::from(low);
    pointers
        .chunks_exact(2)
        .take(n_cells)
        .map(|pointer| usize::from(pointer[0]) << 8 | usize::from(pointer[1]))
        .collect()
}

/// The length of a cell's payload, the part that lies in the page, and the number of the page where
/// it goes on.
fn begin(page: &[u8], cell: usize) -> Option<(usize, &[u8], u32)> {
    let (length, n) = varint(page.get(cell..)?)?;
    let (_row_id, m) = varint(page.get(cell + n..)?)?;
    let length = usize::try_from(length).ok().filter(|&length| length <= LARGEST_ROW)?;
    let (most, least) = (PAGE - 35, (PAGE - 12) * 32 / 255 - 23);
    if length <= most {
        return Some((length, page.get(cell + n + m..)?.get(..length)?, 0));
    }
    let local = match least + (length - least) % (PAGE - 4) {
        local if local <= most => local,
        _ => least,
    };
    let (local, rest) = page.get(cell + n + m..)?.split_at_checked(local)?;
    Some((length, local, be32(rest.get(..4)?)))
}

/// A number in SQLite's variable length, and how many bytes it takes.
fn varint(bytes: &[u8]) -> Option<(u64, usize)> {
    let mut value = 0;
    for (place, &byte) in bytes.iter().take(9).enumerate() {
        if place == 8 {
            return Some((value << 8 | u64::from(byte), 9));
        }
        value = value << 7 | u64::from(byte & 0x7f);
        if byte < 0x80 {
            return Some((value, place + 1));
        }
    }
    None
}

/// The values of a row.
fn record(payload: &[u8]) -> Option<Vec<Value>> {
    let (header, mut at) = varint(payload)?;
    let header = usize::try_from(header).ok()?;
    let mut body = header;
    let mut values = Vec::new();
    while at < header {
        let (kind, n) = varint(payload.get(at..header)?)?;
        at += n;
        let length = match kind {
            0 | 8 | 9 => 0,
            1..=4 => kind,
            5 => 6,
            6 | 7 => 8,
            10 | 11 => return None,
            _ => (kind - 12) / 2,
        };
        let end = body.checked_add(usize::try_from(length).ok()?)?;
        let bytes = payload.get(body..end)?;
        body = end;
        values.push(match kind {
            0 => Value::Null,
            8 => Value::Integer(0),
            9 => Value::Integer(1),
            7 => Value::Real(f64::from_be_bytes(bytes.try_into().ok()?)),
            1..=6 => Value::Integer(integer(bytes)),
            _ if kind % 2 == 0 => Value::Blob(bytes.to_vec()),
            _ => Value::Text(String::from_utf8(bytes.to_vec()).ok()?),
        });
    }
    Some(values)
}

/// A big-endian number in two's complement.
fn integer(bytes: &[u8]) -> i64 {
    let sign = if bytes[0] < 0x80 { 0 } else { -1 };
    bytes.iter().fold(sign, |value, &byte| value << 8 | i64::from(byte))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn carving_finds_what_sqlite_reads() {
        let folder = tempfile::tempdir().unwrap();
        let (path, log) = (folder.path().join("rows"), folder.path().join("rows-wal"));
        let connection = Connection::open(&path).unwrap();
        connection.pragma_update(None, "journal_mode", "WAL").unwrap();
        connection.execute_batch("CREATE TABLE value (a, b, c, d, e)").unwrap();
        let integers = [
            0,
            1,
            -1,
            127,
            -128,
            300,
            -70_000,
            1 << 30,
            -(1 << 40),
            i64::MAX,
            i64::MIN,
        ];
        // Lengths around those where a row goes on in another page, and in one more.
        let lengths = [0, 1, 400, 4000, 4010, 4020, 4061, 4500, 8000, 8192, 12_000, 70_000];
        for (n, length) in lengths.into_iter().enumerate() {
            let row = [
                Value::Null,
                Value::Integer(integers[n % integers.len()]),
                Value::Real(n as f64 / 3.0),
                Value::Text("ü".repeat(n)),
                Value::Blob(vec![n as u8; length]),
            ];
            connection
                .execute("INSERT INTO value VALUES (?, ?, ?, ?, ?)", params_from_iter(row))
                .unwrap();
            if n == lengths.len() / 2 {
                // One half lies in the file, the other in the log.
                connection
                    .query_row("PRAGMA wal_checkpoint(TRUNCATE)", [], |_| Ok(()))
                    .unwrap();
            }
        }
        let mut stored: Vec<Vec<Value>> = connection
            .prepare("SELECT * FROM value")
            .unwrap()
            .query_map([], |row| (0..5).map(|column| row.get(column)).collect())
            .unwrap()
            .map(|row: rusqlite::Result<_>| row.unwrap())
            .collect();
        let mut found = Vec::new();
        carve(&path, &log, |row| {
            if row.len() == 5 && row[0] == Value::Null && !found.contains(&row) {
                found.push(row);
            }
            Ok(true)
        })
        .unwrap();
        let by_length = |row: &Vec<Value>| match &row[4] {
            Value::Blob(bytes) => bytes.len(),
            other => panic!("{other:?}"),
        };
        found.sort_by_key(by_length);
        stored.sort_by_key(by_length);
        assert!(found == stored, "{} rows found, {} stored", found.len(), stored.len());
    }
}
