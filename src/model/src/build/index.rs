//! What follows from builds: which are open, which wait, and the load of pipelines and runners. `save` is the only writer of builds, so
//! these cannot disagree with them, and no rule has to look through every open build.

use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::{
    build::{Build, BuildState, Resources},
    change::Change,
    ids::{BuildId, PipelineName, RunnerName},
    tables::{Key, Record, Table, Tables, TablesError, key},
    units::{ByteSize, Timestamp},
};

/// A build that has not ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct OpenBuild {
    pub build: BuildId,
    pub pipeline: PipelineName,
}

impl Record for OpenBuild {
    const TABLE: Table = Table::OpenBuilds;
    const IS_FOLLOWED: bool = true;

    fn key(&self) -> Key {
        key(self.build.0)
    }

    fn change(record: Arc<Self>) -> Option<Change> {
        Some(Change::OpenBuild(record))
    }
}

/// A build that waits for a runner, ordered by the time when it entered the queue.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct QueuedBuild {
    pub build: BuildId,
    pub pipeline: PipelineName,
    pub git_ref: String,
    /// What it asks of its runner.
    pub resources: Resources,
    /// When it last entered the queue.
    pub queued_at: Timestamp,
}

impl QueuedBuild {
    /// `build`, where it waits for a runner.
    fn of(build: &Build) -> Option<Self> {
        if build.state != BuildState::Queued || build.live_attempt().is_some() {
            return None;
        }
        let Build { id, pipeline, git_ref, resources, queued_at, .. } = build;
        let (build, pipeline, git_ref) = (*id, pipeline.clone(), git_ref.clone());
        Some(Self { build, pipeline, git_ref, resources: *resources, queued_at: *queued_at })
    }
}

impl Record for QueuedBuild {
    const TABLE: Table = Table::QueuedBuilds;

    fn key(&self) -> Key {
        key(self.queued_at.0).then(self.build.0)
    }
}

/// A queued build, found by the ref that led to it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct QueuedByRef {
    pub pipeline: PipelineName,
    pub git_ref: String,
    pub build: BuildId,
}

impl Record for QueuedByRef {
    const TABLE: Table = Table::QueuedByRef;

    fn key(&self) -> Key {
        queued_by_ref_prefix(&self.pipeline, &self.git_ref).then(self.build.0)
    }
}

/// The prefix of the queued builds of one ref.
pub fn queued_by_ref_prefix(pipeline: &PipelineName, git_ref: &str) -> Key {
    key(pipeline.as_str()).then(git_ref)
}

/// How many builds a pipeline has. Gone while it has none open.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PipelineLoad {
    pub pipeline: PipelineName,
    /// Builds that have not ended.
    pub open: u32,
    /// Builds with a live attempt; never more than the pipeline's concurrency.
    pub running: u32,
}

impl Record for PipelineLoad {
    const TABLE: Table = Table::PipelineLoads;

    fn key(&self) -> Key {
        key(self.pipeline.as_str())
    }
}

/// The live attempt of a build, found by its runner.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LiveAttempt {
    pub runner: RunnerName,
    pub build: BuildId,
    /// The attempt's number, from 1.
    pub attempt: u32,
    /// What it takes of its runner.
    pub resources: Resources,
}

impl LiveAttempt {
    fn of(build: &Build) -> Option<Self> {
        let attempt = build.live_attempt()?;
        Some(Self { runner: attempt.runner.clone(), build: build.id, attempt: attempt.number, resources: build.resources })
    }
}

impl Record for LiveAttempt {
    const TABLE: Table = Table::LiveAttempts;

    fn key(&self) -> Key {
        key(self.runner.as_str()).then(self.build.0)
    }
}

/// What the live attempts of a runner take. Gone while it has none.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RunnerLoad {
    pub runner: RunnerName,
    /// How many attempts it has.
    pub attempts: u32,
    /// What they take in all.
    pub resources: Resources,
}

impl Record for RunnerLoad {
    const TABLE: Table = Table::RunnerLoads;

    fn key(&self) -> Key {
        key(self.runner.as_str())
    }
}

/// Brings the indexes from `before` to `after`; either is none where the build is not in state.
pub(super) fn update<T: Tables>(tables: &mut T, before: Option<&Build>, after: Option<&Build>) -> Result<(), TablesError> {
    let (queued_before, queued) = (before.and_then(QueuedBuild::of), after.and_then(QueuedBuild::of));
    if queued_before != queued {
        if let Some(QueuedBuild { pipeline, git_ref, build, .. }) = &queued_before {
            tables.delete::<QueuedByRef>(&queued_by_ref_prefix(pipeline, git_ref).then(build.0))?;
        }
        if let Some(QueuedBuild { pipeline, git_ref, build, .. }) = &queued {
            tables.put(&QueuedByRef { pipeline: pipeline.clone(), git_ref: git_ref.clone(), build: *build })?;
        }
        replace(tables, queued_before.as_ref(), queued.as_ref())?;
    }
    let (live_before, live) = (before.and_then(LiveAttempt::of), after.and_then(LiveAttempt::of));
    if live_before != live {
        replace(tables, live_before.as_ref(), live.as_ref())?;
        if let Some(gone) = &live_before {
            change_runner_load(tables, &gone.runner, |load| {
                load.attempts -= 1;
                load.resources = load.resources.less(gone.resources);
            })?;
        }
        if let Some(new) = &live {
            change_runner_load(tables, &new.runner, |load| {
                load.attempts += 1;
                load.resources = load.resources.plus(new.resources);
            })?;
        }
    }
    let is_open = |build: &&Build| !build.state.is_end();
    let open_of = |build: &Build| OpenBuild { build: build.id, pipeline: build.pipeline.clone() };
    let (open_before, open) = (before.filter(is_open).map(open_of), after.filter(is_open).map(open_of));
    if open_before != open {
        replace(tables, open_before.as_ref(), open.as_ref())?;
    }
    let Some(pipeline) = before.or(after).map(|build| &build.pipeline) else { return Ok(()) };
    let of = |is: bool| u32::from(is);
    let (was, is) = ((of(open_before.is_some()), of(live_before.is_some())), (of(open.is_some()), of(live.is_some())));
    if was == is {
        return Ok(());
    }
    let kept = tables.get(&key(pipeline.as_str()))?;
    let mut load = kept.unwrap_or_else(|| PipelineLoad { pipeline: pipeline.clone(), open: 0, running: 0 });
    load.open = load.open + is.0 - was.0;
    load.running = load.running + is.1 - was.1;
    if load.open == 0 { tables.delete::<PipelineLoad>(&load.key()) } else { tables.put(&load) }
}

fn replace<T: Tables, R: Record>(tables: &mut T, before: Option<&R>, after: Option<&R>) -> Result<(), TablesError> {
    if let Some(before) = before {
        tables.delete::<R>(&before.key())?;
    }
    after.map_or(Ok(()), |after| tables.put(after))
}

fn change_runner_load<T: Tables>(
    tables: &mut T,
    runner: &RunnerName,
    change: impl FnOnce(&mut RunnerLoad),
) -> Result<(), TablesError> {
    let none = Resources { cpu_millis: 0, memory: ByteSize(0) };
    let kept = tables.get(&key(runner.as_str()))?;
    let mut load = kept.unwrap_or_else(|| RunnerLoad { runner: runner.clone(), attempts: 0, resources: none });
    change(&mut load);
    if load.attempts == 0 { tables.delete::<RunnerLoad>(&load.key()) } else { tables.put(&load) }
}
