//! What is estimated from one pass over the rows, against two passes, other cuts and other numbers of threads.

use std::fs::File;
use std::io::{BufWriter, Write};
use std::os::unix::fs::FileExt;

use luthier_artifact::{Artifact, ReadError, ReadRows};
use luthier_features::{
    ComponentCount, Error, FeaturesConfig, FittedPca, Moments, Pca, Projection, Solver, StandardScaler, Subset,
};
use ndarray::{Array1, Array2, ArrayViewMut2, Axis, s};
use proptest::prelude::*;

use crate::synthetic;

/// Rows enough for several blocks, and for products in `f32`.
const MANY: usize = 9000;

fn pca(n_components: ComponentCount) -> Pca {
    Pca::new(n_components, Solver::Faer)
}

fn largest(values: impl IntoIterator<Item = f64>) -> f64 {
    values.into_iter().fold(0.0, |largest, value| largest.max(value.abs()))
}

/// Variances by two passes over centred features, for one pass over others rounds at the size of their means.
fn variances(x: &Array2<f32>) -> Array1<f64> {
    let x = x.mapv(f64::from);
    let centred = &x - &x.mean_axis(Axis(0)).unwrap();
    centred.var_axis(Axis(0), 0.0)
}

#[test]
fn a_mean_far_from_zero_costs_no_precision_wherever_it_changes() {
    let mut x = synthetic(MANY, 6);
    // Half a dozen blocks, of which the first has nothing in common with the others.
    x.slice_mut(s![..2500, ..]).mapv_inplace(|value| value - 3e4);
    x.slice_mut(s![2500.., ..]).mapv_inplace(|value| value + 1e5);
    let expected = variances(&x);
    for scaler in [
        Moments::of(x.view()).unwrap().scaler(),
        StandardScaler::fit(x.view()).unwrap(),
    ] {
        let off = largest(&(&scaler.scale * &scaler.scale) / &expected - 1.0);
        assert!(off < 1e-12, "{off:e}");
    }

    let x = synthetic(MANY, 6).mapv(|value| value + 1e4);
    let scaler = Moments::of(x.view()).unwrap().scaler();
    let off = largest(&(&scaler.scale * &scaler.scale) / &variances(&x) - 1.0);
    assert!(off < 1e-12, "{off:e}");
}

#[test]
fn one_pass_finds_the_components_of_the_scaled_rows() {
    for n in [300, MANY] {
        let mut x = synthetic(n, 40);
        // Scales over sixty orders of magnitude, as far as f32 goes.
        for (column, mut values) in x.columns_mut().into_iter().enumerate() {
            values *= 10f32.powi(column as i32 - 20);
        }
        let config = FeaturesConfig {
            n_components: ComponentCount::Exact(40),
            whiten: false,
            solver: Solver::Faer,
        };
        let one_pass = config.run(x.view(), &()).unwrap();
        let scaled = StandardScaler::fit(x.view()).unwrap().transform(x.view()).unwrap();
        // In f64 by construction: the longer side of the Gram matrix is that of few rows.
        let covariance = scaled.t().dot(&scaled) / (n - 1) as f64;
        let components = &one_pass.pca.components;
        let found = components.dot(&covariance).dot(&components.t());
        let off = largest(found - Array2::from_diag(&one_pass.pca.explained_variance)) / covariance.diag().sum();
        assert!(off < 1e-8, "{n} rows: {off:e}");
    }
}

#[test]
fn moments_do_not_depend_on_the_number_of_threads() {
    let x = synthetic(MANY, 300);
    let config = FeaturesConfig {
        n_components: ComponentCount::Variance(0.9),
        whiten: false,
        solver: Solver::Faer,
    };
    let bytes = |threads: usize| {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
        pool.install(|| {
            let projection = config.run(x.view(), &()).unwrap();
            let projected = projection.transform(x.view()).unwrap();
            (
                projection.encode(),
                projected.iter().map(|value| value.to_bits()).collect::<Vec<_>>(),
            )
        })
    };
    let one = bytes(1);
    for threads in [2, 8] {
        assert!(bytes(threads) == one, "1 and {threads} threads differ");
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(32))]

    #[test]
    fn moments_of_parts_merge_to_those_of_the_whole(cut in 1usize..199, offset in -1e3f32..1e3) {
        let x = synthetic(200, 12).mapv(|value| value + offset);
        let mut merged = Moments::of(x.slice(s![..cut, ..])).unwrap();
        merged.merge(&Moments::of(x.slice(s![cut.., ..])).unwrap()).unwrap();
        let whole = Moments::of(x.view()).unwrap();
        prop_assert_eq!(merged.n_rows(), 200);
        let (merged, whole) = (merged.scaler(), whole.scaler());
        prop_assert!(largest(&merged.mean - &whole.mean) < 1e-12 * f64::from(offset.abs() + 1.0));
        prop_assert!(largest(&merged.scale / &whole.scale - 1.0) < 1e-12);
    }

    #[test]
    fn folds_left_out_of_a_merge_are_as_if_they_had_never_been_read(n_folds in 2usize..6) {
        let x = synthetic(180, 10);
        let (held_out, others): (Vec<usize>, Vec<usize>) = (0..180).partition(|row| row % n_folds == 0);
        let of = |chosen: &[usize]| Moments::of(Subset { rows: x.view(), chosen }).unwrap();
        let folds: Vec<Vec<usize>> = (1..n_folds).map(|fold| (0..180).filter(|row| row % n_folds == fold).collect()).collect();
        let mut merged = of(&folds[0]);
        for fold in &folds[1..] {
            merged.merge(&of(fold)).unwrap();
        }
        let config = FeaturesConfig { n_components: ComponentCount::Exact(5), whiten: false, solver: Solver::Faer };
        let merged = Projection::of_moments(config, merged).unwrap();
        let refitted = config.run(x.select(Axis(0), &others).view(), &()).unwrap();
        prop_assert_eq!(held_out.len() + others.len(), 180);
        let expected = refitted.transform(x.view()).unwrap();
        prop_assert!(largest(merged.transform(x.view()).unwrap() - expected) < 1e-9);
    }
}

#[test]
fn moments_of_other_widths_do_not_merge() {
    let mut moments = Moments::of(synthetic(5, 3).view()).unwrap();
    let error = moments
        .merge(&Moments::of(synthetic(5, 4).view()).unwrap())
        .unwrap_err();
    assert_eq!(error.to_string(), "features have 4 columns, expected 3");
    assert!(matches!(
        Moments::of(synthetic(0, 3).view()),
        Err(Error::TooFewRows { expected: 1, found: 0 })
    ));
}

#[test]
fn constant_features_have_a_scale_of_one_and_no_part_in_any_component() {
    for n in [30, 60, MANY] {
        let mut x = synthetic(n, 40);
        for (column, value) in [(3, 0.1f32), (17, 1e6), (39, -7.3)] {
            x.column_mut(column).fill(value);
        }
        let config = FeaturesConfig {
            n_components: ComponentCount::Variance(0.99),
            whiten: false,
            solver: Solver::Faer,
        };
        let Projection { scaler, pca, .. } = config.run(x.view(), &()).unwrap();
        for column in [3, 17, 39] {
            assert_eq!(scaler.scale[column], 1.0, "{n} rows, column {column}");
            assert!(largest(pca.components.column(column).to_vec()) < 1e-10);
        }
    }
}

#[test]
fn rows_that_repeat_leave_the_components_as_they_are() {
    let x = synthetic(50, 30);
    let twice = ndarray::concatenate(Axis(0), &[x.view(), x.view()]).unwrap();
    let fit = |x: &Array2<f32>| -> FittedPca {
        let scaled = StandardScaler::fit(x.view()).unwrap().transform(x.view()).unwrap();
        pca(ComponentCount::Exact(5)).fit(scaled.view()).unwrap()
    };
    let (once, twice) = (fit(&x), fit(&twice));
    assert!(largest(&once.components - &twice.components) < 1e-9);
    assert!(largest(&once.explained_variance_ratio - &twice.explained_variance_ratio) < 1e-12);
}

#[test]
fn all_components_are_those_that_vary_at_all() {
    // 20 rows span 19 directions, 60 rows all but the one that a constant column takes away.
    for (n, expected) in [(20, 19), (60, 29)] {
        let mut x = synthetic(n, 30);
        x.column_mut(4).fill(1.0);
        let config = FeaturesConfig {
            n_components: ComponentCount::All,
            whiten: false,
            solver: Solver::Faer,
        };
        let Projection { pca, .. } = config.run(x.view(), &()).unwrap();
        assert_eq!(pca.n_components(), expected, "{n} rows");
        assert!((pca.explained_variance_ratio.sum() - 1.0).abs() < 1e-12);
        let gram = pca.components.dot(&pca.components.t());
        assert!(largest(gram - Array2::<f64>::eye(expected)) < 1e-7);
    }
}

#[test]
fn whitened_components_have_unit_variance_and_no_correlation() {
    let x = synthetic(200, 12).mapv(f64::from);
    let whitened = pca(ComponentCount::Exact(6)).fit(x.view()).unwrap().whitened();
    let z = whitened.transform(x.view()).unwrap();
    let covariance = z.t().dot(&z) / 199.0;
    assert!(largest(covariance - Array2::<f64>::eye(6)) < 1e-9);
}

/// Rows in a file of plain `f32`.
struct InFile {
    file: File,
    n_rows: usize,
}

impl ReadRows for InFile {
    type Feature = f32;

    fn n_rows(&self) -> usize {
        self.n_rows
    }

    fn n_features(&self) -> usize {
        2048
    }

    fn read(&self, start: usize, mut block: ArrayViewMut2<'_, f32>) -> std::result::Result<(), ReadError> {
        let width = 4 * block.ncols();
        let mut bytes = vec![0; width];
        for (row, mut features) in block.rows_mut().into_iter().enumerate() {
            self.file.read_exact_at(&mut bytes, ((start + row) * width) as u64)?;
            for (feature, bytes) in features.iter_mut().zip(bytes.chunks_exact(4)) {
                *feature = f32::from_le_bytes(bytes.try_into().expect("chunks of four bytes"));
            }
        }
        Ok(())
    }
}

/// Prints time and peak memory for 10⁴ to 10⁶ rows of 2,048 features in a file, 8 GB of `TMPDIR` at the end.
#[test]
#[ignore = "a measurement"]
fn time_and_memory_of_a_million_rows() {
    let path = std::env::temp_dir().join(format!("luthier-rows-{}", std::process::id()));
    let mut out = BufWriter::new(File::create(&path).unwrap());
    let mut written = 0;
    for n_rows in [10_000, 100_000, 1_000_000] {
        let some = synthetic(10_000, 2048);
        while written < n_rows {
            for row in some.rows() {
                row.iter()
                    .for_each(|value| out.write_all(&value.to_le_bytes()).unwrap());
            }
            written += some.nrows();
        }
        drop(some);
        out.flush().unwrap();
        let file = InFile {
            file: File::open(&path).unwrap(),
            n_rows,
        };
        let start = std::time::Instant::now();
        let moments = Moments::of(&file).unwrap();
        let read = start.elapsed();
        let config = FeaturesConfig {
            n_components: ComponentCount::Variance(0.98),
            whiten: false,
            solver: Solver::Faer,
        };
        let projection = Projection::of_moments(config, moments).unwrap();
        let status = std::fs::read_to_string("/proc/self/status").unwrap();
        let peak = status.lines().find(|line| line.starts_with("VmHWM")).unwrap();
        println!(
            "{n_rows} rows: {:.1} µs a row, then {:.2?} for {} components; {peak}",
            1e6 * read.as_secs_f64() / n_rows as f64,
            start.elapsed() - read,
            projection.pca.n_components(),
        );
    }
    std::fs::remove_file(path).unwrap();
}
