use std::fs::{self, File};
use std::io::{Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel};
use std::thread;
use std::time::Duration;

use luthier_artifact::write_atomically;

use super::calibration;
use super::int8::Scales;
use super::parameters::{ParameterShape, Parameters};
use super::resnet50::bottlenecks;
use super::sha256::sha256_of_file;
use super::weights::{NamedWeights, WeightsFile, WeightsSource};
use crate::{Error, ExtractorConfig, InputSize, Observer, Result};

/// How long to wait for a server to be found, to be reached, and to answer.
const SERVER_TIMEOUT: Duration = Duration::from_secs(15);

/// How long a server may send nothing in the middle of a file. A slow link sends something.
const STALL_LIMIT: Duration = Duration::from_secs(30);

/// How often an interrupt is looked for while the server sends nothing.
const TICK: Duration = Duration::from_millis(100);

/// Where downloaded weights are kept.
#[derive(Clone, Debug)]
pub struct WeightsStore {
    folder: PathBuf,
    mirror: Option<String>,
    stall_limit: Duration,
    torch_home: Option<PathBuf>,
    hugging_face: Option<PathBuf>,
}

/// A file that is said to hold named weights.
struct Candidate<'a> {
    path: PathBuf,
    file: &'a WeightsFile,
    /// Whether the store itself has downloaded it.
    is_own: bool,
}

impl WeightsStore {
    /// A store in `folder`; `mirror` stands in for the servers' addresses, for example
    /// `https://mirror.example.org`.
    pub fn new(folder: PathBuf, mirror: Option<String>) -> Self {
        WeightsStore {
            folder,
            mirror,
            stall_limit: STALL_LIMIT,
            torch_home: None,
            hugging_face: None,
        }
    }

    /// The same store, which also takes what other programs have downloaded: PyTorch into `hub/checkpoints` below
    /// `torch_home` (`$TORCH_HOME`), and Hugging Face's libraries into `hugging_face` (`$HF_HOME/hub`).
    #[must_use]
    pub fn with_caches(self, torch_home: PathBuf, hugging_face: PathBuf) -> Self {
        WeightsStore {
            torch_home: Some(torch_home),
            hugging_face: Some(hugging_face),
            ..self
        }
    }

    /// The same store with another limit on how long a server may send nothing before the download
    /// fails; 30 s if it is not set.
    #[must_use]
    pub fn with_stall_limit(self, stall_limit: Duration) -> Self {
        WeightsStore { stall_limit, ..self }
    }

    pub(super) fn folder(&self) -> &Path {
        &self.folder
    }

    /// Where PyTorch puts what it downloads.
    pub(super) fn torch_checkpoints(&self) -> Option<PathBuf> {
        self.torch_home.as_ref().map(|home| home.join("hub/checkpoints"))
    }

    /// Where Hugging Face's libraries put it: a folder for each model.
    pub(super) fn hugging_face(&self) -> Option<&Path> {
        self.hugging_face.as_deref()
    }

    /// Where these weights are, or would be.
    pub fn path(&self, weights: &NamedWeights) -> PathBuf {
        let first = self.candidates(weights).into_iter().next();
        first.map_or_else(|| self.own_path(weights, &weights.hub), |candidate| candidate.path)
    }

    /// Whether these weights need not be downloaded.
    pub fn has(&self, weights: &NamedWeights) -> bool {
        !self.candidates(weights).is_empty()
    }

    /// The scales of int8 for weights with this SHA-256: measured once, then read from the store.
    ///
    /// # Errors
    /// Those of `measure`.
    pub(crate) fn scales(&self, sha256: &str, measure: impl FnOnce() -> Result<Scales>) -> Result<Scales> {
        // All that the scales depend on.
        let (version, libtorch) = (ExtractorConfig::VERSION, ExtractorConfig::LIBTORCH);
        let name = format!("{sha256}-{}-{version}-{libtorch}.json", calibration::VERSION);
        let path = self.folder.join("int8-scales").join(name);
        let n = Scales::signs(&bottlenecks(InputSize::default())).len();
        let is_sound =
            |scales: &Vec<f32>| scales.len() == n && scales.iter().all(|scale| scale.is_normal() && *scale > 0.0);
        let known = fs::read(&path)
            .ok()
            .and_then(|bytes| serde_json::from_slice(&bytes).ok());
        if let Some(known) = known.filter(is_sound) {
            return Ok(Scales(known));
        }
        let scales = measure()?;
        let bytes = serde_json::to_vec(&scales.0).expect("numbers always serialize");
        let kept = fs::create_dir_all(path.parent().expect("it is in a folder"));
        // Who cannot keep them measures them again.
        if let Err(error) = kept
            .map_err(Error::io(&path))
            .and_then(|()| Ok(write_atomically(&path, &bytes)?))
        {
            tracing::debug!("{error}: the scales of int8 are not kept");
        }
        Ok(scales)
    }

    fn own_path(&self, weights: &NamedWeights, file: &WeightsFile) -> PathBuf {
        self.folder.join(format!("{}.{}", weights.name, file.ending()))
    }

    /// The files that are there: those of the store first.
    fn candidates<'a>(&self, weights: &'a NamedWeights) -> Vec<Candidate<'a>> {
        let own = weights.files().map(|file| Candidate {
            path: self.own_path(weights, file),
            file,
            is_own: true,
        });
        let foreign = weights.files().flat_map(|file| {
            let paths = self.foreign_paths(file);
            paths.into_iter().map(move |path| Candidate {
                path,
                file,
                is_own: false,
            })
        });
        own.chain(foreign)
            .filter(|candidate| candidate.path.is_file())
            .collect()
    }

    /// Where other programs keep a file.
    fn foreign_paths(&self, file: &WeightsFile) -> Vec<PathBuf> {
        let torch = self.torch_checkpoints().map(|folder| folder.join(file.name()));
        let blob = self.hugging_face().and_then(|cache| {
            // owner/model/resolve/revision/file; a large file is named by its SHA-256.
            let (owner, rest) = file.path.split_once('/')?;
            let (model, _) = rest.split_once("/resolve/")?;
            Some(cache.join(format!("models--{owner}--{model}/blobs")).join(file.sha256))
        });
        torch.into_iter().chain(blob).collect()
    }

    /// Loads the parameters with these shapes, downloading them first if need be.
    ///
    /// # Errors
    /// Those of [`fetch`](Self::fetch) and [`Parameters::read`].
    pub(crate) fn load(
        &self,
        source: &WeightsSource,
        shapes: &[ParameterShape],
        observer: &dyn Observer,
    ) -> Result<Parameters> {
        let named = match source {
            WeightsSource::Named(named) => named,
            WeightsSource::File(path) => return Parameters::read(path, shapes, None),
            WeightsSource::Untrained => return Ok(Parameters::untrained(shapes)),
        };
        for Candidate { path, file, is_own } in self.candidates(named) {
            match Parameters::read(&path, shapes, Some(file.sha256)) {
                Err(Error::WeightsDigest { .. }) if !is_own => tell_of_other_bytes(&path),
                Err(error @ Error::File(_)) if !is_own => tracing::warn!("{error}; passed over"),
                read => {
                    if !is_own {
                        tracing::info!("weights {}: found in {}", named.name, path.display());
                    }
                    return read;
                }
            }
        }
        // What was fetched just now has been checked.
        Parameters::read(&self.fetch_anew(named, observer)?, shapes, None)
    }

    /// The path of these weights, which are downloaded unless they are there.
    ///
    /// A download goes on where an earlier one broke off. The file gets its name only when its
    /// SHA-256 is right. An interrupt ends the download within a second. If the first server cannot
    /// be reached, the second is asked, if there is one.
    ///
    /// # Errors
    /// [`Error::Download`] if the network fails or the server sends nothing for 30 s,
    /// [`Error::DownloadDigest`] if it sends other bytes, [`Error::WeightsDigest`] if the file that
    /// is there has other bytes, [`Error::File`] if a file cannot be read or written, and
    /// [`Error::Interrupted`].
    pub fn fetch(&self, weights: &NamedWeights, observer: &dyn Observer) -> Result<PathBuf> {
        for Candidate { path, file, is_own } in self.candidates(weights) {
            let found = match sha256_of_file(&path) {
                Err(error) if !is_own => {
                    tracing::warn!("{error}; passed over");
                    continue;
                }
                found => found?,
            };
            if found == file.sha256 {
                return Ok(path);
            }
            if is_own {
                return Err(Error::WeightsDigest {
                    path,
                    expected: file.sha256.to_owned(),
                    found,
                });
            }
            tell_of_other_bytes(&path);
        }
        self.fetch_anew(weights, observer)
    }

    /// The same if no file that is there has the right bytes.
    fn fetch_anew(&self, weights: &NamedWeights, observer: &dyn Observer) -> Result<PathBuf> {
        let first = self.fetch_file(weights, &weights.hub, observer);
        match (first, &weights.checkpoint) {
            (Err(error @ Error::Download { .. }), Some(other)) => {
                tracing::warn!("{error}: asking {} instead", self.url(other));
                // The first server's error is what the user should mend.
                self.fetch_file(weights, other, observer)
                    .map_err(|second| match second {
                        Error::Download { .. } => error,
                        second => second,
                    })
            }
            (first, _) => first,
        }
    }

    fn fetch_file(&self, weights: &NamedWeights, source: &WeightsFile, observer: &dyn Observer) -> Result<PathBuf> {
        let path = self.own_path(weights, source);
        fs::create_dir_all(&self.folder).map_err(Error::io(&self.folder))?;
        let partial = path.with_extension(format!("{}.part", source.ending()));
        // Held until the file has its name: two processes may want the same weights, and the second
        // waits here.
        let Some(mut file) = self.lock(&path, &partial)? else {
            return Ok(path);
        };
        self.download(weights, source, &partial, &mut file, observer)?;
        let found = sha256_of_file(&partial)?;
        if found != source.sha256 {
            // Nothing of a wrong file can be kept: the next attempt begins anew.
            fs::remove_file(&partial).map_err(Error::io(&partial))?;
            return Err(Error::DownloadDigest {
                name: weights.name.to_owned(),
                url: self.url(source),
                expected: source.sha256.to_owned(),
                found,
            });
        }
        fs::rename(&partial, &path).map_err(Error::io(&path))?;
        Ok(path)
    }

    /// The partial file, locked; `None` if another process finished the download meanwhile.
    fn lock(&self, path: &Path, partial: &Path) -> Result<Option<File>> {
        loop {
            let file = File::options()
                .create(true)
                .append(true)
                .open(partial)
                .map_err(Error::io(partial))?;
            file.lock().map_err(Error::io(partial))?;
            if path.is_file() {
                return Ok(None);
            }
            // The process that held the lock may have removed the file meanwhile.
            if partial.is_file() {
                return Ok(Some(file));
            }
        }
    }

    fn url(&self, file: &WeightsFile) -> String {
        let server = self.mirror.as_deref().unwrap_or(file.server).trim_end_matches('/');
        format!("{server}/{}", file.path)
    }

    /// Appends to the partial file what it lacks.
    fn download(
        &self,
        weights: &NamedWeights,
        source: &WeightsFile,
        partial: &Path,
        file: &mut File,
        observer: &dyn Observer,
    ) -> Result<()> {
        let have = file.seek(SeekFrom::End(0)).map_err(Error::io(partial))?;
        let url = self.url(source);
        let fail = |message: String| Error::Download {
            name: weights.name.to_owned(),
            url: url.clone(),
            message,
        };
        let news = request(url.clone(), have, self.stall_limit).map_err(Error::io(partial))?;
        let (done, left) = match next(&news, observer)? {
            Some(Ok(News::Answer { is_rest: true, left })) => (have, left),
            Some(Ok(News::Answer { is_rest: false, left })) => {
                file.set_len(0).map_err(Error::io(partial))?;
                (0, left)
            }
            // The partial file is the whole already.
            None | Some(Ok(News::Bytes(_))) => return Ok(()),
            Some(Err(message)) => return Err(fail(message)),
        };
        // A total of 0 means that nobody knows it.
        let total = left.map_or(0, |left| done + left);
        let task = observer.task(&format!("bytes of {}", weights.name), total);
        task.advance(done);
        let mut got = 0;
        let so_far = |got: u64| match left {
            Some(left) => format!("after {} of {} bytes", done + got, done + left),
            None => format!("after {} bytes", done + got),
        };
        while let Some(bytes) = next(&news, observer)? {
            let bytes = match bytes {
                Ok(News::Bytes(bytes)) => bytes,
                Ok(News::Answer { .. }) => unreachable!("a server answers once"),
                Err(message) => return Err(fail(format!("{message}, {}", so_far(got)))),
            };
            file.write_all(&bytes).map_err(Error::io(partial))?;
            task.advance(bytes.len() as u64);
            got += bytes.len() as u64;
        }
        drop(task);
        if left.is_some_and(|left| got < left) {
            return Err(fail(format!("connection closed {}", so_far(got))));
        }
        file.sync_all().map_err(Error::io(partial))
    }
}

fn tell_of_other_bytes(path: &Path) {
    tracing::warn!("{}: other bytes than these weights have; passed over", path.display());
}

/// What a server sends.
enum News {
    Answer {
        /// Whether the bytes that follow are those from the place that was asked for, or all.
        is_rest: bool,
        /// How many bytes follow, if the server says so.
        left: Option<u64>,
    },
    Bytes(Vec<u8>),
}

/// News, or what went wrong.
type Received = std::result::Result<News, String>;

/// Asks for a file from byte `from` on. The answer comes first, then the bytes, or a message of
/// what went wrong. Nothing comes if the file ends at `from`.
///
/// A thread of its own waits for the server, so that its caller can see an interrupt meanwhile. The
/// thread ends when the server has sent nothing for `stall_limit`, or when nobody receives any
/// more.
fn request(url: String, from: u64, stall_limit: Duration) -> std::io::Result<Receiver<Received>> {
    let (send, receive) = sync_channel(4);
    thread::Builder::new().name("download".to_owned()).spawn(move || {
        if let Err(message) = send_news(&url, from, stall_limit, &send) {
            // Without a receiver the download was interrupted.
            send.send(Err(message)).ok();
        }
    })?;
    Ok(receive)
}

fn send_news(
    url: &str,
    from: u64,
    stall_limit: Duration,
    send: &SyncSender<Received>,
) -> std::result::Result<(), String> {
    let timeout = Some(SERVER_TIMEOUT);
    let agent: ureq::Agent = ureq::Agent::config_builder()
        .timeout_resolve(timeout)
        .timeout_connect(timeout)
        .timeout_recv_response(timeout)
        .timeout_per_read(Some(stall_limit))
        .build()
        .into();
    let mut request = agent.get(url);
    if from > 0 {
        request = request.header("Range", format!("bytes={from}-"));
    }
    let mut response = match request.call() {
        Ok(response) => response,
        Err(ureq::Error::StatusCode(416)) => return Ok(()),
        Err(error) => return Err(message(&error, stall_limit)),
    };
    let answer = News::Answer {
        is_rest: response.status() == 206,
        left: response.body().content_length(),
    };
    let mut is_wanted = send.send(Ok(answer)).is_ok();
    let mut body = response.body_mut().as_reader();
    let mut buffer = vec![0; 1 << 16];
    while is_wanted {
        match body.read(&mut buffer) {
            Ok(0) => break,
            Ok(n) => is_wanted = send.send(Ok(News::Bytes(buffer[..n].to_vec()))).is_ok(),
            Err(error) => return Err(message(&error.into(), stall_limit)),
        }
    }
    Ok(())
}

fn message(error: &ureq::Error, stall_limit: Duration) -> String {
    match error {
        ureq::Error::Timeout(ureq::Timeout::PerRead) => {
            format!("the server sent nothing for {} s", stall_limit.as_secs_f64())
        }
        error => error.to_string(),
    }
}

/// Waits for news; `None` after the last.
///
/// # Errors
/// [`Error::Interrupted`].
fn next(news: &Receiver<Received>, observer: &dyn Observer) -> Result<Option<Received>> {
    loop {
        if observer.is_interrupted() {
            return Err(Error::Interrupted);
        }
        match news.recv_timeout(TICK) {
            Ok(news) => return Ok(Some(news)),
            Err(RecvTimeoutError::Disconnected) => return Ok(None),
            Err(RecvTimeoutError::Timeout) => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn scales_are_measured_once_for_each_weights_file_and_again_if_they_are_damaged() {
        let folder = tempfile::tempdir().unwrap();
        let store = WeightsStore::new(folder.path().to_owned(), None);
        let n = Scales::signs(&bottlenecks(InputSize::default())).len();
        let scales = |sha256: &str, value: f32| store.scales(sha256, || Ok(Scales(vec![value; n]))).unwrap().0[0];
        assert_eq!(scales("one", 0.1), 0.1);
        assert_eq!(scales("one", 0.2), 0.1, "as they were");
        assert_eq!(scales("other", 0.3), 0.3);
        for file in luthier_artifact::entries(&folder.path().join("int8-scales")).unwrap() {
            fs::write(file, "[1.0, 0.0]").unwrap();
        }
        assert_eq!(scales("one", 0.4), 0.4);
    }
}
