//! What is where in the segments, in memory.

use std::collections::{BTreeMap, HashMap};
use std::fs::File;
use std::io::{self, ErrorKind, Read, Seek, SeekFrom};
use std::ops::Range;
use std::path::{Path, PathBuf};

use hashbrown::HashTable;
use luthier_artifact::{Digest, entries};

use super::file::{LOOSE, OPEN, RECORD, Record, SEALED, Writer, adopt, named, named_records, scan};
use super::remote::Remote;
use super::{Copied, SMALL};
use crate::{Error, Result};

/// How much is read at once, and over which gap between two vectors.
const READ: u64 = 4 << 20;
const GAP: u64 = 64 << 10;

/// How often the folder is listed, if what was listed is gone when it is looked at.
const LISTINGS: usize = 5;

/// What the segments on the disk hold, as far as it was looked at.
#[derive(Debug, Default)]
pub(super) struct Known {
    pub(super) segments: Vec<Segment>,
    /// The places of the segments by their paths.
    pub(super) paths: HashMap<PathBuf, u32>,
    pub(super) descriptors: Vec<Digest>,
    /// The places of the descriptors.
    pub(super) places: HashMap<Digest, u32>,
    pub(super) rows: Vec<Row>,
    /// The places of the rows that images have, one for each descriptor and image.
    pub(super) by_image: HashTable<u32>,
    /// The place of the first row with each vector. From there on, each row names the next.
    pub(super) by_vector: HashTable<u32>,
    /// The segments of dead processes that this one has ended.
    pub(super) adopted: Vec<PathBuf>,
    /// Whether the indexes of the remote were looked at.
    pub(super) is_pulled: bool,
}

#[derive(Debug)]
pub(super) struct Segment {
    pub(super) path: PathBuf,
    /// Up to where the records are known; `None` if that is for good.
    pub(super) scanned: Option<u64>,
    /// The name of a segment that only the remote has.
    pub(super) remote: Option<Digest>,
    /// The places of its rows.
    pub(super) rows: Vec<Range<u32>>,
}

/// A record in memory.
#[derive(Clone, Copy, Debug)]
pub(super) struct Row {
    pub(super) image: Digest,
    pub(super) vector: Digest,
    pub(super) offset: u64,
    pub(super) n_bytes: u32,
    pub(super) descriptor: u32,
    pub(super) segment: u32,
    /// The place of another row with the same vector.
    pub(super) next: Option<u32>,
    /// Whether it could not be read.
    pub(super) is_forgotten: bool,
}

/// A vector in a segment, for upkeep.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct StoredFeature {
    pub(crate) descriptor: Digest,
    pub(crate) image: Digest,
    /// The length of the vector in bytes.
    pub(crate) n_bytes: u64,
    /// What it takes on the disk.
    pub(crate) stored_bytes: u64,
}

impl Known {
    /// Looks for segments that have come or grown. Those of dead processes are ended, where they may be.
    pub(super) fn refresh(&mut self, folder: &Path, is_writable: bool) -> Result<()> {
        // One that gets another name meanwhile is in no list that was made before: then another is made.
        for _ in 0..LISTINGS {
            if self.refresh_once(folder, is_writable)? {
                break;
            }
        }
        Ok(())
    }

    /// Whether all that was listed was there.
    pub(super) fn refresh_once(&mut self, folder: &Path, is_writable: bool) -> Result<bool> {
        let mut is_complete = true;
        let mut paths = entries(folder)?;
        paths.sort_unstable();
        for path in paths {
            let extension = path.extension().unwrap_or_default();
            if extension == SEALED {
                is_complete &= self.read_segment(&path, true);
            } else if extension == OPEN {
                let adopted = if is_writable { adopt(&path) } else { Ok(None) };
                // On a full disk, it is read as it is.
                let adopted = adopted.unwrap_or_else(|error| {
                    tracing::debug!("{error}");
                    None
                });
                match adopted {
                    Some(sealed) => {
                        is_complete &= self.read_segment(&sealed, true);
                        self.adopted.push(sealed);
                    }
                    None => is_complete &= self.read_segment(&path, false),
                }
            }
        }
        Ok(is_complete)
    }

    /// Adds the records of a segment that are new. Whether it is still there. A segment that cannot be read holds
    /// nothing for this process. It is left as it is, because another process may be able to read it.
    pub(super) fn read_segment(&mut self, path: &Path, is_sealed: bool) -> bool {
        let known = self.paths.get(path).map(|&place| self.segments[place as usize].scanned);
        if known == Some(None) {
            return true;
        }
        let (records, end) = match records_from(path, is_sealed, known.flatten().unwrap_or(0)) {
            Ok(found) => found,
            // It has got another name, or was removed, since the folder was read.
            Err(error) if error.kind() == ErrorKind::NotFound => return false,
            Err(error) => {
                tracing::warn!("{}: {error}; what it holds is computed again", path.display());
                (Vec::new(), None)
            }
        };
        let segment = self.segment(path, None);
        self.segments[segment as usize].scanned = end;
        records.iter().for_each(|record| self.add(segment, record));
        true
    }

    /// The place of a segment, which is a new one if it is not known.
    pub(super) fn segment(&mut self, path: &Path, remote: Option<Digest>) -> u32 {
        *self.paths.entry(path.to_owned()).or_insert_with(|| {
            self.segments.push(Segment {
                path: path.to_owned(),
                scanned: remote.is_none().then_some(0),
                remote,
                rows: Vec::new(),
            });
            self.segments.len() as u32 - 1
        })
    }

    /// The places of the segments on this machine.
    pub(super) fn local(&self) -> impl Iterator<Item = usize> {
        (0..self.segments.len()).filter(|&place| self.segments[place].remote.is_none())
    }

    pub(super) fn is_remote(&self, row: u32) -> bool {
        self.segments[self.rows[row as usize].segment as usize].remote.is_some()
    }

    /// Ends this process's segment: what was known of it stays true, under its other name, which is the result.
    pub(super) fn seal(&mut self, own: Writer) -> Result<Option<PathBuf>> {
        let path = own.path.clone();
        let sealed = own.seal()?;
        if let (Some(place), Some(sealed)) = (self.paths.remove(&path), &sealed) {
            let segment = &mut self.segments[place as usize];
            segment.path.clone_from(sealed);
            segment.scanned = None;
            self.paths.insert(sealed.clone(), place);
        }
        Ok(sealed)
    }

    /// Pushes sealed segments.
    pub(super) fn push(&self, paths: &[PathBuf], remote: &Remote) -> Result<Copied> {
        let mut copied = Copied::default();
        for path in paths {
            if let Some(segment) = named(path) {
                copied.bytes += remote.put(&segment, path)?;
                copied.segments += 1;
            }
        }
        Ok(copied)
    }

    /// Whether an image has this row, and the remote none of its descriptor.
    pub(super) fn is_new_to_remote(&self, row: u32) -> bool {
        let Row {
            descriptor,
            image,
            vector,
            ..
        } = &self.rows[row as usize];
        let is_same = |other: &u32| {
            let other = &self.rows[*other as usize];
            (other.descriptor, other.image) == (*descriptor, *image)
        };
        let mut same = self.with_vector(vector).filter(is_same);
        *image != LOOSE && !same.any(|other| self.is_remote(other))
    }

    pub(super) fn digests(&self, descriptor: &Digest, images: &[Digest]) -> Vec<Option<Digest>> {
        let Some(descriptor) = self.place_of(descriptor) else {
            return vec![None; images.len()];
        };
        let find = |image| Some(self.rows[self.of_image(descriptor, image)? as usize].vector);
        images.iter().map(find).collect()
    }

    /// The remote's segments of which these images need at least a quarter: one request for all is cheaper than one for
    /// each.
    pub(super) fn worth_pulling(&self, descriptor: &Digest, images: &[Digest]) -> Vec<usize> {
        let mut needed: BTreeMap<u32, u64> = BTreeMap::new();
        let descriptor = self.place_of(descriptor);
        let rows = images.iter().filter_map(|image| self.of_image(descriptor?, image));
        for row in rows.filter(|&row| self.is_remote(row)) {
            let Row { segment, n_bytes, .. } = self.rows[row as usize];
            *needed.entry(segment).or_default() += u64::from(n_bytes);
        }
        let bytes_of = |segment: u32| -> u64 {
            let rows = self.rows_in(segment as usize);
            rows.iter().map(|&row| u64::from(self.rows[row as usize].n_bytes)).sum()
        };
        let worth = needed
            .into_iter()
            .filter(|&(segment, bytes)| 4 * bytes >= bytes_of(segment));
        worth.map(|(segment, _)| segment as usize).collect()
    }

    pub(super) fn place_of(&self, descriptor: &Digest) -> Option<u32> {
        self.places.get(descriptor).copied()
    }

    pub(super) fn add(&mut self, segment: u32, record: &Record) {
        let descriptor = self.place_of(&record.descriptor).unwrap_or_else(|| {
            let place = self.descriptors.len() as u32;
            self.descriptors.push(record.descriptor);
            self.places.insert(record.descriptor, place);
            place
        });
        let row = self.rows.len() as u32;
        self.rows.push(Row {
            image: record.image,
            vector: record.vector,
            offset: record.offset,
            n_bytes: record.n_bytes,
            descriptor,
            segment,
            next: None,
            is_forgotten: false,
        });
        let spans = &mut self.segments[segment as usize].rows;
        match spans.last_mut().filter(|span| span.end == row) {
            Some(span) => span.end += 1,
            None => spans.push(row..row + 1),
        }
        match self.first_with(&record.vector) {
            Some(first) => {
                self.rows[row as usize].next = self.rows[first as usize].next;
                self.rows[first as usize].next = Some(row);
            }
            None => {
                let rows = &self.rows;
                let hash_of_row = |&row: &u32| hash(&rows[row as usize].vector);
                self.by_vector.insert_unique(hash(&record.vector), row, hash_of_row);
            }
        }
        if record.is_loose() {
            return;
        }
        let is_nearer = match self.of_image(descriptor, &record.image) {
            Some(other) => self.is_remote(other) && !self.is_remote(row) && self.unset_of_image(other),
            None => true,
        };
        if is_nearer {
            self.set_of_image(row);
        }
    }

    /// The row of an image and a descriptor.
    pub(super) fn of_image(&self, descriptor: u32, image: &Digest) -> Option<u32> {
        let is_it = |&row: &u32| {
            let row = &self.rows[row as usize];
            row.descriptor == descriptor && row.image == *image
        };
        self.by_image.find(hash_of(descriptor, image), is_it).copied()
    }

    pub(super) fn set_of_image(&mut self, row: u32) {
        let rows = &self.rows;
        let of = |&row: &u32| hash_of(rows[row as usize].descriptor, &rows[row as usize].image);
        self.by_image.insert_unique(of(&row), row, of);
    }

    /// Whether that was the row of its image.
    pub(super) fn unset_of_image(&mut self, row: u32) -> bool {
        let Row { descriptor, image, .. } = self.rows[row as usize];
        let found = self
            .by_image
            .find_entry(hash_of(descriptor, &image), |&other| other == row);
        found.map(|found| found.remove()).is_ok()
    }

    /// Whether a row is the one that its image has.
    pub(super) fn is_of_image(&self, place: u32) -> bool {
        let Row { descriptor, image, .. } = &self.rows[place as usize];
        self.of_image(*descriptor, image) == Some(place)
    }

    /// The row that its image has in place of this one, with the same vector.
    fn twin_of(&self, place: u32) -> Option<u32> {
        let row = &self.rows[place as usize];
        let other = self.of_image(row.descriptor, &row.image)?;
        (other != place && self.rows[other as usize].vector == row.vector).then_some(other)
    }

    /// The rows that rows of these segments are twins of, in the order in which they lie on the disk.
    pub(super) fn with_twins(&self, segments: &[usize]) -> Vec<(usize, u32)> {
        let twins = segments.iter().flat_map(|&segment| self.rows_in(segment));
        let mut rows: Vec<(usize, u32)> = twins.filter_map(|row| Some((0, self.twin_of(row)?))).collect();
        rows.sort_unstable_by_key(|&(_, row)| self.place_on_disk(row));
        rows.dedup();
        rows
    }

    /// Whether a row is kept where another says what is of use, and its twins are not.
    pub(super) fn is_kept(&self, place: u32, is_kept: &dyn Fn(&StoredFeature) -> bool) -> bool {
        self.twin_of(place).is_none() && is_kept(&self.stored(place))
    }

    /// Orders rows as they lie on the disk, and those of the remote behind them.
    fn place_on_disk(&self, row: u32) -> (bool, u32, u64) {
        let Row { segment, offset, .. } = self.rows[row as usize];
        (self.is_remote(row), segment, offset)
    }

    pub(super) fn stored(&self, place: u32) -> StoredFeature {
        let row = &self.rows[place as usize];
        StoredFeature {
            descriptor: self.descriptors[row.descriptor as usize],
            image: row.image,
            n_bytes: u64::from(row.n_bytes),
            stored_bytes: RECORD as u64 + u64::from(row.n_bytes),
        }
    }

    /// The rows of a segment that are not forgotten, in its order.
    pub(super) fn rows_in(&self, segment: usize) -> Vec<u32> {
        let rows = self.segments[segment].rows.iter().cloned().flatten();
        rows.filter(|&row| !self.rows[row as usize].is_forgotten).collect()
    }

    /// Whether a segment is to be merged with others. One that cannot be read now has no rows, and stays.
    pub(super) fn is_small(&self, segment: usize) -> bool {
        let Segment { path, scanned, .. } = &self.segments[segment];
        scanned.is_none()
            && !self.rows_in(segment).is_empty()
            && path.metadata().is_ok_and(|metadata| metadata.len() < SMALL)
    }

    pub(super) fn first_with(&self, vector: &Digest) -> Option<u32> {
        let is_it = |&row: &u32| self.rows[row as usize].vector == *vector;
        self.by_vector.find(hash(vector), is_it).copied()
    }

    /// The rows with a vector that are not forgotten.
    pub(super) fn with_vector(&self, vector: &Digest) -> impl Iterator<Item = u32> {
        let all = std::iter::successors(self.first_with(vector), |&row| self.rows[row as usize].next);
        all.filter(|&row| !self.rows[row as usize].is_forgotten)
    }

    /// A row of each vector, in the order in which they lie on the disk, with their places; and the places of
    /// those that have none.
    pub(super) fn rows_of(
        &self,
        vectors: &[Digest],
        places: &[usize],
        n_bytes: usize,
    ) -> (Vec<(usize, u32)>, Vec<usize>) {
        let (mut rows, mut missing) = (Vec::new(), Vec::new());
        for &place in places {
            let fits = |row: &u32| self.rows[*row as usize].n_bytes as usize == n_bytes;
            let found = || self.with_vector(&vectors[place]).filter(fits);
            match found().find(|&row| !self.is_remote(row)).or_else(|| found().next()) {
                Some(row) => rows.push((place, row)),
                None => missing.push(place),
            }
        }
        rows.sort_unstable_by_key(|&(_, row)| self.place_on_disk(row));
        (rows, missing)
    }

    /// Reads rows, given in the order in which they lie on the disk. The result is the places of those that cannot be read,
    /// or are damaged: their rows are forgotten. With them comes what failed, if they may still be whole.
    pub(super) fn read(
        &mut self,
        rows: &[(usize, u32)],
        take: &mut dyn FnMut(usize, &[u8]),
    ) -> (Vec<usize>, Option<Error>) {
        let mut failure = None;
        let mut unread: Vec<(usize, u32)> = Vec::new();
        let mut open: Option<(u32, File)> = None;
        let mut buffer = Vec::new();
        let mut start = 0;
        while start < rows.len() {
            let first = self.rows[rows[start].1 as usize];
            let (mut stop, mut end) = (start + 1, first.end());
            while let Some(&(_, next)) = rows.get(stop) {
                let next = &self.rows[next as usize];
                let is_near = next.segment == first.segment && next.offset <= end + GAP;
                if !is_near || next.end() > first.offset + READ {
                    break;
                }
                end = end.max(next.end());
                stop += 1;
            }
            let path = &self.segments[first.segment as usize].path;
            let mut note = |error: io::Error| match error.kind() {
                // The file has another name now, or ends before.
                ErrorKind::NotFound | ErrorKind::UnexpectedEof => {}
                _ => failure = Some(Error::io(path)(error)),
            };
            if open.as_ref().is_none_or(|(segment, _)| *segment != first.segment) {
                let file = File::open(path).map_err(&mut note);
                open = file.ok().map(|file| (first.segment, file));
            }
            let file = open.as_ref().map(|(_, file)| file);
            let run = &rows[start..stop];
            let is_read = file.is_some_and(|file| read_at(file, first.offset, end, &mut buffer).is_ok());
            for &(place, row) in run {
                let stored = &self.rows[row as usize];
                let (from, to) = match is_read {
                    true => (stored.offset - first.offset, stored.end() - first.offset),
                    // Perhaps only one of them cannot be read.
                    false => (0, u64::from(stored.n_bytes)),
                };
                let is_there = is_read
                    || file.is_some_and(|file| {
                        let read = read_at(file, stored.offset, stored.end(), &mut buffer);
                        read.map_err(&mut note).is_ok()
                    });
                let bytes = buffer.get(from as usize..to as usize).filter(|_| is_there);
                match bytes.filter(|bytes| Digest::of(bytes) == stored.vector) {
                    Some(bytes) => take(place, bytes),
                    None => unread.push((place, row)),
                }
            }
            start = stop;
        }
        unread.iter().for_each(|&(_, row)| self.forget(row));
        (unread.into_iter().map(|(place, _)| place).collect(), failure)
    }

    /// Forgets what the remote has.
    pub(super) fn forget_remote(&mut self) {
        for row in 0..self.rows.len() as u32 {
            if self.is_remote(row) {
                self.forget(row);
            }
        }
        for segment in &mut self.segments {
            if segment.remote.is_some() {
                self.paths.remove(&segment.path);
            }
        }
    }

    /// Forgets a row. If its image has another row, that one counts.
    pub(super) fn forget(&mut self, row: u32) {
        let Row {
            image,
            vector,
            descriptor,
            ..
        } = self.rows[row as usize];
        self.rows[row as usize].is_forgotten = true;
        if self.unset_of_image(row) {
            let is_it = |&other: &u32| {
                let other = &self.rows[other as usize];
                (other.descriptor, other.image) == (descriptor, image)
            };
            let other = self.with_vector(&vector).filter(is_it).min();
            if let Some(other) = other {
                self.set_of_image(other);
            }
        }
    }
}

impl Row {
    /// Where the vector ends.
    pub(super) fn end(&self) -> u64 {
        self.offset + u64::from(self.n_bytes)
    }
}

/// The records of a segment, and up to where they are known; `None` if that is for good. Of a segment that grows,
/// the records from `start` on.
fn records_from(path: &Path, is_sealed: bool, start: u64) -> io::Result<(Vec<Record>, Option<u64>)> {
    let file = File::open(path)?;
    if is_sealed {
        if let Some(records) = named_records(path, &file)? {
            return Ok((records, None));
        }
        tracing::warn!("{}: its index is damaged; each record is read", path.display());
    }
    let scanned = scan(&file, start)?;
    Ok((scanned.records, (!is_sealed).then_some(scanned.end)))
}

fn read_at(mut file: &File, start: u64, end: u64, buffer: &mut Vec<u8>) -> io::Result<()> {
    buffer.resize((end - start) as usize, 0);
    file.seek(SeekFrom::Start(start))?;
    file.read_exact(buffer)
}

/// A digest is as good as random.
fn hash(digest: &Digest) -> u64 {
    let bytes = digest.as_bytes().first_chunk().expect("a digest is longer");
    u64::from_le_bytes(*bytes)
}

fn hash_of(descriptor: u32, image: &Digest) -> u64 {
    hash(image).wrapping_add(u64::from(descriptor).wrapping_mul(0x9e37_79b9_7f4a_7c15))
}
