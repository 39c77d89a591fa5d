//! One queue for the images of all clients, and the thread whose lanes take them through the network.
//!
//! The thread takes all images that wait, up to a bound, as one batch. An image that comes alone does not wait for others.

use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::thread::{self, JoinHandle};

use luthier::Prediction;
use luthier_extract::ImageSource;
use tokio::sync::mpsc::error::TrySendError;
use tokio::sync::{mpsc, oneshot};

use crate::metrics::Metrics;
use crate::model::{About, Opened};
use crate::{Error, Result};

/// The most images of a batch: at its end lanes wait for each other.
const BATCH: usize = 64;

/// What is said once the thread has panicked.
pub(crate) const STOPPED: &str = "the network has stopped: start the service again";

/// What became of an image.
pub(crate) enum Outcome {
    /// With what is known of the model that answered.
    Answered(Prediction, Arc<About>),
    /// It cannot be read: the reason.
    Unreadable(String),
    /// The network failed: the reason.
    Failed(String),
}

/// Why images are not taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Refused {
    /// The queue is full for the moment.
    Busy,
    /// There are more of them than the queue ever holds.
    TooMany { most: usize },
    /// The thread has ended.
    Over,
}

struct Job {
    image: Arc<[u8]>,
    reply: oneshot::Sender<Outcome>,
}

/// Takes images, and gives answers.
pub(crate) struct Desk {
    /// `None` once the desk is closed.
    queue: RwLock<Option<mpsc::Sender<Job>>>,
    capacity: usize,
    newer: Newer,
    thread: Mutex<Option<JoinHandle<()>>>,
}

/// A model that is to take the place of the one that answers.
type Newer = Arc<Mutex<Option<Opened>>>;

impl Desk {
    /// Starts the thread. It ends when the desk is [closed](Desk::close).
    pub(crate) fn open(model: Opened, capacity: usize, metrics: Arc<Metrics>) -> Result<Self> {
        let (queue, jobs) = mpsc::channel(capacity);
        let newer = Newer::default();
        let of_thread = newer.clone();
        let thread = thread::Builder::new()
            .name("desk".to_owned())
            .spawn(move || work(model, jobs, &of_thread, &metrics))
            .map_err(Error::Threads)?;
        Ok(Desk {
            queue: RwLock::new(Some(queue)),
            capacity,
            newer,
            thread: Mutex::new(Some(thread)),
        })
    }

    /// Has this model answer from the next batch on.
    pub(crate) fn replace(&self, model: Opened) {
        *self.newer.lock().unwrap_or_else(PoisonError::into_inner) = Some(model);
    }

    /// Takes no more images, and waits for the thread: a process must not end while libtorch computes.
    pub(crate) fn close(&self) {
        drop(self.queue.write().unwrap_or_else(PoisonError::into_inner).take());
        let thread = self.thread.lock().unwrap_or_else(PoisonError::into_inner).take();
        if thread.is_some_and(|thread| thread.join().is_err()) {
            tracing::error!("the network has panicked");
        }
    }

    fn queue(&self) -> Option<mpsc::Sender<Job>> {
        self.queue.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Whether images are still answered: the thread has not panicked.
    pub(crate) fn is_open(&self) -> bool {
        self.queue().is_some_and(|queue| !queue.is_closed())
    }

    /// How many images wait.
    pub(crate) fn n_waiting(&self) -> usize {
        self.queue().map_or(0, |queue| self.capacity - queue.capacity())
    }

    /// The outcome of each image, in order. All images are taken, or none.
    pub(crate) async fn predict(&self, images: Vec<Arc<[u8]>>) -> std::result::Result<Vec<Outcome>, Refused> {
        if images.len() > self.capacity {
            return Err(Refused::TooMany { most: self.capacity });
        }
        let queue = self.queue().ok_or(Refused::Over)?;
        let places = queue.try_reserve_many(images.len()).map_err(|error| match error {
            TrySendError::Full(()) => Refused::Busy,
            TrySendError::Closed(()) => Refused::Over,
        })?;
        let replies: Vec<oneshot::Receiver<Outcome>> = (places.zip(images))
            .map(|(place, image)| {
                let (reply, receiver) = oneshot::channel();
                place.send(Job { image, reply });
                receiver
            })
            .collect();
        let mut outcomes = Vec::with_capacity(replies.len());
        for reply in replies {
            let lost = |_| Outcome::Failed(STOPPED.to_owned());
            outcomes.push(reply.await.unwrap_or_else(lost));
        }
        Ok(outcomes)
    }
}

fn work(mut model: Opened, mut jobs: mpsc::Receiver<Job>, newer: &Newer, metrics: &Metrics) {
    while let Some(first) = jobs.blocking_recv() {
        if let Some(newer) = newer.lock().unwrap_or_else(PoisonError::into_inner).take() {
            model = newer;
        }
        let mut batch = vec![first];
        while batch.len() < BATCH
            && let Ok(job) = jobs.try_recv()
        {
            batch.push(job);
        }
        // Nobody waits for an image whose connection has ended.
        batch.retain(|job| !job.reply.is_closed());
        metrics.batches.observe(batch.len() as f64);
        let images: Vec<ImageSource> = batch.iter().map(|job| ImageSource::Bytes(job.image.clone())).collect();
        let mut replies: Vec<Option<oneshot::Sender<Outcome>>> = batch.into_iter().map(|job| Some(job.reply)).collect();
        let mut answer = |place: usize, outcome: Outcome| {
            if let Some(reply) = replies[place].take() {
                reply.send(outcome).ok();
            }
        };
        let Opened { predictor, about } = &model;
        let answered = |prediction| Outcome::Answered(prediction, about.clone());
        let done = predictor.predict(&images, &(), |place, prediction| {
            answer(place, prediction.map_or_else(Outcome::Unreadable, &answered));
            Ok::<(), luthier::Error>(())
        });
        if let Err(error) = done {
            tracing::error!("{error}");
            (0..images.len()).for_each(|place| answer(place, Outcome::Failed(error.to_string())));
        }
    }
}
