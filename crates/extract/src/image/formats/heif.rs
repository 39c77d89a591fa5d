//! HEIC and AVIF, by the system's libheif, if Luthier was built with it (the cargo feature `heif`).

use image::DynamicImage;

use super::Format;
use crate::image::decoding::{Limits, Unreadable};

/// Decodes the primary image of a HEIC or AVIF file to 8 bits a channel, upright.
#[cfg(not(feature = "heif"))]
pub(in crate::image) fn decode(_: &[u8], format: Format, _: &Limits) -> Result<DynamicImage, Unreadable> {
    Err(Unreadable(format!(
        "{format}: built without libheif; install it (apt install libheif-dev, or brew install libheif), then build \
         again with `cargo xtask setup`"
    )))
}

#[cfg(feature = "heif")]
pub(in crate::image) use library::decode;

#[cfg(feature = "heif")]
#[expect(unsafe_code, reason = "libheif's interface is C")]
mod library {
    use std::ffi::{CStr, c_char, c_int};

    use super::*;

    /// `struct luthier_heif_image` of heif.c.
    #[repr(C)]
    struct Found {
        pixels: *mut u8,
        width: u32,
        height: u32,
        channels: u32,
        bytes: u64,
        is_unsupported: c_int,
        message: [c_char; 256],
    }

    unsafe extern "C" {
        fn luthier_heif_decode(bytes: *const u8, length: usize, most_pixels: u64, most_bytes: u64, found: *mut Found);
        fn luthier_heif_free(found: *mut Found);
    }

    /// Decodes the primary image of a HEIC or AVIF file to 8 bits a channel, upright.
    pub(in crate::image) fn decode(bytes: &[u8], format: Format, limits: &Limits) -> Result<DynamicImage, Unreadable> {
        let mut found = Found {
            pixels: std::ptr::null_mut(),
            width: 0,
            height: 0,
            channels: 0,
            bytes: 0,
            is_unsupported: 0,
            message: [0; 256],
        };
        // SAFETY: the bytes live through the call, and `found` is as heif.c has it.
        unsafe {
            luthier_heif_decode(
                bytes.as_ptr(),
                bytes.len(),
                limits.pixels,
                limits.memory,
                &raw mut found,
            )
        };
        let Found {
            width,
            height,
            channels,
            ..
        } = found;
        if found.pixels.is_null() {
            limits.check((width, height), found.bytes)?;
            // SAFETY: heif.c ends the message with a zero.
            let message = unsafe { CStr::from_ptr(found.message.as_ptr()) }.to_string_lossy();
            return Err(match found.is_unsupported {
                0 => format.damaged(message),
                _ => Unreadable(format!("{format} of a kind that this libheif does not read: {message}")),
            });
        }
        let length = channels as usize * width as usize * height as usize;
        // SAFETY: heif.c wrote that many bytes.
        let pixels = unsafe { std::slice::from_raw_parts(found.pixels, length) }.to_vec();
        // SAFETY: the pixels are not used again.
        unsafe { luthier_heif_free(&raw mut found) };
        format.image((width, height), channels as usize, pixels)
    }
}
