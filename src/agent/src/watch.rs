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

/// What happens to a watched instance.
#[derive(Debug)]
pub(super) enum ProbeEvent {
    /// Results of its probes changed.
    Changed(ProbeState),
    /// Its process has ended and nothing of it is left; none: it did not say how.
    Ended(Option<ExitRecord>),
}

/// Results of the probes of an instance.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct ProbeState {
    /// Since when they pass without one that failed, in monotonic milliseconds.
    pub passing_since: Option<u64>,
    /// How many failed in a row.
    pub failures: u32,
    /// Whether one ever passed.
    pub passed: bool,
    /// What the last one that failed answered.
    pub answer: Option<String>,
}

impl ProbeState {
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
    pub probe_state: ProbeState,
    /// The zero of this agent's monotonic milliseconds.
    pub clock: Instant,
    pub probe_events: mpsc::Sender<((u64, u64), ProbeEvent)>,
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
        let (handle, stop_timeout, key, probe_events) =
            (self.handle.clone(), self.stop_timeout, self.key, self.probe_events.clone());
        let ended = tokio::select! {
            ended = handle.wait() => ended,
            () = stop.cancelled() => end(&handle, stop_timeout).await,
            () = self.probe() => return,
        };
        let record = match ended {
            Ok(record) => record,
            Err(error) => {
                tracing::warn!(dir = %handle.dir().display(), error = &error as &dyn std::error::Error, "failed to wait for an instance, ending what may run of it");
                clear(handle.dir()).await;
                None
            }
        };
        // Nobody listens any more: the agent stops, or the instance was forgotten.
        probe_events.send((key, ProbeEvent::Ended(record))).await.ok();
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
            let probe_state = self.probe_state.after(began.duration_since(self.clock).as_millis() as u64, result);
            if probe_state != self.probe_state {
                self.probe_state = probe_state.clone();
                if self.probe_events.send((self.key, ProbeEvent::Changed(probe_state))).await.is_err() {
                    return;
                }
            }
            let period = if eager && !self.probe_state.passed { interval.min(EAGER_INTERVAL) } else { interval };
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
            tracing::warn!(dir = %handle.dir().display(), "shim did not end in time, killing it");
            clear(handle.dir()).await;
            Ok(None)
        }
    }
}

async fn clear(dir: &Path) {
    if let Err(error) = runtime::clear(dir).await {
        tracing::error!(dir = %dir.display(), error = &error as &dyn std::error::Error, "failed to end an instance");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn probe_state_keeps_when_probes_began_to_pass() {
        let mut probe_state = ProbeState::default();
        for at in [5, 6] {
            probe_state = probe_state.after(at, Ok(()));
            assert_eq!((probe_state.passing_since, probe_state.passed), (Some(5), true));
        }
        for failures in [1, 2, 3, 3] {
            probe_state = probe_state.after(9, Err("no".to_owned()));
            assert_eq!((probe_state.passing_since, probe_state.failures, probe_state.passed), (None, failures, true));
        }
        assert_eq!(probe_state.after(10, Ok(())).passing_since, Some(10));
    }
}
