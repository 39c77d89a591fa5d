//! Features of single images, in segments: files that are only ever added to, each by one process.
//!
//! What is where is known from the segments alone, and kept in memory from the first question on.

mod file;
mod known;
mod remote;

use std::collections::{HashMap, HashSet};
use std::fs::File;
use std::io::ErrorKind;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};

use file::{Batch, LOOSE, SEALED, Writer, named, named_records, records_of, sealed_name};
pub(crate) use known::StoredFeature;
use known::{Known, Row, Segment};
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

/// How many vectors are verified or copied before it is asked whether the user interrupts. Those that are copied are
/// written at once: some megabytes.
const VERIFIED: usize = 512;

/// The features in the folder `segments` of a cache.
#[derive(Debug)]
pub(crate) struct Segments {
    folder: PathBuf,
    /// The segments of a cache that can only be read.
    read_only: Option<PathBuf>,
    /// What other machines share with this one.
    remote: Option<Remote>,
    state: Mutex<State>,
}

/// What is known of the segments, and the one that is added to.
#[derive(Debug, Default)]
struct State {
    known: Known,
    own: Option<Writer>,
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
    pub(crate) fn new(folder: PathBuf) -> Self {
        Segments {
            folder,
            read_only: None,
            remote: None,
            state: Mutex::default(),
        }
    }

    /// Finds the features in another folder too. Nothing may be changed there: upkeep must not run then.
    pub(crate) fn read_also(&mut self, folder: PathBuf) {
        self.read_only = Some(folder);
    }

    /// Shares segments with other machines. The caller has seen to it that this cache can be written.
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
        self.refresh(&mut state.known)?;
        Ok(state)
    }

    fn refresh(&self, known: &mut Known) -> Result<()> {
        known.refresh(&self.folder, true)?;
        let mut read_only = self.read_only.iter();
        read_only.try_for_each(|folder| known.refresh(folder, false))
    }

    /// The state, looked up anew: what is on the disk now, and nothing else. What was known before may have rows of a
    /// segment that has another name now. The rows under the new name would count as their twins, and be removed.
    fn anew(&self) -> Result<MutexGuard<'_, State>> {
        let mut state = self.state();
        self.end_own(&mut state)?;
        state.known = Known::default();
        self.refresh(&mut state.known)?;
        Ok(state)
    }

    /// The digests of the vectors that images have of a descriptor.
    pub(crate) fn digests(&self, descriptor: &Digest, images: &[Digest]) -> Result<Vec<Option<Digest>>> {
        let mut state = self.current()?;
        let known = &mut state.known;
        let found = known.digests(descriptor, images);
        let Some(remote) = self.remote().filter(|_| found.contains(&None) && !known.is_pulled) else {
            return Ok(found);
        };
        known.is_pulled = true;
        if let Err(error) = self.pull_indexes(known, remote) {
            remote.lose(&error);
        }
        for segment in known.worth_pulling(descriptor, images) {
            if !remote.is_lost()
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
            if left.is_empty() {
                break;
            }
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
                let (mut unread, failure) = state.known.read(local, &mut take);
                if let Some(error) = failure {
                    tracing::warn!("{error}");
                }
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
        let (mut unread, mut gone) = (Vec::new(), Vec::new());
        let mut fetched = Batch::default();
        let known = &mut state.known;
        for rows in rows.chunk_by(|a, b| known.rows[a.1 as usize].segment == known.rows[b.1 as usize].segment) {
            let of_segment: Vec<Row> = rows.iter().map(|&(_, row)| known.rows[row as usize]).collect();
            let segment = known.segments[of_segment[0].segment as usize].remote;
            let ranges: Vec<Range<u64>> = of_segment.iter().map(|row| row.offset..row.end()).collect();
            let got = self.remote().zip(segment).map(|(remote, segment)| {
                let got = remote.ranges(&segment, &ranges).inspect_err(|error| remote.lose(error));
                (remote, segment, got.ok().flatten().unwrap_or_default())
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
            if !is_whole {
                if !vectors.is_empty() {
                    remote.lies(&segment);
                }
                gone.push(of_segment[0].segment);
            }
        }
        match self.remote() {
            // Somebody has removed a segment, or it does not hold what its index says.
            Some(_) => {
                let rows: Vec<u32> = gone
                    .into_iter()
                    .flat_map(|segment| known.rows_in(segment as usize))
                    .collect();
                rows.into_iter().for_each(|row| known.forget(row));
            }
            None => known.forget_remote(),
        }
        self.add(state, fetched)?;
        Ok(unread.into_iter().map(|(place, _)| place).collect())
    }

    /// The folder of the remote's indexes.
    fn indexes(&self) -> PathBuf {
        self.folder.join("remote")
    }

    /// Looks up what the remote has: the names of its segments. Indexes are kept: each is fetched once.
    fn pull_indexes(&self, known: &mut Known, remote: &Remote) -> Result<HashMap<Digest, u64>> {
        let folder = self.indexes();
        let kept = |segment: &Digest| folder.join(format!("{segment}.index"));
        let here = |segment: &Digest| known.paths.contains_key(&self.folder.join(sealed_name(segment)));
        let segments: HashMap<Digest, u64> = remote.segments()?.into_iter().collect();
        let mut indexes: Vec<(Digest, Vec<u8>)> = Vec::new();
        let mut unknown = Vec::new();
        for (segment, n_bytes) in segments.iter().filter(|(segment, _)| !here(segment)) {
            match std::fs::read(kept(segment)) {
                Ok(index) if Digest::of(&index) == *segment => indexes.push((*segment, index)),
                _ => unknown.push((*segment, *n_bytes)),
            }
        }
        for (segment, index) in remote.indexes(&unknown)? {
            // It is fetched again by the next process.
            if let Err(error) = write_atomically(&kept(&segment), &index) {
                tracing::debug!("{error}");
            }
            indexes.push((segment, index));
        }
        indexes.sort_unstable();
        for (segment, index) in indexes {
            let n_bytes = segments[&segment];
            let records = records_of(&index).filter(|all| all.last().is_none_or(|last| last.end() <= n_bytes));
            let Some(records) = records else {
                remote.lies(&segment);
                continue;
            };
            let place = known.segment(&kept(&segment), Some(segment));
            records.iter().for_each(|record| known.add(place, record));
        }
        Ok(segments)
    }

    /// Looks up what the remote has now, whatever it had before.
    fn pull_indexes_again(&self, known: &mut Known, remote: &Remote) -> Result<HashMap<Digest, u64>> {
        known.forget_remote();
        self.pull_indexes(known, remote)
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
        let Some(remote) = &self.remote else {
            return Ok(Copied::default());
        };
        let known = &mut state.known;
        let pushed = self.pull_indexes_again(known, remote)?;
        let is_new = |place: &usize| {
            let Segment { path, scanned, .. } = &known.segments[*place];
            let is_there = named(path).is_some_and(|segment| pushed.contains_key(&segment));
            scanned.is_none() && !is_there && known.rows_in(*place).iter().any(|&row| known.is_new_to_remote(row))
        };
        let new: Vec<usize> = known.local().filter(is_new).collect();
        let paths: Vec<PathBuf> = new.iter().map(|&place| known.segments[place].path.clone()).collect();
        let copied = known.push(&paths, remote)?;
        // The remote has them now.
        known.adopted.clear();
        Ok(copied)
    }

    /// Copies the segments of the remote that have features that are lacking here.
    pub(crate) fn pull(&self) -> Result<Copied> {
        let mut state = self.current()?;
        let Some(remote) = &self.remote else {
            return Ok(Copied::default());
        };
        let known = &mut state.known;
        self.pull_indexes_again(known, remote)?;
        let mut copied = Copied::default();
        for place in 0..known.segments.len() {
            let is_remote = known.segments[place].remote.is_some();
            if is_remote
                && known.rows_in(place).iter().any(|&row| known.is_of_image(row))
                && let Some(n_bytes) = self.pull_segment(known, remote, place)?
            {
                copied.segments += 1;
                copied.bytes += n_bytes;
            }
        }
        Ok(copied)
    }

    /// Copies a segment of the remote. What it holds is checked when it is read, as that of all segments. The result is its
    /// size in bytes, if it is still there.
    fn pull_segment(&self, known: &mut Known, remote: &Remote, place: usize) -> Result<Option<u64>> {
        let Some(segment) = known.segments[place].remote else {
            return Ok(None);
        };
        let Some(bytes) = remote.get(&segment)? else {
            return Ok(None);
        };
        let path = self.folder.join(sealed_name(&segment));
        write_atomically(&path, &bytes)?;
        known.read_segment(&path, true);
        Ok(Some(bytes.len() as u64))
    }

    /// The features of all images.
    pub(crate) fn features(&self) -> Result<Vec<StoredFeature>> {
        let state = self.current()?;
        let known = &state.known;
        let is_here = |&row: &u32| known.is_of_image(row) && !known.is_remote(row);
        let of_images = (0..known.rows.len() as u32).filter(is_here);
        Ok(of_images.map(|row| known.stored(row)).collect())
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
        let mut state = self.anew()?;
        let mut verified = Verified::default();
        let mut damaged = Vec::new();
        let local: Vec<usize> = state.known.local().collect();
        for place in local {
            let Segment { path, scanned, .. } = &state.known.segments[place];
            let is_sealed = scanned.is_none();
            // Without an index it is named by, it is read record by record each time.
            let mut is_whole = match File::open(path).and_then(|file| named_records(path, &file)) {
                // Another process has written it again.
                Err(error) if error.kind() == ErrorKind::NotFound => continue,
                records => records.map_err(Error::io(path))?.is_some(),
            };
            let rows = state.known.rows_in(place);
            verified.n_features += rows.len() as u64;
            for rows in rows.chunks(VERIFIED) {
                go_on(observer)?;
                let asked: Vec<(usize, u32)> = rows.iter().map(|&row| (0, row)).collect();
                let (unread, failure) = state.known.read(&asked, &mut |_, _| ());
                // What cannot be read now may be whole.
                failure.map_or(Ok(()), Err)?;
                verified.n_damaged += unread.len() as u64;
                is_whole &= unread.is_empty();
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
        // They are fetched again.
        for path in entries(&self.indexes())?.iter().filter(|path| path.is_file()) {
            remove(path)?;
        }
        let mut state = self.anew()?;
        let local: Vec<usize> = state.known.local().collect();
        check_twins(&mut state.known, &local, observer)?;
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

    /// Merges small segments. The caller has the cache to itself.
    pub(crate) fn merge_small(&self) -> Result<()> {
        let mut state = self.anew()?;
        let known = &state.known;
        let small: Vec<usize> = known.local().filter(|&place| known.is_small(place)).collect();
        check_twins(&mut state.known, &small, &())?;
        self.rewrite(&mut state, &small, &|_| true, &())
    }

    /// Whether there are so many small segments that they are to be merged.
    pub(crate) fn are_many_small(&self) -> Result<bool> {
        let is_small = |path: &&PathBuf| {
            path.extension().is_some_and(|extension| extension == SEALED)
                && path.metadata().is_ok_and(|metadata| metadata.len() < SMALL)
        };
        Ok(entries(&self.folder)?.iter().filter(is_small).count() > MANY)
    }

    /// Writes what is kept of segments to new ones, and removes them.
    fn rewrite(
        &self,
        state: &mut State,
        segments: &[usize],
        is_kept: &dyn Fn(&StoredFeature) -> bool,
        observer: &dyn Observer,
    ) -> Result<()> {
        let mut rewriting = Rewriting::default();
        let done = self.rewrite_to(&mut rewriting, &mut state.known, segments, is_kept, observer);
        // All is looked up anew.
        state.known = Known::default();
        done.inspect_err(|_| {
            // On a full disk this makes room.
            if let Some(Err(error)) = rewriting.new.take().map(Writer::discard) {
                tracing::debug!("{error}");
            }
        })
    }

    fn rewrite_to(
        &self,
        rewriting: &mut Rewriting,
        known: &mut Known,
        segments: &[usize],
        is_kept: &dyn Fn(&StoredFeature) -> bool,
        observer: &dyn Observer,
    ) -> Result<()> {
        let kept_of = |&place: &usize| {
            let mut rows = known.rows_in(place);
            rows.retain(|row| known.is_kept(*row, is_kept));
            (place, rows)
        };
        let mut kept: Vec<(usize, Vec<u32>)> = segments.iter().map(kept_of).collect();
        // Those that are of no use first: on a full disk they make room for the others.
        kept.sort_by_key(|(_, rows)| !rows.is_empty());
        for (place, rows) in kept {
            for rows in rows.chunks(VERIFIED) {
                go_on(observer)?;
                let asked: Vec<(usize, u32)> = rows.iter().copied().enumerate().collect();
                let stored: Vec<StoredFeature> = rows.iter().map(|&row| known.stored(row)).collect();
                let mut batch = Batch::default();
                let (_, failure) = known.read(&asked, &mut |place, bytes| {
                    let StoredFeature { descriptor, image, .. } = stored[place];
                    batch.push(descriptor, image, bytes);
                });
                // What cannot be read now may be whole.
                failure.map_or(Ok(()), Err)?;
                if !batch.is_empty() {
                    rewriting.copy(&self.folder, batch)?;
                }
            }
            rewriting.copied.push(known.segments[place].path.clone());
            if rewriting.new.as_ref().is_none_or(|new| new.n_bytes() >= LARGEST) {
                rewriting.finish()?;
            }
        }
        rewriting.finish()
    }
}

/// Forgets rows that are lost while rows of these segments are their twins: a twin may go only where the other is whole.
fn check_twins(known: &mut Known, segments: &[usize], observer: &dyn Observer) -> Result<()> {
    loop {
        let mut n_lost = 0;
        for rows in known.with_twins(segments).chunks(VERIFIED) {
            go_on(observer)?;
            let (unread, failure) = known.read(rows, &mut |_, _| ());
            // What cannot be read now may be whole.
            failure.map_or(Ok(()), Err)?;
            n_lost += unread.len();
        }
        // In place of a row that is lost its image now has another, which may be lost too.
        if n_lost == 0 {
            return Ok(());
        }
    }
}

/// Segments that are written again.
#[derive(Debug, Default)]
struct Rewriting {
    new: Option<Writer>,
    /// Those that the new one stands for.
    copied: Vec<PathBuf>,
    /// What was written. One of them may have the name of an old one, whose records are the same.
    sealed: HashSet<PathBuf>,
}

impl Rewriting {
    fn copy(&mut self, folder: &Path, batch: Batch) -> Result<()> {
        let new = match &mut self.new {
            Some(new) => new,
            new => new.insert(Writer::new(folder)?),
        };
        new.add(batch).map(drop)
    }

    /// Ends the new segment, and removes those that it stands for.
    fn finish(&mut self) -> Result<()> {
        let new = self.new.take().map(Writer::seal).transpose()?;
        self.sealed.extend(new.flatten());
        for path in self.copied.drain(..) {
            if !self.sealed.contains(&path) {
                remove(&path)?;
            }
        }
        Ok(())
    }
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
