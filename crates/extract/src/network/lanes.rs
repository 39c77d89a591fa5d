//! How cores are divided on the CPU: into lanes, each of which decodes images and takes them through the
//! network.
//!
//! A core that decodes and then computes is never idle, whatever the images cost to decode. No two
//! groups of threads must be balanced against each other. A lane is one thread: when
//! several threads of libtorch share a layer, they wait for each other at the end of each of the 53
//! convolutions.

use std::fmt;
use std::sync::atomic::AtomicUsize;
use std::sync::mpsc::sync_channel;

use super::batches::{Batches, Done, Finished, Places, Prepared, Stop, hand_on, report, threads};
use super::resnet50::{Network, WIDTH};
use crate::{Error, Observer, Pooling, Precision, Preprocess, Result};

/// How many threads decode and compute, in batches of how many images.
#[derive(Debug)]
pub(crate) struct Lanes {
    n_lanes: usize,
    /// Threads of libtorch in each lane.
    threads_each: usize,
    /// Images of a batch, whose shape is always the same.
    batch: usize,
}

impl Lanes {
    /// Divides `n_threads` for work on `n_images` images in `n_views` views. Each thread is a lane,
    /// unless there are fewer batches or images: one lane decodes all views of an image. The threads that are left help in
    /// its layers, but not in int8: with AMX, oneDNN rounds otherwise when several threads share a layer.
    pub(crate) fn new(n_threads: usize, n_images: usize, n_views: usize, batch: usize, precision: Precision) -> Self {
        let (n_threads, n_images) = (n_threads.max(1), n_images.max(1));
        let n_batches = n_images.saturating_mul(n_views).div_ceil(batch);
        let n_lanes = n_threads.min(n_images).min(n_batches);
        Lanes {
            n_lanes,
            threads_each: match precision {
                Precision::Int8 => 1,
                _ => n_threads / n_lanes,
            },
            batch,
        }
    }

    pub(crate) fn threads_each(&self) -> usize {
        self.threads_each
    }

    /// Takes `n` images through the network.
    ///
    /// `read` gets an image by its place. `done` gets the place, what `read` said about the image,
    /// and the 2048 features of each of its views by each of the poolings, in no particular order of
    /// the images.
    ///
    /// # Errors
    /// The first error of any lane, of `read`, of `done` or of the observer.
    pub(crate) fn run<T: Send>(
        &self,
        n: usize,
        read: impl Fn(usize, &mut Preprocess) -> Result<Prepared<T>> + Sync,
        network: &Network,
        poolings: &[Pooling],
        observer: &dyn Observer,
        mut done: impl FnMut(usize, T, Vec<Vec<f32>>) -> Result<()>,
    ) -> Result<()> {
        let pool = threads(self.n_lanes, "lane")?;
        // libtorch keeps the number for each thread. No lane computes while another still sets its
        // own.
        pool.broadcast(|_| tch::set_num_threads(self.threads_each as i32));
        let next = AtomicUsize::new(0);
        let (send, receive) = sync_channel(2 * self.n_lanes);
        pool.in_place_scope(|scope| {
            for _ in 0..self.n_lanes {
                let mut lane = Lane {
                    pixels: vec![0; self.batch * network.size().bytes()],
                    network: network.share(),
                    poolings,
                    send: send.clone(),
                };
                let (read, places) = (&read, Places::new(&next, n, observer));
                scope.spawn(move |_| {
                    let outcome = lane.run(places, read);
                    report(&lane.send, outcome);
                });
            }
            drop(send);
            for outcome in receive {
                let Done { place, about, rows } = outcome?;
                done(place, about, rows)?;
            }
            match observer.is_interrupted() {
                true => Err(Error::Interrupted),
                false => Ok(()),
            }
        })
    }
}

impl fmt::Display for Lanes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Lanes {
            n_lanes,
            threads_each,
            batch,
        } = self;
        write!(
            f,
            "lanes that decode and compute: {n_lanes}, threads of libtorch in each: {threads_each}, \
             images a batch: {batch}"
        )
    }
}

struct Lane<'a, T> {
    /// Of a batch.
    pixels: Vec<u8>,
    network: Network,
    poolings: &'a [Pooling],
    send: Finished<T>,
}

impl<T> Lane<'_, T> {
    fn run(
        &mut self,
        places: impl Iterator<Item = usize>,
        read: &impl Fn(usize, &mut Preprocess) -> Result<Prepared<T>>,
    ) -> std::result::Result<(), Stop> {
        let size = self.network.size();
        let batch = self.pixels.len() / size.bytes();
        let mut preprocess = Preprocess::new(size);
        let mut batches = Batches::new(size.bytes(), self.poolings.len());
        for place in places {
            if let Some(done) = batches.push(place, read(place, &mut preprocess)?) {
                hand_on(&self.send, done)?;
            }
            while batches.n_views() >= batch {
                self.run_batch(&mut batches)?;
            }
        }
        while batches.n_views() > 0 {
            self.run_batch(&mut batches)?;
        }
        Ok(())
    }

    /// Takes up to a batch of views through the network, and hands on the images that are
    /// complete then.
    fn run_batch(&mut self, batches: &mut Batches<T>) -> std::result::Result<(), Stop> {
        let n = batches.take(&mut self.pixels);
        // The shape is always the same, so that an image's features do not depend on its
        // neighbours. Features of integers do not anyway.
        let pixels = match self.network.is_int8() {
            true => &self.pixels[..n * self.network.size().bytes()],
            false => &self.pixels,
        };
        let features = self.network.forward(pixels, self.poolings)?;
        batches.complete(&features[..n * self.poolings.len() * WIDTH], &self.send)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn threads_are_divided_by_batches_of_work() {
        let divide = |n_threads, (n_images, n_views), batch| {
            let lanes = Lanes::new(n_threads, n_images, n_views, batch, Precision::Fp32);
            (lanes.n_lanes, lanes.threads_each)
        };
        assert_eq!(Lanes::new(8, 1, 1, 1, Precision::Int8).threads_each, 1);
        assert_eq!(divide(8, (1000, 1), 4), (8, 1));
        assert_eq!(divide(8, (9, 1), 4), (3, 2));
        assert_eq!(divide(8, (1, 1), 1), (1, 8));
        assert_eq!(divide(8, (1, 4), 1), (1, 8));
        assert_eq!(divide(0, (0, 1), 1), (1, 1));
    }
}
