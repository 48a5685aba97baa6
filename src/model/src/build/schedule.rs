//! Which queued build goes to which runner: fair between pipelines, then by age; and why a build waits.

use std::collections::{BTreeMap, VecDeque};

use serde::{Deserialize, Serialize};

use crate::{
    actor_failure::ActorFailure,
    build::Resources,
    ids::{BuildId, PipelineName, RunnerName},
    units::Timestamp,
};

/// A build in the queue.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Queued {
    pub build: BuildId,
    pub pipeline: PipelineName,
    /// What it asks of its runner.
    pub resources: Resources,
    /// When it entered the queue.
    pub queued_at: Timestamp,
}

/// A connected runner, with the resources that it has left.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Free {
    pub runner: RunnerName,
    /// What it offers in all.
    pub total: Resources,
    /// What is left of it.
    pub left: Resources,
}

/// How many builds of a pipeline are running, and how many may.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Share {
    pub running: u32,
    /// The pipeline's concurrency.
    pub most: u32,
}

/// What a build waits for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", tag = "kind")]
pub enum BuildWait {
    /// No runner is connected.
    NoRunner,
    /// No runner is large enough, however long it waits.
    TooLarge {
        asked: Resources,
        /// The largest of each that a runner has, not of the same one where they differ.
        largest: Resources,
    },
    /// Every runner that is large enough is busy.
    Busy {
        /// Builds that come before it.
        ahead: usize,
    },
    /// As many builds of its pipeline are running as its concurrency allows.
    Concurrency { running: u32 },
    /// It is its turn: the scheduler is about to assign it.
    Turn { runner: RunnerName },
    /// The runner has not acknowledged the attempt yet.
    Acknowledgement { runner: RunnerName },
    /// The runner is stopping the attempt that someone canceled.
    Stopping { runner: RunnerName },
    /// The infrastructure failed it on every attempt: a person has to look.
    Person,
    /// The actor that drives it, or the scheduler, keeps failing.
    ActorFailing { failure: ActorFailure },
}

/// Builds to assign now, and why the others wait.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Schedule {
    /// Which build goes where.
    pub assign: Vec<(BuildId, RunnerName)>,
    /// Why each of the others waits.
    pub waits: BTreeMap<BuildId, BuildWait>,
}

/// Assigns queued builds to runners. Pipelines with the fewest running builds come first, then the oldest build; a build goes to the
/// runner with the most CPU left that it fits. Takes n log n steps for n queued builds, times the runners.
pub fn schedule(queue: &[Queued], runners: &[Free], shares: &BTreeMap<PipelineName, Share>) -> Schedule {
    let mut free = runners.to_vec();
    let mut schedule = Schedule::default();
    let mut lines: BTreeMap<Turn, Line> =
        Line::of_each_pipeline(queue, shares).into_iter().filter_map(|line| Some((line.turn()?, line))).collect();
    while let Some((_, mut line)) = lines.pop_first() {
        let Some(queued) = line.builds.pop_front() else { continue };
        let room = free.iter_mut().filter(|runner| runner.left.holds(queued.resources));
        match room.max_by_key(|runner| runner.left.cpu_millis) {
            _ if line.share.running >= line.share.most => {
                schedule.waits.insert(queued.build, BuildWait::Concurrency { running: line.share.running });
            }
            Some(runner) => {
                runner.left = runner.left.less(queued.resources);
                line.share.running += 1;
                schedule.assign.push((queued.build, runner.runner.clone()));
            }
            None => {
                let waits = match runners {
                    [] => BuildWait::NoRunner,
                    runners if !runners.iter().any(|runner| runner.total.holds(queued.resources)) => {
                        BuildWait::TooLarge { asked: queued.resources, largest: largest(runners) }
                    }
                    _ => BuildWait::Busy { ahead: schedule.waits.len() },
                };
                schedule.waits.insert(queued.build, waits);
            }
        }
        lines.extend(line.turn().map(|turn| (turn, line)));
    }
    schedule
}

fn largest(runners: &[Free]) -> Resources {
    let cpu_millis = runners.iter().map(|runner| runner.total.cpu_millis).max().unwrap_or(0);
    let memory = runners.iter().map(|runner| runner.total.memory).max().unwrap_or_default();
    Resources { cpu_millis, memory }
}

/// When a line's first build has its turn: running builds of its pipeline, the build's age, its number.
type Turn = (u32, Timestamp, BuildId);

/// The builds of one pipeline that wait, the oldest first.
struct Line<'a> {
    share: Share,
    builds: VecDeque<&'a Queued>,
}

impl<'a> Line<'a> {
    fn of_each_pipeline(queue: &'a [Queued], shares: &BTreeMap<PipelineName, Share>) -> Vec<Self> {
        let mut queue: Vec<&Queued> = queue.iter().collect();
        queue.sort_by_key(|queued| (queued.queued_at, queued.build));
        let mut lines: BTreeMap<&PipelineName, Self> = BTreeMap::new();
        for queued in queue {
            let share = || shares.get(&queued.pipeline).copied().unwrap_or(Share { running: 0, most: 1 });
            let line = lines.entry(&queued.pipeline).or_insert_with(|| Self { share: share(), builds: VecDeque::new() });
            line.builds.push_back(queued);
        }
        lines.into_values().collect()
    }

    fn turn(&self) -> Option<Turn> {
        self.builds.front().map(|queued| (self.share.running, queued.queued_at, queued.build))
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::units::ByteSize;

    fn queued(build: u64, pipeline: &str, cpu_millis: u32, at: u64) -> Queued {
        let resources = Resources { cpu_millis, memory: ByteSize(1) };
        Queued { build: BuildId(build), pipeline: pipeline.parse().unwrap(), resources, queued_at: Timestamp(at) }
    }

    fn runner(name: &str, cpu_millis: u32) -> Free {
        let total = Resources { cpu_millis, memory: ByteSize(100) };
        Free { runner: name.parse().unwrap(), total, left: total }
    }

    fn shares(most: u32) -> BTreeMap<PipelineName, Share> {
        ["a", "b"].into_iter().map(|name| (name.parse().unwrap(), Share { running: 0, most })).collect()
    }

    #[test]
    fn pipelines_take_turns_and_their_oldest_build_goes_first() {
        let queue = [queued(1, "a", 1000, 1), queued(2, "a", 1000, 2), queued(3, "b", 1000, 3)];
        let assigned: Vec<_> =
            schedule(&queue, &[runner("r", 2000)], &shares(2)).assign.into_iter().map(|(build, _)| build.0).collect();
        assert_eq!(assigned, [1, 3]);
    }

    #[test]
    fn waiting_build_has_a_reason() {
        let queue = [queued(1, "a", 1000, 1), queued(2, "a", 1000, 2), queued(3, "b", 9000, 3), queued(4, "b", 1000, 4)];
        let waits = schedule(&queue, &[runner("r", 1000)], &shares(1)).waits;
        assert_eq!(waits[&BuildId(2)], BuildWait::Concurrency { running: 1 });
        assert!(matches!(waits[&BuildId(3)], BuildWait::TooLarge { .. }));
        assert!(matches!(waits[&BuildId(4)], BuildWait::Busy { .. }));
        assert_eq!(schedule(&queue[..1], &[], &shares(1)).waits[&BuildId(1)], BuildWait::NoRunner);
    }

    proptest! {
        #[test]
        fn schedule_keeps_to_every_runners_resources_and_every_pipelines_concurrency(
            builds in proptest::collection::vec((0usize..2, 1u32..4000, 0u64..10), 0..20),
            rooms in proptest::collection::vec(1u32..8000, 0..4),
            most in 1u32..4,
        ) {
            let queue: Vec<_> = builds.iter().enumerate()
                .map(|(i, (pipeline, cpu, at))| queued(i as u64, ["a", "b"][*pipeline], *cpu, *at)).collect();
            let runners: Vec<_> = rooms.iter().enumerate().map(|(i, cpu)| runner(&format!("r{i}"), *cpu)).collect();
            let schedule = schedule(&queue, &runners, &shares(most));
            prop_assert_eq!(schedule.assign.len() + schedule.waits.len(), queue.len());
            for runner in &runners {
                let used: u32 = schedule.assign.iter().filter(|(_, name)| *name == runner.runner)
                    .map(|(build, _)| queue[build.0 as usize].resources.cpu_millis).sum();
                prop_assert!(used <= runner.total.cpu_millis);
            }
            for pipeline in ["a", "b"] {
                let running = schedule.assign.iter().filter(|(build, _)| queue[build.0 as usize].pipeline.as_str() == pipeline).count();
                prop_assert!(running as u32 <= most);
            }
        }
    }
}
