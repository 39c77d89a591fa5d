//! What keeps the cache small and sound: `stats`, `verify`, `gc`.

use std::collections::HashSet;
use std::fs;

use rusqlite::params;
use serde::Serialize;

use super::objects::remove;
use super::{Cache, index};
use crate::{Content, Digest, Manifest, Result};

/// What the cache holds.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct CacheStats {
    /// Stored artifacts.
    pub objects: usize,
    /// Their size in bytes.
    pub object_bytes: u64,
    /// Images with stored features, counted once per extractor.
    pub features: u64,
    /// Recorded executions of stages.
    pub executions: u64,
    /// Files whose digest is known by their stat.
    pub files: u64,
    /// Recorded runs.
    pub runs: u64,
    /// The size of the index in bytes.
    pub index_bytes: u64,
}

/// What [`Cache::verify`] found and forgot.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct VerifyReport {
    /// Artifacts that were read.
    pub objects: usize,
    /// Feature vectors that were read.
    pub features: u64,
    /// Artifacts that did not match their digest, now removed.
    pub damaged_objects: usize,
    /// Vectors that did not match their digest, now removed.
    pub damaged_features: u64,
    /// Executions whose record or outputs were damaged or gone, now forgotten.
    pub forgotten_executions: u64,
}

/// What [`Cache::gc`] removed, or would remove.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct GcReport {
    /// Artifacts.
    pub objects: usize,
    /// Their size in bytes.
    pub object_bytes: u64,
    /// Rows of features.
    pub features: u64,
    /// Executions.
    pub executions: u64,
    /// Runs of the projects' history.
    pub runs: u64,
}

impl Cache {
    /// Counts what is stored.
    ///
    /// # Errors
    /// [`Error::Io`](crate::Error::Io) or [`Error::Index`](crate::Error::Index) if it cannot be read.
    pub fn stats(&self) -> Result<CacheStats> {
        let objects = self.objects.list()?;
        let count = |table: &str| {
            self.index.with(|connection| {
                connection.query_row(&format!("SELECT count(*) FROM {table}"), [], |row| row.get::<_, i64>(0))
            })
        };
        let index_bytes = ["index.sqlite", "index.sqlite-wal"]
            .map(|name| fs::metadata(self.folder.join(name)).map_or(0, |metadata| metadata.len()));
        Ok(CacheStats {
            objects: objects.len(),
            object_bytes: objects.iter().map(|object| object.bytes).sum(),
            features: count("feature")? as u64,
            executions: count("execution")? as u64,
            files: count("file")? as u64,
            runs: count("run")? as u64,
            index_bytes: index_bytes.iter().sum(),
        })
    }

    /// Reads everything against its digest or checksum, and forgets what does not agree.
    ///
    /// # Errors
    /// [`Error::Io`](crate::Error::Io) or [`Error::Index`](crate::Error::Index) if something cannot be read at all.
    pub fn verify(&self) -> Result<VerifyReport> {
        let mut report = VerifyReport::default();
        for object in self.objects.list()? {
            report.objects += 1;
            report.damaged_objects += usize::from(self.objects.get(&object.digest)?.is_none());
        }
        let (n_vectors, damaged) = self.index.damaged_vectors()?;
        report.features = n_vectors;
        report.damaged_features = damaged.len() as u64;
        self.index.forget_vectors(&damaged)?;
        for key in self.keys()? {
            if self.execution(&key)?.is_none() {
                report.forgotten_executions += self
                    .index
                    .write(|connection| connection.execute("DELETE FROM execution WHERE key = ?", [key.as_bytes()]))?
                    as u64;
            }
        }
        Ok(report)
    }

    /// Removes what the last `keep_runs` runs of every project did not use. With `dry_run`, only counts it.
    ///
    /// # Errors
    /// [`Error::InUse`](crate::Error::InUse) if another process has the cache open: it may be about to name what it stored.
    /// [`Error::Io`](crate::Error::Io) or [`Error::Index`](crate::Error::Index) if something cannot be read or removed.
    pub fn gc(&self, keep_runs: usize, dry_run: DryRun) -> Result<GcReport> {
        let _alone = self.lock.exclusive()?;
        let kept_keys = self.kept_keys(keep_runs)?;
        let mut kept_objects = HashSet::new();
        let mut kept_images = HashSet::new();
        let mut kept_extractors = HashSet::new();
        for key in &kept_keys {
            let Some(execution) = self.execution(key)? else {
                continue;
            };
            let extractors = execution.key.get("extractor").unwrap_or_default();
            kept_extractors.extend(extractors.split(' ').map(str::to_owned));
            for output in execution.outputs {
                kept_objects.insert(output.digest);
                if execution.key.stage == "scan"
                    && let Some(manifest) = self.get::<Manifest>(&output.digest)?
                {
                    kept_images.extend(manifest.entries.iter().filter_map(|entry| match entry.content {
                        Content::Digest(digest) => Some(digest),
                        Content::Unreadable(_) => None,
                    }));
                }
            }
        }
        let mut report = GcReport::default();
        for object in self.objects.list()? {
            if !kept_objects.contains(&object.digest) {
                report.objects += 1;
                report.object_bytes += object.bytes;
                if dry_run == DryRun::No {
                    remove(&object.path)?;
                }
            }
        }
        let keep_runs = keep_runs as i64;
        self.index.with(|connection| {
            let transaction = connection.transaction()?;
            for (extractor, image) in transaction
                .prepare("SELECT extractor, image FROM feature")?
                .query_map([], |row| Ok((index::digest(row, 0)?, index::digest(row, 1)?)))?
                .collect::<rusqlite::Result<Vec<_>>>()?
            {
                if !kept_images.contains(&image) || !kept_extractors.contains(&extractor.to_string()) {
                    report.features += transaction
                        .prepare_cached("DELETE FROM feature WHERE extractor = ? AND image = ?")?
                        .execute([extractor.as_bytes(), image.as_bytes()])?
                        as u64;
                }
            }
            transaction.execute(
                "DELETE FROM vector WHERE digest NOT IN (SELECT vector FROM feature)",
                [],
            )?;
            for key in transaction
                .prepare("SELECT key FROM execution")?
                .query_map([], |row| index::digest(row, 0))?
                .collect::<rusqlite::Result<Vec<_>>>()?
            {
                if !kept_keys.contains(&key) {
                    report.executions +=
                        transaction.execute("DELETE FROM execution WHERE key = ?", [key.as_bytes()])? as u64;
                }
            }
            report.runs = transaction.execute(
                "DELETE FROM run WHERE id IN (SELECT id FROM (
                     SELECT id, row_number() OVER (PARTITION BY project ORDER BY id DESC) AS age FROM run
                 ) WHERE age > ?)",
                params![keep_runs],
            )? as u64;
            match dry_run {
                DryRun::Yes => transaction.rollback(),
                DryRun::No => {
                    transaction.commit()?;
                    connection.execute_batch("VACUUM")
                }
            }
        })?;
        Ok(report)
    }

    fn keys(&self) -> Result<Vec<Digest>> {
        self.index.with(|connection| {
            connection
                .prepare("SELECT key FROM execution")?
                .query_map([], |row| index::digest(row, 0))?
                .collect()
        })
    }

    fn kept_keys(&self, keep_runs: usize) -> Result<HashSet<Digest>> {
        self.index.with(|connection| {
            connection
                .prepare(
                    "SELECT DISTINCT key FROM run_stage JOIN (
                         SELECT id, row_number() OVER (PARTITION BY project ORDER BY id DESC) AS age FROM run
                     ) ON run = id WHERE age <= ?",
                )?
                .query_map([keep_runs as i64], |row| index::digest(row, 0))?
                .collect()
        })
    }
}

/// Whether [`Cache::gc`] only counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DryRun {
    /// Count, remove nothing.
    Yes,
    /// Remove.
    No,
}
