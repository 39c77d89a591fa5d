//! Files for the user, written again only if what they are made from changed, or if somebody changed them.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use luthier_artifact::{Artifact, Cache, Digest, FeatureRows, Manifest, Split, write_atomically};
use luthier_classify::Model;
use luthier_eval::Evaluation;
use luthier_extract::{DataSource, SkippedImages};

use crate::features_folder::{self, Index};
use crate::pipeline::{Extracted, load, open_table};
use crate::report;

/// Changes when the same artifacts are written out in another way.
const VERSION: u32 = 1;

/// The name of the model file.
pub(crate) const MODEL_FILE: &str = "model.safetensors";

/// Writes `features/`.
pub(crate) fn features(
    cache: &Cache,
    folder: &Path,
    source: &DataSource,
    manifest: (&Manifest, Digest),
    extracted: &Extracted,
) -> Result<()> {
    let (manifest, manifest_digest) = manifest;
    let Extracted {
        train, test, skipped, ..
    } = extracted;
    for (split, digest) in [(Split::Train, train), (Split::Test, test)] {
        let (features, labels) = features_folder::npy_paths(folder, split);
        once(cache, &[features, labels], &[*digest], || {
            features_folder::write_table(folder, split, &open_table(cache, digest)?)
        })?;
    }
    let place = std::path::absolute(source.folder(Split::Train)).context("current folder")?;
    let place = Digest::of(format!("{place:?} {source:?}").as_bytes());
    once(
        cache,
        &[features_folder::index_path(folder)],
        &[*train, *test, *skipped, manifest_digest, place],
        || {
            let (train, test) = (load::<FeatureRows>(cache, train)?, load::<FeatureRows>(cache, test)?);
            let skipped: SkippedImages = load(cache, skipped)?;
            features_folder::write_index(folder, &Index::new(source, manifest, &train, &test, &skipped)?)
        },
    )
}

/// Writes `models/model.safetensors`; the result is its path.
pub(crate) fn model(cache: &Cache, folder: &Path, digest: Digest) -> Result<PathBuf> {
    let path = folder.join(MODEL_FILE);
    once(cache, std::slice::from_ref(&path), &[digest], || {
        Ok(write_atomically(&path, &load::<Model>(cache, &digest)?.encode())?)
    })?;
    Ok(path)
}

/// Writes `reports/` from the evaluation and the features folder; the result is the path of the page.
pub(crate) fn report(
    cache: &Cache,
    folder: &Path,
    evaluation: Digest,
    model: Digest,
    features: &Path,
) -> Result<PathBuf> {
    let page = folder.join("report.html");
    let index = features_folder::index_path(features);
    let rows = Digest::of_file(&index).with_context(|| index.display().to_string())?;
    let files = [
        "report.html",
        "report.json",
        "classification_report.txt",
        "confusion_matrix.csv",
        "confusion_matrix.svg",
        "confusion_matrix.png",
        "misclassified.csv",
        "skipped.csv",
    ];
    once(
        cache,
        &files.map(|name| folder.join(name)),
        &[evaluation, model, rows],
        || {
            let (evaluation, model) = (load::<Evaluation>(cache, &evaluation)?, load::<Model>(cache, &model)?);
            report::write(folder, &evaluation, &model, &features_folder::read_index(features)?)?;
            Ok(())
        },
    )?;
    Ok(page)
}

/// Writes files unless all of them are still as they were written from the same sources.
fn once(cache: &Cache, paths: &[PathBuf], sources: &[Digest], write: impl FnOnce() -> Result<()>) -> Result<()> {
    let mut bytes = format!("{VERSION} {}", env!("CARGO_PKG_VERSION")).into_bytes();
    sources.iter().for_each(|digest| bytes.extend(digest.as_bytes()));
    let source = Digest::of(&bytes);
    let paths: Vec<PathBuf> = paths
        .iter()
        .map(|path| std::path::absolute(path).with_context(|| path.display().to_string()))
        .collect::<Result<_>>()?;
    for path in &paths {
        if !cache.is_exported(path, &source)? {
            write()?;
            return paths
                .iter()
                .try_for_each(|path| Ok(cache.remember_export(path, &source)?));
        }
    }
    Ok(())
}
