use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context, Result};
use clap::Args;
use luthier_artifact::{Digest, Split};
use luthier_classify::Model;

use super::{describe_c, describe_components, open_cache, print_stage, project};
use crate::pipeline::{load, with_retry};
use crate::runner::{Mode, Runner};
use crate::settings::{CacheSettings, ClassifySettings, FeaturesSettings, SeedSettings, Settings};
use crate::terminal::Progress;
use crate::words::counted;
use crate::{export, features_folder, pipeline};

/// Train a model on the features that `luthier extract` wrote
///
/// Fits a scaler, PCA and logistic regression to the training features, and writes models/model.safetensors.
#[derive(Args)]
#[command(after_help = "Example:\n  luthier train --feature-dir features/ --model-dir models/ --variance 0.95")]
pub(crate) struct Arguments {
    /// Folder that `luthier extract` wrote
    #[arg(
        long,
        value_name = "DIR",
        default_value = "features",
        alias = "feature_dir",
        env = "LUTHIER_FEATURE_DIR"
    )]
    feature_dir: PathBuf,
    /// Folder for model.safetensors
    #[arg(
        long,
        value_name = "DIR",
        default_value = "models",
        alias = "model_dir",
        env = "LUTHIER_MODEL_DIR"
    )]
    model_dir: PathBuf,
    #[command(flatten)]
    features: FeaturesSettings,
    #[command(flatten)]
    classify: ClassifySettings,
    #[command(flatten)]
    seed: SeedSettings,
    #[command(flatten)]
    cache: CacheSettings,
}

pub(crate) fn run(arguments: Arguments, progress: &Progress) -> Result<ExitCode> {
    let Arguments {
        feature_dir,
        model_dir,
        features,
        classify,
        seed,
        cache,
    } = arguments;
    let settings = Settings {
        features,
        classify,
        seed,
        cache,
        ..Settings::default()
    };
    let (features, classify) = (settings.features_config()?, settings.classify_config()?);
    let (index, _) = features_folder::read_index(&feature_dir)?;
    let table = features_folder::read_table(&feature_dir, Split::Train, &index)?;
    let cache = open_cache(&settings)?;
    let (path, model) = with_retry(progress, || {
        std::fs::create_dir_all(&model_dir).with_context(|| model_dir.display().to_string())?;
        let train = cache.put_table(&table)?;
        let mut runner = Runner::new(&cache, progress, project(&model_dir)?, Mode::Run)?;
        let file_of = |image: &Digest| index.file_of(Split::Train, image);
        let trained = pipeline::train(&features, &classify, train, &file_of, &mut runner)?
            .expect("outside a plan every stage gives a result");
        let model: Model = load(&cache, &trained.model)?;
        if let [projected, classified] = runner.reports() {
            print_stage(progress, projected, &describe_components(&model));
            print_stage(progress, classified, &describe_c(&model));
        }
        let path = export::model(&cache, &model_dir, trained)?;
        runner.finish()?;
        Ok((path, model))
    })?;
    outln!(
        "{}, {} classes, {}, {}",
        counted(model.training.n_train, "image"),
        model.classes.len(),
        describe_components(&model),
        describe_c(&model)
    );
    outln!("model {}", path.display());
    Ok(ExitCode::SUCCESS)
}
