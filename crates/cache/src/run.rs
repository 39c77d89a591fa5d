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

/// A run of a project.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Run {
    /// Its number in its project. Later runs have larger ones. 0 before the run is stored.
    pub id: i64,
    /// The folder that it writes to.
    pub project: String,
    /// When it was last used, in seconds since 1970.
    pub time: u64,
    /// Whether it came to its end.
    pub state: RunState,
    /// The keys that it used, in the order of the stages.
    pub stages: Vec<RunStage>,
    /// What the cache spared it.
    pub reuse: Reuse,
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

    /// The name of its record. Two runs that end at once may get the same number, and both are kept.
    pub(super) fn name(&self) -> Digest {
        let keys = self.stages.iter().flat_map(|stage| *stage.key.as_bytes());
        let number = self.id.to_le_bytes().into_iter().chain([self.state as u8]);
        Digest::of(&number.chain(keys).collect::<Vec<u8>>())
    }

    /// Whether every stage of this run is one of `stages`, with the same key.
    pub(super) fn is_part_of(&self, stages: &[RunStage]) -> bool {
        self.stages.iter().all(|stage| stages.contains(stage))
    }
}
