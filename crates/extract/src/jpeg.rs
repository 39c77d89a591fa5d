use std::panic::{AssertUnwindSafe, catch_unwind};

use image::metadata::Orientation;
use image::{DynamicImage, RgbImage};
use mozjpeg::{ColorSpace, Decompress, Marker};

use crate::decode::{MAX_ALLOC, Unreadable, too_large};

/// Decodes a JPEG with libjpeg (in mozjpeg's edition), whose pixels are those of Pillow, bit for bit.
///
/// `None` if its colours are CMYK, which libjpeg does not convert.
pub(crate) fn decode(bytes: &[u8]) -> Result<Option<DynamicImage>, Unreadable> {
    if is_cut_short(bytes) {
        return Err(Unreadable(
            "damaged JPEG: cut short, its end marker is missing".to_owned(),
        ));
    }
    // libjpeg's fatal errors unwind with their message; they do not reach the panic hook.
    catch_unwind(AssertUnwindSafe(|| decompress(bytes))).unwrap_or_else(|panic| {
        let message = panic
            .downcast_ref::<String>()
            .map_or("libjpeg failed", |message| message.as_str());
        Err(damaged(message.trim_start_matches("libjpeg fatal error: ")))
    })
}

fn damaged(reason: impl std::fmt::Display) -> Unreadable {
    Unreadable(format!("damaged JPEG: {reason}"))
}

fn decompress(bytes: &[u8]) -> Result<Option<DynamicImage>, Unreadable> {
    let jpeg = Decompress::with_markers(&[EXIF]).from_mem(bytes).map_err(damaged)?;
    let (width, height) = jpeg.size();
    if (width * height * 3) as u64 > MAX_ALLOC {
        return Err(too_large(width as u32, height as u32));
    }
    if matches!(jpeg.color_space(), ColorSpace::JCS_CMYK | ColorSpace::JCS_YCCK) {
        return Ok(None);
    }
    let orientation = jpeg
        .markers()
        .find_map(|marker| Orientation::from_exif_chunk(marker.data.strip_prefix(b"Exif\0\0")?))
        .unwrap_or(Orientation::NoTransforms);
    let mut lines = jpeg.rgb().map_err(damaged)?;
    let pixels = lines.read_scanlines::<u8>().map_err(damaged)?;
    lines.finish().map_err(damaged)?;
    let image = RgbImage::from_raw(width as u32, height as u32, pixels).ok_or_else(|| damaged("rows are missing"))?;
    let mut image = DynamicImage::from(image);
    image.apply_orientation(orientation);
    Ok(Some(image))
}

/// The segment that holds EXIF data.
const EXIF: Marker = Marker::APP(1);

/// Whether the compressed data of a JPEG lack their end marker (ITU-T T.81, B.1.1.3).
///
/// libjpeg fills what is missing with grey and reports success. Within compressed data 0xFF is always
/// followed by 0x00 or a restart marker, so that FF D9 behind the first scan's header is the end and nothing else;
/// the search begins there because a thumbnail in the EXIF data has an end marker of its own.
fn is_cut_short(bytes: &[u8]) -> bool {
    let mut at = 2;
    while let Some([0xFF, marker, rest @ ..]) = bytes.get(at..) {
        match (marker, rest) {
            (0xFF, _) => at += 1, // fill byte
            (0xDA, _) => return !rest.windows(2).rev().any(|pair| pair == [0xFF, 0xD9]),
            (_, [high, low, ..]) => at += 2 + usize::from(u16::from_be_bytes([*high, *low])),
            _ => return true,
        }
    }
    // Something other than a marker where one must be: libjpeg will say what.
    at >= bytes.len()
}
