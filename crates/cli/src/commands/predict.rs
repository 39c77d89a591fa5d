mod inputs;
mod piped;
mod printer;

use crate::ExitCode;
use luthier_artifact::file_names;
use std::collections::HashSet;
use std::fs;
use std::io::{self, ErrorKind, IsTerminal};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use clap::Args;
use luthier::words::{counted, printable};
use luthier::{Arrivals, MODEL_FILE, Prediction, Predictor, PredictorConfig, Sorter, Transfer, UNKNOWN};
use luthier_cache::{Cache, DryRun};
use luthier_extract::{ImageSource, Observer as _, Task};

use self::inputs::{Input, Source, sources};
use self::printer::{Format, Printed, Printer};
use super::{connect, weights_store};
use crate::problem::Problem;
use crate::settings::{CacheSettings, LimitSettings, NetworkSettings, Settings, meant_share, positive};
use crate::terminal::Progress;

/// Predict the classes of images, and sort the images into folders if asked to
///
/// Predictions come in the order in which the images are named. The network sees images as it did when the model was
/// trained. An image that cannot be read is reported, and the exit status is then 1. An image whose features are in the
/// cache does not go through the network again.
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
    /// More images, named in the same ways; they come last
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
    limits: LimitSettings,
    #[command(flatten)]
    network: NetworkSettings,
    #[command(flatten)]
    cache: CacheSettings,
}

const WEIGHTS_HELP: &str =
    "Weights of ResNet-50: a name, a .safetensors file, or `untrained` [default: those of the model]";

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
        limits,
        network,
        cache,
    } = arguments;
    let format = if json { Format::Json } else { format };
    let images = [images, image_path].concat();
    let settings = Settings {
        network,
        cache,
        ..Settings::default()
    };
    if dry_run && copy_to.is_none() && move_to.is_none() {
        bail!(Problem::usage(
            "--dry-run: expected --copy-to or --move-to with it, found neither"
        ));
    }
    let sources = sources(&images, watch.as_deref())?;
    let n_images = (sources.iter()).try_fold(0, |n, source| match source {
        Source::Files(files) => Some(n + files.len()),
        Source::Stdin(_) | Source::Watched(_) => None,
    });
    let config = PredictorConfig {
        n_images,
        limits: limits.limits(),
        top_k,
        min_confidence,
        keep_known,
        ..settings.predictor_config()?
    };
    let cache = open_cache(&settings);
    let predictor = Predictor::open(&model_path, &weights_store()?, cache, &config, progress)?;
    let target = (copy_to.map(|folder| (Transfer::Copy, folder))).or(move_to.map(|folder| (Transfer::Move, folder)));
    let sorter = match target {
        Some((transfer, folder)) => {
            let dry_run = if dry_run { DryRun::Yes } else { DryRun::No };
            let classes = predictor.model().classes.iter().cloned();
            Some(Sorter::new(
                transfer,
                dry_run,
                folder,
                classes.chain([UNKNOWN.to_owned()]).collect(),
            )?)
        }
        None => None,
    };
    let mut session = Session {
        printer: Printer::new(format, sorter.is_some())?,
        predictor: &predictor,
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

/// The cache that is named, or else the one that the pipeline has made in this folder. `predict` makes none by itself:
/// with a remote alone it has a temporary one. It goes on without one that it cannot use.
fn open_cache(settings: &Settings) -> Option<Cache> {
    let folder = settings.cache_dir();
    let opened = if settings.named_cache_dir().is_some() || folder.join("objects").is_dir() {
        Cache::open(&folder)
    } else if settings.cache_remote().is_some() {
        Cache::temporary()
    } else {
        return None;
    };
    (opened.map_err(anyhow::Error::from))
        .and_then(|cache| connect(cache, settings))
        .inspect_err(|error| tracing::warn!("{error}: images are predicted without the cache"))
        .ok()
}

/// A model and what is done with its answers.
struct Session<'a> {
    predictor: &'a Predictor,
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
                    let inputs = items.into_iter().map(Input::of).collect();
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
                let path = input.path();
                path.is_none_or(|path| seen.insert(fs::canonicalize(path).unwrap_or(path.to_owned())))
            });
            let n = inputs.len();
            inputs.retain(|input| input.path().is_none_or(|path| !sorter.passes_over(path)));
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
            predictor,
            sorter,
            printer,
            progress,
            n_failed,
        } = self;
        if sorter.is_some() && inputs.iter().any(|input| input.path().is_none()) {
            bail!(
                Problem::usage("standard input is an image, which has no name: expected paths to copy or move")
                    .hint("leave out --copy-to and --move-to, or name the file")
            );
        }
        printer.make_room(inputs.iter().map(|input| input.name.as_str()));
        let images: Vec<ImageSource> = inputs.iter().map(|input| input.source.clone()).collect();
        let mut finish = |input: &Input, outcome: Result<Prediction, String>| -> Result<()> {
            let (answer, mut error) = match outcome {
                Ok(answer) => (Some(answer), None),
                Err(error) => (None, Some(error)),
            };
            let mut to = None;
            if let (Some(sorter), Some(answer), Some(path)) = (sorter.as_mut(), &answer, input.path()) {
                match sorter.put(path, &answer.answer, Some(&answer.image)) {
                    Ok(target) => to = Some(file_names::name_of(&target)),
                    // Every other image would meet it too.
                    Err(error) if error.is_disk_full() => {
                        return Err(anyhow::Error::new(error).context(printable(&input.name)));
                    }
                    Err(failed) => error = Some(failed.to_string()),
                }
            }
            if let Some(error) = &error {
                *n_failed += 1;
                progress.complain(&format!("error: {}: {error}", printable(&input.name)));
            }
            let prediction = Printed {
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
        predictor.predict(&images, *progress, |place, prediction| {
            task.advance(1);
            finish(&inputs[place], prediction)
        })
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
    error.downcast_ref().is_some_and(luthier::Error::is_interrupt)
}

pub(super) fn probability(text: &str) -> std::result::Result<f64, String> {
    match text.parse() {
        Ok(p) if (0.0..=1.0).contains(&p) => Ok(p),
        _ => Err(format!(
            "expected a number from 0 to 1, found {text}{}",
            meant_share(text)
        )),
    }
}

pub(super) fn percentage(text: &str) -> std::result::Result<f64, String> {
    let expected = |meant: String| Err(format!("expected a percentage: 90, 95 or 99, found {text}{meant}"));
    match (text.parse::<f64>(), text.trim_end_matches('%').parse::<f64>()) {
        (Ok(percent), _) if (1.0..100.0).contains(&percent) => Ok(percent),
        (Ok(share), _) if share > 0.0 && share < 1.0 => expected(format!(": did you mean {}?", 100.0 * share)),
        (_, Ok(percent)) if (1.0..100.0).contains(&percent) => expected(format!(": did you mean {percent}?")),
        _ => expected(String::new()),
    }
}
