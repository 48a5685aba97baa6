//! The task beside each running instance: probes it, stops it when asked, and waits for its end. Must not know what the instance is for.

use std::{
    path::Path,
    time::{Duration, Instant},
};

use tokio::{
    sync::mpsc,
    time::{sleep, timeout},
};
use tokio_util::sync::CancellationToken;

use super::{decide::UNHEALTHY_AFTER_FAILURES, probe::Question};
use swell_model::{pipeline_file::Health, units::Millis};
use swell_sandbox::{
    runtime::{self, ShimHandle},
    shim::ExitRecord,
};

/// Until the first probe passes, connections are tried at least so often, so that a start is not slower than the service.
const EAGER_INTERVAL: Duration = Duration::from_millis(250);
/// How long after its time-out a shim may take until it is killed in its turn.
const STOP_GRACE: Duration = Duration::from_secs(15);

/// What a watcher sees.
#[derive(Debug)]
pub(super) enum Sight {
    /// How its probes go.
    Pulse(Pulse),
    /// Its process has ended and nothing of it is left; none: it did not say how.
    Ended(Option<ExitRecord>),
}

/// How the probes of an instance go.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Pulse {
    /// Since when they pass without one that failed, in monotonic milliseconds.
    pub passing_since: Option<u64>,
    /// How many failed in a row.
    pub failures: u32,
    /// Whether one ever passed.
    pub passed: bool,
    /// What the last one that failed answered.
    pub answer: Option<String>,
}

impl Pulse {
    /// After a probe that began at `at`.
    fn after(&self, at: u64, result: Result<(), String>) -> Self {
        match result {
            Ok(()) => {
                Self { passing_since: self.passing_since.or(Some(at)), failures: 0, passed: true, answer: self.answer.clone() }
            }
            Err(answer) => {
                // Nobody asks for more than that; a service that stays down is then no news.
                let failures = (self.failures + 1).min(UNHEALTHY_AFTER_FAILURES);
                Self { passing_since: None, failures, passed: self.passed, answer: Some(answer) }
            }
        }
    }
}

/// One process to watch.
pub(super) struct Watch {
    /// The instance and the run.
    pub key: (u64, u64),
    pub handle: ShimHandle,
    pub question: Question,
    pub health: Health,
    pub stop_timeout: Millis,
    pub pulse: Pulse,
    /// Where monotonic milliseconds begin.
    pub clock: Instant,
    pub sights: mpsc::Sender<((u64, u64), Sight)>,
}

/// The running task. Dropping it leaves the instance as it is.
pub(super) struct Watcher {
    stop: CancellationToken,
    task: tokio::task::JoinHandle<()>,
}

impl Watcher {
    /// Asks the instance to end as its service says.
    pub fn stop(&self) {
        self.stop.cancel();
    }
}

impl Drop for Watcher {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Watch {
    /// Begins to watch.
    pub fn spawn(self) -> Watcher {
        let stop = CancellationToken::new();
        let task = tokio::spawn(self.run(stop.clone()));
        Watcher { stop, task }
    }

    async fn run(self, stop: CancellationToken) {
        let (handle, stop_timeout, key, sights) = (self.handle.clone(), self.stop_timeout, self.key, self.sights.clone());
        let ended = tokio::select! {
            ended = handle.wait() => ended,
            () = stop.cancelled() => end(&handle, stop_timeout).await,
            () = self.probe() => return,
        };
        let record = match ended {
            Ok(record) => record,
            Err(error) => {
                tracing::warn!(dir = %handle.dir().display(), error = &error as &dyn std::error::Error, "could not wait for an instance");
                // Not left to chance: what may still run of it is ended.
                clear(handle.dir()).await;
                None
            }
        };
        // Nobody listens any more: the agent stops, or the instance was forgotten.
        sights.send((key, Sight::Ended(record))).await.ok();
    }

    /// Probes on and on; tells what changes.
    async fn probe(mut self) {
        if matches!(self.question, Question::Alive) {
            return std::future::pending().await;
        }
        let interval = self.health.interval.as_duration();
        let eager = !matches!(self.question, Question::Command(_));
        loop {
            let began = Instant::now();
            let result = self.question.ask(self.health.timeout.as_duration()).await;
            let pulse = self.pulse.after(began.duration_since(self.clock).as_millis() as u64, result);
            if pulse != self.pulse {
                self.pulse = pulse.clone();
                if self.sights.send((self.key, Sight::Pulse(pulse))).await.is_err() {
                    return;
                }
            }
            let period = if eager && !self.pulse.passed { interval.min(EAGER_INTERVAL) } else { interval };
            sleep(period.saturating_sub(began.elapsed())).await;
        }
    }
}

/// Asks it to end and waits; a shim that does not obey is killed with all it started.
async fn end(handle: &ShimHandle, stop_timeout: Millis) -> Result<Option<ExitRecord>, runtime::RuntimeError> {
    handle.stop()?;
    match timeout(stop_timeout.as_duration() + STOP_GRACE, handle.wait()).await {
        Ok(ended) => ended,
        Err(_) => {
            tracing::warn!(dir = %handle.dir().display(), "a shim did not end in time, it is killed");
            clear(handle.dir()).await;
            Ok(None)
        }
    }
}

async fn clear(dir: &Path) {
    if let Err(error) = runtime::clear(dir).await {
        tracing::error!(dir = %dir.display(), error = &error as &dyn std::error::Error, "could not end what runs");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pulse_remembers_since_when_it_passes() {
        let mut pulse = Pulse::default();
        for at in [5, 6] {
            pulse = pulse.after(at, Ok(()));
            assert_eq!((pulse.passing_since, pulse.passed), (Some(5), true));
        }
        for failures in [1, 2, 3, 3] {
            pulse = pulse.after(9, Err("no".to_owned()));
            assert_eq!((pulse.passing_since, pulse.failures, pulse.passed), (None, failures, true));
        }
        assert_eq!(pulse.after(10, Ok(())).passing_since, Some(10));
    }
}
