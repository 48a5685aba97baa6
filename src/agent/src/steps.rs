//! What each step does to the disk and to processes. Every one may be taken again after it was interrupted anywhere. Must not decide
//! which step is next.

use std::{fs, path::PathBuf};

use tokio_util::sync::CancellationToken;

use super::{
    decide::{self, Fault, Observed, Process, Step},
    deliver::{self, Place},
    disk::{blocking, ignore_missing, remove_shim},
    evidence::{self, LastSeen},
    journal::{Departure, Instance, Journal, Role},
    options::backoff_ms,
    pipeline::{Event, Pipeline, StepError},
};
use swell_model::{digest::Digest, fleet::observation::TargetFailure, ids::ReleaseId, pipeline_file::Start};
use swell_system::files::failed;

impl Pipeline {
    /// Takes one step.
    pub(super) async fn take(&mut self, step: Step) -> Result<(), StepError> {
        match step {
            Step::Fetch => self.fetch(),
            Step::Start { service, ports } => return self.start(&service, ports).await,
            Step::NoPort { service, port } => self.no_port(&service, &port).await,
            Step::Blocked { service, by } => self.blocked(&service, by).await,
            Step::Restart(id) => return self.restart(id).await,
            Step::Fail { id, fault } => self.fail(id, fault).await,
            Step::Switch => return self.switch().await,
            Step::Leave(id) => return self.leave(id).await,
            Step::Return(id) => return self.take_back(id).await,
            Step::Drain(id) => self.drain(id).await,
            Step::Stop(id) => self.stop(id),
            Step::Forget(id) => return self.forget(id).await,
            Step::Retire => {
                let mut journal = self.journal.clone();
                (journal.active, journal.attempt) = (None, None);
                // No rollback leads back here: the releases are removed next.
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
        let Some(release) = self.desired.release().cloned() else { return };
        let stop = CancellationToken::new();
        self.fetching = Some((release.artifact, stop.clone()));
        let (origin, events) = (self.context.origin(), self.events.clone());
        let place = Place {
            release: self.release_dir(release.artifact),
            archives: self.folder.join("fetch"),
            reserve: self.context.reserve,
        };
        tokio::spawn(async move {
            let result = deliver::deliver(&origin, &release, &place, &stop).await;
            // Nobody receives it once the pipeline's task has ended: the next one fetches on.
            events.send(Event::Fetched(release.artifact, result)).await.ok();
        });
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
        tracing::warn!(pipeline = %self.name, release = %instance.release, reason = failure.reason, "release failed");
        let (release, desired) = (instance.release.clone(), self.desired.clone());
        let departure_of = move |other: &Instance| decide::departure_of(other, &desired);
        self.failed(Some(instance.run), failure, move |journal| {
            let beside = |other: &&Instance| {
                other.role == Role::New && other.release == release && other.settings.settings.start == Start::Beside
            };
            let leaving: Vec<_> = journal.instances.iter().filter(beside).map(|other| (other.id, departure_of(other))).collect();
            leaving.into_iter().for_each(|(id, departure)| journal.leave(id, departure));
        })
        .await;
        self.upload_output(instance.release, last.output);
    }

    /// Sends the output of a failure of `release`, the desired one, to the content store where that is worth it.
    pub(super) fn upload_output(&mut self, release: ReleaseId, output: Vec<u8>) {
        let before = self.journal.attempt.as_ref().map(|attempt| &attempt.failure);
        if self.uploads_output || !evidence::is_worth_uploading(&output, before, self.output_uploaded_at, self.context.now()) {
            return;
        }
        self.uploads_output = true;
        let (origin, events) = (self.context.origin(), self.events.clone());
        tokio::spawn(async move {
            let digest = deliver::upload(&origin, output).await;
            // Nobody receives it once the pipeline's task has ended.
            events.send(Event::Uploaded(release, digest)).await.ok();
        });
    }

    /// Records that the desired release failed, with what follows from that, and holds the next attempt back.
    pub(super) async fn failed(&mut self, run: Option<u64>, failure: TargetFailure, change: impl FnOnce(&mut Journal)) {
        let Some(release) = self.desired.release().map(|release| release.release.clone()) else { return };
        let mut journal = self.journal.clone();
        journal.failed(release, run, true, failure);
        let failures = journal.attempt.as_ref().map_or(1, |attempt| attempt.failures);
        change(&mut journal);
        self.commit_best_effort(journal).await;
        swell_system::crash::point("agent::failure_recorded");
        self.hold_until =
            self.context.now() + backoff_ms(failures, self.context.timing.retry_first, self.context.timing.retry_most);
    }

    async fn switch(&mut self) -> Result<(), StepError> {
        let Some(release) = self.desired.release() else { return Ok(()) };
        tracing::info!(pipeline = %self.name, release = %release.release, "switching");
        let mut journal = self.journal.clone();
        let artifact = release.artifact;
        journal.switch(release, |instance| decide::departure_of(instance, &self.desired));
        self.commit(journal).await?;
        swell_system::crash::point("agent::switch_recorded");
        self.link(Some(artifact)).await?;
        swell_system::crash::point("agent::linked");
        Ok(())
    }

    async fn leave(&mut self, id: u64) -> Result<(), StepError> {
        let answered = matches!(self.observed.get(&id), Some(Observed { process: Process::Up { passed: true, .. }, .. }));
        let mut journal = self.journal.clone();
        if let Some(instance) = journal.instance_mut(id) {
            // In place there is no switch before which nobody knew of it.
            instance.served |= answered && instance.settings.settings.start == Start::InPlace;
            let departure = decide::departure_of(instance, &self.desired);
            journal.leave(id, departure);
        }
        self.commit(journal).await?;
        swell_system::crash::point("agent::leave_recorded");
        Ok(())
    }

    async fn take_back(&mut self, id: u64) -> Result<(), StepError> {
        let mut journal = self.journal.clone();
        if let Some(instance) = journal.instance_mut(id) {
            instance.role = Role::New;
        }
        self.commit(journal).await?;
        self.departures.remove(&id);
        if let Some(observed) = self.observed.get_mut(&id) {
            observed.confirmed = false;
        }
        Ok(())
    }

    async fn drain(&mut self, id: u64) {
        let mut journal = self.journal.clone();
        if let Some(instance) = journal.instance_mut(id) {
            instance.departure = Departure::Confirmed;
            tracing::info!(pipeline = %self.name, instance = instance.name(), "departure confirmed, draining");
        }
        self.commit_best_effort(journal).await;
        swell_system::crash::point("agent::drain_recorded");
        let now = self.context.now();
        if let Some(observed) = self.observed.get_mut(&id) {
            observed.draining_since = now;
        }
    }

    fn stop(&mut self, id: u64) {
        let Some(watcher) = self.watchers.get(&id) else { return };
        watcher.stop();
        self.unprobed.remove(&id);
        if let Some(Observed { process: Process::Up { stopping, .. }, .. }) = self.observed.get_mut(&id) {
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
        self.departures.remove(&id);
        self.observed.remove(&id);
        self.last.remove(&id);
        self.watchers.remove(&id);
        Ok(())
    }

    async fn remove(&mut self, digest: Digest) -> Result<(), StepError> {
        let (release, archive) = (self.release_dir(digest), self.folder.join("fetch").join(format!("{}.tar.zst", digest.hex())));
        blocking(move || {
            // Renamed first: what is half removed must not be taken for a release.
            let aside = release.with_extension("removed");
            ignore_missing(fs::rename(&release, &aside)).map_err(failed("remove", &release))?;
            ignore_missing(fs::remove_dir_all(&aside)).map_err(failed("remove", &aside))?;
            ignore_missing(fs::remove_file(&archive)).map_err(failed("remove", &archive))
        })
        .await?;
        swell_system::crash::point("agent::removed");
        self.on_disk.remove(&digest);
        Ok(())
    }

    /// Points the link `current/PIPELINE` to the release. Atomic; does nothing where it does already.
    pub(super) async fn link(&self, artifact: Option<Digest>) -> Result<(), StepError> {
        let folder = self.context.data_dir.join("current");
        let link = folder.join(self.name.as_str());
        let target = artifact.map(|artifact| self.release_dir(artifact));
        blocking(move || {
            let Some(target) = target else {
                return ignore_missing(fs::remove_file(&link)).map_err(failed("remove", &link));
            };
            if fs::read_link(&link).is_ok_and(|present| present == target) {
                return Ok(());
            }
            let mut beside = link.clone().into_os_string();
            beside.push("@new");
            ignore_missing(fs::remove_file(&beside)).map_err(failed("replace", &link))?;
            let made = fs::create_dir_all(&folder).and_then(|()| std::os::unix::fs::symlink(&target, &beside));
            let named = made.and_then(|()| fs::rename(&beside, &link)).and_then(|()| fs::File::open(&folder)?.sync_all());
            named.map_err(failed("replace", &link))
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
