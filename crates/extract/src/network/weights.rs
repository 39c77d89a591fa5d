use std::fs::{self, File};
use std::io::{Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::time::Duration;

use rayon::prelude::*;
use safetensors::{Dtype, SafeTensors};
use sha2::{Digest as _, Sha256};
use tch::{Kind, Tensor};

use super::resnet50::{ParameterShape, parameters};
use crate::{Error, Observer, Result};

/// Weights that are known by name.
#[derive(Debug, PartialEq, Eq)]
pub struct NamedWeights {
    /// The name, as `--weights` takes it.
    pub name: &'static str,
    /// What they are, where they come from, and their licence.
    pub description: &'static str,
    /// The path of the file on the hub that serves it.
    path: &'static str,
    /// SHA-256 of the file, 64 hexadecimal digits.
    pub sha256: &'static str,
}

/// How long to wait for a server to be found, to be reached, and to answer.
const SERVER_TIMEOUT: Duration = Duration::from_secs(15);

/// The hub that serves the weights, unless a mirror is set.
const HUB: &str = "https://huggingface.co";

impl NamedWeights {
    /// Weights that the hub serves at `path` and whose SHA-256 is pinned.
    pub const fn new(name: &'static str, description: &'static str, path: &'static str, sha256: &'static str) -> Self {
        NamedWeights {
            name,
            description,
            path,
            sha256,
        }
    }

    /// All of them; the first is the default.
    pub const ALL: [NamedWeights; 2] = [
        NamedWeights {
            name: "resnet50-imagenet1k-v1",
            description: "torchvision's IMAGENET1K_V1, 76.1 % top-1, BSD-3-Clause, 102 MB",
            path: "timm/resnet50.tv_in1k/resolve/78f3ecfdb38e06d9b8397f662e7ab8fee96026fa/model.safetensors",
            sha256: "5d061a3c593d795bfe682d9b152bafbcf550579873492def3515b46db1189888",
        },
        NamedWeights {
            name: "resnet50-imagenet1k-a1",
            description: "timm's \"ResNet strikes back\" recipe A1, 80.2 % top-1, Apache-2.0, 102 MB",
            path: "timm/resnet50.a1_in1k/resolve/main/model.safetensors",
            sha256: "773525d5821de224f8f30c33377b7a795d7863e08522698200d3217d3f2a41bb",
        },
    ];
}

static NAMED: [NamedWeights; 2] = NamedWeights::ALL;

/// Which weights the network gets.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum WeightsSource {
    /// Known weights, downloaded when they are first needed.
    Named(&'static NamedWeights),
    /// A safetensors file with torchvision's tensor names.
    File(PathBuf),
    /// Seeded He initialisation: no training, the same numbers on every machine.
    Untrained,
}

impl WeightsSource {
    /// Reads a name, the path of a file, or `untrained`.
    ///
    /// # Errors
    /// [`Error::UnknownWeights`] if it is none of them.
    pub fn parse(text: &str) -> Result<Self> {
        if text == "untrained" {
            return Ok(WeightsSource::Untrained);
        }
        if let Some(named) = NAMED.iter().find(|named| named.name == text) {
            return Ok(WeightsSource::Named(named));
        }
        if Path::new(text).is_file() {
            return Ok(WeightsSource::File(text.into()));
        }
        let known: Vec<_> = NAMED.iter().map(|named| named.name).collect();
        Err(Error::UnknownWeights {
            name: text.to_owned(),
            known: known.join(", "),
        })
    }

    /// Known or untrained weights with this SHA-256, wherever they lie.
    pub fn known(sha256: &str) -> Option<Self> {
        let named = NAMED
            .iter()
            .find(|named| named.sha256 == sha256)
            .map(WeightsSource::Named);
        named.or_else(|| (untrained_sha256() == sha256).then_some(WeightsSource::Untrained))
    }

    /// A name for people: the known name, the file's name without its ending, or `untrained`.
    pub fn name(&self) -> String {
        match self {
            WeightsSource::Named(named) => named.name.to_owned(),
            WeightsSource::File(path) => path.file_stem().unwrap_or_default().to_string_lossy().into_owned(),
            WeightsSource::Untrained => "untrained".to_owned(),
        }
    }

    /// SHA-256 of the weights, as 64 hexadecimal digits. For [`Untrained`](WeightsSource::Untrained), of their recipe.
    ///
    /// # Errors
    /// [`Error::Io`] if the file cannot be read.
    pub fn sha256(&self) -> Result<String> {
        match self {
            WeightsSource::Named(named) => Ok(named.sha256.to_owned()),
            WeightsSource::File(path) => sha256_of(path),
            WeightsSource::Untrained => Ok(untrained_sha256()),
        }
    }

    /// Loads the parameters of the network, downloading them first if need be.
    ///
    /// # Errors
    /// [`Error::Download`], [`Error::WeightsDigest`], [`Error::Weights`] or [`Error::Io`], naming the file.
    pub(crate) fn load(&self, store: &WeightsStore, observer: &dyn Observer) -> Result<Parameters> {
        match self {
            WeightsSource::Named(named) if store.has(named) => Parameters::read(&store.path(named), Some(named.sha256)),
            WeightsSource::Named(named) => Parameters::read(&store.fetch(named, observer)?, None),
            WeightsSource::File(path) => Parameters::read(path, None),
            WeightsSource::Untrained => Ok(untrained::initialise()),
        }
    }
}

/// The parameters of ResNet-50 in the order of [`parameters`].
pub(crate) struct Parameters(Vec<(String, Vec<f32>)>);

impl Parameters {
    /// The values of the parameter with this name, as torchvision calls it, in C order.
    pub(crate) fn get(&self, name: &str) -> &[f32] {
        let (_, values) = self
            .0
            .iter()
            .find(|(known, _)| known == name)
            .expect("every parameter was checked at load");
        values
    }

    /// Reads a file, whose SHA-256 must be `expected` if that is given.
    fn read(path: &Path, expected: Option<&str>) -> Result<Self> {
        let bytes = fs::read(path).map_err(Error::io(path))?;
        // Hashing takes as long as all else: beside it.
        let (found, parameters) = rayon::join(
            || expected.map(|_| hex(&Sha256::digest(&bytes))),
            || Parameters::parse(path, &bytes),
        );
        match (expected, found) {
            (Some(expected), Some(found)) if found != expected => Err(Error::WeightsDigest {
                path: path.to_owned(),
                expected: expected.to_owned(),
                found,
            }),
            _ => parameters,
        }
    }

    fn parse(path: &Path, bytes: &[u8]) -> Result<Self> {
        let wrong = |found: String| Error::Weights {
            path: path.to_owned(),
            found,
        };
        let file = SafeTensors::deserialize(bytes).map_err(|error| wrong(error.to_string()))?;
        let expected = parameters();
        let missing: Vec<_> = expected
            .iter()
            .map(|known| &known.name)
            .filter(|name| file.tensor(name).is_err())
            .collect();
        if let Some(first) = missing.first() {
            return Err(wrong(format!(
                "{} tensors missing, the first is {first}",
                missing.len()
            )));
        }
        // A deeper network has all the tensors of ResNet-50, and more.
        let is_expected = |name: &str| {
            expected.iter().any(|known| known.name == name)
                || name.starts_with("fc.")
                || name.ends_with("num_batches_tracked")
        };
        if let Some(name) = file.names().into_iter().filter(|name| !is_expected(name)).min() {
            return Err(wrong(format!("{name}, which ResNet-50 lacks")));
        }
        let read = |ParameterShape { name, shape }: ParameterShape| {
            let view = file.tensor(&name).expect("no tensor is missing");
            if view
                .shape()
                .iter()
                .map(|&length| length as i64)
                .ne(shape.iter().copied())
            {
                return Err(wrong(format!(
                    "{name} of shape {:?} instead of {shape:?}",
                    view.shape()
                )));
            }
            let values = match view.dtype() {
                Dtype::F32 => (view.data().as_chunks().0.iter())
                    .map(|bytes| f32::from_le_bytes(*bytes))
                    .collect(),
                Dtype::F16 => widened(view.data(), Kind::Half)?,
                Dtype::BF16 => widened(view.data(), Kind::BFloat16)?,
                other => return Err(wrong(format!("{name} of type {other:?} instead of F32, F16 or BF16"))),
            };
            if !values.iter().all(|value| value.is_finite()) {
                return Err(wrong(format!("{name} with values that are not finite")));
            }
            Ok((name, values))
        };
        expected
            .into_par_iter()
            .map(read)
            .collect::<Result<_>>()
            .map(Parameters)
    }
}

/// Values of a 16-bit format in single precision.
fn widened(bytes: &[u8], kind: Kind) -> Result<Vec<f32>> {
    let values = Tensor::f_from_data_size(bytes, &[(bytes.len() / 2) as i64], kind)?;
    Ok(values.f_to_kind(Kind::Float)?.try_into()?)
}

fn untrained_sha256() -> String {
    hex(&Sha256::digest(untrained::RECIPE))
}

/// Weights without training.
mod untrained {
    use super::{ParameterShape, Parameters, parameters};

    /// Names what [`initialise`] does: a change there needs a change here.
    pub(super) const RECIPE: &str =
        "ResNet-50, He uniform (fan in), splitmix64 seeded 0, last batch norm of a block 0.5, version 1";

    /// Convolutions get uniform numbers of variance 2 / fan-in (He et al., 2015, arXiv:1502.01852), batch norms are the
    /// identity, except that the last of each block halves, so that sixteen residual sums do not overflow fp16.
    ///
    /// Only integer arithmetic, one multiplication and one conversion: the same bits on every machine.
    pub(super) fn initialise() -> Parameters {
        let mut state = 0_u64;
        let mut uniform = || {
            // splitmix64: Steele, Lea and Flood, "Fast splittable pseudorandom number generators", 2014.
            state = state.wrapping_add(0x9E37_79B9_7F4A_7C15);
            let mut z = state;
            z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
            z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
            // The upper 24 bits, as an odd multiple of 2⁻²⁴ in (−1, 1).
            (((z ^ (z >> 31)) >> 40) as f32 * 2.0 + 1.0) / 16_777_216.0 - 1.0
        };
        let make = |ParameterShape { name, shape }: ParameterShape| {
            let n: i64 = shape.iter().product();
            let values: Vec<f32> = match name.rsplit('.').next() {
                Some("weight") if shape.len() == 4 => {
                    let bound = (6.0 / (n / shape[0]) as f32).sqrt();
                    (0..n).map(|_| bound * uniform()).collect()
                }
                Some("weight") if name.contains("bn3") => vec![0.5; n as usize],
                Some("weight" | "running_var") => vec![1.0; n as usize],
                _ => vec![0.0; n as usize],
            };
            (name, values)
        };
        Parameters(parameters().into_iter().map(make).collect())
    }
}

/// Where downloaded weights are kept.
#[derive(Clone, Debug)]
pub struct WeightsStore {
    folder: PathBuf,
    mirror: Option<String>,
}

impl WeightsStore {
    /// A store in `folder`; `mirror` stands in for the hub's address, for example `https://mirror.example.org`.
    pub fn new(folder: PathBuf, mirror: Option<String>) -> Self {
        WeightsStore { folder, mirror }
    }

    /// Where these weights are, or would be.
    pub fn path(&self, weights: &NamedWeights) -> PathBuf {
        self.folder.join(format!("{}.safetensors", weights.name))
    }

    /// Whether these weights need not be downloaded.
    pub fn has(&self, weights: &NamedWeights) -> bool {
        self.path(weights).is_file()
    }

    /// The path of these weights, which are downloaded unless they are there.
    ///
    /// What an earlier attempt left is continued. The file gets its name only when its SHA-256 is right.
    ///
    /// # Errors
    /// [`Error::Download`] if the network fails, [`Error::WeightsDigest`] if the bytes are others,
    /// [`Error::Io`] if they cannot be written.
    pub fn fetch(&self, weights: &NamedWeights, observer: &dyn Observer) -> Result<PathBuf> {
        let path = self.path(weights);
        if path.is_file() {
            check_sha256(&path, weights.sha256)?;
            return Ok(path);
        }
        fs::create_dir_all(&self.folder).map_err(Error::io(&self.folder))?;
        let partial = path.with_extension("safetensors.part");
        // Held until the file has its name: two processes may want the same weights, and the second waits here.
        let Some(mut file) = self.lock(weights, &partial)? else {
            return Ok(path);
        };
        self.download(weights, &partial, &mut file, observer)?;
        // Of a wrong file nothing can be kept: the next attempt begins anew.
        if let Err(error) = check_sha256(&partial, weights.sha256) {
            fs::remove_file(&partial).map_err(Error::io(&partial))?;
            return Err(error);
        }
        fs::rename(&partial, &path).map_err(Error::io(&path))?;
        Ok(path)
    }

    /// The partial file, locked; `None` if another process finished the download meanwhile.
    fn lock(&self, weights: &NamedWeights, partial: &Path) -> Result<Option<File>> {
        loop {
            let file = File::options()
                .create(true)
                .append(true)
                .open(partial)
                .map_err(Error::io(partial))?;
            file.lock().map_err(Error::io(partial))?;
            if self.has(weights) {
                return Ok(None);
            }
            // Whoever held the lock may have removed the file that was waited for.
            if partial.is_file() {
                return Ok(Some(file));
            }
        }
    }

    fn download(&self, weights: &NamedWeights, partial: &Path, file: &mut File, observer: &dyn Observer) -> Result<()> {
        let hub = self.mirror.as_deref().unwrap_or(HUB).trim_end_matches('/');
        let url = format!("{hub}/{}", weights.path);
        let fail = |message: String| Error::Download {
            name: weights.name.to_owned(),
            url: url.clone(),
            message,
        };
        let have = file.seek(SeekFrom::End(0)).map_err(Error::io(partial))?;
        let timeout = Some(SERVER_TIMEOUT);
        let agent: ureq::Agent = ureq::Agent::config_builder()
            .timeout_resolve(timeout)
            .timeout_connect(timeout)
            .timeout_recv_response(timeout)
            .build()
            .into();
        let mut request = agent.get(&url);
        if have > 0 {
            request = request.header("Range", format!("bytes={have}-"));
        }
        let mut response = match request.call() {
            Ok(response) => response,
            // The partial file is the whole already.
            Err(ureq::Error::StatusCode(416)) => return Ok(()),
            Err(error) => return Err(fail(error.to_string())),
        };
        let done = if response.status() == 206 {
            have
        } else {
            file.set_len(0).map_err(Error::io(partial))?;
            0
        };
        let left = response.body().content_length();
        // A total of 0 is one that nobody knows.
        let total = left.map_or(0, |left| done + left);
        let task = observer.task(&format!("bytes of {}", weights.name), total);
        task.advance(done);
        let mut body = response.body_mut().as_reader();
        let mut buffer = vec![0; 1 << 16];
        let mut got = 0;
        loop {
            let n = body.read(&mut buffer).map_err(|error| fail(error.to_string()))?;
            if n == 0 {
                break;
            }
            file.write_all(&buffer[..n]).map_err(Error::io(partial))?;
            task.advance(n as u64);
            got += n as u64;
            if observer.is_interrupted() {
                return Err(Error::Interrupted);
            }
        }
        drop(task);
        if left.is_some_and(|left| got < left) {
            return Err(fail(format!(
                "connection closed after {} of {} bytes",
                done + got,
                done + left.unwrap_or(0)
            )));
        }
        file.sync_all().map_err(Error::io(partial))
    }
}

fn check_sha256(path: &Path, expected: &str) -> Result<()> {
    let found = sha256_of(path)?;
    if found == expected {
        return Ok(());
    }
    Err(Error::WeightsDigest {
        path: path.to_owned(),
        expected: expected.to_owned(),
        found,
    })
}

fn sha256_of(path: &Path) -> Result<String> {
    let mut file = File::open(path).map_err(Error::io(path))?;
    let mut hasher = Sha256::new();
    let mut buffer = vec![0; 1 << 20];
    loop {
        match file.read(&mut buffer).map_err(Error::io(path))? {
            0 => return Ok(hex(&hasher.finalize())),
            n => hasher.update(&buffer[..n]),
        }
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
