//! Real photographs through real weights, against torchvision's features of them. Needs
//! `LUTHIER_TEST_WEIGHTS`, `LUTHIER_TEST_DATA` and `LUTHIER_TEST_REFERENCE`.

use std::path::PathBuf;

use image::codecs::jpeg::JpegEncoder;
use luthier_extract::{Decoding, Device, ExtractorConfig, Framing, Precision, WIDTH, WeightsSource, decode};
use luthier_testing::Need;
use ndarray::{Array2, ArrayView1};

use crate::{config, embed, extractor};

/// Every fourth photograph is compared, unless `LUTHIER_TEST_PHOTOS` says otherwise.
const PHOTOS: usize = 4;

/// The photographs of music10 with their paths, in the order of the reference.
fn photos() -> Option<Vec<(String, PathBuf)>> {
    let data = Need::Photographs.path()?.join("music10");
    let split = std::fs::read_to_string(Need::Reference.path()?.join("music10-split.tsv")).unwrap();
    let names = split.lines().skip(1).map(|line| line.split('\t').next().unwrap());
    Some(names.map(|name| (name.to_owned(), data.join(name))).collect())
}

/// The configuration with trained weights.
fn trained() -> Option<ExtractorConfig> {
    Some(ExtractorConfig {
        weights: WeightsSource::File(Need::Weights.path()?),
        ..config()
    })
}

fn array(rows: Vec<Vec<f32>>) -> Array2<f32> {
    let shape = (rows.len(), WIDTH);
    Array2::from_shape_vec(shape, rows.concat()).unwrap()
}

fn cosine(a: ArrayView1<'_, f32>, b: ArrayView1<'_, f32>) -> f64 {
    let dot = |x: ArrayView1<'_, f32>, y: ArrayView1<'_, f32>| -> f64 {
        x.iter().zip(y).map(|(&x, &y)| f64::from(x) * f64::from(y)).sum()
    };
    dot(a, b) / (dot(a, a) * dot(b, b)).sqrt()
}

/// Compares with the features of torchvision. The tolerances are 1 − cosine: of the worst photograph, and on average.
fn check(view: Framing, precision: Precision, [worst, average]: [f64; 2]) {
    let (Some(photos), Some(config)) = (photos(), trained()) else {
        return;
    };
    let config = ExtractorConfig { precision, ..config };
    let every = std::env::var("LUTHIER_TEST_PHOTOS").map_or(PHOTOS, |every| every.parse().unwrap());
    let (names, paths): (Vec<String>, Vec<PathBuf>) = photos.into_iter().step_by(every).unzip();
    let ours = array(embed(&extractor(&config, 2, paths.len()), view, &paths));
    let reference = Need::Reference.path().expect("checked above");
    let theirs: Array2<f32> = ndarray_npy::read_npy(reference.join(format!("music10-{view}-features.npy"))).unwrap();
    let rows: Vec<usize> = (0..theirs.nrows()).step_by(every).collect();
    let theirs = theirs.select(ndarray::Axis(0), &rows);
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
        "{view}, {precision}: {} images; 1 − cosine: median {:.1e}, 99 % {:.1e}, worst {:.1e} ({}); mean feature: worst relative error {worst_mean:.1e}",
        names.len(),
        1.0 - at(0.5),
        1.0 - at(0.01),
        1.0 - at(0.0),
        cosines[0].1,
    );
    assert!(1.0 - at(0.0) <= worst, "worst: {:?}", &cosines[..5]);
    let mean_cosine = cosines.iter().map(|(cosine, _)| cosine).sum::<f64>() / cosines.len() as f64;
    assert!(1.0 - mean_cosine <= average, "on average {mean_cosine}");
}

#[test]
fn squashed_features_agree_with_torchvision() {
    check(Framing::Squash, Precision::Fp32, [1e-9; 2]);
}

#[test]
fn cropped_features_agree_with_torchvision() {
    check(Framing::Crop, Precision::Fp32, [1e-9; 2]);
}

#[test]
fn features_in_bf16_stay_close_to_those_in_fp32() {
    // Without the instructions it takes minutes.
    if cfg!(target_arch = "x86_64") && is_x86_feature_detected!("avx512bf16") {
        check(Framing::Squash, Precision::Bf16, [1e-3; 2]);
    } else {
        Need::Bf16.skip();
    }
}

#[test]
fn features_in_int8_stay_close_to_those_in_fp32() {
    match Device::Cpu.check(Precision::Int8) {
        Ok(()) => check(Framing::Squash, Precision::Int8, [0.015, 0.004]),
        Err(_) => Need::Int8.skip(),
    }
}

#[test]
fn scaled_decoding_keeps_the_features_of_12_megapixel_photos() {
    let (Some(photos), Some(config)) = (photos(), trained()) else {
        return;
    };
    let folder = tempfile::tempdir().unwrap();
    // Every 90th of the 1,806, enlarged.
    let paths: Vec<PathBuf> = photos
        .into_iter()
        .step_by(90)
        .map(|(name, path)| {
            let photo = decode(&std::fs::read(path).unwrap(), Decoding::Exact).unwrap();
            let large = image::imageops::resize(&photo, 4000, 3000, image::imageops::FilterType::CatmullRom);
            let path = folder.path().join(name.replace('/', "-"));
            let mut file = std::io::BufWriter::new(std::fs::File::create(&path).unwrap());
            JpegEncoder::new_with_quality(&mut file, 90)
                .encode_image(&large)
                .unwrap();
            path
        })
        .collect();
    let features = |decode| {
        let config = ExtractorConfig {
            decode,
            ..config.clone()
        };
        array(embed(&extractor(&config, 2, paths.len()), Framing::Squash, &paths))
    };
    let (exact, scaled) = (features(Decoding::Exact), features(Decoding::Scaled));
    assert_ne!(exact, scaled);
    let cosines = exact.outer_iter().zip(scaled.outer_iter()).map(|(a, b)| cosine(a, b));
    let mean = cosines.sum::<f64>() / paths.len() as f64;
    println!("{} photos of 12 megapixels: mean cosine {mean:.5}", paths.len());
    assert!(mean >= 0.998);
}
