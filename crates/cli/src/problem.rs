use std::fmt;
use std::io::{self, ErrorKind};

use luthier_artifact::Error as ArtifactError;
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
        let extract: Option<&ExtractError> = error.chain().find_map(|cause| cause.downcast_ref());
        let hint = extract
            .and_then(ExtractError::hint)
            .or_else(|| cache_error(error).and_then(way_out))
            .or_else(|| file_error(error).and_then(way_out_of_file))
            .or_else(|| error.downcast_ref().and_then(without_cross_validation))
            .or_else(|| error.chain().find_map(|cause| cause.downcast_ref()).and_then(make_room));
        let status = if matches!(extract, Some(ExtractError::Interrupted)) {
            130
        } else {
            1
        };
        Problem {
            message: say_once(error),
            hint,
            status,
        }
    }

    /// The exit status.
    pub(crate) fn status(&self) -> u8 {
        self.status
    }
}

/// The cache's error behind an error. A transparent error hides from the chain the error that it holds.
pub(crate) fn cache_error(error: &anyhow::Error) -> Option<&CacheError> {
    error.chain().find_map(|cause| {
        if let Some(ExtractError::Cache(error)) = cause.downcast_ref() {
            return Some(error);
        }
        let read = match (cause.downcast_ref(), cause.downcast_ref(), cause.downcast_ref()) {
            (Some(luthier_features::Error::Read(error)), _, _) => error,
            (_, Some(luthier_classify::Error::Features(luthier_features::Error::Read(error))), _) => error,
            (_, _, Some(luthier_eval::Error::Read(error))) => error,
            _ => return cause.downcast_ref(),
        };
        read.downcast_ref()
    })
}

/// The error of a file behind an error.
fn file_error(error: &anyhow::Error) -> Option<&ArtifactError> {
    error
        .chain()
        .find_map(|cause| match (cause.downcast_ref(), cause.downcast_ref()) {
            (Some(luthier_classify::Error::Read(error)), _) | (_, Some(luthier_eval::Error::Artifact(error))) => {
                Some(error)
            }
            _ => cause.downcast_ref(),
        })
}

/// What can be done if there is nothing to choose C by.
fn without_cross_validation(error: &luthier_classify::Error) -> Option<String> {
    let is_about_it = matches!(error, luthier_classify::Error::NothingToHoldOut);
    is_about_it.then(|| "give C, for example --c 1: then there is no cross-validation".to_owned())
}

/// What can be done about a problem of the cache.
fn way_out(error: &CacheError) -> Option<String> {
    let hint = match error {
        error if error.is_disk_full() => MAKE_ROOM.to_owned(),
        error if error.lacks_locks() => {
            "put the cache on a local disk with --cache-dir: network folders often lack locks or shared memory"
                .to_owned()
        }
        error if error.is_busy() => {
            "another process has it locked, or the locks of its file system do not work: end that process, or put the \
             cache on a local disk with --cache-dir"
                .to_owned()
        }
        CacheError::Layout { .. } => {
            "update luthier, or use another folder with --cache-dir and leave this one to the newer luthier".to_owned()
        }
        CacheError::ReadOnly { .. } => "ask its owner for the right to write; until then, runs only read it".to_owned(),
        CacheError::InUse { .. } => "wait until it ends, then try again".to_owned(),
        CacheError::Index { path, .. } => format!(
            "check that the disk works and has room, and that you may write {}; or use another folder with --cache-dir",
            path.display()
        ),
        CacheError::Lost { .. } => "run again; `luthier cache verify` forgets everything that is damaged".to_owned(),
        CacheError::Io { source, .. } => return way_out_of_io(source),
        CacheError::Format { .. } | CacheError::Locks { .. } | CacheError::SharedMemory { .. } => return None,
    };
    Some(hint)
}

/// What can be done about a file that cannot be read or written.
fn way_out_of_file(error: &ArtifactError) -> Option<String> {
    match error {
        ArtifactError::Io { source, .. } => way_out_of_io(source),
        ArtifactError::Format { .. } => None,
    }
}

fn way_out_of_io(error: &io::Error) -> Option<String> {
    match error.kind() {
        ErrorKind::PermissionDenied | ErrorKind::ReadOnlyFilesystem => {
            Some("get the right to write there, or use other folders with --cache-dir and --out".to_owned())
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
            // SQLite says it again with the number of its error before it.
            said if said.ends_with(cause.rsplit(": ").next().unwrap_or(&cause)) => message,
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
