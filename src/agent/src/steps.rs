//! What each step does to the disk and to processes. Every one may be taken again after it was interrupted anywhere. Must not decide
//! which step is next.

use std::{
    collections::BTreeMap,
    fs, io,
    path::{Path, PathBuf},
};

use tokio_util::sync::CancellationToken;

use super::{
    decide::{Fault, Process, Seen, Step, UNHEALTHY_AFTER_FAILURES, Wanted},
    deliver::{self, Place},
    evidence::{self, LastSeen},
    host::make_open_folder,
    journal::{Instance, Journal, Role},
    launch::{Launch, Refusal},
    options::backoff_ms,
    pipeline::{Event, Pipeline, StepError},
    probe::Question,
    saved::{self, SavedError},
    taken::taken_by,
    watch::{Pulse, Watch},
};
use swell_model::{
    digest::Digest,
    ids::{PortName, ReleaseId, ServiceName},
    pipeline_file::{Probe, Start},
};
use swell_sandbox::{
    runtime::{self, ShimHandle, ShimStatus},
    shim::ExitRecord,
};
use swell_system::error_chain::chain;

impl Pipeline {
    /// Finds everything as the journal and the disk say, after whatever happened.
    pub(super) async fn recover(&mut self) -> Result<(), StepError> {
        let folder = self.folder.clone();
        (self.journal, self.on_disk) = blocking(move || {
            let releases = folder.join("releases");
            for open in [&folder, &releases] {
                make_open_folder(open).map_err(io_error("making folder", open))?;
            }
            Ok((load_journal(&folder)?, releases_in(&releases)?))
        })
        .await?;
        (self.seen, self.last) = (BTreeMap::new(), BTreeMap::new());
        self.unasked.clear();
        let dirs = self.folder.join("instances");
        let known: Vec<String> = self.journal.instances.iter().map(Instance::name).collect();
        let strangers = blocking(move || {
            Ok(names_in(&dirs)?.into_iter().filter(|name| !known.contains(name)).map(|name| dirs.join(name)).collect::<Vec<_>>())
        })
        .await?;
        for stranger in strangers {
            if let Err(error) = remove_shim(&stranger).await {
                // A process that does not die must not keep all others waiting; it is tried again when the agent starts.
                self.complain(&error);
            }
        }
        for instance in self.journal.instances.clone() {
            let dir = self.dir_of(&instance);
            let now = self.shared.now();
            self.seen.insert(instance.id, Seen::down(now));
            match runtime::status(&dir).await? {
                ShimStatus::Running(_) => {
                    if let Some(handle) = runtime::adopt(&dir).await? {
                        self.adopt(&instance, handle);
                    }
                }
                ShimStatus::Exited(record) => self.ended_meanwhile(&instance, record).await,
                ShimStatus::NotStarted | ShimStatus::Vanished => {}
            }
        }
        if self.wanted != Wanted::Unknown {
            self.forget_archives().await?;
        }
        let active = self.journal.active.as_ref().map(|active| active.artifact);
        self.link(active).await
    }

    /// Removes what is on its way of releases that are not wanted.
    pub(super) async fn forget_archives(&self) -> Result<(), StepError> {
        let wanted = self.wanted.release().map(|release| release.artifact);
        let archives = self.folder.join("fetch");
        blocking(move || deliver::forget_others(&archives, wanted).map_err(io_error("removing archives in", &archives))).await
    }

    fn adopt(&mut self, instance: &Instance, handle: ShimHandle) {
        let now = self.shared.now();
        tracing::info!(pipeline = %self.name, instance = instance.name(), "goes on with a running instance");
        // What was current has proven itself; it need not do so again only because the agent was started again. But whether it still
        // answers only a probe says, and one that fails is believed.
        let proven = instance.role == Role::Current || instance.served;
        match Launch::of(&self.name, instance, &self.release_dir(instance.artifact), &self.shared.around) {
            Ok(launch) => {
                let question = Question::of(instance, self.shared.around.info.address, &launch);
                let pulse = if matches!(question, Question::Alive) {
                    Pulse { passing_since: proven.then_some(now), passed: proven, ..Pulse::default() }
                } else {
                    self.unasked.insert(instance.id);
                    Pulse { passed: proven, failures: if proven { UNHEALTHY_AFTER_FAILURES - 1 } else { 0 }, ..Pulse::default() }
                };
                self.watch(instance, handle, question, pulse);
            }
            Err(refusal) => {
                tracing::error!(pipeline = %self.name, instance = instance.name(), error = %refusal, "cannot be probed")
            }
        }
    }

    async fn ended_meanwhile(&mut self, instance: &Instance, record: ExitRecord) {
        let now = self.shared.now();
        let stopping = record.stopped;
        let process = Process::Up { since: now, passing_since: None, failures: 0, passed: false, stopping };
        if let Some(seen) = self.seen.get_mut(&instance.id) {
            seen.process = process;
        }
        self.ended(instance.id, Some(record)).await;
        // It waited long enough while there was no agent.
        if let Some(Seen { process: Process::Down { restart_at, .. }, .. }) = self.seen.get_mut(&instance.id) {
            *restart_at = now;
        }
    }

    /// Takes one step.
    pub(super) async fn take(&mut self, step: Step) -> Result<(), StepError> {
        match step {
            Step::Fetch => self.fetch(),
            Step::Start { service, ports } => return self.start(&service, ports).await,
            Step::NoPort { service, port } => self.no_port(&service, &port).await,
            Step::Held { service, by } => self.held(&service, by).await,
            Step::Restart(id) => return self.restart(id).await,
            Step::Fail { id, fault } => self.fail(id, fault).await,
            Step::Switch => return self.switch().await,
            Step::Leave(id) => return self.leave(id).await,
            Step::Return(id) => {
                let mut journal = self.journal.clone();
                if let Some(instance) = journal.instance_mut(id) {
                    instance.role = Role::New;
                }
                return self.commit(journal).await;
            }
            Step::Stop(id) => self.stop(id),
            Step::Forget(id) => return self.forget(id).await,
            Step::Retire => {
                let mut journal = self.journal.clone();
                (journal.active, journal.attempt) = (None, None);
                // Nobody goes back to what is not wanted here any more: the releases are removed next.
                journal.activated.clear();
                self.forget_archives().await?;
                self.link(None).await?;
                return self.commit(journal).await;
            }
            Step::Remove(digest) => return self.remove(digest).await,
        }
        Ok(())
    }

    fn fetch(&mut self) {
        let Some(release) = self.wanted.release().cloned() else { return };
        let stop = CancellationToken::new();
        self.fetching = Some((release.artifact, stop.clone()));
        let (origin, events) = (self.shared.origin(), self.events.clone());
        let place = Place {
            release: self.release_dir(release.artifact),
            archives: self.folder.join("fetch"),
            reserve: self.shared.reserve,
        };
        tokio::spawn(async move {
            let result = deliver::deliver(&origin, &release, &place, &stop).await;
            // The pipeline's task has ended: the next one goes on.
            events.send(Event::Delivered(release.artifact, result)).await.ok();
        });
    }

    async fn start(&mut self, service: &ServiceName, ports: BTreeMap<PortName, u16>) -> Result<(), StepError> {
        let Some(release) = self.wanted.release() else { return Ok(()) };
        let Some(settings) = release.services.get(service) else { return Ok(()) };
        let mut journal = self.journal.clone();
        let id = journal.add(release, service, settings, ports);
        self.commit(journal).await?;
        swell_system::crash::point("agent::start_recorded");
        self.seen.insert(id, Seen::down(self.shared.now()));
        self.launch(id).await
    }

    async fn restart(&mut self, id: u64) -> Result<(), StepError> {
        let Some(instance) = self.journal.instance(id) else { return Ok(()) };
        remove_shim(&self.dir_of(instance)).await?;
        let mut journal = self.journal.clone();
        journal.rerun(id);
        self.commit(journal).await?;
        swell_system::crash::point("agent::start_recorded");
        if let Some(seen) = self.seen.get_mut(&id) {
            seen.troubles = 0;
        }
        self.launch(id).await
    }

    /// Starts the process of an instance that is recorded. That it could not be started is seen as its end.
    async fn launch(&mut self, id: u64) -> Result<(), StepError> {
        let Some(instance) = self.journal.instance(id).cloned() else { return Ok(()) };
        self.last.insert(id, LastSeen::default());
        match self.try_launch(&instance).await {
            Ok(()) => swell_system::crash::point("agent::started"),
            Err(refusal) => {
                self.last.entry(id).or_default().refusal = Some(refusal);
                self.ended(id, None).await;
            }
        }
        Ok(())
    }

    async fn try_launch(&mut self, instance: &Instance) -> Result<(), Refusal> {
        let launch = Launch::of(&self.name, instance, &self.release_dir(instance.artifact), &self.shared.around)?;
        self.check_ports(instance).await?;
        launch.prepare().await?;
        let dir = self.dir_of(instance);
        let spec = launch.spec(self.shared.around.isolated);
        let started = self.shared.runtime.start(&dir, &spec).await;
        let handle = started.map_err(|error| Refusal {
            reason: format!("service {} could not be started: {}", instance.service, chain(&error)),
            hint: "check the service's `command`, and this target's disk and memory".to_owned(),
        })?;
        // A service without a probe passes from the beginning.
        let is_alive = matches!(instance.settings.settings.health.probe(), Probe::Alive);
        let pulse = Pulse { passing_since: is_alive.then(|| self.shared.now()), passed: is_alive, ..Pulse::default() };
        tracing::info!(pipeline = %self.name, release = %instance.release, instance = instance.name(), "started");
        let question = Question::of(instance, self.shared.around.info.address, &launch);
        self.watch(instance, handle, question, pulse);
        Ok(())
    }

    /// A port that a sibling shares is no stranger's.
    async fn check_ports(&self, instance: &Instance) -> Result<(), Refusal> {
        let shared = |port: &u16| {
            let siblings =
                self.journal.instances.iter().filter(|other| other.id != instance.id && other.service == instance.service);
            siblings.into_iter().any(|other| other.ports.values().any(|taken| taken == port))
        };
        let ports: Vec<(PortName, u16)> =
            instance.ports.iter().filter(|(_, port)| !shared(port)).map(|(name, port)| (name.clone(), *port)).collect();
        let looked = tokio::task::spawn_blocking(move || {
            ports.into_iter().find_map(|(name, port)| taken_by(port).map(|who| (name, port, who)))
        });
        let Ok(Some((name, port, who))) = looked.await else { return Ok(()) };
        Err(Refusal {
            reason: format!("port {port} ({name}) of service {} is taken by {who}", instance.service),
            hint: "stop that program, or give the service another port in swell.toml (`\"auto\"` takes a free one)".to_owned(),
        })
    }

    fn watch(&mut self, instance: &Instance, handle: ShimHandle, question: Question, pulse: Pulse) {
        let now = self.shared.now();
        let Pulse { passing_since, failures, passed, .. } = pulse;
        if let Some(seen) = self.seen.get_mut(&instance.id) {
            seen.process = Process::Up { since: now, passing_since, failures, passed, stopping: false };
        }
        let watch = Watch {
            key: (instance.id, instance.run),
            handle,
            question,
            health: instance.settings.settings.health.clone(),
            stop_timeout: instance.settings.settings.stop.timeout,
            pulse,
            clock: self.shared.clock,
            sights: self.sights.clone(),
        };
        self.watchers.insert(instance.id, watch.spawn());
    }

    async fn no_port(&mut self, service: &ServiceName, port: &PortName) {
        let mut failure = evidence::failure_without_instance(
            format!("service {service} has no number for its port `{port}` on this target"),
            "widen the target's range of ports (`ports` in the agent's configuration)".to_owned(),
        );
        failure.service = Some(service.clone());
        self.failed(None, failure, |_| ()).await;
    }

    async fn held(&mut self, service: &ServiceName, by: u64) {
        let Some(holder) = self.journal.instance(by).map(Instance::name) else { return };
        let mut failure = evidence::failure_without_instance(
            format!("service {service} cannot be started: {holder}, which ran before, does not end and has its ports"),
            "see what its processes hang on, such as a disk; else restart this target".to_owned(),
        );
        failure.service = Some(service.clone());
        self.failed(None, failure, |_| ()).await;
    }

    async fn fail(&mut self, id: u64, fault: Fault) {
        let Some(instance) = self.journal.instance(id).cloned() else { return };
        let last = self.last.entry(id).or_default().clone();
        let last = if last.output.is_empty() && last.refusal.is_none() {
            let dir = self.dir_of(&instance);
            let output = tokio::task::spawn_blocking(move || evidence::output_tail(&dir)).await.unwrap_or_default();
            LastSeen { output, ..last }
        } else {
            last
        };
        let failure = evidence::failure_of(&instance, fault, &last);
        tracing::warn!(pipeline = %self.name, release = %instance.release, reason = failure.reason, "the release failed");
        let release = instance.release.clone();
        self.failed(Some(instance.run), failure, move |journal| {
            let beside = |other: &&mut Instance| {
                other.role == Role::New && other.release == release && other.settings.settings.start == Start::Beside
            };
            journal.instances.iter_mut().filter(beside).for_each(|other| other.role = Role::Leaving);
        })
        .await;
        self.keep_output(instance.release, last.output);
    }

    /// Sends the output of a failure of `release`, the wanted one, to the content store where that is worth it.
    pub(super) fn keep_output(&mut self, release: ReleaseId, output: Vec<u8>) {
        let before = self.journal.attempt.as_ref().map(|attempt| &attempt.failure);
        if self.sends_output || !evidence::is_worth_keeping(&output, before, self.output_kept_at, self.shared.now()) {
            return;
        }
        self.sends_output = true;
        let (origin, events) = (self.shared.origin(), self.events.clone());
        tokio::spawn(async move {
            let kept = deliver::upload(&origin, output).await;
            // The pipeline's task has ended: it will have other evidence.
            events.send(Event::Kept(release, kept)).await.ok();
        });
    }

    /// Records that the wanted release failed, with what follows from that, and holds the next attempt back.
    async fn failed(
        &mut self,
        run: Option<u64>,
        failure: swell_model::fleet::observation::TargetFailure,
        change: impl FnOnce(&mut Journal),
    ) {
        let Some(release) = self.wanted.release().map(|release| release.release.clone()) else { return };
        let mut journal = self.journal.clone();
        let stayed = journal.staying();
        journal.failed(release, run, true, failure);
        let failures = journal.attempt.as_ref().map_or(1, |attempt| attempt.failures);
        change(&mut journal);
        self.commit_or_keep(journal).await;
        swell_system::crash::point("agent::failure_recorded");
        self.begin_leaving(&stayed);
        self.hold_until = self.shared.now() + backoff_ms(failures, self.shared.timing.retry_first, self.shared.timing.retry_most);
    }

    async fn switch(&mut self) -> Result<(), StepError> {
        let Some(release) = self.wanted.release() else { return Ok(()) };
        tracing::info!(pipeline = %self.name, release = %release.release, "switches");
        let mut journal = self.journal.clone();
        let artifact = release.artifact;
        let stayed = journal.staying();
        journal.switch(release);
        self.commit(journal).await?;
        swell_system::crash::point("agent::switch_recorded");
        self.begin_leaving(&stayed);
        self.link(Some(artifact)).await?;
        swell_system::crash::point("agent::linked");
        Ok(())
    }

    /// Of `ids` those that leave now.
    fn begin_leaving(&mut self, ids: &[u64]) {
        let now = self.shared.now();
        for id in ids {
            if self.journal.instance(*id).is_some_and(|instance| instance.role == Role::Leaving)
                && let Some(seen) = self.seen.get_mut(id)
            {
                seen.leaving_since = now;
            }
        }
    }

    async fn leave(&mut self, id: u64) -> Result<(), StepError> {
        let answered = matches!(self.seen.get(&id), Some(Seen { process: Process::Up { passed: true, .. }, .. }));
        let mut journal = self.journal.clone();
        if let Some(instance) = journal.instance_mut(id) {
            // In place there is no switch before which nobody knew of it.
            instance.served |= answered && instance.settings.settings.start == Start::InPlace;
            instance.role = Role::Leaving;
        }
        self.commit(journal).await?;
        swell_system::crash::point("agent::leave_recorded");
        self.begin_leaving(&[id]);
        Ok(())
    }

    fn stop(&mut self, id: u64) {
        let Some(watcher) = self.watchers.get(&id) else { return };
        watcher.stop();
        self.unasked.remove(&id);
        if let Some(Seen { process: Process::Up { stopping, .. }, .. }) = self.seen.get_mut(&id) {
            *stopping = true;
        }
        swell_system::crash::point("agent::stop_asked");
    }

    async fn forget(&mut self, id: u64) -> Result<(), StepError> {
        let Some(instance) = self.journal.instance(id) else { return Ok(()) };
        remove_shim(&self.dir_of(instance)).await?;
        swell_system::crash::point("agent::cleared");
        let mut journal = self.journal.clone();
        journal.instances.retain(|instance| instance.id != id);
        self.commit(journal).await?;
        swell_system::crash::point("agent::forgotten");
        self.seen.remove(&id);
        self.last.remove(&id);
        self.watchers.remove(&id);
        Ok(())
    }

    async fn remove(&mut self, digest: Digest) -> Result<(), StepError> {
        let (release, archive) = (self.release_dir(digest), self.folder.join("fetch").join(format!("{}.tar.zst", digest.hex())));
        blocking(move || {
            // Renamed first: what is half removed must not be taken for a release.
            let aside = release.with_extension("removed");
            ignore_missing(fs::rename(&release, &aside)).map_err(io_error("removing release", &release))?;
            ignore_missing(fs::remove_dir_all(&aside)).map_err(io_error("removing release", &aside))?;
            ignore_missing(fs::remove_file(&archive)).map_err(io_error("removing archive", &archive))
        })
        .await?;
        swell_system::crash::point("agent::removed");
        self.on_disk.remove(&digest);
        Ok(())
    }

    /// Lets `current/PIPELINE` name the release; atomic, and nothing where it does already.
    async fn link(&self, artifact: Option<Digest>) -> Result<(), StepError> {
        let folder = self.shared.data_dir.join("current");
        let link = folder.join(self.name.as_str());
        let target = artifact.map(|artifact| self.release_dir(artifact));
        blocking(move || {
            let Some(target) = target else {
                return ignore_missing(fs::remove_file(&link)).map_err(io_error("removing link", &link));
            };
            if fs::read_link(&link).is_ok_and(|present| present == target) {
                return Ok(());
            }
            let mut beside = link.clone().into_os_string();
            beside.push("@new");
            ignore_missing(fs::remove_file(&beside)).map_err(io_error("replacing link", &link))?;
            let made = fs::create_dir_all(&folder).and_then(|()| std::os::unix::fs::symlink(&target, &beside));
            let named = made.and_then(|()| fs::rename(&beside, &link)).and_then(|()| fs::File::open(&folder)?.sync_all());
            named.map_err(io_error("replacing link", &link))
        })
        .await
    }

    pub(super) fn dir_of(&self, instance: &Instance) -> PathBuf {
        self.folder.join("instances").join(instance.name())
    }

    pub(super) fn release_dir(&self, artifact: Digest) -> PathBuf {
        self.folder.join("releases").join(artifact.hex())
    }
}

fn load_journal(folder: &Path) -> Result<Journal, StepError> {
    let path = folder.join("journal");
    match saved::load(&path) {
        Ok(journal) => Ok(journal.unwrap_or_default()),
        Err(error @ SavedError::Damaged { .. }) => {
            tracing::error!(%error, "begins anew: what ran is ended and started again");
            fs::rename(&path, path.with_extension("damaged")).map_err(io_error("setting aside", &path))?;
            Ok(Journal::default())
        }
        Err(error) => Err(error.into()),
    }
}

/// The releases that are whole; removes what is left of others.
fn releases_in(folder: &Path) -> Result<std::collections::BTreeSet<Digest>, StepError> {
    let mut found = std::collections::BTreeSet::new();
    for name in names_in(folder)? {
        match name.parse() {
            Ok(digest) => drop(found.insert(digest)),
            Err(_) => {
                let path = folder.join(&name);
                ignore_missing(fs::remove_dir_all(&path)).map_err(io_error("removing", &path))?;
            }
        }
    }
    Ok(found)
}

fn names_in(folder: &Path) -> Result<Vec<String>, StepError> {
    let entries = match fs::read_dir(folder) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        entries => entries.map_err(io_error("reading folder", folder))?,
    };
    Ok(entries.flatten().filter_map(|entry| entry.file_name().into_string().ok()).collect())
}

/// Ends whatever runs under the shim in `dir` and removes the folder.
async fn remove_shim(dir: &Path) -> Result<(), StepError> {
    runtime::clear(dir).await?;
    let dir = dir.to_owned();
    blocking(move || ignore_missing(fs::remove_dir_all(&dir)).map_err(io_error("removing shim folder", &dir))).await
}

fn ignore_missing(result: io::Result<()>) -> io::Result<()> {
    match result {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        result => result,
    }
}

fn io_error(what: &'static str, path: &Path) -> impl FnOnce(io::Error) -> StepError {
    let path = path.to_owned();
    move |source| StepError::Io { what, path, source }
}

async fn blocking<T: Send + 'static>(work: impl FnOnce() -> Result<T, StepError> + Send + 'static) -> Result<T, StepError> {
    tokio::task::spawn_blocking(work).await.map_err(|_| StepError::Stopping)?
}
