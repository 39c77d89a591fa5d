use std::path::{Path, PathBuf};

use super::parameters::Parameters;
use super::sha256::sha256_of_file;
use crate::{Error, Result};

/// Weights that are known by name.
#[derive(Debug, PartialEq, Eq)]
pub struct NamedWeights {
    /// The name, as `--weights` takes it.
    pub name: &'static str,
    /// What the weights are, where they come from, and their licence.
    pub description: &'static str,
    /// The path of the file on the hub that serves it: `owner/model/resolve/revision/file`.
    pub(super) path: &'static str,
    /// SHA-256 of the file, 64 hexadecimal digits. A file with another digest is refused.
    pub sha256: &'static str,
}

impl NamedWeights {
    /// Weights that the hub serves at `path` and whose SHA-256 is pinned.
    pub const fn new(name: &'static str, description: &'static str, path: &'static str, sha256: &'static str) -> Self {
        NamedWeights {
            name,
            description,
            path,
            sha256,
        }
    }

    /// All known weights; the first are the default.
    pub const ALL: [NamedWeights; 2] = [
        NamedWeights {
            name: "resnet50-imagenet1k-v1",
            description: "torchvision's IMAGENET1K_V1, 76.1 % top-1, BSD-3-Clause, 102 MB",
            path: "timm/resnet50.tv_in1k/resolve/78f3ecfdb38e06d9b8397f662e7ab8fee96026fa/model.safetensors",
            sha256: "5d061a3c593d795bfe682d9b152bafbcf550579873492def3515b46db1189888",
        },
        NamedWeights {
            name: "resnet50-imagenet1k-a1",
            description: "timm's \"ResNet strikes back\" recipe A1, 80.2 % top-1, Apache-2.0, 102 MB",
            // The branch `main`, because we do not know the revision that has this digest. The
            // digest alone pins the bytes: if the file is replaced there, the download is refused
            // (`Error::DownloadDigest`), until someone names the old revision here. Weights that
            // were fetched before, and mirrors, are not affected.
            path: "timm/resnet50.a1_in1k/resolve/main/model.safetensors",
            sha256: "773525d5821de224f8f30c33377b7a795d7863e08522698200d3217d3f2a41bb",
        },
    ];
}

static NAMED: [NamedWeights; 2] = NamedWeights::ALL;

/// Which weights the network gets.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum WeightsSource {
    /// Known weights, downloaded when they are first needed.
    Named(&'static NamedWeights),
    /// A safetensors file with torchvision's tensor names, in F32, F16 or BF16.
    File(PathBuf),
    /// Seeded He initialisation: no training, the same numbers on every machine.
    Untrained,
}

impl WeightsSource {
    /// Reads a name, the path of a file, or `untrained`.
    ///
    /// # Errors
    /// [`Error::UnknownWeights`] if the text is none of the three.
    pub fn parse(text: &str) -> Result<Self> {
        if text == "untrained" {
            return Ok(WeightsSource::Untrained);
        }
        if let Some(named) = NAMED.iter().find(|named| named.name == text) {
            return Ok(WeightsSource::Named(named));
        }
        if Path::new(text).is_file() {
            return Ok(WeightsSource::File(text.into()));
        }
        let known: Vec<_> = NAMED.iter().map(|named| named.name).collect();
        Err(Error::UnknownWeights {
            name: text.to_owned(),
            known: known.join(", "),
        })
    }

    /// The named or untrained weights with this SHA-256, if there are any.
    pub fn known(sha256: &str) -> Option<Self> {
        let named = NAMED
            .iter()
            .find(|named| named.sha256 == sha256)
            .map(WeightsSource::Named);
        named.or_else(|| (Parameters::untrained_sha256() == sha256).then_some(WeightsSource::Untrained))
    }

    /// A name for people: the known name, the file's name without its extension, or `untrained`.
    pub fn name(&self) -> String {
        match self {
            WeightsSource::Named(named) => named.name.to_owned(),
            WeightsSource::File(path) => path.file_stem().unwrap_or_default().to_string_lossy().into_owned(),
            WeightsSource::Untrained => "untrained".to_owned(),
        }
    }

    /// SHA-256 of the weights' file, as 64 hexadecimal digits.
    /// [`Untrained`](WeightsSource::Untrained) has no file: its SHA-256 is that of its recipe.
    ///
    /// # Errors
    /// [`Error::File`] if the file cannot be read.
    pub fn sha256(&self) -> Result<String> {
        match self {
            WeightsSource::Named(named) => Ok(named.sha256.to_owned()),
            WeightsSource::File(path) => sha256_of_file(path),
            WeightsSource::Untrained => Ok(Parameters::untrained_sha256()),
        }
    }
}
