use std::collections::BTreeMap;
use std::f64::consts::PI;

use luthier_artifact::{Artifact, Digest, ImageRows, Key, Observer, ReadRows, json};
use ndarray::Array2;
use rayon::prelude::*;
use serde::{Deserialize, Serialize};

use super::nearby::Tree;
use crate::{Error, Result};

/// The contrast that an image has at least, in grey levels: below, nothing is there to compare.
const SMALLEST_CONTRAST: f64 = 2.0;

/// To how many of the images that look most like it an image is linked: as many hold a group of copies together.
const LINKS: usize = 8;

/// A perceptual hash is the mean red, green and blue of so many times so many boxes.
const GRID: usize = 8;

/// The number of [`waves`] onto which a perceptual hash is projected.
const N_WAVES: usize = 15;

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
    pub const VERSION: u32 = 2;

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
    /// [`Error::Read`] if features or hashes cannot be read; [`Error::Interrupted`] soon after the observer says so.
    pub fn run(
        &self,
        images: &ImageRows,
        features: &dyn ReadRows<Feature = f32>,
        hashes: &dyn ReadRows<Feature = f32>,
        observer: &dyn Observer,
    ) -> Result<LookAlikes> {
        let n = images.images.len();
        let mut groups = Groups::new(n);
        for (a, b) in self.pairs(hashes, observer)? {
            Error::if_interrupted(observer)?;
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
    fn pairs(&self, hashes: &dyn ReadRows<Feature = f32>, observer: &dyn Observer) -> Result<Vec<(usize, usize)>> {
        let mut all = Array2::<f32>::zeros((hashes.n_rows(), hashes.n_features()));
        // At once: the cache has them in another order, so that each block would be a pass over all of them.
        hashes.read(0, all.view_mut()).map_err(Error::Read)?;
        let waves = waves();
        let looks: Vec<Look<'_>> = (all.as_slice().expect("a new array is in C order"))
            .par_chunks(all.ncols().max(1))
            .map(|hash| Look::new(hash, &waves))
            .collect();
        let tree = Tree::new(looks.iter().map(|look| look.coarse));
        let of_look = |(row, look): (usize, &Look<'_>)| -> Result<Vec<(usize, usize)>> {
            Error::if_interrupted(observer)?;
            let mut alike: Vec<(f64, usize)> = Vec::new();
            tree.search(&look.coarse, look.reach(self.largest_difference), |other| {
                let is_other = other != row;
                let difference = is_other.then(|| look.difference(&looks[other], self.largest_difference))??;
                alike.push((difference, other));
                alike.sort_unstable_by(|a, b| a.0.total_cmp(&b.0).then(a.1.cmp(&b.1)));
                alike.truncate(LINKS);
                alike.get(LINKS - 1).map(|&(difference, _)| difference as f32)
            });
            let pair = |(_, other): (f64, usize)| (row.min(other), row.max(other));
            Ok(alike.into_iter().map(pair).collect())
        };
        let of_looks: Vec<Vec<(usize, usize)>> = looks.par_iter().enumerate().map(of_look).collect::<Result<_>>()?;
        let mut pairs: Vec<(usize, usize)> = of_looks.concat();
        pairs.sort_unstable();
        pairs.dedup();
        Ok(pairs)
    }
}

/// An image as it is compared with others.
struct Look<'a> {
    hash: &'a [f32],
    /// In grey levels.
    contrast: f64,
    /// The hash projected onto the [`waves`], and the length of the rest. The distance between two of these is at most the
    /// distance between the hashes.
    coarse: [f32; N_WAVES + 1],
}

impl<'a> Look<'a> {
    fn new(hash: &'a [f32], waves: &[[f64; N_WAVES]]) -> Self {
        let mut channels = [0.0; 3];
        for (at, &value) in hash.iter().enumerate() {
            channels[at % 3] += f64::from(value) * 3.0 / hash.len() as f64;
        }
        let squares = (hash.iter().enumerate()).map(|(at, &value)| (f64::from(value) - channels[at % 3]).powi(2));
        let deviation = (squares.sum::<f64>() / hash.len() as f64).sqrt();
        let mut coarse = [0.0; N_WAVES + 1];
        for (&value, waves) in hash.iter().zip(waves) {
            for (sum, wave) in coarse.iter_mut().zip(waves) {
                *sum += f64::from(value) * wave;
            }
        }
        let square: f64 = hash.iter().map(|&value| f64::from(value).powi(2)).sum();
        let of_waves: f64 = coarse.iter().map(|sum| sum * sum).sum();
        coarse[N_WAVES] = (square - of_waves).max(0.0).sqrt();
        Look {
            hash,
            contrast: deviation.max(SMALLEST_CONTRAST),
            coarse: coarse.map(|sum| sum as f32),
        }
    }

    /// How far the hash of an image that looks the same can be at most.
    fn reach(&self, largest_difference: f64) -> f32 {
        // Contrasts differ by no more than hashes do: x - 1 = largest_difference √x for their largest quotient x.
        let half = largest_difference / 2.0;
        let root = half + half.hypot(1.0);
        // A hundredth of a grey level is more than rounding does.
        ((largest_difference * root * self.contrast + 0.01) * (self.hash.len() as f64).sqrt()) as f32
    }

    /// The sum of the squares of the differences of two hashes; `None` if the images do not look the same.
    fn difference(&self, other: &Look<'_>, largest_difference: f64) -> Option<f64> {
        let largest = largest_difference.powi(2) * self.contrast * other.contrast * self.hash.len() as f64;
        let mut sum = 0.0;
        // Of images that differ the first few numbers mostly tell.
        for (a, b) in self.hash.chunks(4).zip(other.hash.chunks(4)) {
            sum += (a.iter().zip(b)).map(|(a, b)| f64::from(a - b).powi(2)).sum::<f64>();
            if sum > largest {
                return None;
            }
        }
        Some(sum)
    }
}

/// For each number of a perceptual hash its share in some waves over the image, orthonormal. Photographs differ most in the longest: those of the discrete cosine transform of the
/// brightness, and the mean colour, red against green and both against blue.
fn waves() -> Vec<[f64; N_WAVES]> {
    let mut frequencies: Vec<(usize, usize)> = (0..GRID * GRID).map(|place| (place / GRID, place % GRID)).collect();
    frequencies.sort_by_key(|&(x, y)| (x * x + y * y, x));
    let cosine = |at: usize, frequency: usize| {
        let square = if frequency == 0 { 1.0 } else { 2.0 } / GRID as f64;
        square.sqrt() * (PI * (at as f64 + 0.5) * frequency as f64 / GRID as f64).cos()
    };
    let of_box = |place: usize, channel: usize| {
        let mut shares = [0.0; N_WAVES];
        for (share, (x, y)) in shares[2..].iter_mut().zip(&frequencies) {
            *share = cosine(place % GRID, *x) * cosine(place / GRID, *y) / 3f64.sqrt();
        }
        shares[0] = [1.0, -1.0, 0.0][channel] / 2f64.sqrt() / GRID as f64;
        shares[1] = [1.0, 1.0, -2.0][channel] / 6f64.sqrt() / GRID as f64;
        shares
    };
    (0..GRID * GRID * 3)
        .map(|number| of_box(number / 3, number % 3))
        .collect()
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

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    /// Random numbers from 0 to 1.
    fn uniform(state: &mut u64) -> f64 {
        *state = (state.wrapping_mul(6364136223846793005)).wrapping_add(1442695040888963407);
        (*state >> 11) as f64 / (1u64 << 53) as f64
    }

    /// Nearly a normal distribution.
    fn normal(state: &mut u64) -> f64 {
        (0..12).map(|_| uniform(state)).sum::<f64>() - 6.0
    }

    /// The ink in each box of a page: lines of text, some of them short, and paragraphs.
    fn page(state: &mut u64) -> Vec<f64> {
        let mut ink = Vec::new();
        for _ in 0..GRID {
            let density = if uniform(state) < 0.2 {
                0.3
            } else {
                0.7 + 0.3 * uniform(state)
            };
            let end = if uniform(state) < 0.3 {
                2.0 + 6.0 * uniform(state)
            } else {
                8.0
            };
            let line = (0..GRID).map(|column| 60.0 * density * (end - column as f64).clamp(0.0, 1.0));
            ink.extend(line.map(|line| line + 2.0 * normal(state)));
        }
        ink
    }

    /// A grey hash of this brightness and contrast.
    fn hash(ink: &[f64], brightness: f64, contrast: f64) -> Vec<f32> {
        let mean = ink.iter().sum::<f64>() / ink.len() as f64;
        let deviation = (ink.iter().map(|ink| (ink - mean).powi(2)).sum::<f64>() / ink.len() as f64).sqrt();
        let grey = |ink: &f64| (brightness - contrast * (ink - mean) / deviation) as f32;
        ink.iter().flat_map(|ink| [grey(ink); 3]).collect()
    }

    /// A copy that differs by this share of the contrast, half of it in brightness and in light from one side.
    fn copy(hash: &[f32], difference: f64, contrast: f64, state: &mut u64) -> Vec<f32> {
        let (brighter, sideways) = (normal(state), normal(state));
        let noise: Vec<f64> = (0..GRID * GRID)
            .map(|place| normal(state) + brighter + sideways * ((place % GRID) as f64 - 3.5) / 2.0)
            .collect();
        let size = (noise.iter().map(|noise| noise * noise).sum::<f64>() / noise.len() as f64).sqrt();
        let moved = |(at, value): (usize, &f32)| value + (difference * contrast * noise[at / 3] / size) as f32;
        hash.iter().enumerate().map(moved).collect()
    }

    fn pairs(rows: &[Vec<f32>]) -> Vec<(usize, usize)> {
        let hashes = Array2::from_shape_fn((rows.len(), rows[0].len()), |(row, column)| rows[row][column]);
        DuplicatesConfig::default().pairs(&hashes.view(), &()).unwrap()
    }

    /// Black frames, for example: more than a search compares.
    #[test]
    fn all_of_many_images_with_one_hash_are_found() {
        let rows = vec![hash(&page(&mut 7), 215.0, 25.0); 6_000];
        let linked: HashSet<usize> = pairs(&rows).into_iter().flat_map(|(a, b)| [a, b]).collect();
        assert_eq!(linked.len(), rows.len());
    }

    #[test]
    fn waves_are_orthonormal() {
        let waves = waves();
        for a in 0..N_WAVES {
            for b in 0..N_WAVES {
                let product: f64 = waves.iter().map(|shares| shares[a] * shares[b]).sum();
                let expected = if a == b { 1.0 } else { 0.0 };
                assert!((product - expected).abs() < 1e-12, "{a} and {b}: {product}");
            }
        }
    }

    #[test]
    fn of_photographs_the_same_pairs_are_found_as_by_comparing_all_with_all() {
        let state = &mut 3;
        let mut rows = Vec::new();
        for n in 0..600 {
            let (brightness, contrast) = (60.0 + 130.0 * uniform(state), 60.0 * uniform(state));
            let row = hash(&page(state), brightness, contrast);
            rows.push(copy(&row, 0.05 + 0.1 * uniform(state), contrast, state));
            if n % 3 == 0 {
                rows.push(row);
            }
        }
        let waves = waves();
        let looks: Vec<Look<'_>> = rows.iter().map(|row| Look::new(row, &waves)).collect();
        let largest = DuplicatesConfig::default().largest_difference;
        let all = (0..rows.len()).flat_map(|a| (a + 1..rows.len()).map(move |b| (a, b)));
        let expected: Vec<_> = all
            .filter(|&(a, b)| looks[a].difference(&looks[b], largest).is_some())
            .collect();
        assert!(expected.len() > 50 && expected.len() < 200, "{}", expected.len());
        assert_eq!(pairs(&rows), expected);
    }

    #[test]
    fn copies_are_found_among_scans_of_one_brightness_and_contrast() {
        const N: usize = 20_000;
        const N_COPIES: usize = 500;
        let state = &mut 5;
        let mut rows: Vec<Vec<f32>> = (0..N).map(|_| hash(&page(state), 215.0, 25.0)).collect();
        for n in 0..N_COPIES {
            // To the largest difference at which they still look the same.
            let difference = 0.02 + 0.075 * n as f64 / N_COPIES as f64;
            rows.push(copy(&rows[3 * n], difference, 25.0, state));
        }
        let pairs = pairs(&rows);
        let n_found = (0..N_COPIES).filter(|n| pairs.contains(&(3 * n, N + n))).count();
        assert!(
            n_found >= 495 && pairs.len() < N_COPIES + 20,
            "{n_found} of {}",
            pairs.len()
        );
    }
}
