//! How cores are divided: into lanes, each of which decodes images and takes them through the
//! network.
//!
//! A core that decodes and then computes is never idle, whatever the images cost to decode. No two
//! groups of threads must be balanced against each other. On the CPU a lane is one thread: when
//! several threads of libtorch share a layer, they wait for each other at the end of each of the 53
//! convolutions. On a GPU the lanes decode, and take turns to compute.

use std::collections::VecDeque;
use std::fmt;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{SyncSender, sync_channel};

use rayon::ThreadPoolBuilder;

use super::resnet50::{Network, WIDTH};
use crate::{Device, Error, InputSize, Observer, Pooling, Preprocess, Result};

/// An image that is ready for the network.
pub(crate) struct Prepared<T> {
    /// RGB of the image's views, `u8 [views, side, side, 3]`. An image without views passes by the
    /// network.
    pub(crate) views: Vec<u8>,
    /// What else is known of the image. The lanes hand it on.
    pub(crate) about: T,
}

/// How many threads decode and compute, in batches of how many images.
#[derive(Debug)]
pub(crate) struct Lanes {
    device: Device,
    n_lanes: usize,
    /// Threads of libtorch in each lane.
    threads_each: usize,
    /// Images of a batch, whose shape is always the same.
    batch: usize,
    /// How many images a lane gathers before it runs a batch.
    fill: usize,
}

impl Lanes {
    /// Divides `n_threads` for work on `n_images` images in `n_views` views. Each thread is a lane,
    /// unless there are fewer batches or images: one lane decodes all views of an image.
    pub(crate) fn new(device: Device, n_threads: usize, n_images: usize, n_views: usize, batch: usize) -> Self {
        let (n_threads, n_images) = (n_threads.max(1), n_images.max(1));
        let n_seen = n_images.saturating_mul(n_views);
        let most = n_threads.min(n_images);
        let (n_lanes, fill) = match device {
            // A batch costs the same however full it is.
            Device::Cpu => (most.min(n_seen.div_ceil(batch)), batch),
            // The GPU is faster than the decoders: batches are rather half empty than decoders
            // idle.
            Device::Cuda(_) | Device::Mps => (most, batch.min(n_seen.div_ceil(most))),
        };
        Lanes {
            device,
            n_lanes,
            threads_each: n_threads / n_lanes,
            batch,
            fill,
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
        let pool = ThreadPoolBuilder::new()
            .num_threads(self.n_lanes)
            .thread_name(|n| format!("lane-{n}"))
            .build()
            .map_err(|error| {
                let threads = format!("{} threads", self.n_lanes);
                Error::io(threads.as_ref())(std::io::Error::other(error))
            })?;
        if self.device == Device::Cpu {
            // libtorch keeps the number for each thread. No lane computes while another still sets
            // its own.
            pool.broadcast(|_| tch::set_num_threads(self.threads_each as i32));
        }
        let (next, batch) = (AtomicUsize::new(0), AtomicUsize::new(self.batch));
        let (send, receive) = sync_channel(2 * self.n_lanes);
        pool.in_place_scope(|scope| {
            for _ in 0..self.n_lanes {
                let mut lane = Lane {
                    lanes: self,
                    network: network.share(),
                    poolings,
                    batch: &batch,
                    pixels: Vec::new(),
                    features: Vec::new(),
                    waiting: VecDeque::new(),
                    send: send.clone(),
                };
                let (read, next) = (&read, &next);
                scope.spawn(move |_| {
                    let _guard = EndsAll { next, n };
                    let places = std::iter::from_fn(|| {
                        let place = next.fetch_add(1, Ordering::Relaxed);
                        (place < n && !observer.is_interrupted()).then_some(place)
                    });
                    if let Err(Stop::Failed(error)) = lane.run(places, read) {
                        // Without a receiver the run has failed already.
                        lane.send.send(Err(error)).ok();
                    }
                });
            }
            drop(send);
            for outcome in receive {
                let Done { place, about, rows } = outcome?;
                done(place, about, rows)?;
            }
            if observer.is_interrupted() {
                return Err(Error::Interrupted);
            }
            Ok(())
        })
    }
}

impl fmt::Display for Lanes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Lanes {
            device: _,
            n_lanes,
            threads_each,
            batch,
            fill,
        } = self;
        write!(
            f,
            "lanes that decode and compute: {n_lanes}, threads of libtorch in each: {threads_each}, \
             images a batch: {batch}"
        )?;
        if fill < batch {
            write!(f, ", of which {fill} are filled")?;
        }
        Ok(())
    }
}

/// Ends the work of all lanes when one of them panics.
struct EndsAll<'a> {
    next: &'a AtomicUsize,
    n: usize,
}

impl Drop for EndsAll<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.next.store(self.n, Ordering::Relaxed);
        }
    }
}

/// Why a lane ends early.
enum Stop {
    Failed(Error),
    /// Nobody receives what the lane makes: the run has failed elsewhere.
    Unwanted,
}

impl From<Error> for Stop {
    fn from(error: Error) -> Self {
        Stop::Failed(error)
    }
}

/// An image whose views are on their way through the network.
struct Waiting<T> {
    place: usize,
    n_views: usize,
    about: T,
}

/// An image with its features.
struct Done<T> {
    place: usize,
    about: T,
    /// The 2048 features of each view by each pooling.
    rows: Vec<Vec<f32>>,
}

struct Lane<'a, T> {
    lanes: &'a Lanes,
    network: Network,
    poolings: &'a [Pooling],
    /// Images that fit on the device at once, as far as all lanes know.
    batch: &'a AtomicUsize,
    /// Views that have not been through the network, `u8 [n, side, side, 3]`.
    pixels: Vec<u8>,
    /// Features of views that have been, but whose image is not complete, `f32 [n, poolings, 2048]`.
    features: Vec<f32>,
    /// The images of `features` and `pixels`, in this order.
    waiting: VecDeque<Waiting<T>>,
    send: SyncSender<Result<Done<T>>>,
}

impl<T> Lane<'_, T> {
    fn run(
        &mut self,
        places: impl Iterator<Item = usize>,
        read: &impl Fn(usize, &mut Preprocess) -> Result<Prepared<T>>,
    ) -> std::result::Result<(), Stop> {
        let size = self.network.size();
        let mut preprocess = Preprocess::new(size);
        for place in places {
            let Prepared { views, about } = read(place, &mut preprocess)?;
            let n_views = views.len() / size.bytes();
            self.waiting.push_back(Waiting { place, n_views, about });
            self.pixels.extend(views);
            while self.pixels.len() >= self.lanes.fill * size.bytes() {
                self.run_batch()?;
            }
            self.finish_whole()?;
        }
        while !self.pixels.is_empty() {
            self.run_batch()?;
        }
        Ok(())
    }

    /// Takes up to a batch of views through the network, and hands over the images that are
    /// complete then.
    fn run_batch(&mut self) -> std::result::Result<(), Stop> {
        let size = self.network.size();
        let n = self.pixels.len().min(self.lanes.fill * size.bytes());
        let mut batch: Vec<u8> = self.pixels.drain(..n).collect();
        // The shape is always the same, so that an image's features do not depend on its
        // neighbours. Features of integers do not anyway.
        if !self.network.is_int8() {
            batch.resize(self.lanes.batch * size.bytes(), 0);
        }
        let run = |images: &[u8]| self.network.forward(images, self.poolings);
        let features = as_memory_allows(&batch, size, self.batch, run)?;
        self.features.extend(&features[..n / size.bytes() * self.width()]);
        self.finish_whole()
    }

    /// The number of features of a view.
    fn width(&self) -> usize {
        self.poolings.len() * WIDTH
    }

    /// Hands over the first images that wait, as far as they are complete.
    fn finish_whole(&mut self) -> std::result::Result<(), Stop> {
        let is_whole = |lane: &Self, first: &Waiting<T>| lane.features.len() >= first.n_views * lane.width();
        while (self.waiting.front()).is_some_and(|first| is_whole(self, first))
            && let Some(Waiting { place, n_views, about }) = self.waiting.pop_front()
        {
            let rows: Vec<f32> = self.features.drain(..n_views * self.width()).collect();
            let rows = rows.chunks_exact(WIDTH).map(<[f32]>::to_vec).collect();
            let done = Done { place, about, rows };
            self.send.send(Ok(done)).map_err(|_| Stop::Unwanted)?;
        }
        Ok(())
    }
}

/// Runs images at once, or in parts if the device is out of memory. `batch` remembers how many
/// images fit.
fn as_memory_allows(
    images: &[u8],
    size: InputSize,
    batch: &AtomicUsize,
    run: impl Fn(&[u8]) -> Result<Vec<f32>>,
) -> Result<Vec<f32>> {
    let mut features = Vec::new();
    let mut rest = images;
    while !rest.is_empty() {
        let fitting = batch.load(Ordering::Relaxed);
        let part = &rest[..rest.len().min(fitting * size.bytes())];
        match run(part) {
            Ok(rows) => {
                features.extend(rows);
                rest = &rest[part.len()..];
            }
            Err(Error::Torch(message)) if fitting > 1 && message.contains("out of memory") => {
                // Another lane may have halved `batch` meanwhile: never more than half of what this
                // lane tried.
                batch.fetch_min(fitting / 2, Ordering::Relaxed);
                tracing::warn!(
                    "out of memory with batches of {fitting} images: going on with {}",
                    fitting / 2
                );
            }
            Err(error) => return Err(error),
        }
    }
    Ok(features)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn threads_are_divided_by_batches_of_work() {
        let divide = |device, n_threads, (n_images, n_views), batch| {
            let lanes = Lanes::new(device, n_threads, n_images, n_views, batch);
            (lanes.n_lanes, lanes.threads_each, lanes.fill)
        };
        assert_eq!(divide(Device::Cpu, 8, (1000, 1), 4), (8, 1, 4));
        assert_eq!(divide(Device::Cpu, 8, (9, 1), 4), (3, 2, 4));
        assert_eq!(divide(Device::Cpu, 8, (1, 1), 1), (1, 8, 1));
        assert_eq!(divide(Device::Cpu, 8, (1, 4), 1), (1, 8, 1));
        assert_eq!(divide(Device::Cpu, 0, (0, 1), 1), (1, 1, 1));
        assert_eq!(divide(Device::Cuda(0), 16, (100_000, 2), 128), (16, 1, 128));
        assert_eq!(divide(Device::Cuda(0), 16, (100, 1), 128), (16, 1, 7));
    }

    #[test]
    fn a_batch_is_halved_until_it_fits_and_stays_halved() {
        let size = InputSize::default();
        let images: Vec<u8> = (0..7).flat_map(|n| vec![n; size.bytes()]).collect();
        let batch = AtomicUsize::new(8);
        let tries = std::cell::RefCell::new(Vec::new());
        let run = |images: &[u8]| {
            let n = images.len() / size.bytes();
            tries.borrow_mut().push(n);
            if n > 2 {
                let message = "CUDA out of memory. Tried to allocate 2.00 GiB.".to_owned();
                return Err(Error::Torch(message));
            }
            let firsts = images.iter().step_by(size.bytes());
            Ok(firsts.flat_map(|&first| vec![f32::from(first); WIDTH]).collect())
        };
        let features = as_memory_allows(&images, size, &batch, run).unwrap();
        let expected: Vec<f32> = (0..7).flat_map(|n| vec![n as f32; WIDTH]).collect();
        assert_eq!(features, expected);
        assert_eq!(*tries.borrow(), [7, 4, 2, 2, 2, 1]);
        assert_eq!(batch.into_inner(), 2);
    }

    #[test]
    fn other_failures_and_a_single_image_that_does_not_fit_are_errors() {
        for (message, batch) in [("cuDNN failed", 8), ("CUDA out of memory", 1)] {
            let size = InputSize::default();
            let outcome = as_memory_allows(&vec![0; size.bytes()], size, &AtomicUsize::new(batch), |_| {
                Err(Error::Torch(message.to_owned()))
            });
            assert!(matches!(outcome.unwrap_err(), Error::Torch(found) if found == message));
        }
    }
}
