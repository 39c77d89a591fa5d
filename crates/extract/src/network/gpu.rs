//! How a GPU is kept busy: many threads decode into one queue, and one thread owns the GPU.
//!
//! A GPU computes faster than the cores beside it decode, so that they must never wait for each other. The GPU's thread
//! fills a batch from the queue and has the GPU compute it. While the GPU does, the thread fills the next; only then it
//! waits for the features of the first. The thread lives as long as the extractor: cuDNN keeps its plans, which cost
//! up to seconds, for each thread.

use std::collections::VecDeque;
use std::fmt;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, TryRecvError, sync_channel};

use rayon::ThreadPool;

use super::batches::{Batches, Done, Finished, Places, Prepared, Stop, hand_on, report, threads};
use crate::{Error, InputSize, Observer, Preprocess, Result};

/// The network on a GPU, which computes while its thread does other things.
pub(crate) trait Accelerator: Send {
    /// Images in memory from which the GPU can copy.
    type Images;
    /// Features on their way.
    type Pending;

    /// Height and width of the images.
    fn size(&self) -> InputSize;

    /// How many features an image has for each of its 2048: the poolings.
    fn n_poolings(&self) -> usize;

    /// Memory for `n` images, `u8 [n, side, side, 3]`, which `fill` writes.
    fn images(&self, n: usize, fill: impl FnOnce(&mut [u8])) -> Result<Self::Images>;

    /// Has `n` of the images computed, from `first` on.
    fn start(&self, images: &Self::Images, first: usize, n: usize) -> Result<Self::Pending>;

    /// Waits for the features, `f32 [n, poolings, 2048]`.
    fn finish(&self, pending: Self::Pending) -> Result<Vec<f32>>;
}

/// The threads around a GPU, and how many images it takes at once.
#[derive(Debug)]
pub(crate) struct Gpu {
    n_decoders: usize,
    /// Of one thread.
    owner: ThreadPool,
    /// Images of a batch, whose shape is always the same: halved, perhaps several times, once the GPU was out of memory.
    batch: AtomicUsize,
}

impl Gpu {
    /// `n_threads` decode at most, and a thread that computes nothing is beside them.
    pub(crate) fn new(n_threads: usize, n_images: usize, batch: usize) -> Result<Self> {
        Ok(Gpu {
            n_decoders: n_threads.min(n_images).max(1),
            owner: threads(1, "gpu")?,
            batch: AtomicUsize::new(batch),
        })
    }

    /// Takes `n` images through the network, as [`Lanes::run`](super::lanes::Lanes::run).
    ///
    /// # Errors
    /// The first error of any decoder, of the network, of `done` or of the observer.
    pub(crate) fn run<T: Send>(
        &self,
        n: usize,
        read: impl Fn(usize, &mut Preprocess) -> Result<Prepared<T>> + Sync,
        network: impl Accelerator,
        observer: &dyn Observer,
        mut done: impl FnMut(usize, T, Vec<Vec<f32>>) -> Result<()>,
    ) -> Result<()> {
        let decoders = threads(self.n_decoders, "decoder")?;
        let (next, size) = (AtomicUsize::new(0), network.size());
        let in_queue = self.batch.load(Ordering::Relaxed).max(2 * self.n_decoders);
        let (decoded, to_compute) = sync_channel(in_queue);
        let (finished, receive) = sync_channel(in_queue);
        decoders.in_place_scope(|scope| {
            for _ in 0..self.n_decoders {
                let (read, decoded, finished) = (&read, decoded.clone(), finished.clone());
                let places = Places::new(&next, n, observer);
                scope.spawn(move |_| {
                    let mut preprocess = Preprocess::new(size);
                    let mut decode = |place| {
                        let image = read(place, &mut preprocess)?;
                        decoded.send((place, image)).map_err(|_| Stop::Unwanted)
                    };
                    let mut places = places;
                    report(&finished, places.try_for_each(&mut decode));
                });
            }
            drop(decoded);
            self.owner.in_place_scope(|scope| {
                scope.spawn(move |_| report(&finished, self.compute(&network, &to_compute, &finished)));
                for outcome in receive {
                    let Done { place, about, rows } = outcome?;
                    done(place, about, rows)?;
                }
                match observer.is_interrupted() {
                    true => Err(Error::Interrupted),
                    false => Ok(()),
                }
            })
        })
    }

    /// How many images it takes at once.
    #[cfg(test)]
    pub(crate) fn batch(&self) -> usize {
        self.batch.load(Ordering::Relaxed)
    }

    /// Has batches be half as large as one that does not fit.
    fn halve(&self, batch: usize) {
        let half = batch.div_ceil(2);
        tracing::warn!("out of memory with batches of {batch} images: going on with {half}");
        self.batch.store(half, Ordering::Relaxed);
    }

    /// The work of the thread that owns the GPU: batch after batch, until no images come.
    fn compute<T, A: Accelerator>(
        &self,
        network: &A,
        images: &Receiver<(usize, Prepared<T>)>,
        to: &Finished<T>,
    ) -> std::result::Result<(), Stop> {
        let mut batches = Batches::new(network.size().bytes(), network.n_poolings());
        let mut work = Work {
            gpu: self,
            network,
            pending: VecDeque::new(),
        };
        loop {
            let batch = self.batch.load(Ordering::Relaxed);
            while batches.n_views() < batch {
                let (place, image) = match images.try_recv() {
                    Ok(image) => image,
                    // Nothing is to be done meanwhile, so features need not wait for the next batch.
                    Err(TryRecvError::Empty) => {
                        work.finish_all(|features| batches.complete(features, to))?;
                        match images.recv() {
                            Ok(image) => image,
                            Err(_) => break,
                        }
                    }
                    Err(TryRecvError::Disconnected) => break,
                };
                if let Some(done) = batches.push(place, image) {
                    hand_on(to, done)?;
                }
            }
            if batches.n_views() == 0 {
                return work.finish_all(|features| batches.complete(features, to));
            }
            let mut n = 0;
            let pixels = match network.images(batch, |pixels| n = batches.take(pixels)) {
                Ok(pixels) => pixels,
                // No image was taken.
                Err(error) if is_memory(&error) && batch > 1 => {
                    work.finish_all(|features| batches.complete(features, to))?;
                    self.halve(batch);
                    continue;
                }
                Err(error) => return Err(error.into()),
            };
            work.run(&pixels, batch, n, |features| batches.complete(features, to))?;
        }
    }
}

impl fmt::Display for Gpu {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Gpu {
            n_decoders,
            owner: _,
            batch,
        } = self;
        let batch = batch.load(Ordering::Relaxed);
        write!(f, "threads that decode: {n_decoders}, images a batch: {batch}")
    }
}

/// What the GPU computes.
struct Work<'a, A: Accelerator> {
    gpu: &'a Gpu,
    network: &'a A,
    /// With the number of images that count: the others fill the batch up.
    pending: VecDeque<(A::Pending, usize)>,
}

impl<A: Accelerator> Work<'_, A> {
    /// Has the first `n` of a batch computed, or parts of it if the GPU is out of memory. The batch before is finished
    /// meanwhile.
    fn run(
        &mut self,
        images: &A::Images,
        batch: usize,
        n: usize,
        mut complete: impl FnMut(&[f32]) -> std::result::Result<(), Stop>,
    ) -> std::result::Result<(), Stop> {
        let mut first = 0;
        while first < n {
            let part = self.gpu.batch.load(Ordering::Relaxed).min(batch - first);
            match self.network.start(images, first, part) {
                Ok(pending) => {
                    self.pending.push_back((pending, part.min(n - first)));
                    first += part;
                    while self.pending.len() > 1 {
                        self.finish_first(&mut complete)?;
                    }
                }
                Err(error) if is_memory(&error) => {
                    // The batch before may hold the memory that is missing.
                    let is_alone = self.pending.is_empty();
                    self.finish_all(&mut complete)?;
                    if !is_alone {
                        continue;
                    }
                    if part == 1 {
                        return Err(error.into());
                    }
                    self.gpu.halve(part);
                }
                Err(error) => return Err(error.into()),
            }
        }
        Ok(())
    }

    fn finish_all(
        &mut self,
        mut complete: impl FnMut(&[f32]) -> std::result::Result<(), Stop>,
    ) -> std::result::Result<(), Stop> {
        while !self.pending.is_empty() {
            self.finish_first(&mut complete)?;
        }
        Ok(())
    }

    fn finish_first(
        &mut self,
        complete: &mut impl FnMut(&[f32]) -> std::result::Result<(), Stop>,
    ) -> std::result::Result<(), Stop> {
        let Some((pending, n)) = self.pending.pop_front() else {
            return Ok(());
        };
        let features = self.network.finish(pending)?;
        complete(&features[..n * self.network.n_poolings() * super::resnet50::WIDTH])
    }
}

/// Whether a GPU had too little memory. cuDNN searches for an engine until one has enough, and then says that there is
/// none.
fn is_memory(error: &Error) -> bool {
    let Error::Torch(message) = error else {
        return false;
    };
    let message = message.to_lowercase();
    let signs = [
        "out of memory",
        "alloc_failed",
        "allocation_failed",
        "unable to find an engine",
    ];
    signs.iter().any(|sign| message.contains(sign))
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use super::super::resnet50::WIDTH;
    use super::*;

    /// Stands for a network on a GPU: the features of an image are its first byte. It writes down what it is asked for.
    #[derive(Default)]
    struct StandIn {
        /// How many images fit, with those that are pending.
        memory: Option<usize>,
        failure: Option<&'static str>,
        seen: Mutex<Seen>,
    }

    #[derive(Default)]
    struct Seen {
        started: Vec<usize>,
        in_memory: usize,
    }

    impl Accelerator for &StandIn {
        type Images = Vec<u8>;
        type Pending = Vec<u8>;

        fn size(&self) -> InputSize {
            InputSize::new(64).unwrap()
        }

        fn n_poolings(&self) -> usize {
            1
        }

        fn images(&self, n: usize, fill: impl FnOnce(&mut [u8])) -> Result<Vec<u8>> {
            let mut images = vec![9; n * self.size().bytes()];
            fill(&mut images);
            Ok(images)
        }

        fn start(&self, images: &Vec<u8>, first: usize, n: usize) -> Result<Vec<u8>> {
            let mut seen = self.seen.lock().unwrap();
            if let Some(message) = self.failure {
                return Err(Error::Torch(message.to_owned()));
            }
            if self.memory.is_some_and(|memory| seen.in_memory + n > memory) {
                let message = "GET was unable to find an engine to execute this computation";
                return Err(Error::Torch(message.to_owned()));
            }
            seen.started.push(n);
            seen.in_memory += n;
            let firsts = images.chunks_exact(self.size().bytes()).map(|image| image[0]);
            Ok(firsts.skip(first).take(n).collect())
        }

        fn finish(&self, pending: Vec<u8>) -> Result<Vec<f32>> {
            self.seen.lock().unwrap().in_memory -= pending.len();
            let features = pending.iter().flat_map(|&first| [f32::from(first); WIDTH]);
            Ok(features.collect())
        }
    }

    /// Takes images of so many views each through a network, on three decoders in batches of 8; the batches.
    fn run(network: &StandIn, n_views: &[usize]) -> Result<Vec<usize>> {
        let gpu = Gpu::new(3, n_views.len(), 8)?;
        let mut seen = vec![None; n_views.len()];
        let view = |place: usize, view: usize| (place * 7 + view) as u8;
        let read = |place: usize, _: &mut Preprocess| {
            let views = (0..n_views[place]).flat_map(|n| vec![view(place, n); network.size().bytes()]);
            Ok(Prepared {
                views: views.collect(),
                about: place,
            })
        };
        gpu.run(n_views.len(), read, network, &(), |place, about, rows| {
            assert_eq!(about, place);
            let rows = rows.iter().map(|row| row[WIDTH - 1]).collect::<Vec<_>>();
            assert!(seen[place].replace(rows).is_none(), "{place} comes twice");
            Ok(())
        })?;
        for (place, rows) in seen.into_iter().enumerate() {
            let expected: Vec<f32> = (0..n_views[place]).map(|n| f32::from(view(place, n))).collect();
            assert_eq!(rows, Some(expected), "{place}");
        }
        Ok(network.seen.lock().unwrap().started.clone())
    }

    #[test]
    fn batches_are_filled_whatever_the_number_of_decoders_and_only_the_last_is_padded() {
        assert_eq!(run(&StandIn::default(), &[1; 20]).unwrap(), [8, 8, 8]);
        assert_eq!(run(&StandIn::default(), &[1]).unwrap(), [8]);
        assert_eq!(run(&StandIn::default(), &[]).unwrap(), [0; 0]);
        // Views of an image may be in two batches, and an image may have none.
        assert_eq!(run(&StandIn::default(), &[3, 0, 5, 0, 2, 9]).unwrap(), [8, 8, 8]);
        assert_eq!(run(&StandIn::default(), &[0, 0]).unwrap(), [0; 0]);
    }

    #[test]
    fn a_batch_is_halved_until_it_fits_and_stays_halved() {
        let memory = |memory| StandIn {
            memory: Some(memory),
            ..StandIn::default()
        };
        // With room for one batch, but not for the next beside it.
        assert_eq!(run(&memory(8), &[1; 20]).unwrap(), [8, 8, 8]);
        assert_eq!(run(&memory(3), &[1; 20]).unwrap(), [2; 10]);
        assert_eq!(run(&memory(1), &[2; 3]).unwrap(), [1; 6]);
        let error = run(&memory(0), &[1; 20]).unwrap_err();
        assert!(is_memory(&error), "{error}");
    }

    #[test]
    fn what_says_that_memory_is_missing() {
        for (message, expected) in [
            ("CUDA out of memory. Tried to allocate 2.00 GiB.", true),
            (
                "cuDNN error: CUDNN_STATUS_INTERNAL_ERROR_DEVICE_ALLOCATION_FAILED",
                true,
            ),
            (
                "CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`",
                true,
            ),
            ("FIND was unable to find an engine to execute this computation", true),
            ("CUDA error: an illegal memory access was encountered", false),
        ] {
            assert_eq!(is_memory(&Error::Torch(message.to_owned())), expected, "{message}");
        }
        assert!(!is_memory(&Error::Interrupted));
    }

    #[test]
    fn a_failure_of_the_network_of_a_decoder_or_of_the_receiver_ends_the_run() {
        let broken = StandIn {
            failure: Some("CUDA error: unspecified launch failure"),
            ..StandIn::default()
        };
        let error = run(&broken, &[1; 100]).unwrap_err();
        assert_eq!(error.to_string(), "libtorch: CUDA error: unspecified launch failure");

        let gpu = Gpu::new(3, 1000, 8).unwrap();
        let image = || Prepared {
            views: vec![1; InputSize::new(64).unwrap().bytes()],
            about: (),
        };
        let read = |place: usize, _: &mut Preprocess| match place {
            500 => Err(Error::Torch("damaged".to_owned())),
            _ => Ok(image()),
        };
        let network = StandIn::default();
        let error = gpu.run(1000, read, &network, &(), |_, (), _| Ok(())).unwrap_err();
        assert_eq!(error.to_string(), "libtorch: damaged");

        let read = |_: usize, _: &mut Preprocess| Ok(image());
        let full = |_, (), _| Err(Error::Interrupted);
        let error = gpu.run(1000, read, &network, &(), full).unwrap_err();
        assert!(matches!(error, Error::Interrupted));
        // And the thread is there for the next run.
        let mut n = 0;
        let count = |_, (), _| {
            n += 1;
            Ok(())
        };
        gpu.run(20, read, &network, &(), count).unwrap();
        assert_eq!(n, 20);
    }

    #[test]
    fn a_decoder_that_panics_ends_the_run_and_the_panic_comes_out() {
        let n_read = AtomicUsize::new(0);
        let outcome = std::panic::catch_unwind(|| {
            let gpu = Gpu::new(2, 1000, 8).unwrap();
            let read = |place: usize, _: &mut Preprocess| {
                n_read.fetch_add(1, Ordering::Relaxed);
                assert!(place != 9, "a fault in a decoder");
                Ok(Prepared {
                    views: Vec::new(),
                    about: (),
                })
            };
            gpu.run(1_000_000, read, &StandIn::default(), &(), |_, (), _| Ok(()))
        });
        let panic = outcome.unwrap_err();
        assert_eq!(panic.downcast_ref(), Some(&"a fault in a decoder"));
        assert!(n_read.into_inner() < 500_000, "the others go on");
    }
}
