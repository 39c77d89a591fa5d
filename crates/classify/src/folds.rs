//! Which images cross-validation holds out together.

use std::cmp::Reverse;
use std::collections::{BTreeMap, HashMap};

use luthier_artifact::file_names::printable;
use luthier_artifact::{Digest, ReadRows};

use crate::{Error, Result, Training};

/// The fold of each row.
#[derive(Debug)]
pub(crate) struct Folds {
    /// The fold in which each row is held out, if it is in any.
    of: Vec<Option<usize>>,
    /// The place of each row's image in the order in which its class was shuffled.
    turns: Vec<usize>,
    /// The number of folds, at least 2, none of which is empty.
    pub(crate) n_folds: usize,
}

/// An image of a class, with the rows of its copies.
struct Item {
    label: usize,
    /// The image's place in the shuffle.
    draw: Digest,
    image: Digest,
    rows: Vec<usize>,
}

/// The places of items that are held out together, in ascending order: one item, or several that look alike.
type Unit = Vec<usize>;

impl Folds {
    /// Deals out each class evenly. The order depends on the seed and the images, not on the order of the rows.
    ///
    /// Images that look alike are one unit. Units of several images are dealt first, the largest first, each to the fold
    /// that has fewest images of its classes. Then the other images of each class are dealt to the folds that have
    /// fewest of the class. Of folds that have equally many, the smaller fold comes first. Without look-alikes this is
    /// dealing in turn, where each class goes on where the class before ended.
    ///
    /// Each fold leaves at least one image of every class to train on: a unit that is all of a class is never held
    /// out, and if all units of a class ended up in one fold, its smallest unit is not.
    ///
    /// # Errors
    /// [`Error::Folds`] below two folds; [`Error::NothingToHoldOut`] if no two folds can be filled.
    pub(crate) fn deal<R: ReadRows<Feature = f32>>(train: &Training<'_, R>, folds: usize, seed: u64) -> Result<Self> {
        if folds < 2 {
            return Err(Error::Folds { found: folds });
        }
        let (items, turns) = shuffled(train, seed);
        let units = units(&items, train.look_alikes);
        let mut n_units = vec![0; train.n_classes()];
        for unit in &units {
            labels_of(unit, &items).for_each(|label| n_units[label] += 1);
        }
        let mut dealt: Vec<&Unit> = units
            .iter()
            .filter(|unit| labels_of(unit, &items).all(|label| n_units[label] > 1))
            .collect();
        // Units of several images first; the sort is stable, so that single images stay in order.
        dealt.sort_by_key(|unit| match unit.as_slice() {
            [_] => (Reverse(1), None),
            several => (
                Reverse(several.len()),
                several.iter().map(|&item| (items[item].draw, items[item].label)).min(),
            ),
        });
        let n_folds = folds.min(dealt.len());
        if n_folds < 2 {
            return Err(Error::NothingToHoldOut);
        }

        let mut tables = Tables::new(n_folds, train.n_classes());
        let fold_of: Vec<usize> = dealt.iter().map(|unit| tables.deal(unit, &items)).collect();
        let mut of = vec![None; train.n_rows()];
        let mut put = |unit: &Unit, fold: Option<usize>| {
            let rows = unit.iter().flat_map(|&item| &items[item].rows);
            rows.for_each(|&row| of[row] = fold);
        };
        for (unit, &fold) in dealt.iter().zip(&fold_of) {
            put(unit, Some(fold));
        }
        for (label, &n_units) in n_units.iter().enumerate() {
            let of_class =
                || (dealt.iter().zip(&fold_of)).filter(|(unit, _)| labels_of(unit, &items).any(|l| l == label));
            let n_dealt = of_class().count();
            let mut in_folds = of_class().map(|(_, fold)| fold);
            let Some(first) = in_folds.next() else { continue };
            if n_dealt == n_units && in_folds.all(|fold| fold == first) {
                let smallest = of_class().map(|(unit, _)| *unit).min_by_key(|unit| unit.len());
                put(smallest.expect("the class has units"), None);
            }
        }
        Folds { of, turns, n_folds }.without_empty_folds()
    }

    /// The same folds, numbered anew without those that hold nothing out.
    fn without_empty_folds(mut self) -> Result<Self> {
        let mut number = vec![None; self.n_folds];
        let mut n_folds = 0;
        for (fold, number) in number.iter_mut().enumerate() {
            if self.of.contains(&Some(fold)) {
                *number = Some(n_folds);
                n_folds += 1;
            }
        }
        if n_folds < 2 {
            return Err(Error::NothingToHoldOut);
        }
        for of in &mut self.of {
            *of = of.and_then(|fold| number[fold]);
        }
        Ok(Folds { n_folds, ..self })
    }

    /// The fold that holds a row out, if any does.
    pub(crate) fn of(&self, row: usize) -> Option<usize> {
        self.of[row]
    }

    /// The rows of which this is true, in ascending order.
    pub(crate) fn rows(&self, is_chosen: impl Fn(&Option<usize>) -> bool) -> Vec<usize> {
        (0..self.of.len()).filter(|&row| is_chosen(&self.of[row])).collect()
    }

    /// Of the rows that a fold does not hold out this share of each class, at least one row each: the first rows of the
    /// shuffle, in ascending order.
    pub(crate) fn share_of_others<R: ReadRows<Feature = f32>>(
        &self,
        fold: usize,
        train: &Training<'_, R>,
        share: f64,
    ) -> Vec<usize> {
        let mut classes = vec![Vec::new(); train.n_classes()];
        for row in self.rows(|of| *of != Some(fold)) {
            classes[train.labels[row]].push(row);
        }
        let mut rows: Vec<usize> = (classes.iter_mut())
            .flat_map(|rows| {
                rows.sort_by_key(|&row| (self.turns[row], row));
                let n = (share * rows.len() as f64).ceil() as usize;
                rows[..n].iter().copied()
            })
            .collect();
        rows.sort_unstable();
        rows
    }
}

/// Names the classes of which no image is among the rows that were held out, in ascending order.
pub(crate) fn warn_of_classes_never_held_out<R: ReadRows<Feature = f32>>(train: &Training<'_, R>, held_out: &[usize]) {
    let mut images = vec![Some(Vec::new()); train.n_classes()];
    for (row, &label) in train.labels.iter().enumerate() {
        match (held_out.binary_search(&row), &mut images[label]) {
            (Err(_), Some(images)) => images.push(train.images[row]),
            (_, images) => *images = None,
        }
    }
    for (class, images) in train.classes.iter().zip(images) {
        let class = printable(class);
        match images {
            Some(images) if images.iter().all(|image| *image == images[0]) => {
                tracing::warn!("class {class} has one training image, which cross-validation cannot hold out");
            }
            Some(_) => {
                tracing::warn!("the training images of class {class} look alike: cross-validation cannot hold them out")
            }
            None => {}
        }
    }
}

/// The images of each class in label order, shuffled, and the place of each row's image among those of its class.
fn shuffled<R: ReadRows<Feature = f32>>(train: &Training<'_, R>, seed: u64) -> (Vec<Item>, Vec<usize>) {
    let mut classes = vec![BTreeMap::<Digest, Vec<usize>>::new(); train.n_classes()];
    for (row, (&label, image)) in train.labels.iter().zip(train.images).enumerate() {
        let draw = Digest::of(&[&seed.to_le_bytes(), image.as_bytes().as_slice()].concat());
        classes[label].entry(draw).or_default().push(row);
    }
    let mut turns = vec![0; train.n_rows()];
    let mut items = Vec::new();
    for (label, images) in classes.into_iter().enumerate() {
        for (turn, (draw, rows)) in images.into_iter().enumerate() {
            rows.iter().for_each(|&row| turns[row] = turn);
            items.push(Item {
                label,
                draw,
                image: train.images[rows[0]],
                rows,
            });
        }
    }
    (items, turns)
}

/// Joins items whose images are in one group, in the order of their first items.
fn units(items: &[Item], groups: &[Vec<Digest>]) -> Vec<Unit> {
    // Each item points to an earlier item of its unit, the first item to itself.
    let mut earlier: Vec<usize> = (0..items.len()).collect();
    let first = |earlier: &[usize], mut item: usize| {
        while earlier[item] != item {
            item = earlier[item];
        }
        item
    };
    if !groups.is_empty() {
        let mut items_of = HashMap::<&Digest, Vec<usize>>::new();
        for (place, item) in items.iter().enumerate() {
            items_of.entry(&item.image).or_default().push(place);
        }
        for group in groups {
            let mut members = group.iter().filter_map(|image| items_of.get(image)).flatten();
            let Some(&start) = members.next() else { continue };
            let mut joined = first(&earlier, start);
            for &member in members {
                let other = first(&earlier, member);
                (earlier[joined.max(other)], joined) = (joined.min(other), joined.min(other));
                // Keeps the way short for the next look.
                earlier[member] = joined;
            }
        }
    }
    let mut units: BTreeMap<usize, Unit> = BTreeMap::new();
    for item in 0..items.len() {
        units.entry(first(&earlier, item)).or_default().push(item);
    }
    units.into_values().collect()
}

/// The classes of a unit, each once.
fn labels_of<'a>(unit: &'a Unit, items: &'a [Item]) -> impl Iterator<Item = usize> + 'a {
    // Items are in label order.
    let mut last = None;
    unit.iter()
        .map(|&item| items[item].label)
        .filter(move |&label| last.replace(label) != Some(label))
}

/// How many images each fold has so far.
struct Tables {
    /// Of each class, in each fold.
    of_class: Vec<Vec<usize>>,
    /// In each fold.
    of_all: Vec<usize>,
    /// The fold after the last that was dealt to.
    next: usize,
}

impl Tables {
    fn new(n_folds: usize, n_classes: usize) -> Self {
        Tables {
            of_class: vec![vec![0; n_folds]; n_classes],
            of_all: vec![0; n_folds],
            next: 0,
        }
    }

    /// Deals a unit to the fold that needs it most.
    fn deal(&mut self, unit: &Unit, items: &[Item]) -> usize {
        let n_folds = self.of_all.len();
        let of_same_classes =
            |fold: usize| -> usize { unit.iter().map(|&item| self.of_class[items[item].label][fold]).sum() };
        let fold = (0..n_folds)
            .map(|turn| (self.next + turn) % n_folds)
            .min_by_key(|&fold| (of_same_classes(fold), self.of_all[fold]))
            .expect("there are two folds or more");
        for &item in unit {
            self.of_class[items[item].label][fold] += 1;
        }
        self.of_all[fold] += unit.len();
        self.next = (fold + 1) % n_folds;
        fold
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use luthier_artifact::{ExtractorInfo, FeatureTable};
    use ndarray::Array2;
    use proptest::prelude::*;

    use super::*;

    pub(crate) fn table(sizes: &[usize]) -> FeatureTable {
        let labels: Vec<usize> = sizes
            .iter()
            .enumerate()
            .flat_map(|(label, &size)| vec![label; size])
            .collect();
        let info = |text: &str| text.to_owned();
        FeatureTable {
            classes: (0..sizes.len()).map(|class| format!("class-{class}")).collect(),
            extractor: ExtractorInfo {
                views: vec![info("squash")],
                pooling: "mean".into(),
                combine: info("mean"),
                decode: info("scaled"),
                weights: info("untrained"),
                weights_sha256: info("00"),
                precision: info("fp32"),
            },
            images: (0..labels.len()).map(|row| Digest::of(&row.to_le_bytes())).collect(),
            features: Array2::zeros((labels.len(), 1)),
            labels,
        }
    }

    #[test]
    fn smaller_shares_are_part_of_larger_ones_and_miss_no_class() {
        let table = table(&[23, 7, 1]);
        let train = Training::from(&table);
        let folds = Folds::deal(&train, 5, 0).unwrap();
        for fold in 0..5 {
            let [quarter, half, all] = [0.25, 0.5, 1.0].map(|share| folds.share_of_others(fold, &train, share));
            assert_eq!(all, folds.rows(|of| *of != Some(fold)));
            assert!(quarter.iter().all(|row| half.contains(row)) && half.len() > quarter.len());
            assert!((0..3).all(|label| quarter.iter().any(|&row| table.labels[row] == label)));
        }
    }

    #[test]
    fn folds_share_out_every_class_and_all_images_evenly() {
        let train = table(&[23, 7, 11]);
        let Folds {
            of: fold_of, n_folds, ..
        } = Folds::deal(&Training::from(&train), 5, 1).unwrap();
        assert_eq!(n_folds, 5);
        let sizes = |label: Option<usize>| {
            let mut sizes = [0usize; 5];
            for (fold, &of) in fold_of.iter().flatten().zip(&train.labels) {
                sizes[*fold] += usize::from(label.is_none_or(|label| label == of));
            }
            sizes.iter().max().unwrap() - sizes.iter().min().unwrap()
        };
        for group in [None, Some(0), Some(1), Some(2)] {
            assert!(sizes(group) <= 1, "{group:?}");
        }
    }

    #[test]
    fn folds_follow_the_image_and_the_seed_but_not_the_order_of_rows() {
        let train = table(&[20, 20]);
        let deal = |train: &FeatureTable, seed| Folds::deal(&Training::from(train), 4, seed).unwrap().of;
        let folds = deal(&train, 1);
        let mut swapped = train.clone();
        swapped.images.swap(3, 9);
        let (mut expected, found) = (folds.clone(), deal(&swapped, 1));
        expected.swap(3, 9);
        assert_eq!(found, expected);
        assert_ne!(deal(&train, 2), folds);
    }

    #[test]
    fn small_classes_are_held_out_as_far_as_they_can_be() {
        let deal = |sizes: &[usize], folds| Folds::deal(&Training::from(&table(sizes)), folds, 1);
        // The three of the second class are held out in three different folds, the one of the third in none.
        let Folds { of, n_folds, .. } = deal(&[9, 3, 1], 5).unwrap();
        assert_eq!(n_folds, 5);
        let small: std::collections::HashSet<_> = of[9..12].iter().flatten().collect();
        assert_eq!((small.len(), of[12]), (3, None));
        assert_eq!(deal(&[2, 1], 5).unwrap().n_folds, 2);
        let mut copies = table(&[6]);
        copies.images[3] = copies.images[0];
        let Folds { of, .. } = Folds::deal(&Training::from(&copies), 5, 1).unwrap();
        assert_eq!(of[3], of[0]);
        assert!(matches!(deal(&[1, 1], 5), Err(Error::NothingToHoldOut)));
        assert!(matches!(deal(&[9, 9], 1), Err(Error::Folds { found: 1 })));
    }

    /// A group of the images of these rows.
    fn group(table: &FeatureTable, rows: &[usize]) -> Vec<Digest> {
        rows.iter().map(|&row| table.images[row]).collect()
    }

    #[test]
    fn images_that_look_alike_are_held_out_together_even_across_classes() {
        let table = table(&[12, 9]);
        // The second and third group share an image, and a stranger is in no row.
        let groups = [
            group(&table, &[0, 3, 5, 7]),
            group(&table, &[1, 14]),
            [group(&table, &[14, 20]), vec![Digest::of(b"stranger")]].concat(),
        ];
        let plain = Training::from(&table);
        let apart = |of: &[Option<usize>]| [[0, 3], [0, 5], [0, 7], [1, 14], [14, 20]].map(|[a, b]| of[a] != of[b]);
        // Dealt one by one, they are not together by chance.
        assert!(apart(&Folds::deal(&plain, 4, 1).unwrap().of).contains(&true));
        for seed in 0..20 {
            let Folds { of, n_folds, .. } = Folds::deal(&plain.with_look_alikes(&groups), 4, seed).unwrap();
            assert_eq!(n_folds, 4);
            assert_eq!(apart(&of), [false; 5], "seed {seed}: {of:?}");
            assert!(of.iter().all(Option::is_some));
        }
    }

    #[test]
    fn groups_without_two_images_of_the_table_change_nothing() {
        let table = table(&[23, 7, 11]);
        let groups = [vec![table.images[4]], vec![Digest::of(b"stranger")], vec![]];
        let plain = Folds::deal(&Training::from(&table), 5, 3).unwrap();
        let grouped = Folds::deal(&Training::from(&table).with_look_alikes(&groups), 5, 3).unwrap();
        assert_eq!((plain.of, plain.turns), (grouped.of, grouped.turns));
    }

    #[test]
    fn a_class_of_look_alikes_only_is_never_held_out() {
        let table = table(&[6, 3]);
        let groups = [group(&table, &[6, 7, 8])];
        let training = Training::from(&table).with_look_alikes(&groups);
        let Folds { of, .. } = Folds::deal(&training, 3, 1).unwrap();
        assert_eq!(of[6..], [None; 3]);
        assert!(of[..6].iter().all(Option::is_some));

        let all = [group(&table, &[0, 1, 2, 3, 4, 5]), group(&table, &[6, 7, 8])];
        let error = Folds::deal(&Training::from(&table).with_look_alikes(&all), 3, 1).unwrap_err();
        assert!(matches!(error, Error::NothingToHoldOut), "{error}");
    }

    /// Class sizes, and groups of any rows.
    fn any_groups() -> impl Strategy<Value = (Vec<usize>, Vec<Vec<usize>>)> {
        prop::collection::vec(1usize..14, 2..5).prop_flat_map(|sizes| {
            let n: usize = sizes.iter().sum();
            let groups = prop::collection::vec(prop::collection::vec(0..n, 0..6), 0..6);
            (Just(sizes), groups)
        })
    }

    /// Every class in turn, going on where the class before ended.
    fn dealt_in_turn(table: &FeatureTable, folds: usize, seed: u64) -> Vec<Option<usize>> {
        let mut classes = vec![BTreeMap::<Digest, Vec<usize>>::new(); table.classes.len()];
        for (row, (&label, image)) in table.labels.iter().zip(&table.images).enumerate() {
            let draw = Digest::of(&[&seed.to_le_bytes(), image.as_bytes().as_slice()].concat());
            classes[label].entry(draw).or_default().push(row);
        }
        classes.retain(|images| images.len() > 1);
        let n_folds = folds.min(classes.iter().map(BTreeMap::len).sum());
        let mut of = vec![None; table.n_rows()];
        for (turn, rows) in classes.iter().flat_map(BTreeMap::values).enumerate() {
            rows.iter().for_each(|&row| of[row] = Some(turn % n_folds));
        }
        of
    }

    proptest! {
        #[test]
        fn without_look_alikes_every_class_is_dealt_in_turn(
            sizes in prop::collection::vec(1usize..14, 2..6), folds in 2usize..8, seed in 0u64..4
        ) {
            let mut table = table(&sizes);
            // A copy in the first class.
            table.images[sizes[0] - 1] = table.images[0];
            if let Ok(dealt) = Folds::deal(&Training::from(&table), folds, seed) {
                prop_assert_eq!(dealt.of, dealt_in_turn(&table, folds, seed));
            }
        }

        #[test]
        fn folds_keep_groups_whole_and_leave_every_class_something_to_train_on(
            (sizes, groups) in any_groups(), folds in 2usize..6, seed in 0u64..4
        ) {
            let table = table(&sizes);
            let groups: Vec<Vec<Digest>> = groups.iter().map(|rows| group(&table, rows)).collect();
            let Ok(dealt) = Folds::deal(&Training::from(&table).with_look_alikes(&groups), folds, seed) else {
                return Ok(());
            };
            for group in &groups {
                let row = |image: &Digest| table.images.iter().position(|other| other == image).unwrap();
                let of: Vec<_> = group.iter().map(|image| dealt.of[row(image)]).collect();
                prop_assert!(of.windows(2).all(|pair| pair[0] == pair[1]), "{:?}", of);
            }
            prop_assert!(dealt.n_folds >= 2 && dealt.n_folds <= folds);
            for fold in 0..dealt.n_folds {
                let held_out = dealt.rows(|of| *of == Some(fold));
                prop_assert!(!held_out.is_empty());
                for label in 0..sizes.len() {
                    let is_left = |row: usize| table.labels[row] == label && dealt.of[row] != Some(fold);
                    prop_assert!((0..table.n_rows()).any(is_left), "fold {} without class {}", fold, label);
                }
            }

            // Neither the order of rows nor that of groups shows.
            let mut turned = table.clone();
            turned.images.reverse();
            turned.labels.reverse();
            let turned_groups: Vec<Vec<Digest>> =
                groups.iter().rev().map(|group| group.iter().rev().copied().collect()).collect();
            let again = Folds::deal(&Training::from(&turned).with_look_alikes(&turned_groups), folds, seed).unwrap();
            prop_assert_eq!(again.of.into_iter().rev().collect::<Vec<_>>(), dealt.of);
        }

        #[test]
        fn dealing_with_pairs_of_look_alikes_stays_even(n in 20usize..60, seed in 0u64..8) {
            // Every fourth image has a look-alike in its class.
            let table = table(&[n, n / 2]);
            let groups: Vec<Vec<Digest>> = (0..n - 1).step_by(4).map(|row| group(&table, &[row, row + 1])).collect();
            let Folds { of, n_folds, .. } =
                Folds::deal(&Training::from(&table).with_look_alikes(&groups), 5, seed).unwrap();
            for label in 0..2 {
                let mut sizes = vec![0usize; n_folds];
                for (fold, &of_row) in of.iter().zip(&table.labels) {
                    sizes[fold.unwrap()] += usize::from(of_row == label);
                }
                prop_assert!(sizes.iter().max().unwrap() - sizes.iter().min().unwrap() <= 1, "{:?}", sizes);
            }
        }
    }
}
