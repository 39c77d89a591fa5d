//! TIFF, by the `tiff` crate, of whose samples pixels are made here: it knows no palettes, and gives other colours as the
//! file has them.

use std::io::Cursor;

use image::DynamicImage;
use tiff::decoder::{Decoder, DecodingResult};
use tiff::{ColorType, TiffError};

use super::Format;
use crate::image::decoding::{Limits, Unreadable};
use crate::image::exif::{Ifd, orientation};
use crate::image::pixels::{rgb_of_cmyk, rgb_of_ycbcr};

const PHOTOMETRIC: u16 = 262;
const PLANAR: u16 = 284;
const COLOR_MAP: u16 = 320;
const EXTRA_SAMPLES: u16 = 338;
const XMP: u16 = 700;

/// Values of [`PHOTOMETRIC`].
const BLACK_IS_ZERO: u8 = 1;
const PALETTE: u64 = 3;

/// Decodes the first image of a TIFF to 8 bits a channel, upright. Of more bits the upper 8 are kept.
pub(in crate::image) fn decode(bytes: &[u8], limits: &Limits) -> Result<DynamicImage, Unreadable> {
    let tags = Ifd::first(bytes).ok_or_else(|| Format::Tiff.damaged("its header is cut short"))?;
    let number = |tag| tags.get(tag).and_then(|field| field.whole_numbers()?.first().copied());
    let mut image = match (
        number(PHOTOMETRIC),
        tags.get(COLOR_MAP).and_then(|map| map.whole_numbers()),
    ) {
        (Some(PALETTE), Some(map)) => {
            // The crate reads the same file if it says that the indices are brightnesses.
            let mut grey = bytes.to_vec();
            let field = tags.get(PHOTOMETRIC).expect("its value is known");
            let start = field.place();
            grey[start..start + field.bytes().len()].fill(0);
            let least = if bytes.starts_with(b"II") {
                start
            } else {
                start + field.bytes().len() - 1
            };
            grey[least] = BLACK_IS_ZERO;
            let read = Samples::read(&grey, limits)?;
            read.with_palette(&map)?
        }
        _ => Samples::read(bytes, limits)?.into_image(number(PLANAR) == Some(2), number(EXTRA_SAMPLES))?,
    };
    image.apply_orientation(orientation(Some(&tags), tags.get(XMP).map(|field| field.bytes())));
    Ok(image)
}

/// What the crate reads.
struct Samples {
    width: u32,
    height: u32,
    color: ColorType,
    values: DecodingResult,
}

fn unreadable(error: TiffError) -> Unreadable {
    match error {
        TiffError::UnsupportedError(kind) => Format::Tiff.unsupported(kind),
        error => Format::Tiff.damaged(error),
    }
}

fn unsupported(color: ColorType) -> Unreadable {
    Format::Tiff.unsupported(format_args!("{color:?}"))
}

impl Samples {
    fn read(bytes: &[u8], limits: &Limits) -> Result<Self, Unreadable> {
        let mut of_crate = tiff::decoder::Limits::default();
        of_crate.decoding_buffer_size = limits.memory as usize;
        of_crate.intermediate_buffer_size = limits.memory as usize;
        let mut decoder = Decoder::new(Cursor::new(bytes))
            .map_err(unreadable)?
            .with_limits(of_crate);
        let (width, height) = decoder.dimensions().map_err(unreadable)?;
        if width == 0 || height == 0 {
            return Err(Format::Tiff.damaged(format_args!("{width} × {height} pixels")));
        }
        let color = decoder.colortype().map_err(unreadable)?;
        let layout = decoder.image_buffer_layout().map_err(unreadable)?;
        // The samples, and four channels of pixels.
        let memory = layout.complete_len as u64 + 4 * u64::from(width) * u64::from(height);
        limits.check((width, height), memory)?;
        let mut values = DecodingResult::U8(Vec::new());
        decoder.read_image_to_buffer(&mut values).map_err(unreadable)?;
        Ok(Samples {
            width,
            height,
            color,
            values,
        })
    }

    /// The samples in 8 bits.
    fn into_bytes(self) -> Result<Vec<u8>, Unreadable> {
        let Samples { color, values, .. } = self;
        Ok(match values {
            DecodingResult::U8(values) => values,
            // Pillow takes their bits as they are.
            DecodingResult::I8(values) => values.into_iter().map(|value| value as u8).collect(),
            DecodingResult::U16(values) => values.into_iter().map(|value| (value >> 8) as u8).collect(),
            DecodingResult::U32(values) => values.into_iter().map(|value| (value >> 24) as u8).collect(),
            DecodingResult::I16(values) => values.into_iter().map(|value| (value.max(0) >> 8) as u8).collect(),
            DecodingResult::F32(values) => of_floats(&values),
            _ => return Err(unsupported(color)),
        })
    }

    /// One value a byte, where a byte holds several; each row begins with a byte of its own.
    fn unpacked(self, bits: u8) -> Result<Vec<u8>, Unreadable> {
        let width = self.width as usize;
        let bytes = self.into_bytes()?;
        if bits == 8 {
            return Ok(bytes);
        }
        let each = usize::from(8 / bits);
        let mask = (1u16 << bits) as u8 - 1;
        let value = |row: &[u8], x: usize| row[x / each] >> (8 - usize::from(bits) * (x % each + 1)) & mask;
        let rows = bytes.chunks_exact(width.div_ceil(each));
        Ok(rows.flat_map(|row| (0..width).map(move |x| value(row, x))).collect())
    }

    /// The colours of a palette: 16 bits each, first all red, then all green, then all blue.
    fn with_palette(self, map: &[u64]) -> Result<DynamicImage, Unreadable> {
        let (width, height) = (self.width, self.height);
        let bits = match self.color {
            ColorType::Gray(bits @ (1 | 2 | 4 | 8)) => bits,
            color => return Err(unsupported(color)),
        };
        let n = map.len() / 3;
        let indices = self.unpacked(bits)?;
        let colour = |channel: usize, index: u8| {
            let index = usize::from(index);
            if index < n {
                (map[channel * n + index] >> 8) as u8
            } else {
                0
            }
        };
        let pixels = indices
            .iter()
            .flat_map(|&index| [0, 1, 2].map(|channel| colour(channel, index)));
        Format::Tiff.image((width, height), 3, pixels.collect())
    }

    fn into_image(self, is_planar: bool, extra: Option<u64>) -> Result<DynamicImage, Unreadable> {
        /// Values of [`EXTRA_SAMPLES`]: alpha, by which the colours have been multiplied, or not.
        const ASSOCIATED: Option<u64> = Some(1);
        const UNASSOCIATED: Option<u64> = Some(2);
        let Samples {
            width, height, color, ..
        } = self;
        let n = width as usize * height as usize;
        let bytes = match color {
            ColorType::Gray(bits @ (1 | 2 | 4)) => {
                let most = (1u16 << bits) - 1;
                let values = self.unpacked(bits)?;
                values
                    .into_iter()
                    .map(|value| (u16::from(value) * 255 / most) as u8)
                    .collect()
            }
            _ => self.into_bytes()?,
        };
        let n_channels = usize::from(color.num_samples());
        let bytes = match is_planar && n_channels > 1 {
            true => (0..n * n_channels)
                .map(|at| bytes.get(at % n_channels * n + at / n_channels).copied().unwrap_or(0))
                .collect(),
            false => bytes,
        };
        let (n_channels, pixels) = match color {
            ColorType::GrayA(_) | ColorType::Multiband { num_samples: 2, .. }
                if extra == ASSOCIATED || extra == UNASSOCIATED =>
            {
                (2, bytes)
            }
            // Of other channels beside grey nobody knows what they are.
            ColorType::Gray(_) | ColorType::GrayA(_) | ColorType::Multiband { .. } => {
                (1, bytes.into_iter().step_by(n_channels).collect())
            }
            ColorType::RGB(_) => (3, bytes),
            ColorType::RGBA(_) => (4, bytes),
            ColorType::CMYK(_) | ColorType::CMYKA(_) => {
                let inks = bytes.chunks_exact(n_channels);
                let pixels = inks.flat_map(|inks| rgb_of_cmyk([inks[0], inks[1], inks[2], inks[3]]));
                (3, pixels.collect())
            }
            ColorType::YCbCr(_) => {
                let pixels = bytes.as_chunks().0.iter().flat_map(|&pixel| rgb_of_ycbcr(pixel));
                (3, pixels.collect())
            }
            color => return Err(unsupported(color)),
        };
        let mut pixels: Vec<u8> = pixels;
        if extra == ASSOCIATED && matches!(n_channels, 2 | 4) {
            pixels.chunks_exact_mut(n_channels).for_each(divide_by_alpha);
        }
        Format::Tiff.image((width, height), n_channels, pixels)
    }
}

/// Takes back that the colours of a pixel were multiplied by its alpha, the last channel.
fn divide_by_alpha(pixel: &mut [u8]) {
    if let [colours @ .., alpha @ 1..=254] = pixel {
        for colour in colours {
            *colour = (u32::from(*colour) * 255 / u32::from(*alpha)).min(255) as u8;
        }
    }
}

/// Brightness from 0 to 1, or from 0 to 255 if some is above 1.
fn of_floats(values: &[f32]) -> Vec<u8> {
    let scale = if values.iter().any(|&value| value > 1.0) {
        1.0
    } else {
        255.0
    };
    values.iter().map(|value| (value * scale) as u8).collect()
}
