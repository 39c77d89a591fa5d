use crate::ExitCode;
use std::path::{Path, PathBuf};

use anyhow::Result;
use bytesize::ByteSize;
use clap::{Args, ValueEnum};
use luthier::MODEL_FILE;
use luthier::words::counted;
use luthier_export::{Difference, Exported, Form, export};
use luthier_extract::Precision;
use serde::Serialize;

use super::{print_json, weights_store};
use crate::settings::{NetworkSettings, Settings};
use crate::terminal::Progress;

/// Write a model for another program, or for another machine
///
/// A file for another program holds the whole network in single precision, and the classifier. A bundle is for Luthier on
/// another machine. Before either appears it is read back, and its answers to a few images are compared with those of
/// `luthier predict`.
#[derive(Args)]
#[command(
    after_help = "Examples:\n  luthier export --format onnx\n  luthier export --format torchvision --model-path models/model.safetensors --output net.safetensors\n  luthier export --format bundle --output instruments"
)]
pub(crate) struct Arguments {
    /// Format of the file
    #[arg(long, value_name = "FORMAT", value_enum)]
    format: Format,
    /// Model that `luthier train` or `luthier pipeline` wrote
    #[arg(long, value_name = "FILE", default_value_os_t = Path::new("models").join(MODEL_FILE), alias = "model_path", env = "LUTHIER_MODEL_PATH")]
    model_path: PathBuf,
    /// File to write, or folder for a bundle [default: beside the model, named for the format]
    #[arg(long, value_name = "PATH")]
    output: Option<PathBuf>,
    /// Print one JSON document on stdout
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    network: NetworkSettings,
}

/// The formats that there are.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Format {
    /// ONNX from a decoded image of any size, u8 [height, width, 3], to probabilities: preprocessing is in the graph
    Onnx,
    /// ONNX from images that are resized already, u8 [n, 224, 224, 3], to probabilities
    OnnxPixels,
    /// safetensors for torchvision's resnet50(num_classes=k), with the classifier as `fc`
    Torchvision,
    /// Folder with the model and a copy of its weights: all that `luthier predict` and `luthier serve` need
    Bundle,
}

impl Format {
    fn file_name(self) -> &'static str {
        match self {
            Format::Onnx => "model.onnx",
            Format::OnnxPixels => "model-pixels.onnx",
            Format::Torchvision => "resnet50.safetensors",
            Format::Bundle => "bundle",
        }
    }
}

#[derive(Serialize)]
struct Outcome<'a> {
    file: &'a Path,
    bytes: u64,
    n_images: usize,
    largest_difference: f64,
}

pub(crate) fn run(arguments: Arguments, progress: &Progress) -> Result<ExitCode> {
    let Arguments {
        format,
        model_path,
        output,
        json,
        network,
    } = arguments;
    let settings = Settings {
        network,
        ..Settings::default()
    };
    let config = settings.predictor_config()?;
    let output = output.unwrap_or_else(|| model_path.with_file_name(format.file_name()));
    let written = match format {
        Format::Onnx => luthier_export::Format::Onnx(Form::Image),
        Format::OnnxPixels => luthier_export::Format::Onnx(Form::Pixels),
        Format::Torchvision => luthier_export::Format::Torchvision,
        Format::Bundle => luthier_export::Format::Bundle,
    };
    let Exported {
        size,
        precision,
        difference,
    } = export(&model_path, written, &output, &weights_store()?, &config, progress)?;
    let Difference { n_images, largest } = difference;
    if precision != Precision::Fp32 && format != Format::Bundle {
        progress.say(&format!(
            "note: predict computes in {precision}, as the model was trained; the file computes in fp32"
        ));
    }
    if json {
        print_json(&Outcome {
            file: &output,
            bytes: size,
            n_images,
            largest_difference: largest,
        })?;
    } else {
        outln!("{}  {}", output.display(), ByteSize(size));
        outln!(
            "answers as predict does: no probability differs by more than {largest:.1e} on {}",
            counted(n_images, "image")
        );
    }
    Ok(ExitCode::SUCCESS)
}
