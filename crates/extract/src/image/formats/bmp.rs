//! BMP, by the `image` crate.

use std::io::Cursor;

use image::DynamicImage;
use image::codecs::bmp::BmpDecoder;

use super::Format;
use crate::image::decoding::{Limits, Unreadable};

/// Decodes a BMP.
pub(in crate::image) fn decode(bytes: &[u8], limits: &Limits) -> Result<DynamicImage, Unreadable> {
    let decoder = BmpDecoder::new(Cursor::new(bytes)).map_err(|error| Format::Bmp.refused(error))?;
    let mut image = Format::Bmp.decode_with(decoder, limits)?;
    // The header of OS/2 is shorter: there the number of bits stands elsewhere.
    const SHORT_HEADER: &[u8] = &[12, 0, 0, 0];
    let is_short = bytes.get(14..18) == Some(SHORT_HEADER);
    if let (false, Some([16, 0]), Some(image)) = (is_short, bytes.get(28..30), image.as_mut_rgb8()) {
        // Of 5 or 6 bits a channel Pillow makes 8 without rounding, and `image` with.
        let levels = [31, if green_has_6_bits(bytes) { 63 } else { 31 }, 31];
        for pixel in image.pixels_mut() {
            for (value, most) in pixel.0.iter_mut().zip(levels) {
                let level = (u32::from(*value) * most + 127) / 255;
                *value = (level * 255 / most) as u8;
            }
        }
    }
    Ok(image)
}

/// Whether the header of a BMP of 16 bits gives green 6 of them, as is usual, and not 5.
fn green_has_6_bits(bytes: &[u8]) -> bool {
    const BIT_FIELDS: &[u8] = &[3, 0, 0, 0];
    bytes.get(30..34) == Some(BIT_FIELDS) && bytes.get(58..62) == Some(&0x07E0u32.to_le_bytes())
}
