use std::collections::HashMap;
use std::path::{Path, PathBuf};

use ignore::gitignore::{Gitignore, GitignoreBuilder};

use crate::{Error, Result};

/// The file in a data folder, or in a folder below it, that says what is left out, in the syntax of `.gitignore`.
const IGNORE_FILE: &str = ".luthierignore";

/// What a user has left out of a folder.
pub(super) struct Exclusion {
    root: PathBuf,
    /// Of the command, which has the last word.
    globs: Gitignore,
    /// Of each folder that has been asked about.
    files: HashMap<PathBuf, Gitignore>,
}

impl Exclusion {
    /// Fails if a glob is none.
    pub(super) fn new(root: &Path, globs: &[String]) -> Result<Self> {
        let mut builder = GitignoreBuilder::new(root);
        let wrong = |error: ignore::Error| Error::Exclude {
            origin: "--exclude".to_owned(),
            problem: error.to_string(),
        };
        for glob in globs {
            builder.add_line(None, glob).map_err(wrong)?;
        }
        Ok(Exclusion {
            root: root.to_owned(),
            globs: builder.build().map_err(wrong)?,
            files: HashMap::new(),
        })
    }

    /// Whether a file or folder below the root is left out. The folders above it are not.
    pub(super) fn excludes(&mut self, path: &Path, is_dir: bool) -> Result<bool> {
        let by_globs = self.globs.matched(path, is_dir);
        if !by_globs.is_none() {
            return Ok(by_globs.is_ignore());
        }
        // The nearest file has the last word.
        for folder in path.ancestors().skip(1) {
            let found = self.file(folder)?.matched(path, is_dir);
            if !found.is_none() {
                return Ok(found.is_ignore());
            }
            if folder == self.root {
                break;
            }
        }
        Ok(false)
    }

    fn file(&mut self, folder: &Path) -> Result<&Gitignore> {
        if !self.files.contains_key(folder) {
            let path = folder.join(IGNORE_FILE);
            let found = match path.is_file() {
                true => read(&path)?,
                false => Gitignore::empty(),
            };
            self.files.insert(folder.to_owned(), found);
        }
        Ok(&self.files[folder])
    }
}

fn read(path: &Path) -> Result<Gitignore> {
    let wrong = |error: ignore::Error| Error::Exclude {
        origin: path.display().to_string(),
        problem: error.to_string(),
    };
    let mut builder = GitignoreBuilder::new(path.parent().unwrap_or(path));
    match builder.add(path) {
        Some(error) => Err(wrong(error)),
        None => builder.build().map_err(wrong),
    }
}
