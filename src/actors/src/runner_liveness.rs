//! When each runner was heard last, and with which attempts, by the clock of this server. Soft: a new leader knows of no heartbeat and
//! gives every runner a grace.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Mutex, PoisonError},
    time::{Duration, Instant},
};

use swell_model::{
    build::decide::Heard,
    ids::{BuildId, RunnerName},
    units::Millis,
};

/// How often a runner says which attempts it has.
pub(super) const HEARTBEAT_EVERY: Duration = Duration::from_secs(5);

#[derive(Debug, Clone)]
struct LastHeartbeat {
    at: Instant,
    attempts: BTreeSet<(BuildId, u32)>,
}

/// The last heartbeat of each runner.
#[derive(Debug)]
pub(super) struct RunnerLiveness {
    since: Instant,
    heartbeats: Mutex<BTreeMap<RunnerName, LastHeartbeat>>,
}

impl RunnerLiveness {
    /// Every runner has been silent since now.
    pub fn new() -> Self {
        Self { since: Instant::now(), heartbeats: Mutex::new(BTreeMap::new()) }
    }

    /// Notes that `runner` is alive and has `attempts`.
    pub fn heartbeat(&self, runner: &RunnerName, attempts: BTreeSet<(BuildId, u32)>) {
        let mut heartbeats = self.heartbeats.lock().unwrap_or_else(PoisonError::into_inner);
        heartbeats.insert(runner.clone(), LastHeartbeat { at: Instant::now(), attempts });
    }

    /// What is known of an attempt on `runner`.
    pub fn heard(&self, runner: &RunnerName, attempt: (BuildId, u32)) -> Heard {
        let heartbeats = self.heartbeats.lock().unwrap_or_else(PoisonError::into_inner);
        match heartbeats.get(runner) {
            None => Heard::Silent(millis(self.since.elapsed())),
            Some(last) if last.attempts.contains(&attempt) => match last.at.elapsed() {
                silent if silent > HEARTBEAT_EVERY * 2 => Heard::Silent(millis(silent)),
                _ => Heard::Has,
            },
            Some(_) => Heard::Gone,
        }
    }

    /// The runners that were heard within three heartbeats.
    pub fn connected(&self) -> BTreeSet<RunnerName> {
        let heartbeats = self.heartbeats.lock().unwrap_or_else(PoisonError::into_inner);
        let is_connected = |last: &LastHeartbeat| last.at.elapsed() <= HEARTBEAT_EVERY * 3;
        heartbeats.iter().filter(|(_, last)| is_connected(last)).map(|(name, _)| name.clone()).collect()
    }
}

fn millis(length: Duration) -> Millis {
    Millis(length.as_millis() as u64)
}
