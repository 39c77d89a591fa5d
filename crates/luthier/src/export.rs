//! Files for the user, written again only if what they are made from changed, or if somebody changed them.

use std::borrow::Cow;
use std::path::{Path, PathBuf, absolute};
use std::time::SystemTime;

use luthier_artifact::{Artifact, Digest, FeatureRows, ImageRows, Split, Written, remove_unfinished, write_atomically};
use luthier_cache::Cache;
use luthier_classify::{HeldOutPredictions, Model};
use luthier_eval::{REPORT_FILES, StageTime};
use luthier_extract::{DataSource, Decoding, PerceptualHash, Scan, SkippedImages};

use crate::features_folder::{self, BySplit, FeaturesJson, TableDigests, digest_of};
use crate::report;
use crate::results::{Extracted, Found, Trained, features_of, load};
use crate::runner::Runner;
use crate::thumbnails::{THUMBNAILS, Thumbnails};
use crate::{Error, Result};

/// Changes when the same artifacts are written out in another way.
const VERSION: u32 = 5;

/// The name of the model file.
pub const MODEL_FILE: &str = "model.safetensors";

/// The name of the file beside the model with what cross-validation's models say of training images.
pub(crate) const HELD_OUT_FILE: &str = "held_out.safetensors";

/// The name of the report's page.
pub(crate) const PAGE_FILE: &str = "report.html";

/// What `features.json` says of the rows, and the digest of all that it is made from.
pub(crate) struct RowNames<'a> {
    pub digest: Digest,
    pub json: Box<dyn Fn() -> Result<Cow<'a, FeaturesJson>> + 'a>,
}

impl<'a> RowNames<'a> {
    /// As they come out of the extract stage.
    pub(crate) fn extracted(
        cache: &'a Cache,
        source: &'a DataSource,
        scan: (&'a Scan, Digest),
        extracted: &'a Extracted,
    ) -> Result<Self> {
        let (scan, manifest_digest) = scan;
        let (manifest, decided) = (&scan.manifest, &scan.decided);
        let Extracted {
            train,
            test,
            images,
            skipped,
            ..
        } = extracted;
        let place = |split| absolute(source.folder(split)).map_err(Error::io(source.folder(split)));
        // The decisions count, wherever their file is.
        let layout = DataSource {
            decisions: None,
            ..source.clone()
        };
        let counts = [decided.n_changed, decided.n_excluded, decided.n_right, decided.n_wrong];
        let place = format!(
            "{:?} {:?} {layout:?} {counts:?}",
            place(Split::Train)?,
            place(Split::Test)?
        );
        let place = Digest::of(place.as_bytes());
        let [checked, kept] = [&decided.checked, &decided.kept].map(|images| digest_of(images));
        Ok(RowNames {
            digest: digest_of(&[*train, *test, *images, *skipped, manifest_digest, place, checked, kept]),
            json: Box::new(move || {
                let rows = [load::<FeatureRows>(cache, train)?, load::<FeatureRows>(cache, test)?];
                let images: ImageRows = load(cache, images)?;
                let digests = |features: &Digest, rows: &FeatureRows| TableDigests {
                    features: *features,
                    hashes: digest_of(&hashes_of(&images, rows)),
                };
                let digests = BySplit {
                    train: digests(train, &rows[0]),
                    test: digests(test, &rows[1]),
                };
                let skipped: SkippedImages = load(cache, skipped)?;
                let rows = [&rows[0], &rows[1]];
                FeaturesJson::new(source, manifest, rows, digests, &skipped, decided).map(Cow::Owned)
            }),
        })
    }

    /// As they stand in a folder of features. `digest` is the digest of `features.json`.
    pub(crate) fn read(json: &'a FeaturesJson, digest: Digest) -> Self {
        RowNames {
            digest,
            json: Box::new(move || Ok(Cow::Borrowed(json))),
        }
    }
}

/// The digest of the perceptual hash of each row.
fn hashes_of(images: &ImageRows, rows: &FeatureRows) -> Vec<Digest> {
    let hash = |image| images.hash_of(image).expect("every row is of one of the images");
    rows.images.iter().map(hash).collect()
}

/// Writes `features/`, `features.json` last.
pub(crate) fn features(cache: &Cache, folder: &Path, names: &RowNames<'_>, extracted: &Extracted) -> Result<()> {
    tidy(folder);
    for (split, digest) in [(Split::Train, &extracted.train), (Split::Test, &extracted.test)] {
        let (features, labels) = features_folder::npy_paths(folder, split);
        once(cache, &[features, labels], &[*digest], || {
            let rows: FeatureRows = load(cache, digest)?;
            features_folder::write_table(folder, split, &rows.labels, &features_of(cache, digest, &rows))
        })?;
        write_hashes(
            cache,
            &features_folder::hashes_path(folder, split),
            digest,
            &extracted.images,
        )?;
    }
    once(cache, &[features_folder::json_path(folder)], &[names.digest], || {
        let json = (names.json)()?;
        Ok(vec![features_folder::write_json(folder, &json)?])
    })
}

/// Writes the features of images without labels, `features.json` last.
pub(crate) fn unlabelled_features(
    cache: &Cache,
    folder: &Path,
    names: &RowNames<'_>,
    extracted: &Extracted,
) -> Result<()> {
    tidy(folder);
    let (table, images) = (&extracted.train, &extracted.images);
    let path = folder.join(features_folder::FEATURES_FILE);
    once(cache, std::slice::from_ref(&path), &[*table], || {
        let features = features_of(cache, table, &load(cache, table)?);
        Ok(vec![features_folder::write_rows(&path, &features)?])
    })?;
    write_hashes(cache, &folder.join(features_folder::HASHES_FILE), table, images)?;
    once(cache, &[features_folder::json_path(folder)], &[names.digest], || {
        let json = (names.json)()?;
        Ok(vec![features_folder::write_json(folder, &json.unlabelled())?])
    })
}

/// Writes the perceptual hash of each row of a table.
fn write_hashes(cache: &Cache, path: &Path, table: &Digest, images: &Digest) -> Result<()> {
    // The table says which images it has, and how they were decoded: the images of the other split do not matter.
    let [scaled, exact] = [Decoding::Scaled, Decoding::Exact].map(PerceptualHash::descriptor);
    once(cache, &[path.to_owned()], &[*table, scaled, exact], || {
        let (found, rows) = (load::<ImageRows>(cache, images)?, load(cache, table)?);
        let hashes = cache.stored_vectors(*images, hashes_of(&found, &rows), found.n_hash_values);
        Ok(vec![features_folder::write_rows(path, &hashes)?])
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

/// Writes the [`report`] of a run that ends. It takes its pictures from the last report of the project, where that has
/// them, and keeps its own.
pub(crate) fn report_of_run(
    runner: &mut Runner<'_>,
    folder: &Path,
    found: &Found,
    names: &RowNames<'_>,
    now: SystemTime,
) -> Result<PathBuf> {
    let thumbnails = Thumbnails::after(runner.cache, runner.previous(THUMBNAILS)?, runner.observer);
    let page = report(runner.cache, folder, found, names, &runner.times()?, now, &thumbnails)?;
    if let Some(key) = thumbnails.store() {
        runner.uses(key);
    }
    Ok(page)
}

/// Writes `reports/`; the result is the path of the page. Another run's times are no reason to write it again.
pub(crate) fn report(
    cache: &Cache,
    folder: &Path,
    found: &Found,
    names: &RowNames<'_>,
    stages: &[StageTime],
    now: SystemTime,
    thumbnails: &Thumbnails<'_>,
) -> Result<PathBuf> {
    tidy(folder);
    let page = folder.join(PAGE_FILE);
    let mut sources = found.digests();
    sources.push(names.digest);
    once(cache, &REPORT_FILES.map(|name| folder.join(name)), &sources, || {
        let json = (names.json)()?;
        report::write(folder, cache, found, &json, stages, now, thumbnails)
    })?;
    Ok(page)
}

/// Removes what killed runs left. What cannot be removed harms nobody.
pub(crate) fn tidy(folder: &Path) {
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
    let absolute = |path: &Path| absolute(path).map_err(Error::io(path));
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
