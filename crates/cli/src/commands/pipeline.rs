use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Result, bail};
use clap::Args;
use luthier_artifact::{Content, Digest, Split};
use luthier_cache::Cache;
use luthier_classify::Model;
use luthier_eval::{Evaluation, Findings, Warning};
use luthier_extract::{Scan, SkippedImages};
use serde::Serialize;

use super::{configure, describe_c, describe_components, note_faster_precision, open_cache, print_stage, project};
use crate::features_folder::{SkippedRow, places, skipped_files};
use crate::pipeline::{Data, Pipeline, evaluate, inputs, load, train, with_retry};
use crate::problem::Problem;
use crate::runner::{Mode, Runner, StageReport};
use crate::settings::Settings;
use crate::terminal::Progress;
use crate::words::counted;
use crate::{export, report};

/// Runs scan → extract → features → classify → evaluate, each stage only if something it depends on changed, and
/// writes features/, models/ and reports/.
#[derive(Args)]
#[command(
    after_help = "Examples:\n  luthier pipeline --train-dir data/train --test-dir data/test\n  luthier pipeline --data-dir photos --test-fraction 0.2 --variance 0.95\n  luthier pipeline --dry-run"
)]
pub(crate) struct Arguments {
    /// Folder for features/, models/ and reports/
    #[arg(long, value_name = "DIR", default_value = ".", env = "LUTHIER_OUT")]
    out: PathBuf,
    /// Say what would run and about how long, and run nothing; exit status 3 if something would, restoring not counted
    #[arg(long)]
    dry_run: bool,
    /// Print one JSON document on stdout
    #[arg(long)]
    json: bool,
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
        json,
    } = arguments;
    let settings = settings.with_lower_layers()?;
    let (pipeline, data) = configure(&settings)?;
    if dry_run {
        return super::status::show(&settings, &pipeline, &data, &out, json, true, progress);
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
    if json {
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
    report_skipped(&skipped, data.is_strict, progress)?;
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
pub(crate) fn report_skipped(skipped: &[SkippedRow], is_strict: bool, progress: &Progress) -> Result<()> {
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
            "warning: skipped {} more, all listed in skipped.csv",
            skipped.len() - SHOWN
        ));
    }
    Ok(())
}
