//! `luthier`: photographs in folders → features → a trained model, an evaluation and predictions.

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

use std::process::ExitCode;

use clap::{Parser, Subcommand};
use problem::Problem;
use terminal::{Stopping, Verbosity};

/// Classify photographs: ResNet-50 features, PCA and logistic regression, re-doing only what a change invalidated.
#[derive(Parser)]
#[command(
    version,
    max_term_width = 110,
    after_help = "Start here:\n  luthier pipeline --train-dir data/train --test-dir data/test\n\nEvery setting can also be written into luthier.toml (`luthier init`) or the environment (LUTHIER_VARIANCE=0.95)."
)]
struct Cli {
    #[command(subcommand)]
    command: Command,
    /// Say nothing on stderr but errors
    #[arg(short, long, global = true, conflicts_with = "verbose")]
    quiet: bool,
    /// Say how things are decided
    #[arg(short, long, global = true)]
    verbose: bool,
}

#[derive(Subcommand)]
enum Command {
    /// Folders of images → features, model, report: everything, re-doing only what changed
    Pipeline(commands::pipeline::Arguments),
    /// Folders of images → features/*.npy
    Extract(commands::extract::Arguments),
    /// features/*.npy → models/model.safetensors
    Train(commands::train::Arguments),
    /// A model and features → reports/
    Evaluate(commands::evaluate::Arguments),
    /// Two reports → what became better and worse
    Compare(commands::compare::Arguments),
    /// A model and images → their classes, with probabilities
    Predict(commands::predict::Arguments),
    /// What `pipeline` would run, and why
    Status(commands::status::Arguments),
    /// What a stage depends on, beside what it depended on in the last run
    Explain(commands::explain::Arguments),
    /// What the cache holds; check it; shrink it
    #[command(subcommand)]
    Cache(commands::cache::Command),
    /// Known weights of ResNet-50: list, fetch, path
    #[command(subcommand)]
    Weights(commands::weights::Command),
    /// Write a luthier.toml with every setting, commented out
    Init(commands::init::Arguments),
}

fn main() -> ExitCode {
    let Cli {
        command,
        quiet,
        verbose,
    } = Cli::parse();
    let verbosity = match (quiet, verbose) {
        (true, _) => Verbosity::Quiet,
        (_, true) => Verbosity::Verbose,
        _ => Verbosity::Normal,
    };
    terminal::show_messages(verbosity);
    let progress = terminal::Progress::new(verbosity);
    let stopping = match command {
        Command::Pipeline(_) | Command::Extract(_) => Stopping::StoresWhatIsDone,
        _ => Stopping::Stops,
    };
    let done = terminal::catch_interrupts(stopping).and_then(|()| match command {
        Command::Pipeline(arguments) => commands::pipeline::run(arguments, &progress),
        Command::Extract(arguments) => commands::extract::run(arguments, &progress),
        Command::Train(arguments) => commands::train::run(arguments, &progress),
        Command::Evaluate(arguments) => commands::evaluate::run(arguments, &progress),
        Command::Compare(arguments) => commands::compare::run(arguments, &progress),
        Command::Predict(arguments) => commands::predict::run(arguments, &progress),
        Command::Status(arguments) => commands::status::run(arguments, &progress),
        Command::Explain(arguments) => commands::explain::run(arguments, &progress),
        Command::Cache(command) => commands::cache::run(command, &progress),
        Command::Weights(command) => commands::weights::run(command, &progress),
        Command::Init(arguments) => commands::init::run(arguments, &progress),
    });
    done.unwrap_or_else(|error| {
        let problem = Problem::of(&error);
        terminal::message(&format!("error: {problem}"));
        ExitCode::from(problem.status())
    })
}
