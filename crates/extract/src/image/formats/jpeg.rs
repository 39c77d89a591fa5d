use std::panic::{AssertUnwindSafe, catch_unwind};

use image::DynamicImage;
use jpeg_decoder::PixelFormat;
use mozjpeg::{ColorSpace, Decompress, Marker};

use super::Format;
use crate::image::decoding::{Decoding, Limits, Unreadable};
use crate::image::exif::Metadata;
use crate::image::pixels::rgb_of_cmyk;

/// Whether libjpeg was built with its SIMD code. Without it JPEGs take half as long again to decode, to the same pixels.
pub const JPEG_HAS_SIMD: bool = cfg!(jpeg_simd);

/// Decodes a JPEG with libjpeg (in mozjpeg's edition), whose pixels are those of Pillow, bit for bit. Lossless JPEGs, which
/// libjpeg does not know, are for the `jpeg-decoder` crate.
pub(in crate::image) fn decode(
    bytes: &[u8],
    decoding: Decoding,
    limits: &Limits,
) -> Result<(DynamicImage, Metadata), Unreadable> {
    let headers = read_headers(bytes)?;
    if headers.is_lossless {
        return decode_lossless(bytes, limits);
    }
    // A fatal error of libjpeg unwinds with its message, and does not reach the panic hook.
    catch_unwind(AssertUnwindSafe(|| decompress(bytes, headers.scans, decoding, limits))).unwrap_or_else(|panic| {
        let message = panic
            .downcast_ref::<String>()
            .map_or("libjpeg failed", |message| message.as_str());
        Err(damaged(message.trim_start_matches("libjpeg fatal error: ")))
    })
}

fn damaged(reason: impl std::fmt::Display) -> Unreadable {
    Format::Jpeg.damaged(reason)
}

fn decompress(
    bytes: &[u8],
    scans: Scans,
    decoding: Decoding,
    limits: &Limits,
) -> Result<(DynamicImage, Metadata), Unreadable> {
    let mut jpeg = Decompress::with_markers(&[APP1]).from_mem(bytes).map_err(damaged)?;
    let is_cmyk = matches!(jpeg.color_space(), ColorSpace::JCS_CMYK | ColorSpace::JCS_YCCK);
    let (width, height) = jpeg.size();
    let reduction = match decoding {
        Decoding::Scaled if !is_cmyk => reduction(width, height),
        _ => 1,
    };
    let (scaled_width, scaled_height) = (width.div_ceil(reduction), height.div_ceil(reduction));
    let pixels = if is_cmyk { 4 + 3 } else { 3 } * scaled_width * scaled_height;
    let coefficients: usize = match scans {
        Scans::One => 0,
        // 16 bits each, however much the pixels are reduced.
        Scans::Several => (jpeg.components().iter())
            .map(|component| 2 * 64 * component.width_in_blocks as usize * component.height_in_blocks as usize)
            .sum(),
    };
    limits.check((width as u32, height as u32), (pixels + coefficients) as u64)?;
    let metadata = metadata(jpeg.markers().map(|marker| marker.data));
    jpeg.scale((8 / reduction) as u8);
    let pixels = if is_cmyk {
        let mut lines = jpeg.to_colorspace(ColorSpace::JCS_CMYK).map_err(damaged)?;
        let inks = lines.read_scanlines::<[u8; 4]>().map_err(damaged)?;
        lines.finish().map_err(damaged)?;
        // Photoshop writes how much of each ink is missing, and so do all others.
        inks.into_iter()
            .flat_map(|inks| rgb_of_cmyk(inks.map(|ink| 255 - ink)))
            .collect()
    } else {
        let mut lines = jpeg.rgb().map_err(damaged)?;
        let pixels = lines.read_scanlines::<u8>().map_err(damaged)?;
        lines.finish().map_err(damaged)?;
        pixels
    };
    let image = Format::Jpeg.image((scaled_width as u32, scaled_height as u32), 3, pixels)?;
    Ok((image, metadata))
}

fn decode_lossless(bytes: &[u8], limits: &Limits) -> Result<(DynamicImage, Metadata), Unreadable> {
    let mut decoder = jpeg_decoder::Decoder::new(bytes);
    decoder.set_max_decoding_buffer_size(limits.memory as usize / 4);
    decoder.read_info().map_err(damaged)?;
    if let Some(info) = decoder.info() {
        let (width, height) = (u32::from(info.width), u32::from(info.height));
        limits.check((width, height), 4 * u64::from(width) * u64::from(height))?;
    }
    let pixels = decoder.decode().map_err(damaged)?;
    let info = decoder.info().ok_or_else(|| damaged("its header is missing"))?;
    let n_channels = match info.pixel_format {
        PixelFormat::L8 => 1,
        PixelFormat::RGB24 => 3,
        other => {
            return Err(Unreadable(format!(
                "lossless JPEG of a kind that is not supported: {other:?}"
            )));
        }
    };
    let image = Format::Jpeg.image((info.width.into(), info.height.into()), n_channels, pixels)?;
    let metadata = Metadata {
        exif: decoder.exif_data().map(<[u8]>::to_vec),
        xmp: decoder.xmp_data().map(<[u8]>::to_vec),
    };
    Ok((image, metadata))
}

/// What the segments APP1 say. EXIF data may be divided among several.
fn metadata<'a>(segments: impl Iterator<Item = &'a [u8]>) -> Metadata {
    let mut metadata = Metadata::default();
    for segment in segments {
        if let Some(exif) = segment.strip_prefix(b"Exif\0\0") {
            metadata.exif.get_or_insert_default().extend(exif);
        } else if let Some(xmp) = segment.strip_prefix(b"http://ns.adobe.com/xap/1.0/\0") {
            metadata.xmp = Some(xmp.to_vec());
        }
    }
    metadata
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

/// The segment that holds EXIF data, and XMP.
const APP1: Marker = Marker::APP(1);

/// How the compressed data of a JPEG are divided. With several scans libjpeg keeps the coefficients
/// of the whole image until it has read the last scan.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Scans {
    One,
    /// The JPEG is progressive, or its components come one after the other.
    Several,
}

/// What the headers say.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Headers {
    scans: Scans,
    is_lossless: bool,
}

/// Reads the headers of a JPEG, and checks that its compressed data have their end marker (ITU-T
/// T.81, B.1.1.3).
///
/// libjpeg would fill missing pixels with grey and report success. Within compressed data 0xFF is
/// always followed by 0x00 or a restart marker. So FF D9 after the first scan's header can only be
/// the end marker. The search begins after that header because a thumbnail in the EXIF data has an
/// end marker of its own. Like libjpeg, this passes over stray bytes between segments.
fn read_headers(bytes: &[u8]) -> Result<Headers, Unreadable> {
    let cut_short = || damaged("cut short, its end marker is missing");
    let mut sequential_components = None;
    let mut is_lossless = false;
    let mut at = 2;
    loop {
        let rest = bytes.get(at..).filter(|rest| !rest.is_empty()).ok_or_else(cut_short)?;
        let [0xFF, marker, segment @ ..] = rest else {
            at += 1; // a stray byte
            continue;
        };
        match (marker, segment) {
            (0xFF, _) => at += 1, // a fill byte
            // Without a segment: stray bytes, restart markers, and a second beginning.
            (0x00 | 0x01 | 0xD0..=0xD8, _) => at += 2,
            (0xDA, _) if !segment.windows(2).rev().any(|pair| pair == [0xFF, 0xD9]) => return Err(cut_short()),
            (0xDA, [_, _, components, ..]) => {
                let scans = match sequential_components == Some(*components) {
                    true => Scans::One,
                    false => Scans::Several,
                };
                return Ok(Headers { scans, is_lossless });
            }
            (_, [high, low, ..]) => {
                if let (0xC0 | 0xC1 | 0xC9, Some(components)) = (marker, segment.get(7)) {
                    sequential_components = Some(*components);
                }
                is_lossless |= matches!(marker, 0xC3 | 0xCB);
                at += 2 + usize::from(u16::from_be_bytes([*high, *low]));
            }
            _ => return Err(cut_short()),
        }
    }
}

#[cfg(test)]
mod tests {
    use image::{Rgb, RgbImage};
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
            jpeg.write_marker(APP1, &data);
        }
        jpeg.write_scanlines(image.as_raw()).unwrap();
        jpeg.finish().unwrap()
    }

    fn dimensions(bytes: &[u8], decoding: Decoding) -> (u32, u32) {
        pixels(bytes, decoding).dimensions()
    }

    /// As they lie in the file.
    fn pixels(bytes: &[u8], decoding: Decoding) -> RgbImage {
        decode(bytes, decoding, &Limits::default()).unwrap().0.into_rgb8()
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
        let exact = pixels(&bytes, Decoding::Exact);
        let scaled = pixels(&bytes, Decoding::Scaled);
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
        let lying = pixels(&encode(1200, 1040, false, None), Decoding::Scaled);
        let upright = crate::decode(&encode(1200, 1040, false, Some(6)), Decoding::Scaled).unwrap();
        assert_eq!(upright.dimensions(), (520, 600));
        assert!(upright == image::imageops::rotate90(&lying));
    }

    #[test]
    fn the_limit_is_on_what_is_allocated() {
        // 183 megapixels, nearly all of which libjpeg makes up: 525 MiB of pixels, or a sixteenth.
        let mut bytes = encode(64, 64, false, None);
        claim(&mut bytes, 65500, 2800);
        let message = "too large: 65500 × 2800 pixels take more than 512 MiB";
        assert_eq!(
            decode(&bytes, Decoding::Exact, &Limits::default())
                .unwrap_err()
                .to_string(),
            message
        );
        assert_eq!(dimensions(&bytes, Decoding::Scaled), (16375, 700));
        // The coefficients of a progressive JPEG are kept at full size.
        let mut bytes = encode(64, 64, true, None);
        claim(&mut bytes, 65500, 2800);
        assert_eq!(
            decode(&bytes, Decoding::Scaled, &Limits::default())
                .unwrap_err()
                .to_string(),
            message
        );
    }

    #[test]
    fn headers_tell_whether_coefficients_are_kept() {
        assert_eq!(read_headers(&encode(40, 30, false, None)).unwrap().scans, Scans::One);
        assert_eq!(read_headers(&encode(40, 30, true, None)).unwrap().scans, Scans::Several);
    }
}
