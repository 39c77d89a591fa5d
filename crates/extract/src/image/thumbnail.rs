use image::codecs::jpeg::JpegEncoder;
use image::{ExtendedColorType, ImageEncoder};

use super::decode::decode_within;
use super::decoding::{Decoding, Limits, Unreadable};
use super::resize::{Extent, Resizer};

/// Changes when [`thumbnail`] gives other bytes.
pub const THUMBNAIL_VERSION: u32 = 1;

/// A small JPEG of an image file, for the report. It is at most `side` pixels wide and high, and
/// keeps the aspect ratio.
///
/// The image is decoded with [`Decoding::Scaled`], which leaves the short side of a large JPEG 512
/// pixels or more: a longer `side` may give a blurred thumbnail. No [`Limits`] bound what it may cost: thumbnails are for images
/// that were embedded, within the user's own.
///
/// # Errors
/// [`Unreadable`] if the bytes cannot be decoded.
pub fn thumbnail(bytes: &[u8], side: u32) -> Result<Vec<u8>, Unreadable> {
    let image = decode_within(bytes, Decoding::Scaled, &Limits::NONE)?;
    let scale = (f64::from(side) / f64::from(image.width().max(image.height()))).min(1.0);
    let scaled = |length: u32| ((f64::from(length) * scale).round() as u32).max(1);
    let (width, height) = (scaled(image.width()), scaled(image.height()));
    let mut small = vec![0; 3 * width as usize * height as usize];
    Resizer::default().run(
        &image,
        &Extent::whole(width as usize),
        &Extent::whole(height as usize),
        &mut small,
    );
    let mut jpeg = Vec::new();
    JpegEncoder::new_with_quality(&mut jpeg, 80)
        .write_image(&small, width, height, ExtendedColorType::Rgb8)
        .map_err(|error| Unreadable(format!("cannot be encoded as JPEG: {error}")))?;
    Ok(jpeg)
}
#[cfg(test)]
mod tests {
    use std::io::Cursor;

    use image::{GrayImage, ImageFormat, RgbImage};

    use super::*;
    use crate::decode;

    #[test]
    fn an_image_that_was_embedded_within_larger_limits_has_one_too() {
        let mut bytes = Cursor::new(Vec::new());
        GrayImage::new(13_400, 13_400)
            .write_to(&mut bytes, ImageFormat::Png)
            .unwrap();
        let bytes = bytes.into_inner();
        assert!(decode(&bytes, Decoding::Scaled).is_err());
        let jpeg = thumbnail(&bytes, 128).unwrap();
        assert_eq!(decode(&jpeg, Decoding::Exact).unwrap().dimensions(), (128, 128));
    }

    #[test]
    fn the_longer_side_is_bounded_and_small_images_stay() {
        for (from, to) in [((400, 100), (128, 32)), ((50, 20), (50, 20)), ((2000, 1), (128, 1))] {
            let mut bytes = Cursor::new(Vec::new());
            RgbImage::new(from.0, from.1)
                .write_to(&mut bytes, ImageFormat::Png)
                .unwrap();
            let jpeg = thumbnail(bytes.get_ref(), 128).unwrap();
            assert_eq!(decode(&jpeg, Decoding::Exact).unwrap().dimensions(), to);
        }
    }
}
