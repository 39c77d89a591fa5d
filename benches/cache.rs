//! What a run with nothing changed costs: stats looked up, digests of features found, features read back.

use std::hint::black_box;
use std::path::Path;
use std::time::SystemTime;

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use luthier_artifact::{Digest, FileStat};
use luthier_cache::Cache;

fn cache(criterion: &mut Criterion) {
    let folder = tempfile::tempdir().unwrap();
    let cache = Cache::open(folder.path()).unwrap();
    let extractor = Digest::of(b"extractor");
    let root = Path::new("/data");
    for n in [1_000, 10_000] {
        let mut images: Vec<Digest> = (0..n).map(|n: u32| Digest::of(&n.to_le_bytes())).collect();
        images.sort();
        let row = |place: u32| (images[place as usize], vec![place as f32; 2048]);
        let rows: Vec<(Digest, Vec<f32>)> = (0..n).map(row).collect();
        cache.store_features(&extractor, &rows).unwrap();
        let vectors: Vec<Digest> = cache
            .feature_digests(&extractor, &images)
            .unwrap()
            .into_iter()
            .flatten()
            .collect();
        let stat = FileStat {
            size: 1,
            mtime_ns: 1,
            inode: 1,
        };
        let names: Vec<String> = (0..n).map(|n| format!("class/{n:08}.jpg")).collect();
        let known = names
            .iter()
            .zip(&images)
            .map(|(name, image)| (name.as_str(), stat, *image));
        cache.remember_files(root, known, SystemTime::now()).unwrap();

        let mut group = criterion.benchmark_group("cache");
        group.throughput(Throughput::Elements(u64::from(n))).sample_size(10);
        group.bench_function(BenchmarkId::new("digests by stat", n), |bencher| {
            bencher.iter(|| {
                let files = names.iter().map(|name| (name.as_str(), stat));
                black_box(cache.file_digests(root, files).unwrap())
            });
        });
        group.bench_function(BenchmarkId::new("digests of features", n), |bencher| {
            bencher.iter(|| cache.feature_digests(&extractor, black_box(&images)).unwrap());
        });
        group.bench_function(BenchmarkId::new("features", n), |bencher| {
            bencher.iter(|| cache.vectors(black_box(&vectors), 2048).unwrap());
        });
        group.bench_function(BenchmarkId::new("store features", n), |bencher| {
            bencher.iter(|| cache.store_features(&extractor, black_box(&rows)).unwrap());
        });
    }
}

criterion_group!(benches, cache);
criterion_main!(benches);
