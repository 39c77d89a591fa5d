//! Luthier's side of `cargo xtask compare`: does what it is asked for, and says how long that took.
//!
//! A request is a line of fields separated by tabs, and so is its answer, `IMAGES SECONDS` or `error MESSAGE`:
//!
//! - `network DEVICE PRECISION BATCH THREADS REPETITIONS`: decoded images through the network, 32 for each repetition;
//!   batch 0 leaves its size to Luthier
//! - `tch BATCH THREADS REPETITIONS`: the same with tch's ResNet-50 as it comes, fp32 on the CPU
//! - `decode exact|scaled FILE…`: JPEGs to 224 × 224, on one thread
//! - `extract PRECISION THREADS FOLDER`: all images of a folder from file to features
//!
//! Loading and a first run, which is not counted, happen once for each kind of request. Weights are untrained: they cost
//! what trained ones do.

use std::collections::HashMap;
use std::io::{BufRead, Write};
use std::path::PathBuf;
use std::time::Instant;

use anyhow::{Context, Result, bail};
use luthier_extract::{
    Decoding, Device, Embedded, Extractor, ExtractorConfig, ImageFile, Precision, Preprocess, View, WeightsSource,
    WeightsStore, decode, images_below,
};

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

/// What has been loaded and warmed up, by the fields that it was loaded for.
#[derive(Default)]
struct Luthier {
    extractors: HashMap<String, Extractor>,
    tch: Option<Box<dyn tch::nn::ModuleT>>,
}

impl Luthier {
    fn answer(&mut self, request: &[&str]) -> Result<(usize, f64)> {
        match request {
            ["network", device, precision, batch, threads, repetitions] => {
                let batch: usize = batch.parse()?;
                let extractor = self.extractor(device, precision, (batch > 0).then_some(batch), threads)?;
                let images = noise(IMAGES * repetitions.parse::<usize>()? * Preprocess::BYTES);
                let start = Instant::now();
                extractor.embed_pixels(&images)?;
                Ok((images.len() / Preprocess::BYTES, start.elapsed().as_secs_f64()))
            }
            ["tch", batch, threads, repetitions] => self.tch(batch.parse()?, threads.parse()?, repetitions.parse()?),
            ["decode", decoding, files @ ..] => decode_all(decoding, files),
            ["extract", precision, threads, folder] => {
                let files: Vec<ImageFile> = images_below(folder.as_ref())?.into_iter().map(image_file).collect();
                let extractor = self.extractor("cpu", precision, None, threads)?;
                let start = Instant::now();
                let mut unreadable = None;
                extractor.embed(&files, &(), |place, embedded| {
                    if let Embedded::Unreadable(reason) = embedded {
                        unreadable.get_or_insert(format!("{}: {reason}", files[place].path.display()));
                    }
                    Ok(())
                })?;
                let seconds = start.elapsed().as_secs_f64();
                match unreadable {
                    Some(message) => bail!(message),
                    None => Ok((files.len(), seconds)),
                }
            }
            _ => bail!("expected network, tch, decode or extract with their fields, found {request:?}"),
        }
    }

    /// An extractor that has run once.
    fn extractor(&mut self, device: &str, precision: &str, batch: Option<usize>, threads: &str) -> Result<&Extractor> {
        let key = format!("{device} {precision} {batch:?} {threads}");
        if !self.extractors.contains_key(&key) {
            let extractor = load(device, precision, batch, threads.parse()?)?;
            extractor.embed_pixels(&vec![0; IMAGES * Preprocess::BYTES])?;
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
        views: View::Squash.into(),
        decode: Decoding::Scaled,
        weights: WeightsSource::Untrained,
        precision: precision.parse::<Precision>().map_err(anyhow::Error::msg)?,
        device: device.parse::<Device>().map_err(anyhow::Error::msg)?,
        batch,
    };
    // Enough images for every thread to have its share.
    let n_images = 1_000_000;
    let store = WeightsStore::new("unused".into(), None);
    Ok(Extractor::load(&config, &store, n_threads, n_images, &())?)
}

fn decode_all(decoding: &str, files: &[&str]) -> Result<(usize, f64)> {
    let decoding: Decoding = decoding.parse().map_err(anyhow::Error::msg)?;
    let mut preprocess = Preprocess::new();
    let mut pixels = vec![0; Preprocess::BYTES];
    let start = Instant::now();
    for file in files {
        let bytes = std::fs::read(file).with_context(|| (*file).to_owned())?;
        preprocess.run(&decode(&bytes, decoding)?, View::Squash, &mut pixels);
    }
    Ok((files.len(), start.elapsed().as_secs_f64()))
}

/// Bytes without a pattern: constant pixels would let a GPU draw less power.
fn noise(n: usize) -> Vec<u8> {
    (0..n as u32)
        .map(|n| (n.wrapping_mul(2_654_435_761) >> 24) as u8)
        .collect()
}

fn image_file(path: PathBuf) -> ImageFile {
    ImageFile {
        path,
        digest: None,
        views: vec![View::Squash],
    }
}
