//! JPEG XL, by the `jxl-oxide` crate.

use std::borrow::Cow;

use image::DynamicImage;
use jxl_oxide::{AllocTracker, JxlImage};

use super::{Format, boxes};
use crate::image::decoding::{Limits, Unreadable};

/// Decodes the first frame, upright.
pub(in crate::image) fn decode(bytes: &[u8], limits: &Limits) -> Result<DynamicImage, Unreadable> {
    // Its own numbers are four times as long as ours, and there are copies of them.
    let memory = AllocTracker::with_limit(limits.memory.saturating_mul(8) as usize);
    let builder = JxlImage::builder().alloc_tracker(memory);
    let image = builder
        .read(&*picture(bytes))
        .map_err(|error| Format::JpegXl.damaged(error))?;
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

/// The file without compressed boxes: metadata, and what makes the JPEG again of which the file was made. The decoder would
/// unpack them without a limit, and no pixel depends on them.
fn picture(bytes: &[u8]) -> Cow<'_, [u8]> {
    const CODESTREAM: &[u8] = &[0xFF, 0x0A];
    if bytes.starts_with(CODESTREAM) {
        return Cow::Borrowed(bytes);
    }
    let kept = boxes(bytes).filter(|(name, ..)| ![b"brob", b"jbrd"].contains(name));
    let kept: Vec<&[u8]> = kept.map(|(_, whole, _)| whole).collect();
    Cow::Owned(kept.concat())
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use crate::{Decoding, decode};

    #[test]
    fn what_is_compressed_beside_the_picture_is_not_unpacked() {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fixtures/golden/formats/jxl.jxl");
        let codestream = std::fs::read(path).unwrap();
        let in_box = |name: &[u8; 4], content: &[u8]| {
            let length = 8 + content.len() as u32;
            [&length.to_be_bytes()[..], name, content].concat()
        };
        // A kind of box that may not be compressed, and no JPEG at all.
        let boxes = [
            in_box(b"JXL ", b"\r\n\x87\n"),
            in_box(b"ftyp", b"jxl \0\0\0\0jxl "),
            in_box(b"brob", b"jxlc and more"),
            in_box(b"jbrd", b"no JPEG"),
            in_box(b"jxlc", &codestream),
        ];
        let found = decode(&boxes.concat(), Decoding::Exact).unwrap();
        assert!(found == decode(&codestream, Decoding::Exact).unwrap());
    }
}
