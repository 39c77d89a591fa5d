//! What a run with nothing changed costs: stats looked up, features read back.

use std::hint::black_box;
use std::path::PathBuf;

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use luthier_artifact::{Cache, Digest, FileStat};

fn cache(criterion: &mut Criterion) {
    let folder = tempfile::tempdir().unwrap();
    let cache = Cache::open(folder.path()).unwrap();
    let extractor = Digest::of(b"extractor");
    for n in [1_000, 10_000] {
        let images: Vec<Digest> = (0..n).map(|n: u32| Digest::of(&n.to_le_bytes())).collect();
        let rows: Vec<(Digest, Vec<f32>)> = images.iter().map(|image| (*image, vec![0.5; 2048])).collect();
        cache.store_features(&extractor, &rows).unwrap();
        let stat = FileStat {
            size: 1,
            mtime_ns: 1,
            inode: 1,
        };
        let files: Vec<(PathBuf, FileStat)> = (0..n).map(|n| (format!("/data/{n}.jpg").into(), stat)).collect();
        let known: Vec<_> = files
            .iter()
            .zip(&images)
            .map(|((path, stat), digest)| (path.clone(), *stat, *digest))
            .collect();
        cache.remember_files(&known).unwrap();

        let mut group = criterion.benchmark_group("cache");
        group.throughput(Throughput::Elements(u64::from(n))).sample_size(10);
        group.bench_function(BenchmarkId::new("digests by stat", n), |bencher| {
            bencher.iter(|| cache.file_digests(black_box(&files)).unwrap());
        });
        group.bench_function(BenchmarkId::new("features", n), |bencher| {
            bencher.iter(|| cache.features(&extractor, black_box(&images)).unwrap());
        });
        group.bench_function(BenchmarkId::new("store features", n), |bencher| {
            bencher.iter(|| cache.store_features(&extractor, black_box(&rows)).unwrap());
        });
    }
}

criterion_group!(benches, cache);
criterion_main!(benches);
