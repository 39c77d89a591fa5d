use std::fmt;

use luthier_artifact::Error as ArtifactError;
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
        let artifact: Option<&ArtifactError> = error.chain().find_map(|cause| cause.downcast_ref());
        let hint = extract.and_then(ExtractError::hint).or(match artifact {
            Some(ArtifactError::Layout { .. }) => {
                Some("use the luthier that wrote it, or another folder with --cache-dir".to_owned())
            }
            Some(ArtifactError::Index { path, .. }) => Some(format!(
                "if it is damaged, remove {} and run again: all that is in it can be computed again",
                path.display()
            )),
            Some(ArtifactError::InUse { .. }) => Some("wait until it ends, then try again".to_owned()),
            _ => None,
        });
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
