//! From folders of photographs to ResNet-50 features.
//!
//! - [`scan`]: folders → [`Manifest`](luthier_artifact::Manifest), every image file with the digest of its bytes
//! - [`decode`] and [`Preprocess`]: bytes of any format → 224 × 224 RGB
//! - [`WeightsSource`]: weights by name, from a file, or untrained
//! - [`Extractor`]: lanes that decode images and take them through the network on libtorch
//! - [`ExtractConfig`]: the stage, which embeds only the images that the cache does not know
//!
//! This crate knows nothing of statistics or reports, and is the only one that links libtorch.

mod bridge;
mod decode;
mod device;
mod error;
mod extractor;
mod jpeg;
mod lanes;
mod network;
mod perceptual_hash;
mod preprocess;
mod resize;
mod scan;
mod stage;
mod thumbnail;
mod views;
mod weights;
mod winograd;

pub use decode::{Decoding, Unreadable, decode};
pub use device::{Device, Precision};
pub use error::{Error, Result};
pub use extractor::{Embedded, Extractor, ExtractorConfig, ImageFile};
pub use luthier_artifact::Observer;
pub use network::WIDTH;
pub use perceptual_hash::{PERCEPTUAL_HASH, PerceptualHash};
pub use preprocess::{Preprocess, View};
pub use scan::{DataSource, Rehash, Scan, images_below, scan};
pub use stage::{ExtractConfig, Extraction, SkippedImages};
pub use thumbnail::thumbnail;
pub use views::{Combine, Views};
pub use weights::{NamedWeights, WeightsSource, WeightsStore};
