//! The command `luthier`: arguments, settings, terminal and printing. What it does is in the library `luthier`.

#![warn(clippy::print_stderr, clippy::print_stdout)]

/// Prints to stdout. Unlike the standard macro it returns an error instead of panicking, and none if nobody reads.
macro_rules! out {
    ($($text:tt)*) => { crate::terminal::print(format_args!($($text)*))? };
}

/// [`out`] with an end of line.
macro_rules! outln {
    () => { out!("\n") };
    ($format:literal $($values:tt)*) => { out!("{}\n", format_args!($format $($values)*)) };
}

mod commands;
mod problem;
mod settings;
mod terminal;

use std::ffi::OsString;

use anyhow::Result;
use clap::{CommandFactory, FromArgMatches, Parser, Subcommand};
use luthier::PipelineSummary;
use luthier_extract::JPEG_HAS_SIMD;
use problem::Problem;
use terminal::{Progress, Stopping, Verbosity};

pub use commands::weights_store;
pub use terminal::set_interrupted;

/// The exit status of a command. Unlike the standard one, it tells its number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct ExitCode(u8);

impl ExitCode {
    pub(crate) const SUCCESS: ExitCode = ExitCode(0);
    pub(crate) const FAILURE: ExitCode = ExitCode(1);
}

impl From<u8> for ExitCode {
    fn from(status: u8) -> Self {
        ExitCode(status)
    }
}

const VERSION: &str = if JPEG_HAS_SIMD {
    env!("LUTHIER_BUILD_VERSION")
} else {
    concat!(env!("LUTHIER_BUILD_VERSION"), ", JPEG decoder without SIMD")
};

/// Classify photographs, and redo only what changed
///
/// Luthier turns photographs into features with a pretrained ResNet-50, and trains a classifier on the features: PCA and
/// logistic regression. It keeps the results of all steps in a cache.
#[derive(Parser)]
#[command(
    name = "luthier",
    version = VERSION,
    max_term_width = 100,
    after_help = "Start here:
  luthier pipeline photos          photos/ has a folder of images for each class
  luthier predict image.jpg

Settings can also stand in luthier.toml, which `luthier init` writes with all of them, or in the
environment: LUTHIER_VARIANCE=0.95."
)]
struct Cli {
    #[command(subcommand)]
    command: Command,
    /// Print nothing on stderr but errors
    #[arg(short, long, global = true, conflicts_with = "verbose")]
    quiet: bool,
    /// Print how things were decided
    #[arg(short, long, global = true)]
    verbose: bool,
}

#[derive(Subcommand)]
enum Command {
    Pipeline(commands::pipeline::Arguments),
    Extract(commands::extract::Arguments),
    Moments(commands::moments::Arguments),
    Train(commands::train::Arguments),
    Evaluate(commands::evaluate::Arguments),
    Runs(commands::runs::Arguments),
    Compare(commands::compare::Arguments),
    Predict(commands::predict::Arguments),
    Serve(commands::serve::Arguments),
    Export(commands::export::Arguments),
    Label(commands::label::Arguments),
    Review(commands::review::Arguments),
    Relabel(commands::relabel::Arguments),
    Status(commands::status::Arguments),
    Explain(commands::explain::Arguments),
    /// Show, check and shrink the cache
    #[command(subcommand)]
    Cache(commands::cache::Command),
    /// List and download weights of ResNet-50
    #[command(subcommand)]
    Weights(commands::weights::Command),
    /// Show what a model says of itself
    #[command(subcommand)]
    Model(commands::model::Command),
    Init(commands::init::Arguments),
    Completions(commands::completions::Arguments),
    Man(commands::man::Arguments),
}

/// Runs the command. The first argument is the name of the program. Prints help and errors, and gives the exit status.
pub fn main(arguments: impl IntoIterator<Item = OsString>) -> u8 {
    let arguments: Vec<OsString> = arguments.into_iter().collect();
    let done = read(&arguments).and_then(|cli| cli.map_or_else(|error| Ok(help_or_usage(&error)), run));
    let ExitCode(status) = done.unwrap_or_else(|error| {
        let problem = Problem::of(&error);
        terminal::message(&format!("error: {problem}"));
        ExitCode::from(problem.status())
    });
    status
}

/// Prints help, the version, or what is wrong with the arguments.
fn help_or_usage(error: &clap::Error) -> ExitCode {
    // Whoever closed the pipe has read enough.
    error.print().ok();
    ExitCode::from(u8::try_from(error.exit_code()).unwrap_or(2))
}

/// The arguments, with what files and the environment say of settings that they leave open.
fn read(arguments: &[OsString]) -> Result<clap::error::Result<Cli>> {
    let matches = match Cli::command().try_get_matches_from(arguments) {
        Ok(matches) => matches,
        Err(error) => return Ok(Err(error)),
    };
    if let Some(("extract", matches)) = matches.subcommand() {
        commands::extract::check(matches)?;
    }
    let command = settings::layers::add_lower_layers(Cli::command(), &matches)?;
    Ok(command
        .try_get_matches_from(arguments)
        .and_then(|matches| Cli::from_arg_matches(&matches)))
}

/// Runs `luthier pipeline` with these arguments, for programs: prints nothing, and ends nothing.
///
/// # Errors
/// What the command would print, without `error: `, and with the way out as a last line.
pub fn pipeline(arguments: impl IntoIterator<Item = OsString>) -> std::result::Result<PipelineSummary, String> {
    let arguments: Vec<OsString> = ["luthier", "--quiet", "pipeline"]
        .map(OsString::from)
        .into_iter()
        .chain(arguments)
        .collect();
    let usage = |error: clap::Error| error.to_string().trim_start_matches("error: ").trim_end().to_owned();
    let said = |error: anyhow::Error| Problem::of(&error).to_string();
    let cli = read(&arguments).map_err(said)?.map_err(usage)?;
    let Command::Pipeline(arguments) = cli.command else {
        return Err("expected the arguments of `luthier pipeline`".to_owned());
    };
    if arguments.dry_run {
        return Err("--dry-run gives no result: `luthier status` says what would run".to_owned());
    }
    commands::pipeline::summarize(&arguments, &Progress::new(Verbosity::Quiet)).map_err(said)
}

fn run(cli: Cli) -> Result<ExitCode> {
    let Cli {
        command,
        quiet,
        verbose,
    } = cli;
    let verbosity = match (quiet, verbose) {
        (true, _) => Verbosity::Quiet,
        (_, true) => Verbosity::Verbose,
        _ => Verbosity::Normal,
    };
    terminal::show_messages(verbosity);
    if !JPEG_HAS_SIMD {
        tracing::debug!(
            "this program was built without nasm: JPEGs take half as long again to decode; to mend that, install nasm, run \
             cargo xtask setup, and build again"
        );
    }
    terminal::catch_interrupts(match command {
        Command::Pipeline(_) | Command::Extract(_) | Command::Moments(_) | Command::Label(_) | Command::Review(_) => {
            Stopping::StoresWhatIsDone
        }
        _ => Stopping::Stops,
    })?;
    let progress = Progress::new(verbosity);
    match command {
        Command::Pipeline(arguments) => commands::pipeline::run(arguments, &progress),
        Command::Extract(arguments) => commands::extract::run(arguments, &progress),
        Command::Moments(arguments) => commands::moments::run(arguments, &progress),
        Command::Train(arguments) => commands::train::run(arguments, &progress),
        Command::Evaluate(arguments) => commands::evaluate::run(arguments, &progress),
        Command::Runs(arguments) => commands::runs::run(arguments, &progress),
        Command::Compare(arguments) => commands::compare::run(arguments, &progress),
        Command::Predict(arguments) => commands::predict::run(arguments, &progress),
        Command::Serve(arguments) => commands::serve::run(arguments, &progress),
        Command::Export(arguments) => commands::export::run(arguments, &progress),
        Command::Model(command) => commands::model::run(command),
        Command::Label(arguments) => commands::label::run(arguments, &progress),
        Command::Review(arguments) => commands::review::run(arguments, &progress),
        Command::Relabel(arguments) => commands::relabel::run(arguments, &progress),
        Command::Status(arguments) => commands::status::run(arguments, &progress),
        Command::Explain(arguments) => commands::explain::run(arguments, &progress),
        Command::Cache(command) => commands::cache::run(command, &progress),
        Command::Weights(command) => commands::weights::run(command, &progress),
        Command::Init(arguments) => commands::init::run(arguments, &progress),
        Command::Completions(arguments) => commands::completions::run(&arguments, Cli::command()),
        Command::Man(arguments) => commands::man::run(&arguments, Cli::command()),
    }
}
