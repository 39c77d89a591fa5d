//! How long a stage would take, judging by what earlier executions of it took.

use std::fmt;

use luthier_artifact::Key;
use luthier_cache::Cache;

use crate::Result;
use crate::runner::VIEWS;

/// The parts of the configuration that decide how long a stage takes: executions that differ in one of them say nothing
/// of each other.
fn decisive_parts(stage: &str) -> &'static [&'static str] {
    match stage {
        "extract" => &["views", "decode", "precision", "device", "kernels", "batch"],
        VIEWS => &["candidates", "decode", "precision", "device", "kernels", "batch"],
        "features" => &["solver"],
        // Folds are in the key only if C is searched.
        "classify" => &["solver", "folds"],
        _ => &[],
    }
}

/// The seconds that a stage with this key would take, if there is something to judge by. Extract takes time for each
/// image `to_embed`, as much as when it embedded most: with few images, most of the time goes elsewhere. The others
/// take what they took last. The choice of views also takes time to judge candidates by, however little there is to
/// embed: no less than it ever took.
pub(crate) fn seconds(cache: &Cache, key: &Key, to_embed: Option<usize>) -> Result<Option<f64>> {
    let mut history = cache.history(&key.stage)?;
    history.retain(|past| {
        decisive_parts(&key.stage)
            .iter()
            .all(|part| past.key.get(part) == key.get(part))
    });
    let Some(to_embed) = to_embed else {
        return Ok(history.last().map(|past| past.seconds));
    };
    let embedded = (history.iter()).filter_map(|past| Some((past.n_embedded.filter(|n| *n > 0)?, past.seconds)));
    let most = embedded.max_by_key(|(n_embedded, _)| *n_embedded);
    let embedding = most.map(|(n_embedded, seconds)| seconds / n_embedded as f64 * to_embed as f64);
    let judging = history.iter().map(|past| past.seconds).min_by(f64::total_cmp);
    Ok(match key.stage.as_str() {
        VIEWS => embedding.into_iter().chain(judging).max_by(f64::total_cmp),
        _ => embedding,
    })
}

/// Seconds in words, no finer than an estimate is.
#[derive(Clone, Copy, Debug)]
pub struct About(pub f64);

impl fmt::Display for About {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        const MINUTE: f64 = 60.0;
        const HOUR: f64 = 3600.0;
        match self.0 {
            seconds if seconds < 1.0 => f.write_str("under 1 s"),
            seconds if seconds < 1.5 * MINUTE => write!(f, "about {seconds:.0} s"),
            seconds if seconds < 1.5 * HOUR => write!(f, "about {:.0} min", seconds / MINUTE),
            seconds => write!(f, "about {:.1} h", seconds / HOUR),
        }
    }
}

#[cfg(test)]
mod tests {
    use luthier_cache::{Execution, References};

    use super::*;

    #[test]
    fn candidates_take_time_to_judge_also_where_nothing_is_to_be_embedded() {
        let folder = tempfile::tempdir().unwrap();
        let cache = Cache::open(folder.path()).unwrap();
        let key = |variance: &str| Key::stage(VIEWS, 1).field("variance", variance).finish();
        assert_eq!(seconds(&cache, &key("0.9"), Some(0)).unwrap(), None);
        for (variance, seconds, n_embedded) in [("0.98", 900.0, 6_000), ("0.95", 180.0, 0)] {
            let execution = Execution {
                key: key(variance),
                outputs: Vec::new(),
                seconds,
                n_embedded: Some(n_embedded),
                references: References::default(),
            };
            cache.record(&execution).unwrap();
        }
        let estimate = |to_embed| seconds(&cache, &key("0.9"), Some(to_embed)).unwrap();
        assert_eq!(
            [estimate(0), estimate(1), estimate(6_000)],
            [Some(180.0), Some(180.0), Some(900.0)]
        );
    }

    #[test]
    fn few_images_say_little_of_the_time_that_many_take() {
        let folder = tempfile::tempdir().unwrap();
        let cache = Cache::open(folder.path()).unwrap();
        let key = |manifest: &str| Key::stage("extract", 1).field("manifest", manifest).finish();
        let estimates = [("first", 6.0, 1), ("all", 100.0, 5_000), ("one more", 5.0, 1)].map(|(manifest, taken, n)| {
            let execution = Execution {
                key: key(manifest),
                outputs: Vec::new(),
                seconds: taken,
                n_embedded: Some(n),
                references: References::default(),
            };
            cache.record(&execution).unwrap();
            seconds(&cache, &key("next"), Some(1_000)).unwrap()
        });
        assert_eq!(estimates, [Some(6_000.0), Some(20.0), Some(20.0)]);
    }

    #[test]
    fn times_are_told_in_the_largest_unit_that_fits() {
        for (seconds, words) in [
            (0.02, "under 1 s"),
            (1.0, "about 1 s"),
            (89.0, "about 89 s"),
            (90.0, "about 2 min"),
            (5399.0, "about 90 min"),
            (5400.0, "about 1.5 h"),
        ] {
            assert_eq!(About(seconds).to_string(), words);
        }
    }
}
