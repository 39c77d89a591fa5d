use std::collections::BTreeMap;
use std::io::{self, BufRead, StdoutLock, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context, Result, bail};
use clap::{Args, ValueEnum};
use luthier_artifact::ExtractorInfo;
use luthier_classify::{Model, Threshold};
use luthier_extract::{Embedded, Extractor, ExtractorConfig, ImageFile, View, Views, WeightsSource, images_below};
use serde::Serialize;

use super::weights_store;
use crate::export::MODEL_FILE;
use crate::problem::Problem;
use crate::settings::{NetworkSettings, Settings, positive};
use crate::terminal::Progress;

/// Predicts the classes of images, with probabilities, in the order in which they are named.
///
/// Preprocessing, precision and weights are those that the model was trained with. An image that cannot be read is
/// reported, and the exit status is then 1.
#[derive(Args)]
#[command(
    after_help = "Examples:\n  luthier predict --model-path models/model.safetensors --image-path sample.jpg\n  luthier predict --image-path photos/ --keep-known 95 --format csv > classes.csv\n  find photos -newer last.txt -name '*.jpg' | luthier predict --image-path - --format json"
)]
pub(crate) struct Arguments {
    /// The model that `luthier train` or `luthier pipeline` wrote
    #[arg(long, value_name = "FILE", default_value_os_t = Path::new("models").join(MODEL_FILE), alias = "model_path", env = "LUTHIER_MODEL_PATH")]
    model_path: PathBuf,
    /// Images, folders of images, or - for a list of paths on stdin, one a line
    #[arg(long, value_name = "FILE|DIR|-", required = true, num_args = 1.., alias = "image_path")]
    image_path: Vec<PathBuf>,
    /// How many classes to name for each image
    #[arg(long, value_name = "N", default_value_t = 3, value_parser = positive, alias = "top_k")]
    top_k: usize,
    /// Answer `unknown` if the most probable class is less probable than this, from 0 to 1
    #[arg(long, value_name = "P", value_parser = probability, alias = "min_confidence")]
    min_confidence: Option<f64>,
    /// Answer `unknown` unless the image is as sure, and as near to a class, as this percentage of the training images that
    /// cross-validation held out: 90, 95 or 99
    #[arg(long, value_name = "PERCENT", alias = "keep_known")]
    keep_known: Option<f64>,
    /// How to print: table, json (one object a line) or csv
    #[arg(long, value_name = "FORMAT", value_enum, default_value_t = Format::Table)]
    format: Format,
    #[command(flatten)]
    network: NetworkSettings,
}

#[derive(Clone, Copy, ValueEnum)]
enum Format {
    Table,
    Json,
    Csv,
}

/// The answer to an image that is not like those of any class.
const UNKNOWN: &str = "unknown";

/// What is printed of an image.
#[derive(Serialize)]
struct Prediction<'a> {
    file: &'a str,
    #[serde(flatten)]
    outcome: Outcome,
}

#[derive(Serialize)]
#[serde(untagged)]
enum Outcome {
    Answer(Answer),
    Error { error: String },
}

#[derive(Serialize)]
struct Answer {
    /// The most probable class, or [`UNKNOWN`].
    answer: String,
    /// To the nearest class, in standard deviations, with `--keep-known`.
    #[serde(skip_serializing_if = "Option::is_none")]
    distance: Option<f64>,
    /// The most probable classes, the most probable first.
    predictions: Vec<ClassProbability>,
}

#[derive(Serialize)]
struct ClassProbability {
    class: String,
    probability: f64,
}

pub(crate) fn run(arguments: Arguments, progress: &Progress) -> Result<ExitCode> {
    let Arguments {
        model_path,
        image_path,
        top_k,
        min_confidence,
        keep_known,
        format,
        network,
    } = arguments;
    let settings = Settings {
        network,
        ..Settings::default()
    }
    .with_lower_layers()?;
    let model = Model::load(&model_path)?;
    let keep_known = keep_known
        .map(|percent| threshold(&model, percent, &model_path))
        .transpose()?;
    let predictor = Predictor {
        model: &model,
        top_k,
        min_confidence: min_confidence.unwrap_or(0.0),
        keep_known,
    };
    let paths = list(&image_path)?;
    let config = extractor_config(&settings, &model.extractor, &model_path)?;
    let store = weights_store()?;
    let check = || check_weights(&config.weights, &model.extractor, &model_path);
    let load = || Extractor::load(&config, &store, settings.n_threads(), paths.len(), progress);
    let extractor = if let WeightsSource::File(_) = config.weights {
        // Hashing a file takes about as long as loading it: beside it.
        let (checked, extractor) = std::thread::scope(|scope| {
            let checked = scope.spawn(check);
            let extractor = load();
            (checked.join().expect("checking does not panic"), extractor)
        });
        checked?;
        extractor?
    } else {
        check()?;
        load()?
    };

    let mut printer = Printer::new(format, paths.iter().map(|path| path.display().to_string()).collect());
    let files: Vec<ImageFile> = paths
        .into_iter()
        .map(|path| ImageFile {
            path,
            digest: None,
            views: config.views.as_slice().to_vec(),
        })
        .collect();
    printer.header()?;
    let mut failure = None;
    extractor
        .embed(&files, progress, |place, embedded| {
            let outcome = match embedded {
                Embedded::Unreadable(error) => Ok(Outcome::Error { error }),
                Embedded::Features { rows, .. } => {
                    let rows: Vec<&[f32]> = rows.iter().map(Vec::as_slice).collect();
                    predictor.predict(&config.views.combine(&rows))
                }
            };
            // The extractor's callback knows only its own errors: others are kept for later.
            if let Err(error) = outcome.and_then(|outcome| Ok(printer.print(place, outcome)?)) {
                failure.get_or_insert(error);
            }
            if failure.is_some() {
                Err(luthier_extract::Error::Interrupted)
            } else {
                Ok(())
            }
        })
        .map_err(|error| failure.take().unwrap_or(error.into()))?;
    Ok(if printer.n_failed == 0 {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}

/// Turns the features of an image into an answer.
struct Predictor<'a> {
    model: &'a Model,
    top_k: usize,
    min_confidence: f64,
    keep_known: Option<Threshold>,
}

impl Predictor<'_> {
    fn predict(&self, features: &[f32]) -> Result<Outcome> {
        if let Some((place, value)) = features.iter().enumerate().find(|(_, value)| !value.is_finite()) {
            let error = format!("feature {place} is {value}, expected a finite number");
            return Ok(Outcome::Error { error });
        }
        let row = ndarray::aview1(features).insert_axis(ndarray::Axis(0));
        let probabilities = self.model.predict_proba(row)?;
        let mut ranked: Vec<(usize, f64)> = probabilities.row(0).iter().copied().enumerate().collect();
        ranked.sort_by(|a, b| b.1.total_cmp(&a.1));
        let (best, confidence) = ranked[0];
        let mut is_known = confidence >= self.min_confidence;
        let mut distance = None;
        if let Some(threshold) = self.keep_known {
            distance = self.model.distances(row)?.map(|distances| distances[0]);
            let is_far = matches!((distance, threshold.distance), (Some(found), Some(farthest)) if found > farthest);
            is_known &= confidence >= threshold.probability && !is_far;
        }
        let class = |label: usize| self.model.classes[label].clone();
        let best_first = ranked.into_iter().take(self.top_k);
        Ok(Outcome::Answer(Answer {
            answer: if is_known { class(best) } else { UNKNOWN.to_owned() },
            distance,
            predictions: best_first
                .map(|(label, probability)| ClassProbability {
                    class: class(label),
                    probability,
                })
                .collect(),
        }))
    }
}

/// The threshold of a model that keeps this percentage of known images.
fn threshold(model: &Model, percent: f64, path: &Path) -> Result<Threshold> {
    let Some(found) = &model.training.cross_validation else {
        bail!(
            Problem::new(format!(
                "{}: trained with a given C, without the cross-validation that --keep-known rests on",
                path.display()
            ))
            .hint("train again with --c auto, or use --min-confidence P")
        )
    };
    let percents = found.thresholds.iter().map(|threshold| 100.0 * threshold.share);
    let known: Vec<String> = percents.map(|percent| percent.to_string()).collect();
    let is_asked = |threshold: &&Threshold| (100.0 * threshold.share - percent).abs() < 1e-9;
    match found.thresholds.iter().find(is_asked) {
        Some(threshold) => Ok(*threshold),
        None => bail!(Problem::usage(format!(
            "--keep-known is {percent}, expected one of {}",
            known.join(", ")
        ))),
    }
}

fn probability(text: &str) -> std::result::Result<f64, String> {
    match text.parse() {
        Ok(p) if (0.0..=1.0).contains(&p) => Ok(p),
        _ => Err(format!("expected a number from 0 to 1, found {text}")),
    }
}

/// The files behind the arguments, folders and standard input resolved, in order.
fn list(arguments: &[PathBuf]) -> Result<Vec<PathBuf>> {
    let mut paths = Vec::new();
    for argument in arguments {
        if argument == Path::new("-") {
            for line in io::stdin().lock().lines() {
                let line = line.context("standard input")?;
                paths.extend((!line.is_empty()).then(|| PathBuf::from(line)));
            }
        } else if argument.is_dir() {
            let images = images_below(argument)?;
            if images.is_empty() {
                bail!(Problem::new(format!(
                    "{}: no images in this folder",
                    argument.display()
                )));
            }
            paths.extend(images);
        } else {
            paths.push(argument.clone());
        }
    }
    Ok(paths)
}

/// An error unless these are the weights that the model was trained with.
fn check_weights(source: &WeightsSource, info: &ExtractorInfo, model: &Path) -> Result<()> {
    let expected = &info.weights_sha256;
    let found = source.sha256()?;
    if found == *expected {
        return Ok(());
    }
    let way = if WeightsSource::known(expected).is_some() {
        info.weights.as_str()
    } else {
        "FILE.safetensors"
    };
    bail!(
        Problem::new(format!(
            "{}: trained with weights {}…, found {}…",
            model.display(),
            info.short_sha256(),
            &found[..8]
        ))
        .hint(format!("pass --weights {way}, or train again"))
    )
}

/// The extractor that the model was trained with, or an error if its weights are not at hand.
fn extractor_config(settings: &Settings, info: &ExtractorInfo, model: &Path) -> Result<ExtractorConfig> {
    let file = model.display();
    let ExtractorInfo {
        views,
        combine,
        decode,
        weights,
        weights_sha256,
        precision,
    } = info;
    let unknown = |what: &str, value: &str| {
        Problem::new(format!(
            "{file}: trained with {what} {value}, which this luthier does not know"
        ))
    };
    let source = match settings
        .named_weights()?
        .or_else(|| WeightsSource::known(weights_sha256))
    {
        Some(source) => source,
        None => bail!(
            Problem::new(format!(
                "{file}: trained with weights {weights} ({}…), which are not known by name",
                info.short_sha256()
            ))
            .hint("pass their file with --weights FILE.safetensors")
        ),
    };
    let views: Vec<View> = (views.iter())
        .map(|view| view.parse().map_err(|_| unknown("view", view)))
        .collect::<Result<_, _>>()?;
    let combine = combine.parse().map_err(|_| unknown("combination", combine))?;
    Ok(ExtractorConfig {
        views: Views::new(views, combine).map_err(|message| Problem::new(format!("{file}: {message}")))?,
        decode: decode.parse().map_err(|_| unknown("decoding", decode))?,
        weights: source,
        precision: precision.parse().map_err(|_| unknown("precision", precision))?,
        device: settings.device(),
        batch: settings.batch(),
    })
}

/// Prints predictions in the order of the files, whatever the order they come in.
struct Printer {
    format: Format,
    files: Vec<String>,
    /// What has come before its turn.
    waiting: BTreeMap<usize, Outcome>,
    next: usize,
    n_failed: usize,
    /// The width of the first column of a table, in characters.
    width: usize,
    out: StdoutLock<'static>,
}

impl Printer {
    fn new(format: Format, files: Vec<String>) -> Self {
        let width = files.iter().map(|file| file.chars().count()).max().unwrap_or(0);
        Printer {
            format,
            files,
            waiting: BTreeMap::new(),
            next: 0,
            n_failed: 0,
            width,
            out: io::stdout().lock(),
        }
    }

    fn header(&mut self) -> io::Result<()> {
        match self.format {
            Format::Csv => writeln!(self.out, "file,answer,rank,class,probability,distance,error"),
            Format::Json | Format::Table => Ok(()),
        }
    }

    fn print(&mut self, place: usize, outcome: Outcome) -> io::Result<()> {
        self.waiting.insert(place, outcome);
        while let Some(outcome) = self.waiting.remove(&self.next) {
            self.print_next(outcome)?;
            self.next += 1;
        }
        self.out.flush()
    }

    fn print_next(&mut self, outcome: Outcome) -> io::Result<()> {
        let file = &self.files[self.next];
        if let Outcome::Error { error } = &outcome {
            self.n_failed += 1;
            eprintln!("error: {file}: {error}");
        }
        match (self.format, outcome) {
            (Format::Json, outcome) => {
                let line = serde_json::to_string(&Prediction { file, outcome }).map_err(io::Error::other)?;
                writeln!(self.out, "{line}")
            }
            (Format::Csv, outcome) => {
                let mut csv = csv::Writer::from_writer(&mut self.out);
                match outcome {
                    Outcome::Error { error } => csv.write_record([file, "", "", "", "", "", &error])?,
                    Outcome::Answer(Answer {
                        answer,
                        distance,
                        predictions,
                    }) => {
                        let distance = distance.map(|distance| distance.to_string()).unwrap_or_default();
                        for (rank, ClassProbability { class, probability }) in (1..).zip(&predictions) {
                            let (rank, probability) = (rank.to_string(), probability.to_string());
                            csv.write_record([file, &answer, &rank, class, &probability, &distance, ""])?;
                        }
                    }
                }
                csv.flush()
            }
            (Format::Table, Outcome::Error { .. }) => Ok(()),
            (
                Format::Table,
                Outcome::Answer(Answer {
                    answer, predictions, ..
                }),
            ) => {
                let columns: Vec<String> = predictions
                    .iter()
                    .map(|best| format!("{} {:.1} %", best.class, 100.0 * best.probability))
                    .collect();
                let mut columns = columns.join("  ");
                // That the most probable class is the answer goes without saying.
                if answer != predictions[0].class {
                    columns = format!("{answer} ({columns})");
                }
                writeln!(self.out, "{file:<width$}  {columns}", width = self.width)
            }
        }
    }
}
