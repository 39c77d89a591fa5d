use std::fs::{self, Metadata};
use std::io;
use std::path::Path;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Serialize};

/// A file that changed less than this long before it was read may change again without a new
/// modification time. File systems count time in ticks of up to two seconds (FAT).
const MTIME_TICK: Duration = Duration::from_secs(2);

/// What tells whether a file is still the one that was read, without reading it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FileStat {
    /// Length in bytes.
    pub size: u64,
    /// Modification time in nanoseconds since 1970, negative before.
    pub mtime_ns: i64,
    /// Inode number; 0 where the system has none.
    pub inode: u64,
}

impl FileStat {
    /// The stat of a file with this metadata.
    pub fn new(metadata: &Metadata) -> Self {
        let mtime_ns = metadata
            .modified()
            .map_or(0, |time| match time.duration_since(UNIX_EPOCH) {
                Ok(after) => after.as_nanos() as i64,
                Err(before) => -(before.duration().as_nanos() as i64),
            });
        #[cfg(unix)]
        let inode = std::os::unix::fs::MetadataExt::ino(metadata);
        #[cfg(not(unix))]
        let inode = 0;
        FileStat {
            size: metadata.len(),
            mtime_ns,
            inode,
        }
    }

    /// The stat of the file at `path`, links followed.
    ///
    /// # Errors
    /// Whatever the system says.
    pub fn of(path: &Path) -> io::Result<Self> {
        fs::metadata(path).map(|metadata| FileStat::new(&metadata))
    }

    /// Whether the file had not changed shortly before `now`, so that any later change gives it
    /// another modification time.
    pub fn is_settled(&self, now: SystemTime) -> bool {
        let tick = now - MTIME_TICK;
        let tick_ns = tick
            .duration_since(UNIX_EPOCH)
            .map_or(0, |since| since.as_nanos() as i64);
        self.mtime_ns < tick_ns
    }
}
