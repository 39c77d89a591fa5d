use luthier_artifact::Artifact;
use luthier_features::{ComponentCount, FeaturesConfig, Pca, Projection, Solver, StandardScaler};
use ndarray::Array2;

use crate::synthetic;

fn project(x: &Array2<f32>, n_components: ComponentCount, solver: Solver) -> Projection {
    FeaturesConfig {
        n_components,
        whiten: false,
        solver,
    }
    .run(x.view(), &())
    .unwrap()
}

#[test]
fn the_number_of_threads_does_not_change_a_byte() {
    // Large enough for faer to leave its sequential paths, on either side of n = d.
    for (n, d) in [(700, 500), (500, 700)] {
        let x = synthetic(n, d);
        let bytes = |threads: usize| {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
            pool.install(|| {
                let projection = project(&x, ComponentCount::Variance(0.9), Solver::Faer);
                let projected = projection.transform(x.view()).unwrap();
                (
                    projection.encode(),
                    projected.iter().map(|value| value.to_bits()).collect::<Vec<_>>(),
                )
            })
        };
        let one = bytes(1);
        for threads in [2, 3, 16] {
            assert!(
                bytes(threads) == one,
                "{n} × {d} differs between 1 and {threads} threads"
            );
        }
    }
}

#[test]
fn the_solvers_agree() {
    for (n, d) in [(60, 30), (30, 60)] {
        let x = synthetic(n, d);
        let n_components = ComponentCount::Variance(0.9);
        let (faer, smartcore) = (
            project(&x, n_components, Solver::Faer),
            project(&x, n_components, Solver::Smartcore),
        );
        assert_eq!(faer.pca.n_components(), smartcore.pca.n_components());
        let difference = (faer.transform(x.view()).unwrap() - smartcore.transform(x.view()).unwrap())
            .fold(0.0f64, |largest, value| largest.max(value.abs()));
        assert!(difference < 1e-8, "{n} × {d}: {difference:e}");
    }
}

#[test]
fn components_without_variance_are_orthonormal_all_the_same() {
    // 20 rows have 19 degrees of freedom: the 20th component explains nothing, and Xᵀu / √λ is 0 / 0 for it.
    let x = synthetic(20, 50);
    let scaled = StandardScaler::fit(x.view()).unwrap().transform(x.view()).unwrap();
    let pca = Pca::new(ComponentCount::Exact(20), Solver::Faer)
        .fit(scaled.view())
        .unwrap();
    let gram = pca.components.dot(&pca.components.t());
    assert!((gram - Array2::<f64>::eye(20)).iter().all(|entry| entry.abs() < 1e-12));
    assert!(pca.explained_variance_ratio[19].abs() < 1e-12);
}

/// Prints how long a projection of 2,400 × 2,048 takes, for a look at a figure that is too noisy to assert.
#[test]
#[ignore = "a measurement"]
fn time_of_2400_by_2048() {
    let x = synthetic(2400, 2048);
    for n_components in [ComponentCount::Exact(100), ComponentCount::Variance(0.98)] {
        let start = std::time::Instant::now();
        let projection = project(&x, n_components, Solver::Faer);
        println!(
            "n_components {n_components}: {} components in {:.2?}",
            projection.pca.n_components(),
            start.elapsed()
        );
    }
}
