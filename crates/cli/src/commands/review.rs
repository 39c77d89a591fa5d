use crate::ExitCode;

use anyhow::Result;
use clap::Args;
use luthier::Task;

use super::configure;
use super::label::{SessionArguments, open_page};
use crate::settings::default_decisions;
use crate::terminal::Progress;

/// Look at the labels that are probably wrong: a page shows them, the most suspicious first
///
/// For each photograph, models that have not seen it say how probable its class is. A model learns from each ten answers.
/// Answers are kept at once in decisions.jsonl, which the pipeline reads; no file is moved. Ctrl-C ends the page; the next
/// start goes on, and never shows again what was called right.
#[derive(Args)]
#[command(after_help = "Examples:
  luthier review photos
  luthier review --train-dir data/train --test-dir data/test
  luthier relabel photos --apply      moves the files into the folders of their decided classes")]
pub(crate) struct Arguments {
    #[command(flatten)]
    session: SessionArguments,
}

pub(crate) fn run(arguments: Arguments, progress: &Progress) -> Result<ExitCode> {
    let (listen, settings) = arguments.session.into_parts();
    let (pipeline, mut data) = configure(&settings)?;
    let decisions = data.source.decisions.clone().unwrap_or_else(default_decisions);
    // The first answer makes the file.
    data.source.decisions = data.source.decisions.filter(|path| path.exists());
    open_page(
        Task::Review,
        listen,
        &settings,
        (&pipeline, &data),
        (&decisions, None),
        progress,
    )
}
