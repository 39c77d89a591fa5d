use std::path::{Path, PathBuf};

use super::parameters::Parameters;
use super::sha256::sha256_of_same_file;
use crate::{Error, Result};

/// Weights that are known by name.
#[derive(Debug, PartialEq, Eq)]
pub struct NamedWeights {
    /// The name, as `--weights` takes it.
    pub name: &'static str,
    /// What the weights are, where they come from, and their licence.
    pub description: &'static str,
    /// SHA-256 of the first of their files, 64 hexadecimal digits. It stands for the weights in keys and models,
    /// whichever file was read.
    pub sha256: &'static str,
    /// The safetensors file.
    pub(super) hub: WeightsFile,
    /// Another file with the same tensors: the checkpoint that torchvision downloads.
    pub(super) checkpoint: Option<WeightsFile>,
}

/// A file of weights on a server.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct WeightsFile {
    /// The server's address, unless a mirror is set.
    pub(super) server: &'static str,
    /// The path on the server. Of a hub: `owner/model/resolve/revision/file`.
    pub(super) path: &'static str,
    /// SHA-256 of the file, 64 hexadecimal digits. A file with another digest is refused.
    pub(super) sha256: &'static str,
}

impl WeightsFile {
    /// The last part of the path.
    pub(super) fn name(&self) -> &'static str {
        self.path.rsplit('/').next().unwrap_or(self.path)
    }

    /// `safetensors` or `pth`.
    pub(super) fn ending(&self) -> &'static str {
        self.name().rsplit_once('.').map_or("safetensors", |(_, ending)| ending)
    }
}

impl NamedWeights {
    /// Weights that the hub serves at `path` and whose SHA-256 is pinned.
    pub const fn new(name: &'static str, description: &'static str, path: &'static str, sha256: &'static str) -> Self {
        NamedWeights {
            name,
            description,
            sha256,
            hub: WeightsFile {
                server: "https://huggingface.co",
                path,
                sha256,
            },
            checkpoint: None,
        }
    }

    /// The same weights, which PyTorch's server has at `path` in a checkpoint with this SHA-256. It is asked if the hub
    /// cannot be reached.
    #[must_use]
    pub const fn or_checkpoint(self, path: &'static str, sha256: &'static str) -> Self {
        NamedWeights {
            checkpoint: Some(WeightsFile {
                server: "https://download.pytorch.org",
                path,
                sha256,
            }),
            ..self
        }
    }

    /// All known weights; the first are the default.
    pub const ALL: [NamedWeights; 2] = [
        NamedWeights::new(
            "resnet50-imagenet1k-v1",
            "torchvision's IMAGENET1K_V1, 76.1 % top-1, BSD-3-Clause, 102 MB",
            "timm/resnet50.tv_in1k/resolve/78f3ecfdb38e06d9b8397f662e7ab8fee96026fa/model.safetensors",
            "5d061a3c593d795bfe682d9b152bafbcf550579873492def3515b46db1189888",
        )
        .or_checkpoint(
            "models/resnet50-0676ba61.pth",
            "0676ba61b6795bbe1773cffd859882e5e297624d384b6993f7c9e683e722fb8a",
        ),
        // The branch `main`, because we do not know the revision that has this digest. The digest alone pins the bytes:
        // if the file is replaced there, the download is refused (`Error::DownloadDigest`), until someone names the old
        // revision here. Weights that were fetched before, and mirrors, are not affected.
        NamedWeights::new(
            "resnet50-imagenet1k-a1",
            "timm's \"ResNet strikes back\" recipe A1, 80.2 % top-1, Apache-2.0, 102 MB",
            "timm/resnet50.a1_in1k/resolve/main/model.safetensors",
            "773525d5821de224f8f30c33377b7a795d7863e08522698200d3217d3f2a41bb",
        ),
    ];

    /// The files that hold these weights, the best first.
    pub(super) fn files(&self) -> impl Iterator<Item = &WeightsFile> {
        std::iter::once(&self.hub).chain(&self.checkpoint)
    }
}

static NAMED: [NamedWeights; 2] = NamedWeights::ALL;

/// Which weights the network gets.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum WeightsSource {
    /// Known weights, downloaded when they are first needed.
    Named(&'static NamedWeights),
    /// A safetensors file, or a PyTorch checkpoint, with torchvision's tensor names, in F32, F16 or BF16.
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

    /// SHA-256 of the weights' file, as 64 hexadecimal digits. For any file of named weights it is that of the first of
    /// their files. [`Untrained`](WeightsSource::Untrained) has no file: its SHA-256 is that of its recipe.
    ///
    /// # Errors
    /// [`Error::File`] if the file cannot be read.
    pub fn sha256(&self) -> Result<String> {
        match self {
            WeightsSource::Named(named) => Ok(named.sha256.to_owned()),
            WeightsSource::File(path) => {
                let found = sha256_of_same_file(path)?;
                let is_of = |named: &&NamedWeights| named.files().any(|file| file.sha256 == found);
                Ok(NAMED
                    .iter()
                    .find(is_of)
                    .map_or(found.clone(), |named| named.sha256.to_owned()))
            }
            WeightsSource::Untrained => Ok(Parameters::untrained_sha256()),
        }
    }
}
