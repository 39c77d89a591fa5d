//! Decoding, resizing, and the network. Untrained weights cost what trained ones do.

use std::hint::black_box;

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use luthier_benches::jpeg;
use luthier_extract::{
    Device, Extractor, ExtractorConfig, ImageFile, Precision, Preprocess, Resize, WeightsSource, WeightsStore, decode,
};

/// JPEG bytes → 224 × 224, one thread, one image.
fn decode_and_resize(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("decode+resize");
    group.throughput(Throughput::Elements(1)).sample_size(20);
    for (width, height) in [(500, 375), (4000, 3000)] {
        let bytes = jpeg(width, height, 0);
        for resize in [Resize::Squash, Resize::Crop] {
            let mut preprocess = Preprocess::new(resize);
            group.bench_function(
                BenchmarkId::new(resize.to_string(), format!("{width}x{height}")),
                |bencher| {
                    bencher.iter(|| preprocess.run(&decode(black_box(&bytes)).unwrap()));
                },
            );
        }
    }
}

/// Files → features: decoding beside the network, all cores.
fn extract(criterion: &mut Criterion) {
    const IMAGES: usize = 32;
    let folder = tempfile::tempdir().unwrap();
    let files: Vec<ImageFile> = (0..IMAGES)
        .map(|n| {
            let path = folder.path().join(format!("{n}.jpg"));
            std::fs::write(&path, jpeg(500, 375, n as u32)).unwrap();
            ImageFile { path, digest: None }
        })
        .collect();
    let n_threads = std::thread::available_parallelism().unwrap().get();
    let mut group = criterion.benchmark_group("extract");
    group.throughput(Throughput::Elements(IMAGES as u64)).sample_size(10);
    for precision in [Precision::Fp32, Precision::Bf16] {
        for batch in [1, 8, 32] {
            let config = ExtractorConfig {
                resize: Resize::Squash,
                weights: WeightsSource::Untrained,
                precision,
                device: Device::Cpu,
                batch,
            };
            let store = WeightsStore::new("unused".into(), None);
            let extractor = Extractor::load(&config, &store, n_threads, &()).unwrap();
            group.bench_function(
                BenchmarkId::new(precision.to_string(), format!("batch={batch}")),
                |bencher| {
                    bencher.iter(|| {
                        let done = |_, row| {
                            black_box(row);
                            Ok(())
                        };
                        extractor.embed(&files, &(), done).unwrap();
                    });
                },
            );
        }
    }
}

criterion_group!(benches, decode_and_resize, extract);
criterion_main!(benches);
