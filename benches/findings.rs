//! Look-alikes, nearest images, and the map, as the images grow.

use std::hint::black_box;

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use luthier_artifact::{Digest, ImageRows, Split};
use luthier_benches::features_of_rows;
use luthier_eval::{DuplicatesConfig, ImageRef, MapConfig, NearestImages, NeighboursConfig};
use ndarray::{Array2, s};

const N_CLASSES: usize = 10;

fn look_alikes(criterion: &mut Criterion) {
    for n in [10_000, 50_000] {
        let features = features_of_rows(0..n, N_CLASSES);
        let rows: Vec<Digest> = (0..n).map(|row| Digest::of(&row.to_le_bytes())).collect();
        let images = ImageRows {
            images: rows.clone(),
            features: rows.clone(),
            n_features: features.ncols(),
            hashes: rows,
            n_hash_values: 192,
        };
        let mut group = criterion.benchmark_group("look-alikes");
        group.throughput(Throughput::Elements(n as u64)).sample_size(10);
        for (name, spread) in [("photographs", 1.0), ("scans of one brightness", 0.0)] {
            let numbers = features.slice(s![.., ..192]);
            let hashes = Array2::from_shape_fn(numbers.dim(), |(row, column)| {
                let [brightness, contrast] = [7, 13].map(|prime| spread * (row * prime % 200) as f32);
                20.0 + brightness + (25.0 + contrast / 4.0) * numbers[[row, column]]
            });
            group.bench_function(BenchmarkId::new(name, n), |bencher| {
                let config = DuplicatesConfig::default();
                bencher.iter(|| {
                    config
                        .run(&images, &features.view(), black_box(&hashes.view()), &())
                        .unwrap()
                });
            });
        }
    }
}

fn neighbours(criterion: &mut Criterion) {
    for n in [10_000, 50_000] {
        let features = features_of_rows(0..n, N_CLASSES);
        let mut group = criterion.benchmark_group("neighbours");
        group.throughput(Throughput::Elements(n as u64)).sample_size(10);
        for n_asked in [1, 100] {
            let asked: Vec<ImageRef> = (0..n_asked)
                .map(|row| ImageRef {
                    split: Split::Train,
                    row,
                })
                .collect();
            group.bench_function(BenchmarkId::new(format!("of {n_asked}"), n), |bencher| {
                let config = NeighboursConfig::default();
                let (train, test) = (features.view(), features.slice(s![..0, ..]));
                bencher.iter(|| {
                    config
                        .run(&train, &test, black_box(&asked), NearestImages::default(), &())
                        .unwrap()
                });
            });
        }
    }
}

fn map(criterion: &mut Criterion) {
    let config = MapConfig::default();
    let n = config.max_images;
    let features = features_of_rows(0..n, N_CLASSES);
    let images: Vec<Digest> = (0..n).map(|row| Digest::of(&row.to_le_bytes())).collect();
    let at: Vec<usize> = (0..n).collect();
    criterion.bench_function(&format!("map/{n}"), |bencher| {
        bencher.iter(|| config.run(&features.view(), black_box(images.clone()), &at).unwrap());
    });
}

criterion_group!(benches, look_alikes, neighbours, map);
criterion_main!(benches);
