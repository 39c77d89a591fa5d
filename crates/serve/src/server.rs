//! Connections, and the end of them.

use std::net::{SocketAddr, TcpListener};
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, RwLock};
use std::time::Duration;

use axum::Router;
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::server::graceful::GracefulShutdown;
use hyper_util::service::TowerToHyperService;
use luthier::PredictorConfig;
use luthier_artifact::Observer;
use luthier_extract::WeightsStore;
use tokio::sync::Semaphore;

use crate::desk::Desk;
use crate::http::{OnAccess, Service, kib, router};
use crate::metrics::Metrics;
use crate::model::ModelSource;
use crate::{Error, Result};

/// How long the headers of a request may take to arrive.
const HEADER_TIMEOUT: Duration = Duration::from_secs(10);

/// How many bytes the bodies of requests may take together, unless a single one may be larger.
const BODIES: usize = 1 << 30;

/// How many thumbnails are made at once: each decodes an image.
const PICTURES: usize = 2;

/// How often the caller is asked whether to go on.
const TICK: Duration = Duration::from_millis(50);

/// How long accepted requests may take once the service ends.
const LAST_SECONDS: Duration = Duration::from_secs(30);

/// How long a failing listener is left alone: it fails while there are no file descriptors left.
const PAUSE: Duration = Duration::from_millis(100);

/// A service.
pub struct ServeConfig {
    /// The model file.
    pub model: PathBuf,
    /// The folder of the features that it was trained on, if answers are to tell of the nearest training images.
    pub features: Option<PathBuf>,
    /// Where requests are listened for; port 0 for any that is free.
    pub listen: SocketAddr,
    /// What requests must bear as `Authorization: Bearer TOKEN`, if anything: visible ASCII without `%`, which the
    /// address of the page can carry.
    pub token: Option<String>,
    /// How many images may wait for the network.
    pub queue: usize,
    /// How many connections there may be at once.
    pub connections: usize,
    /// The largest body of a request, in bytes.
    pub max_body: usize,
    /// How long a body may take to arrive.
    pub body_timeout: Duration,
    /// How the network runs. Answers name as many classes as the request asks for.
    pub predictor: PredictorConfig,
    /// Told of each request that has been answered.
    pub on_access: Option<OnAccess>,
}

/// Answers requests until the observer interrupts, and then those that were accepted. `on_ready` is told the address when the
/// model is loaded.
///
/// # Errors
/// Those of [`Predictor::open`](luthier::Predictor::open), also if the observer interrupts it, and [`Error::Listen`] if
/// the address cannot be had.
pub fn serve(
    config: ServeConfig,
    store: &WeightsStore,
    observer: &dyn Observer,
    on_ready: impl FnOnce(SocketAddr),
) -> Result<()> {
    let ServeConfig {
        model,
        features,
        listen,
        token,
        queue,
        connections,
        max_body,
        body_timeout,
        predictor,
        on_access,
    } = config;
    // Before the model is loaded, which takes a while.
    let listener = bind(listen)?;
    let source = ModelSource {
        path: model,
        features,
        store: store.clone(),
        config: PredictorConfig {
            top_k: usize::MAX,
            ..predictor
        },
    };
    let stat = source.stat();
    let model = source.open(observer)?;
    let metrics = Arc::new(Metrics::new());
    let current = Arc::new(RwLock::new(model.about.clone()));
    let desk = Arc::new(Desk::open(model, queue, metrics.clone())?);
    let is_over = AtomicBool::new(false);
    let service = Arc::new(Service {
        desk: desk.clone(),
        current: current.clone(),
        metrics: metrics.clone(),
        pictures: Semaphore::new(PICTURES),
        token: token.map(|token| blake3::hash(token.as_bytes())),
        is_local: listen.ip().is_loopback(),
        room: Semaphore::new(kib(BODIES.max(max_body)) as usize),
        max_body,
        body_timeout,
        on_access,
    });
    std::thread::scope(|scope| {
        scope.spawn(|| source.watch(stat, &desk, &current, &metrics, || is_over.load(Ordering::Relaxed)));
        let done = run(listener, connections, observer, on_ready, || router(service));
        is_over.store(true, Ordering::Relaxed);
        desk.close();
        done
    })
}

/// Takes an address.
pub(crate) fn bind(address: SocketAddr) -> Result<TcpListener> {
    let bound = TcpListener::bind(address).and_then(|listener| {
        listener.set_nonblocking(true)?;
        Ok(listener)
    });
    bound.map_err(|source| Error::Listen { address, source })
}

/// Answers requests until the observer interrupts. `router` is called where tasks can be begun.
pub(crate) fn run(
    listener: TcpListener,
    connections: usize,
    observer: &dyn Observer,
    on_ready: impl FnOnce(SocketAddr),
    router: impl FnOnce() -> Router,
) -> Result<()> {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .thread_name("http")
        .enable_all()
        .build()
        .map_err(Error::Threads)?;
    runtime.block_on(async {
        let address = listener.local_addr().map_err(Error::Threads)?;
        let listener = tokio::net::TcpListener::from_std(listener);
        let listener = listener.map_err(|source| Error::Listen { address, source })?;
        let router = router();
        on_ready(address);
        accept(listener, router, connections, observer).await;
        Ok(())
    })
    // The runtime ends here, with what was given up.
}

/// Accepts connections until the observer interrupts, and waits for what they have asked for.
async fn accept(listener: tokio::net::TcpListener, router: Router, connections: usize, observer: &dyn Observer) {
    let graceful = GracefulShutdown::new();
    let room = Arc::new(Semaphore::new(connections));
    let mut tick = tokio::time::interval(TICK);
    while !observer.is_interrupted() {
        // Without room connections wait in the system's queue.
        let accepted = async {
            let place = room.clone().acquire_owned().await.expect("it is never closed");
            (place, listener.accept().await)
        };
        let (place, accepted) = tokio::select! {
            accepted = accepted => accepted,
            _ = tick.tick() => continue,
        };
        let stream = match accepted {
            Ok((stream, _)) => stream,
            Err(error) => {
                tracing::warn!("a connection was lost: {error}");
                tokio::time::sleep(PAUSE).await;
                continue;
            }
        };
        stream.set_nodelay(true).ok();
        let connection = http1::Builder::new()
            .timer(TokioTimer::new())
            .header_read_timeout(HEADER_TIMEOUT)
            .serve_connection(TokioIo::new(stream), TowerToHyperService::new(router.clone()));
        let connection = graceful.watch(connection);
        tokio::spawn(async move {
            if let Err(error) = connection.await {
                tracing::debug!("a connection ended: {error}");
            }
            drop(place);
        });
    }
    drop(listener);
    if tokio::time::timeout(LAST_SECONDS, graceful.shutdown()).await.is_err() {
        tracing::warn!(
            "some requests took longer than {} s and are given up",
            LAST_SECONDS.as_secs()
        );
    }
}
