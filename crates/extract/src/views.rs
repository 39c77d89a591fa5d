use std::fmt;

use luthier_artifact::UnknownName;

use crate::{Framing, InputSize, Pooling, View, WIDTH};

/// How the features of an image's views become one row.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[derive(strum::Display, strum::EnumString, strum::VariantNames)]
#[strum(serialize_all = "lowercase", parse_err_ty = UnknownName, parse_err_fn = unknown_combination)]
pub enum Combine {
    /// The average of the views: 2048 features.
    Mean,
    /// The features of all views side by side, in the order of the views: 2048 for each view.
    Concat,
}

fn unknown_combination(found: &str) -> UnknownName {
    UnknownName::of::<Combine>("combine", found)
}

/// Features of an image that the network makes: of one view, pooled in one way.
///
/// A pass through the network gives the features of a view by every pooling.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct FeatureKind {
    /// What the network sees.
    pub view: View,
    /// How its last maps become features.
    pub pooling: Pooling,
}

impl fmt::Display for FeatureKind {
    /// For example `pad with gem pooling`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} with {} pooling", self.view, self.pooling)
    }
}

/// The views in which the network sees an image, and how their features become one row.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Views {
    views: Vec<View>,
    combine: Combine,
}

impl Views {
    /// Views in this order. A single view has nothing to combine: any `combine` then gives equal
    /// `Views`.
    ///
    /// # Errors
    /// A message if there is no view, or if a view occurs twice.
    pub fn new(views: Vec<View>, combine: Combine) -> Result<Self, String> {
        if views.is_empty() {
            return Err("expected at least one view, found none".to_owned());
        }
        if let Some((_, twice)) = (views.iter().enumerate()).find(|(place, view)| views[..*place].contains(view)) {
            return Err(format!("expected each view once, found {twice} twice"));
        }
        let combine = if views.len() == 1 { Combine::Mean } else { combine };
        Ok(Views { views, combine })
    }

    /// The views in order.
    pub fn as_slice(&self) -> &[View] {
        &self.views
    }

    /// The sizes of the views, each once.
    pub fn sizes(&self) -> Vec<InputSize> {
        sizes(self.views.iter().copied())
    }

    /// The views of one size.
    pub(crate) fn of_size(&self, size: InputSize) -> impl Iterator<Item = &View> {
        self.views.iter().filter(move |view| view.size == size)
    }

    /// How the features of the views become one row.
    pub fn combination(&self) -> Combine {
        self.combine
    }

    /// The number of features of a row.
    pub fn width(&self) -> usize {
        match self.combine {
            Combine::Mean => WIDTH,
            Combine::Concat => WIDTH * self.views.len(),
        }
    }

    /// Combines the 2048 features of each view to one row, `f32 [width]`. `rows` are in the order
    /// of the views.
    ///
    /// Averages are taken in double precision.
    ///
    /// # Panics
    /// If the number of rows is not the number of views.
    pub fn combine(&self, rows: &[&[f32]]) -> Vec<f32> {
        assert_eq!(rows.len(), self.views.len(), "one row a view");
        match self.combine {
            Combine::Concat => rows.concat(),
            Combine::Mean => {
                let n = rows.len() as f64;
                let mean = |column| (rows.iter().map(|row| f64::from(row[column])).sum::<f64>() / n) as f32;
                (0..WIDTH).map(mean).collect()
            }
        }
    }
}

/// The sizes of views, each once, in the order in which they first occur.
pub(crate) fn sizes(views: impl Iterator<Item = View>) -> Vec<InputSize> {
    let mut sizes = Vec::new();
    for View { size, .. } in views {
        if !sizes.contains(&size) {
            sizes.push(size);
        }
    }
    sizes
}

impl From<View> for Views {
    fn from(view: View) -> Self {
        Views {
            views: vec![view],
            combine: Combine::Mean,
        }
    }
}

impl From<Framing> for Views {
    /// One view of 224 × 224 pixels.
    fn from(framing: Framing) -> Self {
        View::from(framing).into()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn views_are_averaged_or_put_side_by_side() {
        let (a, b) = ([1.0; WIDTH], [4.0; WIDTH]);
        let both = |combine| Views::new([Framing::Squash, Framing::Mirror].map(View::from).to_vec(), combine).unwrap();
        let mean = both(Combine::Mean);
        assert_eq!((mean.width(), mean.combine(&[&a, &b])), (WIDTH, vec![2.5; WIDTH]));
        let concat = both(Combine::Concat);
        let row = concat.combine(&[&a, &b]);
        assert_eq!((concat.width(), row.len()), (2 * WIDTH, 2 * WIDTH));
        assert_eq!((row[WIDTH - 1], row[WIDTH]), (1.0, 4.0));
    }

    #[test]
    fn one_view_passes_unchanged_whatever_the_combination() {
        let views = Views::new([Framing::Crop].map(View::from).to_vec(), Combine::Concat).unwrap();
        assert_eq!(views, Framing::Crop.into());
        let row: Vec<f32> = (0..WIDTH).map(|n| (n as f32).sin()).collect();
        assert_eq!(views.combine(&[&row]), row);
    }

    #[test]
    fn no_view_and_a_view_twice_are_refused() {
        assert_eq!(
            Views::new(vec![], Combine::Mean),
            Err("expected at least one view, found none".to_owned())
        );
        let twice = [Framing::Crop, Framing::Squash, Framing::Crop].map(View::from).to_vec();
        assert_eq!(
            Views::new(twice, Combine::Mean),
            Err("expected each view once, found crop twice".to_owned())
        );
    }
}
