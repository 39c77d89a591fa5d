use std::collections::{BTreeMap, HashMap};

use luthier_artifact::{Artifact, Digest, ImageRows, Key, ReadRows, json};
use ndarray::{Array2, ArrayView1};
use rayon::prelude::*;
use serde::{Deserialize, Serialize};

use crate::{Error, Result};

/// The contrast that an image has at least, in grey levels: below, nothing is there to compare.
const SMALLEST_CONTRAST: f64 = 2.0;

/// How many images like it are looked for each image: as many hold a group of copies together.
const LINKS: usize = 8;

/// The duplicates stage: images that look the same, though their bytes differ.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct DuplicatesConfig {
    /// How much of their contrast may tell copies apart: the root mean square difference of two perceptual hashes over
    /// the contrast of the images.
    ///
    /// The default is 0.1. Of 300 photographs encoded again as JPEG at half to one and a half times their size, 99 of
    /// 100 differ by less than 0.09. Of the pairs among 1,806 photographs of instruments, many of them before a white
    /// ground, 3 differ by less, and these are copies; the next nearest, two harmonicas from one catalogue, differ by
    /// 0.12.
    pub largest_difference: f64,
    /// How alike the network must find copies: the smallest cosine between their features.
    ///
    /// The default is 0.5, which is little: the features of a small photograph change as much when it is halved as they
    /// differ between photographs. It tells apart images that look the same from afar, such as pages of text.
    pub smallest_cosine: f64,
}

impl Default for DuplicatesConfig {
    fn default() -> Self {
        DuplicatesConfig {
            largest_difference: 0.1,
            smallest_cosine: 0.5,
        }
    }
}

/// Groups of distinct images that look the same, by their first images.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct LookAlikes {
    /// The groups. An image is in one group at most.
    pub groups: Vec<LookAlikeGroup>,
}

/// Two distinct images or more that look the same.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct LookAlikeGroup {
    /// The digests of the images' bytes, ascending.
    pub images: Vec<Digest>,
    /// The smallest cosine between the features of two of them by which they were joined, -1 to 1.
    pub cosine: f64,
}

impl Artifact for LookAlikes {
    const FORMAT: &'static str = "look-alikes/1";

    fn encode(&self) -> Vec<u8> {
        json::encode(Self::FORMAT, self)
    }

    fn decode(bytes: &[u8]) -> luthier_artifact::Result<Self> {
        json::decode(Self::FORMAT, bytes)
    }
}

impl DuplicatesConfig {
    /// Changes when [`run`](DuplicatesConfig::run) gives other results.
    pub const VERSION: u32 = 1;

    /// The stage's key. `images` is the digest of [`ImageRows`], which have no labels: another label, or another split,
    /// is no reason to search again.
    pub fn key(&self, images: Digest) -> Key {
        let DuplicatesConfig {
            largest_difference,
            smallest_cosine,
        } = self;
        Key::stage("duplicates", Self::VERSION)
            .field("largest difference", largest_difference)
            .field("smallest cosine", smallest_cosine)
            .input("images", images)
            .finish()
    }

    /// Looks for images that look the same. Row `i` of `features` and of `hashes` belongs to row `i` of `images`.
    ///
    /// # Errors
    /// [`Error::Read`] if features or hashes cannot be read.
    pub fn run(
        &self,
        images: &ImageRows,
        features: &dyn ReadRows<Feature = f32>,
        hashes: &dyn ReadRows<Feature = f32>,
    ) -> Result<LookAlikes> {
        let n = images.images.len();
        let mut groups = Groups::new(n);
        for (a, b) in self.pairs(hashes)? {
            if groups.of(a) == groups.of(b) {
                continue;
            }
            let cosine = cosine(&read_row(features, a)?, &read_row(features, b)?);
            if cosine >= self.smallest_cosine {
                groups.join(a, b, cosine);
            }
        }
        let mut members: BTreeMap<usize, Vec<Digest>> = BTreeMap::new();
        for row in 0..n {
            members.entry(groups.of(row)).or_default().push(images.images[row]);
        }
        let of_several = members.into_iter().filter(|(_, images)| images.len() > 1);
        let groups = of_several.map(|(first, images)| LookAlikeGroup {
            images,
            cosine: groups.cosines[first],
        });
        Ok(LookAlikes {
            groups: groups.collect(),
        })
    }

    /// Pairs of rows whose perceptual hashes are alike, in ascending order.
    fn pairs(&self, hashes: &dyn ReadRows<Feature = f32>) -> Result<Vec<(usize, usize)>> {
        let largest = self.largest_difference;
        let mut all = Array2::zeros((hashes.n_rows(), hashes.n_features()));
        hashes.read(0, all.view_mut()).map_err(Error::Read)?;
        let mut classes: HashMap<i64, Vec<Look<'_>>> = HashMap::new();
        for (row, hash) in all.outer_iter().enumerate() {
            let look = Look::new(row, hash);
            classes.entry(look.class(largest)).or_default().push(look);
        }
        for looks in classes.values_mut() {
            looks.sort_by(|a, b| a.brightness.total_cmp(&b.brightness).then(a.row.cmp(&b.row)));
        }
        let find = |class: &i64| -> Vec<(usize, usize)> {
            let looks = &classes[class];
            let next = classes.get(&(class + 1)).map_or(&[][..], Vec::as_slice);
            let of_look = |(at, look): (usize, &Look<'_>)| {
                // Nor does the brightness differ by more than the hashes.
                let reach = |other: &Look<'_>| largest * (look.contrast * other.contrast).sqrt();
                let is_near = |other: &&Look<'_>| (other.brightness - look.brightness).abs() <= reach(other);
                let widest = 1.2 * largest * look.contrast;
                let within = |others: &'_ [Look<'_>]| {
                    others.partition_point(|other| other.brightness <= look.brightness + widest)
                };
                let own = &looks[at + 1..][..within(&looks[at + 1..])];
                let start = next.partition_point(|other| other.brightness < look.brightness - widest);
                let above = &next[start..][..within(&next[start..])];
                let alike = own
                    .iter()
                    .chain(above)
                    .filter(is_near)
                    .filter(|other| look.looks_like(other, largest));
                let pair = |other: &Look<'_>| (look.row.min(other.row), look.row.max(other.row));
                alike.take(LINKS).map(pair).collect::<Vec<_>>()
            };
            looks.par_iter().enumerate().flat_map_iter(of_look).collect()
        };
        let mut pairs: Vec<(usize, usize)> = classes.keys().flat_map(find).collect();
        pairs.sort_unstable();
        Ok(pairs)
    }
}

/// An image as it is compared with others.
struct Look<'a> {
    row: usize,
    /// The mean of all numbers of the perceptual hash.
    brightness: f64,
    /// In grey levels.
    contrast: f64,
    hash: ArrayView1<'a, f32>,
}

impl<'a> Look<'a> {
    fn new(row: usize, hash: ArrayView1<'a, f32>) -> Self {
        let mean = |values: &mut dyn Iterator<Item = f64>| values.sum::<f64>() / hash.len() as f64;
        let mut channels = [0.0; 3];
        for (at, &value) in hash.iter().enumerate() {
            channels[at % 3] += f64::from(value) * 3.0 / hash.len() as f64;
        }
        let deviation = |(at, &value): (usize, &f32)| (f64::from(value) - channels[at % 3]).powi(2);
        Look {
            row,
            brightness: mean(&mut hash.iter().map(|&value| f64::from(value))),
            contrast: (mean(&mut hash.iter().enumerate().map(deviation)).sqrt()).max(SMALLEST_CONTRAST),
            hash,
        }
    }

    /// Of images with this contrast only those in the same or the next class can look the same: contrasts differ by no more
    /// than hashes do.
    fn class(&self, largest_difference: f64) -> i64 {
        // x - 1 = largest_difference √x for the largest quotient x of two contrasts.
        let half = largest_difference / 2.0;
        let largest = (half + half.hypot(1.0)).powi(2);
        (self.contrast.ln() / largest.ln()).floor() as i64
    }

    fn looks_like(&self, other: &Look<'_>, largest_difference: f64) -> bool {
        let largest = largest_difference.powi(2) * self.contrast * other.contrast * self.hash.len() as f64;
        let mut sum = 0.0;
        // Of images that differ the first few numbers mostly tell.
        let (a, b) = (self.hash.as_slice(), other.hash.as_slice());
        let (a, b) = (a.expect("rows are in one piece"), b.expect("rows are in one piece"));
        for (a, b) in a.chunks(4).zip(b.chunks(4)) {
            sum += (a.iter().zip(b)).map(|(a, b)| f64::from(a - b).powi(2)).sum::<f64>();
            if sum > largest {
                return false;
            }
        }
        true
    }
}

/// One row, `[1, d]`.
fn read_row(rows: &dyn ReadRows<Feature = f32>, row: usize) -> Result<Array2<f32>> {
    let mut found = Array2::zeros((1, rows.n_features()));
    rows.read(row, found.view_mut()).map_err(Error::Read)?;
    Ok(found)
}

fn cosine(a: &Array2<f32>, b: &Array2<f32>) -> f64 {
    let (a, b) = (a.row(0).mapv(f64::from), b.row(0).mapv(f64::from));
    let lengths = (a.dot(&a) * b.dot(&b)).sqrt();
    // Rounding may take it beyond 1.
    if lengths > 0.0 {
        (a.dot(&b) / lengths).min(1.0)
    } else {
        0.0
    }
}

/// Disjoint sets of rows.
struct Groups {
    parents: Vec<usize>,
    /// The smallest cosine by which the members of a set were joined, at the row that stands for the set.
    cosines: Vec<f64>,
}

impl Groups {
    fn new(n: usize) -> Self {
        Groups {
            parents: (0..n).collect(),
            cosines: vec![1.0; n],
        }
    }

    /// The row that stands for the set of this row: the first of them.
    fn of(&self, mut row: usize) -> usize {
        while self.parents[row] != row {
            row = self.parents[row];
        }
        row
    }

    fn join(&mut self, a: usize, b: usize, cosine: f64) {
        let (a, b) = (self.of(a), self.of(b));
        let (first, last) = (a.min(b), a.max(b));
        self.cosines[first] = cosine.min(self.cosines[first]).min(self.cosines[last]);
        self.parents[last] = first;
    }
}
