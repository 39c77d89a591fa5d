//! The small pictures of the report, kept in the cache: a photograph of 12 megapixels takes 20 ms to decode, and a page
//! may show some 900.
//!
//! They are recorded as if a stage had made them, so that `gc` keeps them as long as their run. The next report of the
//! project decodes only what this one did not show.

use std::collections::BTreeMap;
use std::sync::{Mutex, OnceLock, PoisonError};
use std::time::Instant;

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use luthier_artifact::{Artifact, Digest, Error, Key, Observer, json};
use luthier_cache::{Cache, Execution, Output, References};
use luthier_extract::{THUMBNAIL_VERSION, thumbnail};

use crate::Result;

/// The name of their execution.
pub(crate) const THUMBNAILS: &str = "thumbnails";

/// The thumbnails of a report that is being written.
pub(crate) struct Thumbnails<'a> {
    cache: &'a Cache,
    pub(crate) observer: &'a dyn Observer,
    /// The key of the last report's thumbnails.
    before: Option<Key>,
    /// The last report's thumbnails, read when the first is asked for.
    known: OnceLock<Jpegs>,
    /// All thumbnails that were asked for.
    asked: Mutex<Jpegs>,
    start: Instant,
}

/// JPEGs, by the digests of their images and their sizes.
#[derive(Default)]
struct Jpegs(BTreeMap<String, Vec<u8>>);

impl<'a> Thumbnails<'a> {
    /// For a report of a project whose last report has those with the key `before`.
    pub(crate) fn after(cache: &'a Cache, before: Option<Key>, observer: &'a dyn Observer) -> Self {
        let version = THUMBNAIL_VERSION.to_string();
        Thumbnails {
            cache,
            observer,
            before: before.filter(|key| key.get("version") == Some(&version)),
            known: OnceLock::new(),
            asked: Mutex::default(),
            start: Instant::now(),
        }
    }

    /// The thumbnail of the image with this digest, at most `side` pixels wide and high. If it is not known, `read` is
    /// asked for the bytes of the image's file. `None` if the file has no bytes, holds another image or cannot be decoded.
    pub(crate) fn get(&self, image: &Digest, side: u32, read: impl FnOnce() -> Option<Vec<u8>>) -> Option<Vec<u8>> {
        let name = format!("{image} {side}");
        let known = self.known.get_or_init(|| self.load().unwrap_or_default());
        let jpeg = known.0.get(&name).cloned().or_else(|| {
            let bytes = read()?;
            // No picture is better than another photograph's.
            (Digest::of(&bytes) == *image).then(|| thumbnail(&bytes, side).ok())?
        })?;
        let mut asked = self.asked.lock().unwrap_or_else(PoisonError::into_inner);
        asked.0.insert(name, jpeg.clone());
        Some(jpeg)
    }

    fn load(&self) -> Option<Jpegs> {
        let execution = self.cache.execution(&self.before.as_ref()?.digest()).ok()??;
        self.cache.get(&execution.outputs.first()?.digest).ok()?
    }

    /// Stores what was asked for, if a report was written; the key for its run to record.
    pub(crate) fn store(self) -> Option<Key> {
        let asked = self.asked.into_inner().unwrap_or_else(PoisonError::into_inner);
        if asked.0.is_empty() {
            return None;
        }
        let store = || -> Result<Key> {
            let digest = self.cache.put(&asked)?;
            let key = Key::stage(THUMBNAILS, THUMBNAIL_VERSION)
                .input("jpegs", digest)
                .finish();
            self.cache.record(&Execution {
                key: key.clone(),
                outputs: vec![Output {
                    name: THUMBNAILS.to_owned(),
                    digest,
                }],
                seconds: self.start.elapsed().as_secs_f64(),
                n_embedded: None,
                references: References::default(),
            })?;
            Ok(key)
        };
        // Without them the next report only takes longer.
        store().inspect_err(|error| tracing::debug!("thumbnails: {error}")).ok()
    }
}

impl Artifact for Jpegs {
    const FORMAT: &'static str = "thumbnails/1";

    fn encode(&self) -> Vec<u8> {
        let texts = self.0.iter().map(|(name, jpeg)| (name, BASE64_STANDARD.encode(jpeg)));
        json::encode(Self::FORMAT, &texts.collect::<BTreeMap<_, _>>())
    }

    fn decode(bytes: &[u8]) -> luthier_artifact::Result<Self> {
        let texts: BTreeMap<String, String> = json::decode(Self::FORMAT, bytes)?;
        let jpegs = texts
            .into_iter()
            .map(|(name, text)| Ok((name, BASE64_STANDARD.decode(text)?)));
        let jpegs: std::result::Result<_, base64::DecodeError> = jpegs.collect();
        jpegs.map(Jpegs).map_err(|error| Error::Format {
            expected: Self::FORMAT,
            found: error.to_string(),
        })
    }
}
