//! WebP, by the `image` crate, with what lies around the pixels.

use std::io::Cursor;

use image::DynamicImage;
use image::codecs::webp::WebPDecoder;

use super::Format;
use crate::image::decoding::{Limits, Unreadable};
use crate::image::exif::Metadata;

/// Decodes a WebP, of an animation the first frame.
pub(in crate::image) fn decode(bytes: &[u8], limits: &Limits) -> Result<(DynamicImage, Metadata), Unreadable> {
    let length = bytes
        .get(4..8)
        .map(|size| u32::from_le_bytes(size.try_into().expect("four bytes")));
    // What is missing may be the byte that fills up the last chunk.
    if length.is_none_or(|length| 8 + u64::from(length) > bytes.len() as u64 + 1)
        || chunks(bytes).any(|(_, data)| data.is_none())
    {
        return Err(Format::WebP.damaged("cut short"));
    }
    let decoder = WebPDecoder::new(Cursor::new(bytes)).map_err(|error| Format::WebP.refused(error))?;
    Ok((Format::WebP.decode_with(decoder, limits)?, metadata(bytes)))
}

/// EXIF and XMP, where the header says that they are there. Pillow heeds no others.
fn metadata(bytes: &[u8]) -> Metadata {
    const HAS_EXIF: u8 = 8;
    const HAS_XMP: u8 = 4;
    let mut metadata = Metadata::default();
    let mut flags = 0;
    for (name, data) in chunks(bytes) {
        let Some(data) = data else { break };
        match name {
            b"VP8X" => flags = data.first().copied().unwrap_or(0),
            b"EXIF" if flags & HAS_EXIF != 0 => metadata.exif = metadata.exif.or_else(|| Some(data.to_vec())),
            b"XMP " if flags & HAS_XMP != 0 => metadata.xmp = metadata.xmp.or_else(|| Some(data.to_vec())),
            _ => {}
        }
    }
    metadata
}

/// The names of the chunks with their data; `None` where the file ends before the data do.
fn chunks(bytes: &[u8]) -> impl Iterator<Item = (&[u8; 4], Option<&[u8]>)> {
    // What lies behind the last chunk is not of the image.
    let length = bytes
        .get(4..8)
        .map_or(0, |size| u32::from_le_bytes(size.try_into().expect("four bytes")));
    let end = bytes.len().min(8 + length as usize);
    let mut at = 12;
    std::iter::from_fn(move || {
        let header: &[u8; 8] = bytes[..end].get(at..)?.first_chunk()?;
        let (name, size) = header.split_first_chunk::<4>()?;
        let size = u32::from_le_bytes(size.try_into().expect("four bytes")) as usize;
        let start = at + 8;
        at = start + size + size % 2;
        Some((name, bytes.get(start..start + size)))
    })
}
