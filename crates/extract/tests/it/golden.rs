//! Against Pillow and torchvision: `fixtures/golden/extract.json`, made by the script beside it.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use image::{Rgb, RgbImage};
use luthier_extract::{Decoding, FeatureKind, Framing, InputSize, Pooling, Preprocess, decode};
use serde::Deserialize;
use sha2::{Digest, Sha256};

use crate::{config, embed_kind, extractor};

#[derive(Deserialize)]
struct Golden {
    tolerance: Tolerance,
    pixels: Vec<Pixels>,
    scaled: Vec<Scaled>,
    features: Features,
}

#[derive(Deserialize)]
struct Tolerance {
    features: f32,
}

#[derive(Deserialize)]
struct Pixels {
    image: String,
    /// The SHA-256 of the pixels of each view, for example of `crop 288`.
    views: BTreeMap<String, String>,
}

/// A large JPEG beside the golden file, decoded by Pillow's `draft("RGB", (512, 512))`.
#[derive(Deserialize)]
struct Scaled {
    file: String,
    width: u32,
    height: u32,
    views: BTreeMap<String, String>,
}

#[derive(Deserialize)]
struct Features {
    image: String,
    /// The features by each pooling.
    values: BTreeMap<String, Vec<f32>>,
}

fn fixtures() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fixtures")
}

fn golden() -> Golden {
    serde_json::from_slice(&std::fs::read(fixtures().join("golden/extract.json")).unwrap()).unwrap()
}

fn image(name: &str) -> RgbImage {
    let Some(size) = name.strip_prefix("synthetic ") else {
        return decode(
            &std::fs::read(fixtures().join("instruments").join(name)).unwrap(),
            Decoding::Exact,
        )
        .unwrap();
    };
    let (width, height) = size.split_once('x').unwrap();
    RgbImage::from_fn(width.parse().unwrap(), height.parse().unwrap(), |x, y| {
        Rgb([0, 1, 2].map(|c| ((7 * x + 13 * y + 50 * c + x * y / 17) % 256) as u8))
    })
}

#[test]
fn pixels_are_those_of_pillow_bit_for_bit() {
    let golden = golden();
    assert!(golden.pixels.len() > 10);
    for Pixels { image: name, views } in golden.pixels {
        assert_eq!(views.len(), 6);
        for (view, expected) in views {
            assert_eq!(pixels(&image(&name), &view), expected, "{name}, {view}");
        }
    }
}

/// SHA-256 of an image's pixels in a view of a size.
fn pixels(image: &RgbImage, view: &str) -> String {
    let (view, size) = view.split_once(' ').unwrap();
    let size: InputSize = size.parse().unwrap();
    let mut pixels = vec![0; size.bytes()];
    Preprocess::new(size).run(image, view.parse().unwrap(), &mut pixels);
    Sha256::digest(pixels)
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect()
}

#[test]
fn scaled_pixels_are_those_of_pillows_draft_bit_for_bit() {
    let golden = golden();
    assert_eq!(golden.scaled.len(), 4);
    for case in golden.scaled {
        let bytes = std::fs::read(fixtures().join("golden").join(&case.file)).unwrap();
        let image = decode(&bytes, Decoding::Scaled).unwrap();
        assert_eq!(image.dimensions(), (case.width, case.height), "{}", case.file);
        assert_eq!(case.views.len(), 6);
        for (view, expected) in &case.views {
            assert_eq!(pixels(&image, view), *expected, "{}, {view}", case.file);
        }
    }
}

#[test]
fn untrained_features_are_those_of_torchvision_with_the_same_weights() {
    let Golden {
        features, tolerance, ..
    } = golden();
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("image.png");
    image(&features.image).save(&path).unwrap();
    let extractor = extractor(&config(), 2, 1);
    assert_eq!(features.values.len(), Pooling::ALL.len());
    for (pooling, expected) in features.values {
        let kind = FeatureKind {
            view: Framing::Squash.into(),
            pooling: pooling.parse().unwrap(),
        };
        let found = embed_kind(&extractor, kind, std::slice::from_ref(&path)).remove(0);
        assert_eq!(found.len(), expected.len());
        let scale = expected.iter().fold(0.0_f32, |most, value| most.max(value.abs()));
        for (place, (found, expected)) in found.iter().zip(&expected).enumerate() {
            assert!(
                (found - expected).abs() <= tolerance.features * scale,
                "{pooling}, feature {place}: {found}, {expected}"
            );
        }
    }
}
