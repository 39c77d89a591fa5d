use std::collections::HashMap;

use luthier_artifact::{Digest, Split};
use luthier_cache::StoredTable;
use ndarray::{Array2, ArrayView1};
use rayon::prelude::*;

use super::{Duplicates, ImageRef, Inspection, Likeness};
use crate::Result;

/// How much of their contrast may tell copies apart: the root mean square difference of two perceptual hashes over the
/// contrast of the images.
///
/// Of 300 photographs encoded again as JPEG at half to one and a half times their size, 99 of 100 differ by less than 0.09.
/// Of the pairs among 1,806 photographs of instruments, many of them before a white ground, 3 differ by less, and these
/// are copies; the next nearest, two harmonicas from one catalogue, differ by 0.12.
const LARGEST_DIFFERENCE: f64 = 0.1;

/// How alike the network must find copies.
///
/// Little is asked: the features of a small photograph change as much when it is halved as they differ between photographs.
/// It tells apart images that look the same from afar, such as pages of text.
const SMALLEST_COSINE: f64 = 0.5;

/// The contrast that an image has at least, in grey levels: below, nothing is there to compare.
const SMALLEST_CONTRAST: f64 = 2.0;

/// How many images like it are looked for each image: as many hold a group of copies together.
const LINKS: usize = 8;

/// The groups of images that are the same or look the same, by their first images. An image is in one group at most.
pub(super) fn duplicates(inspection: &Inspection<'_>) -> Result<Vec<Duplicates>> {
    let places = places(inspection);
    let mut groups = Groups::new(places.len());
    let firsts: Vec<ImageRef> = places.iter().map(|(_, images)| images[0]).collect();
    for (a, b) in look_alikes(inspection, &firsts)? {
        if groups.of(a) == groups.of(b) {
            continue;
        }
        let cosine = cosine(&features(inspection, firsts[a])?, &features(inspection, firsts[b])?);
        if cosine >= SMALLEST_COSINE {
            groups.join(a, b, cosine);
        }
    }

    let mut members: HashMap<usize, Vec<usize>> = HashMap::new();
    for place in 0..places.len() {
        members.entry(groups.of(place)).or_default().push(place);
    }
    let group = |(of, members): (usize, Vec<usize>)| {
        let mut images: Vec<ImageRef> = (members.iter()).flat_map(|&place| places[place].1.clone()).collect();
        images.sort_unstable();
        let likeness = if members.len() == 1 {
            Likeness::SameBytes
        } else {
            Likeness::SameLook {
                cosine: groups.cosines[of],
            }
        };
        (images.len() > 1).then_some(Duplicates { images, likeness })
    };
    let mut found: Vec<Duplicates> = members.into_iter().filter_map(group).collect();
    found.sort_by(|a, b| a.images.cmp(&b.images));
    Ok(found)
}

/// Every distinct image, in order of its first row, with all its rows in ascending order.
fn places(inspection: &Inspection<'_>) -> Vec<(Digest, Vec<ImageRef>)> {
    let mut places: Vec<(Digest, Vec<ImageRef>)> = Vec::new();
    let mut known: HashMap<Digest, usize> = HashMap::new();
    for split in [Split::Train, Split::Test] {
        for (row, digest) in inspection.features(split).rows().images.iter().enumerate() {
            let image = ImageRef { split, row };
            match known.get(digest) {
                Some(&place) => places[place].1.push(image),
                None => {
                    known.insert(*digest, places.len());
                    places.push((*digest, vec![image]));
                }
            }
        }
    }
    places
}

/// An image as it is compared with others.
struct Look {
    place: usize,
    /// The mean of all numbers of the perceptual hash.
    brightness: f64,
    /// In grey levels.
    contrast: f64,
    hash: Vec<f32>,
}

impl Look {
    fn new(place: usize, hash: ArrayView1<'_, f32>) -> Self {
        let mean = |values: &mut dyn Iterator<Item = f64>| values.sum::<f64>() / hash.len() as f64;
        let mut channels = [0.0; 3];
        for (at, &value) in hash.iter().enumerate() {
            channels[at % 3] += f64::from(value) * 3.0 / hash.len() as f64;
        }
        let deviation = |(at, &value): (usize, &f32)| (f64::from(value) - channels[at % 3]).powi(2);
        Look {
            place,
            brightness: mean(&mut hash.iter().map(|&value| f64::from(value))),
            contrast: (mean(&mut hash.iter().enumerate().map(deviation)).sqrt()).max(SMALLEST_CONTRAST),
            hash: hash.to_vec(),
        }
    }

    /// Of images with this contrast only those in the same or the next class can look the same: contrasts differ by no more
    /// than hashes do.
    fn class(&self) -> i64 {
        // x - 1 = LARGEST_DIFFERENCE √x for the largest quotient x of two contrasts.
        let half = LARGEST_DIFFERENCE / 2.0;
        let largest = (half + half.hypot(1.0)).powi(2);
        (self.contrast.ln() / largest.ln()).floor() as i64
    }

    fn looks_like(&self, other: &Look) -> bool {
        let largest = LARGEST_DIFFERENCE.powi(2) * self.contrast * other.contrast * self.hash.len() as f64;
        let mut sum = 0.0;
        // Of images that differ the first few numbers mostly tell.
        for (a, b) in self.hash.chunks(4).zip(other.hash.chunks(4)) {
            sum += (a.iter().zip(b)).map(|(a, b)| f64::from(a - b).powi(2)).sum::<f64>();
            if sum > largest {
                return false;
            }
        }
        true
    }
}

/// Pairs of places whose perceptual hashes are alike, in ascending order; none if there are no hashes.
fn look_alikes(inspection: &Inspection<'_>, firsts: &[ImageRef]) -> Result<Vec<(usize, usize)>> {
    let Some([train, test]) = inspection.hashes else {
        return Ok(Vec::new());
    };
    let read = |table: &StoredTable<'_>| table.features(0..table.rows().n_rows());
    let (train, test) = (read(train)?, read(test)?);
    let hash = |image: &ImageRef| match image.split {
        Split::Train => train.row(image.row),
        Split::Test => test.row(image.row),
    };
    let mut classes: HashMap<i64, Vec<Look>> = HashMap::new();
    for (place, image) in firsts.iter().enumerate() {
        let look = Look::new(place, hash(image));
        classes.entry(look.class()).or_default().push(look);
    }
    for looks in classes.values_mut() {
        looks.sort_by(|a, b| a.brightness.total_cmp(&b.brightness).then(a.place.cmp(&b.place)));
    }
    let find = |(class, looks): (&i64, &Vec<Look>)| -> Vec<(usize, usize)> {
        let next = classes.get(&(class + 1)).map_or(&[][..], Vec::as_slice);
        let of_look = |(at, look): (usize, &Look)| {
            // Nor does the brightness differ by more than the hashes.
            let reach = |other: &Look| LARGEST_DIFFERENCE * (look.contrast * other.contrast).sqrt();
            let is_near = |other: &&Look| (other.brightness - look.brightness).abs() <= reach(other);
            let widest = 1.2 * LARGEST_DIFFERENCE * look.contrast;
            let within =
                |others: &'_ [Look]| others.partition_point(|other| other.brightness <= look.brightness + widest);
            let own = &looks[at + 1..][..within(&looks[at + 1..])];
            let start = next.partition_point(|other| other.brightness < look.brightness - widest);
            let above = &next[start..][..within(&next[start..])];
            let alike = own
                .iter()
                .chain(above)
                .filter(is_near)
                .filter(|other| look.looks_like(other));
            let pair = |other: &Look| (look.place.min(other.place), look.place.max(other.place));
            alike.take(LINKS).map(pair).collect::<Vec<_>>()
        };
        looks.par_iter().enumerate().flat_map_iter(of_look).collect()
    };
    let mut pairs: Vec<(usize, usize)> = classes.iter().flat_map(find).collect();
    pairs.sort_unstable();
    Ok(pairs)
}

fn features(inspection: &Inspection<'_>, image: ImageRef) -> Result<Array2<f32>> {
    Ok(inspection.features(image.split).features(image.row..image.row + 1)?)
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

/// Disjoint sets of places.
struct Groups {
    parents: Vec<usize>,
    /// The smallest cosine by which the members of a set were joined, at the set's own place.
    cosines: Vec<f64>,
}

impl Groups {
    fn new(n: usize) -> Self {
        Groups {
            parents: (0..n).collect(),
            cosines: vec![1.0; n],
        }
    }

    /// The place that stands for the set of this one: the first of them.
    fn of(&self, mut place: usize) -> usize {
        while self.parents[place] != place {
            place = self.parents[place];
        }
        place
    }

    fn join(&mut self, a: usize, b: usize, cosine: f64) {
        let (a, b) = (self.of(a), self.of(b));
        let (first, last) = (a.min(b), a.max(b));
        self.cosines[first] = cosine.min(self.cosines[first]).min(self.cosines[last]);
        self.parents[last] = first;
    }
}
