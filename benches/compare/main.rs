//! Luthier's side of `cargo xtask compare`: does what it is asked for, and says how long that took.
//!
//! A request is a line of fields separated by tabs, and so is its answer, `IMAGES SECONDS` (or `FITS SECONDS`) or `error MESSAGE`:
//!
//! - `network DEVICE PRECISION BATCH THREADS REPETITIONS`: decoded images through the network, 32 for each repetition;
//!   batch 0 leaves its size to Luthier
//! - `tch BATCH THREADS REPETITIONS`: the same with tch's ResNet-50 as it comes, fp32 on the CPU
//! - `decode exact|scaled THREADS FILE…`: JPEGs to 224 × 224
//! - `extract DEVICE PRECISION THREADS TIMES FOLDER`: all images of a folder, so many times, from file to features
//! - `features ROWS CLASSES FILE`: writes synthetic features, `f32 [ROWS, 2048]` as they lie in memory; row `i` is of class
//!   `i % CLASSES`
//! - `project ROWS CLASSES THREADS`: fits scaler and components for 98 % of the variance to such features
//! - `regress ROWS CLASSES TOLERANCE THREADS`: fits the regression with C = 1 to these components
//! - `search ROWS CLASSES THREADS`: chooses C in five folds, and trains
//!
//! Loading and a first run, which is not counted, happen once for each kind of request. Weights are untrained: they cost
//! what trained ones do.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::io::{BufRead, Write};
use std::path::PathBuf;
use std::time::Instant;

use anyhow::{Context, Result, bail};
use luthier_artifact::{Digest, ExtractorInfo, FeatureTable};
use luthier_benches::features;
use luthier_classify::{ChooseC, ClassWeight, ClassifyConfig, LogisticRegression, Rule, Training};
use luthier_extract::{
    Decoding, Device, Embedded, Extractor, ExtractorConfig, FeatureKind, Framing, ImageInput, ImageSource, InputSize,
    Limits, Pooling, Precision, Preprocess, WeightsSource, WeightsStore, decode, images_below,
};
use luthier_features::{ComponentCount, FeaturesConfig, Solver};
use ndarray::Array2;
use rayon::prelude::*;

/// Decoded images that one repetition takes through the network.
const IMAGES: usize = 32;

fn main() -> Result<()> {
    let mut peer = Luthier::default();
    for line in std::io::stdin().lock().lines() {
        let line = line?;
        let answer = match peer.answer(&line.split('\t').collect::<Vec<_>>()) {
            Ok((n_images, seconds)) => format!("{n_images}\t{seconds}"),
            // One line, whatever libtorch says in several.
            Err(error) => format!("error\t{}", format!("{error:#}").replace(['\n', '\t'], " ")),
        };
        let mut out = std::io::stdout().lock();
        writeln!(out, "{answer}")?;
        out.flush()?;
    }
    Ok(())
}

const PROJECTION: FeaturesConfig = FeaturesConfig {
    n_components: ComponentCount::Variance(0.98),
    whiten: false,
    solver: Solver::Faer,
};

const SEARCH: ClassifyConfig = ClassifyConfig {
    c: ChooseC::Auto(Rule::SmallestLoss),
    class_weight: ClassWeight::Uniform,
    folds: 5,
    seed: 0,
    solver: Solver::Faer,
};

/// What has been loaded and warmed up, by the fields that it was loaded for.
#[derive(Default)]
struct Luthier {
    extractors: HashMap<String, Extractor>,
    /// Synthetic features and their components, by the numbers of rows and classes.
    tables: HashMap<[usize; 2], (FeatureTable, Array2<f64>)>,
    tch: Option<Box<dyn tch::nn::ModuleT>>,
}

impl Luthier {
    fn answer(&mut self, request: &[&str]) -> Result<(usize, f64)> {
        match request {
            ["network", device, precision, batch, threads, repetitions] => {
                let batch: usize = batch.parse()?;
                let extractor = self.extractor(device, precision, (batch > 0).then_some(batch), threads)?;
                let images = noise(IMAGES * repetitions.parse::<usize>()? * InputSize::default().bytes());
                let start = Instant::now();
                extractor.embed_pixels(&images)?;
                Ok((
                    images.len() / InputSize::default().bytes(),
                    start.elapsed().as_secs_f64(),
                ))
            }
            ["tch", batch, threads, repetitions] => self.tch(batch.parse()?, threads.parse()?, repetitions.parse()?),
            ["decode", decoding, threads, files @ ..] => decode_all(decoding, threads.parse()?, files),
            ["extract", device, precision, threads, times, folder] => {
                let files: Vec<ImageInput> = images_below(folder.as_ref())?.into_iter().map(image_file).collect();
                let files: Vec<ImageInput> = (0..times.parse::<usize>()?).flat_map(|_| files.clone()).collect();
                let extractor = self.extractor(device, precision, None, threads)?;
                let start = Instant::now();
                let mut unreadable = None;
                extractor.embed(&files, &(), |place, embedded| {
                    if let Embedded::Unreadable { reason, .. } = embedded {
                        unreadable.get_or_insert(format!("{}: {reason}", files[place].source));
                    }
                    Ok(())
                })?;
                let seconds = start.elapsed().as_secs_f64();
                match unreadable {
                    Some(message) => bail!(message),
                    None => Ok((files.len(), seconds)),
                }
            }
            ["features", rows, classes, file] => {
                let (table, _) = self.table(rows, classes)?;
                let start = Instant::now();
                let bytes: Vec<u8> = table.features.iter().flat_map(|value| value.to_ne_bytes()).collect();
                std::fs::write(file, bytes)?;
                Ok((table.n_rows(), start.elapsed().as_secs_f64()))
            }
            ["project", rows, classes, threads] => {
                let (table, _) = self.table(rows, classes)?;
                timed(threads, || Ok(PROJECTION.run(table.features(), &())?))
            }
            ["regress", rows, classes, tolerance, threads] => {
                let (table, components) = self.table(rows, classes)?;
                let regression = LogisticRegression {
                    tolerance: tolerance.parse()?,
                    ..LogisticRegression::new(1.0, Solver::Faer)?
                };
                timed(threads, || {
                    Ok(regression.fit(components.view(), &table.labels, table.classes.len())?)
                })
            }
            ["search", rows, classes, threads] => {
                let (table, _) = self.table(rows, classes)?;
                timed(threads, || {
                    let projection = PROJECTION.run(table.features(), &())?;
                    Ok(SEARCH.run(&Training::from(table), &projection, &())?)
                })
            }
            [request, ..] => bail!("{request} with these fields is no request"),
            [] => bail!("an empty line is no request"),
        }
    }

    /// Synthetic features and their components.
    fn table(&mut self, rows: &str, classes: &str) -> Result<&(FeatureTable, Array2<f64>)> {
        let [rows, classes] = [rows.parse()?, classes.parse()?];
        if let Entry::Vacant(place) = self.tables.entry([rows, classes]) {
            let (features, labels) = features(rows, classes);
            let components = PROJECTION.run(features.view(), &())?.transform(features.view())?;
            let table = FeatureTable {
                classes: (0..classes).map(|class| format!("class {class}")).collect(),
                extractor: ExtractorInfo {
                    views: vec!["synthetic".to_owned()],
                    pooling: "mean".to_owned(),
                    combine: "mean".to_owned(),
                    decode: "exact".to_owned(),
                    weights: "none".to_owned(),
                    weights_sha256: String::new(),
                    precision: "fp32".to_owned(),
                },
                images: (0..rows).map(|row| Digest::of(&row.to_le_bytes())).collect(),
                labels,
                features,
            };
            place.insert((table, components));
        }
        Ok(&self.tables[&[rows, classes]])
    }

    /// An extractor that has run once.
    fn extractor(&mut self, device: &str, precision: &str, batch: Option<usize>, threads: &str) -> Result<&Extractor> {
        let key = format!("{device} {precision} {batch:?} {threads}");
        if !self.extractors.contains_key(&key) {
            let extractor = load(device, precision, batch, threads.parse()?)?;
            extractor.embed_pixels(&vec![0; IMAGES * InputSize::default().bytes()])?;
            self.extractors.insert(key.clone(), extractor);
        }
        Ok(&self.extractors[&key])
    }

    fn tch(&mut self, batch: i64, threads: i32, repetitions: usize) -> Result<(usize, f64)> {
        tch::set_num_threads(threads);
        let x = tch::Tensor::rand([batch, 3, 224, 224], (tch::Kind::Float, tch::Device::Cpu));
        let forward = |network: &dyn tch::nn::ModuleT| tch::no_grad(|| network.forward_t(&x, false));
        let network = self.tch.get_or_insert_with(|| {
            let variables = tch::nn::VarStore::new(tch::Device::Cpu);
            let network = tch::vision::resnet::resnet50_no_final_layer(&variables.root());
            drop(forward(&network));
            Box::new(network)
        });
        let n_batches = (IMAGES * repetitions).div_ceil(batch as usize);
        let start = Instant::now();
        for _ in 0..n_batches {
            drop(forward(network.as_ref()));
        }
        Ok((n_batches * batch as usize, start.elapsed().as_secs_f64()))
    }
}

fn load(device: &str, precision: &str, batch: Option<usize>, n_threads: usize) -> Result<Extractor> {
    let config = ExtractorConfig {
        views: Framing::Squash.into(),
        pooling: Pooling::default(),
        decode: Decoding::Scaled,
        limits: Limits::default(),
        weights: WeightsSource::Untrained,
        precision: precision.parse::<Precision>().map_err(anyhow::Error::msg)?,
        device: device.parse::<Device>().map_err(anyhow::Error::msg)?,
        batch,
    };
    // Enough images for every thread to have its share.
    let n_images = 1_000_000;
    // For the scales of int8.
    let store = WeightsStore::new(std::env::temp_dir().join("luthier-compare"), None);
    Ok(Extractor::load(
        &config,
        InputSize::default(),
        &store,
        n_threads,
        Some(n_images),
        &(),
    )?)
}

fn decode_all(decoding: &str, n_threads: usize, files: &[&str]) -> Result<(usize, f64)> {
    let decoding: Decoding = decoding.parse().map_err(anyhow::Error::msg)?;
    let pool = rayon::ThreadPoolBuilder::new().num_threads(n_threads).build()?;
    let start = Instant::now();
    let with = || {
        (
            Preprocess::new(InputSize::default()),
            vec![0; InputSize::default().bytes()],
        )
    };
    let decode_one = |(preprocess, pixels): &mut (Preprocess, Vec<u8>), file: &&str| {
        let bytes = std::fs::read(file).with_context(|| (*file).to_owned())?;
        preprocess.run(&decode(&bytes, decoding)?, Framing::Squash, pixels);
        Ok::<_, anyhow::Error>(())
    };
    pool.install(|| files.par_iter().try_for_each_init(with, decode_one))?;
    Ok((files.len(), start.elapsed().as_secs_f64()))
}

/// One fit on so many threads.
fn timed<T: Send>(threads: &str, fit: impl FnOnce() -> Result<T> + Send) -> Result<(usize, f64)> {
    let pool = rayon::ThreadPoolBuilder::new().num_threads(threads.parse()?).build()?;
    let start = Instant::now();
    pool.install(fit)?;
    Ok((1, start.elapsed().as_secs_f64()))
}

/// Bytes without a pattern: constant pixels would let a GPU draw less power.
fn noise(n: usize) -> Vec<u8> {
    (0..n as u32)
        .map(|n| (n.wrapping_mul(2_654_435_761) >> 24) as u8)
        .collect()
}

fn image_file(path: PathBuf) -> ImageInput {
    ImageInput {
        source: ImageSource::File(path),
        digest: None,
        kinds: vec![FeatureKind {
            view: Framing::Squash.into(),
            pooling: Pooling::default(),
        }],
    }
}
