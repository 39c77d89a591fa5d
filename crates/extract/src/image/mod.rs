//! From the bytes of an image file to the pixels that the network takes, and to what people see of it.

pub(crate) mod decode;
mod jpeg;
pub(crate) mod perceptual_hash;
pub(crate) mod preprocess;
mod resize;
pub(crate) mod thumbnail;
