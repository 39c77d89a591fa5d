//! GIF, by the `gif` crate: the first frame, on a screen that it fits.

use gif::{ColorOutput, DecodeOptions, MemoryLimit};
use image::{DynamicImage, Rgba, RgbaImage};

use super::Format;
use crate::image::decoding::{Limits, Unreadable};

/// Decodes the first frame of a GIF as Pillow does: a frame larger than the screen makes the screen larger, and what the
/// frame leaves free is transparent, or else has the first colour.
pub(in crate::image) fn decode(bytes: &[u8], limits: &Limits) -> Result<DynamicImage, Unreadable> {
    let mut options = DecodeOptions::new();
    options.set_color_output(ColorOutput::Indexed);
    options.check_frame_consistency(false);
    options.allow_unknown_blocks(true);
    // The size of the indices, one byte each. They become four.
    let limit = (limits.memory / 5).max(1);
    options.set_memory_limit(MemoryLimit::Bytes(limit.try_into().expect("the limit is above 0")));
    let mut decoder = options.read_info(bytes).map_err(|error| Format::Gif.damaged(error))?;
    let screen = (u32::from(decoder.width()), u32::from(decoder.height()));
    let global = decoder.global_palette().map(<[u8]>::to_vec);
    let info = decoder.next_frame_info().map_err(|error| Format::Gif.damaged(error))?;
    let frame = info.ok_or_else(|| Format::Gif.damaged("it has no frame"))?;
    let (left, top) = (u32::from(frame.left), u32::from(frame.top));
    let (width, height) = (u32::from(frame.width), u32::from(frame.height));
    let size = (screen.0.max(left + width), screen.1.max(top + height));
    if size.0 == 0 || size.1 == 0 {
        return Err(Format::Gif.damaged(format_args!("{} × {} pixels", size.0, size.1)));
    }
    let memory = 4 * u64::from(size.0) * u64::from(size.1) + u64::from(width) * u64::from(height);
    limits.check(size, memory)?;
    let transparent = frame.transparent;
    let palette = frame.palette.clone().or(global);
    let colour = |index: u8| {
        let at = 3 * usize::from(index);
        let rgb = match &palette {
            Some(palette) => palette.get(at..at + 3).map_or([0; 3], |rgb| [rgb[0], rgb[1], rgb[2]]),
            // Without colours the indices are brightnesses.
            None => [index; 3],
        };
        Rgba([rgb[0], rgb[1], rgb[2], if transparent == Some(index) { 0 } else { 255 }])
    };
    let mut indices = vec![0; decoder.buffer_size()];
    decoder
        .read_into_buffer(&mut indices)
        .map_err(|error| Format::Gif.damaged(error))?;
    let mut image = RgbaImage::from_pixel(size.0, size.1, colour(transparent.unwrap_or(0)));
    for (y, row) in indices.chunks_exact(width.max(1) as usize).enumerate() {
        for (x, &index) in row.iter().enumerate() {
            image.put_pixel(left + x as u32, top + y as u32, colour(index));
        }
    }
    Ok(image.into())
}
