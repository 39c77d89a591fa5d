//! Features of single images, in segments: files that are only ever added to, each by one process.
//!
//! What is where is known from the segments alone, and kept in memory from the first question on.

mod file;
mod remote;

use std::collections::{BTreeMap, HashMap, HashSet};
use std::fs::File;
use std::io::{self, ErrorKind, Read, Seek, SeekFrom};
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};

use file::{Batch, LOOSE, OPEN, Payload, RECORD, Record, SEALED, Writer, adopt, records_of, scan, sealed_records};
use hashbrown::HashTable;
use luthier_artifact::{Digest, Observer, entries, remove, vector_bytes, write_atomically};
pub use remote::Remote;
use serde::Serialize;

use crate::upkeep::go_on;
use crate::{Error, Result};

/// A segment that has grown to this size is sealed, and another begun. Smaller where it is pushed then: a
/// machine that is gone takes no more with it.
const LARGEST: u64 = 256 << 20;
const LARGEST_PUSHED: u64 = 32 << 20;

/// Segments below this size are small: many of them are merged.
const SMALL: u64 = 16 << 20;

/// So many segments are merged where they are small.
const MANY: usize = 64;

/// How much is read at once, and over which gap between two vectors.
const READ: u64 = 4 << 20;
const GAP: u64 = 64 << 10;

/// How many vectors are verified or copied before it is asked whether the user interrupts.
const VERIFIED: usize = 4096;

/// How much is gathered before it is written, where vectors are copied.
const COPIED: usize = 4 << 20;

/// The features in the folder `features` of a cache.
#[derive(Debug)]
pub(crate) struct Segments {
    folder: PathBuf,
    /// Whether this process may write here.
    is_writable: bool,
    /// What other machines share with this one.
    remote: Option<Remote>,
    state: Mutex<State>,
}

/// What is known of the segments, and the one that is added to.
#[derive(Debug, Default)]
struct State {
    known: Known,
    own: Option<Writer>,
    /// Whether the indexes of the remote were looked at.
    is_pulled: bool,
}

/// What the segments on the disk hold, as far as it was looked at.
#[derive(Debug, Default)]
struct Known {
    segments: Vec<Segment>,
    /// The places of the segments by their paths.
    paths: HashMap<PathBuf, u32>,
    descriptors: Vec<Digest>,
    rows: Vec<Row>,
    /// The places of the rows that images have, one for each descriptor and image.
    by_image: HashTable<u32>,
    /// The places of all rows, by the digest of their vector.
    by_vector: HashTable<u32>,
    /// The segments of dead processes that this one has ended.
    adopted: Vec<PathBuf>,
}

#[derive(Debug)]
struct Segment {
    path: PathBuf,
    /// Up to where the records are known; `None` if that is for good.
    scanned: Option<u64>,
    /// The name of a segment that only the remote has.
    remote: Option<Digest>,
    /// The places of its rows.
    rows: Vec<Range<u32>>,
}

/// A record in memory.
#[derive(Clone, Copy, Debug)]
struct Row {
    image: Digest,
    vector: Digest,
    offset: u64,
    n_bytes: u32,
    descriptor: u32,
    segment: u32,
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

impl StoredFeature {
    /// Whether tables have it, and no image.
    fn is_loose(&self) -> bool {
        self.image == LOOSE
    }
}

/// What [`Cache::push`](crate::Cache::push) and [`Cache::pull`](crate::Cache::pull) have copied.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Copied {
    /// Segments.
    pub segments: usize,
    /// Their size in bytes.
    pub bytes: u64,
}

/// What [`Segments::verify`] has found.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Verified {
    pub(crate) n_features: u64,
    pub(crate) n_damaged: u64,
}

impl Segments {
    pub(crate) fn new(folder: PathBuf, is_writable: bool) -> Self {
        Segments {
            folder,
            is_writable,
            remote: None,
            state: Mutex::default(),
        }
    }

    /// Shares segments with other machines.
    pub(crate) fn connect(&mut self, remote: Remote) {
        self.remote = Some(remote);
    }

    /// The remote, unless it has failed.
    fn remote(&self) -> Option<&Remote> {
        self.remote.as_ref().filter(|remote| !remote.is_lost())
    }

    /// A poisoned lock does no harm: rows are added last.
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The state, with all that processes have stored until now.
    fn current(&self) -> Result<MutexGuard<'_, State>> {
        let mut state = self.state();
        state.known.refresh(&self.folder, self.is_writable)?;
        Ok(state)
    }

    /// The digests of the vectors that images have of a descriptor.
    pub(crate) fn digests(&self, descriptor: &Digest, images: &[Digest]) -> Result<Vec<Option<Digest>>> {
        let mut state = self.current()?;
        let found = state.known.digests(descriptor, images);
        let Some(remote) = self.remote().filter(|_| found.contains(&None) && !state.is_pulled) else {
            return Ok(found);
        };
        state.is_pulled = true;
        let known = &mut state.known;
        if let Err(error) = self.pull_indexes(known, remote) {
            remote.lose(&error);
        }
        for segment in known.worth_pulling(descriptor, images) {
            if self.is_writable
                && !remote.is_lost()
                && let Err(error) = self.pull_segment(known, remote, segment)
            {
                remote.lose(&error);
            }
        }
        Ok(known.digests(descriptor, images))
    }

    /// Stores the vectors that images have of a descriptor.
    pub(crate) fn store(&self, descriptor: &Digest, rows: &[(Digest, Vec<f32>)]) -> Result<()> {
        let mut batch = Batch::default();
        for (image, features) in rows {
            batch.push(*descriptor, *image, &vector_bytes(features.into()));
        }
        self.add(&mut self.state(), batch)
    }

    /// Stores vectors that no image has, but tables.
    pub(crate) fn store_loose(&self, vectors: &[&Vec<u8>]) -> Result<()> {
        let mut batch = Batch::default();
        vectors.iter().for_each(|vector| batch.push(LOOSE, LOOSE, vector));
        self.add(&mut self.state(), batch)
    }

    fn add(&self, state: &mut State, batch: Batch) -> Result<()> {
        if batch.is_empty() {
            return Ok(());
        }
        let largest = if self.remote().is_some() {
            LARGEST_PUSHED
        } else {
            LARGEST
        };
        if state.own.as_ref().is_some_and(|own| own.n_bytes() >= largest) {
            self.end_own(state)?;
        }
        let State { known, own, .. } = state;
        // Somebody may have removed the file.
        if own.as_ref().is_some_and(|own| !own.path.exists()) {
            *own = None;
        }
        let own = match own {
            Some(own) => own,
            None => own.insert(Writer::new(&self.folder)?),
        };
        let segment = known.segment(&own.path, None);
        for record in own.add(batch)? {
            known.add(segment, record);
        }
        known.segments[segment as usize].scanned = Some(own.n_bytes());
        Ok(())
    }

    /// Reads vectors, each of `n_bytes`. `take` gets the place of each among `vectors`, and its bytes. The
    /// result is the places of those that are missing or damaged; these are forgotten.
    pub(crate) fn read(
        &self,
        vectors: &[Digest],
        n_bytes: usize,
        mut take: impl FnMut(usize, &[u8]),
    ) -> Result<Vec<usize>> {
        let mut state = self.state();
        let mut left: Vec<usize> = (0..vectors.len()).collect();
        // Segments that have got another name since, or come since.
        for is_current in [false, true] {
            if is_current {
                drop(state);
                state = self.current()?;
            }
            while !left.is_empty() {
                let (rows, missing) = state.known.rows_of(vectors, &left, n_bytes);
                if rows.is_empty() {
                    break;
                }
                let n_local = rows.partition_point(|&(_, row)| !state.known.is_remote(row));
                let (local, remote) = rows.split_at(n_local);
                let mut unread = state.known.read(local, &mut take);
                if !remote.is_empty() {
                    unread.extend(self.fetch(&mut state, remote, &mut take)?);
                }
                unread.extend(missing);
                unread.sort_unstable();
                left = unread;
            }
        }
        Ok(left)
    }

    /// Reads rows from the remote, and keeps them. The result is the places of those that it does not give: they
    /// are forgotten.
    fn fetch(
        &self,
        state: &mut State,
        rows: &[(usize, u32)],
        take: &mut dyn FnMut(usize, &[u8]),
    ) -> Result<Vec<usize>> {
        let mut unread = Vec::new();
        let mut fetched = Batch::default();
        let known = &mut state.known;
        for rows in rows.chunk_by(|a, b| known.rows[a.1 as usize].segment == known.rows[b.1 as usize].segment) {
            let of_segment: Vec<Row> = rows.iter().map(|&(_, row)| known.rows[row as usize]).collect();
            let segment = known.segments[of_segment[0].segment as usize].remote;
            let ranges: Vec<Range<u64>> = of_segment.iter().map(|row| row.offset..row.end()).collect();
            let got = self.remote().zip(segment).map(|(remote, segment)| {
                let got = remote.ranges(&segment, &ranges).inspect_err(|error| remote.lose(error));
                (remote, segment, got.unwrap_or_default())
            });
            let Some((remote, segment, vectors)) = got else {
                unread.extend_from_slice(rows);
                continue;
            };
            let is_right = |place: usize| {
                let vector = vectors.get(place).map(AsRef::as_ref);
                vector.filter(|vector| Digest::of(vector) == of_segment[place].vector)
            };
            let mut is_whole = true;
            for (place, &(asked, row)) in rows.iter().enumerate() {
                match is_right(place) {
                    Some(vector) => {
                        take(asked, vector);
                        let Row { descriptor, image, .. } = of_segment[place];
                        fetched.push(known.descriptors[descriptor as usize], image, vector);
                    }
                    None => {
                        is_whole = false;
                        unread.push((asked, row));
                    }
                }
            }
            if !is_whole && !remote.is_lost() {
                remote.lies(&segment);
            }
        }
        match self.remote() {
            Some(_) => unread.iter().for_each(|&(_, row)| known.forget(row)),
            None => known.forget_remote(),
        }
        if self.is_writable {
            self.add(state, fetched)?;
        }
        Ok(unread.into_iter().map(|(place, _)| place).collect())
    }

    /// Looks up what the remote has: the names of its segments. Indexes are kept: each is fetched once.
    fn pull_indexes(&self, known: &mut Known, remote: &Remote) -> Result<HashSet<Digest>> {
        let folder = self.folder.join("remote");
        let kept = |segment: &Digest| folder.join(format!("{segment}.index"));
        let here = |segment: &Digest| {
            known
                .paths
                .contains_key(&self.folder.join(format!("{segment}.{SEALED}")))
        };
        let segments: HashSet<Digest> = remote.segments()?.into_iter().map(|(segment, _)| segment).collect();
        let mut indexes: Vec<(Digest, Vec<u8>)> = Vec::new();
        let mut unknown = Vec::new();
        for segment in segments.iter().filter(|segment| !here(segment)) {
            match std::fs::read(kept(segment)) {
                Ok(index) if Digest::of(&index) == *segment => indexes.push((*segment, index)),
                _ => unknown.push(*segment),
            }
        }
        for (segment, index) in remote.indexes(&unknown)? {
            if self.is_writable {
                write_atomically(&kept(&segment), &index)?;
            }
            indexes.push((segment, index));
        }
        indexes.sort_unstable();
        for (segment, index) in indexes {
            let Some(records) = records_of(&index) else {
                remote.lies(&segment);
                continue;
            };
            let place = known.segment(&kept(&segment), Some(segment));
            records.iter().for_each(|record| known.add(place, record));
        }
        Ok(segments)
    }

    /// Ends the segment of this process. It is pushed if it has what the remote lacks, and so are those of dead processes.
    pub(crate) fn share(&self) -> Result<()> {
        self.end_own(&mut self.state())
    }

    fn end_own(&self, state: &mut State) -> Result<()> {
        let mut ended = std::mem::take(&mut state.known.adopted);
        if let Some(own) = state.own.take() {
            ended.extend(state.known.seal(own)?);
        }
        let Some(remote) = self.remote() else { return Ok(()) };
        let known = &state.known;
        let is_new = |path: &PathBuf| {
            let rows = known.paths.get(path).map(|&place| known.rows_in(place as usize));
            rows.is_some_and(|rows| rows.iter().any(|&row| known.is_new_to_remote(row)))
        };
        ended.retain(is_new);
        if let Err(error) = known.push(&ended, remote) {
            remote.lose(&error);
        }
        Ok(())
    }

    /// Pushes the segments with features that the remote lacks.
    pub(crate) fn push(&self) -> Result<Copied> {
        let mut state = self.current()?;
        let state = &mut *state;
        if let Some(own) = state.own.take() {
            state.known.seal(own)?;
        }
        let Some(remote) = self.remote() else {
            return Ok(Copied::default());
        };
        let known = &mut state.known;
        known.forget_remote();
        let pushed = self.pull_indexes(known, remote)?;
        let is_new = |place: &usize| {
            let Segment { path, scanned, .. } = &known.segments[*place];
            let is_there = named(path).is_some_and(|segment| pushed.contains(&segment));
            scanned.is_none() && !is_there && known.rows_in(*place).iter().any(|&row| known.is_new_to_remote(row))
        };
        let new: Vec<usize> = known.local().filter(is_new).collect();
        let paths: Vec<PathBuf> = new.iter().map(|&place| known.segments[place].path.clone()).collect();
        known.push(&paths, remote)
    }

    /// Copies the segments of the remote that have features that are lacking here.
    pub(crate) fn pull(&self) -> Result<Copied> {
        let mut state = self.current()?;
        let Some(remote) = self.remote() else {
            return Ok(Copied::default());
        };
        let known = &mut state.known;
        known.forget_remote();
        self.pull_indexes(known, remote)?;
        let mut copied = Copied::default();
        for place in 0..known.segments.len() {
            let is_remote = known.segments[place].remote.is_some();
            if is_remote && known.rows_in(place).iter().any(|&row| known.is_of_image(row)) {
                copied.segments += 1;
                copied.bytes += self.pull_segment(known, remote, place)?;
            }
        }
        Ok(copied)
    }

    /// Copies a segment of the remote. What it holds is checked when it is read, as that of all segments. The result is its
    /// size in bytes.
    fn pull_segment(&self, known: &mut Known, remote: &Remote, place: usize) -> Result<u64> {
        let Some(segment) = known.segments[place].remote else {
            return Ok(0);
        };
        let bytes = remote.get(&segment)?;
        let path = self.folder.join(format!("{segment}.{SEALED}"));
        write_atomically(&path, &bytes)?;
        known.read_segment(&path, true)?;
        Ok(bytes.len() as u64)
    }

    /// The features of all images.
    pub(crate) fn features(&self) -> Result<Vec<StoredFeature>> {
        let state = self.current()?;
        let known = &state.known;
        let is_here = |&row: &u32| known.is_of_image(row) && !known.is_remote(row);
        let of_images = (0..known.rows.len() as u32).filter(is_here);
        Ok(of_images.map(|row| known.stored(&known.rows[row as usize])).collect())
    }

    /// How many segments there are, and their size in bytes.
    pub(crate) fn size(&self) -> Result<(usize, u64)> {
        let state = self.current()?;
        let segments = state.known.local().map(|place| &state.known.segments[place]);
        let sizes = segments.filter_map(|segment| Some(segment.path.metadata().ok()?.len()));
        let sizes: Vec<u64> = sizes.collect();
        Ok((sizes.len(), sizes.iter().sum()))
    }

    /// Reads everything against its digest. Sealed segments with damage are written again without it.
    pub(crate) fn verify(&self, observer: &dyn Observer) -> Result<Verified> {
        let mut state = self.current()?;
        let mut verified = Verified::default();
        let mut damaged = Vec::new();
        let local: Vec<usize> = state.known.local().collect();
        for place in local {
            let Segment { path, scanned, .. } = &state.known.segments[place];
            let is_sealed = scanned.is_none();
            // Without an index it is named by, it is read record by record each time.
            let records = File::open(path).and_then(|file| sealed_records(&file));
            let mut is_whole = records.is_ok_and(|found| found.is_some_and(|(_, digest)| named(path) == Some(digest)));
            let rows = state.known.rows_in(place);
            verified.n_features += rows.len() as u64;
            for rows in rows.chunks(VERIFIED) {
                go_on(observer)?;
                let asked: Vec<(usize, u32)> = rows.iter().map(|&row| (0, row)).collect();
                let n_unread = state.known.read(&asked, &mut |_, _| ()).len();
                verified.n_damaged += n_unread as u64;
                is_whole &= n_unread == 0;
            }
            if is_sealed && !is_whole {
                damaged.push(place);
            }
        }
        if !damaged.is_empty() {
            self.rewrite(&mut state, &damaged, &|_| true, observer)?;
        }
        Ok(verified)
    }

    /// Keeps the vectors of which `is_kept` says so, and one for each image and descriptor. The caller has the
    /// cache to itself.
    pub(crate) fn retain(&self, is_kept: &dyn Fn(&StoredFeature) -> bool, observer: &dyn Observer) -> Result<()> {
        go_on(observer)?;
        let mut state = self.current()?;
        self.end_own(&mut state)?;
        let known = &state.known;
        let is_whole = |place: &usize| known.rows_in(*place).iter().all(|row| known.is_kept(*row, is_kept));
        let mut changed: Vec<usize> = known.local().filter(|place| !is_whole(place)).collect();
        let small: Vec<usize> = known.local().filter(|&place| known.is_small(place)).collect();
        if small.len() > 1 {
            changed.extend(small);
            changed.sort_unstable();
            changed.dedup();
        }
        self.rewrite(&mut state, &changed, is_kept, observer)
    }

    /// Merges small segments where there are many. The caller has the cache to itself.
    pub(crate) fn merge_small(&self) -> Result<()> {
        let mut state = self.current()?;
        let known = &state.known;
        let small: Vec<usize> = known.local().filter(|&place| known.is_small(place)).collect();
        self.rewrite(&mut state, &small, &|_| true, &())
    }

    /// Whether there are so many segments that small ones are to be merged.
    pub(crate) fn are_many(&self) -> Result<bool> {
        let is_sealed = |path: &PathBuf| path.extension().is_some_and(|extension| extension == SEALED);
        Ok(entries(&self.folder)?.iter().filter(|path| is_sealed(path)).count() > MANY)
    }

    /// Writes what is kept of segments to new ones, and removes them.
    fn rewrite(
        &self,
        state: &mut State,
        segments: &[usize],
        is_kept: &dyn Fn(&StoredFeature) -> bool,
        observer: &dyn Observer,
    ) -> Result<()> {
        let known = &mut state.known;
        let mut new: Option<Writer> = None;
        let mut copied: Vec<PathBuf> = Vec::new();
        for &place in segments {
            let mut rows = known.rows_in(place);
            rows.retain(|row| known.is_kept(*row, is_kept));
            let mut batch = Batch::default();
            for rows in rows.chunks(VERIFIED) {
                go_on(observer)?;
                let asked: Vec<(usize, u32)> = rows.iter().map(|&row| (row as usize, row)).collect();
                let of_row = |row: usize| (known.rows[row].descriptor, known.rows[row].image);
                let keys: HashMap<usize, (u32, Digest)> =
                    rows.iter().map(|&row| (row as usize, of_row(row as usize))).collect();
                let descriptors = known.descriptors.clone();
                let mut failed = Ok(());
                known.read(&asked, &mut |row, bytes| {
                    let (descriptor, image) = keys[&row];
                    batch.push(descriptors[descriptor as usize], image, bytes);
                    if batch.n_bytes() > COPIED && failed.is_ok() {
                        failed = self.copy(&mut new, std::mem::take(&mut batch));
                    }
                });
                failed?;
            }
            if !batch.is_empty() {
                self.copy(&mut new, batch)?;
            }
            copied.push(known.segments[place].path.clone());
            if new.as_ref().is_none_or(|new| new.n_bytes() >= LARGEST) {
                finish(new.take(), &mut copied)?;
            }
        }
        finish(new, &mut copied)?;
        // All is looked up anew.
        state.known = Known::default();
        Ok(())
    }

    fn copy(&self, new: &mut Option<Writer>, batch: Batch) -> Result<()> {
        let new = match new {
            Some(new) => new,
            None => new.insert(Writer::new(&self.folder)?),
        };
        new.add(batch).map(drop)
    }
}

/// Ends a segment, and removes those that were copied to it.
fn finish(new: Option<Writer>, copied: &mut Vec<PathBuf>) -> Result<()> {
    let sealed = new.map(Writer::seal).transpose()?.flatten();
    for path in copied.drain(..) {
        // One that had nothing to drop, alone, is what has been made of it.
        if sealed.as_ref() != Some(&path) {
            remove(&path)?;
        }
    }
    Ok(())
}

impl Drop for Segments {
    fn drop(&mut self) {
        let mut state = std::mem::take(self.state.get_mut().unwrap_or_else(PoisonError::into_inner));
        // If that fails, the next process that looks for features does it.
        if let Err(error) = self.end_own(&mut state) {
            tracing::debug!("{error}");
        }
    }
}

impl Known {
    /// Looks for segments that have come or grown. Those of dead processes are ended.
    fn refresh(&mut self, folder: &Path, is_writable: bool) -> Result<()> {
        let mut paths = entries(folder)?;
        paths.sort_unstable();
        for path in paths {
            let extension = path.extension().unwrap_or_default();
            if extension == SEALED {
                self.read_segment(&path, true)?;
            } else if extension == OPEN {
                let adopted = if is_writable { adopt(&path) } else { Ok(None) };
                // On a full disk, it is read as it is.
                let adopted = adopted.unwrap_or_else(|error| {
                    tracing::debug!("{error}");
                    None
                });
                match adopted {
                    Some(sealed) => {
                        self.read_segment(&sealed, true)?;
                        self.adopted.push(sealed);
                    }
                    None => self.read_segment(&path, false)?,
                }
            }
        }
        Ok(())
    }

    /// Adds the records of a segment that are new.
    fn read_segment(&mut self, path: &Path, is_sealed: bool) -> Result<()> {
        let known = self.paths.get(path).map(|&place| self.segments[place as usize].scanned);
        if known == Some(None) {
            return Ok(());
        }
        let file = match File::open(path) {
            // It has got another name, or was removed, since the folder was read.
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(()),
            other => other.map_err(Error::io(path))?,
        };
        let io = |error| Error::io(path)(error);
        let sealed = match is_sealed {
            true => sealed_records(&file)
                .map_err(io)?
                .filter(|(_, digest)| named(path) == Some(*digest)),
            false => None,
        };
        if is_sealed && sealed.is_none() {
            tracing::warn!("{}: its index is damaged; each record is read", path.display());
        }
        let start = known.flatten().unwrap_or(0);
        let (records, end) = match sealed {
            Some((records, _)) => (records, None),
            None => {
                let scanned = scan(&file, start, Payload::Skip).map_err(io)?;
                (scanned.records, (!is_sealed).then_some(scanned.end))
            }
        };
        let segment = self.segment(path, None);
        self.segments[segment as usize].scanned = end;
        records.iter().for_each(|record| self.add(segment, record));
        Ok(())
    }

    /// The place of a segment, which is a new one if it is not known.
    fn segment(&mut self, path: &Path, remote: Option<Digest>) -> u32 {
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
    fn local(&self) -> impl Iterator<Item = usize> {
        (0..self.segments.len()).filter(|&place| self.segments[place].remote.is_none())
    }

    fn is_remote(&self, row: u32) -> bool {
        self.segments[self.rows[row as usize].segment as usize].remote.is_some()
    }

    /// Ends this process's segment: what was known of it stays true, under its other name, which is the result.
    fn seal(&mut self, own: Writer) -> Result<Option<PathBuf>> {
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
    fn push(&self, paths: &[PathBuf], remote: &Remote) -> Result<Copied> {
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
    fn is_new_to_remote(&self, row: u32) -> bool {
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

    fn digests(&self, descriptor: &Digest, images: &[Digest]) -> Vec<Option<Digest>> {
        let Some(descriptor) = self.place_of(descriptor) else {
            return vec![None; images.len()];
        };
        let find = |image| Some(self.rows[self.of_image(descriptor, image)? as usize].vector);
        images.iter().map(find).collect()
    }

    /// The remote's segments of which these images need at least a quarter: one request for all is cheaper than one for
    /// each.
    fn worth_pulling(&self, descriptor: &Digest, images: &[Digest]) -> Vec<usize> {
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

    fn place_of(&self, descriptor: &Digest) -> Option<u32> {
        let place = self.descriptors.iter().position(|known| known == descriptor);
        place.map(|place| place as u32)
    }

    fn add(&mut self, segment: u32, record: &Record) {
        let descriptor = self.place_of(&record.descriptor).unwrap_or_else(|| {
            self.descriptors.push(record.descriptor);
            self.descriptors.len() as u32 - 1
        });
        let row = self.rows.len() as u32;
        self.rows.push(Row {
            image: record.image,
            vector: record.vector,
            offset: record.offset,
            n_bytes: record.n_bytes,
            descriptor,
            segment,
        });
        let spans = &mut self.segments[segment as usize].rows;
        match spans.last_mut().filter(|span| span.end == row) {
            Some(span) => span.end += 1,
            None => spans.push(row..row + 1),
        }
        let rows = &self.rows;
        self.by_vector
            .insert_unique(hash(&record.vector), row, |&row| hash(&rows[row as usize].vector));
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
    fn of_image(&self, descriptor: u32, image: &Digest) -> Option<u32> {
        let is_it = |&row: &u32| {
            let row = &self.rows[row as usize];
            row.descriptor == descriptor && row.image == *image
        };
        self.by_image.find(hash_of(descriptor, image), is_it).copied()
    }

    fn set_of_image(&mut self, row: u32) {
        let rows = &self.rows;
        let of = |&row: &u32| hash_of(rows[row as usize].descriptor, &rows[row as usize].image);
        self.by_image.insert_unique(of(&row), row, of);
    }

    /// Whether that was the row of its image.
    fn unset_of_image(&mut self, row: u32) -> bool {
        let Row { descriptor, image, .. } = self.rows[row as usize];
        let found = self
            .by_image
            .find_entry(hash_of(descriptor, &image), |&other| other == row);
        found.map(|found| found.remove()).is_ok()
    }

    /// Whether a row is the one that its image has.
    fn is_of_image(&self, place: u32) -> bool {
        let Row { descriptor, image, .. } = &self.rows[place as usize];
        self.of_image(*descriptor, image) == Some(place)
    }

    /// Whether a row is kept where another says what is of use, and equal ones are not.
    fn is_kept(&self, place: u32, is_kept: &dyn Fn(&StoredFeature) -> bool) -> bool {
        let stored = self.stored(&self.rows[place as usize]);
        (stored.is_loose() || self.is_of_image(place)) && is_kept(&stored)
    }

    fn stored(&self, row: &Row) -> StoredFeature {
        StoredFeature {
            descriptor: self.descriptors[row.descriptor as usize],
            image: row.image,
            n_bytes: u64::from(row.n_bytes),
            stored_bytes: RECORD as u64 + u64::from(row.n_bytes),
        }
    }

    /// The rows of a segment that are not forgotten, in its order.
    fn rows_in(&self, segment: usize) -> Vec<u32> {
        let rows = self.segments[segment].rows.iter().cloned().flatten();
        let is_known = |&row: &u32| {
            self.with_vector(&self.rows[row as usize].vector)
                .any(|other| other == row)
        };
        rows.filter(is_known).collect()
    }

    fn is_small(&self, segment: usize) -> bool {
        let Segment { path, scanned, .. } = &self.segments[segment];
        scanned.is_none() && path.metadata().is_ok_and(|metadata| metadata.len() < SMALL)
    }

    fn with_vector<'a>(&'a self, vector: &'a Digest) -> impl Iterator<Item = u32> + 'a {
        let found = self.by_vector.iter_hash(hash(vector)).copied();
        found.filter(move |&row| self.rows[row as usize].vector == *vector)
    }

    /// A row of each vector, in the order in which they lie on the disk, with their places; and the places of
    /// those that have none.
    fn rows_of(&self, vectors: &[Digest], places: &[usize], n_bytes: usize) -> (Vec<(usize, u32)>, Vec<usize>) {
        let (mut rows, mut missing) = (Vec::new(), Vec::new());
        for &place in places {
            let fits = |row: &u32| self.rows[*row as usize].n_bytes as usize == n_bytes;
            match self
                .with_vector(&vectors[place])
                .filter(fits)
                .min_by_key(|&row| (self.is_remote(row), row))
            {
                Some(row) => rows.push((place, row)),
                None => missing.push(place),
            }
        }
        rows.sort_unstable_by_key(|&(_, row)| {
            let Row { segment, offset, .. } = self.rows[row as usize];
            (self.is_remote(row), segment, offset)
        });
        (rows, missing)
    }

    /// Reads rows, given in the order in which they lie on the disk. The result is the places of those that
    /// cannot be read, or are damaged: their rows are forgotten.
    fn read(&mut self, rows: &[(usize, u32)], take: &mut dyn FnMut(usize, &[u8])) -> Vec<usize> {
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
            if open.as_ref().is_none_or(|(segment, _)| *segment != first.segment) {
                let file = File::open(&self.segments[first.segment as usize].path);
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
                let is_there =
                    is_read || file.is_some_and(|file| read_at(file, stored.offset, stored.end(), &mut buffer).is_ok());
                let bytes = buffer.get(from as usize..to as usize).filter(|_| is_there);
                match bytes.filter(|bytes| Digest::of(bytes) == stored.vector) {
                    Some(bytes) => take(place, bytes),
                    None => unread.push((place, row)),
                }
            }
            start = stop;
        }
        unread.iter().for_each(|&(_, row)| self.forget(row));
        unread.into_iter().map(|(place, _)| place).collect()
    }

    /// Forgets what the remote has.
    fn forget_remote(&mut self) {
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
    fn forget(&mut self, row: u32) {
        let Row {
            image,
            vector,
            descriptor,
            ..
        } = self.rows[row as usize];
        if let Ok(found) = self.by_vector.find_entry(hash(&vector), |&other| other == row) {
            found.remove();
        }
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

/// The digest that a sealed segment is named by.
fn named(path: &Path) -> Option<Digest> {
    path.file_stem()?.to_str()?.parse().ok()
}

impl Row {
    /// Where the vector ends.
    fn end(&self) -> u64 {
        self.offset + u64::from(self.n_bytes)
    }
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
