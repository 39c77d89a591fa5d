//! Settings: flag > environment > `luthier.toml` > default.
//!
//! Each setting is declared once, below, as a command-line option. The other two layers are turned into such options
//! and read by the same parser, so that a name, a type and a message cannot differ between them.

use std::path::{Path, PathBuf};
use std::str::FromStr;

use anyhow::{Context, Result, bail};
use clap::{Args, CommandFactory, FromArgMatches, Parser};
use luthier_classify::{ChooseC, ClassWeight, ClassifyConfig, Rule};
use luthier_eval::EvaluateConfig;
use luthier_extract::{
    Combine, DataSource, Decoding, Device, ExtractConfig, ExtractorConfig, NamedWeights, Precision, Rehash, View,
    Views, WeightsSource,
};
use luthier_features::{ComponentCount, FeaturesConfig, Solver};

use crate::problem::Problem;

/// Where the images lie, and when they are read.
#[derive(Args, Clone, Debug, Default)]
#[command(next_help_heading = "Data")]
pub(crate) struct DataSettings {
    /// Folder with the training images, one folder per class
    #[arg(long, value_name = "DIR", alias = "train_dir")]
    train_dir: Option<PathBuf>,
    /// Folder with the test images, one folder per class
    #[arg(long, value_name = "DIR", alias = "test_dir")]
    test_dir: Option<PathBuf>,
    /// Folder with all images, one folder per class, of which a part is kept for the test
    #[arg(long, value_name = "DIR", alias = "data_dir", conflicts_with_all = ["train_dir", "test_dir"])]
    data_dir: Option<PathBuf>,
    /// Part of each class in --data-dir that is kept for the test [default: 0.2]
    #[arg(long, value_name = "PART", alias = "test_fraction")]
    test_fraction: Option<f64>,
    /// Read every image again, also those whose size, modification time and inode are unchanged
    #[arg(long, value_name = "BOOL", num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    rehash: Option<bool>,
}

/// How images become features.
#[derive(Args, Clone, Debug, Default)]
#[command(next_help_heading = "Extraction")]
pub(crate) struct ExtractSettings {
    /// How the network sees an image, in one view or several: squash (224 × 224 whatever the shape), crop (short side to
    /// 256, then the middle 224 × 224), mirror, crop-mirror (the same, mirrored) [default: squash]
    #[arg(long, value_name = "VIEW,…", value_delimiter = ',', alias = "resize")]
    views: Option<Vec<View>>,
    /// Features of several views: mean (their average) or concat (side by side) [default: mean]
    #[arg(long, value_name = "HOW")]
    combine: Option<Combine>,
    /// scaled: a JPEG with a short side from 1024 pixels on is decoded at a half, a quarter or an eighth; exact: whole
    /// [default: scaled]
    #[arg(long, value_name = "HOW")]
    decode: Option<Decoding>,
    /// Number format of the network: fp32, bf16, fp16, or auto for the fastest that the device has in hardware
    /// [default: fp32]
    #[arg(long, value_name = "FORMAT")]
    precision: Option<ChoosePrecision>,
    /// Make an unreadable image an error instead of skipping it
    #[arg(long, value_name = "BOOL", num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    strict: Option<bool>,
}

/// The number format, or who chooses it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum ChoosePrecision {
    Auto,
    Fixed(Precision),
}

impl FromStr for ChoosePrecision {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "auto" => Ok(ChoosePrecision::Auto),
            _ => text
                .parse()
                .map(ChoosePrecision::Fixed)
                .map_err(|_| format!("expected fp32, bf16, fp16 or auto, found {text}")),
        }
    }
}

/// How the network runs.
#[derive(Args, Clone, Debug, Default)]
#[command(next_help_heading = "Network")]
pub(crate) struct NetworkSettings {
    /// Weights of ResNet-50: a name from `luthier weights list`, a .safetensors file, or `untrained`
    /// [default: resnet50-imagenet1k-v1, or for `predict` those of the model]
    #[arg(long, value_name = "NAME|FILE")]
    weights: Option<String>,
    /// Where the network runs: auto, cpu, cuda, cuda:N or mps [default: auto]
    #[arg(long, value_name = "DEVICE")]
    device: Option<Device>,
    /// Images that go through the network at once [default: 1 on each core, or what half of a GPU's free memory holds]
    #[arg(long, value_name = "N", value_parser = positive)]
    batch: Option<usize>,
    /// Threads that decode and run the network [default: all cores]
    #[arg(long, value_name = "N", value_parser = positive)]
    threads: Option<usize>,
}

/// How features become components.
#[derive(Args, Clone, Debug, Default)]
#[command(next_help_heading = "Features")]
pub(crate) struct FeaturesSettings {
    /// Keep as many principal components as explain this part of the variance [default: 0.98]
    #[arg(long, value_name = "PART", conflicts_with = "components")]
    variance: Option<f64>,
    /// Keep this many principal components, or `none` to leave the features as they are, only scaled
    #[arg(long, value_name = "N|none", value_parser = components)]
    components: Option<ComponentCount>,
    /// Divide what is projected by its standard deviations, so that all components count the same [default: false]
    #[arg(long, value_name = "BOOL", num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    whiten: Option<bool>,
    /// Who computes PCA and logistic regression: faer, or smartcore (the reference, 100 times slower) [default: faer]
    #[arg(long, value_name = "SOLVER")]
    solver: Option<Solver>,
}

/// How components become classes.
#[derive(Args, Clone, Debug, Default)]
#[command(next_help_heading = "Classifier")]
pub(crate) struct ClassifySettings {
    /// Inverse strength of regularization. `auto`: the one of smallest log loss in cross-validation, which also calibrates
    /// the probabilities; `auto-1se`: the smallest within one standard error of it; a number: as given, without
    /// cross-validation [default: auto]
    #[arg(long, value_name = "C|auto|auto-1se")]
    c: Option<ChooseC>,
    /// How much a class counts: uniform (each image the same) or balanced (each class the same) [default: uniform]
    #[arg(long, value_name = "HOW")]
    class_weight: Option<ClassWeight>,
    /// Folds of the cross-validation [default: 5]
    #[arg(long, value_name = "K", value_parser = folds)]
    folds: Option<usize>,
}

/// How predictions are judged.
#[derive(Args, Clone, Debug, Default)]
#[command(next_help_heading = "Evaluation")]
pub(crate) struct EvaluateSettings {
    /// Confidence level of the intervals in the report [default: 0.95]
    #[arg(long, value_name = "LEVEL")]
    confidence: Option<f64>,
}

/// What more than one stage draws at random.
#[derive(Args, Clone, Debug, Default)]
#[command(next_help_heading = "Randomness")]
pub(crate) struct SeedSettings {
    /// Seed of the split of --data-dir, the folds and the bootstrap [default: 0]
    #[arg(long, value_name = "N")]
    seed: Option<u64>,
}

/// Where the cache lies.
#[derive(Args, Clone, Debug, Default)]
#[command(next_help_heading = "Cache")]
pub(crate) struct CacheSettings {
    /// Folder of the cache [default: .luthier]
    #[arg(long, value_name = "DIR", alias = "cache_dir")]
    cache_dir: Option<PathBuf>,
}

/// Every setting, each of which may be missing: one layer.
#[derive(Args, Clone, Debug, Default)]
pub(crate) struct Settings {
    #[command(flatten)]
    pub data: DataSettings,
    #[command(flatten)]
    pub extract: ExtractSettings,
    #[command(flatten)]
    pub network: NetworkSettings,
    #[command(flatten)]
    pub features: FeaturesSettings,
    #[command(flatten)]
    pub classify: ClassifySettings,
    #[command(flatten)]
    pub evaluate: EvaluateSettings,
    #[command(flatten)]
    pub seed: SeedSettings,
    #[command(flatten)]
    pub cache: CacheSettings,
}

/// The sections of `luthier.toml` and their keys.
const SECTIONS: [(&str, &[&str]); 6] = [
    ("data", &["train-dir", "test-dir", "data-dir", "test-fraction", "seed"]),
    (
        "extract",
        &[
            "views",
            "combine",
            "decode",
            "weights",
            "device",
            "precision",
            "batch",
            "threads",
            "strict",
        ],
    ),
    ("features", &["variance", "components", "whiten", "solver"]),
    ("classify", &["c", "class-weight", "folds"]),
    ("evaluate", &["confidence"]),
    ("cache", &["cache-dir", "rehash"]),
];

/// Keys that have another name, which older files and scripts use.
const ALIASES: [(&str, &str); 1] = [("resize", "views")];

/// Keys whose values are lists.
const LISTS: [&str; 1] = ["views"];

/// Keys whose values are paths, taken from the folder of `luthier.toml`.
const PATHS: [&str; 4] = ["train-dir", "test-dir", "data-dir", "cache-dir"];

pub(crate) fn positive(text: &str) -> std::result::Result<usize, String> {
    match text.parse() {
        Ok(0) | Err(_) => Err(format!("expected a whole number from 1 on, found {text}")),
        Ok(n) => Ok(n),
    }
}

fn folds(text: &str) -> std::result::Result<usize, String> {
    match text.parse() {
        Ok(n) if n >= 2 => Ok(n),
        _ => Err(format!("expected a whole number from 2 on, found {text}")),
    }
}

fn components(text: &str) -> std::result::Result<ComponentCount, String> {
    match text {
        "none" => Ok(ComponentCount::All),
        _ => positive(text)
            .map(ComponentCount::Exact)
            .map_err(|_| format!("expected a whole number from 1 on or none, found {text}")),
    }
}

/// A parser of nothing but settings, for the layers below the command line.
#[derive(Parser)]
#[command(no_binary_name = true)]
struct Layer {
    #[command(flatten)]
    settings: Settings,
}

impl Settings {
    /// Adds the layers below these flags: the environment, then `luthier.toml` in the current folder.
    ///
    /// # Errors
    /// A [`Problem`] naming the variable or key that does not read.
    pub(crate) fn with_lower_layers(self) -> Result<Self> {
        let file = Path::new("luthier.toml");
        let file = match std::fs::read_to_string(file) {
            Ok(text) => from_toml(&text, file)?,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Settings::default(),
            Err(error) => return Err(error).context("luthier.toml"),
        };
        Ok(self.or(from_environment(|name| std::env::var(name).ok())?).or(file))
    }

    /// This layer where it says something, else the lower one.
    fn or(self, lower: Settings) -> Settings {
        macro_rules! merge {
            ($part:ident: $($field:ident),*) => { $(let $field = self.$part.$field.or(lower.$part.$field);)* };
        }
        // Folders and kept components come as a whole from one layer: they exclude each other.
        let says_where = self.data.train_dir.is_some() || self.data.test_dir.is_some() || self.data.data_dir.is_some();
        let DataSettings {
            train_dir,
            test_dir,
            data_dir,
            ..
        } = if says_where {
            self.data.clone()
        } else {
            lower.data.clone()
        };
        let says_how_many = self.features.variance.is_some() || self.features.components.is_some();
        let FeaturesSettings {
            variance, components, ..
        } = if says_how_many {
            self.features.clone()
        } else {
            lower.features.clone()
        };
        merge!(data: test_fraction, rehash);
        merge!(extract: views, combine, decode, precision, strict);
        merge!(network: weights, device, batch, threads);
        merge!(features: whiten, solver);
        merge!(classify: c, class_weight, folds);
        merge!(evaluate: confidence);
        merge!(seed: seed);
        merge!(cache: cache_dir);
        Settings {
            data: DataSettings {
                train_dir,
                test_dir,
                data_dir,
                test_fraction,
                rehash,
            },
            extract: ExtractSettings {
                views,
                combine,
                decode,
                precision,
                strict,
            },
            network: NetworkSettings {
                weights,
                device,
                batch,
                threads,
            },
            features: FeaturesSettings {
                variance,
                components,
                whiten,
                solver,
            },
            classify: ClassifySettings { c, class_weight, folds },
            evaluate: EvaluateSettings { confidence },
            seed: SeedSettings { seed },
            cache: CacheSettings { cache_dir },
        }
    }

    /// Where the images lie.
    ///
    /// # Errors
    /// A [`Problem`] if that is not said, or by halves.
    pub(crate) fn data_source(&self) -> Result<DataSource> {
        let DataSettings {
            train_dir,
            test_dir,
            data_dir,
            test_fraction,
            rehash: _,
        } = self.data.clone();
        match (train_dir, test_dir, data_dir) {
            (_, _, Some(data)) => {
                let test_fraction = test_fraction.unwrap_or(0.2);
                if !(test_fraction > 0.0 && test_fraction < 1.0) {
                    bail!(Problem::usage(format!(
                        "--test-fraction is {test_fraction}, expected a number above 0 and below 1"
                    )));
                }
                Ok(DataSource::Whole { data, test_fraction, seed: self.seed() })
            }
            (Some(train), Some(test), None) => Ok(DataSource::Split { train, test }),
            (Some(_), None, None) => {
                bail!(Problem::usage("--train-dir without --test-dir").hint("name both, or one folder with --data-dir"))
            }
            (None, Some(_), None) => {
                bail!(Problem::usage("--test-dir without --train-dir").hint("name both, or one folder with --data-dir"))
            }
            (None, None, None) => bail!(Problem::usage("no images named").hint(
                "pass --train-dir DIR --test-dir DIR, or --data-dir DIR, or write them into luthier.toml (`luthier init`)"
            )),
        }
    }

    /// The weights that were named, if any.
    pub(crate) fn named_weights(&self) -> Result<Option<WeightsSource>> {
        Ok(self.network.weights.as_deref().map(WeightsSource::parse).transpose()?)
    }

    /// The extract stage with these weights in place of the default.
    ///
    /// # Errors
    /// A [`Problem`] if a view is named twice.
    pub(crate) fn extract_config(&self, weights: WeightsSource) -> Result<ExtractConfig> {
        let device = self.device();
        let ExtractSettings {
            views,
            combine,
            decode,
            precision,
            strict: _,
        } = self.extract.clone();
        let views = Views::new(
            views.unwrap_or_else(|| vec![View::Squash]),
            combine.unwrap_or(Combine::Mean),
        );
        Ok(ExtractConfig {
            extractor: ExtractorConfig {
                views: views.map_err(|message| Problem::usage(format!("--views: {message}")))?,
                decode: decode.unwrap_or(Decoding::Scaled),
                weights,
                precision: match precision {
                    Some(ChoosePrecision::Fixed(precision)) => precision,
                    Some(ChoosePrecision::Auto) => Precision::best(device),
                    None => Precision::Fp32,
                },
                device,
                batch: self.batch(),
            },
        })
    }

    /// A faster number format, if the user has not chosen one and the device has it in hardware.
    pub(crate) fn faster_precision(&self) -> Option<Precision> {
        let best = Precision::best(self.device());
        (self.extract.precision.is_none() && best != Precision::Fp32).then_some(best)
    }

    /// The weights: those named, or the default.
    pub(crate) fn weights(&self) -> Result<WeightsSource> {
        match self.named_weights()? {
            Some(weights) => Ok(weights),
            None => Ok(WeightsSource::parse(NamedWeights::ALL[0].name)?),
        }
    }

    pub(crate) fn device(&self) -> Device {
        self.network.device.unwrap_or_else(Device::best)
    }

    pub(crate) fn batch(&self) -> Option<usize> {
        self.network.batch
    }

    pub(crate) fn n_threads(&self) -> usize {
        self.network
            .threads
            .unwrap_or_else(|| std::thread::available_parallelism().map_or(1, usize::from))
    }

    pub(crate) fn is_strict(&self) -> bool {
        self.extract.strict.unwrap_or(false)
    }

    pub(crate) fn features_config(&self) -> Result<FeaturesConfig> {
        let FeaturesSettings {
            variance,
            components,
            whiten,
            ..
        } = self.features;
        let n_components = match components {
            Some(n_components) => n_components,
            None => ComponentCount::variance(variance.unwrap_or(0.98))?,
        };
        Ok(FeaturesConfig {
            n_components,
            whiten: whiten.unwrap_or(false),
            solver: self.solver(),
        })
    }

    pub(crate) fn classify_config(&self) -> Result<ClassifyConfig> {
        let class_weight = self.classify.class_weight.unwrap_or_default();
        if class_weight != ClassWeight::Uniform && self.solver() == Solver::Smartcore {
            bail!(
                Problem::usage("--class-weight balanced with --solver smartcore, which has no class weights")
                    .hint("use --solver faer")
            );
        }
        Ok(ClassifyConfig {
            c: self.classify.c.unwrap_or(ChooseC::Auto(Rule::SmallestLoss)),
            class_weight,
            folds: self.classify.folds.unwrap_or(5),
            seed: self.seed(),
            solver: self.solver(),
        })
    }

    pub(crate) fn evaluate_config(&self) -> EvaluateConfig {
        EvaluateConfig {
            confidence: self.evaluate.confidence.unwrap_or(0.95),
            seed: self.seed(),
        }
    }

    pub(crate) fn cache_dir(&self) -> PathBuf {
        self.cache.cache_dir.clone().unwrap_or_else(|| ".luthier".into())
    }

    pub(crate) fn rehash(&self) -> Rehash {
        if self.data.rehash.unwrap_or(false) {
            Rehash::Yes
        } else {
            Rehash::No
        }
    }

    fn solver(&self) -> Solver {
        self.features.solver.unwrap_or_default()
    }

    fn seed(&self) -> u64 {
        self.seed.seed.unwrap_or(0)
    }
}

/// Reads options of the command line, as if they had been typed.
fn parse(options: &[String], origin: &str) -> Result<Settings> {
    let command = Layer::command().disable_help_flag(true);
    let layer = command
        .try_get_matches_from(options)
        .and_then(|matches| Layer::from_arg_matches(&matches));
    layer.map(|layer| layer.settings).map_err(|error| {
        let text = error.render().to_string();
        let message = text.lines().next().unwrap_or_default().trim_start_matches("error: ");
        Problem::usage(format!("{origin}: {message}")).into()
    })
}

fn from_environment(get: impl Fn(&str) -> Option<String>) -> Result<Settings> {
    let mut options = Vec::new();
    let keys = SECTIONS.iter().flat_map(|(_, keys)| keys.iter().map(|key| (key, key)));
    for (written, key) in keys.chain(ALIASES.iter().map(|(alias, name)| (alias, name))) {
        let name = format!("LUTHIER_{}", written.replace('-', "_").to_uppercase());
        if let Some(value) = get(&name).filter(|value| !value.is_empty()) {
            let option = format!("--{key}={value}");
            // Alone first, so that a message names the variable it is about.
            parse(std::slice::from_ref(&option), &name)?;
            options.push(option);
        }
    }
    parse(&options, "environment")
}

fn from_toml(text: &str, path: &Path) -> Result<Settings> {
    let file = path.display();
    let sections: toml::Table = text
        .parse()
        .map_err(|error| Problem::usage(format!("{file}: {error}")))?;
    let mut options = Vec::new();
    for (section, keys) in sections {
        let Some((_, known)) = SECTIONS.iter().find(|(name, _)| *name == section) else {
            bail!(unknown(
                &format!("{file}: section [{section}]"),
                &section,
                SECTIONS.map(|(name, _)| name).as_slice()
            ));
        };
        let toml::Value::Table(keys) = keys else {
            bail!(Problem::usage(format!(
                "{file}: {section} is a value, expected a section [{section}]"
            )));
        };
        for (written, value) in keys {
            let key = written.replace('_', "-");
            let alias = ALIASES.iter().find(|(alias, _)| *alias == key);
            let key = alias.map_or(key, |(_, name)| (*name).to_owned());
            let origin = format!("{file}: [{section}] {written}");
            if !known.contains(&key.as_str()) {
                bail!(unknown(&origin, &key, known));
            }
            let value = match value {
                toml::Value::String(text) if PATHS.contains(&key.as_str()) => {
                    path.parent().unwrap_or(Path::new("")).join(text).display().to_string()
                }
                toml::Value::String(text) => text,
                toml::Value::Array(values)
                    if LISTS.contains(&key.as_str()) && values.iter().all(toml::Value::is_str) =>
                {
                    values
                        .iter()
                        .filter_map(toml::Value::as_str)
                        .collect::<Vec<_>>()
                        .join(",")
                }
                toml::Value::Integer(_) | toml::Value::Float(_) | toml::Value::Boolean(_) => value.to_string(),
                other => bail!(Problem::usage(format!(
                    "{origin}: expected one value, found {}",
                    other.type_str()
                ))),
            };
            let option = format!("--{key}={value}");
            parse(std::slice::from_ref(&option), &origin)?;
            options.push(option);
        }
    }
    parse(&options, &file.to_string())
}

fn unknown(origin: &str, found: &str, known: &[&str]) -> Problem {
    let nearest = known
        .iter()
        .max_by(|a, b| strsim::jaro_winkler(found, a).total_cmp(&strsim::jaro_winkler(found, b)));
    let problem = Problem::usage(format!("{origin} is unknown, expected one of {}", known.join(", ")));
    match nearest.filter(|name| strsim::jaro_winkler(found, name) > 0.7) {
        Some(name) => problem.hint(format!("did you mean {name}?")),
        None => problem,
    }
}

/// What `luthier init` writes: every key, commented out, with its default.
pub(crate) const TEMPLATE: &str = include_str!("luthier.toml");

#[cfg(test)]
mod tests {
    use super::*;

    fn toml(text: &str) -> Result<Settings> {
        from_toml(text, Path::new("luthier.toml"))
    }

    fn message(text: &str) -> String {
        format!("{:?}", toml(text).unwrap_err().downcast::<Problem>().unwrap())
    }

    #[test]
    fn a_flag_beats_the_environment_beats_the_file_beats_the_default() {
        let file = toml("[features]\nvariance = 0.5\n[classify]\nfolds = 3\n[extract]\nbatch = 2").unwrap();
        let environment = from_environment(|name| match name {
            "LUTHIER_FOLDS" => Some("4".into()),
            "LUTHIER_BATCH" => Some("5".into()),
            _ => None,
        });
        let flags = parse(&["--batch=6".into()], "flags").unwrap();
        let settings = flags.or(environment.unwrap()).or(file);
        assert_eq!(
            settings.features_config().unwrap().n_components,
            ComponentCount::Variance(0.5)
        );
        assert_eq!(settings.classify_config().unwrap().folds, 4);
        assert_eq!(settings.batch(), Some(6));
        assert_eq!(settings.classify_config().unwrap().c, ChooseC::Auto(Rule::SmallestLoss));
    }

    #[test]
    fn a_switch_in_the_file_can_be_switched_off() {
        let file = || toml("[extract]\nstrict = true").unwrap();
        let flag = |text: &str| parse(&[text.to_owned()], "flags").unwrap();
        assert!(file().is_strict() && flag("--strict").is_strict());
        assert!(!flag("--strict=false").or(file()).is_strict());
    }

    #[test]
    fn components_on_the_command_line_replace_variance_in_the_file() {
        let settings = parse(&["--components=98".into()], "flags")
            .unwrap()
            .or(toml("[features]\nvariance = 0.5").unwrap());
        assert_eq!(
            settings.features_config().unwrap().n_components,
            ComponentCount::Exact(98)
        );
    }

    #[test]
    fn keys_may_be_written_with_underscores_and_paths_are_relative_to_the_file() {
        let settings = from_toml(
            "[data]\ntrain_dir = 'a'\ntest-dir = '/b'",
            Path::new("folder/luthier.toml"),
        )
        .unwrap();
        assert_eq!(
            settings.data_source().unwrap(),
            DataSource::Split {
                train: "folder/a".into(),
                test: "/b".into()
            }
        );
    }

    #[test]
    fn unknown_keys_name_the_nearest_known_one() {
        assert_eq!(
            message("[features]\nvarience = 0.9"),
            "luthier.toml: [features] varience is unknown, expected one of variance, components, whiten, solver\n\
             hint: did you mean variance?"
        );
        assert!(message("[feature]\nvariance = 0.9").ends_with("hint: did you mean features?"));
        assert!(message("variance = 0.9").contains("section [variance] is unknown"));
    }

    #[test]
    fn values_of_the_wrong_type_name_their_key() {
        let found = message("[extract]\nbatch = 'many'");
        assert!(
            found.starts_with("luthier.toml: [extract] batch: invalid value 'many'"),
            "{found}"
        );
        let error = from_environment(|name| (name == "LUTHIER_VIEWS").then(|| "stretch".into())).unwrap_err();
        assert!(
            error.to_string().contains("LUTHIER_VIEWS: invalid value 'stretch'"),
            "{error}"
        );
        assert!(error.to_string().contains("expected squash, crop,"), "{error}");
    }

    #[test]
    fn views_are_a_list_everywhere_and_are_also_called_resize() {
        let views = |settings: Settings| {
            settings
                .extract_config(WeightsSource::Untrained)
                .unwrap()
                .extractor
                .views
        };
        let both = Views::new(vec![View::Crop, View::Mirror], Combine::Concat).unwrap();
        let file = toml("[extract]\nviews = ['crop', 'mirror']\ncombine = 'concat'").unwrap();
        assert_eq!(views(file), both);
        let environment = from_environment(|name| match name {
            "LUTHIER_VIEWS" => Some("crop,mirror".into()),
            "LUTHIER_COMBINE" => Some("concat".into()),
            _ => None,
        });
        assert_eq!(views(environment.unwrap()), both);
        assert_eq!(
            views(parse(&["--resize=crop".into()], "flags").unwrap()),
            View::Crop.into()
        );
        assert_eq!(views(toml("[extract]\nresize = 'crop'").unwrap()), View::Crop.into());
        let environment = from_environment(|name| (name == "LUTHIER_RESIZE").then(|| "crop".into()));
        assert_eq!(views(environment.unwrap()), View::Crop.into());
        assert!(message("[data]\ntrain-dir = ['a', 'b']").contains("expected one value, found array"));
        let twice = parse(&["--views=crop,crop".into()], "flags").unwrap();
        let error = twice.extract_config(WeightsSource::Untrained).unwrap_err();
        assert_eq!(error.to_string(), "--views: expected each view once, found crop twice");
    }

    #[test]
    fn a_faster_precision_is_chosen_by_auto_and_named_only_to_those_who_chose_none() {
        let settings = |options: &[&str]| {
            let options: Vec<String> = [&["--device=cuda"], options]
                .concat()
                .iter()
                .map(|&text| text.into())
                .collect();
            parse(&options, "flags").unwrap()
        };
        let precision = |settings: Settings| {
            settings
                .extract_config(WeightsSource::Untrained)
                .unwrap()
                .extractor
                .precision
        };
        assert_eq!(settings(&[]).faster_precision(), Some(Precision::Fp16));
        assert_eq!(precision(settings(&[])), Precision::Fp32);
        for chosen in ["--precision=fp32", "--precision=auto"] {
            assert_eq!(settings(&[chosen]).faster_precision(), None, "{chosen}");
        }
        assert_eq!(precision(settings(&["--precision=auto"])), Precision::Fp16);
        assert_eq!(precision(settings(&["--precision=bf16"])), Precision::Bf16);
    }

    #[test]
    fn the_template_reads_and_names_every_key_once() {
        toml(TEMPLATE).unwrap();
        let uncommented: String = TEMPLATE
            .lines()
            .map(|line| line.strip_prefix("#:").unwrap_or(line).to_owned() + "\n")
            .collect();
        for (_, keys) in SECTIONS {
            for key in keys {
                assert_eq!(uncommented.matches(&format!("\n{key} = ")).count(), 1, "{key}");
            }
        }
    }
}
