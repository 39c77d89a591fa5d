//! Where images come from: arguments, standard input, and a folder that is watched.

use std::collections::HashSet;
use std::path::{Path, PathBuf};

use anyhow::{Result, bail};
use luthier_artifact::file_names;
use luthier_extract::{ImageSource, images_below};

use super::piped::{Item, Piped};
use crate::problem::Problem;

/// Images that come from one place.
pub(super) enum Source {
    /// Files that are known from the start.
    Files(Vec<PathBuf>),
    /// Paths, or an image, on standard input.
    Stdin(Piped),
    /// What lies in a folder, and what will.
    Watched(PathBuf),
}

/// An image to predict.
pub(super) struct Input {
    pub(super) source: ImageSource,
    /// What it is called in the output.
    pub(super) name: String,
}

impl Input {
    pub(super) fn file(path: PathBuf) -> Self {
        Input {
            name: file_names::name_of(&path),
            source: ImageSource::File(path),
        }
    }

    pub(super) fn of(item: Item) -> Self {
        match item {
            Item::Path(path) => Input::file(path),
            Item::Image(bytes) => Input {
                source: ImageSource::Bytes(bytes.into()),
                name: "-".to_owned(),
            },
        }
    }

    /// The path of the file, if the image is in one.
    pub(super) fn path(&self) -> Option<&Path> {
        match &self.source {
            ImageSource::File(path) => Some(path),
            ImageSource::Bytes(_) => None,
        }
    }
}

/// The sources behind the arguments, in order: files, folders, patterns, and `-`.
///
/// A path that exists is never taken for a pattern.
pub(super) fn sources(arguments: &[PathBuf], watch: Option<&Path>) -> Result<Vec<Source>> {
    let mut sources = Vec::new();
    let mut files = Vec::new();
    for argument in arguments {
        if argument == Path::new("-") {
            if sources.iter().any(|source| matches!(source, Source::Stdin(_))) {
                bail!(Problem::usage(
                    "- is named twice, expected once: there is one standard input"
                ));
            }
            sources.push(Source::Files(std::mem::take(&mut files)));
            sources.push(Source::Stdin(Piped::start()));
        } else if argument.is_dir() {
            files.extend(images_in(argument)?);
        } else if let Some(pattern) = argument.to_str().filter(|path| is_pattern(path))
            && !argument.exists()
        {
            files.extend(matching(pattern)?);
        } else {
            files.push(argument.clone());
        }
    }
    sources.push(Source::Files(files));
    if let Some(folder) = watch {
        if !folder.is_dir() {
            bail!(Problem::new(format!("{}: no such folder to watch", folder.display())));
        }
        sources.push(Source::Watched(folder.to_owned()));
    }
    Ok(sources)
}

/// The images below a folder: that there are none today is no error, but may not be meant.
fn images_in(folder: &Path) -> Result<Vec<PathBuf>> {
    let images = images_below(folder)?;
    if images.is_empty() {
        tracing::warn!("{}: no images in this folder", folder.display());
    }
    Ok(images)
}

fn is_pattern(path: &str) -> bool {
    path.contains(['*', '?', '['])
}

/// What a pattern stands for, as a shell has it: in alphabetical order, without hidden files unless it names them.
/// Of a folder that matches, the images below it, each image once.
fn matching(pattern: &str) -> Result<Vec<PathBuf>> {
    let options = glob::MatchOptions {
        case_sensitive: true,
        require_literal_separator: true,
        require_literal_leading_dot: true,
    };
    let wrong = |error: glob::PatternError| Problem::usage(format!("{pattern}: {error}"));
    let mut found = Vec::new();
    for path in glob::glob_with(pattern, options).map_err(wrong)? {
        let path = path.map_err(|error| Problem::new(format!("{}: {}", error.path().display(), error.error())))?;
        if path.is_dir() {
            found.extend(images_below(&path)?);
        } else {
            found.push(path);
        }
    }
    let mut seen = HashSet::new();
    found.retain(|path| seen.insert(path.clone()));
    if found.is_empty() {
        bail!(
            Problem::new(format!("{pattern}: no file matches"))
                .hint("** stands for folders at any depth: 'photos/**/*.jpg'")
        );
    }
    Ok(found)
}
