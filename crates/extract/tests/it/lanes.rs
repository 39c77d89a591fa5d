//! Features are those of the image alone, whatever runs beside it.

use std::path::PathBuf;

use luthier_extract::{Device, ExtractorConfig, Framing, Precision};

use crate::{config, embed, extractor, photo};

/// A seeded order of `0..n` (Fisher and Yates, with a linear congruential generator).
fn shuffled(n: usize, seed: u64) -> Vec<usize> {
    let mut state = seed;
    let mut order: Vec<usize> = (0..n).collect();
    for place in (1..n).rev() {
        state = state
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        order.swap(place, (state >> 33) as usize % (place + 1));
    }
    order
}

#[test]
fn features_depend_neither_on_neighbours_nor_on_position_nor_on_threads() {
    const IMAGES: usize = 5;
    let folder = tempfile::tempdir().unwrap();
    let paths: Vec<PathBuf> = (0..IMAGES)
        .map(|n| {
            let path = folder.path().join(format!("{n}.jpg"));
            std::fs::write(&path, photo(31 * n as u8)).unwrap();
            path
        })
        .collect();
    for precision in [Precision::Fp32, Precision::Bf16, Precision::Int8] {
        if let Err(error) = Device::Cpu.check(precision) {
            eprintln!("SKIPPED: {error}");
            continue;
        }
        let mut of_any_batch: Option<Vec<Vec<f32>>> = None;
        for batch in [None, Some(3)] {
            let config = ExtractorConfig {
                precision,
                batch,
                ..config()
            };
            let expected = embed(&extractor(&config, 1, IMAGES), Framing::Squash, &paths);
            assert!(expected.iter().flatten().all(|value| value.is_finite()));
            assert_ne!(expected[0], expected[1]);
            // Sums of integers do not depend on their order: the batch is not part of the key.
            if precision == Precision::Int8 {
                let first = of_any_batch.get_or_insert_with(|| expected.clone());
                assert!(*first == expected, "batch {batch:?}");
            }
            // As part of a long run, which takes several images at once.
            let found = embed(&extractor(&config, 2, 10_000), Framing::Squash, &paths);
            assert!(found == expected, "{precision}, batch {batch:?}, in a long run");
            // Random partitions: each part has an extractor of its own, as after an interruption or
            // from the cache.
            for (seed, n_threads, part) in [(1, 2, 3), (2, 3, IMAGES), (3, 16, 1)] {
                for places in shuffled(IMAGES, seed).chunks(part) {
                    let part: Vec<&PathBuf> = places.iter().map(|&place| &paths[place]).collect();
                    let found = embed(&extractor(&config, n_threads, part.len()), Framing::Squash, &part);
                    for (&place, found) in places.iter().zip(found) {
                        assert!(
                            found == expected[place],
                            "image {place} in {precision}, batch {batch:?}, {n_threads} threads, with {places:?}"
                        );
                    }
                }
            }
        }
    }
}
