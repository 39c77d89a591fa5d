//! Decoding, resizing, and the network. Untrained weights cost what trained ones do.

use std::hint::black_box;

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use luthier_benches::{Sampling, jpeg, sampled_jpeg};
use luthier_extract::{
    Decoding, Device, Extractor, ExtractorConfig, FeatureKind, Framing, ImageInput, ImageSource, InputSize, Limits,
    Pooling, Precision, Preprocess, WeightsSource, WeightsStore, decode,
};

/// JPEG bytes → 224 × 224, one thread, one image.
fn decode_and_resize(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("decode+resize");
    group.throughput(Throughput::Elements(1)).sample_size(20);
    let (mut preprocess, mut pixels) = (
        Preprocess::new(InputSize::default()),
        vec![0; InputSize::default().bytes()],
    );
    for (width, height) in [(500, 375), (4000, 3000)] {
        let bytes = jpeg(width, height, 0);
        for decoding in [Decoding::Exact, Decoding::Scaled] {
            for view in [Framing::Squash, Framing::Crop] {
                let id = BenchmarkId::new(format!("{decoding}/{view}"), format!("{width}x{height}"));
                group.bench_function(id, |bencher| {
                    bencher.iter(|| preprocess.run(&decode(black_box(&bytes), decoding).unwrap(), view, &mut pixels));
                });
            }
        }
    }
}

/// JPEG bytes → pixels, one thread: sizes at which libjpeg scales by 1, 1/2, 1/4 and 1/8.
fn decode_jpeg(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("decode");
    group.throughput(Throughput::Elements(1)).sample_size(10);
    for (width, height, scale) in [
        (800, 600, "1"),
        (1600, 1200, "1/2"),
        (4000, 3000, "1/4"),
        (8000, 6000, "1/8"),
    ] {
        for sampling in [Sampling::Full, Sampling::Half, Sampling::Grey] {
            let bytes = sampled_jpeg(width, height, sampling);
            let id = BenchmarkId::new(format!("{scale}/{sampling:?}"), format!("{width}x{height}"));
            group.bench_function(id, |bencher| {
                bencher.iter(|| decode(black_box(&bytes), Decoding::Scaled).unwrap());
            });
        }
    }
}

/// An extractor on the CPU, with all cores.
fn extractor(precision: Precision, batch: usize) -> Extractor {
    let config = ExtractorConfig {
        views: Framing::Squash.into(),
        pooling: Pooling::default(),
        decode: Decoding::Scaled,
        limits: Limits::default(),
        weights: WeightsSource::Untrained,
        precision,
        device: Device::Cpu,
        batch: Some(batch),
    };
    let n_threads = std::thread::available_parallelism().unwrap().get();
    let store = WeightsStore::new("unused".into(), None);
    Extractor::load(&config, InputSize::default(), &store, n_threads, Some(1_000_000), &()).unwrap()
}

/// Decoded images → features, all cores.
fn network(criterion: &mut Criterion) {
    const IMAGES: usize = 32;
    let images = vec![100; IMAGES * InputSize::default().bytes()];
    let mut group = criterion.benchmark_group("network");
    group.throughput(Throughput::Elements(IMAGES as u64)).sample_size(10);
    for precision in [Precision::Fp32, Precision::Bf16] {
        for batch in [1, 4, 8] {
            let extractor = extractor(precision, batch);
            let id = BenchmarkId::new(precision.to_string(), format!("batch={batch}"));
            group.bench_function(id, |bencher| {
                bencher.iter(|| extractor.embed_pixels(black_box(&images)).unwrap());
            });
        }
    }
}

/// Files → features, all cores.
fn extract(criterion: &mut Criterion) {
    const IMAGES: usize = 32;
    let mut group = criterion.benchmark_group("extract");
    group.throughput(Throughput::Elements(IMAGES as u64)).sample_size(10);
    for (width, height) in [(500, 375), (4000, 3000)] {
        let folder = tempfile::tempdir().unwrap();
        let files: Vec<ImageInput> = (0..IMAGES)
            .map(|n| {
                let path = folder.path().join(format!("{n}.jpg"));
                std::fs::write(&path, jpeg(width, height, n as u32)).unwrap();
                ImageInput {
                    source: ImageSource::File(path),
                    digest: None,
                    kinds: vec![FeatureKind {
                        view: Framing::Squash.into(),
                        pooling: Pooling::default(),
                    }],
                }
            })
            .collect();
        for precision in [Precision::Fp32, Precision::Bf16] {
            let extractor = extractor(precision, 1);
            let id = BenchmarkId::new(precision.to_string(), format!("{width}x{height}"));
            group.bench_function(id, |bencher| {
                let done = |_, embedded| {
                    black_box(embedded);
                    Ok(())
                };
                bencher.iter(|| extractor.embed(&files, &(), done).unwrap());
            });
        }
    }
}

criterion_group!(benches, decode_jpeg, decode_and_resize, network, extract);
criterion_main!(benches);
