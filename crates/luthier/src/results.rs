//! What the stages of a run gave: digests, and what was loaded of it.

use std::collections::HashSet;

use luthier_artifact::{Artifact, Digest, FeatureRows, Split};
use luthier_cache::{Cache, StoredTable, StoredVectors};
use luthier_classify::HeldOutPredictions;
use luthier_eval::{
    Evaluation, Findings, ImageMap, LookAlikeGroup, LookAlikes, NearestImages, Skipped, Suspects, TestProbabilities,
};
use luthier_extract::SkippedImages;
use ndarray::Array2;

use crate::features_folder::digest_of;
use crate::runner::is_pending;
use crate::views::JudgedViews;
use crate::{Error, Result};

/// The outputs of the extract stage, by digest.
#[derive(Clone, Debug)]
pub(crate) struct Extracted {
    pub(crate) train: Digest,
    pub(crate) test: Digest,
    /// The distinct images of both splits.
    pub(crate) images: Digest,
    pub(crate) skipped: Digest,
    pub(crate) skipped_images: SkippedImages,
    /// The files that could not be read.
    pub(crate) skipped_files: Vec<Skipped>,
    /// How many images went through the network just now.
    pub(crate) n_embedded: usize,
    /// For how many files the cache had features.
    pub(crate) n_reused: usize,
}

impl Extracted {
    pub(crate) fn describe(&self) -> String {
        let mut outcome = format!("{} embedded, {} reused", self.n_embedded, self.n_reused);
        if !self.skipped_files.is_empty() {
            outcome += &format!(", {} skipped", self.skipped_files.len());
        }
        outcome
    }
}

/// An error if images could not be read.
pub(crate) fn check_all_read(skipped: &[Skipped]) -> Result<()> {
    match skipped.first() {
        Some(first) => Err(Error::UnreadableImages {
            n: skipped.len(),
            first: first.to_string(),
        }),
        None => Ok(()),
    }
}

/// The output of the duplicates stage.
#[derive(Debug)]
pub(crate) struct StoredLookAlikes {
    pub(crate) digest: Digest,
    /// The groups; none while they are pending.
    pub(crate) found: LookAlikes,
}

/// Training images that cross-validation holds out together.
#[derive(Debug, Default)]
pub(crate) struct HeldTogether {
    /// What stands for them in a key; `None` if there are none.
    pub(crate) digest: Option<Digest>,
    pub(crate) groups: Vec<Vec<Digest>>,
}

impl StoredLookAlikes {
    /// The groups of training images that look the same. A look-alike in the test split is no reason to train again.
    pub(crate) fn in_training(&self, cache: &Cache, train: &Digest) -> Result<HeldTogether> {
        if is_pending(&self.digest) {
            return Ok(HeldTogether {
                digest: Some(self.digest),
                groups: Vec::new(),
            });
        }
        if self.found.groups.is_empty() {
            return Ok(HeldTogether::default());
        }
        let train: HashSet<Digest> = load::<FeatureRows>(cache, train)?.images.into_iter().collect();
        let in_training = |group: &LookAlikeGroup| -> Vec<Digest> {
            let images = group.images.iter().filter(|image| train.contains(image));
            images.copied().collect()
        };
        let mut groups: Vec<Vec<Digest>> = self.found.groups.iter().map(in_training).collect();
        groups.retain(|images| images.len() > 1);
        // They came by their first images, which may be test images.
        groups.sort_unstable();
        let digests: Vec<Digest> = groups.iter().map(|images| digest_of(images)).collect();
        Ok(HeldTogether {
            digest: (!groups.is_empty()).then(|| digest_of(&digests)),
            groups,
        })
    }
}

/// A model, and what cross-validation's models say of training images that they have not seen, by digest.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Trained {
    pub(crate) model: Digest,
    pub(crate) held_out: Digest,
}

/// What is evaluated, by digest.
#[derive(Debug)]
pub(crate) struct Evaluated {
    pub(crate) trained: Trained,
    /// The features of the training images.
    pub(crate) train: Digest,
    /// The features of the test images.
    pub(crate) test: Digest,
    /// `None` where no perceptual hashes are known.
    pub(crate) duplicates: Option<StoredLookAlikes>,
}

impl Evaluated {
    /// The features of the evaluated split.
    pub(crate) fn evaluated(&self, evaluation: &Evaluation) -> Digest {
        match evaluation.split {
            Split::Test => self.test,
            Split::Train => self.train,
        }
    }

    /// The row of each evaluated image in the table of its split.
    pub(crate) fn evaluated_rows(&self, evaluation: &Evaluation, cache: &Cache) -> Result<Vec<usize>> {
        Ok(match evaluation.split {
            Split::Test => (0..evaluation.n).collect(),
            Split::Train => load::<HeldOutPredictions>(cache, &self.trained.held_out)?.rows,
        })
    }

    /// The groups of images that look the same; none where no perceptual hashes are known.
    pub(crate) fn look_alikes(&self) -> &[LookAlikeGroup] {
        self.duplicates
            .as_ref()
            .map_or(&[], |duplicates| &duplicates.found.groups)
    }
}

/// The outputs of the evaluate stage.
#[derive(Debug)]
pub(crate) struct Figures {
    pub(crate) digest: Digest,
    /// The probability of each class for each test image, by digest.
    pub(crate) test_probabilities: Digest,
    /// The evaluation, unless it is pending.
    pub(crate) evaluation: Option<Evaluation>,
    /// The row of each evaluated image in the table of its split; none while the evaluation is pending.
    pub(crate) rows: Vec<usize>,
}

impl Figures {
    /// The evaluation, outside a plan.
    pub(crate) fn evaluation(&self) -> &Evaluation {
        self.evaluation.as_ref().expect("outside a plan no output is pending")
    }
}

/// Everything that was found out about a model and its data.
#[derive(Debug)]
pub(crate) struct Found {
    /// How the views were chosen, if there was a choice.
    pub(crate) views: Option<JudgedViews>,
    pub(crate) data: Evaluated,
    pub(crate) figures: Figures,
    pub(crate) suspects: Digest,
    pub(crate) neighbours: Digest,
    pub(crate) map: Digest,
}

impl Found {
    /// The digests of everything that the report shows.
    pub(crate) fn digests(&self) -> Vec<Digest> {
        let Found {
            views,
            data,
            figures,
            suspects,
            neighbours,
            map,
        } = self;
        let digests = [
            data.trained.model,
            data.trained.held_out,
            data.train,
            data.test,
            figures.digest,
            figures.test_probabilities,
            *suspects,
            *neighbours,
            *map,
        ];
        digests
            .into_iter()
            .chain(data.duplicates.iter().map(|duplicates| duplicates.digest))
            .chain(views.iter().map(|views| Digest::of(&views.encode())))
            .collect()
    }

    /// The probability of each class for each evaluated image, `[n, k]`, for the report.
    pub(crate) fn probabilities(&self, cache: &Cache) -> Result<Array2<f64>> {
        match self.figures.evaluation().split {
            Split::Test => Ok(load::<TestProbabilities>(cache, &self.figures.test_probabilities)?.0),
            Split::Train => {
                let held_out: HeldOutPredictions = load(cache, &self.data.trained.held_out)?;
                Ok(held_out.probabilities.mapv(f64::from))
            }
        }
    }

    /// The findings of all stages, for the report.
    pub(crate) fn findings(&self, cache: &Cache) -> Result<Findings> {
        let rows: [FeatureRows; 2] = [load(cache, &self.data.train)?, load(cache, &self.data.test)?];
        Ok(Findings::new(
            load::<Suspects>(cache, &self.suspects)?,
            self.data.duplicates.as_ref().map(|duplicates| &duplicates.found),
            load::<NearestImages>(cache, &self.neighbours)?,
            load::<ImageMap>(cache, &self.map)?,
            [&rows[0], &rows[1]],
        ))
    }
}

/// Loads an artifact that a stage before made.
pub(crate) fn load<A: Artifact>(cache: &Cache, digest: &Digest) -> Result<A> {
    Ok(cache.get(digest)?.ok_or_else(|| lost(digest))?)
}

/// The rows of a table that a stage before made; their features are read when they are asked for.
pub(crate) fn open_table<'a>(cache: &'a Cache, digest: &Digest) -> Result<StoredTable<'a>> {
    Ok(cache.table(digest)?.ok_or_else(|| lost(digest))?)
}

/// The features of a table, still unread.
pub(crate) fn features_of<'a>(cache: &'a Cache, table: &Digest, rows: &FeatureRows) -> StoredVectors<'a> {
    cache.stored_vectors(*table, rows.vectors.clone(), rows.width)
}

fn lost(digest: &Digest) -> luthier_cache::Error {
    luthier_cache::Error::Lost {
        what: "artifact",
        digest: *digest,
    }
}

#[cfg(test)]
mod tests {
    use luthier_artifact::ExtractorInfo;

    use super::*;

    #[test]
    fn look_alikes_in_the_test_do_not_change_the_key_of_those_in_training() {
        let folder = tempfile::tempdir().unwrap();
        let cache = Cache::open(folder.path()).unwrap();
        let mut images: Vec<Digest> = (0..5u8).map(|image| Digest::of(&[image])).collect();
        images.sort_unstable();
        let text = |text: &str| text.to_owned();
        let train = FeatureRows {
            classes: vec![text("drum")],
            extractor: ExtractorInfo {
                views: vec![text("squash")],
                pooling: text("mean"),
                combine: text("mean"),
                decode: text("scaled"),
                weights: text("untrained"),
                weights_sha256: text("00"),
                precision: text("fp32"),
            },
            width: 1,
            labels: vec![0; 4],
            images: images[1..].to_vec(),
            vectors: images[1..].to_vec(),
        };
        let train = cache.put(&train).unwrap();
        // As they come, by their first images.
        let held_together = |groups: [Vec<Digest>; 2]| {
            let group = |images| LookAlikeGroup { images, cosine: 1.0 };
            let found = LookAlikes {
                groups: groups.map(group).into(),
            };
            let digest = Digest::of(b"look-alikes");
            StoredLookAlikes { digest, found }.in_training(&cache, &train).unwrap()
        };
        let [of_test, a, b, c, d] = images[..] else {
            unreachable!()
        };
        let without = held_together([vec![a, b], vec![c, d]]);
        let with = held_together([vec![of_test, c, d], vec![a, b]]);
        assert_eq!(with.groups, [[a, b], [c, d]]);
        assert_eq!((with.digest, with.groups), (without.digest, without.groups));
    }
}
