//! Which format a file has, by its first bytes, and below it a module for each format: bytes → pixels, and what the file
//! says of them.

pub(super) mod bmp;
pub(super) mod gif;
pub(super) mod heif;
pub(crate) mod jpeg;
pub(super) mod jpeg_2000;
pub(super) mod jpeg_xl;
pub(super) mod png;
pub(super) mod tiff;
pub(super) mod webp;

use std::fmt;

use image::{DynamicImage, GrayAlphaImage, GrayImage, ImageDecoder, ImageError, RgbImage, RgbaImage};

use super::decoding::{Limits, Unreadable};
use super::exif::Ifd;

/// A format that can be decoded, at least in some builds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Format {
    Jpeg,
    Png,
    Gif,
    Bmp,
    WebP,
    Tiff,
    Heic,
    Avif,
    JpegXl,
    Jpeg2000,
}

impl fmt::Display for Format {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Format::Jpeg => "JPEG",
            Format::Png => "PNG",
            Format::Gif => "GIF",
            Format::Bmp => "BMP",
            Format::WebP => "WebP",
            Format::Tiff => "TIFF",
            Format::Heic => "HEIC",
            Format::Avif => "AVIF",
            Format::JpegXl => "JPEG XL",
            Format::Jpeg2000 => "JPEG 2000",
        })
    }
}

/// What begins like no image.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum NoImage {
    /// The file of a camera's sensor, of this maker or kind.
    Raw(&'static str),
    /// Something else that people keep among images.
    Other(&'static str),
    /// Nothing known.
    Unknown,
}

impl fmt::Display for NoImage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            NoImage::Raw(kind) => write!(
                f,
                "a camera's raw file ({kind}), which needs a raw converter: export it as JPEG or TIFF"
            ),
            NoImage::Other(kind) => write!(f, "not an image: {kind}"),
            NoImage::Unknown => f.write_str("not an image: the bytes begin like no known format"),
        }
    }
}

/// The endings of the names of image files, in lower case, without the dot.
pub(crate) const ENDINGS: [&str; 17] = [
    "jpg", "jpeg", "jpe", "jif", "jfif", "png", "gif", "bmp", "webp", "tif", "tiff", "heic", "heif", "avif", "jxl",
    "jp2", "j2k",
];

/// The endings of the names of cameras' raw files, in lower case, without the dot. They are named, not read.
pub(crate) const RAW_ENDINGS: [&str; 12] = [
    "cr2", "cr3", "nef", "nrw", "arw", "dng", "orf", "raf", "rw2", "pef", "srw", "raw",
];

impl Format {
    /// The format of a file that begins with these bytes.
    pub(crate) fn of(bytes: &[u8]) -> Result<Self, NoImage> {
        match bytes {
            [0xFF, 0xD8, 0xFF, ..] => Ok(Format::Jpeg),
            [0x89, b'P', b'N', b'G', b'\r', b'\n', 0x1A, b'\n', ..] => Ok(Format::Png),
            [b'G', b'I', b'F', b'8', b'7' | b'9', b'a', ..] => Ok(Format::Gif),
            [b'B', b'M', ..] => Ok(Format::Bmp),
            [b'R', b'I', b'F', b'F', _, _, _, _, b'W', b'E', b'B', b'P', ..] => Ok(Format::WebP),
            [b'I', b'I', 42 | 43, 0, ..] | [b'M', b'M', 0, 42 | 43, ..] => {
                raw_tiff(bytes).map_or(Ok(Format::Tiff), Err)
            }
            [_, _, _, _, b'f', b't', b'y', b'p', rest @ ..] => iso_media(rest),
            [0xFF, 0x0A, ..] | [0, 0, 0, 12, b'J', b'X', b'L', b' ', ..] => Ok(Format::JpegXl),
            [0xFF, 0x4F, 0xFF, 0x51, ..] | [0, 0, 0, 12, b'j', b'P', b' ', b' ', ..] => Ok(Format::Jpeg2000),
            _ => Err(no_image(bytes)),
        }
    }
}

/// The maker of a raw file that begins like a TIFF; `None` for a TIFF.
fn raw_tiff(bytes: &[u8]) -> Option<NoImage> {
    const NEW_SUBFILE_TYPE: u16 = 254;
    const SUB_IFDS: u16 = 330;
    const DNG_VERSION: u16 = 50706;
    if bytes.get(8..10) == Some(b"CR") {
        return Some(NoImage::Raw("Canon CR2"));
    }
    let first = Ifd::first(bytes)?;
    if first.get(DNG_VERSION).is_some() {
        return Some(NoImage::Raw("DNG"));
    }
    // Nikon, Sony, Pentax and Samsung: the first image is a thumbnail, and the sensor's data are below it.
    let is_thumbnail = first.get(NEW_SUBFILE_TYPE).and_then(|field| field.number()) == Some(1.0);
    (is_thumbnail && first.get(SUB_IFDS).is_some()).then_some(NoImage::Raw("built like a TIFF"))
}

/// The format of a file of the ISO base media family, by the brands after `ftyp`.
fn iso_media(rest: &[u8]) -> Result<Format, NoImage> {
    let brands: Vec<&[u8]> = rest.chunks_exact(4).take(16).collect();
    let has = |known: &[&[u8]]| brands.iter().any(|brand| known.contains(brand));
    if has(&[b"avif", b"avis"]) {
        Ok(Format::Avif)
    } else if has(&[b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1"]) {
        Ok(Format::Heic)
    } else if has(&[b"crx "]) {
        Err(NoImage::Raw("Canon CR3"))
    } else {
        Err(NoImage::Other("a video (MP4 or QuickTime)"))
    }
}

fn no_image(bytes: &[u8]) -> NoImage {
    let begin = &bytes[..bytes.len().min(1024)];
    let text = String::from_utf8_lossy(begin.strip_prefix(b"\xEF\xBB\xBF").unwrap_or(begin)).to_lowercase();
    let text = text.trim_start();
    match begin {
        [b'I', b'I', b'R', b'O' | b'S', ..] | [b'M', b'M', b'O', b'R', ..] => NoImage::Raw("Olympus ORF"),
        [b'I', b'I', b'U', 0, ..] => NoImage::Raw("Panasonic RW2"),
        [b'F', b'U', b'J', b'I', b'F', b'I', b'L', b'M', b'C', b'C', b'D', ..] => NoImage::Raw("Fujifilm RAF"),
        [0, 5, 0x16, 7, ..] => NoImage::Other("macOS's notes on a file (AppleDouble)"),
        [b'8', b'B', b'P', b'S', ..] => NoImage::Other("a Photoshop document"),
        [b'%', b'P', b'D', b'F', ..] => NoImage::Other("a PDF"),
        [b'P', b'K', 3, 4, ..] => NoImage::Other("a ZIP archive"),
        [0, 0, 1, 0, ..] => NoImage::Other("an icon"),
        _ if text.starts_with("<!doctype html") || text.starts_with("<html") => NoImage::Other("an HTML page"),
        _ if text.starts_with("<svg") || (text.starts_with("<?xml") && text.contains("<svg")) => {
            NoImage::Other("an SVG drawing")
        }
        _ => NoImage::Unknown,
    }
}

/// The boxes of a file that is divided like a QuickTime film (ISO/IEC 14496-12, 4.2): of each its name, all its bytes, and
/// the bytes behind its header. The file may end within the last box.
fn boxes(mut rest: &[u8]) -> impl Iterator<Item = (&[u8; 4], &[u8], &[u8])> {
    std::iter::from_fn(move || {
        let (length, after) = rest.split_first_chunk::<4>()?;
        let (name, after) = after.split_first_chunk::<4>()?;
        let (length, header) = match u32::from_be_bytes(*length) {
            0 => (rest.len() as u64, 8),
            1 => (u64::from_be_bytes(*after.first_chunk()?), 16),
            length => (u64::from(length), 8),
        };
        let (whole, others) = rest.split_at(length.min(rest.len() as u64) as usize);
        rest = others;
        Some((name, whole, whole.get(header..)?))
    })
}

/// What is wrong with a file of a format, and what its decoders have in common.
impl Format {
    pub(super) fn damaged(self, reason: impl fmt::Display) -> Unreadable {
        Unreadable(format!("damaged {self}: {reason}"))
    }

    fn unsupported(self, kind: impl fmt::Display) -> Unreadable {
        Unreadable(format!("{self} of a kind that is not supported: {kind}"))
    }

    fn refused(self, error: ImageError) -> Unreadable {
        match error {
            ImageError::Unsupported(kind) => self.unsupported(kind),
            error => self.damaged(error),
        }
    }

    /// An image of rows of 8-bit pixels: grey, grey and alpha, RGB, or RGB and alpha.
    fn image(
        self,
        (width, height): (u32, u32),
        n_channels: usize,
        pixels: Vec<u8>,
    ) -> Result<DynamicImage, Unreadable> {
        let image: Option<DynamicImage> = match n_channels {
            1 => GrayImage::from_raw(width, height, pixels).map(Into::into),
            2 => GrayAlphaImage::from_raw(width, height, pixels).map(Into::into),
            3 => RgbImage::from_raw(width, height, pixels).map(Into::into),
            4 => RgbaImage::from_raw(width, height, pixels).map(Into::into),
            n => return Err(self.unsupported(format_args!("{n} channels"))),
        };
        image.ok_or_else(|| self.damaged("rows are missing"))
    }

    /// Decodes with a decoder of the `image` crate's kind.
    fn decode_with(self, decoder: impl ImageDecoder, limits: &Limits) -> Result<DynamicImage, Unreadable> {
        let (width, height) = decoder.dimensions();
        if width == 0 || height == 0 {
            return Err(self.damaged(format_args!("{width} × {height} pixels")));
        }
        limits.check((width, height), decoder.total_bytes())?;
        DynamicImage::from_decoder(decoder).map_err(|error| self.refused(error))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn formats_are_known_by_their_first_bytes() {
        for (bytes, expected) in [
            (&b"\xFF\xD8\xFF\xE0"[..], Ok(Format::Jpeg)),
            (b"II\x2B\0\x08\0\0\0", Ok(Format::Tiff)),
            (b"\0\0\0\x20ftypavif\0\0\0\0mif1", Ok(Format::Avif)),
            (b"\0\0\0\x20ftypmif1\0\0\0\0avif", Ok(Format::Avif)),
            (b"\0\0\0\x18ftypheic\0\0\0\0mif1", Ok(Format::Heic)),
            (b"\0\0\0\x18ftypcrx \0\0\0\0", Err(NoImage::Raw("Canon CR3"))),
            (
                b"\0\0\0\x18ftypisom\0\0\0\0",
                Err(NoImage::Other("a video (MP4 or QuickTime)")),
            ),
            (b"\xFF\x0A\0", Ok(Format::JpegXl)),
            (b"\0\0\0\x0CjP  \r\n", Ok(Format::Jpeg2000)),
            (b"II*\0\x10\0\0\0CR\x02\0", Err(NoImage::Raw("Canon CR2"))),
            (b"IIRO\x08\0", Err(NoImage::Raw("Olympus ORF"))),
            (b"\xEF\xBB\xBF\n<!DOCTYPE html>", Err(NoImage::Other("an HTML page"))),
            (b"<?xml version='1.0'?><svg>", Err(NoImage::Other("an SVG drawing"))),
            (b"a violin", Err(NoImage::Unknown)),
            (b"", Err(NoImage::Unknown)),
        ] {
            assert_eq!(Format::of(bytes), expected, "{}", bytes.escape_ascii());
        }
    }

    #[test]
    fn raw_files_that_are_built_like_a_tiff_are_told_by_their_tags() {
        // One entry after another: tag, type, count, value.
        let tiff = |entries: &[(u16, u16, u32)]| {
            let mut bytes = b"II*\0\x08\0\0\0".to_vec();
            bytes.extend((entries.len() as u16).to_le_bytes());
            for (tag, kind, value) in entries {
                bytes.extend(tag.to_le_bytes());
                bytes.extend(kind.to_le_bytes());
                bytes.extend(1u32.to_le_bytes());
                bytes.extend(value.to_le_bytes());
            }
            Format::of(&bytes)
        };
        assert_eq!(tiff(&[(50706, 4, 1)]), Err(NoImage::Raw("DNG")));
        assert_eq!(
            tiff(&[(254, 4, 1), (330, 4, 99)]),
            Err(NoImage::Raw("built like a TIFF"))
        );
        assert_eq!(tiff(&[(254, 4, 0), (330, 4, 99)]), Ok(Format::Tiff));
        assert_eq!(tiff(&[(254, 4, 1)]), Ok(Format::Tiff));
    }
}
