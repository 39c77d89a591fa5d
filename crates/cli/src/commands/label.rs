use crate::ExitCode;
use std::net::SocketAddr;
use std::path::Path;

use anyhow::{Result, bail};
use clap::Args;
use luthier::{Data, Engine, Pipeline, Task};
use luthier_serve::{DecidePage, Tables, decide};

use super::{EmbedSettings, check_views_are_named, configure, open_cache, with_engine, without_classes};
use crate::problem::Problem;
use crate::settings::{Settings, default_decisions};
use crate::terminal::Progress;

/// Give photographs classes: a page asks about those that teach the model most
///
/// The page begins with photographs that look like no other, and classes are named as they come up. A model learns from
/// each ten answers and asks about what it is least sure of. Answers are kept at once in decisions.jsonl, and decisions.csv
/// is a table of them for `--labels`. What the model takes the other photographs for is in decisions.predictions.csv. Ctrl-C
/// ends the page; the next start goes on.
#[derive(Args)]
#[command(after_help = "Examples:
  luthier label photos
  luthier pipeline --data-dir photos --labels decisions.csv      trains on what was labelled")]
pub(crate) struct Arguments {
    #[command(flatten)]
    session: SessionArguments,
}

/// What `label` and `review` are told alike.
#[derive(Args)]
pub(crate) struct SessionArguments {
    /// Address of this machine, and port; port 0 takes any that is free
    #[arg(long, value_name = "ADDRESS", default_value = "127.0.0.1:8081")]
    listen: SocketAddr,
    #[command(flatten)]
    settings: EmbedSettings,
}

impl SessionArguments {
    /// Where the page is to be, and the settings.
    pub(super) fn into_parts(self) -> (SocketAddr, Settings) {
        let SessionArguments { listen, settings } = self;
        (listen, settings.into_settings())
    }
}

pub(crate) fn run(arguments: Arguments, progress: &Progress) -> Result<ExitCode> {
    let (listen, settings) = arguments.session.into_parts();
    let (pipeline, mut data) = configure(&settings)?;
    // What folders and tables say of classes does not count: `luthier review` looks at those.
    let unlabelled = without_classes(data.source.layout);
    data.source.layout = unlabelled.ok_or_else(|| Problem::usage("two folders, expected one FOLDER of photographs"))?;
    let decisions = data.source.decisions.clone().unwrap_or_else(default_decisions);
    let tables = Tables {
        labels: decisions.with_extension("csv"),
        predictions: decisions.with_extension("predictions.csv"),
    };
    for table in [&tables.labels, &tables.predictions] {
        if *table == decisions || (table.exists() && !decisions.exists()) {
            let found = table.display();
            bail!(
                Problem::usage(format!("{found} would be replaced by a table of the decisions")).hint(
                    "name another file of decisions: --decisions FILE.jsonl; \
                     the tables are FILE.csv and FILE.predictions.csv"
                )
            );
        }
    }
    open_page(
        Task::Label,
        listen,
        &settings,
        (&pipeline, &data),
        (&decisions, Some(tables)),
        progress,
    )
}

/// Embeds the images, and has people decide about them on a page.
pub(super) fn open_page(
    task: Task,
    listen: SocketAddr,
    settings: &Settings,
    (pipeline, data): (&Pipeline, &Data),
    (decisions, tables): (&Path, Option<Tables>),
    progress: &Progress,
) -> Result<ExitCode> {
    check_views_are_named(pipeline)?;
    let page = DecidePage::bind(listen)?;
    let cache = open_cache(settings)?;
    let engine = |engine: &Engine<'_>| engine.session(pipeline, data, task, decisions);
    let (session, skipped) = with_engine(&cache, progress, engine)?;
    for file in &skipped {
        progress.say(&format!("warning: skipped {file}"));
    }
    decide(page, session, tables.clone(), progress, |url| {
        // Nobody finds the page without it.
        progress.complain(&format!("open {url} (Ctrl-C ends)"));
    })?;
    outln!("decisions {}", decisions.display());
    if let Some(Tables { labels, predictions }) = tables {
        outln!("labels {}\npredictions {}", labels.display(), predictions.display());
    }
    Ok(ExitCode::SUCCESS)
}
