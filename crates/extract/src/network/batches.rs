//! Images on their way through the network: the views of one or many fill a batch, and an image is
//! handed on when all its views have features.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::SyncSender;

use rayon::{ThreadPool, ThreadPoolBuilder};

use super::resnet50::WIDTH;
use crate::{Error, Observer, Result};

/// An image that is ready for the network.
pub(crate) struct Prepared<T> {
    /// RGB of the image's views, `u8 [views, side, side, 3]`. An image without views passes by the
    /// network.
    pub(crate) views: Vec<u8>,
    /// What else is known of the image, which is handed on.
    pub(crate) about: T,
}

/// An image with its features.
pub(super) struct Done<T> {
    pub(super) place: usize,
    pub(super) about: T,
    /// The 2048 features of each view by each pooling.
    pub(super) rows: Vec<Vec<f32>>,
}

/// Why a thread ends early.
pub(super) enum Stop {
    Failed(Error),
    /// Nobody receives what the thread makes: the run has failed elsewhere.
    Unwanted,
}

impl From<Error> for Stop {
    fn from(error: Error) -> Self {
        Stop::Failed(error)
    }
}

/// Where finished images go.
pub(super) type Finished<T> = SyncSender<Result<Done<T>>>;

/// Hands an image on.
pub(super) fn hand_on<T>(to: &Finished<T>, done: Done<T>) -> std::result::Result<(), Stop> {
    to.send(Ok(done)).map_err(|_| Stop::Unwanted)
}

/// Tells the run why a thread ended, if the thread is the one that knows.
pub(super) fn report<T>(to: &Finished<T>, outcome: std::result::Result<(), Stop>) {
    if let Err(Stop::Failed(error)) = outcome {
        // Without a receiver the run has failed already.
        to.send(Err(error)).ok();
    }
}

/// The images between their pixels and their features.
pub(super) struct Batches<T> {
    /// Bytes of a view.
    view: usize,
    n_poolings: usize,
    /// The views of images that have not been taken whole, the first from `taken` on.
    pixels: VecDeque<Vec<u8>>,
    /// Bytes.
    taken: usize,
    n_views: usize,
    /// Place and number of views of the images without features.
    waiting: VecDeque<(usize, usize, T)>,
    /// Features of the first image that waits, as far as they are there.
    rows: Vec<Vec<f32>>,
}

impl<T> Batches<T> {
    pub(super) fn new(view: usize, n_poolings: usize) -> Self {
        Batches {
            view,
            n_poolings,
            pixels: VecDeque::new(),
            taken: 0,
            n_views: 0,
            waiting: VecDeque::new(),
            rows: Vec::new(),
        }
    }

    /// Adds an image, or returns it, if it has no views.
    pub(super) fn push(&mut self, place: usize, image: Prepared<T>) -> Option<Done<T>> {
        let Prepared { views, about } = image;
        let n_views = views.len() / self.view;
        if n_views == 0 {
            let rows = Vec::new();
            return Some(Done { place, about, rows });
        }
        self.n_views += n_views;
        self.pixels.push_back(views);
        self.waiting.push_back((place, n_views, about));
        None
    }

    /// How many views have not been taken.
    pub(super) fn n_views(&self) -> usize {
        self.n_views
    }

    /// Takes as many views as there are and fit. The rest of the batch is black. The result is how many views it has.
    pub(super) fn take(&mut self, batch: &mut [u8]) -> usize {
        let mut rest = &mut *batch;
        while let Some(views) = self.pixels.front()
            && !rest.is_empty()
        {
            let left = &views[self.taken..];
            let n = left.len().min(rest.len());
            let (filled, after) = rest.split_at_mut(n);
            filled.copy_from_slice(&left[..n]);
            rest = after;
            self.taken += n;
            if self.taken == views.len() {
                self.pixels.pop_front();
                self.taken = 0;
            }
        }
        rest.fill(0);
        let n_rest = rest.len();
        let n_taken = (batch.len() - n_rest) / self.view;
        self.n_views -= n_taken;
        n_taken
    }

    /// Takes the features of the views that were taken, in their order, `f32 [n, poolings, 2048]`, and hands on the images
    /// that are complete.
    pub(super) fn complete(&mut self, features: &[f32], to: &Finished<T>) -> std::result::Result<(), Stop> {
        for of_view in features.chunks_exact(self.n_poolings * WIDTH) {
            self.rows.extend(of_view.chunks_exact(WIDTH).map(<[f32]>::to_vec));
            let is_whole = |&(_, n_views, _): &(usize, usize, T)| n_views * self.n_poolings == self.rows.len();
            if self.waiting.front().is_some_and(is_whole)
                && let Some((place, _, about)) = self.waiting.pop_front()
            {
                let rows = std::mem::take(&mut self.rows);
                hand_on(to, Done { place, about, rows })?;
            }
        }
        Ok(())
    }
}

/// The places of images, which threads share out among themselves.
pub(super) struct Places<'a> {
    next: &'a AtomicUsize,
    n: usize,
    observer: &'a dyn Observer,
}

impl<'a> Places<'a> {
    pub(super) fn new(next: &'a AtomicUsize, n: usize, observer: &'a dyn Observer) -> Self {
        Places { next, n, observer }
    }
}

impl Iterator for Places<'_> {
    type Item = usize;

    fn next(&mut self) -> Option<usize> {
        let place = self.next.fetch_add(1, Ordering::Relaxed);
        (place < self.n && !self.observer.is_interrupted()).then_some(place)
    }
}

impl Drop for Places<'_> {
    /// Ends the work of all threads when one of them panics.
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.next.store(self.n, Ordering::Relaxed);
        }
    }
}

/// So many threads of this name.
pub(super) fn threads(n: usize, name: &'static str) -> Result<ThreadPool> {
    ThreadPoolBuilder::new()
        .num_threads(n)
        .thread_name(move |n| format!("{name}-{n}"))
        .build()
        .map_err(|error| {
            let threads = format!("{n} threads");
            Error::io(threads.as_ref())(std::io::Error::other(error))
        })
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc::sync_channel;

    use super::*;

    /// Views of two bytes: the first says which view it is, and so do its features.
    #[test]
    fn views_of_an_image_may_be_in_several_batches() {
        let mut batches = Batches::new(2, 2);
        let mut seen = Vec::new();
        let image = |views: &[u8]| Prepared {
            views: views.iter().flat_map(|&view| [view, 0]).collect(),
            about: views.len(),
        };
        for (place, views) in [&[1, 2, 3][..], &[], &[4], &[5, 6]].into_iter().enumerate() {
            if let Some(done) = batches.push(place, image(views)) {
                seen.push((done.place, done.about, done.rows.len()));
            }
        }
        assert_eq!((seen, batches.n_views()), (vec![(1, 0, 0)], 6));
        let (send, receive) = sync_channel(9);
        for (expected, n) in [([1, 2, 3, 4], 4), ([5, 6, 0, 0], 2)] {
            let mut batch = [9; 8];
            assert_eq!(batches.take(&mut batch), n);
            let firsts: Vec<u8> = batch.iter().step_by(2).copied().collect();
            assert_eq!(firsts, expected);
            let features: Vec<f32> = (firsts[..n].iter())
                .flat_map(|&view| [f32::from(view), -f32::from(view)])
                .flat_map(|value| [value; WIDTH])
                .collect();
            assert!(batches.complete(&features, &send).is_ok());
        }
        drop(send);
        let found: Vec<_> = receive
            .iter()
            .map(|done| {
                let Done { place, about, rows } = done.unwrap();
                let firsts: Vec<f32> = rows.iter().map(|row| row[0]).collect();
                (place, about, firsts)
            })
            .collect();
        let expected = [
            (0, 3, vec![1.0, -1.0, 2.0, -2.0, 3.0, -3.0]),
            (2, 1, vec![4.0, -4.0]),
            (3, 2, vec![5.0, -5.0, 6.0, -6.0]),
        ];
        assert_eq!(found, expected);
        assert_eq!(batches.n_views(), 0);
    }
}
