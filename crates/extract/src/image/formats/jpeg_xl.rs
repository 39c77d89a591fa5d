//! JPEG XL, by the `jxl-oxide` crate.

use image::DynamicImage;
use jxl_oxide::{AllocTracker, JxlImage};

use super::Format;
use crate::image::decoding::{Limits, Unreadable};

/// Decodes the first frame, upright.
pub(in crate::image) fn decode(bytes: &[u8], limits: &Limits) -> Result<DynamicImage, Unreadable> {
    // Its own numbers are four times as long as ours, and there are copies of them.
    let memory = AllocTracker::with_limit(8 * limits.memory as usize);
    let builder = JxlImage::builder().alloc_tracker(memory);
    let image = builder.read(bytes).map_err(|error| Format::JpegXl.damaged(error))?;
    if !image.is_loading_done() {
        return Err(Format::JpegXl.damaged("cut short"));
    }
    let (width, height) = (image.width(), image.height());
    limits.check((width, height), 4 * u64::from(width) * u64::from(height))?;
    if image.pixel_format().has_black() {
        return Err(Format::JpegXl.unsupported("CMYK"));
    }
    let frame = image.render_frame(0).map_err(|error| Format::JpegXl.damaged(error))?;
    let mut stream = frame.stream();
    let (width, height, channels) = (stream.width(), stream.height(), stream.channels());
    let mut pixels = vec![0; channels as usize * width as usize * height as usize];
    stream.write_to_buffer::<u8>(&mut pixels);
    Format::JpegXl.image((width, height), channels as usize, pixels)
}
