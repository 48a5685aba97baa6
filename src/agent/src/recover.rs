//! Taking up a pipeline again after whatever happened. Must not decide what follows.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::Path,
};

use super::{
    data_folder::{MAGIC, make_open_folder},
    decide::{Desired, Observed, Process, UNHEALTHY_AFTER_FAILURES},
    deliver,
    disk::{blocking, ignore_missing, names_in, remove_shim},
    journal::{Instance, Journal, Role},
    launch::Launch,
    pipeline::{Pipeline, StepError},
    probe::Question,
    watch::ProbeState,
};
use swell_model::digest::Digest;
use swell_sandbox::{
    runtime::{self, ShimHandle, ShimStatus},
    shim::ExitRecord,
};
use swell_system::{
    checksummed_file::{self, Error},
    files::failed,
};

impl Pipeline {
    /// Loads the journal, ends processes that it does not know and adopts those that it knows.
    pub(super) async fn recover(&mut self) -> Result<(), StepError> {
        let folder = self.folder.clone();
        (self.journal, self.on_disk) = blocking(move || {
            let releases = folder.join("releases");
            for open in [&folder, &releases] {
                make_open_folder(open).map_err(failed("create", open))?;
            }
            Ok::<_, StepError>((load_journal(&folder)?, releases_in(&releases)?))
        })
        .await?;
        (self.observed, self.last) = (BTreeMap::new(), BTreeMap::new());
        self.unprobed.clear();
        self.departures.clear();
        let dirs = self.folder.join("instances");
        let known: Vec<String> = self.journal.instances.iter().map(Instance::name).collect();
        let strangers = blocking(move || {
            Ok::<_, StepError>(
                names_in(&dirs)?.into_iter().filter(|name| !known.contains(name)).map(|name| dirs.join(name)).collect::<Vec<_>>(),
            )
        })
        .await?;
        for stranger in strangers {
            if let Err(error) = remove_shim(&stranger).await {
                // Tried again when the agent starts next: a process that does not die must not keep all others waiting.
                self.log_failed_step(&error);
            }
        }
        for instance in self.journal.instances.clone() {
            let dir = self.dir_of(&instance);
            let now = self.context.now();
            self.observed.insert(instance.id, Observed::down(now));
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
        if self.desired != Desired::Unknown {
            self.forget_archives().await?;
        }
        let active = self.journal.active.as_ref().map(|active| active.artifact);
        self.link(active).await
    }

    /// Removes archives of releases that are not desired.
    pub(super) async fn forget_archives(&self) -> Result<(), StepError> {
        let desired = self.desired.release().map(|release| release.artifact);
        let archives = self.folder.join("fetch");
        blocking(move || deliver::forget_others(&archives, desired).map_err(failed("remove", &archives))).await
    }

    fn adopt(&mut self, instance: &Instance, handle: ShimHandle) {
        let now = self.context.now();
        tracing::info!(pipeline = %self.name, instance = instance.name(), "adopted a running instance");
        // What was current has proven itself; it need not do so again only because the agent was started again. But whether it still
        // answers only a probe says, and one that fails is believed.
        let proven = instance.role == Role::Current || instance.served;
        match Launch::of(&self.name, instance, &self.release_dir(instance.artifact), &self.context.around) {
            Ok(launch) => {
                let question = Question::of(instance, self.context.around.info.address, &launch);
                let probe_state = if matches!(question, Question::Alive) {
                    ProbeState { passing_since: proven.then_some(now), passed: proven, ..ProbeState::default() }
                } else {
                    self.unprobed.insert(instance.id);
                    ProbeState {
                        passed: proven,
                        failures: if proven { UNHEALTHY_AFTER_FAILURES - 1 } else { 0 },
                        ..ProbeState::default()
                    }
                };
                self.watch(instance, handle, question, probe_state);
            }
            Err(refusal) => {
                tracing::error!(pipeline = %self.name, instance = instance.name(), error = %refusal, "failed to probe a running instance")
            }
        }
    }

    async fn ended_meanwhile(&mut self, instance: &Instance, record: ExitRecord) {
        let now = self.context.now();
        let stopping = record.stopped;
        let process = Process::Up { since: now, passing_since: None, failures: 0, passed: false, stopping };
        if let Some(observed) = self.observed.get_mut(&instance.id) {
            observed.process = process;
        }
        self.ended(instance.id, Some(record)).await;
        // It waited while there was no agent.
        if let Some(Observed { process: Process::Down { restart_at, .. }, .. }) = self.observed.get_mut(&instance.id) {
            *restart_at = now;
        }
    }
}

fn load_journal(folder: &Path) -> Result<Journal, StepError> {
    let path = folder.join("journal");
    match checksummed_file::load(&path, MAGIC) {
        Ok(journal) => Ok(journal.unwrap_or_default()),
        Err(error @ Error::Damaged { .. }) => {
            tracing::error!(%error, "journal is damaged and set aside, ending instances and starting them again");
            fs::rename(&path, path.with_extension("damaged")).map_err(failed("set aside", &path))?;
            Ok(Journal::default())
        }
        Err(error) => Err(error.into()),
    }
}

/// The releases that are whole; removes what is left of others.
fn releases_in(folder: &Path) -> Result<BTreeSet<Digest>, StepError> {
    let mut found = BTreeSet::new();
    for name in names_in(folder)? {
        match name.parse() {
            Ok(digest) => drop(found.insert(digest)),
            Err(_) => {
                let path = folder.join(&name);
                ignore_missing(fs::remove_dir_all(&path)).map_err(failed("remove", &path))?;
            }
        }
    }
    Ok(found)
}
