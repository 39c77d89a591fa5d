//! A folder with a model and its weights, which needs nothing else but Luthier.

use std::fs;
use std::path::Path;

use luthier::{MODEL_FILE, Predictor, PredictorConfig};
use luthier_artifact::{Observer, folder_of, sync_folder, write_atomically};
use luthier_extract::{WeightsSource, WeightsStore};

use crate::check::{self, Difference};
use crate::{Error, Result};

/// Makes the folder, and gives the size of its files in bytes. The weights are a copy of their file.
pub(crate) fn write(
    model: &Path,
    output: &Path,
    predictor: &Predictor,
    store: &WeightsStore,
    config: &PredictorConfig,
    observer: &dyn Observer,
) -> Result<(u64, Difference)> {
    if output.symlink_metadata().is_ok() {
        return Err(Error::Exists {
            path: output.to_owned(),
        });
    }
    let weights = match &predictor.extractor().weights {
        WeightsSource::Named(named) => Some(store.fetch(named, observer)?),
        WeightsSource::File(path) => Some(path.clone()),
        WeightsSource::Untrained => None,
    };
    // Beside the folder to be: the finished one only changes its name.
    let place = tempfile::tempdir_in(folder_of(output)).map_err(Error::io(output))?;
    let folder = place.path().join("bundle");
    fs::create_dir(&folder).map_err(Error::io(&folder))?;
    let mut size = 0;
    // With the permissions of a new file, and on the disk before the folder gets its name.
    let mut copy = |from: &Path, name: &Path| {
        let bytes = fs::read(from).map_err(Error::io(from))?;
        size += bytes.len() as u64;
        write_atomically(&folder.join(name), &bytes)?;
        Ok::<(), Error>(())
    };
    copy(model, MODEL_FILE.as_ref())?;
    if let Some(weights) = &weights {
        let ending = weights.extension().unwrap_or("safetensors".as_ref());
        copy(weights, &Path::new("weights").with_extension(ending))?;
    }
    // With nothing at hand but the folder.
    let alone = WeightsStore::new(place.path().to_owned(), None);
    let config = PredictorConfig {
        weights: None,
        ..config.clone()
    };
    let bundled = Predictor::open(&folder.join(MODEL_FILE), &alone, None, &config, observer)?;
    let difference = check::model(predictor, &bundled)?;
    difference.check()?;
    fs::rename(&folder, output).map_err(Error::io(output))?;
    sync_folder(folder_of(output)).map_err(Error::io(output))?;
    Ok((size, difference))
}
