//! One pipeline on this target: a task that asks the rules for the next step, takes it, and otherwise sleeps until something happens.
//! Knows nothing of sessions; the steps themselves are in `steps`.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::PathBuf,
    sync::Arc,
    time::{Duration, Instant},
};

use tokio::{
    sync::{mpsc, watch},
    time::sleep,
};
use tokio_util::sync::CancellationToken;

use super::{
    decide::{self, Next, Process, Seen, View, Wanted},
    deliver::{DeliverError, Origin},
    evidence::{self, LastSeen},
    journal::{Journal, Role},
    launch::Surroundings,
    options::{Timing, backoff_ms},
    reports::Reports,
    saved::{self, SavedError},
    watch::{Sight, Watcher},
};
use swell_model::{
    digest::Digest,
    fleet::observation::{InstanceObserved, Report, TargetFailure},
    ids::{PipelineName, ReleaseId},
    units::ByteSize,
    wire::AgentId,
};
use swell_sandbox::{
    runtime::{self, RuntimeError, ShimRuntime},
    shim::ExitRecord,
};
use swell_system::error_chain::chain;

/// How many sights of instances may wait.
const SIGHTS_MAX: usize = 64;
/// The pause after a step that could not be taken, such as on a full disk.
const TROUBLE_PAUSE: Duration = Duration::from_secs(1);
/// After so many steps without a pause something is wrong with the rules: slow down rather than spin.
const STEPS_MAX: u32 = 200;

/// What all pipelines of an agent share.
pub(super) struct Shared {
    /// Tells this agent from another with its name.
    pub id: AgentId,
    pub data_dir: PathBuf,
    pub around: Surroundings,
    pub runtime: ShimRuntime,
    pub timing: Timing,
    pub reserve: ByteSize,
    pub client: reqwest::Client,
    pub token: String,
    pub servers: Vec<String>,
    /// The server of the present session.
    pub server: watch::Sender<Option<String>>,
    pub reports: Reports,
    /// Where monotonic milliseconds begin.
    pub clock: Instant,
}

impl Shared {
    /// Monotonic milliseconds.
    pub fn now(&self) -> u64 {
        self.clock.elapsed().as_millis() as u64
    }

    /// The servers as a source of bytes, that of the session first.
    pub fn origin(&self) -> Origin {
        let first = self.server.borrow().clone();
        let rest = self.servers.iter().filter(|server| first.as_ref() != Some(server)).cloned();
        let servers = first.clone().into_iter().chain(rest).collect();
        Origin { client: self.client.clone(), token: self.token.clone(), servers }
    }
}

/// Why a step was not taken. It is tried again.
#[derive(Debug, thiserror::Error)]
pub(super) enum StepError {
    #[error(transparent)]
    Saved(#[from] SavedError),
    #[error(transparent)]
    Runtime(#[from] RuntimeError),
    #[error("{what} {}: {source}", path.display())]
    Io { what: &'static str, path: PathBuf, source: std::io::Error },
    #[error("the agent is stopping")]
    Stopping,
}

/// What arrives from the tasks beside.
#[derive(Debug)]
pub(super) enum Event {
    Delivered(Digest, Result<(), DeliverError>),
    /// The output of a release's failure is in the content store, or no server took it.
    Kept(ReleaseId, Option<Digest>),
}

/// The state of the task.
pub(super) struct Pipeline {
    pub(super) shared: Arc<Shared>,
    pub(super) name: PipelineName,
    pub(super) folder: PathBuf,
    pub(super) wanted: Wanted,
    pub(super) journal: Journal,
    pub(super) on_disk: BTreeSet<Digest>,
    pub(super) seen: BTreeMap<u64, Seen>,
    pub(super) last: BTreeMap<u64, LastSeen>,
    pub(super) watchers: BTreeMap<u64, Watcher>,
    /// Instances that were found running and whose first probe has no answer yet. Until then there is nothing to report.
    pub(super) unasked: BTreeSet<u64>,
    pub(super) fetching: Option<(Digest, CancellationToken)>,
    pub(super) fetch_failures: u32,
    pub(super) hold_until: u64,
    /// Whether output is on its way to the content store.
    pub(super) sends_output: bool,
    /// When it last got there.
    pub(super) output_kept_at: u64,
    pub(super) sights: mpsc::Sender<((u64, u64), Sight)>,
    pub(super) events: mpsc::Sender<Event>,
}

/// Converges `name` on whatever `wants` says, until `stop`. Instances go on when it ends.
pub(super) async fn run(shared: Arc<Shared>, name: PipelineName, mut wants: watch::Receiver<Wanted>, stop: CancellationToken) {
    let (sights, mut seen) = mpsc::channel(SIGHTS_MAX);
    let (events, mut happened) = mpsc::channel(SIGHTS_MAX);
    let folder = shared.data_dir.join("pipelines").join(name.as_str());
    let wanted = wants.borrow_and_update().clone();
    let mut pipeline = Pipeline {
        shared,
        name,
        folder,
        wanted,
        journal: Journal::default(),
        on_disk: BTreeSet::new(),
        seen: BTreeMap::new(),
        last: BTreeMap::new(),
        watchers: BTreeMap::new(),
        unasked: BTreeSet::new(),
        fetching: None,
        fetch_failures: 0,
        hold_until: 0,
        sends_output: false,
        output_kept_at: 0,
        sights,
        events,
    };
    while let Err(error) = pipeline.recover().await {
        pipeline.complain(&error);
        tokio::select! {
            () = stop.cancelled() => return,
            () = sleep(TROUBLE_PAUSE) => {}
        }
    }
    loop {
        let wake_at = pipeline.settle(&stop).await;
        let now = pipeline.shared.now();
        let pause = wake_at.map(|at| Duration::from_millis(at.saturating_sub(now)));
        tokio::select! {
            () = stop.cancelled() => return,
            changed = wants.changed() => {
                if changed.is_err() {
                    return;
                }
                let wanted = wants.borrow_and_update().clone();
                pipeline.want(wanted);
            }
            Some((key, sight)) = seen.recv() => pipeline.see(key, sight).await,
            Some(event) = happened.recv() => pipeline.hear(event).await,
            () = sleep(pause.unwrap_or(Duration::MAX)), if pause.is_some() => {}
        }
    }
}

impl Pipeline {
    pub(super) fn view(&self) -> View<'_> {
        View {
            now: self.shared.now(),
            wanted: &self.wanted,
            journal: &self.journal,
            seen: &self.seen,
            on_disk: &self.on_disk,
            fetching: self.fetching.is_some(),
            hold_until: self.hold_until,
        }
    }

    /// Takes steps until there is none; says when there may be one again.
    async fn settle(&mut self, stop: &CancellationToken) -> Option<u64> {
        let soon = |pipeline: &Self| Some(pipeline.shared.now() + TROUBLE_PAUSE.as_millis() as u64);
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
                        self.complain(&error);
                        match of_one {
                            Some(id) => self.postpone(id),
                            None => return soon(self),
                        }
                    }
                }
            }
        }
        tracing::error!(pipeline = %self.name, "too many steps without a pause: this is a defect, please report it");
        soon(self)
    }

    /// What could not be done with one instance is tried again later, and ever more seldom; the others do not wait for it.
    fn postpone(&mut self, id: u64) {
        let (now, timing) = (self.shared.now(), self.shared.timing);
        let seen = self.seen.entry(id).or_insert(Seen::down(now));
        seen.troubles = seen.troubles.saturating_add(1);
        let wait_ms = backoff_ms(seen.troubles, timing.restart_first, timing.restart_most);
        seen.retry_at = now + wait_ms.max(TROUBLE_PAUSE.as_millis() as u64);
    }

    fn want(&mut self, wanted: Wanted) {
        if self.wanted == wanted {
            return;
        }
        let artifact = wanted.release().map(|release| release.artifact);
        if let Some((fetching, stop)) = &self.fetching
            && artifact != Some(*fetching)
        {
            stop.cancel();
        }
        let name = wanted.release().map(|release| release.release.to_string());
        tracing::info!(pipeline = %self.name, target = %self.shared.around.info.name, release = name.as_deref(), "wanted");
        // Whatever failed so far failed with something else.
        (self.hold_until, self.fetch_failures, self.wanted) = (0, 0, wanted);
        let wanted = self.wanted.release().map(|release| &release.release);
        if self.journal.attempt.as_ref().is_some_and(|attempt| Some(&attempt.release) != wanted) {
            // On disk it goes with the next change; a restart before that drops it too.
            self.journal.attempt = None;
        }
    }

    async fn see(&mut self, (id, run): (u64, u64), sight: Sight) {
        let is_present = self.journal.instance(id).is_some_and(|instance| instance.run == run);
        let Some(seen) = self.seen.get_mut(&id).filter(|_| is_present) else { return };
        match sight {
            Sight::Pulse(pulse) => {
                self.unasked.remove(&id);
                if let Process::Up { passing_since, failures, passed, .. } = &mut seen.process {
                    (*passing_since, *failures, *passed) = (pulse.passing_since, pulse.failures, pulse.passed);
                }
                if pulse.answer.is_some() {
                    self.last.entry(id).or_default().probe = pulse.answer;
                }
            }
            Sight::Ended(record) => self.ended(id, record).await,
        }
    }

    /// The process of an instance is gone: keeps why, and when it may start again.
    pub(super) async fn ended(&mut self, id: u64, record: Option<ExitRecord>) {
        self.watchers.remove(&id);
        self.unasked.remove(&id);
        let now = self.shared.now();
        let Some(instance) = self.journal.instance(id).cloned() else { return };
        let Some(seen) = self.seen.get_mut(&id) else { return };
        let (since, was_asked) = match seen.process {
            Process::Up { since, stopping, .. } => (since, stopping),
            Process::Down { .. } => (now, false),
        };
        let (deaths, restart_at) = decide::after_end(seen.deaths, now.saturating_sub(since), now, &self.shared.timing);
        seen.deaths = deaths;
        seen.process = Process::Down { restart_at, died: !was_asked };
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
        tracing::warn!(pipeline = %self.name, release = %instance.release, instance = instance.name(), exit = failure.exit, "an instance died");
        if instance.role == Role::Current && self.wanted.release().is_some_and(|release| release.release == instance.release) {
            let output = last.output.clone();
            self.note(Some(instance.run), false, failure).await;
            self.keep_output(instance.release, output);
        }
    }

    async fn hear(&mut self, event: Event) {
        match event {
            Event::Delivered(digest, result) => {
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
                    // It may be wanted again by now: then it is fetched again.
                    Err(_) if was_stopped => {
                        if let Err(error) = self.forget_archives().await {
                            self.complain(&error);
                        }
                    }
                    Err(error) if self.wanted.release().is_some_and(|release| release.artifact == digest) => {
                        self.not_delivered(error).await
                    }
                    Err(_) => {}
                }
            }
            Event::Kept(release, kept) => {
                self.sends_output = false;
                let Some(digest) = kept else { return };
                self.output_kept_at = self.shared.now();
                let mut journal = self.journal.clone();
                if let Some(attempt) = journal.attempt.as_mut().filter(|attempt| attempt.release == release) {
                    attempt.failure.output_blob = Some(digest);
                    self.commit_or_keep(journal).await;
                }
            }
        }
    }

    async fn not_delivered(&mut self, error: DeliverError) {
        tracing::warn!(pipeline = %self.name, %error, "the release did not come");
        let timing = self.shared.timing;
        self.fetch_failures = self.fetch_failures.saturating_add(1);
        let wait_ms = if error.retryable {
            backoff_ms(self.fetch_failures, timing.fetch_first, timing.fetch_most)
        } else {
            backoff_ms(self.fetch_failures, timing.retry_first, timing.retry_most)
        };
        // Half of it is spread, so that those who failed together do not return together.
        let wait_ms = wait_ms / 2 + (fastrand::f64() * wait_ms as f64 / 2.0) as u64;
        self.hold_until = self.shared.now() + wait_ms;
        let failed = !error.retryable;
        self.note(None, failed, evidence::failure_without_instance(error.reason, error.hint)).await;
    }

    /// Records what went wrong with the wanted release.
    async fn note(&mut self, run: Option<u64>, failed: bool, failure: TargetFailure) {
        let Some(release) = self.wanted.release().map(|release| release.release.clone()) else { return };
        let mut journal = self.journal.clone();
        journal.failed(release, run, failed, failure);
        self.commit_or_keep(journal).await;
    }

    /// Records, or where that is impossible goes on with it in memory: what is only told must not stop anything.
    pub(super) async fn commit_or_keep(&mut self, journal: Journal) {
        if let Err(error) = self.commit(journal.clone()).await {
            self.complain(&error);
            self.journal = journal;
        }
    }

    /// Puts the journal on the disk; only then it counts.
    pub(super) async fn commit(&mut self, journal: Journal) -> Result<(), StepError> {
        let path = self.folder.join("journal");
        let written = tokio::task::spawn_blocking(move || saved::save(&path, &journal).map(|()| journal));
        self.journal = written.await.map_err(|_| StepError::Stopping)??;
        Ok(())
    }

    pub(super) fn complain(&self, error: &StepError) {
        tracing::error!(pipeline = %self.name, error = chain(error), "a step could not be taken, it is tried again");
    }

    /// Tells what there is to tell; says when that changes by time alone.
    fn report(&self) -> Option<u64> {
        let view = self.view();
        // An instance that was found again may hang: what was told before holds until it was asked.
        if self.wanted == Wanted::Unknown || !self.unasked.is_empty() {
            return None;
        }
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
        let release = self.wanted.release().map(|release| release.release.clone());
        let attempt = self.journal.attempt.as_ref().filter(|attempt| Some(&attempt.release) == release.as_ref());
        self.shared.reports.put(Report {
            pipeline: self.name.clone(),
            progress,
            serving: decide::is_serving(&view),
            instances: instances.collect(),
            failure: attempt.map(|attempt| attempt.failure.clone()),
            release,
        });
        wake_at
    }
}
