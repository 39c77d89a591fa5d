use luthier_cache::StoredTable;
use ndarray::{Array2, ArrayView2, s};
use rayon::prelude::*;

use super::{Neighbour, Neighbours};
use crate::Result;

/// How many neighbours an image has.
const NEAREST: usize = 3;
/// How many training images are compared at once: 16 MB of features.
const TRAIN_BLOCK: usize = 2048;
/// How many test images a thread compares with them.
const TEST_BLOCK: usize = 64;

/// The training images nearest to these rows of the test images, by the cosine between their features.
///
/// Training images are read once, in blocks.
pub(super) fn neighbours(train: &StoredTable<'_>, test: &StoredTable<'_>, rows: &[usize]) -> Result<Vec<Neighbours>> {
    if rows.is_empty() {
        return Ok(Vec::new());
    }
    let mut asked = Array2::zeros((rows.len(), test.rows().width));
    for (mut asked, &row) in asked.outer_iter_mut().zip(rows) {
        asked.assign(&test.features(row..row + 1)?.row(0));
    }
    normalize(&mut asked);
    let mut found: Vec<Neighbours> = (rows.iter())
        .map(|&row| Neighbours {
            row,
            nearest: Vec::new(),
        })
        .collect();
    let n = train.rows().n_rows();
    for start in (0..n).step_by(TRAIN_BLOCK) {
        let mut block = train.features(start..n.min(start + TRAIN_BLOCK))?;
        normalize(&mut block);
        (found.par_chunks_mut(TEST_BLOCK).enumerate()).for_each(|(chunk, found)| {
            let first = chunk * TEST_BLOCK;
            let asked = asked.slice(s![first..first + found.len(), ..]);
            compare(asked, block.view(), start, found);
        });
    }
    Ok(found)
}

fn compare(asked: ArrayView2<'_, f32>, block: ArrayView2<'_, f32>, start: usize, found: &mut [Neighbours]) {
    let cosines = asked.dot(&block.t());
    for (cosines, Neighbours { nearest, .. }) in cosines.outer_iter().zip(found) {
        for (place, &cosine) in cosines.iter().enumerate() {
            let cosine = f64::from(cosine);
            if nearest.len() < NEAREST || nearest.last().is_some_and(|last| cosine > last.cosine) {
                let neighbour = Neighbour {
                    row: start + place,
                    cosine,
                };
                // Behind those as near, which come first.
                let behind = nearest.partition_point(|nearer| nearer.cosine >= cosine);
                nearest.insert(behind, neighbour);
                nearest.truncate(NEAREST);
            }
        }
    }
}

/// Gives each row the length 1; a row of zeros stays.
fn normalize(rows: &mut Array2<f32>) {
    for mut row in rows.outer_iter_mut() {
        let length = row.dot(&row).sqrt();
        if length > 0.0 {
            row /= length;
        }
    }
}
