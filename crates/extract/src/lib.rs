//! From folders of photographs to ResNet-50 features.
//!
//! - [`scan`]: folders → [`Manifest`](luthier_artifact::Manifest), every image file with the digest
//!   of its bytes
//! - `image/`, with [`decode`] and [`Preprocess`]: bytes of any format → RGB of 224 × 224 pixels
//! - `network/`: [`WeightsSource`], [`Device`] and ResNet-50 on libtorch
//! - [`Extractor`]: threads that decode images and take them through the network
//! - [`CachedExtractor`]: the same for images without a data set, by way of the cache
//! - [`ExtractConfig`]: the stage, which embeds only the images that the cache does not know
//!
//! This crate knows nothing of statistics or reports, and is the only one that links libtorch.

mod cached;
mod error;
mod extractor;
mod image;
mod network;
mod pooling;
mod scan;
mod stage;
mod views;

pub use crate::image::decode::{decode, decode_within};
pub use crate::image::decoding::{Decoding, Limits, Unreadable};
pub use crate::image::formats::jpeg::JPEG_HAS_SIMD;
pub use crate::image::framing::Framing;
pub use crate::image::input_size::InputSize;
pub use crate::image::perceptual_hash::{PERCEPTUAL_HASH, PerceptualHash};
pub use crate::image::preprocess::Preprocess;
pub use crate::image::thumbnail::{THUMBNAIL_VERSION, thumbnail};
pub use crate::image::view::View;
pub use cached::{CachedExtractor, ImageFeatures};
pub use error::{Error, Result};
pub use extractor::{Embedded, Extractor, ExtractorConfig, ImageInput, ImageSource, keep_torch_threads};
pub use luthier_artifact::{Observer, Task};
pub use network::calibration::sample_images;
pub use network::device::{Device, Precision};
pub use network::portable::{
    MEAN, NamedTensor, PortableBlock, PortableConv, PortableNetwork, STANDARD_DEVIATION, state_dict,
};
pub use network::resnet50::WIDTH;
pub use network::weights::{NamedWeights, WeightsSource};
pub use network::weights_store::WeightsStore;
pub use pooling::Pooling;
pub use scan::{
    DataSource, Decided, DecisionLog, FoundImages, ImageFiles, Layout, NewDecision, PassedOver, Rehash, Scan, Verdict,
    decided, decided_classes, find_images, images_below, left_out, scan,
};
pub use stage::{ExtractConfig, ExtractContext, Extraction, SkippedImages};
pub use views::{Combine, FeatureKind, Views};
