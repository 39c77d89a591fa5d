use std::panic::{AssertUnwindSafe, catch_unwind};

use image::RgbImage;

use super::decoding::{Decoding, Limits, Unreadable};
use super::exif::Metadata;
use super::formats::{Format, bmp, gif, heif, jpeg, jpeg_2000, jpeg_xl, png, tiff, webp};
use super::pixels::on_white;

/// Decodes the bytes of an image file to upright 8-bit RGB. The bytes tell the format: JPEG, PNG, GIF, BMP, WebP, TIFF,
/// JPEG XL or JPEG 2000; and HEIC and AVIF, if Luthier was built with libheif.
///
/// The orientation that EXIF or XMP give is applied. Grey, palette, 16-bit and CMYK images become RGB, and alpha is
/// composited onto white. With [`Decoding::Scaled`] a large JPEG is decoded at a fraction of its size.
///
/// # Errors
/// [`Unreadable`] if the bytes have no known format, are damaged or cut short, or take too much memory.
pub fn decode(bytes: &[u8], decoding: Decoding) -> Result<RgbImage, Unreadable> {
    decode_within(bytes, decoding, &Limits::default())
}

/// The same within other limits.
///
/// # Errors
/// Those of [`decode`].
pub fn decode_within(bytes: &[u8], decoding: Decoding, limits: &Limits) -> Result<RgbImage, Unreadable> {
    if bytes.is_empty() {
        return Err(Unreadable("empty file".to_owned()));
    }
    let format = Format::of(bytes).map_err(|other| Unreadable(other.to_string()))?;
    // A decoder that panics over damaged bytes costs one image, not the run.
    catch_unwind(AssertUnwindSafe(|| decode_as(format, bytes, decoding, limits)))
        .unwrap_or_else(|_| Err(format.damaged("the decoder failed")))
}

fn decode_as(format: Format, bytes: &[u8], decoding: Decoding, limits: &Limits) -> Result<RgbImage, Unreadable> {
    let as_stored = |image| (image, Metadata::default());
    let (mut image, metadata) = match format {
        Format::Jpeg => jpeg::decode(bytes, decoding, limits)?,
        Format::Png => png::decode(bytes, limits)?,
        Format::WebP => webp::decode(bytes, limits)?,
        Format::Gif => as_stored(gif::decode(bytes, limits)?),
        Format::Bmp => as_stored(bmp::decode(bytes, limits)?),
        // These are upright already.
        Format::Tiff => as_stored(tiff::decode(bytes, limits)?),
        Format::JpegXl => as_stored(jpeg_xl::decode(bytes, limits)?),
        Format::Jpeg2000 => as_stored(jpeg_2000::decode(bytes, limits)?),
        Format::Heic | Format::Avif => as_stored(heif::decode(bytes, format, limits)?),
    };
    // What follows takes memory, too: copies that are turned, and of grey as colours; and 8 bytes of coefficients for each
    // row and column.
    let orientation = metadata.orientation();
    let is_turned = {
        use image::metadata::Orientation::{Rotate90, Rotate90FlipH, Rotate270, Rotate270FlipH};
        matches!(orientation, Rotate90 | Rotate270 | Rotate90FlipH | Rotate270FlipH)
    };
    let (width, height) = (u64::from(image.width()), u64::from(image.height()));
    let bytes = match u64::from(image.color().channel_count()) {
        1 => 1 + 3,
        2 => 2 + 4,
        n if is_turned => 2 * n,
        n => n,
    };
    limits.check(
        (image.width(), image.height()),
        bytes * width * height + 8 * (width + height),
    )?;
    image.apply_orientation(orientation);
    on_white(image)
}

#[cfg(test)]
mod tests {
    use std::io::Cursor;

    use image::codecs::jpeg::JpegEncoder;
    use image::{DynamicImage, ExtendedColorType, ImageEncoder, ImageFormat, Luma, Rgb, Rgba, RgbaImage};

    use super::*;

    fn encode(image: &DynamicImage, format: ImageFormat) -> Vec<u8> {
        let mut bytes = Cursor::new(Vec::new());
        image.write_to(&mut bytes, format).unwrap();
        bytes.into_inner()
    }

    fn gradient() -> RgbImage {
        RgbImage::from_fn(40, 30, |x, y| Rgb([(x * 6) as u8, (y * 8) as u8, 100]))
    }

    fn message(bytes: &[u8]) -> String {
        decode(bytes, Decoding::Exact).unwrap_err().to_string()
    }

    #[test]
    fn the_format_is_taken_from_the_bytes() {
        let image = DynamicImage::from(gradient());
        for format in [ImageFormat::Png, ImageFormat::Bmp, ImageFormat::Tiff, ImageFormat::WebP] {
            assert_eq!(
                decode(&encode(&image, format), Decoding::Exact).unwrap(),
                gradient(),
                "{format:?}"
            );
        }
        for format in [ImageFormat::Jpeg, ImageFormat::Gif] {
            assert_eq!(
                decode(&encode(&image, format), Decoding::Exact).unwrap().dimensions(),
                (40, 30),
                "{format:?}"
            );
        }
    }

    #[test]
    fn transparent_pixels_become_white() {
        let image = RgbaImage::from_fn(3, 1, |x, _| Rgba([0, 100, 200, [0, 128, 255][x as usize]]));
        let rgb = decode(&encode(&image.into(), ImageFormat::Png), Decoding::Exact).unwrap();
        assert_eq!(rgb.as_raw(), &[255, 255, 255, 127, 177, 227, 0, 100, 200]);
    }

    #[test]
    fn sixteen_bit_grey_becomes_rgb() {
        let image = image::ImageBuffer::<Luma<u16>, _>::from_pixel(2, 2, Luma([0x8080]));
        assert_eq!(
            decode(&encode(&image.into(), ImageFormat::Png), Decoding::Exact)
                .unwrap()
                .get_pixel(0, 0)
                .0,
            [128; 3]
        );
    }

    #[test]
    fn exif_orientation_is_applied() {
        let image = gradient();
        let mut bytes = Vec::new();
        let mut encoder = JpegEncoder::new_with_quality(&mut bytes, 100);
        // A TIFF header with one entry: orientation (0x0112), short, 6 = turn clockwise.
        let exif = b"MM\0*\0\0\0\x08\0\x01\x01\x12\0\x03\0\0\0\x01\0\x06\0\0\0\0\0\0";
        encoder.set_exif_metadata(exif.to_vec()).unwrap();
        encoder.write_image(&image, 40, 30, ExtendedColorType::Rgb8).unwrap();
        let upright = decode(&bytes, Decoding::Exact).unwrap();
        assert_eq!(upright.dimensions(), (30, 40));
        // The bottom left corner comes to the top left.
        let (found, expected) = (upright.get_pixel(0, 0).0, image.get_pixel(0, 29).0);
        assert!(
            found.iter().zip(expected).all(|(&a, b)| a.abs_diff(b) < 12),
            "{found:?} {expected:?}"
        );
    }

    #[test]
    fn every_truncation_of_a_jpeg_is_noticed() {
        let bytes = encode(&gradient().into(), ImageFormat::Jpeg);
        for length in 1..bytes.len() {
            let found = message(&bytes[..length]);
            let is_expected = found.starts_with("damaged JPEG: ") || found.starts_with("not an image: ");
            assert!(is_expected, "{length} of {} bytes: {found}", bytes.len());
        }
        assert_eq!(
            message(&bytes[..bytes.len() - 10]),
            "damaged JPEG: cut short, its end marker is missing"
        );
    }

    #[test]
    fn what_is_not_an_image_is_named() {
        assert_eq!(message(b""), "empty file");
        assert_eq!(
            message(b"a violin, said the text file"),
            "not an image: the bytes begin like no known format"
        );
        let png = encode(&gradient().into(), ImageFormat::Png);
        assert!(message(&png[..png.len() / 2]).starts_with("damaged PNG: "));
    }

    #[test]
    fn an_image_without_pixels_is_named() {
        // Width and height of the screen, and of the only frame, whose descriptor begins with a comma.
        let mut gif = encode(&RgbImage::new(1, 1).into(), ImageFormat::Gif);
        gif[6..10].fill(0);
        let frame = gif.iter().rposition(|&byte| byte == b',').unwrap();
        gif[frame + 5..frame + 9].fill(0);
        assert_eq!(message(&gif), "damaged GIF: 0 × 0 pixels");
    }

    #[test]
    fn an_image_too_large_for_memory_is_refused_before_it_is_decoded() {
        let mut png = encode(&RgbImage::new(1, 1).into(), ImageFormat::Png);
        // Width and height of the header, then its checksum.
        let mut message = |width: u32, height: u32| {
            png[16..20].copy_from_slice(&width.to_be_bytes());
            png[20..24].copy_from_slice(&height.to_be_bytes());
            let sum = crc32(&png[12..29]).to_be_bytes();
            png[29..33].copy_from_slice(&sum);
            message(&png)
        };
        assert_eq!(
            message(1 << 14, 1 << 14),
            "too large: 16384 × 16384 pixels take more than 512 MiB"
        );
        assert_eq!(
            message(1 << 16, 1 << 16),
            "too large: 65536 × 65536 pixels, more than 500000000"
        );
    }

    #[test]
    fn a_long_strip_counts_with_what_resizing_it_takes() {
        let png = encode(&RgbImage::new(1, 100_000).into(), ImageFormat::Png);
        let message = |memory| {
            let limits = Limits {
                memory,
                ..Limits::default()
            };
            decode_within(&png, Decoding::Exact, &limits).map_err(|error| error.to_string())
        };
        let expected = "too large: 1 × 100000 pixels take more than 1000000 bytes";
        assert_eq!(message(1_000_000).unwrap_err(), expected);
        assert_eq!(message(1_200_000).unwrap().dimensions(), (1, 100_000));
    }

    #[test]
    fn large_images_of_other_formats_are_exact() {
        let image = RgbImage::from_fn(1100, 1030, |x, y| Rgb([x as u8, y as u8, (x ^ y) as u8]));
        let png = encode(&image.clone().into(), ImageFormat::Png);
        assert_eq!(decode(&png, Decoding::Scaled).unwrap(), image);
    }

    fn crc32(bytes: &[u8]) -> u32 {
        !bytes.iter().fold(!0, |sum, &byte| {
            (0..8).fold(sum ^ u32::from(byte), |sum, _| (sum >> 1) ^ (0xEDB8_8320 * (sum & 1)))
        })
    }
}
