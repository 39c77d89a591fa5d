//! Files for the user, written again only if what they are made from changed, or if somebody changed them.

use std::borrow::Cow;
use std::path::{Path, PathBuf, absolute};

use anyhow::{Context, Result};
use luthier_artifact::{Artifact, Digest, FeatureRows, Manifest, Split, Written, remove_unfinished, write_atomically};
use luthier_cache::Cache;
use luthier_classify::{HeldOutPredictions, Model};
use luthier_eval::{REPORT_FILES, StageTime};
use luthier_extract::{DataSource, SkippedImages};

use crate::features_folder::{self, Index};
use crate::pipeline::{Evaluated, Extracted, Trained, load, open_table};
use crate::report;

/// Changes when the same artifacts are written out in another way.
const VERSION: u32 = 2;

/// The name of the model file.
pub(crate) const MODEL_FILE: &str = "model.safetensors";

/// The name of the file beside the model with what cross-validation's models say of training images.
pub(crate) const HELD_OUT_FILE: &str = "held_out.safetensors";

/// What `features.json` says, and the digest of all that it is made from.
pub(crate) struct Rows<'a> {
    pub digest: Digest,
    pub index: Box<dyn Fn() -> Result<Cow<'a, Index>> + 'a>,
}

impl<'a> Rows<'a> {
    /// As they come out of the extract stage.
    pub(crate) fn extracted(
        cache: &'a Cache,
        source: &'a DataSource,
        manifest: (&'a Manifest, Digest),
        extracted: &'a Extracted,
    ) -> Result<Self> {
        let (manifest, manifest_digest) = manifest;
        let Extracted {
            train, test, skipped, ..
        } = extracted;
        let place = |split| absolute(source.folder(split)).context("current folder");
        let place = format!("{:?} {:?} {source:?}", place(Split::Train)?, place(Split::Test)?);
        let place = Digest::of(place.as_bytes());
        Ok(Rows {
            digest: digest_of(&[*train, *test, *skipped, manifest_digest, place]),
            index: Box::new(move || {
                let (train, test) = (load::<FeatureRows>(cache, train)?, load::<FeatureRows>(cache, test)?);
                let skipped: SkippedImages = load(cache, skipped)?;
                Index::new(source, manifest, &train, &test, &skipped).map(Cow::Owned)
            }),
        })
    }

    /// As they stand in a folder of features. `digest` is that of `features.json`.
    pub(crate) fn read(index: &'a Index, digest: Digest) -> Self {
        Rows {
            digest,
            index: Box::new(move || Ok(Cow::Borrowed(index))),
        }
    }
}

/// Writes `features/`.
pub(crate) fn features(cache: &Cache, folder: &Path, rows: &Rows<'_>, extracted: &Extracted) -> Result<()> {
    tidy(folder);
    let [train_hashes, test_hashes] = &extracted.hashes;
    let splits = [
        (Split::Train, &extracted.train, train_hashes),
        (Split::Test, &extracted.test, test_hashes),
    ];
    for (split, digest, hashes) in splits {
        let (features, labels) = features_folder::npy_paths(folder, split);
        once(cache, &[features, labels], &[*digest], || {
            features_folder::write_table(folder, split, &open_table(cache, digest)?)
        })?;
        let path = features_folder::hashes_path(folder, split);
        once(cache, std::slice::from_ref(&path), &[*hashes], || {
            Ok(vec![features_folder::write_features(
                &path,
                &open_table(cache, hashes)?,
            )?])
        })?;
    }
    once(cache, &[features_folder::index_path(folder)], &[rows.digest], || {
        let index = (rows.index)()?;
        Ok(vec![features_folder::write_index(folder, &index)?])
    })
}

/// Writes `models/`; the result is the path of the model.
pub(crate) fn model(cache: &Cache, folder: &Path, trained: Trained) -> Result<PathBuf> {
    tidy(folder);
    let Trained { model, held_out } = trained;
    let (path, beside) = (folder.join(MODEL_FILE), folder.join(HELD_OUT_FILE));
    // First what is nothing without the model.
    once(cache, std::slice::from_ref(&beside), &[held_out], || {
        let held_out = load::<HeldOutPredictions>(cache, &held_out)?;
        Ok(vec![write_atomically(&beside, &held_out.encode())?])
    })?;
    once(cache, std::slice::from_ref(&path), &[model], || {
        Ok(vec![write_atomically(&path, &load::<Model>(cache, &model)?.encode())?])
    })?;
    Ok(path)
}

/// Writes `reports/`; the result is the path of the page. Another run's times are no reason to write it again.
pub(crate) fn report(
    cache: &Cache,
    folder: &Path,
    evaluated: Evaluated,
    model: Digest,
    rows: &Rows<'_>,
    stages: &[StageTime],
) -> Result<PathBuf> {
    tidy(folder);
    let Evaluated { evaluation, findings } = evaluated;
    let page = folder.join("report.html");
    once(
        cache,
        &REPORT_FILES.map(|name| folder.join(name)),
        &[evaluation, findings, model, rows.digest],
        || {
            let model = load::<Model>(cache, &model)?;
            let (evaluation, findings) = (load(cache, &evaluation)?, load(cache, &findings)?);
            let index = (rows.index)()?;
            report::write(folder, (&evaluation, &findings), &model, &index, stages)
        },
    )?;
    Ok(page)
}

/// Removes what killed runs left. What cannot be removed harms nobody.
fn tidy(folder: &Path) {
    if let Err(error) = remove_unfinished(folder) {
        tracing::debug!("{error}");
    }
}

/// Writes files unless all of them are still as they were written from the same sources.
fn once(
    cache: &Cache,
    paths: &[PathBuf],
    sources: &[Digest],
    write: impl FnOnce() -> Result<Vec<Written>>,
) -> Result<()> {
    let version = Digest::of(format!("{VERSION} {}", env!("CARGO_PKG_VERSION")).as_bytes());
    let source = digest_of(&[&[version], sources].concat());
    let absolute = |path: &Path| absolute(path).with_context(|| path.display().to_string());
    for path in paths {
        if !cache.is_exported(&absolute(path)?, &source)? {
            for Written { path, stat } in write()? {
                cache.remember_export(&absolute(&path)?, &stat, &source)?;
            }
            break;
        }
    }
    Ok(())
}

fn digest_of(digests: &[Digest]) -> Digest {
    let bytes: Vec<u8> = digests.iter().flat_map(|digest| *digest.as_bytes()).collect();
    Digest::of(&bytes)
}
