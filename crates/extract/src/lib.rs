//! From folders of photographs to ResNet-50 features.
//!
//! - [`scan`]: folders → [`Manifest`](luthier_artifact::Manifest), every image file with the digest of its bytes
//! - [`decode`] and [`Preprocess`]: bytes of any format → 224 × 224 RGB
//! - [`WeightsSource`]: weights by name, from a file, or untrained
//! - [`Extractor`]: batches through the network on libtorch, decoding beside it
//! - [`ExtractConfig`]: the stage, which embeds only the images that the cache does not know
//!
//! This crate knows nothing of statistics or reports, and is the only one that links libtorch.

mod decode;
mod device;
mod error;
mod extractor;
mod jpeg;
mod network;
mod observer;
mod onednn;
mod preprocess;
mod resize;
mod scan;
mod stage;
mod thumbnail;
mod weights;

pub use decode::{Unreadable, decode};
pub use device::{Device, Precision};
pub use error::{Error, Result};
pub use extractor::{Embedded, Extractor, ExtractorConfig, ImageFile};
pub use network::WIDTH;
pub use observer::Observer;
pub use preprocess::{Preprocess, Resize};
pub use scan::{DataSource, Rehash, Scan, images_below, scan};
pub use stage::{ExtractConfig, Extraction, SkippedImages};
pub use thumbnail::thumbnail;
pub use weights::{NamedWeights, WeightsSource, WeightsStore};
