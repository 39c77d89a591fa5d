//! Scaler, PCA and logistic regression on synthetic features of the size of a real data set.

use std::hint::black_box;

use criterion::{BenchmarkId, Criterion, criterion_group, criterion_main};
use luthier_benches::features;
use luthier_classify::LogisticRegression;
use luthier_features::{ComponentCount, FeaturesConfig, Solver};

fn project(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("scaler+pca");
    group.sample_size(10);
    for (n, classes) in [(1444, 10), (4793, 30), (50_000, 100)] {
        let (x, _) = features(n, classes);
        let config = FeaturesConfig {
            n_components: ComponentCount::Variance(0.98),
            whiten: false,
            solver: Solver::Faer,
        };
        group.bench_function(BenchmarkId::new("faer", format!("{n}x2048")), |bencher| {
            bencher.iter(|| config.run(black_box(x.view()), &()).unwrap());
        });
    }
}

fn classify(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("logistic regression");
    group.sample_size(10);
    for (n, classes) in [(1444, 10), (4793, 30)] {
        let (x, labels) = features(n, classes);
        let config = FeaturesConfig {
            n_components: ComponentCount::Exact(98),
            whiten: false,
            solver: Solver::Faer,
        };
        let components = config.run(x.view(), &()).unwrap().transform(x.view()).unwrap();
        let regression = LogisticRegression::new(1.0, Solver::Faer).unwrap();
        group.bench_function(BenchmarkId::new("faer", format!("{n}x98x{classes}")), |bencher| {
            bencher.iter(|| regression.fit(black_box(components.view()), &labels, classes).unwrap());
        });
    }
}

criterion_group!(benches, project, classify);
criterion_main!(benches);
