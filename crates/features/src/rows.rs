use luthier_artifact::{Interrupted, Observer, ReadError, ReadRows};
use ndarray::{Array2, ArrayView2, ArrayViewMut2, Axis, s};

use crate::{Error, Result};

/// How many rows are read, centred and multiplied at a time: 16 MB at 2,048 features of `f32`.
///
/// The number is fixed, so that results do not depend on the number of threads.
pub(crate) const BLOCK: usize = 2048;

/// Some rows of a table, in the order of `chosen`.
#[derive(Clone, Copy, Debug)]
pub struct Subset<'a, R> {
    /// The table.
    pub rows: R,
    /// The places of the chosen rows in it.
    pub chosen: &'a [usize],
}

impl<R: ReadRows> ReadRows for Subset<'_, R> {
    type Feature = R::Feature;

    fn n_rows(&self) -> usize {
        self.chosen.len()
    }

    fn n_features(&self) -> usize {
        self.rows.n_features()
    }

    fn read(&self, start: usize, mut block: ArrayViewMut2<'_, R::Feature>) -> std::result::Result<(), ReadError> {
        let chosen = &self.chosen[start..start + block.nrows()];
        let mut row = 0;
        // Rows that follow each other are read at once.
        for run in chosen.chunk_by(|a, b| a + 1 == *b) {
            self.rows.read(run[0], block.slice_mut(s![row..row + run.len(), ..]))?;
            row += run.len();
        }
        Ok(())
    }
}

/// Rows that can be read as long as nobody interrupts.
///
/// What reads them, block by block, ends with [`Error::Interrupted`] after an interruption.
#[derive(Clone, Copy)]
pub struct Interruptible<'a, R> {
    /// The rows.
    pub rows: R,
    /// Is asked before each block.
    pub observer: &'a dyn Observer,
}

impl<R: ReadRows> ReadRows for Interruptible<'_, R> {
    type Feature = R::Feature;

    fn n_rows(&self) -> usize {
        self.rows.n_rows()
    }

    fn n_features(&self) -> usize {
        self.rows.n_features()
    }

    fn read(&self, start: usize, block: ArrayViewMut2<'_, R::Feature>) -> std::result::Result<(), ReadError> {
        if self.observer.is_interrupted() {
            return Err(Interrupted.into());
        }
        self.rows.read(start, block)
    }
}

/// Shows all rows to `visit` in order, a block at a time, each with the place of its first row.
///
/// # Errors
/// [`Error::Read`] if a block cannot be read, [`Error::Interrupted`] if the rows are [`Interruptible`] and somebody
/// interrupts, [`Error::NotFinite`] if a feature is infinite or not a number, and those of `visit`.
pub fn for_each_block<R: ReadRows>(
    rows: &R,
    mut visit: impl FnMut(usize, ArrayView2<'_, R::Feature>) -> Result<()> + Send,
) -> Result<()> {
    let n = rows.n_rows();
    let buffer = || Array2::default((n.min(BLOCK), rows.n_features()));
    let read = |start: usize, block: &mut Array2<R::Feature>| {
        let height = BLOCK.min(n.saturating_sub(start));
        rows.read(start, block.slice_mut(s![..height, ..]))
            .map_err(Error::of_read)
    };
    let (mut block, mut next) = (buffer(), if n > BLOCK { buffer() } else { Array2::default((0, 0)) });
    if n > 0 {
        read(0, &mut block)?;
    }
    for start in (0..n).step_by(BLOCK) {
        let following = start + BLOCK;
        let current = block.slice(s![..BLOCK.min(n - start), ..]);
        let (visited, was_read) = rayon::join(
            || check_finite(current, start).and_then(|()| visit(start, current)),
            || {
                if following < n {
                    read(following, &mut next)
                } else {
                    Ok(())
                }
            },
        );
        visited.and(was_read)?;
        std::mem::swap(&mut block, &mut next);
    }
    Ok(())
}

/// All rows as one matrix, `[n, d]`.
///
/// # Errors
/// [`Error::Read`] if they cannot be read.
pub fn read_all<R: ReadRows>(rows: &R) -> Result<Array2<R::Feature>> {
    let mut all = Array2::default((rows.n_rows(), rows.n_features()));
    for (index, block) in all.axis_chunks_iter_mut(Axis(0), BLOCK).enumerate() {
        rows.read(index * BLOCK, block).map_err(Error::of_read)?;
    }
    Ok(all)
}

/// Checks that every feature is a finite number. The first row of `x` is counted as row `start`.
///
/// # Errors
/// [`Error::NotFinite`] names the first feature that is not.
pub fn check_finite<T: Copy + Into<f64>>(x: ArrayView2<'_, T>, start: usize) -> Result<()> {
    for (row, features) in x.rows().into_iter().enumerate() {
        // Without branches over the row, which the compiler vectorizes.
        if features.iter().fold(true, |all, &value| all & value.into().is_finite()) {
            continue;
        }
        for (column, &value) in features.iter().enumerate() {
            let value = value.into();
            if !value.is_finite() {
                let row = start + row;
                return Err(Error::NotFinite { row, column, value });
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use ndarray::array;

    use super::*;

    #[test]
    fn every_row_is_shown_once_and_in_order() {
        for n in [0, 1, BLOCK, BLOCK + 1, 3 * BLOCK - 1] {
            let x = Array2::from_shape_fn((n, 2), |(row, column)| (2 * row + column) as f64);
            let mut seen = Array2::zeros((0, 2));
            for_each_block(&x.view(), |start, block| {
                assert_eq!(start, seen.nrows());
                seen.append(Axis(0), block).unwrap();
                Ok(())
            })
            .unwrap();
            assert_eq!(seen, x);
        }
    }

    #[test]
    fn a_subset_has_the_chosen_rows_in_their_order() {
        let x = array![[0.0f32, 1.0], [2.0, 3.0], [4.0, 5.0], [6.0, 7.0]];
        let subset = Subset {
            rows: x.view(),
            chosen: &[2, 3, 0],
        };
        assert_eq!(read_all(&subset).unwrap(), array![[4.0, 5.0], [6.0, 7.0], [0.0, 1.0]]);
    }

    #[test]
    fn a_feature_that_is_not_finite_is_named_by_its_row_in_the_table() {
        let mut x = Array2::from_elem((BLOCK + 7, 3), f32::MAX);
        x[[BLOCK + 5, 2]] = f32::NEG_INFINITY;
        let error = for_each_block(&x.view(), |_, _| Ok(())).unwrap_err();
        assert_eq!(
            error.to_string(),
            format!(
                "feature at row {}, column 2 is -inf, expected a finite number",
                BLOCK + 5
            )
        );
    }

    struct Unreadable;

    impl ReadRows for Unreadable {
        type Feature = f32;

        fn n_rows(&self) -> usize {
            2 * BLOCK
        }

        fn n_features(&self) -> usize {
            1
        }

        fn read(&self, start: usize, mut block: ArrayViewMut2<'_, f32>) -> std::result::Result<(), ReadError> {
            block.fill(0.0);
            if start == 0 { Ok(()) } else { Err("disk on fire".into()) }
        }
    }

    #[test]
    fn rows_that_cannot_be_read_are_an_error() {
        let error = for_each_block(&Unreadable, |_, _| Ok(())).unwrap_err();
        assert_eq!(error.to_string(), "disk on fire");
    }
}
