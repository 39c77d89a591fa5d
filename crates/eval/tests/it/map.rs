//! The map of evaluated images.

use luthier_artifact::Digest;
use luthier_eval::MapConfig;
use ndarray::Array2;
use rayon::ThreadPoolBuilder;

/// Images of `n_classes`, which lie apart in `n_features` dimensions.
fn features(n: usize, n_classes: usize, n_features: usize) -> Array2<f32> {
    let noise = |seed: usize| ((seed * 2_654_435_761) % 1_000_003) as f32 / 1_000_003.0;
    Array2::from_shape_fn((n, n_features), |(row, column)| {
        let own = noise(row * n_features + column);
        let of_class = noise(7_919 * (row % n_classes + 1) + 31 * column);
        of_class + 0.6 * own
    })
}

/// The digests of `n` images.
fn images(n: usize) -> Vec<Digest> {
    (0..n).map(|n| Digest::of(&n.to_le_bytes())).collect()
}

#[test]
fn images_of_a_class_lie_together_and_the_map_is_the_same_each_time() {
    let (n, n_classes) = (600, 10);
    let x = features(n, n_classes, 64);
    // The rows of an evaluation need not be those of the table.
    let at: Vec<usize> = (0..n).rev().collect();
    let map = || MapConfig::default().run(&x.view(), images(n), &at).unwrap();
    let found = map();
    for n_threads in [1, 3] {
        let threads = ThreadPoolBuilder::new().num_threads(n_threads).build().unwrap();
        assert_eq!(found, threads.install(map), "{n_threads} threads, to the bit");
    }
    assert_eq!(found.images.len(), n);
    let class = |row: usize| at[row] % n_classes;
    let distance = |a: usize, b: usize| {
        let ([ax, ay], [bx, by]) = (found.places[a], found.places[b]);
        (ax - bx).hypot(ay - by)
    };
    let is_with_its_own = |row: &usize| {
        let others = (0..n).filter(|other| other != row);
        let nearest = others
            .min_by(|&a, &b| distance(*row, a).total_cmp(&distance(*row, b)))
            .unwrap();
        class(nearest) == class(*row)
    };
    let n_with_their_own = (0..n).filter(is_with_its_own).count();
    assert!(n_with_their_own > 590, "{n_with_their_own}");
}

#[test]
fn few_images_and_images_that_are_all_alike_are_no_trouble() {
    for n in [1, 11, 12, 13, 40, 100] {
        for x in [features(n, 3, 8), Array2::ones((n, 8)), Array2::zeros((n, 8))] {
            let map = MapConfig::default()
                .run(&x.view(), images(n), &(0..n).collect::<Vec<_>>())
                .unwrap();
            assert_eq!(map.images.len(), if n < 12 { 0 } else { n });
            assert!(
                map.places.iter().flatten().all(|place| place.is_finite()),
                "{n}: {map:?}"
            );
        }
    }
}
