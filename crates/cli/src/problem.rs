use std::error::Error as StdError;
use std::fmt;
use std::io::{self, ErrorKind};

use luthier_cache::Error as CacheError;
use luthier_extract::Error as ExtractError;

/// A problem in the user's terms, with the way out, and with the exit status that it ends in.
pub(crate) struct Problem {
    message: String,
    hint: Option<String>,
    status: u8,
}

impl Problem {
    /// Something went wrong: exit status 1.
    pub(crate) fn new(message: impl Into<String>) -> Self {
        Problem {
            message: message.into(),
            hint: None,
            status: 1,
        }
    }

    /// Luthier was used in a way it does not know: exit status 2.
    pub(crate) fn usage(message: impl Into<String>) -> Self {
        Problem {
            status: 2,
            ..Problem::new(message)
        }
    }

    /// With the way out.
    #[must_use]
    pub(crate) fn hint(self, hint: impl Into<String>) -> Self {
        Problem {
            hint: Some(hint.into()),
            ..self
        }
    }

    /// The problem behind an error: itself, or made from what the libraries say.
    pub(crate) fn of(error: &anyhow::Error) -> Problem {
        if let Some(Problem { message, hint, status }) = error.downcast_ref() {
            return Problem {
                message: message.clone(),
                hint: hint.clone(),
                status: *status,
            };
        }
        let is_interrupt = |cause: &(dyn StdError + 'static)| {
            cause.downcast_ref().is_some_and(luthier::Error::is_interrupt)
                || cause.downcast_ref().is_some_and(luthier_export::Error::is_interrupt)
                || matches!(cause.downcast_ref(), Some(luthier_serve::Error::Luthier(error)) if error.is_interrupt())
                || matches!(cause.downcast_ref(), Some(ExtractError::Interrupted))
                || matches!(cause.downcast_ref(), Some(CacheError::Interrupted))
        };
        let status = match error.downcast_ref() {
            Some(luthier::Error::NoSuchThreshold { .. }) => 2,
            _ if error.chain().any(is_interrupt) => 130,
            _ => 1,
        };
        let message = match error.downcast_ref() {
            Some(luthier::Error::NoSuchThreshold { found, known }) => {
                format!("--keep-known is {found}, expected one of {known}")
            }
            _ => say_once(error),
        };
        Problem {
            message,
            hint: error.chain().find_map(way_out),
            status,
        }
    }

    /// The exit status.
    pub(crate) fn status(&self) -> u8 {
        self.status
    }
}

/// What can be done about an error.
fn way_out(error: &(dyn StdError + 'static)) -> Option<String> {
    if let Some(error) = error.downcast_ref() {
        way_out_of_library(error)
    } else if let Some(error) = error.downcast_ref() {
        way_out_of_export(error)
    } else if let Some(luthier_serve::Error::Luthier(error)) = error.downcast_ref() {
        way_out_of_library(error)
    } else if let Some(error) = error.downcast_ref::<ExtractError>() {
        way_out_of_extraction(error)
    } else if let Some(error) = error.downcast_ref() {
        way_out_of_cache(error)
    } else if let Some(luthier_artifact::Error::Io { source, .. }) = error.downcast_ref() {
        way_out_of_io(source)
    } else {
        error.downcast_ref().and_then(make_room)
    }
}

fn way_out_of_library(error: &luthier::Error) -> Option<String> {
    use luthier::Error;
    let hint = match error {
        Error::Extract(error) => return way_out_of_extraction(error),
        Error::Classify(luthier_classify::Error::Read(luthier_artifact::Error::Io { source, .. }))
            if source.kind() == ErrorKind::NotFound =>
        {
            "train a model with luthier pipeline or luthier train, or say where it is"
        }
        Error::Classify(luthier_classify::Error::NothingToHoldOut) => {
            "give C, for example --c 1: then there is no cross-validation"
        }
        Error::NothingToEvaluate => {
            "leave --c out, so that cross-validation holds images out; or keep some for the test"
        }
        Error::NoSuchRun { .. } => "luthier runs lists them",
        Error::RunIsGone { .. } => "run the pipeline again with that run's settings",
        Error::NotFinite { .. } => {
            "extract with --precision fp32, whose numbers are larger than those of fp16; or mend the .npy file"
        }
        Error::OtherExtractor { .. } => "extract and train again with the same settings",
        Error::OtherClasses { .. } => "train again on these features",
        Error::NoClassFolders => "change the table, or name the folders: --data-dir, or --train-dir and --test-dir",
        Error::NoFeatures { path } => {
            let folder = path.parent().unwrap_or(path);
            return Some(format!("run luthier extract --output-dir {}", folder.display()));
        }
        Error::UnlabelledFeatures { .. } => {
            "name the classes when you extract: one folder per class, --labels or --class-from"
        }
        Error::FeaturesFile { .. } => "run luthier extract again",
        Error::Moments { .. } => {
            "run luthier moments for each part, with the settings of the features and with the same number of parts"
        }
        Error::MixedFeatures { .. } => {
            "run luthier extract again; to use features that you have changed, remove \"digests\" from features.json"
        }
        Error::UnreadableImages { .. } => "replace or remove them, or run without --strict to skip them",
        Error::OtherWeights { name, .. } => {
            let weights = name.as_deref().unwrap_or("FILE.safetensors");
            return Some(format!("pass --weights {weights}, or train again"));
        }
        Error::UnknownWeights { .. } => "put their file beside the model, or pass it with --weights FILE",
        Error::NoThresholds { .. } => "train again with --c auto, or use --min-confidence P",
        Error::ClassUnknown { .. } => {
            "rename its folder and train again, or leave out --min-confidence and --keep-known"
        }
        error => {
            return match (error.cache(), error.system()) {
                (Some(error), _) => way_out_of_cache(error),
                (None, error) => way_out_of_io(error?),
            };
        }
    };
    Some(hint.to_owned())
}

fn way_out_of_export(error: &luthier_export::Error) -> Option<String> {
    use luthier_export::Error;
    match error {
        Error::Luthier(error) => way_out_of_library(error),
        Error::Extract(error) => way_out_of_extraction(error),
        Error::Io { source, .. } | Error::Artifact(luthier_artifact::Error::Io { source, .. }) => way_out_of_io(source),
        Error::Unsuited { .. } => Some("use --format onnx, or train with one view and --pooling mean".to_owned()),
        Error::Exists { .. } => Some("remove it, or name another with --output".to_owned()),
        Error::Input { .. } => Some("name another with --output".to_owned()),
        Error::Artifact(_) | Error::Torch(_) | Error::Unreadable(_) | Error::Differs { .. } => None,
    }
}

fn way_out_of_extraction(error: &ExtractError) -> Option<String> {
    match error {
        ExtractError::Cache(error) => way_out_of_cache(error),
        ExtractError::File(luthier_artifact::Error::Io { source, .. }) => way_out_of_io(source),
        error => error.hint(),
    }
}

/// What can be done about a problem of the cache.
fn way_out_of_cache(error: &CacheError) -> Option<String> {
    let hint = match error {
        error if error.is_disk_full() => MAKE_ROOM.to_owned(),
        error if error.lacks_locks() => {
            "put the cache on a local disk with --cache-dir: network folders often lack locks".to_owned()
        }
        CacheError::ReadOnly { .. } => "ask its owner for the right to write; until then, runs only read it".to_owned(),
        CacheError::NothingRecorded { .. } => {
            "the records of runs were lost: run the pipeline on what is to be kept, then try again; `luthier cache gc \
             --keep-runs 0` removes everything"
                .to_owned()
        }
        CacheError::InUse { .. } => "wait until it ends, then try again".to_owned(),
        CacheError::Remote { .. } => {
            "check that it can be reached, and the credentials in the environment; runs go on without it".to_owned()
        }
        CacheError::RemoteUrl { .. } => {
            "name s3://BUCKET/FOLDER, gs://BUCKET/FOLDER, az://CONTAINER/FOLDER, https://…, or a folder".to_owned()
        }
        CacheError::Lost { .. } => "run again; `luthier cache verify` forgets everything that is damaged".to_owned(),
        CacheError::File(luthier_artifact::Error::Io { source, .. }) => return way_out_of_io(source),
        CacheError::File(_) | CacheError::Locks { .. } | CacheError::Interrupted => return None,
    };
    Some(hint)
}

/// What can be done about a file that cannot be read or written.
fn way_out_of_io(error: &io::Error) -> Option<String> {
    match error.kind() {
        ErrorKind::PermissionDenied | ErrorKind::ReadOnlyFilesystem => {
            Some("get the right to read or write it, or name another place".to_owned())
        }
        _ => make_room(error),
    }
}

const MAKE_ROOM: &str = "make room (`luthier cache gc` removes what no recent run used) or use another disk with --cache-dir; \
                         what is done is kept, and the next run goes on from there";

/// The same for files that are not the cache's.
fn make_room(error: &io::Error) -> Option<String> {
    matches!(error.kind(), ErrorKind::StorageFull | ErrorKind::QuotaExceeded).then(|| MAKE_ROOM.to_owned())
}

/// The chain of causes. The libraries' errors often end in the text of their cause: that is said once.
fn say_once(error: &anyhow::Error) -> String {
    error
        .chain()
        .map(ToString::to_string)
        .fold(String::new(), |message, cause| match message.as_str() {
            "" => cause,
            said if said.ends_with(&cause) => message,
            said => format!("{said}: {cause}"),
        })
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)?;
        if let Some(hint) = &self.hint {
            write!(f, "\nhint: {hint}")?;
        }
        Ok(())
    }
}

impl fmt::Debug for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl std::error::Error for Problem {}
