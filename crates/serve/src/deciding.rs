//! A session in which people decide about images, over HTTP: a page, and what it asks for.
//!
//! Only programs on this machine reach it, and only pages that it served itself: requests with another `Host`, as a page
//! from elsewhere would send after its name was turned to this machine, are refused, and decisions come as JSON, which
//! browsers send to no other origin unasked.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::SystemTime;

use axum::extract::{Path, Query, Request, State};
use axum::http::StatusCode;
use axum::http::header::{CACHE_CONTROL, CONTENT_TYPE, HOST};
use axum::middleware::{Next, from_fn_with_state};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Json, Router};
use luthier::{Answer, Item, Progress, Session, Task, Why};
use luthier_artifact::{Digest, Observer};
use luthier_extract::thumbnail;
use serde::{Deserialize, Serialize};
use tokio::sync::Semaphore;

use crate::http::{Failure, page};
use crate::server::listen;
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

/// Where people decide.
pub struct DecideConfig {
    /// Where requests are listened for: an address of this machine; port 0 for any that is free.
    pub listen: SocketAddr,
    /// A table of all files with a class, `file,label`, that is written after each model.
    pub table: Option<PathBuf>,
}

struct Service {
    session: Mutex<Session>,
    table: Option<PathBuf>,
    /// `host:port` of the page's own address.
    hosts: [String; 2],
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
        self.n_new.store(0, Ordering::Relaxed);
        let service = self.clone();
        tokio::task::spawn_blocking(move || {
            let snapshot = service.session().snapshot(BATCH);
            match snapshot.judge() {
                Ok(judgement) => service.session().follow(judgement),
                Err(error) => tracing::error!("no model: {error}"),
            }
            service.write_table();
            service.is_training.store(false, Ordering::Release);
        });
    }

    fn write_table(&self) {
        if let Some(table) = &self.table
            && let Err(error) = self.session().write_table(table)
        {
            tracing::error!("{error}");
        }
    }

    /// What the page shows.
    fn shown(&self, first: Option<usize>) -> Shown {
        let session = self.session();
        let item = |image: usize, why: Option<Why>, suggestions: &[luthier::Suggestion]| {
            let (class, version) = session.state(image);
            ShownItem {
                image: session.images()[image].digest,
                file: session.images()[image].name.clone(),
                class: class.map(str::to_owned),
                version,
                why,
                suggestions: suggestions
                    .iter()
                    .map(|suggestion| ShownSuggestion {
                        class: session.classes()[suggestion.class].clone(),
                        probability: suggestion.probability,
                    })
                    .collect(),
            }
        };
        let items: Vec<&Item> = session.items().take(AHEAD).collect();
        let again = first.map(|image| item(image, None, &[]));
        let others = items.iter().filter(|item| Some(item.image) != first);
        let others = others.map(|found| item(found.image, Some(found.why), &found.suggestions));
        Shown {
            task: session.task(),
            classes: session.classes().to_vec(),
            progress: session.progress(),
            items: again.into_iter().chain(others).collect(),
            is_training: self.is_training.load(Ordering::Acquire),
        }
    }
}

#[derive(Serialize)]
struct Shown {
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
    /// `None` of an image whose decision was taken back.
    why: Option<Why>,
    suggestions: Vec<ShownSuggestion>,
}

#[derive(Serialize)]
struct ShownSuggestion {
    class: String,
    probability: f64,
}

/// What the page says of an image.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Decided {
    image: Digest,
    version: u32,
    answer: Said,
}

#[derive(Deserialize)]
#[serde(rename_all = "lowercase")]
enum Said {
    Right,
    Exclude,
    Class(String),
}

/// What the page says of many images.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct DecidedMany {
    class: String,
    images: Vec<Versioned>,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Versioned {
    image: Digest,
    version: u32,
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

/// Lets people decide, on a page at `listen`, until the observer interrupts. `on_ready` is told its address.
///
/// # Errors
/// [`Error::Listen`] if the address cannot be had, and [`Error::NotLoopback`] if others could reach it.
pub fn decide(
    config: DecideConfig,
    session: Session,
    observer: &dyn Observer,
    on_ready: impl FnOnce(SocketAddr),
) -> Result<()> {
    let DecideConfig { listen: address, table } = config;
    if !address.ip().is_loopback() {
        return Err(Error::NotLoopback { address });
    }
    let mut last = None;
    listen(address, CONNECTIONS, observer, on_ready, |address| {
        let service = Arc::new(Service {
            session: Mutex::new(session),
            table,
            hosts: [address.to_string(), format!("localhost:{}", address.port())],
            n_new: AtomicUsize::new(0),
            is_training: AtomicBool::new(false),
            pictures: Semaphore::new(PICTURES),
        });
        last = Some(service.clone());
        service.train();
        router(service)
    })?;
    if let Some(service) = last {
        service.write_table();
    }
    Ok(())
}

fn router(service: Arc<Service>) -> Router {
    Router::new()
        .route(
            "/",
            get(|| async { page(include_str!("deciding/index.html"), "text/html; charset=utf-8") }),
        )
        .route(
            "/decide.css",
            get(|| async { page(include_str!("deciding/decide.css"), "text/css; charset=utf-8") }),
        )
        .route(
            "/decide.js",
            get(|| async { page(include_str!("deciding/decide.js"), "text/javascript; charset=utf-8") }),
        )
        .route(
            "/v1/session",
            get(|State(service): State<Arc<Service>>| async move { Json(service.shown(None)) }),
        )
        .route("/v1/decide", post(one))
        .route("/v1/decide-many", post(many))
        .route("/v1/undo", post(undo))
        .route("/v1/confident", get(confident))
        .route("/v1/images/{digest}", get(picture))
        .route("/v1/images/{digest}/nearest", get(nearest))
        .fallback(|| async { Failure::new(StatusCode::NOT_FOUND, "no such address") })
        .layer(from_fn_with_state(service.clone(), check_host))
        .with_state(service)
}

/// Refuses requests that were meant for another host.
async fn check_host(State(service): State<Arc<Service>>, request: Request, next: Next) -> Response {
    let host = request.headers().get(HOST).and_then(|host| host.to_str().ok());
    match host.is_some_and(|host| service.hosts.iter().any(|own| own == host)) {
        true => next.run(request).await,
        false => Failure::new(StatusCode::FORBIDDEN, format!("expected the host {}", service.hosts[0])).into_response(),
    }
}

fn failure(error: &luthier::Error) -> Failure {
    let status = match error {
        luthier::Error::DecidedMeanwhile { .. } => StatusCode::CONFLICT,
        luthier::Error::NoClass { .. } => StatusCode::UNPROCESSABLE_ENTITY,
        _ => StatusCode::INTERNAL_SERVER_ERROR,
    };
    Failure::new(status, error.to_string())
}

/// Does something with the session that waits for the disk, and tells what the page shows then.
async fn with_session(
    service: Arc<Service>,
    work: impl FnOnce(&mut Session) -> std::result::Result<(usize, Option<usize>), Failure> + Send + 'static,
) -> std::result::Result<Json<Shown>, Failure> {
    let of_thread = service.clone();
    let done = tokio::task::spawn_blocking(move || {
        let (n_decided, first) = work(&mut of_thread.session())?;
        let n_new = of_thread.n_new.fetch_add(n_decided, Ordering::Relaxed) + n_decided;
        Ok((n_new, first))
    });
    let (n_new, first) = done.await.unwrap_or_else(|_| {
        Err(Failure::new(
            StatusCode::INTERNAL_SERVER_ERROR,
            "the session has panicked",
        ))
    })?;
    let is_empty = service.session().items().next().is_none();
    if n_new >= BATCH || (is_empty && n_new > 0) {
        service.train();
    }
    Ok(Json(service.shown(first)))
}

async fn one(
    State(service): State<Arc<Service>>,
    Json(decided): Json<Decided>,
) -> std::result::Result<Json<Shown>, Failure> {
    with_session(service, move |session| {
        let Decided { image, version, answer } = decided;
        let answer = match answer {
            Said::Right => Answer::Right,
            Said::Exclude => Answer::Exclude,
            Said::Class(class) => Answer::Class(named(&class)?),
        };
        session
            .decide(place(session, &image)?, version, answer, SystemTime::now())
            .map_err(|error| failure(&error))?;
        Ok((1, None))
    })
    .await
}

async fn many(
    State(service): State<Arc<Service>>,
    Json(decided): Json<DecidedMany>,
) -> std::result::Result<Json<Shown>, Failure> {
    with_session(service, move |session| {
        let class = named(&decided.class)?;
        let mut n = 0;
        for Versioned { image, version } in decided.images {
            let answer = Answer::Class(class.clone());
            match session.decide(place(session, &image)?, version, answer, SystemTime::now()) {
                Ok(()) => n += 1,
                // Somebody has decided about it meanwhile: that stands.
                Err(luthier::Error::DecidedMeanwhile { .. }) => {}
                Err(error) => return Err(failure(&error)),
            }
        }
        Ok((n, None))
    })
    .await
}

async fn undo(State(service): State<Arc<Service>>) -> std::result::Result<Json<Shown>, Failure> {
    with_session(service, |session| {
        let image = session.undo(SystemTime::now()).map_err(|error| failure(&error))?;
        Ok((0, image))
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
    let session = service.session();
    let image = place(&session, &image)?;
    let class = session.classes().iter().position(|known| *known == class);
    let found = class.map_or_else(Vec::new, |class| session.nearest(image, class, NEAREST));
    Ok(Json(
        found.into_iter().map(|near| session.images()[near].digest).collect(),
    ))
}

async fn picture(
    State(service): State<Arc<Service>>,
    Path(digest): Path<String>,
    Query(Size { small }): Query<Size>,
) -> Response {
    let gone = || Failure::new(StatusCode::NOT_FOUND, "no such image").into_response();
    let found = digest.parse::<Digest>().ok().and_then(|digest| {
        let session = service.session();
        Some((digest, session.images()[session.place(&digest)?].path.clone()))
    });
    let Some((digest, path)) = found else { return gone() };
    let _turn = service.pictures.acquire().await;
    let made = tokio::task::spawn_blocking(move || {
        let bytes = std::fs::read(path).ok()?;
        let side = if small { SMALL } else { LARGE };
        (Digest::of(&bytes) == digest).then(|| thumbnail(&bytes, side).ok())?
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

/// The name of a class, as folders could have it.
fn named(class: &str) -> std::result::Result<String, Failure> {
    let class = class.trim();
    match class.is_empty() || class.contains(['/', '\\', '\0', '\n', '\r']) {
        true => Err(Failure::new(
            StatusCode::UNPROCESSABLE_ENTITY,
            format!("expected the name of a class, found {class:?}"),
        )),
        false => Ok(class.to_owned()),
    }
}
