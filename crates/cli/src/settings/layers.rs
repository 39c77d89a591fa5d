//! The layers below the command line: the environment, then `luthier.toml` in the current folder.
//!
//! A command is parsed twice. The first time tells which settings stand on the command line. Then the values of the lower
//! layers become the defaults of the other settings, one by one, and the command line is parsed again.

use std::ffi::OsString;
use std::path::Path;

use anyhow::{Context, Result, bail};
use clap::parser::ValueSource;
use clap::{Arg, ArgMatches, Args as _, Command};

use super::Settings;
use crate::problem::Problem;

/// The sections of `luthier.toml` and their keys.
const SECTIONS: [(&str, &[&str]); 6] = [
    (
        "data",
        &[
            "train-dir",
            "test-dir",
            "data-dir",
            "labels",
            "class-from",
            "files",
            "exclude",
            "decisions",
            "test-fraction",
            "seed",
        ],
    ),
    (
        "extract",
        &[
            "views",
            "size",
            "pooling",
            "combine",
            "decode",
            "weights",
            "device",
            "precision",
            "batch",
            "threads",
            "max-file-size",
            "max-pixels",
            "max-image-memory",
            "strict",
        ],
    ),
    ("features", &["variance", "components", "whiten", "solver"]),
    ("classify", &["c", "class-weight", "folds"]),
    ("evaluate", &["confidence"]),
    ("cache", &["cache-dir", "cache-remote", "rehash"]),
];

/// Keys that have another name, which older files and scripts use.
const ALIASES: [(&str, &str); 2] = [("resize", "views"), ("remote", "cache-remote")];

/// Keys whose values are lists.
const LISTS: [&str; 2] = ["views", "exclude"];

/// Keys whose values are paths, taken from the folder of `luthier.toml`.
const PATHS: [&str; 7] = [
    "train-dir",
    "test-dir",
    "data-dir",
    "labels",
    "files",
    "decisions",
    "cache-dir",
];

/// Variables that are neither a setting nor an option of a command. Those of the tests may be set when Luthier runs. Settings
/// begin like them, such as `LUTHIER_TEST_DIR`: each is named.
const OTHER_VARIABLES: [&str; 15] = [
    "LUTHIER_LIBTORCH",
    "LUTHIER_TEST_DATA",
    "LUTHIER_TEST_EDITS",
    "LUTHIER_TEST_ENGINES",
    "LUTHIER_TEST_FLIPS",
    "LUTHIER_TEST_KILLS",
    "LUTHIER_TEST_ONNXRUNTIME_WEB",
    "LUTHIER_TEST_PHOTOS",
    "LUTHIER_TEST_PYTHON",
    "LUTHIER_TEST_REFERENCE",
    "LUTHIER_TEST_REQUIRE_ALL",
    "LUTHIER_TEST_STRIDE",
    "LUTHIER_TEST_WEIGHTS",
    "LUTHIER_TEST_WITHOUT",
    "LUTHIER_WEIGHTS_MIRROR",
];

/// A setting as a layer has it: the key, and its value or the elements of its list, which may have commas.
#[derive(Clone, Debug)]
struct Setting {
    key: String,
    values: Vec<String>,
}

impl Setting {
    /// From what would be typed after `--key=`.
    fn typed(key: String, text: &str) -> Self {
        let values = match LISTS.contains(&key.as_str()) {
            true => text.split(',').map(str::to_owned).collect(),
            false => vec![text.to_owned()],
        };
        Setting { key, values }
    }
}

/// Gives the chosen command what the environment and `luthier.toml` say as defaults. A command that has no settings looks
/// at neither.
///
/// # Errors
/// A [`Problem`] that names the variable or the key that is unknown or has no such value.
pub(crate) fn add_lower_layers(cli: Command, matches: &ArgMatches) -> Result<Command> {
    let path = Path::new("luthier.toml");
    let known = known_variables(&cli);
    in_chosen(cli, matches, &mut |command, matches| {
        if settings_of(&command).next().is_none() {
            return Ok(command);
        }
        // What a model was trained with is for the model to say.
        let has_model = command.get_arguments().any(|option| option.get_id() == "model_path");
        let file = match std::fs::read_to_string(path) {
            Ok(text) => {
                let mut file = from_toml(&text, path)?;
                file.retain(|setting| !has_model || setting.key != "weights");
                file
            }
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Vec::new(),
            Err(error) => return Err(error).context("luthier.toml"),
        };
        let environment = from_environment(std::env::vars_os(), &known)?;
        Ok(with_defaults(command, matches, &[environment, file]))
    })
}

/// Changes the command that was chosen: the last of its subcommands.
fn in_chosen(
    command: Command,
    matches: &ArgMatches,
    change: &mut dyn FnMut(Command, &ArgMatches) -> Result<Command>,
) -> Result<Command> {
    let Some((name, matches)) = matches.subcommand() else {
        return change(command, matches);
    };
    let mut outcome = Ok(());
    let command = command.mut_subcommand(name, |chosen| {
        // Clap takes the command and wants one back: after an error nobody looks at it.
        in_chosen(chosen, matches, change).unwrap_or_else(|error| {
            outcome = Err(error);
            Command::new("")
        })
    });
    outcome.map(|()| command)
}

/// The options of a command that are settings.
fn settings_of(command: &Command) -> impl Iterator<Item = &Arg> {
    command
        .get_arguments()
        .filter(|option| option.get_long().is_some_and(is_setting))
}

fn is_setting(key: &str) -> bool {
    SECTIONS.iter().any(|(_, keys)| keys.contains(&key))
}

/// Makes the values of the layers, of which the first wins, the defaults of a command's options. An option that a higher
/// layer gives, or that excludes one that a higher layer gives, has no default.
fn with_defaults(mut command: Command, matches: &ArgMatches, layers: &[Vec<Setting>]) -> Command {
    let is_typed = |option: &Arg| matches.value_source(option.get_id().as_str()) == Some(ValueSource::CommandLine);
    let settings = || command.get_arguments().filter(|option| is_data_or_setting(option));
    let mut given: Vec<&Arg> = settings().filter(|option| is_typed(option)).collect();
    let mut defaults = Vec::new();
    for layer in layers {
        let of_layer: Vec<(&Arg, &Setting)> = layer
            .iter()
            .filter_map(|setting| {
                let option = settings().find(|option| option.get_long() == Some(&setting.key))?;
                let is_free = !given.iter().any(|other| excludes(&command, option, other));
                is_free.then_some((option, setting))
            })
            .collect();
        given.extend(of_layer.iter().map(|(option, _)| option));
        defaults.extend(
            of_layer
                .into_iter()
                .map(|(option, setting)| (option.get_id().clone(), setting.values.clone())),
        );
    }
    // Lists are in parts already: an element may have a comma.
    for (id, values) in defaults {
        command = command.mut_arg(id, |option| option.default_values(values).value_delimiter(None::<char>));
    }
    command
}

/// A setting, or the folder that stands for one.
fn is_data_or_setting(option: &Arg) -> bool {
    option.get_long().is_some_and(is_setting) || option.get_id() == "folder"
}

/// Whether only one of two options can be given: they are the same, or one is in conflict with the other.
fn excludes(command: &Command, one: &Arg, other: &Arg) -> bool {
    let conflicts = |a: &Arg, b: &Arg| {
        command
            .get_arg_conflicts_with(a)
            .iter()
            .any(|c| c.get_id() == b.get_id())
    };
    one.get_id() == other.get_id() || conflicts(one, other) || conflicts(other, one)
}

/// Checks settings as if they had been typed, but for the commas.
fn check(settings: &[Setting], origin: &str) -> Result<()> {
    let options = settings
        .iter()
        .flat_map(|Setting { key, values }| values.iter().map(move |value| format!("--{key}={value}")));
    let command = Settings::augment_args(Command::new("luthier"))
        .mut_args(|option| option.value_delimiter(None::<char>))
        .no_binary_name(true)
        .disable_help_flag(true);
    match command.try_get_matches_from(options) {
        Ok(_) => Ok(()),
        Err(error) => {
            let text = error.render().to_string();
            let message = text.lines().next().unwrap_or_default().trim_start_matches("error: ");
            bail!(Problem::usage(format!("{origin}: {message}")))
        }
    }
}

/// The variable of a key.
fn variable(key: &str) -> String {
    format!("LUTHIER_{}", key.replace('-', "_").to_uppercase())
}

/// Every variable that Luthier reads: those of settings, those of commands' other options, and a few more.
fn known_variables(cli: &Command) -> Vec<String> {
    fn of_options(command: &Command, found: &mut Vec<String>) {
        let variables = command.get_arguments().filter_map(Arg::get_env);
        found.extend(variables.map(|name| name.to_string_lossy().into_owned()));
        for subcommand in command.get_subcommands() {
            of_options(subcommand, found);
        }
    }
    let keys = SECTIONS.iter().flat_map(|(_, keys)| keys.iter());
    let aliases = ALIASES.iter().map(|(alias, _)| alias);
    let mut known: Vec<String> = keys.chain(aliases).map(|key| variable(key)).collect();
    known.extend(OTHER_VARIABLES.map(str::to_owned));
    of_options(cli, &mut known);
    known
}

/// Whether Kubernetes gives a pod the variable, because a service beside it is called `luthier` or `luthier-…`: where it
/// is, in its own words and in those of Docker's links.
fn is_of_kubernetes(name: &str) -> bool {
    let has = |part| name.contains(part);
    has("_SERVICE_HOST") || has("_SERVICE_PORT") || has("_PORT_") || name.ends_with("_PORT")
}

fn from_environment(
    variables: impl IntoIterator<Item = (OsString, OsString)>,
    known: &[String],
) -> Result<Vec<Setting>> {
    let mut settings = Vec::new();
    let mut variables: Vec<(OsString, OsString)> = variables.into_iter().collect();
    variables.sort();
    for (name, value) in variables {
        let name = name.to_string_lossy();
        if !name.starts_with("LUTHIER_") || is_of_kubernetes(&name) {
            continue;
        }
        if !known.iter().any(|known| *known == name) {
            let problem = Problem::usage(format!(
                "environment: {name} is unknown, expected LUTHIER_ and the name of a setting"
            ));
            bail!(match nearest(&name, known.iter().map(String::as_str)) {
                Some(nearest) => problem.hint(format!("did you mean {nearest}?")),
                None => problem.hint("`luthier init` writes all settings with their names into luthier.toml"),
            });
        }
        let Some(value) = value.to_str() else {
            bail!(Problem::usage(format!(
                "environment: {name}: expected UTF-8, found {}",
                value.to_string_lossy()
            )));
        };
        let key = name["LUTHIER_".len()..].to_lowercase().replace('_', "-");
        let alias = ALIASES.iter().find(|(alias, _)| *alias == key);
        let key = alias.map_or(key, |(_, name)| (*name).to_owned());
        // A variable that is empty says nothing.
        if is_setting(&key) && !value.is_empty() {
            let setting = Setting::typed(key, value);
            // Alone first, so that a message names the variable it is about.
            check(std::slice::from_ref(&setting), &name)?;
            settings.push(setting);
        }
    }
    check(&settings, "environment")?;
    Ok(settings)
}

fn from_toml(text: &str, path: &Path) -> Result<Vec<Setting>> {
    let file = path.display();
    let sections: toml::Table = text
        .parse()
        .map_err(|error| Problem::usage(format!("{file}: {error}")))?;
    let mut settings = Vec::new();
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
            let setting = match value {
                toml::Value::String(text) if PATHS.contains(&key.as_str()) => {
                    let path = path.parent().unwrap_or(Path::new("")).join(text);
                    Setting::typed(key, &path.display().to_string())
                }
                toml::Value::String(text) => Setting::typed(key, &text),
                toml::Value::Array(values)
                    if LISTS.contains(&key.as_str()) && values.iter().all(toml::Value::is_str) =>
                {
                    if values.is_empty() && key == "views" {
                        bail!(Problem::usage(format!("{origin}: expected a view, found none")));
                    }
                    let values = values.iter().filter_map(toml::Value::as_str).map(str::to_owned);
                    Setting {
                        key,
                        values: values.collect(),
                    }
                }
                toml::Value::Integer(_) | toml::Value::Float(_) | toml::Value::Boolean(_) => {
                    Setting::typed(key, &value.to_string())
                }
                other => bail!(Problem::usage(format!(
                    "{origin}: expected one value, found {}",
                    other.type_str()
                ))),
            };
            check(std::slice::from_ref(&setting), &origin)?;
            settings.push(setting);
        }
    }
    check(&settings, &file.to_string())?;
    Ok(settings)
}

fn unknown(origin: &str, found: &str, known: &[&str]) -> Problem {
    let problem = Problem::usage(format!("{origin} is unknown, expected one of {}", known.join(", ")));
    match nearest(found, known.iter().copied()) {
        Some(name) => problem.hint(format!("did you mean {name}?")),
        None => problem,
    }
}

/// The known name that is most like what was found, if one is alike at all.
fn nearest<'a>(found: &str, known: impl Iterator<Item = &'a str>) -> Option<&'a str> {
    let common = |name: &str| name.strip_prefix("LUTHIER_").unwrap_or(name).to_owned();
    let likeness = |name: &str| strsim::jaro_winkler(&common(found), &common(name));
    known
        .max_by(|a, b| likeness(a).total_cmp(&likeness(b)))
        .filter(|name| likeness(name) > 0.7)
}

#[cfg(test)]
mod tests {
    use clap::FromArgMatches as _;
    use luthier_classify::{ChooseC, Rule};
    use luthier_extract::{Combine, DataSource, Framing, Layout, Precision, View, Views, WeightsSource};
    use luthier_features::ComponentCount;

    use super::*;

    /// What the three layers come to. The environment is `NAME=value` separated by spaces, without `LUTHIER_`.
    fn settings(flags: &[&str], environment: &str, file: &str) -> Result<Settings> {
        let variables = environment.split(' ').filter_map(|text| text.split_once('='));
        let variables = variables.map(|(name, value)| (format!("LUTHIER_{name}").into(), value.into()));
        let layers = [
            from_environment(variables, &known_variables(&Command::new("luthier")))?,
            from_toml(file, Path::new("luthier.toml"))?,
        ];
        let command = Settings::augment_args(Command::new("luthier")).no_binary_name(true);
        let typed = command.clone().try_get_matches_from(flags)?;
        let matches = with_defaults(command, &typed, &layers).try_get_matches_from(flags)?;
        Ok(Settings::from_arg_matches(&matches)?)
    }

    fn toml(text: &str) -> Settings {
        settings(&[], "", text).unwrap()
    }

    /// The problem that a file has.
    fn message(file: &str) -> String {
        let error = settings(&[], "", file).unwrap_err();
        error.downcast::<Problem>().unwrap().to_string()
    }

    #[test]
    fn a_flag_beats_the_environment_beats_the_file_beats_the_default() {
        let file = "[features]\nvariance = 0.5\n[classify]\nfolds = 3\n[extract]\nbatch = 2";
        let settings = settings(&["--batch=6"], "FOLDS=4 BATCH=5", file).unwrap();
        assert_eq!(
            settings.features_config().unwrap().n_components,
            ComponentCount::Variance(0.5)
        );
        assert_eq!(settings.classify_config().unwrap().folds, 4);
        assert_eq!(settings.batch(), Some(6));
        assert_eq!(settings.classify_config().unwrap().c, ChooseC::Auto(Rule::SmallestLoss));
    }

    #[test]
    fn layers_are_merged_one_setting_at_a_time() {
        let file = "[data]\ntrain-dir = 'a'\ntest-dir = 'b'";
        let source = |flags: &[&str], environment: &str| {
            settings(flags, environment, file)
                .and_then(|settings| settings.data_source())
                .unwrap()
        };
        let split = |train: &str, test: &str| {
            DataSource::new(Layout::Split {
                train: train.into(),
                test: test.into(),
            })
        };
        assert_eq!(source(&["--test-dir=c"], ""), split("a", "c"));
        assert_eq!(source(&["--test-dir=c"], "TRAIN_DIR=d"), split("d", "c"));
        for (flags, environment) in [(&["--data-dir=c"][..], ""), (&["c"], ""), (&[], "DATA_DIR=c")] {
            let whole = DataSource::new(Layout::Classes("c".into()));
            assert_eq!(source(flags, environment), whole, "{flags:?} {environment}");
        }
    }

    #[test]
    fn a_switch_in_the_file_can_be_switched_off() {
        let file = "[extract]\nstrict = true";
        let is_strict = |flags: &[&str], file: &str| settings(flags, "", file).unwrap().is_strict();
        assert!(is_strict(&[], file) && is_strict(&["--strict"], ""));
        assert!(!is_strict(&["--strict=false"], file));
    }

    #[test]
    fn components_replace_variance_in_a_lower_layer() {
        let file = "[features]\nvariance = 0.5";
        for (flags, environment) in [(&["--components=98"][..], ""), (&[], "COMPONENTS=98")] {
            let settings = settings(flags, environment, file).unwrap();
            assert_eq!(
                settings.features_config().unwrap().n_components,
                ComponentCount::Exact(98)
            );
        }
        let both = message("[features]\nvariance = 0.5\ncomponents = 3");
        assert!(both.contains("cannot be used with"), "{both}");
    }

    #[test]
    fn keys_may_be_written_with_underscores_and_paths_are_relative_to_the_file() {
        let found = from_toml(
            "[data]\ntrain_dir = 'a'\ntest-dir = '/b'",
            Path::new("folder/luthier.toml"),
        );
        let found: Vec<(String, Vec<String>)> = found
            .unwrap()
            .into_iter()
            .map(|setting| (setting.key, setting.values))
            .collect();
        let expected = [("test-dir", "/b"), ("train-dir", "folder/a")];
        assert_eq!(
            found,
            expected.map(|(key, value)| (key.to_owned(), vec![value.to_owned()]))
        );
    }

    #[test]
    fn an_element_of_a_list_in_the_file_may_have_a_comma() {
        let exclude = |text: &str| {
            let file = format!("[data]\ndata-dir = 'a'\nexclude = {text}");
            toml(&file).data_source().unwrap().exclude
        };
        assert_eq!(exclude("['Smith, John/', '*.gif']"), ["Smith, John/", "*.gif"]);
        assert_eq!(exclude("'thumbs/,*.gif'"), ["thumbs/", "*.gif"]);
        assert!(exclude("[]").is_empty());
        assert!(message("[extract]\nviews = []").ends_with("[extract] views: expected a view, found none"));
        let found = message("[extract]\nviews = ['crop,mirror']");
        let start = "luthier.toml: [extract] views: invalid value 'crop,mirror'";
        assert!(found.starts_with(start), "{found}");
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
    fn unknown_variables_name_the_nearest_known_one() {
        let message = |environment: &str| settings(&[], environment, "").unwrap_err().to_string();
        assert_eq!(
            message("VARIENCE=0.9"),
            "environment: LUTHIER_VARIENCE is unknown, expected LUTHIER_ and the name of a setting\n\
             hint: did you mean LUTHIER_VARIANCE?"
        );
        assert!(message("XYZ=1").contains("`luthier init`"), "{}", message("XYZ=1"));
        settings(&[], "TEST_DATA=x WEIGHTS_MIRROR=x TEST_WITHOUT=bf16", "").unwrap();
        // What a pod gets for services that are called luthier and luthier-gpu.
        let of_services =
            "PORT=tcp://10.0.0.1:80 PORT_80_TCP_ADDR=10.0.0.1 SERVICE_HOST=10.0.0.1 GPU_SERVICE_PORT_HTTP=80";
        settings(&[], of_services, "").unwrap();
        assert!(message("TEST_DIRR=x").contains("did you mean LUTHIER_TEST_DIR?"));
    }

    #[cfg(unix)]
    #[test]
    fn variables_are_utf8() {
        use std::os::unix::ffi::OsStringExt as _;

        let value = OsString::from_vec(b"a\xff".to_vec());
        let error = from_environment([("LUTHIER_TRAIN_DIR".into(), value)], &["LUTHIER_TRAIN_DIR".into()]);
        let message = error.unwrap_err().to_string();
        assert_eq!(
            message,
            "environment: LUTHIER_TRAIN_DIR: expected UTF-8, found a\u{fffd}"
        );
    }

    #[test]
    fn values_of_the_wrong_type_name_their_key() {
        let found = message("[extract]\nbatch = 'many'");
        assert!(
            found.starts_with("luthier.toml: [extract] batch: invalid value 'many'"),
            "{found}"
        );
        let error = settings(&[], "VIEWS=stretch", "").unwrap_err();
        assert!(
            error.to_string().contains("LUTHIER_VIEWS: invalid value 'stretch'"),
            "{error}"
        );
        assert!(error.to_string().contains("expected auto, squash, crop,"), "{error}");
    }

    #[test]
    fn shares_are_not_percentages() {
        for (text, meant) in [("98", "0.98"), ("'98%'", "0.98"), ("'2.5 %'", "0.025")] {
            let found = message(&format!("[features]\nvariance = {text}"));
            assert!(found.starts_with("luthier.toml: [features] variance: "), "{found}");
            assert!(found.contains("expected a share between 0 and 1, found"), "{found}");
            assert!(found.ends_with(&format!(": did you mean {meant}?")), "{found}");
        }
        for text in ["1", "0", "-0.5", "101", "nan"] {
            let found = message(&format!("[evaluate]\nconfidence = {text}"));
            let end = format!("expected a share between 0 and 1, found {text}");
            assert!(found.to_lowercase().ends_with(&end) || text == "1", "{found}");
        }
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
        let both = Views::new(
            [Framing::Crop, Framing::Mirror].map(View::from).to_vec(),
            Combine::Concat,
        )
        .unwrap();
        let file = "[extract]\nviews = ['crop', 'mirror']\ncombine = 'concat'";
        assert_eq!(views(toml(file)), both);
        let environment = settings(&[], "VIEWS=crop,mirror COMBINE=concat", "");
        assert_eq!(views(environment.unwrap()), both);
        for crop in [
            settings(&["--resize=crop"], "", ""),
            settings(&[], "", "[extract]\nresize = 'crop'"),
            settings(&[], "RESIZE=crop", "[extract]\nviews = ['squash']"),
        ] {
            assert_eq!(views(crop.unwrap()), Framing::Crop.into());
        }
        assert!(message("[data]\ntrain-dir = ['a', 'b']").contains("expected one value, found array"));
        let twice = settings(&["--views=crop,crop"], "", "").unwrap();
        let error = twice.extract_config(WeightsSource::Untrained).unwrap_err();
        assert_eq!(error.to_string(), "--views: expected each view once, found crop twice");
    }

    #[test]
    fn auto_chooses_among_the_views_that_are_named_with_it_or_those_that_are_not_mirrored() {
        let candidates = |options: &[&str]| {
            let settings = settings(options, "", "").unwrap();
            let config = settings.views_config().unwrap()?;
            let names: Vec<String> = config.candidates.iter().map(ToString::to_string).collect();
            // Until there is a choice, the extractor has the first.
            let extractor = settings.extract_config(WeightsSource::Untrained).unwrap().extractor;
            assert_eq!(extractor.views, config.candidates[0].view.into());
            Some(names.join(", "))
        };
        assert_eq!(candidates(&["--views=squash,pad", "--pooling=gem"]), None);
        assert_eq!(
            candidates(&["--views=auto"]).unwrap(),
            "squash with mean pooling, squash with gem pooling, crop with mean pooling, crop with gem pooling, \
             pad with mean pooling, pad with gem pooling"
        );
        assert_eq!(
            candidates(&["--views=pad,auto,mirror", "--pooling=gem"]).unwrap(),
            "pad with gem pooling, mirror with gem pooling"
        );
        let twice = settings(&["--views=auto,crop,crop"], "", "").unwrap();
        let error = twice.views_config().unwrap_err();
        assert_eq!(error.to_string(), "--views: expected each view once, found crop twice");
        let unknown = settings(&["--views=flip"], "", "").unwrap_err().to_string();
        let expected = "expected auto, squash, crop, pad, mirror, crop-mirror, pad-mirror, found flip";
        assert!(unknown.contains(expected), "{unknown}");
    }

    #[test]
    fn a_faster_precision_is_chosen_by_auto_and_named_only_to_those_who_chose_none() {
        let cuda = |options: &[&str]| settings(&[&["--device=cuda"], options].concat(), "", "").unwrap();
        let precision = |settings: Settings| {
            settings
                .extract_config(WeightsSource::Untrained)
                .unwrap()
                .extractor
                .precision
        };
        assert_eq!(cuda(&[]).faster_precision(), Some(Precision::Fp16));
        assert_eq!(precision(cuda(&[])), Precision::Fp32);
        for chosen in ["--precision=fp32", "--precision=auto"] {
            assert_eq!(cuda(&[chosen]).faster_precision(), None, "{chosen}");
        }
        assert_eq!(precision(cuda(&["--precision=auto"])), Precision::Fp16);
        assert_eq!(precision(cuda(&["--precision=bf16"])), Precision::Bf16);
    }

    #[test]
    fn the_template_reads_and_names_every_key_once() {
        toml(super::super::TEMPLATE);
        let uncommented: String = super::super::TEMPLATE
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
