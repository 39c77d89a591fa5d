use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Result, bail};
use clap::Args;
use luthier_artifact::{Content, Digest, Split};
use luthier_cache::Cache;
use luthier_classify::Model;
use luthier_eval::{Evaluation, Findings, Warning};
use luthier_extract::{Scan, SkippedImages, WeightsSource};
use serde::Serialize;

use super::status::{OnStale, show};
use super::{
    OutputArguments, OutputFormat, configure, describe_c, describe_components, note_faster_precision, open_cache,
    print_stage, project,
};
use crate::features_folder::{SkippedRow, places, skipped_files};
use crate::pipeline::{Data, Pipeline, evaluate, inputs, load, train, with_retry};
use crate::problem::Problem;
use crate::runner::{Mode, Runner, StageReport};
use crate::settings::Settings;
use crate::terminal::Progress;
use crate::words::counted;
use crate::{export, report};

/// Train a model on folders of images and evaluate it: all stages, but only what changed
///
/// Runs five stages: scan, extract, features, classify and evaluate. A stage runs only if something that it depends on
/// changed. Writes features/, models/ and reports/.
#[derive(Args)]
#[command(
    after_help = "Examples:\n  luthier pipeline photos\n  luthier pipeline --train-dir data/train --test-dir data/test\n  luthier pipeline photos --test-fraction 0.25 --variance 0.95\n  luthier pipeline --dry-run"
)]
pub(crate) struct Arguments {
    /// Folder for features/, models/ and reports/
    #[arg(long, value_name = "DIR", default_value = ".", env = "LUTHIER_OUT")]
    out: PathBuf,
    /// Only say what would run, and for about how long
    ///
    /// The exit status is 3 if a stage would run. A stage that would be restored from the cache does not count.
    #[arg(long, alias = "dry_run")]
    dry_run: bool,
    #[command(flatten)]
    output: OutputArguments,
    #[command(flatten)]
    settings: Settings,
}

/// What `--json` prints.
#[derive(Serialize)]
struct Outcome {
    stages: Vec<StageReport>,
    images: Images,
    test: Test,
    outputs: Folders,
    warnings: Vec<Warning>,
}

#[derive(Serialize)]
struct Images {
    total: usize,
    embedded: usize,
    reused: usize,
    skipped: usize,
}

#[derive(Serialize)]
struct Test {
    accuracy: f64,
    macro_f1: f64,
    n: usize,
}

#[derive(Serialize)]
struct Folders {
    features: PathBuf,
    model: PathBuf,
    report: PathBuf,
}

pub(crate) fn run(arguments: Arguments, progress: &Progress) -> Result<ExitCode> {
    let Arguments {
        settings,
        out,
        dry_run,
        output,
    } = arguments;
    let (mut pipeline, data) = configure(&settings)?;
    if std::env::var_os("LUTHIER_DEMO").is_some() && settings.named_weights()?.is_none() {
        use_weights_for_demo(&settings, &out, &mut pipeline, progress)?;
    }
    if dry_run {
        let (format, on_stale) = (output.format(), OnStale::Status3);
        return show(&settings, &pipeline, &data, &out, format, on_stale, progress);
    }
    let cache = open_cache(&settings)?;
    let outcome = with_retry(progress, || run_once(&cache, &pipeline, &data, &out, progress))?;
    let Outcome {
        test,
        images,
        outputs,
        warnings,
        ..
    } = &outcome;
    note_faster_precision(&settings, images.embedded, progress);
    for warning in warnings {
        progress.say(&format!("warning: {}: {}", warning.title, warning.detail));
    }
    if output.format() == OutputFormat::Json {
        outln!("{}", serde_json::to_string_pretty(&outcome)?);
    } else {
        outln!(
            "accuracy {:.4}, macro F1 {:.4} on {}",
            test.accuracy,
            test.macro_f1,
            counted(test.n, "test image")
        );
        if images.skipped > 0 {
            outln!(
                "{} skipped, listed in {}",
                counted(images.skipped, "image"),
                outputs.report.with_file_name("skipped.csv").display()
            );
        }
        outln!("report   {}", outputs.report.display());
        outln!("model    {}", outputs.model.display());
        outln!("features {}", outputs.features.display());
    }
    Ok(ExitCode::SUCCESS)
}

fn run_once(cache: &Cache, pipeline: &Pipeline, data: &Data, out: &Path, progress: &Progress) -> Result<Outcome> {
    const RUNS: &str = "outside a plan every stage gives a result";
    std::fs::create_dir_all(out).map_err(|error| Problem::new(format!("{}: {error}", out.display())))?;
    let mut runner = Runner::new(cache, progress, project(out)?, Mode::Run)?;
    let print = |runner: &Runner<'_>, outcome: &str| {
        print_stage(
            progress,
            runner.reports().last().expect("a stage has just ended"),
            outcome,
        );
    };

    let (found, manifest_digest) = pipeline.scan(data, &mut runner)?;
    let manifest = &found.manifest;
    print(&runner, &describe(&found));

    let extracted = pipeline
        .extract(data, manifest, manifest_digest, &mut runner)?
        .expect(RUNS);
    let skipped_images: SkippedImages = load(cache, &extracted.skipped)?;
    let skipped = skipped_files(manifest, &skipped_images);
    let images = Images {
        total: manifest.entries.len(),
        embedded: extracted.n_embedded,
        reused: manifest.entries.len() - skipped.len() - extracted.n_embedded,
        skipped: skipped.len(),
    };
    runner.count_images(images.reused, images.embedded);
    let mut outcome = format!("{} embedded, {} reused", images.embedded, images.reused);
    if images.skipped > 0 {
        outcome += &format!(", {} skipped", images.skipped);
    }
    print(&runner, &outcome);
    report_skipped(&skipped, &out.join("reports/skipped.csv"), data.is_strict, progress)?;
    let features = out.join("features");
    let rows = export::Rows::extracted(cache, &data.source, (manifest, manifest_digest), &extracted)?;
    export::features(cache, &features, &rows, &extracted)?;

    let file_of = |image: &Digest| {
        let entry = manifest
            .entries
            .iter()
            .find(|entry| entry.content == Content::Digest(*image))?;
        Some(data.source.folder(entry.split).join(&entry.file).display().to_string())
    };
    let trained = train(
        &pipeline.features,
        &pipeline.classify,
        extracted.train,
        &file_of,
        &mut runner,
    )?
    .expect(RUNS);
    let model: Model = load(cache, &trained.model)?;
    if let [.., projected, classified] = runner.reports() {
        print_stage(progress, projected, &describe_components(&model));
        print_stage(progress, classified, &describe_c(&model));
    }
    let model_path = export::model(cache, &out.join("models"), trained)?;

    let inputs = inputs(&extracted, trained);
    let evaluated = evaluate(&pipeline.evaluate, &inputs, &file_of, &mut runner)?.expect(RUNS);
    let evaluation: Evaluation = load(cache, &evaluated.evaluation)?;
    print(&runner, &format!("accuracy {:.4}", evaluation.accuracy.value));
    let times = runner.times()?;
    let page = export::report(cache, &out.join("reports"), evaluated, trained.model, &rows, &times)?;

    let findings: Findings = load(cache, &evaluated.findings)?;
    let warnings = report::warnings(&model, places(manifest, &skipped_images), || {
        // The names of the rows are made only if they are needed.
        if findings.duplicates.iter().any(report::is_leaked_look) {
            let index = (rows.index)()?;
            Ok(report::leaked_looks(&findings, &index))
        } else {
            Ok(Vec::new())
        }
    })?;
    Ok(Outcome {
        stages: runner.finish()?,
        images,
        test: Test {
            accuracy: evaluation.accuracy.value,
            macro_f1: evaluation.macro_f1.value,
            n: evaluation.n,
        },
        outputs: Folders {
            features,
            model: model_path,
            report: page,
        },
        warnings,
    })
}

/// What was found, in a line.
pub(crate) fn describe(found: &Scan) -> String {
    let Scan {
        manifest, n_ignored, ..
    } = found;
    let count = |split| manifest.entries.iter().filter(|entry| entry.split == split).count();
    let (n, classes, train, test) = (
        manifest.entries.len(),
        manifest.classes.len(),
        count(Split::Train),
        count(Split::Test),
    );
    let ignored = if *n_ignored > 0 {
        format!("; {} ignored", counted(n_ignored, "other file"))
    } else {
        String::new()
    };
    format!("{n} images in {classes} classes: {train} train, {test} test{ignored}")
}

/// Names the first skipped images, or fails because of them.
///
/// `list` is the file that names all of them.
pub(crate) fn report_skipped(skipped: &[SkippedRow], list: &Path, is_strict: bool, progress: &Progress) -> Result<()> {
    const SHOWN: usize = 5;
    let line = |row: &SkippedRow| format!("{}/{}: {}", row.split, row.file, row.reason);
    if let (true, Some(first)) = (is_strict, skipped.first()) {
        bail!(
            Problem::new(format!(
                "{} cannot be read; the first: {}",
                counted(skipped.len(), "image"),
                line(first)
            ))
            .hint("replace or remove them, or run without --strict to skip them")
        );
    }
    for row in skipped.iter().take(SHOWN) {
        progress.say(&format!("warning: skipped {}", line(row)));
    }
    if skipped.len() > SHOWN {
        progress.say(&format!(
            "warning: skipped {} more: {} lists all",
            skipped.len() - SHOWN,
            list.display()
        ));
    }
    Ok(())
}

/// The demo must run without a network: when the weights cannot be had, it takes untrained ones, and says so.
fn use_weights_for_demo(settings: &Settings, out: &Path, pipeline: &mut Pipeline, progress: &Progress) -> Result<()> {
    let WeightsSource::Named(named) = pipeline.extract.extractor.weights.clone() else {
        return Ok(());
    };
    if pipeline.store.has(named) {
        return Ok(());
    }
    // What failed the last time is not tried again each time: a network that does not answer costs seconds.
    let why = if used_untrained_weights(settings, out)? {
        "the last run of the demo had no trained weights either".to_owned()
    } else {
        match pipeline.store.fetch(named, progress) {
            Ok(_) => return Ok(()),
            Err(error @ luthier_extract::Error::Download { .. }) => error.to_string(),
            Err(error) => return Err(error.into()),
        }
    };
    progress.say(&format!(
        "\n!! {why}\n!! The demo goes on with UNTRAINED weights: it shows how Luthier works, but its accuracy is worth \
         nothing.\n!! For trained ones: luthier weights fetch {}, or --weights FILE.safetensors\n",
        named.name
    ));
    pipeline.extract.extractor.weights = WeightsSource::Untrained;
    Ok(())
}

fn used_untrained_weights(settings: &Settings, out: &Path) -> Result<bool> {
    let cache = open_cache(settings)?;
    let last = cache.last_run(&project(out)?)?;
    let Some(extract) = last.iter().find(|run| run.stage == "extract") else {
        return Ok(false);
    };
    let key = cache.recorded_key(&extract.key)?;
    Ok(key
        .as_ref()
        .and_then(|key| key.get("weights"))
        .is_some_and(report::is_untrained))
}
