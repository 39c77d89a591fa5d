//! Prints predictions, each as soon as it is there.

use std::io::{self, StdoutLock, Write};

use clap::ValueEnum;
use luthier_artifact::file_names;
use serde::Serialize;

use luthier::words::printable;
use luthier::{ClassProbability, Prediction};

#[derive(Clone, Copy, ValueEnum)]
pub(super) enum Format {
    Table,
    Json,
    Csv,
}

/// What is printed of an image.
#[derive(Serialize)]
pub(super) struct Printed<'a> {
    pub(super) file: &'a str,
    #[serde(flatten)]
    pub(super) answer: Option<Prediction>,
    /// Where `--copy-to` or `--move-to` puts it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) to: Option<String>,
    /// Why it could not be read, or not be put there.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) error: Option<String>,
}

pub(super) struct Printer {
    format: Format,
    /// Whether there is a column for where images are put.
    has_targets: bool,
    /// The width of the first column of a table, in characters.
    width: usize,
    out: StdoutLock<'static>,
}

impl Printer {
    /// Prints the header, if the format has one.
    pub(super) fn new(format: Format, has_targets: bool) -> anyhow::Result<Self> {
        let out = io::stdout().lock();
        if let Format::Csv = format {
            let to = if has_targets { ",to" } else { "" };
            outln!("file,answer,rank,class,probability,distance,error{to}");
        }
        Ok(Printer {
            format,
            has_targets,
            width: 0,
            out,
        })
    }

    /// Makes room in the table for these names.
    pub(super) fn make_room<'a>(&mut self, names: impl Iterator<Item = &'a str>) {
        let widest = names.map(|name| printable(name).chars().count()).max();
        self.width = self.width.max(widest.unwrap_or(0));
    }

    /// Prints a prediction; a reader sees it at once.
    pub(super) fn print(&mut self, prediction: &Printed<'_>) -> io::Result<()> {
        let lines = match self.format {
            Format::Json => {
                let line = serde_json::to_string(prediction).map_err(io::Error::other)?;
                (file_names::to_json(line) + "\n").into_bytes()
            }
            Format::Csv => self.csv(prediction).map_err(io::Error::other)?,
            Format::Table => self.row(prediction).into_bytes(),
        };
        self.out.write_all(&lines)?;
        self.out.flush()
    }

    /// A row for each class, or for the error if there are none.
    fn csv(&self, prediction: &Printed<'_>) -> csv::Result<Vec<u8>> {
        let Printed {
            file,
            answer,
            to,
            error,
        } = prediction;
        let mut csv = csv::Writer::from_writer(Vec::new());
        let mut write = |answer: &str, rank: &str, class: &str, probability: &str, distance: &str| {
            let row = [file, answer, rank, class, probability, distance];
            let error = error.as_deref().unwrap_or_default();
            let to = self.has_targets.then(|| to.as_deref().unwrap_or_default());
            let row = row.into_iter().chain([error]).chain(to);
            csv.write_record(row.map(|cell| file_names::bytes_of(cell)))
        };
        match answer {
            None => write("", "", "", "", "")?,
            Some(Prediction {
                answer,
                distance,
                predictions,
                ..
            }) => {
                let distance = distance.map(|distance| distance.to_string()).unwrap_or_default();
                for (rank, ClassProbability { class, probability }) in (1..).zip(predictions) {
                    write(answer, &rank.to_string(), class, &probability.to_string(), &distance)?;
                }
            }
        }
        csv.into_inner().map_err(|error| error.into_error().into())
    }

    /// A line, or nothing for an image that cannot be read: that is said on stderr.
    fn row(&self, prediction: &Printed<'_>) -> String {
        let Some(Prediction {
            answer, predictions, ..
        }) = &prediction.answer
        else {
            return String::new();
        };
        let columns: Vec<String> = predictions
            .iter()
            .map(|best| format!("{} {:.1} %", printable(&best.class), 100.0 * best.probability))
            .collect();
        let mut columns = columns.join("  ");
        // That the most probable class is the answer goes without saying.
        if *answer != predictions[0].class {
            columns = format!("{} ({columns})", printable(answer));
        }
        if let Some(to) = &prediction.to {
            columns = format!("{columns}  → {}", printable(to));
        }
        format!(
            "{:<width$}  {columns}\n",
            printable(prediction.file),
            width = self.width
        )
    }
}
