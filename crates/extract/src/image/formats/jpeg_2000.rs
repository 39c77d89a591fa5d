//! JPEG 2000, by the `hayro-jpeg2000` crate.

use hayro_jpeg2000::{DecodeSettings, Image};
use image::{DynamicImage, ImageDecoder as _};

use super::{Format, boxes};
use crate::image::decoding::{Limits, Unreadable};

/// The number of a tile has 16 bits (ITU-T T.800, A.4.2).
const MOST_TILES: u64 = 65_535;

/// Four inks and alpha.
const MOST_COMPONENTS: u64 = 5;

/// Decodes a JP2 file or a bare codestream.
pub(in crate::image) fn decode(bytes: &[u8], limits: &Limits) -> Result<DynamicImage, Unreadable> {
    let parts = Parts::of(bytes).ok_or_else(|| Format::Jpeg2000.damaged("its header is cut short"))?;
    // The decoder keeps the header for every tile and component, before it looks whether they are there.
    if parts.tiles > MOST_TILES {
        let (found, expected) = (parts.tiles, MOST_TILES);
        return Err(Format::Jpeg2000.damaged(format_args!("{found} tiles, expected {expected} at most")));
    }
    if parts.components > MOST_COMPONENTS {
        return Err(Format::Jpeg2000.unsupported(format_args!("{} channels", parts.components)));
    }
    let settings = DecodeSettings {
        // A file that is cut short is damaged.
        strict: true,
        ..DecodeSettings::default()
    };
    let image = Image::new(bytes, &settings).map_err(|error| Format::Jpeg2000.damaged(error))?;
    let (width, height) = image.dimensions();
    limits.check((width, height), parts.memory(u64::from(width) * u64::from(height)))?;
    Format::Jpeg2000.decode_with(image, limits)
}

/// What the decoder makes of a file, by the file's headers.
#[derive(Default)]
struct Parts {
    tiles: u64,
    /// The pixels of a tile.
    tile: u64,
    components: u64,
    /// The columns of a palette, the channels that are made of it, and the channels whose meaning is told: copies of all.
    palette: u64,
    mapped: u64,
    told: u64,
}

impl Parts {
    /// The most of each, if a file has several codestreams: the decoder takes one of them. `None` if a codestream has no
    /// header.
    fn of(bytes: &[u8]) -> Option<Self> {
        const CODESTREAM: &[u8] = &[0xFF, 0x4F];
        let mut parts = Parts::default();
        if bytes.starts_with(CODESTREAM) {
            parts.add_codestream(bytes)?;
            return Some(parts);
        }
        for (name, _, content) in boxes(bytes) {
            match name {
                b"jp2c" => parts.add_codestream(content)?,
                b"jp2h" => boxes(content).for_each(|(name, _, content)| parts.add_header(name, content)),
                _ => {}
            }
        }
        Some(parts)
    }

    /// By the marker segment that a codestream begins with: SIZ (ITU-T T.800, A.5.1).
    fn add_codestream(&mut self, stream: &[u8]) -> Option<()> {
        let number = |place: usize| {
            let bytes = stream.get(8 + 4 * place..)?.first_chunk()?;
            Some(u64::from(u32::from_be_bytes(*bytes)))
        };
        let (size, tile, start) = (
            (number(0)?, number(1)?),
            (number(4)?, number(5)?),
            (number(6)?, number(7)?),
        );
        let tiles = |size: u64, tile: u64, start: u64| {
            let covered = size.checked_sub(start)?.checked_next_multiple_of(tile)?;
            Some(covered / tile)
        };
        let n = tiles(size.0, tile.0, start.0)? * tiles(size.1, tile.1, start.1)?;
        self.tiles = self.tiles.max(n);
        self.tile = self.tile.max(tile.0.min(size.0) * tile.1.min(size.1));
        let components = u16::from_be_bytes(*stream.get(40..)?.first_chunk()?);
        self.components = self.components.max(components.into());
        Some(())
    }

    fn add_header(&mut self, name: &[u8; 4], content: &[u8]) {
        match name {
            b"pclr" => self.palette = content.get(2).copied().unwrap_or(0).into(),
            b"cmap" => self.mapped = content.len() as u64 / 4,
            b"cdef" => self.told = content.len() as u64 / 6,
            _ => {}
        }
    }

    /// How much memory the decoder takes for so many pixels: each channel in single precision and in a byte, and of one
    /// tile and component the coefficients and two steps of the transform, the first with a quarter of the pixels.
    fn memory(&self, pixels: u64) -> u64 {
        // Without a map, each column of a palette is a channel.
        let of_palette = if self.mapped > 0 { self.mapped } else { self.palette };
        let channels = pixels.saturating_mul(5 * (self.components + of_palette + self.told));
        channels.saturating_add(self.tile.min(pixels).saturating_mul(4 + 4 + 1))
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::{Decoding, decode_within};

    /// A file of 48 × 32 pixels that `fixtures/golden/formats.py` made with Pillow.
    fn file(name: &str) -> Vec<u8> {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fixtures/golden/formats");
        std::fs::read(folder.join(name)).unwrap()
    }

    /// A codestream that says that it has other sides.
    fn claiming(side: u32, tile: u32) -> Vec<u8> {
        let mut stream = file("j2k.j2k");
        for (place, length) in [(8, side), (12, side), (24, tile), (28, tile)] {
            stream[place..place + 4].copy_from_slice(&length.to_be_bytes());
        }
        stream
    }

    /// Why a file is not read with so much memory.
    fn message(bytes: &[u8], memory: u64) -> String {
        let limits = Limits {
            memory,
            ..Limits::default()
        };
        let read = decode_within(bytes, Decoding::Exact, &limits);
        read.map_or_else(|error| error.to_string(), |_| "it is read".to_owned())
    }

    #[test]
    fn more_tiles_than_can_have_a_number_are_refused() {
        assert_eq!(
            message(&claiming(10_000, 1), u64::MAX),
            "damaged JPEG 2000: 100000000 tiles, expected 65535 at most"
        );
    }

    #[test]
    fn all_channels_count_and_the_coefficients_of_one_tile() {
        let too_large = "too large: 1000 × 1000 pixels take more than 20000000 bytes";
        assert_eq!(message(&claiming(1000, 1000), 20_000_000), too_large);
        assert_ne!(message(&claiming(1000, 100), 20_000_000), too_large);
    }

    #[test]
    fn more_channels_than_a_picture_has_are_refused() {
        let mut stream = file("j2k.j2k");
        stream[41] = 6;
        drop(stream.splice(42..42, [7, 1, 1].repeat(3)));
        assert_eq!(
            message(&stream, u64::MAX),
            "JPEG 2000 of a kind that is not supported: 6 channels"
        );
    }

    #[test]
    fn the_channels_that_a_palette_makes_count() {
        let mut jp2 = file("jp2.jp2");
        let palette_use = [&4008_u32.to_be_bytes()[..], b"cmap", &[0_u8, 0, 1, 0].repeat(1000)].concat();
        // The box of headers, with its length and name.
        let header = 32..32 + u32::from_be_bytes(*jp2[32..].first_chunk().unwrap()) as usize;
        let length = (header.len() + palette_use.len()) as u32;
        jp2[32..36].copy_from_slice(&length.to_be_bytes());
        drop(jp2.splice(header.end..header.end, palette_use));
        assert_eq!(
            message(&jp2, 1_000_000),
            "too large: 48 × 32 pixels take more than 1000000 bytes"
        );
    }
}
