//! JPEG 2000, by the `hayro-jpeg2000` crate.

use hayro_jpeg2000::{DecodeSettings, Image};
use image::{DynamicImage, ImageDecoder as _};

use super::Format;
use crate::image::decoding::{Limits, Unreadable};

/// Decodes a JP2 file or a bare codestream.
pub(in crate::image) fn decode(bytes: &[u8], limits: &Limits) -> Result<DynamicImage, Unreadable> {
    let settings = DecodeSettings {
        // A file that is cut short is damaged.
        strict: true,
        ..DecodeSettings::default()
    };
    let image = Image::new(bytes, &settings).map_err(|error| Format::Jpeg2000.damaged(error))?;
    let (width, height) = image.dimensions();
    // Coefficients and channels in single precision, and our bytes.
    limits.check((width, height), 5 * u64::from(width) * u64::from(height))?;
    Format::Jpeg2000.decode_with(image, limits)
}
