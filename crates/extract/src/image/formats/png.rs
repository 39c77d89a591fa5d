//! PNG, by the `png` crate, with what lies around the pixels.

use std::io::Cursor;

use image::DynamicImage;
use png::{DecodeOptions, Decoder, Reader, Transformations};

use super::Format;
use crate::image::decoding::{Limits, Unreadable};
use crate::image::exif::Metadata;

const SIGNATURE: usize = 8;

/// The most bytes that a compressed text is unpacked to, as in Pillow.
const MOST_TEXT: usize = 1 << 20;

/// Decodes the still picture of a PNG to 8 bits a channel. Of 16 bits the upper 8 are kept, as in Pillow.
pub(in crate::image) fn decode(bytes: &[u8], limits: &Limits) -> Result<(DynamicImage, Metadata), Unreadable> {
    match read(bytes, limits) {
        // Pillow passes over chunks that it does not know, even those that say that they matter, and needs no end marker
        // after the pixels.
        Err(error) => match mended(bytes) {
            Some(bytes) => read(&bytes, limits),
            None => Err(error),
        },
        read => read,
    }
}

fn damaged(error: impl std::fmt::Display) -> Unreadable {
    Format::Png.damaged(error)
}

fn read(bytes: &[u8], limits: &Limits) -> Result<(DynamicImage, Metadata), Unreadable> {
    let mut options = DecodeOptions::default();
    // The checksum over all pixels.
    options.set_ignore_adler32(false);
    options.set_ignore_iccp_chunk(true);
    let mut decoder = Decoder::new_with_options(Cursor::new(bytes), options);
    decoder.set_limits(png::Limits {
        bytes: limits.memory as usize,
    });
    decoder.set_transformations(Transformations::normalize_to_color8());
    let (width, height) = decoder.read_header_info().map_err(damaged)?.size();
    // Four channels at the most.
    limits.check((width, height), 4 * u64::from(width) * u64::from(height))?;
    let mut reader = decoder.read_info().map_err(damaged)?;
    let size = reader
        .output_buffer_size()
        .ok_or_else(|| damaged(format_args!("{width} × {height} pixels")))?;
    let mut pixels = vec![0; size];
    let frame = reader.next_frame(&mut pixels).map_err(damaged)?;
    pixels.truncate(frame.buffer_size());
    // What the tags behind the pixels say counts too, unless they are damaged.
    reader.finish().ok();
    let metadata = metadata(&reader);
    // The transformation leaves 8 bits a channel, and no palette.
    let image = Format::Png.image((frame.width, frame.height), frame.color_type.samples(), pixels)?;
    Ok((image, metadata))
}

fn metadata<R: std::io::BufRead + std::io::Seek>(reader: &Reader<R>) -> Metadata {
    const RAW_PROFILE: &str = "Raw profile type exif";
    const XMP: &str = "XML:com.adobe.xmp";
    let info = reader.info();
    let is_wanted = |keyword: &str| [RAW_PROFILE, XMP].contains(&keyword);
    let plain = info.uncompressed_latin1_text.iter();
    let plain = plain.map(|text| (text.keyword.as_str(), Some(text.text.clone())));
    let compressed = info.compressed_latin1_text.iter();
    let compressed = compressed.filter(|text| is_wanted(&text.keyword)).map(|text| {
        let mut unpacked = text.clone();
        let done = unpacked.decompress_text_with_limit(MOST_TEXT);
        (text.keyword.as_str(), done.and_then(|()| unpacked.get_text()).ok())
    });
    let utf8 = info.utf8_text.iter();
    let utf8 = utf8.filter(|text| is_wanted(&text.keyword)).map(|text| {
        let mut unpacked = text.clone();
        let done = unpacked.decompress_text_with_limit(MOST_TEXT);
        (text.keyword.as_str(), done.and_then(|()| unpacked.get_text()).ok())
    });
    let (mut raw_profile, mut xmp) = (None, None);
    for (keyword, text) in plain.chain(compressed).chain(utf8) {
        match keyword {
            RAW_PROFILE => raw_profile = text.as_deref().and_then(bytes_of_profile).or(raw_profile),
            XMP => xmp = text.map(String::into_bytes).or(xmp),
            _ => {}
        }
    }
    Metadata {
        exif: info.exif_metadata.as_deref().map(<[u8]>::to_vec).or(raw_profile),
        xmp,
    }
}

/// ImageMagick writes a profile as text: an empty line, its name, its length, then its bytes in hexadecimal digits.
fn bytes_of_profile(text: &str) -> Option<Vec<u8>> {
    let digits: Vec<u8> = text.split('\n').skip(3).flat_map(|line| line.trim().bytes()).collect();
    let byte = |pair: &[u8]| u8::from_str_radix(std::str::from_utf8(pair).ok()?, 16).ok();
    digits.chunks(2).map(byte).collect()
}

/// The same file without the chunks that the PNG specification does not know and whose names say that they matter, and
/// with an end marker; `None` if it has none of the former, and the latter.
fn mended(bytes: &[u8]) -> Option<Vec<u8>> {
    const END: &[u8] = b"\0\0\0\0IEND\xAE\x42\x60\x82";
    let mut kept = bytes.get(..SIGNATURE)?.to_vec();
    let mut at = SIGNATURE;
    let mut has_end = false;
    while let Some([a, b, c, d, name @ ..]) = bytes.get(at..at + 8) {
        let end = at + 12 + u32::from_be_bytes([*a, *b, *c, *d]) as usize;
        let chunk = bytes.get(at..end)?;
        let matters = name[0].is_ascii_uppercase();
        if !matters || [b"IHDR", b"PLTE", b"IDAT", b"IEND"].iter().any(|known| name == *known) {
            kept.extend(chunk);
        }
        at = end;
        has_end = name == b"IEND";
        if has_end {
            break;
        }
    }
    if !has_end {
        kept.extend(END);
    }
    (!has_end || kept.len() < at).then_some(kept)
}

#[cfg(test)]
mod tests {
    use png::text_metadata::ITXtChunk;

    use super::*;

    #[test]
    fn a_text_that_unpacks_to_more_than_a_text_needs_is_passed_over() {
        for (blanks, expected) in [(1000, 6), (MOST_TEXT, 1)] {
            let mut text = ITXtChunk::new("XML:com.adobe.xmp", " ".repeat(blanks) + r#"<x tiff:Orientation="6"/>"#);
            text.compressed = true;
            let mut bytes = Vec::new();
            let mut writer = png::Encoder::new(&mut bytes, 1, 1).write_header().unwrap();
            writer.write_text_chunk(&text).unwrap();
            writer.write_image_data(&[0]).unwrap();
            writer.finish().unwrap();
            let (_, metadata) = decode(&bytes, &Limits::default()).unwrap();
            assert_eq!(metadata.orientation().to_exif(), expected, "{blanks} blanks");
        }
    }
}
