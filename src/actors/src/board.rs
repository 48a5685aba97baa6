//! What the runners said last, by the clock of this server. Soft: a new leader begins with an empty board and gives everyone a grace.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Mutex,
    time::{Duration, Instant},
};

use swell_model::{
    build::decide::Heard,
    ids::{BuildId, RunnerName},
    units::Millis,
};

/// What a runner said, and when.
#[derive(Debug, Clone)]
struct Said {
    at: Instant,
    attempts: BTreeSet<(BuildId, u32)>,
}

/// What the runners said last.
#[derive(Debug)]
pub(super) struct Board {
    since: Instant,
    said: Mutex<BTreeMap<RunnerName, Said>>,
}

impl Board {
    /// An empty board: every runner has been silent since now.
    pub fn new() -> Self {
        Self { since: Instant::now(), said: Mutex::new(BTreeMap::new()) }
    }

    /// A runner says which attempts it has.
    pub fn heartbeat(&self, runner: &RunnerName, attempts: BTreeSet<(BuildId, u32)>) {
        let mut said = self.said.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        said.insert(runner.clone(), Said { at: Instant::now(), attempts });
    }

    /// What is known of an attempt on `runner`.
    pub fn heard(&self, runner: &RunnerName, attempt: (BuildId, u32)) -> Heard {
        let said = self.said.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        match said.get(runner) {
            None => Heard::Silent(millis(self.since.elapsed())),
            Some(said) if said.attempts.contains(&attempt) => match said.at.elapsed() {
                silent if silent > super::runner::HEARTBEAT_EVERY * 2 => Heard::Silent(millis(silent)),
                _ => Heard::Has,
            },
            Some(_) => Heard::Gone,
        }
    }

    /// The runners that were heard lately.
    pub fn connected(&self) -> BTreeSet<RunnerName> {
        let said = self.said.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        let lately = |said: &Said| said.at.elapsed() <= super::runner::HEARTBEAT_EVERY * 3;
        said.iter().filter(|(_, said)| lately(said)).map(|(name, _)| name.clone()).collect()
    }
}

fn millis(length: Duration) -> Millis {
    Millis(length.as_millis() as u64)
}
