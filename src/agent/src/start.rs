//! Starting instances, and why they are not. Every step may be taken again after it was interrupted anywhere. Must not decide which
//! step is next.

use std::collections::BTreeMap;

use super::{
    decide::{Observed, Process},
    disk::remove_shim,
    evidence::{self, LastSeen},
    journal::Instance,
    launch::Launch,
    pipeline::{Pipeline, StepError},
    port_conflicts::port_holder,
    probe::Question,
    refusal::Refusal,
    watch::{ProbeState, Watch},
};
use swell_model::{
    ids::{PortName, ServiceName},
    pipeline_file::Probe,
};
use swell_sandbox::runtime::ShimHandle;
use swell_system::error_chain::chain;

impl Pipeline {
    pub(super) async fn start(&mut self, service: &ServiceName, ports: BTreeMap<PortName, u16>) -> Result<(), StepError> {
        let Some(release) = self.desired.release() else { return Ok(()) };
        let Some(settings) = release.services.get(service) else { return Ok(()) };
        let mut journal = self.journal.clone();
        let id = journal.add(release, service, settings, ports);
        self.commit(journal).await?;
        swell_system::crash::point("agent::start_recorded");
        self.observed.insert(id, Observed::down(self.context.now()));
        self.launch(id).await
    }

    pub(super) async fn restart(&mut self, id: u64) -> Result<(), StepError> {
        let Some(instance) = self.journal.instance(id) else { return Ok(()) };
        remove_shim(&self.dir_of(instance)).await?;
        let mut journal = self.journal.clone();
        journal.rerun(id);
        self.commit(journal).await?;
        swell_system::crash::point("agent::start_recorded");
        if let Some(observed) = self.observed.get_mut(&id) {
            observed.failed_steps = 0;
        }
        self.launch(id).await
    }

    /// Starts the process of a recorded instance. A start that fails counts as its end.
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
        let launch = Launch::of(&self.name, instance, &self.release_dir(instance.artifact), &self.context.around)?;
        self.check_ports(instance).await?;
        launch.prepare().await?;
        let dir = self.dir_of(instance);
        let spec = launch.spec(self.context.around.isolated);
        let started = self.context.runtime.start(&dir, &spec).await;
        let handle = started.map_err(|error| Refusal {
            reason: format!("failed to start service {}: {}", instance.service, chain(&error)),
            hint: "check the service's `command`, and this target's disk and memory".to_owned(),
        })?;
        // A service without a probe passes from the beginning.
        let is_alive = matches!(instance.settings.settings.health.probe(), Probe::Alive);
        let probe_state =
            ProbeState { passing_since: is_alive.then(|| self.context.now()), passed: is_alive, ..ProbeState::default() };
        tracing::info!(pipeline = %self.name, release = %instance.release, instance = instance.name(), "instance started");
        let question = Question::of(instance, self.context.around.info.address, &launch);
        self.watch(instance, handle, question, probe_state);
        Ok(())
    }

    /// Refuses ports that another program has. A sibling may share a fixed one.
    async fn check_ports(&self, instance: &Instance) -> Result<(), Refusal> {
        let is_shared = |port: &u16| {
            let siblings =
                self.journal.instances.iter().filter(|other| other.id != instance.id && other.service == instance.service);
            siblings.into_iter().any(|other| other.ports.values().any(|taken| taken == port))
        };
        let ports: Vec<(PortName, u16)> =
            instance.ports.iter().filter(|(_, port)| !is_shared(port)).map(|(name, port)| (name.clone(), *port)).collect();
        let looked = tokio::task::spawn_blocking(move || {
            ports.into_iter().find_map(|(name, port)| port_holder(port).map(|who| (name, port, who)))
        });
        let Ok(Some((name, port, who))) = looked.await else { return Ok(()) };
        Err(Refusal {
            reason: format!("port {port} ({name}) of service {} is in use by {who}", instance.service),
            hint: "stop that program, or change the agent's `ports`, or give the service another fixed port in swell.toml"
                .to_owned(),
        })
    }

    pub(super) fn watch(&mut self, instance: &Instance, handle: ShimHandle, question: Question, probe_state: ProbeState) {
        let now = self.context.now();
        let ProbeState { passing_since, failures, passed, .. } = probe_state;
        if let Some(observed) = self.observed.get_mut(&instance.id) {
            observed.process = Process::Up { since: now, passing_since, failures, passed, stopping: false };
        }
        let watch = Watch {
            key: (instance.id, instance.run),
            handle,
            question,
            health: instance.settings.settings.health.clone(),
            stop_timeout: instance.settings.settings.stop.timeout,
            probe_state,
            clock: self.context.clock,
            probe_events: self.probe_events.clone(),
        };
        self.watchers.insert(instance.id, watch.spawn());
    }

    pub(super) async fn no_port(&mut self, service: &ServiceName, port: &PortName) {
        let mut failure = evidence::failure_without_instance(
            format!("service {service} has no number for its port `{port}` on this target"),
            "widen the target's range of ports (`ports` in the agent's configuration)".to_owned(),
        );
        failure.service = Some(service.clone());
        self.failed(None, failure, |_| ()).await;
    }

    pub(super) async fn blocked(&mut self, service: &ServiceName, by: u64) {
        let Some(holder) = self.journal.instance(by).map(Instance::name) else { return };
        let mut failure = evidence::failure_without_instance(
            format!("service {service} cannot be started: {holder}, which ran before, does not end and has its ports"),
            "see what its processes hang on, such as a disk; else restart this target".to_owned(),
        );
        failure.service = Some(service.clone());
        self.failed(None, failure, |_| ()).await;
    }
}
