//! One pipeline on this target: a task that asks the rules for the next step, takes it, and otherwise sleeps until something happens.
//! Must not know of sessions, nor how a step is taken.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::PathBuf,
    sync::Arc,
    time::Duration,
};

use tokio::{
    sync::{mpsc, watch},
    time::sleep,
};
use tokio_util::sync::CancellationToken;

use super::{
    context::Context,
    data_folder::MAGIC,
    decide::{self, Desired, Next, Observed, Process, View},
    deliver::DeliverError,
    evidence::{self, LastSeen},
    journal::{Journal, Role},
    options::backoff_ms,
    reports::Confirmed,
    watch::{ProbeEvent, Watcher},
};
use swell_model::{
    digest::Digest,
    fleet::observation::{InstanceObserved, Report, TargetFailure},
    ids::{PipelineName, ReleaseId},
};
use swell_sandbox::{
    runtime::{self, RuntimeError},
    shim::ExitRecord,
};
use swell_system::{checksummed_file, error_chain::chain, files::FileError};

/// How many probe_events of instances may wait.
const EVENTS_MAX: usize = 64;
/// The pause after a step that failed, such as on a full disk.
const FAILED_STEP_PAUSE: Duration = Duration::from_secs(1);
/// After so many steps without a pause something is wrong with the rules: slow down rather than spin.
const STEPS_MAX: u32 = 200;

/// An error of a step; the step is repeated after a pause.
#[derive(Debug, thiserror::Error)]
pub(super) enum StepError {
    #[error(transparent)]
    Record(#[from] checksummed_file::Error),
    #[error(transparent)]
    Runtime(#[from] RuntimeError),
    #[error("{0}; check the owner, mode and free space of the agent's `data_dir`")]
    File(#[from] FileError),
    #[error("the agent is stopping")]
    Stopping,
}

/// What tasks beside this one report.
#[derive(Debug)]
pub(super) enum Event {
    Fetched(Digest, Result<(), DeliverError>),
    /// The output of a release's failure is in the content store; `None` where no server took it.
    Uploaded(ReleaseId, Option<Digest>),
}

/// The state of the task.
pub(super) struct Pipeline {
    pub(super) context: Arc<Context>,
    pub(super) name: PipelineName,
    pub(super) folder: PathBuf,
    pub(super) desired: Desired,
    pub(super) journal: Journal,
    pub(super) on_disk: BTreeSet<Digest>,
    pub(super) observed: BTreeMap<u64, Observed>,
    /// Evidence of failures, by the ids of instances.
    pub(super) last: BTreeMap<u64, LastSeen>,
    pub(super) watchers: BTreeMap<u64, Watcher>,
    /// Instances that were found running and whose first probe has no answer yet. Until then nothing is reported.
    pub(super) unprobed: BTreeSet<u64>,
    /// Of instances whose departure is to be confirmed: the first version of the report that shows it.
    pub(super) departures: BTreeMap<u64, u64>,
    /// `None` before the first report.
    confirmed: Option<watch::Receiver<Confirmed>>,
    /// The release that is being fetched, and what stops that.
    pub(super) fetching: Option<(Digest, CancellationToken)>,
    pub(super) fetch_failures: u32,
    pub(super) hold_until: u64,
    /// Whether output is being sent to the content store.
    pub(super) uploads_output: bool,
    /// When the store last took some, in monotonic milliseconds.
    pub(super) output_uploaded_at: u64,
    pub(super) probe_events: mpsc::Sender<((u64, u64), ProbeEvent)>,
    pub(super) events: mpsc::Sender<Event>,
}

/// Converges `name` on whatever `wants` says, until `stop`. Instances keep running when it ends.
pub(super) async fn run(context: Arc<Context>, name: PipelineName, mut wants: watch::Receiver<Desired>, stop: CancellationToken) {
    let (probe_events, mut probed) = mpsc::channel(EVENTS_MAX);
    let (events, mut happened) = mpsc::channel(EVENTS_MAX);
    let folder = context.data_dir.join("pipelines").join(name.as_str());
    let desired = wants.borrow_and_update().clone();
    let mut pipeline = Pipeline {
        context,
        name,
        folder,
        desired,
        journal: Journal::default(),
        on_disk: BTreeSet::new(),
        observed: BTreeMap::new(),
        last: BTreeMap::new(),
        watchers: BTreeMap::new(),
        unprobed: BTreeSet::new(),
        departures: BTreeMap::new(),
        confirmed: None,
        fetching: None,
        fetch_failures: 0,
        hold_until: 0,
        uploads_output: false,
        output_uploaded_at: 0,
        probe_events,
        events,
    };
    while let Err(error) = pipeline.recover().await {
        pipeline.log_failed_step(&error);
        tokio::select! {
            () = stop.cancelled() => return,
            () = sleep(FAILED_STEP_PAUSE) => {}
        }
    }
    loop {
        let wake_at = pipeline.reconcile(&stop).await;
        let now = pipeline.context.now();
        let pause = wake_at.map(|at| Duration::from_millis(at.saturating_sub(now)));
        tokio::select! {
            () = stop.cancelled() => return,
            changed = wants.changed() => {
                if changed.is_err() {
                    return;
                }
                let desired = wants.borrow_and_update().clone();
                pipeline.set_desired(desired);
            }
            Some((key, event)) = probed.recv() => pipeline.on_probe_event(key, event).await,
            Some(event) = happened.recv() => pipeline.on_event(event).await,
            () = changed(&mut pipeline.confirmed) => pipeline.confirm_departures(),
            () = sleep(pause.unwrap_or(Duration::MAX)), if pause.is_some() => {}
        }
    }
}

/// Waits until more is confirmed; for ever before there is a report.
async fn changed(confirmed: &mut Option<watch::Receiver<Confirmed>>) {
    let is_open = match confirmed {
        Some(confirmed) => confirmed.changed().await.is_ok(),
        None => false,
    };
    if !is_open {
        std::future::pending().await
    }
}

impl Pipeline {
    pub(super) fn view(&self) -> View<'_> {
        View {
            now: self.context.now(),
            desired: &self.desired,
            journal: &self.journal,
            observed: &self.observed,
            on_disk: &self.on_disk,
            fetching: self.fetching.is_some(),
            hold_until: self.hold_until,
        }
    }

    /// Takes steps until there is none; returns when there may be one again.
    async fn reconcile(&mut self, stop: &CancellationToken) -> Option<u64> {
        let soon = |pipeline: &Self| Some(pipeline.context.now() + FAILED_STEP_PAUSE.as_millis() as u64);
        for _ in 0..STEPS_MAX {
            let wake_at = self.report();
            if stop.is_cancelled() {
                return None;
            }
            match decide::next(&self.view()) {
                Next::Wait(at) => return [at, wake_at].into_iter().flatten().min(),
                Next::Do(step) => {
                    tracing::debug!(pipeline = %self.name, ?step, "next step");
                    let of_one = step.of_one();
                    if let Err(error) = self.take(step).await {
                        self.log_failed_step(&error);
                        match of_one {
                            Some(id) => self.postpone(id),
                            None => return soon(self),
                        }
                    }
                }
            }
        }
        tracing::error!(pipeline = %self.name, steps = STEPS_MAX, "steps without a pause, slowing down; please report this defect");
        soon(self)
    }

    /// Holds back steps of one instance after one failed, ever longer; the others do not wait for it.
    fn postpone(&mut self, id: u64) {
        let (now, timing) = (self.context.now(), self.context.timing);
        let observed = self.observed.entry(id).or_insert(Observed::down(now));
        observed.failed_steps = observed.failed_steps.saturating_add(1);
        let wait_ms = backoff_ms(observed.failed_steps, timing.restart_first, timing.restart_most);
        observed.retry_at = now + wait_ms.max(FAILED_STEP_PAUSE.as_millis() as u64);
    }

    fn set_desired(&mut self, desired: Desired) {
        if self.desired == desired {
            return;
        }
        let artifact = desired.release().map(|release| release.artifact);
        if let Some((fetching, stop)) = &self.fetching
            && artifact != Some(*fetching)
        {
            stop.cancel();
        }
        let name = desired.release().map(|release| release.release.to_string());
        tracing::info!(pipeline = %self.name, target = %self.context.around.info.name, release = name.as_deref(), "desired release changed");
        // Whatever failed so far failed with something else.
        (self.hold_until, self.fetch_failures, self.desired) = (0, 0, desired);
        let desired = self.desired.release().map(|release| &release.release);
        if self.journal.attempt.as_ref().is_some_and(|attempt| Some(&attempt.release) != desired) {
            // On disk it goes with the next change; a restart before that drops it too.
            self.journal.attempt = None;
        }
    }

    async fn on_probe_event(&mut self, (id, run): (u64, u64), event: ProbeEvent) {
        let is_present = self.journal.instance(id).is_some_and(|instance| instance.run == run);
        let Some(observed) = self.observed.get_mut(&id).filter(|_| is_present) else { return };
        match event {
            ProbeEvent::Changed(probe_state) => {
                self.unprobed.remove(&id);
                if let Process::Up { passing_since, failures, passed, .. } = &mut observed.process {
                    (*passing_since, *failures, *passed) = (probe_state.passing_since, probe_state.failures, probe_state.passed);
                }
                if probe_state.answer.is_some() {
                    self.last.entry(id).or_default().probe = probe_state.answer;
                }
            }
            ProbeEvent::Ended(record) => self.ended(id, record).await,
        }
    }

    /// The process of an instance is gone: keeps why, and when it may start again.
    pub(super) async fn ended(&mut self, id: u64, record: Option<ExitRecord>) {
        self.watchers.remove(&id);
        self.unprobed.remove(&id);
        let now = self.context.now();
        let Some(instance) = self.journal.instance(id).cloned() else { return };
        let Some(observed) = self.observed.get_mut(&id) else { return };
        let (since, was_asked) = match observed.process {
            Process::Up { since, stopping, .. } => (since, stopping),
            Process::Down { .. } => (now, false),
        };
        let (deaths, restart_at) = decide::after_end(observed.deaths, now.saturating_sub(since), now, &self.context.timing);
        observed.deaths = deaths;
        observed.process = Process::Down { restart_at, died: !was_asked };
        if was_asked {
            return;
        }
        let dir = self.dir_of(&instance);
        let vanished = record.is_none();
        let looked = move || (evidence::output_tail(&dir), vanished && runtime::is_disk_full(&dir));
        let (output, disk_full) = tokio::task::spawn_blocking(looked).await.unwrap_or_default();
        let last = self.last.entry(id).or_default();
        (last.exit, last.output, last.disk_full) = (record, output, disk_full);
        let failure = evidence::failure_of(&instance, decide::Fault::Died, last);
        tracing::warn!(pipeline = %self.name, release = %instance.release, instance = instance.name(), exit = failure.exit, "instance died");
        if instance.role == Role::Current && self.desired.release().is_some_and(|release| release.release == instance.release) {
            let output = last.output.clone();
            self.record_failure(Some(instance.run), false, failure).await;
            self.upload_output(instance.release, output);
        }
    }

    async fn on_event(&mut self, event: Event) {
        match event {
            Event::Fetched(digest, result) => {
                let was_stopped = self.fetching.take().is_some_and(|(_, stop)| stop.is_cancelled());
                match result {
                    Ok(()) => {
                        self.on_disk.insert(digest);
                        self.fetch_failures = 0;
                        // What went wrong on the way is no news any more.
                        if self.journal.attempt.as_ref().is_some_and(|attempt| attempt.run.is_none()) {
                            self.journal.attempt = None;
                        }
                    }
                    // It may be desired again by now: then it is fetched again.
                    Err(_) if was_stopped => {
                        if let Err(error) = self.forget_archives().await {
                            self.log_failed_step(&error);
                        }
                    }
                    Err(error) if self.desired.release().is_some_and(|release| release.artifact == digest) => {
                        self.on_fetch_failed(error).await
                    }
                    Err(_) => {}
                }
            }
            Event::Uploaded(release, kept) => {
                self.uploads_output = false;
                let Some(digest) = kept else { return };
                self.output_uploaded_at = self.context.now();
                let mut journal = self.journal.clone();
                if let Some(attempt) = journal.attempt.as_mut().filter(|attempt| attempt.release == release) {
                    attempt.failure.output_blob = Some(digest);
                    self.commit_best_effort(journal).await;
                }
            }
        }
    }

    async fn on_fetch_failed(&mut self, error: DeliverError) {
        let timing = self.context.timing;
        self.fetch_failures = self.fetch_failures.saturating_add(1);
        let wait_ms = if error.retryable {
            backoff_ms(self.fetch_failures, timing.fetch_first, timing.fetch_most)
        } else {
            backoff_ms(self.fetch_failures, timing.retry_first, timing.retry_most)
        };
        // Half of it is spread, so that those who failed together do not return together.
        let wait_ms = wait_ms / 2 + (fastrand::f64() * wait_ms as f64 / 2.0) as u64;
        tracing::warn!(pipeline = %self.name, %error, retry_in_ms = wait_ms, "failed to fetch the release");
        self.hold_until = self.context.now() + wait_ms;
        let failed = !error.retryable;
        self.record_failure(None, failed, evidence::failure_without_instance(error.reason, error.hint)).await;
    }

    /// Records what went wrong with the desired release.
    async fn record_failure(&mut self, run: Option<u64>, failed: bool, failure: TargetFailure) {
        let Some(release) = self.desired.release().map(|release| release.release.clone()) else { return };
        let mut journal = self.journal.clone();
        journal.failed(release, run, failed, failure);
        self.commit_best_effort(journal).await;
    }

    /// Records, or where that fails goes on with it in memory: what is only reported must not stop anything.
    pub(super) async fn commit_best_effort(&mut self, journal: Journal) {
        if let Err(error) = self.commit(journal.clone()).await {
            self.log_failed_step(&error);
            self.journal = journal;
        }
    }

    /// Puts the journal on the disk; only then it counts.
    pub(super) async fn commit(&mut self, journal: Journal) -> Result<(), StepError> {
        let path = self.folder.join("journal");
        let written = tokio::task::spawn_blocking(move || checksummed_file::save(&path, MAGIC, &journal).map(|()| journal));
        self.journal = written.await.map_err(|_| StepError::Stopping)??;
        Ok(())
    }

    pub(super) fn log_failed_step(&self, error: &StepError) {
        tracing::error!(pipeline = %self.name, error = chain(error), "step failed, trying again");
    }

    /// Reports how things stand; returns when that changes by time alone.
    fn report(&mut self) -> Option<u64> {
        // An instance that was found again may hang: the report before holds until it was probed.
        if self.desired == Desired::Unknown || !self.unprobed.is_empty() {
            return None;
        }
        let view = self.view();
        let (progress, wake_at) = decide::progress(&view);
        let instances = self.journal.instances.iter().filter_map(|instance| {
            Some(InstanceObserved {
                service: instance.service.clone(),
                release: instance.release.clone(),
                ports: instance.ports.clone(),
                state: decide::instance_state(&view, instance)?,
                restarts: instance.restarts,
            })
        });
        let release = self.desired.release().map(|release| release.release.clone());
        let attempt = self.journal.attempt.as_ref().filter(|attempt| Some(&attempt.release) == release.as_ref());
        let report = Report {
            pipeline: self.name.clone(),
            progress,
            serving: decide::is_serving(&view),
            instances: instances.collect(),
            failure: attempt.map(|attempt| attempt.failure.clone()),
            release,
        };
        let leaving: Vec<u64> = decide::unconfirmed(&view).map(|instance| instance.id).collect();
        let version = self.context.reports.put(report);
        for id in leaving {
            self.departures.entry(id).or_insert(version);
        }
        self.confirm_departures();
        wake_at
    }

    /// Notes whose departure servers or gateways have confirmed.
    fn confirm_departures(&mut self) {
        if self.confirmed.is_none() {
            self.confirmed = self.context.reports.confirmed(&self.name);
        }
        let Some(confirmed) = self.confirmed.as_mut().map(|confirmed| *confirmed.borrow_and_update()) else { return };
        let (journal, observed) = (&self.journal, &mut self.observed);
        self.departures.retain(|id, version| {
            let Some(instance) = journal.instance(*id).filter(|instance| instance.role == Role::Leaving) else { return false };
            let is_confirmed = decide::is_confirmed(instance.departure, *version, confirmed);
            if let Some(observed) = observed.get_mut(id) {
                observed.confirmed |= is_confirmed;
            }
            !is_confirmed
        });
    }
}
