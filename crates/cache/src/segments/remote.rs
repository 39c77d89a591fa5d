//! Segments that machines share: in an object store, or in a folder that they all reach.

use std::ops::Range;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use futures_util::{StreamExt as _, TryStreamExt as _};
use luthier_artifact::Digest;
use object_store::aws::{AmazonS3Builder, AmazonS3ConfigKey};
use object_store::azure::{AzureConfigKey, MicrosoftAzureBuilder};
use object_store::gcp::{GoogleCloudStorageBuilder, GoogleConfigKey};
use object_store::http::HttpBuilder;
use object_store::local::LocalFileSystem;
use object_store::path::Path as StorePath;
use object_store::{ClientConfigKey, ClientOptions, ObjectStore, ObjectStoreExt as _, ObjectStoreScheme, RetryConfig};
use tokio::runtime::Runtime;
use url::Url;

use super::file::{END, SEALED, index_of, sealed_name};
use crate::{Error, Result};

/// How long a request may take, and the making of a connection.
const REQUEST: Duration = Duration::from_secs(300);
const CONNECTION: Duration = Duration::from_secs(5);

/// How often a request is repeated, and for how long.
const RETRIES: usize = 2;
const RETRYING: Duration = Duration::from_secs(60);

/// How many indexes are fetched at once.
const AT_ONCE: usize = 16;

/// Where several machines keep segments: each adds files, and none changes one.
///
/// If it fails once, the process goes on without it.
#[derive(Debug)]
pub struct Remote {
    url: String,
    store: Box<dyn ObjectStore>,
    folder: StorePath,
    runtime: Runtime,
    is_lost: AtomicBool,
}

impl Remote {
    /// A place for segments: `s3://bucket/folder`, `gs://bucket/folder`, `az://container/folder`, `https://…` of a WebDAV
    /// server, `file:///folder`, or the path of a folder. Nothing is asked of it yet. Credentials come from the environment,
    /// from where the tools of each cloud take them.
    ///
    /// # Errors
    /// [`Error::RemoteUrl`] if the URL names no such place.
    pub fn open(url: &str) -> Result<Self> {
        let wrong = |url: &str, reason: String| Error::RemoteUrl {
            url: url.to_owned(),
            reason,
        };
        let parsed = match url.contains("://") {
            true => Url::parse(url).map_err(|error| wrong(url, error.to_string()))?,
            false => {
                let folder = std::path::absolute(url).map_err(|error| wrong(url, error.to_string()))?;
                Url::from_file_path(folder).map_err(|()| wrong(url, "no path of a folder".to_owned()))?
            }
        };
        // What is shown has no password, and no signature.
        let mut shown = parsed.clone();
        let hidden = shown.set_username("").and_then(|()| shown.set_password(None));
        shown.set_query(None);
        let shown = match hidden {
            Ok(()) => shown.to_string(),
            Err(()) => url.to_owned(),
        };
        // What went wrong may name the URL.
        let wrong = |reason: String| wrong(&shown, reason.replace(parsed.as_str(), &shown));
        let (store, folder) = store(&parsed).map_err(|error| wrong(error.to_string()))?;
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        let runtime = runtime.map_err(|error| wrong(error.to_string()))?;
        Ok(Remote {
            url: shown,
            store,
            folder: folder.join("segments"),
            runtime,
            is_lost: AtomicBool::new(false),
        })
    }

    /// The URL that it was opened by, without credentials.
    pub fn url(&self) -> &str {
        &self.url
    }

    /// The segments and their sizes in bytes.
    ///
    /// # Errors
    /// [`Error::Remote`] if they cannot be listed.
    pub fn segments(&self) -> Result<Vec<(Digest, u64)>> {
        let listed = self.store.list(Some(&self.folder)).try_collect::<Vec<_>>();
        let listed = match self.runtime.block_on(listed) {
            // A folder that nobody has pushed to.
            Err(object_store::Error::NotFound { .. }) => Vec::new(),
            other => other.map_err(|error| self.failed(error))?,
        };
        let named = listed.into_iter().filter_map(|object| {
            let name = object.location.filename()?.strip_suffix(&format!(".{SEALED}"))?;
            Some((name.parse().ok()?, object.size))
        });
        Ok(named.collect())
    }

    /// The indexes of segments, given with their sizes. Of those that are no longer there, or damaged, none.
    pub(super) fn indexes(&self, segments: &[(Digest, u64)]) -> Result<Vec<(Digest, Vec<u8>)>> {
        let fetched = futures_util::stream::iter(segments)
            .map(|(segment, n_bytes)| async { (*segment, self.index(segment, *n_bytes).await) })
            .buffer_unordered(AT_ONCE)
            .collect::<Vec<_>>();
        let mut indexes = Vec::new();
        for (segment, index) in self.runtime.block_on(fetched) {
            match index {
                Ok(Some(index)) if Digest::of(&index) == segment => indexes.push((segment, index)),
                Ok(_) => self.lies(&segment),
                Err(object_store::Error::NotFound { .. }) => {}
                Err(error) => return Err(self.failed(error)),
            }
        }
        Ok(indexes)
    }

    async fn index(&self, segment: &Digest, n_bytes: u64) -> object_store::Result<Option<Vec<u8>>> {
        let path = self.path(segment);
        // Not all stores know the last bytes of a file whose size they are not told.
        let Some(end) = n_bytes.checked_sub(END as u64) else {
            return Ok(None);
        };
        let last = self.store.get_range(&path, end..n_bytes).await?;
        match index_of(&last, n_bytes).filter(|index| !index.is_empty()) {
            Some(index) => Ok(Some(self.store.get_range(&path, index).await?.to_vec())),
            None => Ok(None),
        }
    }

    /// Parts of a segment; none if it is no longer there.
    pub(super) fn ranges(
        &self,
        segment: &Digest,
        ranges: &[Range<u64>],
    ) -> Result<Option<Vec<impl AsRef<[u8]> + use<>>>> {
        let path = self.path(segment);
        self.unless_gone(self.runtime.block_on(self.store.get_ranges(&path, ranges)))
    }

    /// A whole segment, if it is still there.
    pub(super) fn get(&self, segment: &Digest) -> Result<Option<Vec<u8>>> {
        let path = self.path(segment);
        let got = async { Ok(self.store.get(&path).await?.bytes().await?.to_vec()) };
        self.unless_gone(self.runtime.block_on(got))
    }

    fn unless_gone<T>(&self, got: object_store::Result<T>) -> Result<Option<T>> {
        match got {
            Err(object_store::Error::NotFound { .. }) => Ok(None),
            other => other.map(Some).map_err(|error| self.failed(error)),
        }
    }

    /// Adds a segment.
    pub(super) fn put(&self, segment: &Digest, file: &Path) -> Result<u64> {
        let bytes = std::fs::read(file).map_err(Error::io(file))?;
        let n_bytes = bytes.len() as u64;
        let path = self.path(segment);
        let put = self.runtime.block_on(self.store.put(&path, bytes.into()));
        put.map(|_| n_bytes).map_err(|error| self.failed(error))
    }

    fn path(&self, segment: &Digest) -> StorePath {
        self.folder.clone().join(sealed_name(segment))
    }

    fn failed(&self, source: object_store::Error) -> Error {
        Error::Remote {
            url: self.url.clone(),
            source,
        }
    }

    pub(super) fn lies(&self, segment: &Digest) {
        tracing::warn!(
            "cache remote {}: segment {} does not hold what its name says; not used",
            self.url,
            segment.short()
        );
    }

    /// Goes on without it.
    pub(super) fn lose(&self, error: &Error) {
        if !self.is_lost.swap(true, Ordering::Relaxed) {
            tracing::warn!("{error}; going on without it");
        }
    }

    pub(super) fn is_lost(&self) -> bool {
        self.is_lost.load(Ordering::Relaxed)
    }
}

fn store(url: &Url) -> object_store::Result<(Box<dyn ObjectStore>, StorePath)> {
    let (scheme, path) = ObjectStoreScheme::parse(url)?;
    let retry = RetryConfig {
        max_retries: RETRIES,
        retry_timeout: RETRYING,
        ..RetryConfig::default()
    };
    let options = [
        (ClientConfigKey::Timeout, REQUEST),
        (ClientConfigKey::ConnectTimeout, CONNECTION),
    ]
    .map(|(key, time)| (key, format!("{} seconds", time.as_secs())));
    // TLS of reqwest, on the cryptography that downloads of weights use.
    let _ = rustls::crypto::ring::default_provider().install_default();
    // The builders of the three clouds have the same methods, and no trait.
    macro_rules! cloud {
        ($builder:ident, $key:ident) => {{
            let builder = $builder::from_env().with_url(url.as_str()).with_retry(retry);
            let builder = options.into_iter().fold(builder, |builder, (key, value)| {
                builder.with_config($key::Client(key), value)
            });
            Box::new(builder.build()?)
        }};
    }
    let store: Box<dyn ObjectStore> = match scheme {
        ObjectStoreScheme::Local => Box::new(LocalFileSystem::new()),
        ObjectStoreScheme::AmazonS3 => cloud!(AmazonS3Builder, AmazonS3ConfigKey),
        ObjectStoreScheme::GoogleCloudStorage => cloud!(GoogleCloudStorageBuilder, GoogleConfigKey),
        ObjectStoreScheme::MicrosoftAzure => cloud!(MicrosoftAzureBuilder, AzureConfigKey),
        ObjectStoreScheme::Http => {
            let options = options
                .into_iter()
                .fold(ClientOptions::new(), |all, (key, value)| all.with_config(key, value));
            let builder = HttpBuilder::new()
                .with_url(&url[..url::Position::BeforePath])
                .with_retry(retry)
                .with_client_options(options.with_allow_http(true));
            Box::new(builder.build()?)
        }
        _ => {
            return Err(object_store::Error::NotSupported {
                source: "expected s3, gs, az, https or file".into(),
            });
        }
    };
    Ok((store, path))
}
