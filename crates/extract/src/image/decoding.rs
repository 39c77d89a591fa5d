//! What callers ask of the decoder, and why it may refuse.

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

impl Unreadable {
    /// An image whose pixels take more than [`MAX_ALLOC`].
    pub(crate) fn too_large(width: u32, height: u32) -> Self {
        Unreadable(format!(
            "too large: {width} × {height} pixels take more than {} MiB",
            MAX_ALLOC >> 20
        ))
    }
}

/// The size in bytes of the largest file that is read to be decoded. The largest photographs of any
/// camera are below a third of it.
pub(crate) const MAX_FILE: u64 = 512 << 20;

/// The most memory that decoding one image may take, in bytes.
///
/// It is enough for 170 megapixels, or fewer in a progressive JPEG, whose coefficients count too.
/// It is too little for a file that unpacks to a thousand times its size.
pub(crate) const MAX_ALLOC: u64 = 512 << 20;

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
