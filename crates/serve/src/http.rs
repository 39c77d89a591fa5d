//! What is asked by which address, and what is refused.

use std::sync::{Arc, PoisonError};
use std::time::{Duration, Instant};

use axum::Router;
use axum::body::{Body, Bytes};
use axum::extract::{Path, Query, Request, State};
use axum::http::header::{
    AUTHORIZATION, CACHE_CONTROL, CONTENT_LENGTH, CONTENT_SECURITY_POLICY, CONTENT_TYPE, REFERRER_POLICY, RETRY_AFTER,
    WWW_AUTHENTICATE, X_CONTENT_TYPE_OPTIONS,
};
use axum::http::{HeaderMap, HeaderValue, StatusCode};
use axum::middleware::{Next, from_fn_with_state};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use http_body_util::BodyExt as _;
use luthier::{NearestImage, Prediction, UNKNOWN};
use serde::{Deserialize, Serialize};
use serde_json::json;
use tokio::sync::{Semaphore, SemaphorePermit};

use crate::access::is_local;
use crate::desk::{Desk, Outcome, Refused, STOPPED};
use crate::metrics::{ImageLabels, Metrics, RequestLabels};
use crate::model::{About, Current};

/// Addresses of more than one use.
const PREDICT: &str = "/v1/predict";
const MODEL: &str = "/v1/model";
const TRAINING: &str = "/v1/training/{digest}";

/// The longer side of a training image's thumbnail, in pixels.
const THUMBNAIL_SIDE: u32 = 192;

/// The most training images that an answer tells of.
const MOST_NEAREST: usize = 100;

/// A request that has been answered.
#[derive(Clone, Debug, Serialize)]
pub struct Access {
    /// The method, for example `POST`.
    pub method: String,
    /// The path, without the query.
    pub path: String,
    /// The status.
    pub status: u16,
    /// From the request to its answer.
    pub seconds: f64,
}

/// Told of each request that has been answered.
pub type OnAccess = Box<dyn Fn(&Access) + Send + Sync>;

/// What all requests have in common.
pub(crate) struct Service {
    pub(crate) desk: Arc<Desk>,
    pub(crate) current: Current,
    pub(crate) metrics: Arc<Metrics>,
    /// Held by those who make a thumbnail.
    pub(crate) pictures: Semaphore,
    /// The digest of the token that requests must bear.
    pub(crate) token: Option<blake3::Hash>,
    /// Whether only this machine reaches the service.
    pub(crate) is_local: bool,
    /// Held for as many KiB as bodies have that are being read or answered.
    pub(crate) room: Semaphore,
    /// The largest body, in bytes.
    pub(crate) max_body: usize,
    /// How long a body may take to arrive.
    pub(crate) body_timeout: Duration,
    pub(crate) on_access: Option<OnAccess>,
}

impl Service {
    /// What is known of the model that answers now.
    fn about(&self) -> Arc<About> {
        self.current.read().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

/// The service with its addresses.
pub(crate) fn router(service: Arc<Service>) -> Router {
    let guarded = Router::new()
        .route(PREDICT, post(predict))
        .route(MODEL, get(model))
        .route(TRAINING, get(training))
        .route_layer(from_fn_with_state(service.clone(), check_token));
    Router::new()
        .route(
            "/",
            get(|| async { page(include_str!("page/index.html"), "text/html; charset=utf-8") }),
        )
        .route(
            "/page.css",
            get(|| async { page(include_str!("page/page.css"), "text/css; charset=utf-8") }),
        )
        .route(
            "/page.js",
            get(|| async { page(include_str!("page/page.js"), "text/javascript; charset=utf-8") }),
        )
        .route("/healthz", get(|| async { "ok\n" }))
        .route("/readyz", get(ready))
        .route("/metrics", get(metrics))
        .route(
            "/openapi.json",
            get(|| async { page(include_str!("openapi.json"), "application/json") }),
        )
        .merge(guarded)
        .fallback(|| async { Failure::new(StatusCode::NOT_FOUND, "no such address: see /openapi.json") })
        .method_not_allowed_fallback(|| async {
            Failure::new(
                StatusCode::METHOD_NOT_ALLOWED,
                "another method is expected: see /openapi.json",
            )
        })
        .layer(from_fn_with_state(service.clone(), observe))
        .with_state(service)
}

/// A file of the page. It may load what comes from here, show pictures that the user chose, and nothing else.
pub(crate) fn page(text: &'static str, kind: &'static str) -> Response {
    let policy = "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src 'self' blob: data:; \
                  base-uri 'none'; form-action 'none'; frame-ancestors 'none'";
    let headers = [
        (CONTENT_TYPE, HeaderValue::from_static(kind)),
        (CONTENT_SECURITY_POLICY, HeaderValue::from_static(policy)),
        (CACHE_CONTROL, HeaderValue::from_static("no-cache")),
        (X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff")),
        (REFERRER_POLICY, HeaderValue::from_static("no-referrer")),
    ];
    (headers, text).into_response()
}

/// Why a request is not answered.
pub(crate) struct Failure {
    status: StatusCode,
    error: String,
}

impl Failure {
    pub(crate) fn new(status: StatusCode, error: impl Into<String>) -> Self {
        Failure {
            status,
            error: error.into(),
        }
    }
}

impl IntoResponse for Failure {
    fn into_response(self) -> Response {
        let mut response = (self.status, axum::Json(json!({"error": self.error}))).into_response();
        let headers = response.headers_mut();
        if self.status == StatusCode::SERVICE_UNAVAILABLE {
            headers.insert(RETRY_AFTER, HeaderValue::from_static("1"));
        }
        if self.status == StatusCode::UNAUTHORIZED {
            headers.insert(WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
        }
        response
    }
}

/// Refuses requests that do not bear the token, if there is one.
async fn check_token(State(service): State<Arc<Service>>, request: Request, next: Next) -> Response {
    let Some(expected) = service.token else {
        // Without a token, what this machine alone can ask must not be asked by a page from elsewhere in one of its browsers.
        return match service.is_local && !is_local(request.headers()) {
            false => next.run(request).await,
            true => {
                let error = "expected a host of this machine, such as 127.0.0.1: others, also those behind a proxy, need --token";
                Failure::new(StatusCode::FORBIDDEN, error).into_response()
            }
        };
    };
    let bearer = |value: &HeaderValue| Some(blake3::hash(value.to_str().ok()?.strip_prefix("Bearer ")?.as_bytes()));
    let found = request.headers().get(AUTHORIZATION).and_then(bearer);
    // Digests are compared in a time that does not tell where they differ.
    match found == Some(expected) {
        true => next.run(request).await,
        false => Failure::new(
            StatusCode::UNAUTHORIZED,
            "expected the header Authorization: Bearer TOKEN",
        )
        .into_response(),
    }
}

/// Counts requests, and tells of them.
async fn observe(State(service): State<Arc<Service>>, request: Request, next: Next) -> Response {
    let start = Instant::now();
    let (method, path) = (request.method().to_string(), request.uri().path().to_owned());
    let response = next.run(request).await;
    let (status, seconds) = (response.status().as_u16(), start.elapsed().as_secs_f64());
    // What nobody knows must not become labels without number.
    let known = [PREDICT, MODEL, "/", "/metrics", "/healthz", "/readyz"];
    let label = known.into_iter().find(|known| *known == path).unwrap_or("other");
    service
        .metrics
        .requests
        .get_or_create(&RequestLabels { path: label, status })
        .inc();
    if label == PREDICT {
        service.metrics.seconds.observe(seconds);
    }
    if let Some(on_access) = &service.on_access {
        on_access(&Access {
            method,
            path,
            status,
            seconds,
        });
    }
    response
}

async fn ready(State(service): State<Arc<Service>>) -> Response {
    match service.desk.is_open() {
        true => "ready\n".into_response(),
        false => Failure::new(StatusCode::SERVICE_UNAVAILABLE, STOPPED).into_response(),
    }
}

async fn metrics(State(service): State<Arc<Service>>) -> Response {
    service.metrics.waiting.set(service.desk.n_waiting() as i64);
    let kind = "application/openmetrics-text; version=1.0.0; charset=utf-8";
    ([(CONTENT_TYPE, kind)], service.metrics.text()).into_response()
}

async fn model(State(service): State<Arc<Service>>) -> Response {
    axum::Json(&service.about().card).into_response()
}

/// A thumbnail of a training image.
async fn training(State(service): State<Arc<Service>>, Path(digest): Path<String>) -> Response {
    let about = service.about();
    let _turn = service.pictures.acquire().await;
    let thumbnail = tokio::task::spawn_blocking(move || {
        let training = about.training.as_ref()?;
        training.thumbnail(&digest.parse().ok()?, THUMBNAIL_SIDE)
    });
    match thumbnail.await {
        Ok(Some(jpeg)) => {
            // The address names the bytes.
            let headers = [
                (CONTENT_TYPE, "image/jpeg"),
                (CACHE_CONTROL, "private, max-age=86400, immutable"),
            ];
            (headers, jpeg).into_response()
        }
        _ => Failure::new(StatusCode::NOT_FOUND, "no such training image at hand").into_response(),
    }
}

/// What is asked beside the images.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Asked {
    /// How many classes an answer names.
    top_k: Option<usize>,
    /// How many training images it tells of.
    nearest: Option<usize>,
}

/// An image with the name that the client gave it.
struct Named {
    file: Option<String>,
    image: Arc<[u8]>,
}

/// Whether the client asked for one image, and gets one answer, or for several.
struct Images {
    images: Vec<Named>,
    is_one: bool,
}

/// An answer, as `luthier predict --format json` prints it.
#[derive(Serialize)]
struct Answer {
    #[serde(skip_serializing_if = "Option::is_none")]
    file: Option<String>,
    #[serde(flatten)]
    answer: Option<Prediction>,
    #[serde(skip_serializing_if = "Option::is_none")]
    nearest: Option<Vec<NearestImage>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    error: Option<String>,
}

async fn predict(
    State(service): State<Arc<Service>>,
    asked: Result<Query<Asked>, axum::extract::rejection::QueryRejection>,
    headers: HeaderMap,
    body: Body,
) -> Response {
    let Ok(Query(asked)) = asked else {
        let error = "the query may have top_k and nearest, whole numbers";
        return Failure::new(StatusCode::BAD_REQUEST, error).into_response();
    };
    match answer(&service, &asked, &headers, body).await {
        Ok(response) => response,
        Err(failure) => failure.into_response(),
    }
}

async fn answer(service: &Service, asked: &Asked, headers: &HeaderMap, body: Body) -> Result<Response, Failure> {
    let (body, _room) = read(service, headers, body).await?;
    let Images { images, is_one } = images(headers, body).await?;
    let (files, images): (Vec<_>, Vec<_>) = images.into_iter().map(|named| (named.file, named.image)).unzip();
    let outcomes = service.desk.predict(images).await.map_err(|refused| match refused {
        Refused::Busy => busy("too many images wait"),
        // To come again would not help.
        Refused::Over => Failure::new(StatusCode::INTERNAL_SERVER_ERROR, STOPPED),
        Refused::TooMany { most } => {
            let error = format!("more images than are taken at once, expected at most {most}");
            Failure::new(StatusCode::PAYLOAD_TOO_LARGE, error)
        }
    })?;
    let mut answers = Vec::with_capacity(outcomes.len());
    let mut status = StatusCode::OK;
    let count = |outcome| {
        service.metrics.images.get_or_create(&ImageLabels { outcome }).inc();
    };
    for (file, outcome) in files.into_iter().zip(outcomes) {
        let mut near = None;
        let (label, answer, error) = match outcome {
            Outcome::Answered(mut prediction, about) => {
                prediction.predictions.truncate(asked.top_k.unwrap_or(3).max(1));
                near = nearest(about, asked.nearest, std::mem::take(&mut prediction.features)).await;
                let is_known = prediction.answer != UNKNOWN;
                (if is_known { "answered" } else { "unknown" }, Some(prediction), None)
            }
            Outcome::Unreadable(reason) => {
                status = StatusCode::UNPROCESSABLE_ENTITY;
                ("unreadable", None, Some(reason))
            }
            Outcome::Failed(reason) => {
                count("failed");
                return Err(Failure::new(StatusCode::INTERNAL_SERVER_ERROR, reason));
            }
        };
        count(label);
        answers.push(Answer {
            file,
            answer,
            nearest: near,
            error,
        });
    }
    // Of several images each has its own answer or error.
    Ok(match (is_one, answers.as_slice()) {
        (true, [only]) => (status, axum::Json(only)).into_response(),
        _ => axum::Json(answers).into_response(),
    })
}

/// The training images nearest to an image, if they are asked for and at hand.
async fn nearest(about: Arc<About>, n: Option<usize>, features: Vec<f32>) -> Option<Vec<NearestImage>> {
    let n = n?.min(MOST_NEAREST);
    let find = move || Some(about.training.as_ref()?.nearest(&features, n));
    tokio::task::spawn_blocking(find).await.ok()?
}

/// As a semaphore counts memory.
pub(crate) fn kib(n_bytes: usize) -> u32 {
    u32::try_from(n_bytes.div_ceil(1024)).unwrap_or(u32::MAX)
}

fn busy(error: &str) -> Failure {
    Failure::new(
        StatusCode::SERVICE_UNAVAILABLE,
        format!("{error}: come again in a second"),
    )
}

fn too_large(service: &Service) -> Failure {
    let error = format!(
        "a larger body than is read, expected at most {} bytes",
        service.max_body
    );
    Failure::new(StatusCode::PAYLOAD_TOO_LARGE, error)
}

/// The body, if it is not too large and does not take too long, and the room that it takes.
async fn read<'a>(
    service: &'a Service,
    headers: &HeaderMap,
    mut body: Body,
) -> Result<(Bytes, SemaphorePermit<'a>), Failure> {
    let announced = headers
        .get(CONTENT_LENGTH)
        .and_then(|length| length.to_str().ok()?.parse::<u64>().ok());
    let read = match announced.is_some_and(|length| length > service.max_body as u64) {
        true => Err(too_large(service)),
        false => tokio::time::timeout(service.body_timeout, arrive(service, &mut body))
            .await
            .unwrap_or_else(|_| {
                let seconds = service.body_timeout.as_secs();
                let error = format!("the body took longer than {seconds} s to arrive");
                Err(Failure::new(StatusCode::REQUEST_TIMEOUT, error))
            }),
    };
    match read {
        Ok((bytes, _)) if bytes.is_empty() => Err(Failure::new(
            StatusCode::BAD_REQUEST,
            "an empty body, expected an image",
        )),
        Ok(read) => Ok(read),
        Err(failure) => {
            discard(body).await;
            Err(failure)
        }
    }
}

/// The body as it comes. Room is taken for what has come: whoever only announces a body keeps nobody out.
async fn arrive<'a>(service: &'a Service, body: &mut Body) -> Result<(Bytes, SemaphorePermit<'a>), Failure> {
    let full = |_| busy("the bodies of others fill the memory");
    let mut bytes = Vec::new();
    let mut room = service.room.try_acquire_many(0).map_err(full)?;
    while let Some(frame) = body.frame().await {
        let frame = frame.map_err(|error| Failure::new(StatusCode::BAD_REQUEST, format!("the body: {error}")))?;
        let Some(data) = frame.data_ref() else { continue };
        if bytes.len() + data.len() > service.max_body {
            return Err(too_large(service));
        }
        let more = kib(bytes.len() + data.len()) - kib(bytes.len());
        room.merge(service.room.try_acquire_many(more).map_err(full)?);
        bytes.extend_from_slice(data);
    }
    Ok((bytes.into(), room))
}

/// Reads some of a body for nothing: a client that is still sending when the connection closes does not see the answer.
async fn discard(mut body: Body) {
    const MOST: usize = 16 << 20;
    let read = async {
        let mut n_read = 0;
        while n_read < MOST
            && let Some(Ok(frame)) = body.frame().await
        {
            n_read += frame.data_ref().map_or(0, Bytes::len);
        }
    };
    tokio::time::timeout(Duration::from_secs(1), read).await.ok();
}

/// The images of a body: the body itself, the parts of a form, or base64 in JSON.
async fn images(headers: &HeaderMap, body: Bytes) -> Result<Images, Failure> {
    let kind = headers
        .get(CONTENT_TYPE)
        .and_then(|kind| kind.to_str().ok())
        .unwrap_or_default();
    let essence = kind.split(';').next().unwrap_or_default().trim().to_ascii_lowercase();
    match essence.as_str() {
        "multipart/form-data" => of_form(kind, body).await,
        "application/json" => of_json(&body),
        _ => Ok(Images {
            images: vec![Named {
                file: None,
                image: Arc::from(&body[..]),
            }],
            is_one: true,
        }),
    }
}

async fn of_form(kind: &str, body: Bytes) -> Result<Images, Failure> {
    let wrong = |error: multer::Error| Failure::new(StatusCode::BAD_REQUEST, format!("multipart/form-data: {error}"));
    let boundary = multer::parse_boundary(kind).map_err(wrong)?;
    let once = futures_util::stream::once(async { Ok::<Bytes, std::convert::Infallible>(body) });
    let mut form = multer::Multipart::new(once, boundary);
    let mut images = Vec::new();
    while let Some(part) = form.next_field().await.map_err(wrong)? {
        let file = part.file_name().or(part.name()).map(str::to_owned);
        let image = part.bytes().await.map_err(wrong)?;
        images.push(Named {
            file,
            image: Arc::from(&image[..]),
        });
    }
    if images.is_empty() {
        return Err(Failure::new(
            StatusCode::BAD_REQUEST,
            "a form without parts, expected an image in each",
        ));
    }
    Ok(Images { images, is_one: false })
}

/// Images in JSON.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct InJson {
    images: Vec<ImageInJson>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct ImageInJson {
    file: Option<String>,
    /// base64, also as a data URL.
    data: String,
}

fn of_json(body: &[u8]) -> Result<Images, Failure> {
    let wrong = |error: String| Failure::new(StatusCode::BAD_REQUEST, format!("JSON: {error}"));
    let InJson { images } = serde_json::from_slice(body).map_err(|error| wrong(error.to_string()))?;
    if images.is_empty() {
        return Err(wrong("no images".to_owned()));
    }
    let decoded = images
        .into_iter()
        .enumerate()
        .map(|(place, ImageInJson { file, data })| {
            let text = match data.split_once(";base64,") {
                Some((_, text)) if data.starts_with("data:") => text,
                _ => &data,
            };
            let image = STANDARD
                .decode(text)
                .map_err(|error| wrong(format!("image {place}: {error}")))?;
            Ok(Named {
                file,
                image: Arc::from(image),
            })
        });
    Ok(Images {
        images: decoded.collect::<Result<_, Failure>>()?,
        is_one: false,
    })
}
