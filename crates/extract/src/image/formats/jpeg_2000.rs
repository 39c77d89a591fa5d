//! JPEG 2000, by the `hayro-jpeg2000` crate.

use hayro_jpeg2000::{DecodeSettings, Image};
use image::DynamicImage;

use super::{Damaged, through_image};
use crate::image::decoding::Unreadable;

/// Decodes a JP2 file or a bare codestream.
pub(in crate::image) fn decode(bytes: &[u8]) -> Result<DynamicImage, Unreadable> {
    let damaged = Damaged("JPEG 2000");
    let settings = DecodeSettings {
        // A file that is cut short is damaged.
        strict: true,
        ..DecodeSettings::default()
    };
    let image = Image::new(bytes, &settings).map_err(|error| damaged.because(error))?;
    through_image(image, damaged)
}
