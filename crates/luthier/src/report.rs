//! What the report says beyond the figures: facts, warnings, and pictures.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::io;
use std::path::{Path, PathBuf, absolute};
use std::time::SystemTime;

use luthier_artifact::{Digest, Interrupted, Split, Written, file_names};
use luthier_cache::Cache;
use luthier_classify::Model;
use luthier_eval::{
    CheckedLabels, Context, CrossValidated, Images, LookAlikeGroup, StageTime, Variance, Warning, write_report,
};
use luthier_extract::WeightsSource;
use pathdiff::diff_paths;
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, percent_encode};
use time::OffsetDateTime;
use time::macros::format_description;

use crate::features_folder::{FeaturesJson, ImageLocation};
use crate::pipeline::describe_views;
use crate::results::{Found, load};
use crate::thumbnails::Thumbnails;
use crate::views::JudgedViews;
use crate::words::counted;
use crate::{Error, Result};

/// What an address shows with a percent sign: all but what may stand in a path as it is (RFC 3986).
const IN_ADDRESS: &AsciiSet = &NON_ALPHANUMERIC
    .remove(b'/')
    .remove(b'.')
    .remove(b'-')
    .remove(b'_')
    .remove(b'~');

/// A path without `..` and links, so that another can be told in relation to it.
fn whole(path: &Path) -> io::Result<PathBuf> {
    path.canonicalize().or_else(|_| absolute(path))
}

/// Writes the files of the report of an evaluation.
pub(crate) fn write(
    folder: &Path,
    cache: &Cache,
    found: &Found,
    json: &FeaturesJson,
    stages: &[StageTime],
    now: SystemTime,
    thumbnails: &Thumbnails<'_>,
) -> Result<Vec<Written>> {
    let model: Model = load(cache, &found.data.trained.model)?;
    let evaluation = found.figures.evaluation();
    let probabilities = found.probabilities(cache)?;
    let findings = found.findings(cache)?;
    let (train, test) = (Named::of(json, Split::Train), Named::of(json, Split::Test));
    let rows = &found.figures.rows;
    let evaluated = match evaluation.split {
        Split::Test => test.clone(),
        Split::Train => train.some(rows),
    };
    let page_folder = whole(folder).map_err(Error::io(folder))?;
    let digests: HashMap<(Split, &str), Digest> = [Split::Train, Split::Test]
        .into_iter()
        .flat_map(|split| {
            json.rows
                .get(split)
                .iter()
                .map(move |row| ((split, row.file.as_str()), row.digest))
        })
        .collect();
    let task = thumbnails.observer.task("thumbnails", 0);
    let context = Context {
        evaluation,
        probabilities: &probabilities,
        findings: &findings,
        train: train.images(),
        test: test.images(),
        evaluated: evaluated.images(),
        evaluated_rows: rows,
        has_two_folders: json.folders.train != json.folders.test,
        checked: CheckedLabels {
            right: json.decided.n_right,
            wrong: json.decided.n_wrong,
        },
        skipped: &json.skipped,
        warnings: &warnings(&model, json.places(), found.data.look_alikes()),
        facts: &facts(&model, json, found.views.as_ref()),
        date: Some(&date(now)),
        stages,
        variance: Variance {
            ratios: model.pca_variance_ratios.as_slice().expect("vectors are in one piece"),
            n_components: model.training.n_components,
        },
        cross_validation: model.training.cross_validation.as_ref().map(|info| CrossValidated {
            info,
            c: model.training.c,
            temperature: model.temperature.into(),
        }),
        // The figures do not need the pictures: a folder that has moved since costs nothing else.
        thumbnail: &|split, file, side| {
            if thumbnails.observer.is_interrupted() {
                return Err(Interrupted);
            }
            let path = || file_names::path_of(json.folders.get(split)).join(file_names::path_of(file));
            let digest = digests.get(&(split, file));
            let made = digest.and_then(|digest| thumbnails.get(digest, side, || std::fs::read(path()).ok()));
            task.advance(1);
            Ok(made)
        },
        link: &|split, file| {
            let folder = whole(&file_names::path_of(json.folders.get(split))).ok()?;
            let path = diff_paths(folder.join(file_names::path_of(file)), &page_folder)?;
            Some(percent_encode(path.as_os_str().as_encoded_bytes(), IN_ADDRESS).to_string())
        },
    };
    Ok(write_report(folder, &context)?)
}

/// Files and labels of a split.
#[derive(Clone)]
struct Named {
    files: Vec<String>,
    labels: Vec<usize>,
    digests: Vec<Digest>,
}

impl Named {
    fn of(json: &FeaturesJson, split: Split) -> Self {
        let rows = json.rows.get(split);
        let labels = json.labels();
        let label = |class: &String| labels[class.as_str()];
        Named {
            files: rows.iter().map(|row| row.file.clone()).collect(),
            labels: rows.iter().map(|row| label(&row.class)).collect(),
            digests: rows.iter().map(|row| row.digest).collect(),
        }
    }

    /// Those in these rows.
    fn some(&self, rows: &[usize]) -> Self {
        Named {
            files: rows.iter().map(|&row| self.files[row].clone()).collect(),
            labels: rows.iter().map(|&row| self.labels[row]).collect(),
            digests: rows.iter().map(|&row| self.digests[row]).collect(),
        }
    }

    fn images(&self) -> Images<'_> {
        Images {
            files: &self.files,
            labels: &self.labels,
            digests: &self.digests,
        }
    }
}

/// The day and time, in UTC.
fn date(now: SystemTime) -> String {
    let format = format_description!("[year]-[month]-[day] [hour]:[minute] UTC");
    OffsetDateTime::from(now)
        .format(format)
        .expect("a time has all that the format asks for")
}

fn facts(model: &Model, json: &FeaturesJson, judged: Option<&JudgedViews>) -> Vec<(String, String)> {
    let (extractor, training) = (&model.extractor, &model.training);
    let views = extractor.described_views();
    let c = if training.cross_validation.is_some() {
        "chosen by cross-validation"
    } else {
        "given"
    };
    let fact = |name: &str, value: String| (name.to_owned(), value);
    let compared = judged.map(|judged| {
        let by = counted(judged.n_images, "training image");
        fact(
            "Views compared",
            format!("by cross-validation on {by}: {}", describe_views(judged)),
        )
    });
    let decided = (!json.decided.is_empty()).then(|| fact("Decided by people", json.decided.to_string()));
    let mut facts = vec![
        fact("Training images", training.n_train.to_string()),
        fact("Test images", json.rows.test.len().to_string()),
        fact("Classes", model.classes.len().to_string()),
        fact(
            "Weights",
            format!("{} (SHA-256 {}…)", extractor.weights, extractor.short_sha256()),
        ),
        fact(
            "Views",
            format!(
                "{views} (of 224 × 224 pixels unless @ says otherwise; large JPEGs decoded {})",
                extractor.decode
            ),
        ),
        fact("Pooling", extractor.pooling.clone()),
    ];
    facts.extend(decided);
    facts.extend(compared);
    facts.extend([
        fact("Precision", extractor.precision.clone()),
        fact(
            "Principal components",
            format!(
                "{} ({:.1} % of the variance)",
                training.n_components,
                100.0 * training.explained_variance_ratio
            ),
        ),
        fact("Regularization", format!("C = {} ({c})", training.c)),
        fact("Class weight", training.class_weight.to_string()),
        fact("Solver", training.solver.to_string()),
        fact("Made with", format!("luthier {}", env!("CARGO_PKG_VERSION"))),
    ]);
    facts
}

/// What a reader must know before believing the figures. `look_alikes` are groups of images that look the same.
pub(crate) fn warnings(
    model: &Model,
    mut images: Vec<ImageLocation<'_>>,
    look_alikes: &[LookAlikeGroup],
) -> Vec<Warning> {
    images.sort_unstable();
    let mut warnings = Vec::new();
    if is_untrained(&model.extractor.weights_sha256) {
        warnings.push(Warning {
            title: "The weights are untrained".to_owned(),
            detail: "The network has random weights, so that these figures say nothing about what Luthier can do. \
                     For trained ones: luthier weights fetch resnet50-imagenet1k-v1, then run again."
                .to_owned(),
            files: Vec::new(),
        });
    }
    if !model.training.converged {
        warnings.push(Warning {
            title: "The logistic regression did not converge".to_owned(),
            detail: format!(
                "It stopped with a gradient of {:.1e}. A smaller C makes the problem easier.",
                model.training.gradient_norm
            ),
            files: Vec::new(),
        });
    }
    let in_test = images.iter().filter(|place| place.split == Split::Test);
    let in_test: HashSet<&str> = in_test.map(|place| place.class).collect();
    let missing: Vec<&str> = (model.classes.iter().map(String::as_str))
        .filter(|class| !in_test.contains(class))
        .collect();
    if !missing.is_empty() && !in_test.is_empty() {
        warnings.push(Warning {
            title: "Classes without test images".to_owned(),
            detail: format!(
                "Nothing is known of how well these are recognised: {}.",
                missing.join(", ")
            ),
            files: Vec::new(),
        });
    }
    warnings.extend(duplicates(&images));
    warnings.extend(leaked_looks(&images, look_alikes));
    warnings
}

/// How many images of a group are named.
const NAMED: usize = 8;

/// A group of images on a line. If not all are named, one of each split and class is, as far as there is room.
fn line(places: &[&ImageLocation<'_>]) -> String {
    let mut seen = BTreeSet::new();
    let is_first: Vec<bool> = (places.iter())
        .map(|place| seen.insert((place.split, place.class)))
        .collect();
    let mut named: Vec<usize> = (0..places.len()).collect();
    named.sort_by_key(|&place| !is_first[place]);
    named.truncate(NAMED);
    named.sort_unstable();
    let mut names: Vec<String> = named.into_iter().map(|place| places[place].name()).collect();
    if places.len() > NAMED {
        names.push(format!("{} more", places.len() - NAMED));
    }
    names.join(" = ")
}

/// Groups of images in train and test that look the same without having the same bytes. `images` are ordered by digest,
/// and those of one digest by split.
fn leaked_looks(images: &[ImageLocation<'_>], look_alikes: &[LookAlikeGroup]) -> Option<Warning> {
    let of_image = |image: &Digest| {
        let start = images.partition_point(|place| place.image < *image);
        let n = images[start..].partition_point(|place| place.image == *image);
        &images[start..start + n]
    };
    // As the rows of the features are ordered.
    let order = |place: &&ImageLocation<'_>| (place.split, place.class.to_owned(), place.image, place.file.to_owned());
    let mut groups: Vec<Vec<&ImageLocation<'_>>> = (look_alikes.iter())
        .map(|group| {
            let mut places: Vec<&ImageLocation<'_>> = group.images.iter().flat_map(of_image).collect();
            places.sort_by_cached_key(order);
            places
        })
        .collect();
    let is_in_training = |image: &Digest| of_image(image).first().is_some_and(|first| first.split == Split::Train);
    // Those with the same bytes have a warning of their own.
    let is_leaked = |place: &ImageLocation<'_>| place.split == Split::Test && !is_in_training(&place.image);
    groups.retain(|places| {
        places.iter().any(|place| place.split == Split::Train) && places.iter().any(|place| is_leaked(place))
    });
    groups.sort_by_cached_key(|places| places.first().map(order));
    let n_in_test = groups.iter().flatten().filter(|place| is_leaked(place)).count();
    (n_in_test > 0).then(|| Warning {
        title: "Images in train and test that look the same".to_owned(),
        detail: format!(
            "{} in training too, though the bytes differ: the figures are too good.",
            counted(n_in_test, "test image")
        ),
        files: groups.iter().map(|places| line(places)).collect(),
    })
}

/// Whether weights with this digest are the untrained ones.
pub fn is_untrained(sha256: &str) -> bool {
    WeightsSource::Untrained
        .sha256()
        .is_ok_and(|untrained| untrained == sha256)
}

/// The same bytes in train and test (leakage), or in two classes (label noise). `images` are ordered by digest.
fn duplicates(images: &[ImageLocation<'_>]) -> Vec<Warning> {
    let same: Vec<&[ImageLocation<'_>]> = (images.chunk_by(|a, b| a.image == b.image))
        .filter(|places| places.len() > 1)
        .collect();
    // The images with places that differ from their first, a line each.
    let list = |differs: fn(&ImageLocation<'_>, &ImageLocation<'_>) -> bool| -> Vec<String> {
        let faulty = same
            .iter()
            .filter(|places| places.iter().any(|place| differs(place, &places[0])));
        faulty.map(|places| line(&places.iter().collect::<Vec<_>>())).collect()
    };
    let leaked = list(|place, first| place.split != first.split);
    let in_both = (same.iter()).filter(|places| places.iter().any(|place| place.split != places[0].split));
    let in_test = in_both
        .flat_map(|places| places.iter())
        .filter(|place| place.split == Split::Test);
    let contradictory = list(|place, first| place.class != first.class);
    let mut warnings = Vec::new();
    if !leaked.is_empty() {
        warnings.push(Warning {
            title: "The same images in train and test".to_owned(),
            detail: format!(
                "{} seen in training: the figures are too good.",
                counted(in_test.count(), "test image")
            ),
            files: leaked,
        });
    }
    if !contradictory.is_empty() {
        warnings.push(Warning {
            title: "The same images in two classes".to_owned(),
            detail: format!(
                "{} with more than one label, of which at most one is right.",
                counted(contradictory.len(), "image")
            ),
            files: contradictory,
        });
    }
    warnings
}

#[cfg(test)]
mod tests {
    use super::*;

    fn place(image: Digest, split: Split, file: &str) -> ImageLocation<'_> {
        ImageLocation {
            image,
            split,
            file,
            class: "harp",
        }
    }

    #[test]
    fn leaked_test_images_are_counted_and_not_the_groups_that_they_are_in() {
        let [a, b, c] = [b"a", b"b", b"c"].map(|bytes| Digest::of(bytes));
        let mut images = [
            place(a, Split::Train, "a.jpg"),
            place(a, Split::Test, "a again.jpg"),
            place(a, Split::Test, "a once more.jpg"),
            place(b, Split::Train, "b.jpg"),
            place(c, Split::Test, "c.jpg"),
            place(c, Split::Test, "c again.jpg"),
        ];
        images.sort_unstable();
        let same = duplicates(&images);
        assert_eq!(
            same[0].detail,
            "2 test images seen in training: the figures are too good."
        );
        let group = LookAlikeGroup {
            images: vec![b, c],
            cosine: 0.9,
        };
        let alike = leaked_looks(&images, &[group]).unwrap();
        assert_eq!(
            alike.detail,
            "2 test images in training too, though the bytes differ: the figures are too good."
        );
        assert_eq!(alike.files, ["train/b.jpg = test/c again.jpg = test/c.jpg"]);
        assert_eq!(leaked_looks(&images, &[]), None);
    }

    #[test]
    fn copies_with_the_same_bytes_do_not_count_as_images_that_look_the_same() {
        let [a, b, c] = [b"a", b"b", b"c"].map(|bytes| Digest::of(bytes));
        let mut images = [
            place(a, Split::Train, "a.jpg"),
            place(a, Split::Test, "a again.jpg"),
            place(b, Split::Train, "b.jpg"),
            place(c, Split::Test, "c.jpg"),
        ];
        images.sort_unstable();
        let of = |images: &[Digest]| LookAlikeGroup {
            images: images.to_vec(),
            cosine: 0.9,
        };
        assert_eq!(leaked_looks(&images, &[of(&[a, b])]), None);
        let alike = leaked_looks(&images, &[of(&[a, b, c])]).unwrap();
        assert!(
            alike.detail.starts_with("1 test image in training too"),
            "{}",
            alike.detail
        );
    }

    #[test]
    fn of_many_copies_some_of_each_split_and_class_are_named() {
        let files: Vec<String> = (0..20_000).map(|n| format!("{n:05}.jpg")).collect();
        let places: Vec<ImageLocation<'_>> = (files.iter())
            .map(|file| {
                let split = if file == "19998.jpg" { Split::Test } else { Split::Train };
                let class = if file == "19999.jpg" { "lute" } else { "harp" };
                ImageLocation {
                    class,
                    ..place(Digest::of(b"a"), split, file)
                }
            })
            .collect();
        let warnings = duplicates(&places);
        let named = &warnings[0].files[0];
        assert!(
            named.starts_with("train/00000.jpg = train/00001.jpg = ")
                && named.ends_with(" = train/00005.jpg = test/19998.jpg = train/19999.jpg = 19992 more"),
            "{named}"
        );
    }
}
