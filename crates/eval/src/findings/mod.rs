//! What the images themselves tell: which ones deserve a look.
//!
//! Four stages, each with a key of its own:
//! - [`DuplicatesConfig`]: images that look the same, whatever their labels
//! - [`SuspectsConfig`]: images whose label is probably wrong
//! - [`NeighboursConfig`]: the training images nearest to wrongly predicted images and to suspects
//! - [`MapConfig`]: where evaluated images lie, so that those with like features lie together
//!
//! [`Findings`] puts their results together for the report.

mod duplicates;
mod map;
mod nearby;
mod neighbours;
mod suspects;
mod tsne;

use std::collections::HashMap;

use luthier_artifact::{Digest, FeatureRows, Split};
use serde::{Deserialize, Serialize};

pub use duplicates::{DuplicatesConfig, LookAlikeGroup, LookAlikes};
pub use map::{ImageMap, MapConfig};
pub use neighbours::{NearestImages, Neighbour, Neighbours, NeighboursConfig, normalize};
pub use suspects::{HeldOutImages, Suspect, Suspects, SuspectsConfig};

/// An image, by its place in the table of its split.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct ImageRef {
    /// The split.
    pub split: Split,
    /// The row in the split's table, from 0.
    pub row: usize,
}

/// Everything that was found about the images of a data set, for the report.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Findings {
    /// Images whose label is probably wrong, the most suspicious first.
    pub suspects: Vec<Suspect>,
    /// Whether training images could be judged: only cross-validation has models that have not seen them.
    pub judged_training_images: bool,
    /// Images that are the same, or look the same.
    pub duplicates: Vec<Duplicates>,
    /// Whether images could be found to look the same: perceptual hashes were at hand.
    pub compared_looks: bool,
    /// The nearest training images of mistakes and suspects, by split and row.
    pub neighbours: Vec<Neighbours>,
    /// Where evaluated images lie on the map.
    pub map: ImageMap,
}

/// Two images or more that are the same or look the same.
#[derive(Clone, Debug, PartialEq)]
pub struct Duplicates {
    /// The images in ascending order, at least two.
    pub images: Vec<ImageRef>,
    /// How alike they are.
    pub likeness: Likeness,
}

/// How alike images are.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Likeness {
    /// The bytes of their files are the same.
    SameBytes,
    /// They look the same.
    SameLook {
        /// The smallest cosine between the features of two of them by which they were joined, -1 to 1.
        cosine: f64,
    },
}

impl Findings {
    /// Puts the results of the stages together. `look_alikes` is `None` where no perceptual hashes are known: then only
    /// images whose files are the same count as duplicates.
    pub fn new(
        suspects: Suspects,
        look_alikes: Option<&LookAlikes>,
        neighbours: NearestImages,
        map: ImageMap,
        [train, test]: [&FeatureRows; 2],
    ) -> Self {
        Findings {
            suspects: suspects.suspects,
            judged_training_images: suspects.judged_training_images,
            duplicates: duplicates(look_alikes, train, test),
            compared_looks: look_alikes.is_some(),
            neighbours: neighbours.0,
            map,
        }
    }
}

/// The groups of rows whose images are the same or look the same, by their first rows. A row is in one group at most.
fn duplicates(look_alikes: Option<&LookAlikes>, train: &FeatureRows, test: &FeatureRows) -> Vec<Duplicates> {
    let mut rows: HashMap<Digest, Vec<ImageRef>> = HashMap::new();
    for (split, table) in [(Split::Train, train), (Split::Test, test)] {
        for (row, image) in table.images.iter().enumerate() {
            rows.entry(*image).or_default().push(ImageRef { split, row });
        }
    }
    let mut found = Vec::new();
    for LookAlikeGroup { images, cosine } in look_alikes.into_iter().flat_map(|found| &found.groups) {
        let mut images: Vec<ImageRef> = images.iter().filter_map(|image| rows.remove(image)).flatten().collect();
        images.sort_unstable();
        let likeness = Likeness::SameLook { cosine: *cosine };
        found.push(Duplicates { images, likeness });
    }
    found.extend(rows.into_values().map(|images| Duplicates {
        images,
        likeness: Likeness::SameBytes,
    }));
    found.retain(|group| group.images.len() > 1);
    found.sort_by(|a, b| a.images.cmp(&b.images));
    found
}
