//! Colours of other kinds as 8-bit RGB, by Pillow's arithmetic.

use image::{DynamicImage, RgbImage, RgbaImage};

use super::decoding::Unreadable;

/// CMYK without a profile: each colour is what its ink and black leave of white.
pub(super) fn rgb_of_cmyk([cyan, magenta, yellow, black]: [u8; 4]) -> [u8; 3] {
    let white = 255 - black;
    [cyan, magenta, yellow].map(|ink| white.saturating_sub(product(ink, white)))
}

/// A product of shares of 255, rounded: Pillow's `MULDIV255`.
fn product(a: u8, b: u8) -> u8 {
    let sum = u32::from(a) * u32::from(b) + 128;
    (((sum >> 8) + sum) >> 8) as u8
}

/// YCbCr as JPEG has it (ITU-T T.871).
pub(super) fn rgb_of_ycbcr([y, cb, cr]: [u8; 3]) -> [u8; 3] {
    let (y, cb, cr) = (f32::from(y), f32::from(cb) - 128.0, f32::from(cr) - 128.0);
    [y + 1.402 * cr, y - 0.344_136 * cb - 0.714_136 * cr, y + 1.772 * cb].map(|value| value.round() as u8)
}

/// Pixels on white.
///
/// # Errors
/// [`Unreadable`] if every pixel is transparent and all have one colour: there is nothing to be seen. If they have
/// several colours, the program that wrote the file left its alpha at 0 without a meaning, and it is ignored.
pub(super) fn on_white(image: DynamicImage) -> Result<RgbImage, Unreadable> {
    if !image.color().has_alpha() {
        return Ok(image.into_rgb8());
    }
    let rgba = image.into_rgba8();
    if rgba.pixels().all(|pixel| pixel.0[3] == 0) {
        let first = rgba.get_pixel(0, 0);
        if rgba.pixels().all(|pixel| pixel == first) {
            return Err(Unreadable("every pixel is transparent".to_owned()));
        }
        return Ok(without_alpha(rgba, |colour, _| colour));
    }
    Ok(without_alpha(rgba, |colour, alpha| {
        let (colour, alpha) = (u32::from(colour), u32::from(alpha));
        // Rounded division by 255.
        ((colour * alpha + 255 * (255 - alpha) + 127) / 255) as u8
    }))
}

/// Makes another value of each colour and the alpha beside it, in the same memory.
fn without_alpha(rgba: RgbaImage, value: impl Fn(u8, u8) -> u8) -> RgbImage {
    let (width, height) = rgba.dimensions();
    let mut pixels = rgba.into_raw();
    let n = pixels.len() / 4;
    for place in 0..n {
        let [red, green, blue, alpha] = [0, 1, 2, 3].map(|channel| pixels[4 * place + channel]);
        pixels[3 * place..][..3].copy_from_slice(&[red, green, blue].map(|colour| value(colour, alpha)));
    }
    pixels.truncate(3 * n);
    RgbImage::from_raw(width, height, pixels).expect("three bytes a pixel")
}
