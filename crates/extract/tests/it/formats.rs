//! Files of every kind against Pillow: `fixtures/golden/formats.json`, made by the script beside it.

use std::fs;
use std::path::{Path, PathBuf};

use image::RgbImage;
use luthier_extract::{Decoding, Limits, decode, decode_within, thumbnail};
use luthier_testing::Need;
use serde::Deserialize;
use sha2::{Digest, Sha256};

#[derive(Deserialize)]
struct Golden {
    cases: Vec<Case>,
}

/// One of `refused`, `sha256` and `near` is there.
#[derive(Deserialize)]
struct Case {
    file: String,
    #[serde(default)]
    refused: bool,
    #[serde(default)]
    size: Option<(u32, u32)>,
    /// Of the pixels.
    sha256: Option<String>,
    /// A file with the pixels, from which the mean difference of a channel is at most `mean`.
    near: Option<String>,
    mean: Option<f64>,
}

fn golden() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fixtures/golden")
}

fn needs_heif(case: &Case) -> bool {
    [".heic", ".avif"].iter().any(|ending| case.file.ends_with(ending))
}

/// Whether this build reads it.
fn is_read(case: &Case) -> bool {
    !case.refused && (cfg!(feature = "heif") || !needs_heif(case))
}

/// What is wrong with what Luthier makes of a file.
fn complaint(case: &Case, bytes: &[u8]) -> Option<String> {
    let found = match (decode(bytes, Decoding::Scaled), case.refused) {
        (Err(_), true) => return None,
        (Err(error), false) => return Some(error.to_string()),
        (Ok(_), true) => return Some("accepted".to_owned()),
        (Ok(found), false) => found,
    };
    if Some(found.dimensions()) != case.size {
        return Some(format!("{:?}", found.dimensions()));
    }
    if let Some(expected) = &case.sha256 {
        let digest = Sha256::digest(found.as_raw());
        let digest: String = digest.iter().map(|byte| format!("{byte:02x}")).collect();
        return (digest != *expected).then(|| "other pixels".to_owned());
    }
    let near = case.near.as_ref().expect("a case without a digest names pixels");
    let mean = mean_difference(
        &found,
        &image::open(golden().join("formats").join(near)).unwrap().into_rgb8(),
    );
    (mean > case.mean.unwrap()).then(|| format!("mean difference {mean:.3}"))
}

fn mean_difference(found: &RgbImage, expected: &RgbImage) -> f64 {
    let differences = found
        .as_raw()
        .iter()
        .zip(expected.as_raw())
        .map(|(a, b)| f64::from(a.abs_diff(*b)));
    differences.sum::<f64>() / found.as_raw().len() as f64
}

fn check(cases: impl Iterator<Item = Case>) -> usize {
    let (mut complaints, mut n) = (Vec::new(), 0);
    for case in cases {
        let bytes = fs::read(golden().join("formats").join(&case.file)).unwrap();
        complaints.extend(complaint(&case, &bytes).map(|complaint| format!("{}: {complaint}", case.file)));
        n += 1;
    }
    assert!(complaints.is_empty(), "{}", complaints.join("\n"));
    n
}

fn cases() -> Vec<Case> {
    let golden: Golden = serde_json::from_slice(&fs::read(golden().join("formats.json")).unwrap()).unwrap();
    golden.cases
}

#[test]
fn files_of_every_kind_are_as_pillow_reads_them() {
    assert!(check(cases().into_iter().filter(|case| !needs_heif(case))) > 150);
}

#[test]
fn no_format_is_decoded_beyond_the_limit_of_pixels() {
    let limits = Limits {
        pixels: 0,
        ..Limits::default()
    };
    let mut n = 0;
    for case in cases().into_iter().filter(is_read) {
        let bytes = fs::read(golden().join("formats").join(&case.file)).unwrap();
        let error = decode_within(&bytes, Decoding::Scaled, &limits)
            .unwrap_err()
            .to_string();
        assert!(
            error.starts_with("too large: ") && error.ends_with(" pixels, more than 0"),
            "{}: {error}",
            case.file
        );
        n += 1;
    }
    assert!(n > 100, "{n}");
}

#[test]
fn whatever_is_read_has_a_thumbnail() {
    for case in cases().into_iter().filter(is_read) {
        let bytes = fs::read(golden().join("formats").join(&case.file)).unwrap();
        let jpeg = thumbnail(&bytes, 16).unwrap_or_else(|error| panic!("{}: {error}", case.file));
        let (width, height) = decode(&jpeg, Decoding::Exact).unwrap().dimensions();
        assert!(width.max(height) <= 16, "{}: {width} × {height}", case.file);
    }
}

#[test]
fn heic_and_avif_are_read_where_libheif_is_there_and_named_elsewhere() {
    let cases = cases().into_iter().filter(needs_heif);
    if cfg!(feature = "heif") {
        assert!(check(cases) > 5);
        return;
    }
    for case in cases {
        let bytes = fs::read(golden().join("formats").join(&case.file)).unwrap();
        let error = decode(&bytes, Decoding::Scaled).unwrap_err().to_string();
        assert!(
            error.contains("built without libheif; install it (apt install libheif-dev"),
            "{error}"
        );
    }
    Need::Heif.skip();
}
