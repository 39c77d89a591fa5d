use luthier_artifact::Digest;
use serde::{Deserialize, Serialize};

/// The key that a run of a project used for a stage.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RunStage {
    /// The stage's name.
    pub stage: String,
    /// The digest of its key.
    pub key: Digest,
}

/// What the cache spared a run.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Reuse {
    /// Stages whose result was there.
    pub stages_reused: usize,
    /// Stages that ran.
    pub stages_run: usize,
    /// Images whose features were there.
    pub images_reused: usize,
    /// Images that went through the network.
    pub images_embedded: usize,
}

/// Whether a run came to its end.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum RunState {
    /// A stage began to run. Either the run goes on, or it was interrupted.
    Begun,
    /// Every stage that was asked for has its result.
    Finished,
}

/// A run of a project that came to its end.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FinishedRun {
    /// A number that no other run of this cache has. Later runs have larger ones.
    pub id: i64,
    /// When it was last used, in seconds since 1970.
    pub time: u64,
    /// The keys that it used, in the order of the stages.
    pub stages: Vec<RunStage>,
}

/// A run of a project.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Run {
    /// 0 before it is stored.
    pub(super) id: i64,
    pub(super) project: String,
    /// When it was last used, in seconds since 1970.
    pub(super) time: u64,
    pub(super) state: RunState,
    pub(super) stages: Vec<RunStage>,
    pub(super) reuse: Reuse,
}

#[derive(Serialize, Deserialize)]
struct Record {
    time: u64,
    state: RunState,
    stages: Vec<RunStage>,
    reuse: Reuse,
}

impl Run {
    pub(super) fn finished(project: String, time: u64, stages: Vec<RunStage>, reuse: Reuse) -> Self {
        Run {
            id: 0,
            project,
            time,
            state: RunState::Finished,
            stages,
            reuse,
        }
    }

    pub(super) fn begun(project: String, time: u64, stages: Vec<RunStage>) -> Self {
        Run {
            state: RunState::Begun,
            ..Run::finished(project, time, stages, Reuse::default())
        }
    }

    /// What is stored beside the id and the project.
    pub(super) fn record(&self) -> String {
        let record = Record {
            time: self.time,
            state: self.state,
            stages: self.stages.clone(),
            reuse: self.reuse,
        };
        serde_json::to_string(&record).expect("plain data always serialize")
    }

    pub(super) fn read(id: i64, project: &str, record: &str) -> Option<Self> {
        let Record {
            time,
            state,
            stages,
            reuse,
        } = serde_json::from_str(record).ok()?;
        Some(Run {
            id,
            project: project.to_owned(),
            time,
            state,
            stages,
            reuse,
        })
    }

    /// Whether every stage of this run is one of `stages`, with the same key.
    pub(super) fn is_part_of(&self, stages: &[RunStage]) -> bool {
        self.stages.iter().all(|stage| stages.contains(stage))
    }
}
