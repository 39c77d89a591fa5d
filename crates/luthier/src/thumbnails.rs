//! The small pictures of the report, kept in the cache: a photograph of 12 megapixels takes 20 ms to decode, and a page
//! shows up to 700.
//!
//! They are recorded as if a stage had made them. So `gc` keeps them as long as the run whose report shows them, and the
//! next report of the project takes from there what it shows as well.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Mutex, OnceLock, PoisonError};
use std::time::Instant;

use luthier_artifact::{Artifact, Digest, Error, Key, Observer};
use luthier_cache::{Cache, Execution, Output, References};
use luthier_extract::{THUMBNAIL_VERSION, thumbnail};

use crate::Result;
use crate::runner::Runner;

/// What a run records them under.
pub(crate) const THUMBNAILS: &str = "thumbnails";

/// The thumbnails of a report that is written.
pub(crate) struct Thumbnails<'a> {
    cache: &'a Cache,
    pub(crate) observer: &'a dyn Observer,
    /// Those of the report before, by name, read when the first is asked for.
    before: Option<Key>,
    known: OnceLock<HashMap<String, Digest>>,
    /// Those of this report.
    shown: Mutex<BTreeMap<String, Digest>>,
    start: Instant,
}

impl<'a> Thumbnails<'a> {
    /// For a report of a project whose last run recorded this key.
    pub(crate) fn after(cache: &'a Cache, before: Option<Key>, observer: &'a dyn Observer) -> Self {
        let version = THUMBNAIL_VERSION.to_string();
        Thumbnails {
            cache,
            observer,
            before: before.filter(|key| key.get("version") == Some(&version)),
            known: OnceLock::new(),
            shown: Mutex::default(),
            start: Instant::now(),
        }
    }

    /// The thumbnail of the image with this digest, at most `side` pixels wide and high. If it is not known, `read` is
    /// asked for the bytes of the image's file; `None` if there are none, or they are another image's or cannot be decoded.
    pub(crate) fn get(&self, image: &Digest, side: u32, read: impl FnOnce() -> Option<Vec<u8>>) -> Option<Vec<u8>> {
        let name = format!("{image} {side}");
        let known = self.known.get_or_init(|| self.load()).get(&name);
        if let Some(Thumbnail(jpeg)) = known.and_then(|digest| self.cache.get(digest).ok()?) {
            self.show(name, *known?);
            return Some(jpeg);
        }
        let bytes = read()?;
        // No picture is better than another photograph's.
        let jpeg = (Digest::of(&bytes) == *image).then(|| thumbnail(&bytes, side).ok())??;
        let made = Thumbnail(jpeg);
        match self.cache.put(&made) {
            Ok(digest) => self.show(name, digest),
            // A picture that cannot be kept is shown all the same.
            Err(error) => tracing::debug!("thumbnail of {image}: {error}"),
        }
        Some(made.0)
    }

    fn show(&self, name: String, digest: Digest) {
        let mut shown = self.shown.lock().unwrap_or_else(PoisonError::into_inner);
        shown.insert(name, digest);
    }

    fn load(&self) -> HashMap<String, Digest> {
        let execution = (self.before.as_ref()).and_then(|key| self.cache.execution(&key.digest()).ok()?);
        let outputs = execution.into_iter().flat_map(|execution| execution.outputs);
        outputs.map(|output| (output.name, output.digest)).collect()
    }

    /// Records what was shown, if a report was written.
    pub(crate) fn record(self, runner: &mut Runner<'_>) -> Result<()> {
        let shown = self.shown.into_inner().unwrap_or_else(PoisonError::into_inner);
        if shown.is_empty() {
            return Ok(());
        }
        let names: Vec<&str> = shown.keys().map(String::as_str).collect();
        let key = Key::stage(THUMBNAILS, THUMBNAIL_VERSION)
            .input("shown", Digest::of(names.join("\n").as_bytes()))
            .finish();
        let outputs = shown.into_iter().map(|(name, digest)| Output { name, digest });
        self.cache.record(&Execution {
            key: key.clone(),
            outputs: outputs.collect(),
            seconds: self.start.elapsed().as_secs_f64(),
            references: References::default(),
        })?;
        runner.uses(key);
        Ok(())
    }
}

/// A JPEG.
struct Thumbnail(Vec<u8>);

impl Artifact for Thumbnail {
    const FORMAT: &'static str = "JPEG";

    fn encode(&self) -> Vec<u8> {
        self.0.clone()
    }

    fn decode(bytes: &[u8]) -> luthier_artifact::Result<Self> {
        match bytes.starts_with(&[0xff, 0xd8]) {
            true => Ok(Thumbnail(bytes.to_owned())),
            false => Err(Error::Format {
                expected: Self::FORMAT,
                found: "other bytes".to_owned(),
            }),
        }
    }
}
