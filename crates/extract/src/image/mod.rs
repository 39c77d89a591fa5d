//! From the bytes of an image file to the pixels that the network takes.
//!
//! [`decode`](decode::decode) makes upright RGB of any format: `formats` has a module for each,
//! `exif` knows which way is up, and `pixels` makes RGB of other colours.
//! [`Preprocess`](preprocess::Preprocess) makes a [`View`](view::View) of it, with the arithmetic
//! of `resize`. Beside it an image gets a [`PerceptualHash`](perceptual_hash::PerceptualHash), and
//! for the report a [`thumbnail`](thumbnail::thumbnail).

pub(crate) mod decode;
pub(crate) mod decoding;
mod exif;
pub(crate) mod formats;
pub(crate) mod framing;
pub(crate) mod input_size;
pub(crate) mod perceptual_hash;
mod pixels;
pub(crate) mod preprocess;
mod resize;
pub(crate) mod thumbnail;
pub(crate) mod view;
