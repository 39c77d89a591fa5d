//! What callers ask of the decoder, and why it may refuse.

use std::fmt;

use luthier_artifact::UnknownName;

/// How a JPEG that is much larger than the network needs is decoded. Images of other formats are
/// always decoded exactly.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[derive(strum::Display, strum::EnumString, strum::VariantNames)]
#[strum(serialize_all = "lowercase", parse_err_ty = UnknownName, parse_err_fn = unknown_decoding)]
pub enum Decoding {
    /// At a half, a quarter or an eighth of its size: the smallest whose short side has 512 pixels
    /// or more.
    ///
    /// This is several times faster, because libjpeg leaves out most of the transform. The pixels
    /// are those of Pillow's `draft("RGB", (512, 512))`.
    Scaled,
    /// At full size. The pixels are those of Pillow.
    Exact,
}

fn unknown_decoding(found: &str) -> UnknownName {
    UnknownName::of::<Decoding>("decode", found)
}

/// Why the bytes of a file are not an image that can be used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct Unreadable(pub String);

/// How much decoding one image may cost. Bounds are checked on headers, before memory is asked for. An image that is not
/// decoded, because the cache has its features, costs nothing and is not checked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// The size in bytes of the largest file that is read.
    pub file: u64,
    /// The most pixels, as the file says.
    pub pixels: u64,
    /// The most memory that decoding may take, in bytes.
    pub memory: u64,
}

impl Default for Limits {
    /// Files up to 512 MiB, which is three times the largest photograph of any camera; 500 million pixels; and 512 MiB of
    /// memory: enough for 170 megapixels, or fewer in a progressive JPEG, whose coefficients count too, and too little for
    /// a file that unpacks to a thousand times its size.
    fn default() -> Self {
        Limits {
            file: 512 << 20,
            pixels: 500_000_000,
            memory: 512 << 20,
        }
    }
}

impl fmt::Display for Limits {
    /// As a key has them.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Limits { file, pixels, memory } = self;
        write!(f, "file {file}, pixels {pixels}, memory {memory}")
    }
}

impl Limits {
    /// No bounds, for an image that was embedded within others.
    pub(super) const NONE: Limits = Limits {
        file: u64::MAX,
        pixels: u64::MAX,
        memory: u64::MAX,
    };

    /// Refuses an image of so many pixels that needs so much memory, in bytes.
    pub(super) fn check(&self, (width, height): (u32, u32), memory: u64) -> Result<(), Unreadable> {
        let pixels = u64::from(width) * u64::from(height);
        let too_large =
            |limit: fmt::Arguments<'_>| Err(Unreadable(format!("too large: {width} × {height} pixels{limit}")));
        if pixels > self.pixels {
            return too_large(format_args!(", more than {}", self.pixels));
        }
        if memory > self.memory {
            return too_large(format_args!(" take more than {}", size(self.memory)));
        }
        Ok(())
    }

    /// Refuses a file of so many bytes.
    pub(crate) fn check_file(&self, size: u64) -> Result<(), Unreadable> {
        match size > self.file {
            true => Err(Unreadable(format!(
                "too large: the file has more than {}",
                self::size(self.file)
            ))),
            false => Ok(()),
        }
    }
}

/// A limit in words.
fn size(bytes: u64) -> String {
    match bytes.is_multiple_of(1 << 20) {
        true => format!("{} MiB", bytes >> 20),
        false => format!("{bytes} bytes"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn decodings_are_read_by_their_names() {
        for decoding in [Decoding::Scaled, Decoding::Exact] {
            assert_eq!(decoding.to_string().parse(), Ok(decoding));
        }
        assert_eq!(
            "half".parse::<Decoding>().unwrap_err().to_string(),
            r#"decode is "half", expected scaled or exact"#
        );
    }
}
