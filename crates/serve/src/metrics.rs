//! What `/metrics` tells, in the text format of Prometheus.

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::encoding::text::encode;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::registry::Registry;

/// Of a request.
#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
pub(crate) struct RequestLabels {
    pub(crate) path: &'static str,
    pub(crate) status: u16,
}

/// Of an image.
#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
pub(crate) struct ImageLabels {
    /// `answered`, `unknown`, `unreadable` or `failed`.
    pub(crate) outcome: &'static str,
}

/// Counters of the service.
#[derive(Debug)]
pub(crate) struct Metrics {
    registry: Registry,
    pub(crate) requests: Family<RequestLabels, Counter>,
    pub(crate) images: Family<ImageLabels, Counter>,
    pub(crate) seconds: Histogram,
    pub(crate) batches: Histogram,
    pub(crate) waiting: Gauge,
    pub(crate) reloads: Counter,
}

impl Metrics {
    pub(crate) fn new() -> Self {
        let metrics = Metrics {
            registry: Registry::default(),
            requests: Family::default(),
            images: Family::default(),
            // 1 ms to 33 s.
            seconds: Histogram::new(exponential_buckets(0.001, 2.0, 16)),
            batches: Histogram::new(exponential_buckets(1.0, 2.0, 7)),
            waiting: Gauge::default(),
            reloads: Counter::default(),
        };
        let mut registry = Registry::with_prefix("luthier");
        registry.register("requests", "Requests", metrics.requests.clone());
        registry.register("images", "Images by what became of them", metrics.images.clone());
        registry.register(
            "request_seconds",
            "Seconds from a request to its answer",
            metrics.seconds.clone(),
        );
        registry.register(
            "batch_images",
            "Images that went through the network together",
            metrics.batches.clone(),
        );
        registry.register("waiting_images", "Images that wait", metrics.waiting.clone());
        registry.register(
            "model_reloads",
            "Models that took the place of another",
            metrics.reloads.clone(),
        );
        Metrics { registry, ..metrics }
    }

    /// The text.
    pub(crate) fn text(&self) -> String {
        let mut text = String::new();
        encode(&mut text, &self.registry).expect("a string takes any text");
        text
    }
}
