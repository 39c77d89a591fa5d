//! The file of one segment.
//!
//! | part | bytes |
//! |---|---|
//! | head | [`HEAD`] |
//! | each record | tag 4, length of the vector 4, descriptor 32, image 32, vector's digest 32, checksum of these 16, vector |
//! | index, once sealed | number of descriptors 8, descriptors 32 each; for each record: descriptor's place 4, length 4, offset 8, image 32, vector's digest 32 |
//! | end, once sealed | offset of the index 8, [`TAIL`] 8 |
//!
//! A sealed segment is named by the digest of its index. The index names every vector by its digest,
//! so that whatever is read of a segment can be checked, without reading the rest.
//!
//! Numbers are little-endian, offsets are those of vectors. Every length is a multiple of four, so
//! that a record after damage is found by looking at each fourth byte.

use std::fs::{self, File};
use std::io::{self, BufReader, ErrorKind, Read, Seek, SeekFrom, Write};
use std::ops::Range;
use std::path::{Path, PathBuf};

use luthier_artifact::{Digest, TEMPORARY, if_supported, remove, sync_folder, temporary_for};

use crate::{Error, Result};

/// The name of a sealed segment is the digest of its index, and this.
pub(super) const SEALED: &str = "segment";

/// The name of a segment that a process adds to ends with this.
pub(super) const OPEN: &str = "open";

const HEAD: &[u8; 16] = b"luthier segment1";
const TAIL: &[u8; 8] = b"segment1";
const TAG: &[u8; 4] = b"row:";

/// The bytes of a record before its vector.
pub(super) const RECORD: usize = 120;

/// The bytes that the checksum of a record stands for.
const CHECKED: usize = 104;

/// The bytes of a record in the index of a segment.
const ENTRY: usize = 80;

/// The bytes after the index.
pub(super) const END: usize = 16;

/// No vector is nearly as long, and none lies nearly as far. What says so is damaged.
const LONGEST: u32 = 1 << 26;
const MOST: u64 = 1 << 40;

/// What a segment says of a vector.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Record {
    /// What made the vector; [`LOOSE`] for a vector that belongs to a table alone.
    pub(super) descriptor: Digest,
    /// The image; [`LOOSE`] for a vector that belongs to a table alone.
    pub(super) image: Digest,
    /// The digest of the vector's bytes.
    pub(super) vector: Digest,
    /// Where the vector lies.
    pub(super) offset: u64,
    /// The length of the vector in bytes.
    pub(super) n_bytes: u32,
}

/// Stands for no descriptor and no image.
pub(super) const LOOSE: Digest = Digest::from_bytes([0; 32]);

impl Record {
    /// Whether a table alone has the vector, and no image.
    pub(super) fn is_loose(&self) -> bool {
        self.descriptor == LOOSE
    }

    /// Where the record ends.
    pub(super) fn end(&self) -> u64 {
        self.offset + u64::from(self.n_bytes)
    }
}

/// Records to be added to a segment, as bytes.
#[derive(Default)]
pub(super) struct Batch {
    bytes: Vec<u8>,
    /// Offsets are those in `bytes`.
    records: Vec<Record>,
}

impl Batch {
    pub(super) fn push(&mut self, descriptor: Digest, image: Digest, vector: &[u8]) {
        let start = self.bytes.len();
        let digest = Digest::of(vector);
        self.bytes.extend(TAG);
        self.bytes.extend((vector.len() as u32).to_le_bytes());
        for part in [&descriptor, &image, &digest] {
            self.bytes.extend(part.as_bytes());
        }
        let checksum = checksum(&self.bytes[start..]);
        self.bytes.extend(checksum);
        self.records.push(Record {
            descriptor,
            image,
            vector: digest,
            offset: self.bytes.len() as u64,
            n_bytes: vector.len() as u32,
        });
        self.bytes.extend(vector);
    }

    pub(super) fn is_empty(&self) -> bool {
        self.records.is_empty()
    }
}

/// A segment that this process adds to. Others see that it is, by its lock.
#[derive(Debug)]
pub(super) struct Writer {
    pub(super) path: PathBuf,
    file: File,
    /// The bytes of all whole records.
    end: u64,
    records: Vec<Record>,
}

impl Writer {
    /// Begins a segment in a folder, which is made if it is missing.
    pub(super) fn new(folder: &Path) -> Result<Self> {
        fs::create_dir_all(folder).map_err(Error::io(folder))?;
        // It gets its name once it is locked: before, another process would take it for a dead one's.
        let unnamed = temporary_for(&folder.join(OPEN)).map_err(Error::io(folder))?;
        unnamed.as_file().lock().map_err(|source| Error::Locks {
            path: unnamed.path().to_owned(),
            source,
        })?;
        let name = unnamed
            .path()
            .file_name()
            .unwrap_or_default()
            .to_string_lossy()
            .into_owned();
        let path = folder.join(format!("{}.{OPEN}", &name[TEMPORARY.len()..]));
        let file = unnamed.persist(&path).map_err(|error| Error::io(&path)(error.error))?;
        let mut writer = Writer {
            path,
            file,
            end: 0,
            records: Vec::new(),
        };
        writer.write(HEAD)?;
        Ok(writer)
    }

    /// Adds records, in one write: after that, a killed process has stored them. The result is these
    /// records, with their offsets in the segment.
    pub(super) fn add(&mut self, batch: Batch) -> Result<&[Record]> {
        let start = self.end;
        self.write(&batch.bytes)?;
        let n_before = self.records.len();
        self.records.extend(batch.records.into_iter().map(|record| Record {
            offset: start + record.offset,
            ..record
        }));
        Ok(&self.records[n_before..])
    }

    fn write(&mut self, bytes: &[u8]) -> Result<()> {
        let written = self
            .file
            .seek(SeekFrom::Start(self.end))
            .and_then(|_| self.file.write_all(bytes));
        if let Err(error) = written {
            // What was written in part is written over by the next, or cut off.
            let _ = self.file.set_len(self.end);
            return Err(Error::io(&self.path)(error));
        }
        self.end += bytes.len() as u64;
        Ok(())
    }

    /// Removes the segment.
    pub(super) fn discard(self) -> Result<()> {
        Ok(remove(&self.path)?)
    }

    /// The bytes of the segment until now.
    pub(super) fn n_bytes(&self) -> u64 {
        self.end
    }

    /// Ends the segment. The result is its path, if it has any record.
    pub(super) fn seal(self) -> Result<Option<PathBuf>> {
        seal(&self.path, &self.file, self.end, &self.records)
    }
}

/// Ends the segment of a process that has died: with its whole records. The result is its path, if it
/// has any. `None` if the process lives, too.
pub(super) fn adopt(path: &Path) -> Result<Option<PathBuf>> {
    let file = match File::options().read(true).write(true).open(path) {
        // Its process has ended it meanwhile.
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
        other => other.map_err(Error::io(path))?,
    };
    match file.try_lock() {
        Ok(()) => {}
        Err(fs::TryLockError::WouldBlock) => return Ok(None),
        Err(fs::TryLockError::Error(source)) => {
            return Err(Error::Locks {
                path: path.to_owned(),
                source,
            });
        }
    }
    let io = |error| Error::io(path)(error);
    // It may have been ended between its opening and its lock, or its process was killed before the last step.
    if let Some((_, digest)) = sealed_records(&file).map_err(io)? {
        return rename(path, &digest);
    }
    let scanned = scan(&file, 0).map_err(io)?;
    if scanned.n_damaged > 0 {
        tracing::warn!(
            "{}: {} features are damaged; to be computed again",
            path.display(),
            scanned.n_damaged
        );
    }
    seal(path, &file, scanned.end, &scanned.records)
}

fn seal(path: &Path, mut file: &File, end: u64, records: &[Record]) -> Result<Option<PathBuf>> {
    if records.is_empty() {
        remove(path)?;
        return Ok(None);
    }
    let mut bytes = index(records);
    let digest = Digest::of(&bytes);
    bytes.extend(end.to_le_bytes());
    bytes.extend(TAIL);
    let written = file
        .set_len(end)
        .and_then(|()| file.seek(SeekFrom::Start(end)))
        .and_then(|_| file.write_all(&bytes))
        .and_then(|()| file.sync_all());
    written.map_err(Error::io(path))?;
    rename(path, &digest)
}

/// The name of the file of a sealed segment, by the digest of its index.
pub(super) fn sealed_name(digest: &Digest) -> String {
    format!("{digest}.{SEALED}")
}

/// The digest that a sealed segment is named by.
pub(super) fn named(path: &Path) -> Option<Digest> {
    path.file_stem()?.to_str()?.parse().ok()
}

/// Gives a segment the name that its index has.
fn rename(path: &Path, digest: &Digest) -> Result<Option<PathBuf>> {
    let sealed = path.with_file_name(sealed_name(digest));
    match fs::rename(path, &sealed) {
        // Another process has done it.
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
        other => other.map_err(Error::io(path))?,
    }
    let folder = luthier_artifact::folder_of(&sealed);
    if_supported(sync_folder(folder)).map_err(Error::io(folder))?;
    Ok(Some(sealed))
}

/// The index of a segment with these records.
fn index(records: &[Record]) -> Vec<u8> {
    let mut descriptors: Vec<Digest> = records.iter().map(|record| record.descriptor).collect();
    descriptors.sort_unstable();
    descriptors.dedup();
    let mut bytes = (descriptors.len() as u64).to_le_bytes().to_vec();
    descriptors
        .iter()
        .for_each(|descriptor| bytes.extend(descriptor.as_bytes()));
    for record in records {
        let place = descriptors.partition_point(|descriptor| *descriptor < record.descriptor);
        bytes.extend((place as u32).to_le_bytes());
        bytes.extend(record.n_bytes.to_le_bytes());
        bytes.extend(record.offset.to_le_bytes());
        bytes.extend(record.image.as_bytes());
        bytes.extend(record.vector.as_bytes());
    }
    bytes
}

/// The records that the index of a sealed segment names. `None` if it does not have the index that it is named by.
pub(super) fn named_records(path: &Path, file: &File) -> io::Result<Option<Vec<Record>>> {
    let sealed = sealed_records(file)?.filter(|(_, digest)| named(path) == Some(*digest));
    Ok(sealed.map(|(records, _)| records))
}

/// The records that the index of a segment names, and the name that the segment should have. `None` if it has no index.
fn sealed_records(mut file: &File) -> io::Result<Option<(Vec<Record>, Digest)>> {
    let n_bytes = file.metadata()?.len();
    let Some(end) = n_bytes.checked_sub(END as u64) else {
        return Ok(None);
    };
    let mut last = [0; END];
    file.seek(SeekFrom::Start(end))?;
    file.read_exact(&mut last)?;
    let Some(index) = index_of(&last, n_bytes) else {
        return Ok(None);
    };
    let mut bytes = vec![0; (index.end - index.start) as usize];
    file.seek(SeekFrom::Start(index.start))?;
    file.read_exact(&mut bytes)?;
    Ok(records_of(&bytes).map(|records| (records, Digest::of(&bytes))))
}

/// Where the index of a segment of `n_bytes` lies, by the last of them.
pub(super) fn index_of(last: &[u8], n_bytes: u64) -> Option<Range<u64>> {
    let end = n_bytes.checked_sub(END as u64)?;
    let start = (last.len() == END && last[8..] == TAIL[..]).then(|| u64_at(last, 0))?;
    (start <= end).then_some(start..end)
}

/// The records that an index names. `None` if it has another form.
pub(super) fn records_of(bytes: &[u8]) -> Option<Vec<Record>> {
    let (n_descriptors, rest) = bytes
        .split_first_chunk()
        .map(|(n, rest)| (u64::from_le_bytes(*n), rest))?;
    let n_descriptors = usize::try_from(n_descriptors).ok()?;
    let (descriptors, entries) = rest.split_at_checked(n_descriptors.checked_mul(32)?)?;
    let record = |entry: &[u8]| {
        let place = u32_at(entry, 0) as usize;
        let record = Record {
            descriptor: (place < n_descriptors).then(|| digest_at(descriptors, 32 * place))?,
            n_bytes: u32_at(entry, 4),
            offset: u64_at(entry, 8),
            image: digest_at(entry, 16),
            vector: digest_at(entry, 48),
        };
        (record.offset <= MOST && record.n_bytes <= LONGEST).then_some(record)
    };
    let records: Vec<Record> = entries.chunks_exact(ENTRY).map(record).collect::<Option<_>>()?;
    records.is_sorted_by(|a, b| a.end() <= b.offset).then_some(records)
}

/// What reading a segment record by record has found.
#[derive(Debug, Default)]
pub(super) struct Scanned {
    /// The whole records, in order.
    pub(super) records: Vec<Record>,
    /// Where the last whole record ends. After it there is nothing, or a record that is being written.
    pub(super) end: u64,
    /// How many records are damaged, as far as they are known to have been there.
    pub(super) n_damaged: usize,
}

/// Reads what a segment says of its vectors, record by record, from `start`, where a record begins, or the file.
/// What is damaged is left out. Vectors are not read: a damaged one is found when it is asked for.
pub(super) fn scan(file: &File, start: u64) -> io::Result<Scanned> {
    let n_bytes = file.metadata()?.len();
    let mut reader = BufReader::with_capacity(1 << 16, file);
    let mut at = start.max(HEAD.len() as u64);
    let mut scanned = Scanned {
        end: at.min(n_bytes),
        ..Scanned::default()
    };
    let mut is_lost = false;
    let mut head = [0; RECORD];
    let mut position = reader.seek(SeekFrom::Start(at))?;
    while at + RECORD as u64 <= n_bytes {
        reader.seek_relative(at as i64 - position as i64)?;
        match reader.read_exact(&mut head) {
            // The file has become shorter meanwhile: its process has undone what it could not write.
            Err(error) if error.kind() == ErrorKind::UnexpectedEof => break,
            done => done?,
        }
        position = at + RECORD as u64;
        let record = record(&head, position).filter(|record| record.end() <= n_bytes);
        let Some(record) = record else {
            scanned.n_damaged += usize::from(!is_lost);
            is_lost = true;
            at += 4;
            continue;
        };
        is_lost = false;
        at = record.end();
        scanned.records.push(record);
        scanned.end = at;
    }
    // What follows the last whole record is being written, or was when its process ended.
    scanned.n_damaged -= usize::from(is_lost);
    Ok(scanned)
}

/// A record, given by what comes before its vector, if that is whole.
fn record(head: &[u8; RECORD], offset: u64) -> Option<Record> {
    let n_bytes = u32_at(head, 4);
    let is_whole = head[..4] == TAG[..] && n_bytes <= LONGEST && head[CHECKED..] == checksum(&head[..CHECKED]);
    is_whole.then(|| Record {
        descriptor: digest_at(head, 8),
        image: digest_at(head, 40),
        vector: digest_at(head, 72),
        offset,
        n_bytes,
    })
}

fn checksum(bytes: &[u8]) -> [u8; RECORD - CHECKED] {
    let digest = Digest::of(bytes);
    *digest.as_bytes().first_chunk().expect("a digest is longer")
}

fn digest_at(bytes: &[u8], at: usize) -> Digest {
    Digest::from_bytes(bytes[at..at + 32].try_into().expect("32 bytes"))
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(bytes[at..at + 4].try_into().expect("4 bytes"))
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(bytes[at..at + 8].try_into().expect("8 bytes"))
}
