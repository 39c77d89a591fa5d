//! Real photographs through real weights, against torchvision's features of them. Needs
//! `LUTHIER_TEST_WEIGHTS`, `LUTHIER_TEST_DATA` and `LUTHIER_TEST_REFERENCE`; says so where it is skipped.

use std::path::PathBuf;

use luthier_extract::{
    Device, Embedded, Extractor, ExtractorConfig, ImageFile, Precision, Resize, WeightsSource, WeightsStore,
};
use ndarray::{Array2, ArrayView1};

fn from_environment(name: &str) -> Option<PathBuf> {
    let value = std::env::var_os(name).map(PathBuf::from);
    if value.is_none() {
        eprintln!("SKIPPED: {name} is not set");
    }
    value
}

/// The features that Luthier makes of music10, and those of torchvision, in the same order.
fn features(resize: Resize) -> Option<(Vec<String>, Array2<f32>, Array2<f32>)> {
    let weights = from_environment("LUTHIER_TEST_WEIGHTS")?;
    let data = from_environment("LUTHIER_TEST_DATA")?.join("music10");
    let reference = from_environment("LUTHIER_TEST_REFERENCE")?;
    let split = std::fs::read_to_string(reference.join("music10-split.tsv")).unwrap();
    let names: Vec<String> = split
        .lines()
        .skip(1)
        .map(|line| line.split('\t').next().unwrap().to_owned())
        .collect();
    let files: Vec<ImageFile> = names
        .iter()
        .map(|name| ImageFile {
            path: data.join(name),
            digest: None,
        })
        .collect();

    let config = ExtractorConfig {
        resize,
        weights: WeightsSource::File(weights),
        precision: Precision::Fp32,
        device: Device::Cpu,
        batch: 8,
    };
    let store = WeightsStore::new("unused".into(), None);
    let extractor = Extractor::load(&config, &store, 2, &()).unwrap();
    let mut ours = Array2::zeros((files.len(), 2048));
    extractor
        .embed(&files, &(), |place, embedded| {
            let Embedded::Features(row) = embedded else {
                panic!("{}: {embedded:?}", names[place])
            };
            ours.row_mut(place).assign(&ndarray::aview1(&row));
            Ok(())
        })
        .unwrap();
    let theirs = ndarray_npy::read_npy(reference.join(format!("music10-{resize}-features.npy"))).unwrap();
    Some((names, ours, theirs))
}

fn cosine(a: ArrayView1<'_, f32>, b: ArrayView1<'_, f32>) -> f64 {
    let dot = |x: ArrayView1<'_, f32>, y: ArrayView1<'_, f32>| -> f64 {
        x.iter().zip(y).map(|(&x, &y)| f64::from(x) * f64::from(y)).sum()
    };
    dot(a, b) / (dot(a, a) * dot(b, b)).sqrt()
}

fn check(resize: Resize) {
    let Some((names, ours, theirs)) = features(resize) else {
        return;
    };
    let mut cosines: Vec<(f64, &str)> = names
        .iter()
        .enumerate()
        .map(|(row, name)| (cosine(ours.row(row), theirs.row(row)), name.as_str()))
        .collect();
    cosines.sort_by(|a, b| a.0.total_cmp(&b.0));
    let at = |quantile: f64| cosines[((cosines.len() - 1) as f64 * quantile) as usize].0;
    let mean = |x: &Array2<f32>| x.mapv(f64::from).mean_axis(ndarray::Axis(0)).unwrap();
    let (mean_ours, mean_theirs) = (mean(&ours), mean(&theirs));
    let errors = mean_ours
        .iter()
        .zip(&mean_theirs)
        .map(|(a, b)| if a == b { 0.0 } else { (a - b).abs() / b });
    let worst_mean = errors.fold(0.0, f64::max);
    println!(
        "{resize}: {} images; 1 − cosine: median {:.1e}, 99 % {:.1e}, worst {:.1e} ({}); mean feature: worst relative error {worst_mean:.1e}",
        names.len(),
        1.0 - at(0.5),
        1.0 - at(0.01),
        1.0 - at(0.0),
        cosines[0].1,
    );
    assert!(at(0.0) >= 0.9999, "worst: {:?}", &cosines[..5]);
    assert!(worst_mean <= 1e-3);
}

#[test]
fn squashed_features_agree_with_torchvision() {
    check(Resize::Squash);
}

#[test]
fn cropped_features_agree_with_torchvision() {
    check(Resize::Crop);
}
