use crate::ExitCode;
use std::path::{Path, PathBuf};

use anyhow::Result;
use bytesize::ByteSize;
use clap::Subcommand;
use luthier::words::{counted, printable};
use luthier::{MODEL_FILE, ModelCard};
use luthier_artifact::file_names;
use time::OffsetDateTime;
use time::macros::format_description;

use super::{OutputArguments, OutputFormat, print_json};

#[derive(Subcommand)]
#[command(after_help = "Example:\n  luthier model show models/model.safetensors")]
pub(crate) enum Command {
    /// Show the classes of a model, how it sees images, and how good it was in cross-validation
    #[command(after_help = "Examples:\n  luthier model show\n  luthier model show models/model.safetensors --json")]
    Show {
        /// Model that `luthier train` or `luthier pipeline` wrote
        #[arg(value_name = "FILE", default_value_os_t = Path::new("models").join(MODEL_FILE), env = "LUTHIER_MODEL_PATH")]
        model: PathBuf,
        #[command(flatten)]
        output: OutputArguments,
    },
}

pub(crate) fn run(command: Command) -> Result<ExitCode> {
    let Command::Show { model, output } = command;
    let card = ModelCard::read(&model)?;
    match output.format() {
        OutputFormat::Json => print_json(&card)?,
        OutputFormat::Text => print(&model, &card)?,
    }
    Ok(ExitCode::SUCCESS)
}

fn print(path: &Path, card: &ModelCard) -> Result<()> {
    let ModelCard {
        digest: _,
        bytes,
        format: _,
        classes,
        extractor,
        n_train,
        c,
        n_components,
        held_out,
    } = card;
    let date = std::fs::metadata(path).and_then(|found| found.modified()).ok();
    let format = format_description!("[year]-[month]-[day] [hour]:[minute] UTC");
    let date = date.and_then(|date| OffsetDateTime::from(date).format(format).ok());
    let date = date.map(|date| format!(", of {date}")).unwrap_or_default();
    let path = printable(&file_names::name_of(path));
    outln!("model       {path}, {}{date}", ByteSize(*bytes));
    outln!("classes     {}: {}", classes.len(), printable(&classes.join(", ")));
    let how = match held_out {
        Some(_) => "by cross-validation",
        None => "as given",
    };
    outln!(
        "trained on  {}, {}, C = {c} {how}",
        counted(*n_train, "image"),
        counted(*n_components, "component")
    );
    if let Some(held_out) = held_out
        && let Some(accuracy) = held_out.accuracy
    {
        outln!(
            "accuracy    {accuracy:.4} on {} that were held out",
            counted(held_out.n, "image")
        );
    }
    let views = extractor.described_views();
    outln!(
        "images      {views}, {} pooling, large JPEGs decoded {}",
        extractor.pooling,
        extractor.decode
    );
    outln!(
        "network     {} (SHA-256 {}…), {}",
        printable(&extractor.weights),
        extractor.short_sha256(),
        extractor.precision
    );
    for threshold in held_out.iter().flat_map(|held_out| &held_out.thresholds) {
        let distance = match threshold.distance {
            Some(distance) => format!(" and a distance of at most {distance:.1}"),
            None => String::new(),
        };
        outln!(
            "known       {:.0} %: a probability of at least {:.3}{distance}",
            100.0 * threshold.share,
            threshold.probability
        );
    }
    Ok(())
}
