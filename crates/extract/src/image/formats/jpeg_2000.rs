//! JPEG 2000, by the `hayro-jpeg2000` crate.

use hayro_jpeg2000::{DecodeSettings, Image};
use image::{DynamicImage, ImageDecoder as _};

use super::{Damaged, through_image};
use crate::image::decoding::{MAX_ALLOC, Unreadable};

/// Decodes a JP2 file or a bare codestream.
pub(in crate::image) fn decode(bytes: &[u8]) -> Result<DynamicImage, Unreadable> {
    let damaged = Damaged("JPEG 2000");
    let settings = DecodeSettings {
        // A file that is cut short is damaged.
        strict: true,
        ..DecodeSettings::default()
    };
    let image = Image::new(bytes, &settings).map_err(|error| damaged.because(error))?;
    let (width, height) = image.dimensions();
    // Coefficients and channels in single precision, and our bytes.
    if 5 * 4 * u64::from(width) * u64::from(height) > 4 * MAX_ALLOC {
        return Err(Unreadable::too_large(width, height));
    }
    through_image(image, damaged)
}
