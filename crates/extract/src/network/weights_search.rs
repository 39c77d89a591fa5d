//! Finds the weights file of a model.

use std::ffi::OsStr;
use std::fs;
use std::path::{Path, PathBuf};

use luthier_artifact::{entries, write_atomically};

use super::weights::WeightsSource;
use super::weights_store::WeightsStore;

/// The endings of weights' files.
const ENDINGS: [&str; 4] = ["safetensors", "pth", "pt", "bin"];

/// The sizes of files that may hold ResNet-50, in bytes: 23.5 million numbers, with 2 bytes or with more around them.
const SIZES: std::ops::Range<u64> = 40 << 20..1 << 30;

/// How PyTorch names the files of ResNet-50 that it downloads.
const HUB_NAME: &str = "resnet50";

impl WeightsStore {
    /// Weights with this SHA-256: those that are known by name and at hand; else the file that
    /// [`remember`](Self::remember) was told of; else a file in the folder `beside`; else what PyTorch and Hugging Face's
    /// libraries have downloaded; else those that are known by name, which will be downloaded.
    ///
    /// A file that is found has been read, and has this digest.
    pub fn find(&self, sha256: &str, beside: &Path) -> Option<WeightsSource> {
        // It comes from a model file, and becomes part of paths.
        if sha256.len() != 64 || !sha256.bytes().all(|byte| byte.is_ascii_hexdigit()) {
            return None;
        }
        let known = WeightsSource::known(sha256);
        let is_at_hand = match &known {
            Some(WeightsSource::Named(named)) => self.has(named),
            known => known.is_some(),
        };
        if is_at_hand {
            return known;
        }
        let is_weights = |path: &PathBuf| {
            let ending = path.extension().and_then(OsStr::to_str);
            ending.is_some_and(|ending| ENDINGS.contains(&ending))
        };
        let (beside, remembered) = (files(beside, is_weights), self.remembered(sha256));
        let downloaded = self.downloaded(sha256);
        let is_plausible = |path: &PathBuf| fs::metadata(path).is_ok_and(|found| SIZES.contains(&found.len()));
        let is_found = |file: &WeightsSource| match file.sha256() {
            Ok(found) => found == sha256,
            Err(error) => {
                tracing::debug!("{error}");
                false
            }
        };
        (remembered.into_iter().chain(beside).chain(downloaded))
            .filter(is_plausible)
            .map(WeightsSource::File)
            .find(is_found)
            .or(known)
    }

    /// Notes where a file of weights is, so that [`find`](Self::find) finds it for a model that was trained with it.
    pub fn remember(&self, weights: &WeightsSource) {
        let WeightsSource::File(path) = weights else { return };
        let (Ok(path), Ok(sha256)) = (fs::canonicalize(path), weights.sha256()) else {
            return;
        };
        if self.remembered(&sha256).is_some_and(|known| known == path) {
            return;
        }
        // Without the note, the user must name the file again.
        if let Err(error) = write_atomically(&self.note(&sha256), path.as_os_str().as_encoded_bytes()) {
            tracing::debug!("{error}: it is not noted where these weights are");
        }
    }

    /// The file that holds the path of the weights with this SHA-256.
    fn note(&self, sha256: &str) -> PathBuf {
        self.folder().join("files").join(sha256)
    }

    #[cfg(unix)]
    fn remembered(&self, sha256: &str) -> Option<PathBuf> {
        use std::os::unix::ffi::OsStringExt as _;
        let path = fs::read(self.note(sha256)).ok()?;
        Some(std::ffi::OsString::from_vec(path).into())
    }

    #[cfg(not(unix))]
    fn remembered(&self, sha256: &str) -> Option<PathBuf> {
        fs::read_to_string(self.note(sha256)).ok().map(PathBuf::from)
    }

    /// What other programs have downloaded and may have this SHA-256.
    fn downloaded(&self, sha256: &str) -> impl Iterator<Item = PathBuf> {
        let is_resnet50 = |path: &PathBuf| {
            let name = path.file_name().and_then(OsStr::to_str);
            name.is_some_and(|name| name.starts_with(HUB_NAME))
        };
        let torch = self.torch_checkpoints().map(|folder| files(&folder, is_resnet50));
        let models = self.hugging_face().map(|folder| files(folder, |_| true));
        // A large file is named by its SHA-256.
        let blobs = models
            .into_iter()
            .flatten()
            .map(|model| model.join("blobs").join(sha256));
        torch.into_iter().flatten().chain(blobs.collect::<Vec<_>>())
    }
}

/// The paths in a folder that are wanted, in the order of their names. There are none where the folder cannot be read.
fn files(folder: &Path, is_wanted: impl FnMut(&PathBuf) -> bool) -> Vec<PathBuf> {
    let mut paths = entries(folder).unwrap_or_default();
    paths.retain(is_wanted);
    paths.sort();
    paths
}
