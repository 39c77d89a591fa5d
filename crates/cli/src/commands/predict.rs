mod arrivals;
mod inputs;
mod piped;
mod printer;
mod sorter;

use std::collections::{BTreeMap, HashSet};
use std::fs;
use std::io::{self, ErrorKind, IsTerminal};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context, Result, bail};
use clap::Args;
use luthier_artifact::ExtractorInfo;
use luthier_classify::{DistanceMeter, Model, Scorer, Threshold};
use luthier_extract::{Embedded, Extractor, ExtractorConfig, ImageFile, Observer, Task, View, Views, WeightsSource};

use self::arrivals::Arrivals;
use self::inputs::{Input, Source, sources};
use self::printer::{Answer, ClassProbability, Format, Prediction, Printer};
use self::sorter::{How, Mode, Sorter};
use super::weights_store;
use crate::export::MODEL_FILE;
use crate::problem::Problem;
use crate::settings::{NetworkSettings, Settings, meant_share, positive};
use crate::terminal::Progress;
use crate::words::{counted, printable};

/// Predict the classes of images, and sort the images into folders if asked to
///
/// Predictions come in the order in which the images are named. The network sees images as it did when the model was
/// trained. An image that cannot be read is reported, and the exit status is then 1.
#[derive(Args)]
#[command(mut_arg("weights", |weights| weights.help(WEIGHTS_HELP).long_help(WEIGHTS_HELP)), after_help = "Examples:
  luthier predict harp.jpg flute.jpg
  luthier predict --model-path models/model.safetensors --image-path sample.jpg
  luthier predict photos/ 'more/**/*.jpg' --keep-known 95 --format csv > classes.csv
  find photos -newer last.txt -name '*.jpg' -print0 | luthier predict - --json
  curl -s https://example.org/harp.jpg | luthier predict -
  luthier predict photos/ --move-to sorted/ --dry-run
  luthier predict --watch incoming/ --move-to sorted/ --min-confidence 0.5")]
pub(crate) struct Arguments {
    /// Images, folders, patterns such as 'photos/**/*.jpg', or - for standard input
    ///
    /// A folder stands for all images in it and below. Standard input is an image, or a list of paths that end in newlines
    /// or NULs; each is predicted as it comes.
    #[arg(value_name = "IMAGE", required_unless_present_any = ["image_path", "watch"])]
    images: Vec<PathBuf>,
    /// Model that `luthier train` or `luthier pipeline` wrote
    #[arg(long, value_name = "FILE", default_value_os_t = Path::new("models").join(MODEL_FILE), alias = "model_path", env = "LUTHIER_MODEL_PATH")]
    model_path: PathBuf,
    /// More images, named in the same ways
    #[arg(long, value_name = "IMAGE", num_args = 1.., alias = "image_path")]
    image_path: Vec<PathBuf>,
    /// Predict all images below this folder, then each image that arrives, until Ctrl-C
    #[arg(long, value_name = "DIR")]
    watch: Option<PathBuf>,
    /// How many classes to name for each image
    #[arg(long, value_name = "N", default_value_t = 3, value_parser = positive, alias = "top_k")]
    top_k: usize,
    /// Answer `unknown` if no class has at least this probability
    #[arg(long, value_name = "P", value_parser = probability, allow_negative_numbers = true, alias = "min_confidence")]
    min_confidence: Option<f64>,
    /// Answer `unknown` to images that are less like a class than this percentage of known images: 90, 95 or 99
    ///
    /// Known images are the training images that cross-validation held out. With 95, an image is answered if its class is
    /// as probable, and its features are as near to a class, as those of 95 % of the known images.
    #[arg(long, value_name = "PERCENT", value_parser = percentage, allow_negative_numbers = true, alias = "keep_known")]
    keep_known: Option<f64>,
    /// Copy each image to DIR/ANSWER/
    ///
    /// Nothing is overwritten: if another image has the name, a number is added to it.
    #[arg(long, value_name = "DIR", conflicts_with = "move_to", alias = "copy_to")]
    copy_to: Option<PathBuf>,
    /// Move each image to DIR/ANSWER/
    ///
    /// Nothing is overwritten: if another image has the name, a number is added to it. An image that cannot be read stays.
    #[arg(long, value_name = "DIR", alias = "move_to")]
    move_to: Option<PathBuf>,
    /// Only say where --copy-to or --move-to would put the images
    #[arg(long, alias = "dry_run")]
    dry_run: bool,
    /// What to print: a table, JSON (one object a line) or CSV
    #[arg(long, value_name = "FORMAT", value_enum, default_value_t = Format::Table)]
    format: Format,
    /// The same as --format json
    #[arg(long, conflicts_with = "format")]
    json: bool,
    #[command(flatten)]
    network: NetworkSettings,
}

const WEIGHTS_HELP: &str =
    "Weights of ResNet-50: a name, a .safetensors file, or `untrained` [default: those of the model]";

/// The answer to an image that is not like those of any class.
const UNKNOWN: &str = "unknown";

/// So many images are expected where nobody knows how many will come.
const MANY: usize = 1 << 20;

pub(crate) fn run(arguments: Arguments, progress: &Progress) -> Result<ExitCode> {
    let Arguments {
        images,
        model_path,
        image_path,
        watch,
        top_k,
        min_confidence,
        keep_known,
        copy_to,
        move_to,
        dry_run,
        format,
        json,
        network,
    } = arguments;
    let format = if json { Format::Json } else { format };
    let images = [image_path, images].concat();
    let settings = Settings {
        network,
        ..Settings::default()
    };
    let model = Model::load(&model_path)?;
    if (min_confidence.is_some() || keep_known.is_some()) && model.classes.iter().any(|class| class == UNKNOWN) {
        bail!(
            Problem::new(format!(
                "{}: has a class {UNKNOWN}, expected none of that name: it could not be told from the answer {UNKNOWN}",
                model_path.display()
            ))
            .hint("rename its folder and train again, or leave out --min-confidence and --keep-known")
        );
    }
    let keep_known = keep_known
        .map(|percent| threshold(&model, percent, &model_path))
        .transpose()?;
    let predictor = Predictor {
        model: &model,
        scorer: model.scorer(),
        meter: keep_known.and_then(|_| model.distance_meter()),
        top_k,
        min_confidence: min_confidence.unwrap_or(0.0),
        keep_known,
    };
    let mode = if dry_run { Mode::Plan } else { Mode::Act };
    let target = (copy_to.map(|folder| (How::Copy, folder))).or(move_to.map(|folder| (How::Move, folder)));
    let sorter = match target {
        Some((how, folder)) => {
            let answers = model.classes.iter().cloned().chain([UNKNOWN.to_owned()]).collect();
            Some(Sorter::new(how, mode, folder, answers)?)
        }
        None if dry_run => bail!(Problem::usage(
            "--dry-run: expected --copy-to or --move-to with it, found neither"
        )),
        None => None,
    };
    let sources = sources(&images, watch.as_deref())?;
    let n_images = (sources.iter()).try_fold(0, |n, source| match source {
        Source::Files(files) => Some(n + files.len()),
        Source::Stdin(_) | Source::Watched(_) => None,
    });
    let config = extractor_config(&settings, &model.extractor, &model_path)?;
    let store = weights_store()?;
    let check = || check_weights(&config.weights, &model.extractor, &model_path);
    let load = || {
        Extractor::load(
            &config,
            &store,
            settings.n_threads(),
            n_images.unwrap_or(MANY),
            progress,
        )
    };
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

    let mut session = Session {
        printer: Printer::new(format, sorter.is_some())?,
        extractor,
        views: &config.views,
        predictor,
        sorter,
        progress,
        n_failed: 0,
    };
    for source in sources {
        match session.run(source) {
            Err(error) if error.is::<NobodyReads>() => break,
            done => done?,
        }
    }
    Ok(session.finish())
}

/// A model and what is done with its answers.
struct Session<'a> {
    extractor: Extractor,
    views: &'a Views,
    predictor: Predictor<'a>,
    sorter: Option<Sorter>,
    printer: Printer,
    progress: &'a Progress,
    n_failed: usize,
}

impl Session<'_> {
    /// Predicts all images of a source.
    fn run(&mut self, source: Source) -> Result<()> {
        match source {
            Source::Files(files) => {
                let inputs = self.unsorted(files.into_iter().map(Input::file).collect());
                // On a terminal what is printed shows how far it is.
                let shows_progress = !inputs.is_empty() && !io::stdout().is_terminal();
                let task = shows_progress.then(|| self.progress.task("images", inputs.len() as u64));
                self.predict(&inputs, task.as_deref().unwrap_or(&()))
            }
            Source::Stdin(mut piped) => {
                while let Some(items) = piped.next(self.progress)? {
                    let inputs = items.into_iter().map(Input::of).collect::<Result<_>>()?;
                    let inputs = self.unsorted(inputs);
                    self.predict(&inputs, &())?;
                }
                Ok(())
            }
            Source::Watched(folder) => {
                self.progress
                    .say(&format!("watching {} (Ctrl-C ends)", folder.display()));
                let mut arrivals = Arrivals::watch(folder)?;
                while let Some(mut files) = arrivals.next(self.progress)? {
                    // What was put there a moment ago arrives as well: that is no news.
                    files.retain(|file| self.sorter.as_mut().is_none_or(|sorter| !sorter.passes_over(file)));
                    let inputs: Vec<Input> = files.into_iter().map(Input::file).collect();
                    match self.predict(&inputs, &()) {
                        Err(error) if is_interrupt(&error) => break,
                        done => done?,
                    }
                }
                Ok(())
            }
        }
    }

    /// Without those that lie where sorted images lie.
    fn unsorted(&mut self, mut inputs: Vec<Input>) -> Vec<Input> {
        if let Some(sorter) = &mut self.sorter {
            // One that is named twice cannot be moved twice.
            let mut seen = HashSet::new();
            inputs.retain(|input| {
                input.piped.is_some() || seen.insert(fs::canonicalize(&input.path).unwrap_or(input.path.clone()))
            });
            let n = inputs.len();
            inputs.retain(|input| !sorter.passes_over(&input.path));
            if inputs.len() < n {
                let passed_over = counted(n - inputs.len(), "image");
                self.progress
                    .say(&format!("note: passed over {passed_over} sorted before"));
            }
        }
        inputs
    }

    /// Predicts images, puts them where they belong, and prints them in their order, whatever the order they are ready in.
    fn predict(&mut self, inputs: &[Input], task: &dyn Task) -> Result<()> {
        let Session {
            extractor,
            views,
            predictor,
            sorter,
            printer,
            progress,
            n_failed,
        } = self;
        if sorter.is_some() && inputs.iter().any(|input| input.piped.is_some()) {
            bail!(
                Problem::usage("standard input is an image, which has no name: expected paths to copy or move")
                    .hint("leave out --copy-to and --move-to, or name the file")
            );
        }
        printer.make_room(inputs.iter().map(|input| input.name.as_str()));
        let files: Vec<ImageFile> = (inputs.iter())
            .map(|input| ImageFile {
                path: input.path.clone(),
                digest: None,
                views: views.as_slice().to_vec(),
            })
            .collect();
        let mut finish = |input: &Input, outcome: Result<Answer, String>| -> Result<()> {
            let (answer, mut error) = match outcome {
                Ok(answer) => (Some(answer), None),
                Err(error) => (None, Some(error)),
            };
            let mut to = None;
            if let (Some(sorter), Some(answer)) = (sorter.as_mut(), &answer) {
                match sorter.put(&input.path, &answer.answer) {
                    Ok(target) => to = Some(target.display().to_string()),
                    // Every other image would meet it too.
                    Err(error) if is_full(&error) => return Err(error.context(input.name.clone())),
                    Err(failed) => error = Some(format!("{failed:#}")),
                }
            }
            if let Some(error) = &error {
                *n_failed += 1;
                progress.complain(&format!("error: {}: {error}", printable(&input.name)));
            }
            let prediction = Prediction {
                file: &input.name,
                answer,
                to,
                error,
            };
            match printer.print(&prediction) {
                // Images are sorted to the end, whether or not anybody reads where they went.
                Err(error) if error.kind() == ErrorKind::BrokenPipe => {
                    if sorter.is_some() {
                        Ok(())
                    } else {
                        Err(NobodyReads.into())
                    }
                }
                done => done.context("stdout"),
            }
        };
        let mut failure = None;
        let (mut waiting, mut next) = (BTreeMap::new(), 0);
        extractor
            .embed(&files, *progress, |place, embedded| {
                task.advance(1);
                waiting.insert(place, predictor.outcome(embedded, views));
                while let Some(outcome) = waiting.remove(&next) {
                    // The extractor's callback knows only its own errors: others are kept for later.
                    if let Err(error) = outcome.and_then(|outcome| finish(&inputs[next], outcome)) {
                        failure = Some(error);
                        return Err(luthier_extract::Error::Interrupted);
                    }
                    next += 1;
                }
                Ok(())
            })
            .map_err(|error| failure.take().unwrap_or(error.into()))
    }

    /// Says what was done, and how it went.
    fn finish(self) -> ExitCode {
        if let Some(sorter) = &self.sorter {
            self.progress.say(&sorter.summary());
        }
        if self.n_failed == 0 {
            ExitCode::SUCCESS
        } else {
            ExitCode::FAILURE
        }
    }
}

/// Stdout's reader has gone. Without a sorter there is nothing left to do.
#[derive(Debug, thiserror::Error)]
#[error("stdout: nobody reads")]
struct NobodyReads;

fn is_interrupt(error: &anyhow::Error) -> bool {
    matches!(error.downcast_ref(), Some(luthier_extract::Error::Interrupted))
}

/// Whether no file can be written any more.
fn is_full(error: &anyhow::Error) -> bool {
    let kinds = error
        .chain()
        .filter_map(|cause| cause.downcast_ref().map(io::Error::kind));
    let full = [
        ErrorKind::StorageFull,
        ErrorKind::QuotaExceeded,
        ErrorKind::ReadOnlyFilesystem,
    ];
    kinds.into_iter().any(|kind| full.contains(&kind))
}

/// Turns the features of an image into an answer.
struct Predictor<'a> {
    model: &'a Model,
    scorer: Scorer,
    /// With `--keep-known`, if the model knows distances.
    meter: Option<DistanceMeter<'a>>,
    top_k: usize,
    min_confidence: f64,
    keep_known: Option<Threshold>,
}

impl Predictor<'_> {
    /// The answer, or why there is none.
    fn outcome(&self, embedded: Embedded, views: &Views) -> Result<Result<Answer, String>> {
        let rows = match embedded {
            Embedded::Unreadable(error) => return Ok(Err(error)),
            Embedded::Features { rows, .. } => rows,
        };
        let rows: Vec<&[f32]> = rows.iter().map(Vec::as_slice).collect();
        let features = views.combine(&rows);
        if let Some((place, value)) = features.iter().enumerate().find(|(_, value)| !value.is_finite()) {
            return Ok(Err(format!("feature {place} is {value}, expected a finite number")));
        }
        self.answer(&features).map(Ok)
    }

    fn answer(&self, features: &[f32]) -> Result<Answer> {
        let row = ndarray::aview1(features).insert_axis(ndarray::Axis(0));
        let probabilities = self.scorer.predict_proba(row)?;
        let mut ranked: Vec<(usize, f64)> = probabilities.row(0).iter().copied().enumerate().collect();
        ranked.sort_by(|a, b| b.1.total_cmp(&a.1));
        let (best, confidence) = ranked[0];
        let distance = match &self.meter {
            Some(meter) => Some(meter.distances(row)?[0]),
            None => None,
        };
        let mut is_known = confidence >= self.min_confidence;
        if let Some(threshold) = self.keep_known {
            let is_far = matches!((distance, threshold.distance), (Some(found), Some(farthest)) if found > farthest);
            is_known &= confidence >= threshold.probability && !is_far;
        }
        let class = |label: usize| self.model.classes[label].clone();
        let best_first = ranked.into_iter().take(self.top_k);
        Ok(Answer {
            answer: if is_known { class(best) } else { UNKNOWN.to_owned() },
            distance,
            predictions: best_first
                .map(|(label, probability)| ClassProbability {
                    class: class(label),
                    probability,
                })
                .collect(),
        })
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
        _ => Err(format!(
            "expected a number from 0 to 1, found {text}{}",
            meant_share(text)
        )),
    }
}

fn percentage(text: &str) -> std::result::Result<f64, String> {
    let expected = |meant: String| Err(format!("expected a percentage: 90, 95 or 99, found {text}{meant}"));
    match (text.parse::<f64>(), text.trim_end_matches('%').parse::<f64>()) {
        (Ok(percent), _) if (1.0..100.0).contains(&percent) => Ok(percent),
        (Ok(share), _) if share > 0.0 && share < 1.0 => expected(format!(": did you mean {}?", 100.0 * share)),
        (_, Ok(percent)) if (1.0..100.0).contains(&percent) => expected(format!(": did you mean {percent}?")),
        _ => expected(String::new()),
    }
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
