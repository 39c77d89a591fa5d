use std::panic::{AssertUnwindSafe, catch_unwind};

use image::metadata::Orientation;
use image::{DynamicImage, RgbImage};
use mozjpeg::{ColorSpace, Decompress, Marker};

use super::decoding::{Decoding, MAX_ALLOC, Unreadable};

/// Decodes a JPEG with libjpeg (in mozjpeg's edition), whose pixels are those of Pillow, bit for
/// bit.
///
/// The result is `None` if the colours are CMYK, which libjpeg does not convert.
pub(crate) fn decode(bytes: &[u8], decoding: Decoding) -> Result<Option<RgbImage>, Unreadable> {
    let scans = read_headers(bytes)?;
    // A fatal error of libjpeg unwinds with its message, and does not reach the panic hook.
    catch_unwind(AssertUnwindSafe(|| decompress(bytes, scans, decoding))).unwrap_or_else(|panic| {
        let message = panic
            .downcast_ref::<String>()
            .map_or("libjpeg failed", |message| message.as_str());
        Err(damaged(message.trim_start_matches("libjpeg fatal error: ")))
    })
}

fn damaged(reason: impl std::fmt::Display) -> Unreadable {
    Unreadable(format!("damaged JPEG: {reason}"))
}

fn decompress(bytes: &[u8], scans: Scans, decoding: Decoding) -> Result<Option<RgbImage>, Unreadable> {
    let mut jpeg = Decompress::with_markers(&[EXIF]).from_mem(bytes).map_err(damaged)?;
    if matches!(jpeg.color_space(), ColorSpace::JCS_CMYK | ColorSpace::JCS_YCCK) {
        return Ok(None);
    }
    let (width, height) = jpeg.size();
    let reduction = match decoding {
        Decoding::Scaled => reduction(width, height),
        Decoding::Exact => 1,
    };
    let (scaled_width, scaled_height) = (width.div_ceil(reduction), height.div_ceil(reduction));
    let pixels = 3 * scaled_width * scaled_height;
    let coefficients: usize = match scans {
        Scans::One => 0,
        // 16 bits each, however much the pixels are reduced.
        Scans::Several => (jpeg.components().iter())
            .map(|component| 2 * 64 * component.width_in_blocks as usize * component.height_in_blocks as usize)
            .sum(),
    };
    if (pixels + coefficients) as u64 > MAX_ALLOC {
        return Err(Unreadable::too_large(width as u32, height as u32));
    }
    let orientation = jpeg
        .markers()
        .find_map(|marker| Orientation::from_exif_chunk(marker.data.strip_prefix(b"Exif\0\0")?))
        .unwrap_or(Orientation::NoTransforms);
    jpeg.scale((8 / reduction) as u8);
    let mut lines = jpeg.rgb().map_err(damaged)?;
    let pixels = lines.read_scanlines::<u8>().map_err(damaged)?;
    lines.finish().map_err(damaged)?;
    let image = RgbImage::from_raw(scaled_width as u32, scaled_height as u32, pixels)
        .ok_or_else(|| damaged("rows are missing"))?;
    let mut image = DynamicImage::from(image);
    image.apply_orientation(orientation);
    Ok(Some(image.into_rgb8()))
}

/// The number by which [`Decoding::Scaled`] divides the sides of a JPEG, rounding up: 8, 4, 2 or 1.
///
/// It is the largest number that keeps the short side at 512 pixels or more before rounding, as in
/// Pillow's `draft("RGB", (512, 512))`. No view needs more than half of these pixels, so that the
/// resize that follows still does most of the antialiasing.
///
/// The number depends on the image alone. All views of an image, and the same view in another run,
/// therefore come from the same pixels. libjpeg can divide by other numbers too, but has vector
/// code only for these.
fn reduction(width: usize, height: usize) -> usize {
    const SHORT_SIDE: usize = 512;
    let fits = |reduction: &usize| width.min(height) >= reduction * SHORT_SIDE;
    [8, 4, 2].into_iter().find(fits).unwrap_or(1)
}

/// The segment that holds EXIF data.
const EXIF: Marker = Marker::APP(1);

/// How the compressed data of a JPEG are divided. With several scans libjpeg keeps the coefficients
/// of the whole image until it has read the last scan.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Scans {
    One,
    /// The JPEG is progressive, or its components come one after the other, or its headers are
    /// unclear.
    Several,
}

/// Reads the headers of a JPEG, and checks that its compressed data have their end marker (ITU-T
/// T.81, B.1.1.3).
///
/// libjpeg would fill missing pixels with grey and report success. Within compressed data 0xFF is
/// always followed by 0x00 or a restart marker. So FF D9 after the first scan's header can only be
/// the end marker. The search begins after that header because a thumbnail in the EXIF data has an
/// end marker of its own.
fn read_headers(bytes: &[u8]) -> Result<Scans, Unreadable> {
    let cut_short = Err(damaged("cut short, its end marker is missing"));
    let mut sequential_components = None;
    let mut at = 2;
    while let Some([0xFF, marker, rest @ ..]) = bytes.get(at..) {
        match (marker, rest) {
            (0xFF, _) => at += 1, // fill byte
            (0xDA, _) if !rest.windows(2).rev().any(|pair| pair == [0xFF, 0xD9]) => return cut_short,
            (0xDA, [_, _, components, ..]) if sequential_components == Some(*components) => return Ok(Scans::One),
            (0xDA, _) => return Ok(Scans::Several),
            (_, [high, low, ..]) => {
                if let (0xC0 | 0xC1 | 0xC9, Some(components)) = (marker, rest.get(7)) {
                    sequential_components = Some(*components);
                }
                at += 2 + usize::from(u16::from_be_bytes([*high, *low]));
            }
            _ => return cut_short,
        }
    }
    if at >= bytes.len() {
        return cut_short;
    }
    // The bytes here are not the marker that must follow: libjpeg will say what they are.
    Ok(Scans::Several)
}

#[cfg(test)]
mod tests {
    use image::Rgb;
    use mozjpeg::Compress;

    use super::*;

    fn encode(width: usize, height: usize, progressive: bool, exif: Option<u8>) -> Vec<u8> {
        let image = RgbImage::from_fn(width as u32, height as u32, |x, y| {
            let (x, y) = (x as usize, y as usize);
            Rgb([255 * x / width, 255 * y / height, 128].map(|value| value as u8))
        });
        let mut jpeg = Compress::new(ColorSpace::JCS_RGB);
        jpeg.set_fastest_defaults();
        jpeg.set_size(width, height);
        if progressive {
            jpeg.set_progressive_mode();
        }
        let mut jpeg = jpeg.start_compress(Vec::new()).unwrap();
        if let Some(orientation) = exif {
            // A TIFF header with one entry: orientation (0x0112), short.
            let mut data = *b"Exif\0\0MM\0*\0\0\0\x08\0\x01\x01\x12\0\x03\0\0\0\x01\0\0\0\0\0\0\0\0";
            data[25] = orientation;
            jpeg.write_marker(EXIF, &data);
        }
        jpeg.write_scanlines(image.as_raw()).unwrap();
        jpeg.finish().unwrap()
    }

    fn dimensions(bytes: &[u8], decoding: Decoding) -> (u32, u32) {
        decode(bytes, decoding).unwrap().unwrap().dimensions()
    }

    /// Writes other dimensions into the frame header.
    fn claim(bytes: &mut [u8], width: u16, height: u16) {
        let frame = bytes
            .windows(2)
            .position(|pair| matches!(pair, [0xFF, 0xC0 | 0xC2]))
            .unwrap();
        bytes[frame + 5..frame + 7].copy_from_slice(&height.to_be_bytes());
        bytes[frame + 7..frame + 9].copy_from_slice(&width.to_be_bytes());
    }

    #[test]
    fn the_short_side_decides_the_reduction() {
        for (width, height, expected) in [
            (1, 1, 1),
            (500, 375, 1),
            (9000, 511, 1),
            (1023, 1023, 1),
            (1024, 1024, 2),
            (1024, 9000, 2),
            (2047, 3000, 2),
            (3000, 2048, 4),
            (4000, 3000, 4),
            (4096, 4095, 4),
            (4096, 4096, 8),
            (60000, 60000, 8),
        ] {
            assert_eq!(reduction(width, height), expected, "{width} × {height}");
            assert_eq!(reduction(height, width), expected, "{height} × {width}");
        }
    }

    #[test]
    fn sides_of_a_scaled_image_are_rounded_up() {
        for (width, height, expected) in [
            (1027, 1024, (514, 512)),
            (2050, 2049, (513, 513)),
            (700, 600, (700, 600)),
        ] {
            for progressive in [false, true] {
                let bytes = encode(width, height, progressive, None);
                assert_eq!(dimensions(&bytes, Decoding::Scaled), expected);
                assert_eq!(dimensions(&bytes, Decoding::Exact), (width as u32, height as u32));
            }
        }
    }

    #[test]
    fn a_scaled_image_is_the_exact_one_made_smaller() {
        let bytes = encode(1100, 1030, false, None);
        let exact = decode(&bytes, Decoding::Exact).unwrap().unwrap();
        let scaled = decode(&bytes, Decoding::Scaled).unwrap().unwrap();
        for (x, y, pixel) in scaled.enumerate_pixels() {
            let near = exact.get_pixel(2 * x, 2 * y).0;
            assert!(
                pixel.0.iter().zip(near).all(|(a, b)| a.abs_diff(b) < 8),
                "{x}, {y}: {pixel:?} {near:?}"
            );
        }
    }

    #[test]
    fn orientation_is_applied_to_scaled_images_too() {
        let lying = decode(&encode(1200, 1040, false, None), Decoding::Scaled)
            .unwrap()
            .unwrap();
        let upright = decode(&encode(1200, 1040, false, Some(6)), Decoding::Scaled)
            .unwrap()
            .unwrap();
        assert_eq!(upright.dimensions(), (520, 600));
        assert!(upright == image::imageops::rotate90(&lying));
    }

    #[test]
    fn the_limit_is_on_what_is_allocated() {
        // 183 megapixels, nearly all of which libjpeg makes up: 525 MiB of pixels, or a sixteenth.
        let mut bytes = encode(64, 64, false, None);
        claim(&mut bytes, 65500, 2800);
        let message = "too large: 65500 × 2800 pixels take more than 512 MiB";
        assert_eq!(decode(&bytes, Decoding::Exact).unwrap_err().to_string(), message);
        assert_eq!(dimensions(&bytes, Decoding::Scaled), (16375, 700));
        // The coefficients of a progressive JPEG are kept at full size.
        let mut bytes = encode(64, 64, true, None);
        claim(&mut bytes, 65500, 2800);
        assert_eq!(decode(&bytes, Decoding::Scaled).unwrap_err().to_string(), message);
    }

    #[test]
    fn headers_tell_whether_coefficients_are_kept() {
        assert_eq!(read_headers(&encode(40, 30, false, None)), Ok(Scans::One));
        assert_eq!(read_headers(&encode(40, 30, true, None)), Ok(Scans::Several));
    }
}
