use std::collections::BTreeMap;
use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};
use std::time::SystemTime;

use luthier_artifact::FileStat;
use sha2::{Digest as _, Sha256};

use crate::{Error, Result};

/// SHA-256 of these bytes, as 64 hexadecimal digits.
pub(super) fn sha256_of(bytes: &[u8]) -> String {
    hex(&Sha256::digest(bytes))
}

/// SHA-256 of a file, as 64 hexadecimal digits.
///
/// # Errors
/// [`Error::File`] if the file cannot be read.
pub(super) fn sha256_of_file(path: &Path) -> Result<String> {
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

/// The same, and a file that a call before has read is not read again while its stat stays the same: of one command, the
/// key, the model and int8 all ask for the digest of the weights.
///
/// # Errors
/// [`Error::File`] if the file cannot be read.
pub(super) fn sha256_of_same_file(path: &Path) -> Result<String> {
    static KNOWN: Mutex<BTreeMap<PathBuf, (FileStat, String)>> = Mutex::new(BTreeMap::new());
    let known = || KNOWN.lock().unwrap_or_else(PoisonError::into_inner);
    let now = SystemTime::now();
    let stat = FileStat::new(&path.metadata().map_err(Error::io(path))?);
    if let Some((of_known, sha256)) = known().get(path)
        && *of_known == stat
    {
        return Ok(sha256.clone());
    }
    let sha256 = sha256_of_file(path)?;
    // A file that has just been written may be written again without another stat.
    if stat.is_settled(now) {
        known().insert(path.to_owned(), (stat, sha256.clone()));
    }
    Ok(sha256)
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
