//! The extract stage on untrained weights: what is embedded, what is reused, what does not matter.

use std::fs;
use std::path::PathBuf;

use luthier_artifact::{Artifact, Digest, FeatureRows};
use luthier_cache::Cache;
use luthier_extract::{
    Combine, DataSource, Decoding, Device, ExtractConfig, ExtractContext, Extraction, ExtractorConfig, FeatureKind,
    Framing, Layout, PerceptualHash, Pooling, Precision, Rehash, View, Views, WIDTH, WeightsSource, WeightsStore, scan,
};
use ndarray::{Array2, Axis, s};

use crate::{config, photo};

struct Project {
    root: tempfile::TempDir,
    config: ExtractConfig,
}

impl Project {
    fn new() -> Self {
        let project = Project {
            root: tempfile::tempdir().unwrap(),
            config: ExtractConfig { extractor: config() },
        };
        for (seed, file) in [
            "train/a/1.jpg",
            "train/a/2.jpg",
            "train/b/1.jpg",
            "test/a/1.jpg",
            "test/b/1.jpg",
        ]
        .iter()
        .enumerate()
        {
            project.write(file, &photo(seed as u8));
        }
        project
    }

    fn path(&self, file: &str) -> PathBuf {
        self.root.path().join(file)
    }

    fn write(&self, file: &str, bytes: &[u8]) {
        fs::create_dir_all(self.path(file).parent().unwrap()).unwrap();
        fs::write(self.path(file), bytes).unwrap();
    }

    fn source(&self) -> DataSource {
        DataSource::new(Layout::Split {
            train: self.path("train"),
            test: self.path("test"),
        })
    }

    /// How many images were embedded, and how many still lack features.
    fn embed(&self, cache: &str, kinds: &[FeatureKind]) -> (usize, usize) {
        let cache = Cache::open(&self.path(cache)).unwrap();
        let source = self.source();
        let manifest = scan(&source, &cache, Rehash::Yes, &()).unwrap().manifest;
        let store = WeightsStore::new("unused".into(), None);
        let context = ExtractContext {
            source: &source,
            manifest: &manifest,
            cache: &cache,
            store: &store,
            n_threads: 2,
            observer: &(),
        };
        let (embedded, skipped) = self.config.embed(kinds, &context).unwrap();
        assert_eq!(skipped.0, []);
        let missing = self.config.count_missing_of(kinds, &manifest, &cache);
        (embedded, missing.unwrap())
    }

    fn try_run(&self, cache: &str, n_threads: usize) -> luthier_extract::Result<Extraction> {
        let cache = Cache::open(&self.path(cache)).unwrap();
        let source = self.source();
        let manifest = scan(&source, &cache, Rehash::Yes, &())?.manifest;
        let store = WeightsStore::new("unused".into(), None);
        self.config.run(&ExtractContext {
            source: &source,
            manifest: &manifest,
            cache: &cache,
            store: &store,
            n_threads,
            observer: &(),
        })
    }

    fn run(&self, cache: &str) -> Extraction {
        self.try_run(cache, 2).unwrap()
    }

    /// The features of rows that were put into a cache.
    fn features(&self, cache: &str, rows: &FeatureRows) -> Array2<f32> {
        let cache = Cache::open(&self.path(cache)).unwrap();
        cache.vectors(&rows.vectors, rows.width).unwrap()
    }
}

fn bytes(extraction: &Extraction) -> [Vec<u8>; 3] {
    let Extraction {
        train, test, images, ..
    } = extraction;
    [train.encode(), test.encode(), images.encode()]
}

#[test]
fn only_new_images_are_embedded_and_the_result_is_that_of_a_fresh_start() {
    let project = Project::new();
    let first = project.run("cache");
    assert_eq!((first.n_embedded, first.n_reused), (5, 0));
    let again = project.run("cache");
    assert_eq!((again.n_embedded, again.n_reused), (0, 5));
    assert_eq!(bytes(&again), bytes(&first));

    project.write("train/b/2.jpg", &photo(77));
    let grown = project.run("cache");
    assert_eq!((grown.n_embedded, grown.n_reused), (1, 5));
    assert_eq!(bytes(&grown), bytes(&project.run("fresh cache")));
}

#[test]
fn every_image_has_a_perceptual_hash_which_tells_images_apart() {
    let project = Project::new();
    let extraction = project.run("cache");
    let images = &extraction.images;
    assert!((extraction.train.images.iter()).all(|image| images.hash_of(image).is_some()));
    let cache = Cache::open(&project.path("cache")).unwrap();
    let hashes = cache.vectors(&images.hashes, images.n_hash_values).unwrap();
    assert_eq!(hashes.dim(), (5, PerceptualHash::WIDTH));
    assert!(hashes.iter().all(|value| (0.0..=255.0).contains(value)));
    assert_ne!(hashes.row(0), hashes.row(1));
}

#[test]
fn a_hash_that_is_missing_is_made_and_nothing_embedded() {
    let project = Project::new();
    let whole = project.run("cache");
    // A cache that knows the features only.
    let cache = Cache::open(&project.path("old cache")).unwrap();
    let key = project.config.extractor.keys().unwrap()[0].digest();
    for rows in [&whole.train, &whole.test] {
        let features = project.features("cache", rows);
        let features = rows
            .images
            .iter()
            .copied()
            .zip(features.outer_iter().map(|row| row.to_vec()));
        cache.store_features(&key, &features.collect::<Vec<_>>()).unwrap();
    }
    drop(cache);
    let extraction = project.run("old cache");
    assert_eq!((extraction.n_embedded, extraction.n_reused), (0, 5));
    assert_eq!(bytes(&extraction), bytes(&whole));
}

#[test]
fn another_view_is_computed_alone_and_combined_with_what_is_known() {
    let mut project = Project::new();
    let squash = project.run("cache");
    let views = [Framing::Squash, Framing::Mirror].map(View::from).to_vec();
    let both = |combine| Views::new(views.clone(), combine).unwrap();

    // One view is known: half of what a fresh start embeds is left.
    project.config.extractor.views = both(Combine::Concat);
    let concat = project.run("cache");
    assert_eq!((concat.n_embedded, concat.n_reused), (5, 0));
    assert_eq!(bytes(&concat), bytes(&project.run("fresh cache")));
    let train = |extraction: &Extraction| project.features("cache", &extraction.train);
    let (concat, squash) = (train(&concat), train(&squash));
    assert_eq!(concat.ncols(), 2 * WIDTH);
    assert_eq!(concat.slice(s![.., ..WIDTH]), squash);
    assert_ne!(concat.slice(s![.., WIDTH..]), squash);

    // Both are known: another combination embeds nothing.
    project.config.extractor.views = both(Combine::Mean);
    let mean = project.run("cache");
    assert_eq!((mean.n_embedded, mean.n_reused), (0, 5));
    let (a, b) = concat.view().split_at(Axis(1), WIDTH);
    let difference = project.features("cache", &mean.train) - (&a + &b) / 2.0;
    assert!(difference.iter().all(|difference| difference.abs() < 1e-6));

    project.config.extractor.views = Framing::Mirror.into();
    let mirror = project.run("cache");
    assert_eq!(project.features("cache", &mirror.train), b);
}

#[test]
fn features_of_several_kinds_take_a_pass_for_each_view_and_are_those_of_single_runs() {
    let mut project = Project::new();
    let whole = project.run("cache");
    let kinds: Vec<FeatureKind> = [Framing::Squash, Framing::Pad]
        .into_iter()
        .flat_map(|framing| {
            let view = View::from(framing);
            Pooling::ALL.map(|pooling| FeatureKind { view, pooling })
        })
        .collect();
    let (embedded, missing) = project.embed("cache", &kinds);
    assert_eq!((embedded, missing), (5, 0));
    assert_eq!(project.embed("cache", &kinds), (0, 0));
    for FeatureKind { view, pooling } in kinds {
        project.config.extractor.views = view.into();
        project.config.extractor.pooling = pooling;
        let known = project.run("cache");
        assert_eq!(known.n_embedded, 0, "{view}, {pooling}");
        let alone = project.run(&format!("cache of {view} and {pooling}"));
        assert_eq!(alone.n_embedded, 5);
        assert_eq!(bytes(&alone), bytes(&known), "{view}, {pooling}");
        let is_first = (view, pooling) == (Framing::Squash.into(), Pooling::Mean);
        assert_eq!(alone.train == whole.train, is_first, "{view}, {pooling}");
    }
}

#[test]
fn another_size_gives_other_features() {
    let mut project = Project::new();
    let usual = project.run("cache");
    let small: View = "squash@96".parse().unwrap();
    project.config.extractor.views = small.into();
    let alone = project.run("cache");
    assert_eq!(alone.n_embedded, 5);
    assert_eq!(alone.train.extractor.views, ["squash@96"]);
    assert_ne!(alone.train.vectors, usual.train.vectors);

    // Both sizes side by side, with nothing known: a pass for each.
    let both = Views::new(vec![Framing::Squash.into(), small], Combine::Concat).unwrap();
    project.config.extractor.views = both;
    let both = project.run("fresh cache");
    assert_eq!((both.n_embedded, both.n_reused), (5, 0));
    let features = project.features("fresh cache", &both.train);
    assert_eq!(features.slice(s![.., ..WIDTH]), project.features("cache", &usual.train));
    assert_eq!(features.slice(s![.., WIDTH..]), project.features("cache", &alone.train));
}

#[test]
fn renaming_an_image_within_its_class_changes_no_table() {
    let project = Project::new();
    let before = project.run("cache");
    fs::rename(project.path("train/a/1.jpg"), project.path("train/a/zzz.jpg")).unwrap();
    let after = project.run("cache");
    assert_eq!((after.n_embedded, bytes(&after)), (0, bytes(&before)));
}

#[test]
fn unreadable_images_are_skipped_with_their_reason() {
    let project = Project::new();
    let text = b"this is no photograph";
    project.write("train/a/text.jpg", text);
    project.write("test/b/short.jpg", &photo(9)[..300]);
    let extraction = project.run("cache");
    assert_eq!((extraction.train.n_rows(), extraction.test.n_rows()), (3, 2));
    assert_eq!(
        extraction.skipped.reason(&Digest::of(text)),
        Some("not an image: the bytes begin like no known format")
    );
    assert_eq!(
        extraction.skipped.reason(&Digest::of(&photo(9)[..300])),
        Some("damaged JPEG: cut short, its end marker is missing")
    );
}

#[test]
fn a_file_that_is_gone_for_a_moment_is_an_error_and_not_taken_for_bad() {
    let project = Project::new();
    let cache = Cache::open(&project.path("cache")).unwrap();
    let source = project.source();
    let manifest = scan(&source, &cache, Rehash::No, &()).unwrap().manifest;
    let (image, away) = (project.path("train/a/2.jpg"), project.path("away"));
    let run = || {
        let store = WeightsStore::new("unused".into(), None);
        project.config.run(&ExtractContext {
            source: &source,
            manifest: &manifest,
            cache: &cache,
            store: &store,
            n_threads: 2,
            observer: &(),
        })
    };
    fs::rename(&image, &away).unwrap();
    let error = run().unwrap_err().to_string();
    assert!(error.starts_with(&image.display().to_string()), "{error}");
    fs::write(&image, photo(99)).unwrap();
    let error = run().unwrap_err().to_string();
    assert!(error.ends_with("2.jpg: changed while it was being read"), "{error}");
    fs::rename(&away, &image).unwrap();
    let extraction = run().unwrap();
    assert_eq!((extraction.train.n_rows(), extraction.skipped.0.len()), (3, 0));
}

#[test]
fn a_class_without_a_readable_image_is_an_error_that_names_it() {
    let project = Project::new();
    project.write("train/b/1.jpg", b"text");
    assert_eq!(
        project.try_run("cache", 2).unwrap_err().to_string(),
        "class b: none of its 1 train images can be read; the first, b/1.jpg: \
         not an image: the bytes begin like no known format"
    );
}

#[test]
fn every_field_of_the_configuration_changes_the_key() {
    let key = |change: &dyn Fn(&mut ExtractorConfig)| {
        let mut extractor = Project::new().config.extractor;
        change(&mut extractor);
        ExtractConfig { extractor }
            .key(Digest::of(b"manifest"))
            .unwrap()
            .digest()
    };
    let both = |combine| Views::new([Framing::Squash, Framing::Crop].map(View::from).to_vec(), combine).unwrap();
    let weights = tempfile::NamedTempFile::new().unwrap();
    let keys = [
        key(&|_| {}),
        key(&|extractor| extractor.views = Framing::Crop.into()),
        key(&|extractor| extractor.views = both(Combine::Mean)),
        key(&|extractor| extractor.views = both(Combine::Concat)),
        key(&|extractor| extractor.views = "squash@288".parse::<View>().unwrap().into()),
        key(&|extractor| extractor.pooling = Pooling::Gem),
        key(&|extractor| extractor.decode = Decoding::Scaled),
        key(&|extractor| extractor.weights = WeightsSource::File(weights.path().into())),
        key(&|extractor| extractor.precision = Precision::Bf16),
        key(&|extractor| extractor.device = Device::Cuda(0)),
        key(&|extractor| extractor.batch = Some(3)),
    ];
    for (place, key) in keys.iter().enumerate() {
        assert!(!keys[..place].contains(key), "change {place}");
    }
    let same = key(&|extractor| extractor.device = Device::Cpu);
    assert_eq!(same, keys[0]);
}
