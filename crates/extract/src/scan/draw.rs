use luthier_artifact::{Content, Digest, ManifestEntry, Split};

/// Moves to the test split every image that is drawn for it.
///
/// Whether an image is drawn depends on its bytes and the seed alone. So it stays on its side for ever, whatever is added,
/// removed or renamed, and copies stay together. The share of a class that is drawn is near `test_fraction`, not exact.
pub(super) fn choose_test_images<'a>(
    entries: impl Iterator<Item = &'a mut ManifestEntry>,
    test_fraction: f64,
    seed: u64,
) {
    for entry in entries {
        if let Content::Digest(digest) = &entry.content
            && is_drawn(digest, test_fraction, seed)
        {
            entry.split = Split::Test;
        }
    }
}

/// Whether the digest of the seed and the image, as a number from 0 to 1, is below `test_fraction`.
fn is_drawn(image: &Digest, test_fraction: f64, seed: u64) -> bool {
    let drawn = Digest::of(&[&seed.to_le_bytes(), &image.as_bytes()[..]].concat());
    let first = *drawn.as_bytes().first_chunk().expect("a digest has 32 bytes");
    // 53 bits, as a number in double precision has.
    ((u64::from_be_bytes(first) >> 11) as f64) < test_fraction * (1_u64 << 53) as f64
}
