//! Settings: flag > environment > `luthier.toml` > default.
//!
//! Each setting is declared once, below, as a command-line option. [`layers`] makes the values of the other two layers the
//! defaults of these options, so that a name, a type and a message cannot differ between the layers.

pub(crate) mod layers;

use std::path::{Path, PathBuf};
use std::str::FromStr;

use anyhow::{Result, bail};
use bytesize::ByteSize;
use clap::Args;
use luthier::{PredictorConfig, ViewsConfig};
use luthier_classify::{ChooseC, ClassWeight, ClassifyConfig, Rule};
use luthier_eval::EvaluateConfig;
use luthier_extract::{
    Combine, DataSource, Decoding, Device, ExtractConfig, ExtractorConfig, FeatureKind, Framing, ImageFiles, InputSize,
    Layout, Limits, NamedWeights, Pooling, Precision, Rehash, View, Views, WeightsSource,
};
use luthier_features::{ComponentCount, FeaturesConfig, Solver};

use crate::problem::Problem;

/// Where the images are, and when they are read again.
#[derive(Args, Clone, Debug, Default)]
#[command(next_help_heading = "Data")]
pub(crate) struct DataSettings {
    /// Folder with all images, one folder per class: the same as --data-dir
    #[arg(value_name = "FOLDER", conflicts_with_all = ["train_dir", "test_dir", "data_dir"], help_heading = None)]
    folder: Option<PathBuf>,
    /// None is expected: they are taken so that the message about them can be a good one.
    #[arg(hide = true)]
    more_folders: Vec<PathBuf>,
    /// Folder with the training images, one folder per class
    #[arg(long, value_name = "DIR", alias = "train_dir")]
    train_dir: Option<PathBuf>,
    /// Folder with the test images, one folder per class
    #[arg(long, value_name = "DIR", alias = "test_dir")]
    test_dir: Option<PathBuf>,
    /// Folder with all images, one folder per class; a share of them is kept for the test
    #[arg(long, value_name = "DIR", alias = "data_dir", conflicts_with_all = ["train_dir", "test_dir"])]
    data_dir: Option<PathBuf>,
    /// Table of images and their classes: CSV, TSV or JSON Lines, with a header
    ///
    /// Columns: file (or path, image, file_name), label (or class, choice) and, if there is one, split (train, valid or
    /// test). Paths are relative to --data-dir, or to the table's folder. Tables of Hugging Face, Label Studio and Vertex AI
    /// are read as they come.
    #[arg(long, value_name = "FILE", conflicts_with_all = ["train_dir", "test_dir"])]
    labels: Option<PathBuf>,
    /// Regular expression that finds the class in the path of each image: its one named group
    ///
    /// For example '(?<class>[a-z]+)_\d+' for harp_001.jpg, anywhere below --data-dir.
    #[arg(long, value_name = "PATTERN", alias = "class_from", conflicts_with_all = ["train_dir", "test_dir", "labels"])]
    class_from: Option<String>,
    /// Text file with the paths of the images, one a line
    ///
    /// Paths are relative to --data-dir, or to the text file's folder. The class of an image is the folder that holds it,
    /// or what --class-from finds.
    #[arg(long, value_name = "FILE", conflicts_with_all = ["train_dir", "test_dir", "labels"])]
    files: Option<PathBuf>,
    /// Leave out files and folders: globs as in .gitignore, separated by commas
    ///
    /// For example '*.gif,thumbs/'. A file .luthierignore in a data folder says the same for good, one glob a line.
    #[arg(long, value_name = "GLOB,…", value_delimiter = ',', conflicts_with_all = ["labels", "files"])]
    exclude: Option<Vec<String>>,
    /// What people have decided about images [default: decisions.jsonl, if it is there]
    ///
    /// A line of JSON for each decision: an image has another class, has the class that it should have, or is left out.
    /// The guide describes the format.
    #[arg(long, value_name = "FILE")]
    decisions: Option<PathBuf>,
    /// Share of the images in --data-dir that is kept for the test, roughly [default: 0.2]
    ///
    /// The bytes of an image and --seed alone decide on which side it is. It stays there, whatever is added or removed.
    /// With 0 all images are trained on, and cross-validation, which holds each of them out in turn, gives the figures.
    #[arg(long, value_name = "SHARE", alias = "test_fraction", value_parser = test_share, allow_negative_numbers = true)]
    test_fraction: Option<f64>,
    /// Read every image again, even if its file seems unchanged
    ///
    /// Without this option, an image whose size, modification time and inode are the same as before is not read again.
    #[arg(long, value_name = "BOOL", num_args = 0..=1, require_equals = true, default_missing_value = "true", hide_possible_values = true)]
    rehash: Option<bool>,
}

/// The file of decisions that is read where it is not named.
const DECISIONS: &str = "decisions.jsonl";

/// Where decisions are written if no file of decisions is named.
pub(crate) fn default_decisions() -> PathBuf {
    PathBuf::from(DECISIONS)
}

/// How images become features.
#[derive(Args, Clone, Debug, Default)]
#[command(next_help_heading = "Extraction")]
pub(crate) struct ExtractSettings {
    /// How the network sees an image: squash, crop, pad, one of them mirrored, several, or auto [default: squash]
    ///
    /// squash: the whole image, stretched to 224 × 224 pixels. crop: the short side is scaled to 256 pixels, then the
    /// middle 224 × 224 pixels are cut out. pad: the long side is scaled to 224 pixels, and the rest is white. mirror,
    /// crop-mirror and pad-mirror: the same, mirrored. squash@288: of 288 × 288 pixels, whatever --size says. Several
    /// views are separated by commas; each costs a pass through the network. auto: cross-validation chooses one of squash, crop and pad, and the pooling, by the log loss on up to
    /// 5,000 training images; auto,squash,pad chooses among those two.
    #[arg(long, value_name = "VIEW,…", value_delimiter = ',', alias = "resize")]
    views: Option<Vec<ChooseView>>,
    /// Height and width of views in pixels, a multiple of 32 [default: 224]
    ///
    /// The time of the network grows with the number of pixels: 288 takes 1.7 times as long. crop scales the short side to
    /// 8/7 of it.
    #[arg(long, value_name = "PIXELS", allow_negative_numbers = true)]
    size: Option<InputSize>,
    /// How the last maps of the network become features: mean or gem [default: mean]
    ///
    /// mean: the average of each map, 7 × 7 numbers. gem: the generalised mean, the cube root of the average of cubes, to
    /// which what stands out counts more. --views auto tries both, unless one is named.
    #[arg(long, value_name = "HOW")]
    pooling: Option<Pooling>,
    /// How the features of several views are joined: mean or concat [default: mean]
    ///
    /// mean: the average of the views' features. concat: all features, side by side.
    #[arg(long, value_name = "HOW")]
    combine: Option<Combine>,
    /// How large JPEGs are decoded: scaled or exact [default: scaled]
    ///
    /// scaled: a JPEG whose short side has 1024 pixels or more is decoded at a half, a quarter or an eighth of its size,
    /// which is faster. exact: every JPEG is decoded at its full size.
    #[arg(long, value_name = "HOW")]
    decode: Option<Decoding>,
    /// Number format of the network: fp32, bf16, fp16, int8 or auto [default: fp32]
    ///
    /// auto: the fastest format that the device supports in hardware, of those that are as accurate as fp32. int8 needs a
    /// processor with VNNI instructions. It has scales of its own for each file of weights, which take a second to measure.
    #[arg(long, value_name = "FORMAT")]
    precision: Option<ChoosePrecision>,
    /// Stop at an image that cannot be read, instead of skipping it
    #[arg(long, value_name = "BOOL", num_args = 0..=1, require_equals = true, default_missing_value = "true", hide_possible_values = true)]
    strict: Option<bool>,
    #[command(flatten)]
    pub(crate) limits: LimitSettings,
}

/// How much an image may cost.
#[derive(Args, Clone, Debug, Default)]
#[command(next_help_heading = "Limits of an image")]
pub(crate) struct LimitSettings {
    /// The largest file that is read [default: 512MiB]
    #[arg(long, value_name = "SIZE", alias = "max_file_size")]
    max_file_size: Option<ByteSize>,
    /// The most pixels that a file may say it has [default: 500000000]
    #[arg(long, value_name = "N", alias = "max_pixels", value_parser = positive_u64, allow_negative_numbers = true)]
    max_pixels: Option<u64>,
    /// The most memory that decoding one image may take [default: 512MiB]
    ///
    /// Each core decodes an image at a time. An image that would take more is skipped before memory is asked for.
    #[arg(long, value_name = "SIZE", alias = "max_image_memory")]
    max_image_memory: Option<ByteSize>,
}

impl LimitSettings {
    pub(crate) fn limits(&self) -> Limits {
        let default = Limits::default();
        Limits {
            file: self.max_file_size.map_or(default.file, |size| size.as_u64()),
            pixels: self.max_pixels.unwrap_or(default.pixels),
            memory: self.max_image_memory.map_or(default.memory, |size| size.as_u64()),
        }
    }
}

/// A view, or who chooses it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum ChooseView {
    Auto,
    /// With a size of its own, or with that of all.
    Fixed(Framing, Option<InputSize>),
}

impl FromStr for ChooseView {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "auto" => Ok(ChooseView::Auto),
            _ => match text.parse() {
                Ok(View { framing, size }) => Ok(ChooseView::Fixed(framing, text.contains('@').then_some(size))),
                Err(error) if text.contains('@') => Err(error),
                Err(error) => Err(error.replacen("expected", "expected auto,", 1)),
            },
        }
    }
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
                .map_err(|_| format!("expected fp32, bf16, fp16, int8 or auto, found {text}")),
        }
    }
}

/// How the network runs.
#[derive(Args, Clone, Debug, Default)]
#[command(next_help_heading = "Network")]
pub(crate) struct NetworkSettings {
    /// Weights of ResNet-50: a name, a .safetensors or .pth file, or `untrained` [default: resnet50-imagenet1k-v1]
    ///
    /// `luthier weights list` prints the names. `luthier predict` takes the weights of the model by default.
    #[arg(long, value_name = "NAME|FILE")]
    weights: Option<String>,
    /// Where the network runs: auto, cpu, cuda, cuda:N or mps [default: auto]
    #[arg(long, value_name = "DEVICE")]
    device: Option<Device>,
    /// Images that go through the network at once [default: 1 on a CPU (int8: 8), 128 on CUDA]
    ///
    /// On a CPU, each core takes this many images at a time. Without this option, a long run takes 4, if that changes no
    /// bit. On CUDA, each image costs as much as a batch.
    #[arg(long, value_name = "N", value_parser = positive, allow_negative_numbers = true)]
    batch: Option<usize>,
    /// Threads that decode images and run the network [default: all cores]
    #[arg(long, value_name = "N", value_parser = positive, allow_negative_numbers = true)]
    threads: Option<usize>,
}

/// How features become components.
#[derive(Args, Clone, Debug, Default)]
#[command(next_help_heading = "Features")]
pub(crate) struct FeaturesSettings {
    /// Keep the principal components that explain this share of the variance [default: 0.98]
    #[arg(long, value_name = "SHARE", conflicts_with = "components", value_parser = share, allow_negative_numbers = true)]
    variance: Option<f64>,
    /// Keep this many principal components, or all of them with `none`
    ///
    /// With `none`, the scaled features are only rotated. Without --whiten, that changes no answer.
    #[arg(long, value_name = "N|none", value_parser = components, allow_negative_numbers = true)]
    components: Option<ComponentCount>,
    /// Scale all components to the same variance
    #[arg(long, value_name = "BOOL", num_args = 0..=1, require_equals = true, default_missing_value = "true", hide_possible_values = true)]
    whiten: Option<bool>,
    /// Library that computes PCA and logistic regression: faer or smartcore [default: faer]
    ///
    /// smartcore is the reference; it is about 100 times slower.
    #[arg(long, value_name = "SOLVER")]
    solver: Option<Solver>,
}

/// How components become classes.
#[derive(Args, Clone, Debug, Default)]
#[command(next_help_heading = "Classifier")]
pub(crate) struct ClassifySettings {
    /// Inverse strength of regularization: a number, auto or auto-1se [default: auto]
    ///
    /// auto: cross-validation chooses the C of the smallest log loss, and also calibrates the probabilities. auto-1se: the
    /// smallest C whose log loss is within one standard error of the smallest. With a number there is no cross-validation.
    #[arg(long, value_name = "C", allow_negative_numbers = true)]
    c: Option<ChooseC>,
    /// How much a class counts: uniform or balanced [default: uniform]
    ///
    /// uniform: each image counts the same. balanced: each class counts the same, however many images it has.
    #[arg(long, value_name = "HOW")]
    class_weight: Option<ClassWeight>,
    /// Folds of the cross-validation [default: 5]
    #[arg(long, value_name = "K", value_parser = folds, allow_negative_numbers = true)]
    folds: Option<usize>,
}

/// How predictions are judged.
#[derive(Args, Clone, Debug, Default)]
#[command(next_help_heading = "Evaluation")]
pub(crate) struct EvaluateSettings {
    /// Confidence level of the intervals in the report [default: 0.95]
    #[arg(long, value_name = "LEVEL", value_parser = share, allow_negative_numbers = true)]
    confidence: Option<f64>,
}

/// What more than one stage draws at random.
#[derive(Args, Clone, Debug, Default)]
#[command(next_help_heading = "Randomness")]
pub(crate) struct SeedSettings {
    /// Seed of the random numbers [default: 0]
    ///
    /// The split of --data-dir, the folds of the cross-validation and the bootstrap depend on it.
    #[arg(long, value_name = "N", value_parser = whole, allow_negative_numbers = true)]
    seed: Option<u64>,
}

/// Where the cache is.
#[derive(Args, Clone, Debug, Default)]
#[command(next_help_heading = "Cache")]
pub(crate) struct CacheSettings {
    /// Folder of the cache [default: .luthier]
    #[arg(long, value_name = "DIR", alias = "cache_dir")]
    cache_dir: Option<PathBuf>,
    /// Where machines share features: s3://, gs://, az://, https:// (WebDAV), or a folder
    #[arg(long, value_name = "URL", alias = "cache_remote")]
    cache_remote: Option<String>,
}

/// Every setting; one that is missing has its default.
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

pub(crate) fn positive(text: &str) -> std::result::Result<usize, String> {
    match text.parse() {
        Ok(0) | Err(_) => Err(format!("expected a whole number from 1 on, found {text}")),
        Ok(n) => Ok(n),
    }
}

fn positive_u64(text: &str) -> std::result::Result<u64, String> {
    positive(text).map(|n| n as u64)
}

fn whole(text: &str) -> std::result::Result<u64, String> {
    let expected = |_| format!("expected a whole number from 0 on, found {text}");
    text.parse().map_err(expected)
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

/// A number from 0 on and below 1.
fn test_share(text: &str) -> std::result::Result<f64, String> {
    match text.parse() {
        Ok(0.0) => Ok(0.0),
        _ => share(text),
    }
}

/// A number above 0 and below 1.
fn share(text: &str) -> std::result::Result<f64, String> {
    match text.parse() {
        Ok(share) if share > 0.0 && share < 1.0 => Ok(share),
        _ => Err(format!(
            "expected a share between 0 and 1, found {text}{}",
            meant_share(text)
        )),
    }
}

/// A question at the end of a message, if the text is a percentage where a share is expected.
pub(crate) fn meant_share(text: &str) -> String {
    let percent = text.trim().trim_end_matches('%').trim_end().parse::<f64>();
    match percent {
        Ok(percent) if (1.0..100.0).contains(&percent) => format!(": did you mean {}?", percent / 100.0),
        _ => String::new(),
    }
}

/// The layout of two folders.
fn split_layout(train: Option<PathBuf>, test: Option<PathBuf>) -> Result<Layout> {
    Err(match (train, test) {
        (Some(train), Some(test)) => return Ok(Layout::Split { train, test }),
        (Some(_), None) => {
            Problem::usage("--train-dir without --test-dir").hint("name both, or one folder with --data-dir")
        }
        (None, Some(_)) => {
            Problem::usage("--test-dir without --train-dir").hint("name both, or one folder with --data-dir")
        }
        (None, None) => Problem::usage("no images named").hint(
            "pass a FOLDER, or --train-dir DIR --test-dir DIR, or --labels FILE, or write them into luthier.toml \
             (`luthier init`)",
        ),
    }
    .into())
}

impl Settings {
    /// Where the images lie.
    ///
    /// # Errors
    /// A [`Problem`] if that is not said, or by halves.
    pub(crate) fn data_source(&self) -> Result<DataSource> {
        let DataSettings {
            folder,
            more_folders,
            train_dir,
            test_dir,
            data_dir,
            labels,
            class_from,
            files,
            exclude,
            decisions,
            test_fraction,
            rehash: _,
        } = self.data.clone();
        if let (Some(train), [test, ..]) = (&folder, more_folders.as_slice()) {
            let n = 1 + more_folders.len();
            bail!(Problem::usage(format!("{n} folders named, expected one")).hint(format!(
                "for training images and test images: --train-dir {} --test-dir {}",
                train.display(),
                test.display()
            )));
        }
        let data = data_dir.or(folder);
        let is_listed = files.is_some();
        let images = match (files, data.clone()) {
            (Some(list), folder) => Some(ImageFiles::listed(list, folder)),
            (None, Some(folder)) => Some(ImageFiles::Below(folder)),
            (None, None) => None,
        };
        let layout = match (labels, images) {
            (Some(table), _) => Layout::table(table, data),
            (None, Some(images)) if is_listed || class_from.is_some() => Layout::Named {
                images,
                pattern: class_from,
            },
            (None, Some(ImageFiles::Below(folder) | ImageFiles::Listed { folder, .. })) => Layout::Classes(folder),
            (None, None) if class_from.is_some() => {
                bail!(Problem::usage("--class-from without a folder").hint("pass a FOLDER, or --data-dir DIR"))
            }
            (None, None) => split_layout(train_dir, test_dir)?,
        };
        Ok(DataSource {
            layout,
            exclude: exclude.unwrap_or_default(),
            decisions: decisions.or_else(|| Some(default_decisions()).filter(|path| path.is_file())),
            test_fraction: test_fraction.unwrap_or(0.2),
            seed: self.seed(),
        })
    }

    /// The weights that were named, if any.
    pub(crate) fn named_weights(&self) -> Result<Option<WeightsSource>> {
        let named = self.network.weights.as_deref().map(WeightsSource::parse);
        Ok(named
            .transpose()
            .map_err(|error| Problem::usage(format!("--weights: {error}")))?)
    }

    /// The extract stage with these weights in place of the default.
    ///
    /// # Errors
    /// A [`Problem`] if a view is named twice.
    pub(crate) fn extract_config(&self, weights: WeightsSource) -> Result<ExtractConfig> {
        let device = self.device();
        let ExtractSettings {
            views: _,
            size: _,
            pooling,
            combine,
            decode,
            precision,
            limits,
            strict: _,
        } = self.extract.clone();
        let views = match self.views_config()? {
            // The choice comes later.
            Some(ViewsConfig { candidates }) => vec![candidates[0].view],
            None => self
                .named_views()
                .unwrap_or_else(|| vec![self.view(Framing::Squash, None)]),
        };
        let views = Views::new(views, combine.unwrap_or(Combine::Mean));
        Ok(ExtractConfig {
            extractor: ExtractorConfig {
                views: views.map_err(|message| Problem::usage(format!("--views: {message}")))?,
                pooling: pooling.unwrap_or_default(),
                decode: decode.unwrap_or(Decoding::Scaled),
                limits: limits.limits(),
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

    /// The views that are named, beside `auto`.
    fn named_views(&self) -> Option<Vec<View>> {
        let views = self.extract.views.as_ref()?.iter();
        let view = |view: &ChooseView| match view {
            ChooseView::Auto => None,
            ChooseView::Fixed(framing, size) => Some(self.view(*framing, *size)),
        };
        Some(views.filter_map(view).collect())
    }

    fn view(&self, framing: Framing, size: Option<InputSize>) -> View {
        View {
            framing,
            size: size.or(self.extract.size).unwrap_or_default(),
        }
    }

    /// The views and poolings to choose among, if there is a choice: of the views named beside `auto`, or else of those
    /// that are not mirrored.
    ///
    /// # Errors
    /// A [`Problem`] if a view is named twice.
    pub(crate) fn views_config(&self) -> Result<Option<ViewsConfig>> {
        let is_auto = |views: &Vec<ChooseView>| views.contains(&ChooseView::Auto);
        if !self.extract.views.as_ref().is_some_and(is_auto) {
            return Ok(None);
        }
        let views = match self.named_views() {
            Some(named) if !named.is_empty() => named,
            _ => [Framing::Squash, Framing::Crop, Framing::Pad]
                .map(|framing| self.view(framing, None))
                .to_vec(),
        };
        let views = Views::new(views, Combine::Mean);
        let views = views.map_err(|message| Problem::usage(format!("--views: {message}")))?;
        let poolings = match self.extract.pooling {
            Some(pooling) => vec![pooling],
            None => Pooling::ALL.to_vec(),
        };
        let kinds = |&view| poolings.iter().map(move |&pooling| FeatureKind { view, pooling });
        Ok(Some(ViewsConfig {
            candidates: views.as_slice().iter().flat_map(kinds).collect(),
        }))
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

    /// How a model predicts, as far as the settings of the network say.
    ///
    /// # Errors
    /// Those of [`named_weights`](Settings::named_weights).
    pub(crate) fn predictor_config(&self) -> Result<PredictorConfig> {
        Ok(PredictorConfig {
            weights: self.named_weights()?,
            device: self.device(),
            batch: self.batch(),
            n_threads: self.n_threads(),
            ..PredictorConfig::default()
        })
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

    /// Where machines share features.
    pub(crate) fn cache_remote(&self) -> Option<&str> {
        self.cache.cache_remote.as_deref()
    }

    /// The folder of the cache, if one is named.
    pub(crate) fn named_cache_dir(&self) -> Option<&Path> {
        self.cache.cache_dir.as_deref()
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

/// What `luthier init` writes: every key, commented out, with its default.
pub(crate) const TEMPLATE: &str = include_str!("settings/luthier.toml");
