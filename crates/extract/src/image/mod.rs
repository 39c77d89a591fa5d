//! From the bytes of an image file to the pixels that the network takes.
//!
//! [`decode`](decode::decode) makes RGB of any format (JPEGs go through `jpeg`).
//! [`Preprocess`](preprocess::Preprocess) makes a [`View`](view::View) of it, with the arithmetic
//! of `resize`. Beside it an image gets a [`PerceptualHash`](perceptual_hash::PerceptualHash), and
//! for the report a [`thumbnail`](thumbnail::thumbnail).

pub(crate) mod decode;
pub(crate) mod decoding;
mod jpeg;
pub(crate) mod perceptual_hash;
pub(crate) mod preprocess;
mod resize;
pub(crate) mod thumbnail;
pub(crate) mod view;
