//! A session in which people decide about images, over HTTP: a page, and what it asks for.
//!
//! All addresses begin with a token, which only whoever was shown the address knows: neither other users of this machine nor
//! pages from elsewhere do.

use std::net::{SocketAddr, TcpListener};
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::SystemTime;

use axum::extract::{Path, Query, State};
use axum::http::StatusCode;
use axum::http::header::{CACHE_CONTROL, CONTENT_TYPE};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Json, Router};
use luthier::{Answer, CopyOf, Item, Progress, Session, Subject, Task, Why};
use luthier_artifact::{Digest, Observer, Split, write_atomically};
use luthier_extract::thumbnail;
use serde::{Deserialize, Serialize};
use tokio::sync::Semaphore;
use unicode_normalization::UnicodeNormalization as _;

use crate::access::token;
use crate::http::{Failure, page};
use crate::server::{bind, run};
use crate::{Error, Result};

/// How many decisions there are between two models.
const BATCH: usize = 10;

/// How many images the page is told of: it loads their pictures before they are asked about.
const AHEAD: usize = 20;

/// How many images of a class are shown beside an image.
const NEAREST: usize = 4;

/// How many images are confirmed at once, at most, and from which probability on.
const MANY: usize = 60;
const CONFIDENT: f64 = 0.9;

/// The longer side of pictures, in pixels.
const LARGE: u32 = 900;
const SMALL: u32 = 220;

/// How many pictures are made at once.
const PICTURES: usize = 2;

const CONNECTIONS: usize = 64;

/// A place for the page, whose address is taken.
#[derive(Debug)]
pub struct DecidePage(TcpListener);

/// The files that are written with each model.
#[derive(Clone, Debug)]
pub struct Tables {
    /// The files that have a class, `file,label`.
    pub labels: PathBuf,
    /// What the model takes the others for, `file,class,probability`.
    pub predictions: PathBuf,
}

struct Service {
    session: Mutex<Session>,
    tables: Option<Tables>,
    /// Why there is no model, if the last one failed.
    failure: Mutex<Option<String>>,
    /// Decisions since the last model.
    n_new: AtomicUsize,
    is_training: AtomicBool,
    pictures: Semaphore,
}

impl Service {
    fn session(&self) -> MutexGuard<'_, Session> {
        self.session.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Trains a model, beside the decisions that go on, if there is none at work already.
    fn train(self: &Arc<Self>) {
        if self.is_training.swap(true, Ordering::AcqRel) {
            return;
        }
        let training = Training(self.clone());
        tokio::task::spawn_blocking(move || {
            let Training(service) = &training;
            loop {
                service.n_new.store(0, Ordering::Relaxed);
                let snapshot = service.session().snapshot(BATCH);
                let failure = match snapshot.judge() {
                    Ok(judgement) => {
                        service.session().follow(judgement);
                        None
                    }
                    Err(error) => Some(error.to_string()),
                };
                *service.failure.lock().unwrap_or_else(PoisonError::into_inner) = failure;
                service.write_tables();
                // All that it would ask may have been answered meanwhile.
                let is_empty = service.session().items().next().is_none();
                if !is_empty || service.n_new.load(Ordering::Relaxed) == 0 {
                    break;
                }
            }
        });
    }

    fn write_tables(&self) {
        let Some(Tables { labels, predictions }) = &self.tables else {
            return;
        };
        let session = self.session();
        let tables = [
            (labels, session.labels_table()),
            (predictions, session.predictions_table()),
        ];
        drop(session);
        for (path, table) in tables {
            if let Err(error) = write_atomically(path, &table) {
                tracing::error!("{error}");
            }
        }
    }

    /// What the page shows.
    fn shown(&self) -> Shown {
        let session = self.session();
        let item = |item: Item| {
            let (class, version) = session.state(item.image);
            let image = &session.images()[item.image];
            ShownItem {
                image: image.digest,
                file: image.name().to_owned(),
                class: class.map(str::to_owned),
                version,
                copies: item.copies.iter().map(|copy| ShownCopy::of(&session, *copy)).collect(),
                why: item.why,
                suggestions: (item.suggestions)
                    .iter()
                    .map(|suggestion| ShownSuggestion {
                        class: session.classes()[suggestion.class].clone(),
                        probability: suggestion.probability,
                    })
                    .collect(),
            }
        };

        Shown {
            failure: self.failure.lock().unwrap_or_else(PoisonError::into_inner).clone(),
            task: session.task(),
            classes: session.classes().to_vec(),
            progress: session.progress(),
            items: session.items().take(AHEAD).map(item).collect(),
            is_training: self.is_training.load(Ordering::Acquire),
        }
    }
}

/// A model that is on its way, until this is dropped, also by a panic.
struct Training(Arc<Service>);

impl Drop for Training {
    fn drop(&mut self) {
        self.0.is_training.store(false, Ordering::Release);
    }
}

#[derive(Serialize)]
struct Shown {
    /// Why there is no model.
    failure: Option<String>,
    task: Task,
    classes: Vec<String>,
    progress: Progress,
    /// The next images.
    items: Vec<ShownItem>,
    /// Whether a new model is on its way.
    is_training: bool,
}

#[derive(Serialize)]
struct ShownItem {
    image: Digest,
    file: String,
    class: Option<String>,
    version: u32,
    /// The files that look the same, two or more, or none.
    copies: Vec<ShownCopy>,
    why: Why,
    suggestions: Vec<ShownSuggestion>,
}

#[derive(Serialize)]
struct ShownCopy {
    image: Digest,
    version: u32,
    /// The place of the file among the image's.
    place: usize,
    file: String,
    class: Option<String>,
    split: Split,
}

impl ShownCopy {
    fn of(session: &Session, copy: CopyOf) -> Self {
        let image = &session.images()[copy.image];
        let file = &image.files[copy.file];
        ShownCopy {
            image: image.digest,
            version: session.state(copy.image).1,
            place: copy.file,
            file: file.name.clone(),
            class: session.class_of(copy).map(str::to_owned),
            split: file.split,
        }
    }
}

#[derive(Serialize)]
struct ShownSuggestion {
    class: String,
    probability: f64,
}

/// What the page says of images: of one, of copies, or of many that are of one class.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Decided {
    images: Vec<Versioned>,
    /// Whether it is about copies, of which what is not left out stays.
    are_copies: bool,
    answer: Said,
}

#[derive(Deserialize)]
#[serde(rename_all = "lowercase")]
enum Said {
    Right,
    Exclude,
    Class(String),
    Keep(KeptFile),
}

/// The one file that is not left out.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct KeptFile {
    image: Digest,
    place: usize,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Versioned {
    image: Digest,
    version: u32,
}

/// What the page asks about no more.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Skipped {
    image: Digest,
    /// Whether it is about the copies that the image is the first of.
    is_copies: bool,
}

/// That the last decision is taken back, of so many that the page knows of.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Undone {
    decided: usize,
}

#[derive(Deserialize)]
struct OfClass {
    class: String,
}

#[derive(Deserialize)]
struct Size {
    #[serde(default)]
    small: bool,
}

impl DecidePage {
    /// Takes an address of this machine; port 0 is any that is free.
    ///
    /// # Errors
    /// [`Error::Listen`] if the address cannot be had, and [`Error::NotLoopback`] if others could reach it.
    pub fn bind(address: SocketAddr) -> Result<Self> {
        match address.ip().is_loopback() {
            true => bind(address).map(DecidePage),
            false => Err(Error::NotLoopback { address }),
        }
    }
}

/// Lets people decide on a page until the observer interrupts. `on_ready` is told the page's URL, which nobody else knows.
///
/// # Errors
/// [`Error::Threads`] if the system gives no threads, and [`Error::Random`] if it gives no random numbers.
pub fn decide(
    page: DecidePage,
    session: Session,
    tables: Option<Tables>,
    observer: &dyn Observer,
    on_ready: impl FnOnce(&str),
) -> Result<()> {
    let DecidePage(listener) = page;
    let address = listener.local_addr().map_err(Error::Threads)?;
    let token = token()?;
    let service = Arc::new(Service {
        failure: Mutex::default(),
        session: Mutex::new(session),
        tables,
        n_new: AtomicUsize::new(0),
        is_training: AtomicBool::new(false),
        pictures: Semaphore::new(PICTURES),
    });
    let ready = |_| on_ready(&format!("http://{address}/{token}/"));
    run(listener, CONNECTIONS, observer, ready, || {
        service.train();
        router(service.clone(), &token)
    })?;
    service.write_tables();
    Ok(())
}

fn router(service: Arc<Service>, token: &str) -> Router {
    let at = |path: &str| format!("/{token}{path}");
    Router::new()
        .route(
            &at("/"),
            get(|| async { page(include_str!("deciding/index.html"), "text/html; charset=utf-8") }),
        )
        .route(
            &at("/decide.css"),
            get(|| async { page(include_str!("deciding/decide.css"), "text/css; charset=utf-8") }),
        )
        .route(
            &at("/decide.js"),
            get(|| async { page(include_str!("deciding/decide.js"), "text/javascript; charset=utf-8") }),
        )
        .route(
            &at("/v1/session"),
            get(|State(service): State<Arc<Service>>| async move { Json(service.shown()) }),
        )
        .route(&at("/v1/decide"), post(decided))
        .route(&at("/v1/skip"), post(skip))
        .route(&at("/v1/undo"), post(undo))
        .route(&at("/v1/confident"), get(confident))
        .route(&at("/v1/images/{digest}"), get(picture))
        .route(&at("/v1/images/{digest}/nearest"), get(nearest))
        .fallback(|| async {
            let error = "no such address: open the one that Luthier printed when it started";
            Failure::new(StatusCode::NOT_FOUND, error)
        })
        .with_state(service)
}

fn failure(error: &luthier::Error) -> Failure {
    let status = match error {
        luthier::Error::DecidedMeanwhile { .. } => StatusCode::CONFLICT,
        luthier::Error::NoClass { .. } | luthier::Error::NewClass { .. } => StatusCode::UNPROCESSABLE_ENTITY,
        _ => StatusCode::INTERNAL_SERVER_ERROR,
    };
    Failure::new(status, error.to_string())
}

fn panicked() -> Failure {
    Failure::new(StatusCode::INTERNAL_SERVER_ERROR, "the session has panicked")
}

/// Does something with the session that waits for the disk, and tells what the page shows then.
async fn with_session(
    service: Arc<Service>,
    work: impl FnOnce(&mut Session) -> std::result::Result<usize, Failure> + Send + 'static,
) -> std::result::Result<Json<Shown>, Failure> {
    let of_thread = service.clone();
    let done = tokio::task::spawn_blocking(move || {
        let n_decided = work(&mut of_thread.session())?;
        Ok(of_thread.n_new.fetch_add(n_decided, Ordering::Relaxed) + n_decided)
    });
    let n_new = done.await.unwrap_or_else(|_| Err(panicked()))?;
    let is_empty = service.session().items().next().is_none();
    if n_new >= BATCH || (is_empty && n_new > 0) {
        service.train();
    }
    Ok(Json(service.shown()))
}

async fn decided(
    State(service): State<Arc<Service>>,
    Json(decided): Json<Decided>,
) -> std::result::Result<Json<Shown>, Failure> {
    let Decided {
        images,
        are_copies,
        answer,
    } = decided;
    let subject = if are_copies { Subject::Copies } else { Subject::Images };
    with_session(service, move |session| {
        let answer = match answer {
            Said::Right => Answer::Right,
            Said::Exclude => Answer::Exclude,
            Said::Class(class) => Answer::Class(named(session, &class)?),
            Said::Keep(KeptFile { image, place: file }) => Answer::Keep(CopyOf {
                image: place(session, &image)?,
                file,
            }),
        };
        let places = images
            .iter()
            .map(|Versioned { image, version }| Ok((place(session, image)?, *version)));
        let places: Vec<(usize, u32)> = places.collect::<std::result::Result<_, Failure>>()?;
        (session.decide(&places, subject, &answer, SystemTime::now())).map_err(|error| failure(&error))?;
        Ok(places.len())
    })
    .await
}

async fn skip(
    State(service): State<Arc<Service>>,
    Json(skipped): Json<Skipped>,
) -> std::result::Result<Json<Shown>, Failure> {
    let Skipped { image, is_copies } = skipped;
    with_session(service, move |session| {
        session.skip(place(session, &image)?, is_copies);
        // So that a model that has nothing else to ask about is followed by another.
        Ok(1)
    })
    .await
}

async fn undo(
    State(service): State<Arc<Service>>,
    Json(Undone { decided }): Json<Undone>,
) -> std::result::Result<Json<Shown>, Failure> {
    with_session(service, move |session| {
        let done = session.undo(decided, SystemTime::now());
        done.map(|()| 0).map_err(|error| failure(&error))
    })
    .await
}

/// The images that the model takes for a class without doubt.
async fn confident(
    State(service): State<Arc<Service>>,
    Query(OfClass { class }): Query<OfClass>,
) -> Json<Vec<Versioned>> {
    let session = service.session();
    let place = session.classes().iter().position(|known| *known == class);
    let images = place.map_or_else(Vec::new, |place| session.confident(place, CONFIDENT));
    let versioned = images.into_iter().take(MANY).map(|image| Versioned {
        image: session.images()[image].digest,
        version: session.state(image).1,
    });
    Json(versioned.collect())
}

/// The images of a class that look most like an image.
async fn nearest(
    State(service): State<Arc<Service>>,
    Path(image): Path<Digest>,
    Query(OfClass { class }): Query<OfClass>,
) -> std::result::Result<Json<Vec<Digest>>, Failure> {
    let found = tokio::task::spawn_blocking(move || {
        let session = service.session();
        let image = place(&session, &image)?;
        let class = session.classes().iter().position(|known| *known == class);
        let found = class.map_or_else(Vec::new, |class| session.nearest(image, class, NEAREST));
        Ok(Json(
            found.into_iter().map(|near| session.images()[near].digest).collect(),
        ))
    });
    found.await.unwrap_or_else(|_| Err(panicked()))
}

async fn picture(
    State(service): State<Arc<Service>>,
    Path(digest): Path<String>,
    Query(Size { small }): Query<Size>,
) -> Response {
    let gone = || Failure::new(StatusCode::NOT_FOUND, "no such image").into_response();
    let found = digest.parse::<Digest>().ok().and_then(|digest| {
        let session = service.session();
        Some((digest, session.images()[session.place(&digest)?].files.clone()))
    });
    let Some((digest, files)) = found else { return gone() };
    let _turn = service.pictures.acquire().await;
    let made = tokio::task::spawn_blocking(move || {
        let mut read = files.iter().filter_map(|file| std::fs::read(&file.path).ok());
        let bytes = read.find(|bytes| Digest::of(bytes) == digest)?;
        thumbnail(&bytes, if small { SMALL } else { LARGE }).ok()
    });
    match made.await {
        Ok(Some(jpeg)) => {
            // The address names the bytes.
            let headers = [
                (CONTENT_TYPE, "image/jpeg"),
                (CACHE_CONTROL, "private, max-age=86400, immutable"),
            ];
            (headers, jpeg).into_response()
        }
        _ => gone(),
    }
}

fn place(session: &Session, image: &Digest) -> std::result::Result<usize, Failure> {
    let unknown = || Failure::new(StatusCode::NOT_FOUND, format!("{image}: no image of this session"));
    session.place(image).ok_or_else(unknown)
}

/// The name of a class that is there, or of a new one, as a folder could have it.
fn named(session: &Session, class: &str) -> std::result::Result<String, Failure> {
    if session.classes().iter().any(|known| known == class) {
        return Ok(class.to_owned());
    }
    let class: String = class.trim().nfc().collect();
    let is_reserved = ["", ".", ".."].contains(&class.as_str());
    match is_reserved || class.contains(['/', '\\', '\0', '\n', '\r']) {
        true => Err(Failure::new(
            StatusCode::UNPROCESSABLE_ENTITY,
            format!("expected the name of a class, found {class:?}"),
        )),
        false => Ok(class),
    }
}
