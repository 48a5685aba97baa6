//! The build queue, and what runners and pipelines have at work: what the scheduler decides on, without reading ended builds.

use std::collections::BTreeMap;

use swell_model::{
    build::{
        Build, BuildState, OpenBuild, Resources, Runner,
        queue::Scheduling,
        schedule::{Free, Queued, Share},
    },
    change::{AppliedBatch, Change},
    ids::{BuildId, PipelineName, RunnerName},
    pipeline::Pipeline,
    tables::{KeyPart, ReadTables, SCAN_RECORDS_MAX, Scan, Table, TablesError, key},
};

/// An attempt at work.
#[derive(Debug, Clone, PartialEq)]
struct Running {
    pipeline: PipelineName,
    runner: RunnerName,
    attempt: u32,
    resources: Resources,
}

/// How much a runner has at work.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct RunnerLoad {
    /// Attempts at work.
    pub attempts: u32,
    /// CPUs that they asked for, in thousandths.
    pub cpu_millis: u64,
    /// Memory that they asked for, in bytes.
    pub memory: u64,
}

/// Open builds, runners and the pipelines' concurrency.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct BuildQueue {
    queue: BTreeMap<BuildId, Queued>,
    running: BTreeMap<BuildId, Running>,
    concurrency: BTreeMap<PipelineName, u32>,
    runners: BTreeMap<RunnerName, Resources>,
    load: BTreeMap<RunnerName, RunnerLoad>,
    running_by_pipeline: BTreeMap<PipelineName, u32>,
}

impl BuildQueue {
    /// Computes the queue from state.
    ///
    /// # Errors
    /// When state cannot be read.
    pub fn from_tables<T: ReadTables>(tables: &T) -> Result<Self, TablesError> {
        let mut all = Self::default();
        tables.for_each(Scan::all(), |pipeline: Pipeline| {
            all.concurrency.insert(pipeline.name, pipeline.concurrency);
        })?;
        tables.for_each(Scan::all(), |runner: Runner| {
            all.runners.insert(runner.name, runner.resources);
        })?;
        for open in tables.scan::<OpenBuild>(&Scan::all(), SCAN_RECORDS_MAX)? {
            if let Some(build) = tables.get::<Build>(&key(open.build.0))? {
                all.put(&build);
            }
        }
        Ok(all)
    }

    /// Takes a batch in; says whether a build may be assigned now that could not be before.
    pub fn update(&mut self, batch: &AppliedBatch) -> bool {
        let mut is_other = false;
        for change in &batch.changes {
            match change {
                Change::Build(build) => is_other |= self.put(build),
                Change::Pipeline(pipeline) => {
                    is_other |=
                        self.concurrency.insert(pipeline.name.clone(), pipeline.concurrency) != Some(pipeline.concurrency);
                }
                Change::Runner(runner) => {
                    is_other |= self.runners.insert(runner.name.clone(), runner.resources) != Some(runner.resources);
                }
                Change::Removed(table, key) => self.remove(*table, key.0.as_slice()),
                _ => {}
            }
        }
        is_other && !self.queue.is_empty()
    }

    /// Whether no build waits for a runner.
    pub fn is_empty(&self) -> bool {
        self.queue.is_empty()
    }

    /// What the scheduler decides on; `is_connected` says which of the registered runners count.
    pub fn scheduling(&self, is_connected: impl Fn(&RunnerName) -> bool) -> Scheduling {
        let share = |pipeline: &PipelineName| Share {
            running: self.running_by_pipeline.get(pipeline).copied().unwrap_or(0),
            most: self.concurrency.get(pipeline).copied().unwrap_or(1),
        };
        let free = |(runner, total): (&RunnerName, &Resources)| Free {
            runner: runner.clone(),
            total: *total,
            left: self.load(runner).left_of(*total),
        };
        Scheduling {
            queue: self.queue.values().cloned().collect(),
            shares: self.queue.values().map(|queued| (queued.pipeline.clone(), share(&queued.pipeline))).collect(),
            runners: self.runners.iter().filter(|(runner, _)| is_connected(runner)).map(free).collect(),
        }
    }

    /// What a runner has at work.
    pub fn load(&self, runner: &RunnerName) -> RunnerLoad {
        self.load.get(runner).copied().unwrap_or_default()
    }

    /// The attempts at work on a runner, by build and number.
    pub fn attempts_on<'a>(&'a self, runner: &'a RunnerName) -> impl Iterator<Item = (BuildId, u32)> + 'a {
        self.running.iter().filter(move |(_, running)| running.runner == *runner).map(|(id, running)| (*id, running.attempt))
    }

    /// Takes in one build; says whether the queue or what is at work is another.
    fn put(&mut self, build: &Build) -> bool {
        let was_queued = self.queue.remove(&build.id);
        let was_running = self.running.remove(&build.id);
        if let Some(running) = &was_running {
            self.count(running, false);
        }
        if build.state.is_end() {
            return was_queued.is_some() || was_running.is_some();
        }
        if let Some(attempt) = build.live_attempt() {
            let (pipeline, runner) = (build.pipeline.clone(), attempt.runner.clone());
            let running = Running { pipeline, runner, attempt: attempt.number, resources: build.resources };
            self.count(&running, true);
            let is_same = was_running.as_ref() == Some(&running);
            self.running.insert(build.id, running);
            return !is_same;
        }
        if build.state != BuildState::Queued {
            return was_queued.is_some() || was_running.is_some();
        }
        let (pipeline, queued_at) = (build.pipeline.clone(), build.queued_at);
        let queued = Queued { build: build.id, pipeline, resources: build.resources, queued_at };
        let is_same = was_queued.as_ref() == Some(&queued);
        self.queue.insert(build.id, queued);
        !is_same
    }

    fn remove(&mut self, table: Table, key: &[KeyPart]) {
        match (table, key) {
            (Table::Builds, [KeyPart::Number(id)]) => {
                self.queue.remove(&BuildId(*id));
                if let Some(running) = self.running.remove(&BuildId(*id)) {
                    self.count(&running, false);
                }
            }
            (Table::Pipelines, [KeyPart::Text(name)]) => {
                name.parse().ok().and_then(|name: PipelineName| self.concurrency.remove(&name));
            }
            (Table::Runners, [KeyPart::Text(name)]) => {
                name.parse().ok().and_then(|name: RunnerName| self.runners.remove(&name));
            }
            _ => {}
        }
    }

    fn count(&mut self, running: &Running, is_more: bool) {
        let load = self.load.entry(running.runner.clone()).or_default();
        let of_pipeline = self.running_by_pipeline.entry(running.pipeline.clone()).or_default();
        let Resources { cpu_millis, memory } = running.resources;
        if is_more {
            *of_pipeline += 1;
            load.attempts += 1;
            load.cpu_millis += u64::from(cpu_millis);
            load.memory += memory.0;
            return;
        }
        *of_pipeline -= 1;
        load.attempts -= 1;
        load.cpu_millis -= u64::from(cpu_millis);
        load.memory -= memory.0;
        if load.attempts == 0 {
            self.load.remove(&running.runner);
        }
        if *of_pipeline == 0 {
            self.running_by_pipeline.remove(&running.pipeline);
        }
    }
}

impl RunnerLoad {
    fn left_of(self, total: Resources) -> Resources {
        let cpu_millis = u32::try_from(self.cpu_millis).unwrap_or(u32::MAX);
        total.less(Resources { cpu_millis, memory: swell_model::units::ByteSize(self.memory) })
    }
}
