//! The invariants (docs/ARCHITECTURE.md), as assertions over state and events after every command.
//! Keeps its own books of what was reported and done: it does not ask the rules whether the rules were kept.

use std::collections::{BTreeMap, BTreeSet};

use roaring::RoaringBitmap;

use crate::simulation::history::History;
use crate::{
    apply::Applied,
    build::{Build, BuildState},
    command::{Action, Command, EnvironmentAction, FleetAction, RolloutAction},
    digest::Digest,
    event::Subject,
    fleet::{
        Target,
        observation::{Progress, Report},
    },
    ids::{PipelineName, ReleaseId, RolloutId},
    pipeline::Pipeline,
    principal::Role,
    rejection::Rejection,
    release::{Artifact, Release, release_key, retention::FORMER_RELEASES_KEPT},
    rollout::{
        Deployment, Gate, Purpose, Rollout, RolloutState, Verdict,
        assignment::{Concerned, DesiredReader, DesiredRelease, assigned_release, concerned},
    },
    tables::{ReadTables, Scan, key},
    units::Timestamp,
};

#[derive(Default)]
pub struct Checks {
    /// The state of each build and rollout, as the events tell it.
    states: BTreeMap<Subject, String>,
    /// The adopted and the true time of the first event.
    began: Option<(Timestamp, Timestamp)>,
    pub transitions: BTreeSet<(&'static str, String, String)>,
    head: Option<Digest>,
    at: Timestamp,
    /// The sequence of each target's newest report.
    sequences: BTreeMap<u32, u64>,
    /// What each target said last.
    said: BTreeMap<u32, Report>,
    /// For each rollout: told while they served, and not healthy since.
    disturbed: BTreeMap<RolloutId, RoaringBitmap>,
    /// Told while they served nothing, and not healthy since.
    free: BTreeMap<RolloutId, RoaringBitmap>,
    /// For each rollout that goes back: reverted while they served and not restored since, and when the last step was.
    disturbed_back: BTreeMap<RolloutId, (RoaringBitmap, Timestamp)>,
    /// All that each rollout reverted so far.
    reverted: BTreeMap<RolloutId, RoaringBitmap>,
    /// All that each rollout told so far.
    told: BTreeMap<RolloutId, RoaringBitmap>,
    waves: BTreeMap<RolloutId, Vec<RoaringBitmap>>,
    aborted: BTreeSet<RolloutId>,
    /// Rolled back and not cleared.
    bad: BTreeSet<ReleaseId>,
    releases: BTreeMap<ReleaseId, Release>,
    /// What each target should run.
    desired: BTreeMap<u32, BTreeMap<PipelineName, DesiredRelease>>,
    /// The rollouts that this command moved, and to where.
    moved: Vec<(Subject, String)>,
}

type Check = Result<(), String>;

impl Checks {
    pub fn history_so_far(&mut self, applied: &Applied) {
        self.head = applied.events.last().map(|event| event.chain_hash()).or(self.head);
    }

    pub fn rejected(&mut self, history: &History, command: &Command, rejection: &Rejection) -> Check {
        let is_end = |id: RolloutId| history.world.rollout(id).state.is_end();
        match &command.action {
            // 9
            Action::Rollout(RolloutAction::Abort { rollout, .. }) if !is_end(*rollout) => {
                Err(format!("9: the abort of {rollout} was refused: {rejection}"))
            }
            _ if history.is_stale(command) && !History::is_stale_epoch(rejection) => {
                Err(format!("3: a stale command was refused for another reason: {rejection}"))
            }
            _ => Ok(()),
        }
    }

    pub fn after(&mut self, history: &History, command: &Command, applied: &Applied) -> Check {
        if history.is_stale(command) {
            return Err("3: a command with an old epoch was carried out".into());
        }
        self.events(history, applied)?;
        self.reports(history, command);
        self.builds(history)?;
        self.rollouts(history, command)?;
        self.releases(history)?;
        self.desired(history, applied)
    }

    /// 10: each transition has exactly one event, in one unbroken chain, and time never runs backwards.
    fn events(&mut self, history: &History, applied: &Applied) -> Check {
        self.moved.clear();
        for event in &applied.events {
            if self.head.is_some_and(|head| head != event.previous) {
                return Err(format!("10: the chain is broken at {}", event.seq));
            }
            self.head = Some(event.chain_hash());
            if event.at < self.at {
                return Err(format!("time: it ran backwards at {}", event.seq));
            }
            self.at = event.at;
            // However wrong the wall clock is, time never passes more than six times as fast as it does.
            let (began_at, began) = *self.began.get_or_insert((event.at, history.world.now));
            let (adopted, passed) = (event.at.since(began_at), history.world.now.since(began));
            if adopted.0 > 6 * passed.0 {
                return Err(format!("time: {adopted} passed in {passed} at {}", event.seq));
            }
            if !event.kind.is_build_transition() && !event.kind.is_rollout_transition() {
                continue;
            }
            let (Some(from), Some(to)) = (&event.from, &event.to) else {
                return Err(format!("10: {} says no states", event.seq));
            };
            let known = self.states.get(&event.subject).cloned();
            let first = if event.kind.is_build_transition() { "" } else { "blocked" };
            if known.as_deref().unwrap_or(first) != from {
                return Err(format!("10: {} goes from {from} to {to}, but it was {known:?}", event.subject));
            }
            self.states.insert(event.subject.clone(), to.clone());
            self.moved.push((event.subject.clone(), to.clone()));
            let half = if event.kind.is_build_transition() { "build" } else { "rollout" };
            self.transitions.insert((half, from.clone(), to.clone()));
        }
        Ok(())
    }

    fn reports(&mut self, history: &History, command: &Command) {
        let Action::Fleet(FleetAction::Report { targets }) = &command.action else { return };
        for (target, origin, report) in
            targets.iter().flat_map(|said| said.reports.iter().map(move |report| (&said.target, &said.origin, report)))
        {
            // One that was overtaken by a newer one says nothing new.
            let newest = self.sequences.entry(*target).or_default();
            if origin.sequence <= *newest {
                continue;
            }
            *newest = origin.sequence;
            self.said.insert(*target, report.clone());
            for rollout in history.open_rollouts() {
                let healthy = report.release.as_ref() == Some(&rollout.release) && report.progress == Progress::Healthy;
                let told = rollout.sets.changed.contains(*target);
                if report.release == rollout.stable && report.progress == Progress::Healthy {
                    self.disturbed_back.entry(rollout.id).or_default().0.remove(*target);
                }
                if healthy {
                    self.disturbed.entry(rollout.id).or_default().remove(*target);
                    self.free.entry(rollout.id).or_default().remove(*target);
                } else if told && !self.free.get(&rollout.id).is_some_and(|free| free.contains(*target)) {
                    self.disturbed.entry(rollout.id).or_default().insert(*target);
                }
            }
        }
    }

    /// 1 and 2, and the builds' half of 10.
    fn builds(&mut self, history: &History) -> Check {
        let pipeline: Pipeline = history.world.get(key("shop"));
        let mut at_work = 0;
        for build in history.world.tables.scan::<Build>(&Scan::all(), 1000).unwrap() {
            let live = build.attempts.iter().filter(|attempt| attempt.end.is_none()).count();
            if live > 1 || build.attempts.len() > 4 {
                return Err(format!("2: {} has {live} live attempts of {}", build.id, build.attempts.len()));
            }
            at_work += live;
            if build.state.is_end() && live > 0 || build.state.is_running() && live != 1 {
                return Err(format!("2: {} is {} with {live} live attempts", build.id, build.state));
            }
            if build.release.is_some() != (build.state == BuildState::ReadyToDeploy) {
                return Err(format!("{} is {} with the release {:?}", build.id, build.state, build.release));
            }
            self.same_state(Subject::Build(build.id), build.state.name())?;
        }
        if at_work > pipeline.concurrency as usize {
            return Err(format!("1: {at_work} builds are at work, and {} may be", pipeline.concurrency));
        }
        Ok(())
    }

    fn same_state(&self, subject: Subject, state: &str) -> Check {
        let told = self.states.get(&subject).map_or("blocked", String::as_str);
        if told == state { Ok(()) } else { Err(format!("10: {subject} is {state}, but its events say {told}")) }
    }

    fn rollouts(&mut self, history: &History, command: &Command) -> Check {
        if let Action::Environment(EnvironmentAction::ClearQuarantine { release, .. }) = &command.action {
            self.bad.remove(release);
        }
        if let Action::Rollout(RolloutAction::Abort { rollout, .. }) = &command.action {
            self.aborted.insert(*rollout);
        }
        for rollout in history.world.tables.scan::<Rollout>(&Scan::all(), 1000).unwrap() {
            self.rollout(history, command, &rollout)?;
        }
        if let Action::Rollout(RolloutAction::ChangeTargets { rollout, .. }) = &command.action {
            let rollout = history.world.rollout(*rollout);
            let before = self.told.insert(rollout.id, rollout.sets.changed.clone()).unwrap_or_default();
            self.availability(history, &rollout, &(&rollout.sets.changed - before))?;
        }
        if let Action::Rollout(RolloutAction::RevertTargets { rollout, .. }) = &command.action {
            let rollout = history.world.rollout(*rollout);
            let before = self.reverted.insert(rollout.id, rollout.sets.reverted.clone()).unwrap_or_default();
            self.availability_back(history, &rollout, &(&rollout.sets.reverted - before))?;
        }
        Ok(())
    }

    /// 4, going back: a step never makes more unavailable than may be, but for those that were not back within the deadline.
    fn availability_back(&mut self, history: &History, rollout: &Rollout, reverted: &RoaringBitmap) -> Check {
        let (disturbed, last_step) = self.disturbed_back.entry(rollout.id).or_default();
        if history.world.now.since(*last_step) > rollout.settings.rollback_deadline {
            disturbed.clear();
        }
        *last_step = history.world.now;
        let mut costs = false;
        for target in reverted {
            let Some(said) = self.said.get(&target).filter(|said| said.serving) else { continue };
            if said.release != rollout.stable || said.progress != Progress::Healthy {
                costs |= history.agents[target as usize].connected;
                disturbed.insert(target);
            }
        }
        if !rollout.settings.in_place || rollout.stable.is_none() || !costs {
            return Ok(());
        }
        let members = history.members();
        let counts = |target: &u32| history.agents[*target as usize].connected && members.contains(*target);
        let disturbed: RoaringBitmap = disturbed.iter().filter(counts).collect();
        if disturbed.len() > u64::from(rollout.settings.rollback_max_unavailable) {
            let most = rollout.settings.rollback_max_unavailable;
            return Err(format!("4: {} going back disturbs {disturbed:?}, and {most} may be", rollout.id));
        }
        let zones: BTreeSet<String> = disturbed.iter().map(|index| history.world.get::<Target>(key(index)).info.zone).collect();
        if rollout.plan.spread_zone && zones.len() > 1 {
            return Err(format!("4: {} going back disturbs the zones {zones:?} at once", rollout.id));
        }
        Ok(())
    }

    fn rollout(&mut self, history: &History, command: &Command, rollout: &Rollout) -> Check {
        let id = rollout.id;
        self.same_state(Subject::Rollout(id), rollout.state.name())?;
        // 9
        let resists = rollout.state.is_forward() || rollout.state == RolloutState::Deployed;
        if self.aborted.contains(&id) && resists {
            return Err(format!("9: {id} was aborted and is {}", rollout.state));
        }
        if rollout.state == RolloutState::Blocked {
            return Ok(());
        }
        // 5
        let judged = if rollout.state == RolloutState::Deployed { rollout.wave + 1 } else { rollout.wave };
        for wave in 0..judged {
            let last = rollout.verdicts.iter().rfind(|record| record.wave == wave);
            match last.map(|record| (record.verdict, record.by.role)) {
                Some((Verdict::Pass, _)) => {}
                Some((Verdict::Overridden, role)) if role != Role::System => {}
                other => return Err(format!("5: {id} went past wave {wave} with {other:?}")),
            }
        }
        // 6
        let waves: Vec<_> = rollout.plan.waves.iter().map(|wave| wave.targets.clone()).collect();
        let planned = self.waves.entry(id).or_insert_with(|| waves.clone());
        if *planned != waves {
            return Err(format!("6: the waves of {id} have changed"));
        }
        if History::subject(&command.action) == Some(id) {
            self.verdict(history, command, rollout)?;
        }
        let moved: Vec<_> = self.moved.iter().filter(|(subject, _)| *subject == Subject::Rollout(id)).cloned().collect();
        moved.iter().try_for_each(|(_, to)| self.arrived(history, rollout, to))
    }

    /// 5: a wave passes only with its targets healthy, by what they said.
    fn verdict(&mut self, history: &History, command: &Command, rollout: &Rollout) -> Check {
        let id = rollout.id;
        let members = history.members();
        if let Action::Rollout(RolloutAction::RecordVerdict { wave, gate: Gate::Convergence, verdict: Verdict::Pass, .. }) =
            &command.action
        {
            let max_failures = rollout.plan.waves[*wave as usize].max_failures;
            let wave = &self.waves[&id][*wave as usize] & &members;
            let unhealthy = |target: &u32| {
                let said = self.said.get(target);
                !said.is_some_and(|said| said.release.as_ref() == Some(&rollout.release) && said.progress == Progress::Healthy)
            };
            let free = self.free.get(&id).cloned().unwrap_or_default();
            let bad: RoaringBitmap = (&wave & &rollout.sets.changed).into_iter().filter(unhealthy).collect();
            let away = RoaringBitmap::from_iter(history.agents.iter().filter(|agent| !agent.connected).map(|agent| agent.target));
            let bad = if rollout.purpose == Purpose::Rollback { bad - away } else { bad } - free;
            if bad.len() > u64::from(max_failures) && rollout.stable.is_some() {
                return Err(format!("5: a wave of {id} passed although {bad:?} are not healthy: {:?}", rollout.sets));
            }
        }
        Ok(())
    }

    /// What must hold where a rollout came to.
    fn arrived(&mut self, history: &History, rollout: &Rollout, to: &str) -> Check {
        let (id, release) = (rollout.id, &rollout.release);
        if matches!(to, "rolled-back" | "failed") && rollout.rollback_reason.is_some() {
            // What was not reverted by then goes back all at once.
            let left = (rollout.touched() & history.members()) - self.reverted.get(&id).cloned().unwrap_or_default();
            if !left.is_empty() {
                return Err(format!("7: {id} is {to}, and {left:?} were not reverted before"));
            }
        }
        match to {
            // 7
            "rolled-back" => {
                for target in rollout.touched() & history.members() {
                    let is_back = match (self.said.get(&target), &rollout.stable) {
                        (None, stable) => stable.is_none(),
                        (Some(said), Some(stable)) => said.release.as_ref() == Some(stable) && said.progress == Progress::Healthy,
                        (Some(said), None) => said.release.is_none() && said.progress == Progress::Stopped,
                    };
                    if !is_back && !rollout.sets.unreachable.contains(target) {
                        return Err(format!("7: {id} is rolled back, but target {target} is not: {:?}", self.said.get(&target)));
                    }
                }
            }
            // 8
            "deploying" if self.bad.contains(release) => {
                return Err(format!("8: {id} deploys {release}, which was rolled back"));
            }
            // Deploying the stable release once more and going back leads to that release: it is no worse than it was.
            "rolling-back" if rollout.purpose == Purpose::Deploy && rollout.stable.as_ref() != Some(release) => {
                self.bad.insert(release.clone());
            }
            _ => {}
        }
        Ok(())
    }

    /// 4: what is told now never makes more unavailable than may be.
    fn availability(&mut self, history: &History, rollout: &Rollout, told: &RoaringBitmap) -> Check {
        let (disturbed, free) = (self.disturbed.entry(rollout.id).or_default(), self.free.entry(rollout.id).or_default());
        let mut costs = false;
        for target in told {
            let said = self.said.get(&target);
            let same =
                said.is_some_and(|said| said.release.as_ref() == Some(&rollout.release) && said.progress == Progress::Healthy);
            if rollout.sets.healthy.contains(target) && same {
                continue;
            }
            if said.is_some_and(|said| said.serving) {
                costs = true;
                disturbed.insert(target);
            } else {
                free.insert(target);
            }
        }
        if !rollout.settings.in_place || !costs {
            return Ok(());
        }
        if disturbed.len() > u64::from(rollout.plan.max_unavailable) {
            return Err(format!("4: {} disturbs {disturbed:?}, and {} may be", rollout.id, rollout.plan.max_unavailable));
        }
        let zones: BTreeSet<String> = disturbed.iter().map(|index| history.world.get::<Target>(key(index)).info.zone).collect();
        if rollout.plan.spread_zone && zones.len() > 1 {
            return Err(format!("4: {} disturbs the zones {zones:?} at once", rollout.id));
        }
        Ok(())
    }

    /// 11: releases never change, and what an environment could go back to is there.
    fn releases(&mut self, history: &History) -> Check {
        for release in history.world.tables.scan::<Release>(&Scan::all(), 1000).unwrap() {
            let kept = self.releases.entry(release.id.clone()).or_insert_with(|| release.clone());
            if *kept != release {
                return Err(format!("11: {} has changed", release.id));
            }
        }
        let Some(deployment) = history.deployment() else { return Ok(()) };
        let mut needed: Vec<ReleaseId> = deployment.stable.iter().cloned().collect();
        for rollout in history.open_rollouts() {
            needed.extend(rollout.stable.into_iter().chain([rollout.release]));
        }
        let mut going_back = Deployment { history: deployment.history.clone(), ..deployment.clone() };
        for _ in 0..FORMER_RELEASES_KEPT {
            let Some(former) = going_back.former(deployment.stable.as_ref()).cloned() else { break };
            going_back.history.retain(|past| past.release != former);
            needed.push(former);
        }
        for release in needed {
            let artifact = history.world.get::<Release>(release_key(&release)).artifact;
            let artifact: Artifact = history.world.get(key(artifact.hex().as_str()));
            if artifact.deleted_at.is_some() {
                return Err(format!("11: {release} could be needed, and its artifact is deleted"));
            }
        }
        Ok(())
    }

    /// What targets are told is something that they can run.
    fn desired(&mut self, history: &History, applied: &Applied) -> Check {
        let Some(deployment) = history.deployment() else { return Ok(()) };
        let rollout = deployment.rollout.map(|id| history.world.rollout(id));
        for index in history.members() {
            let assigned = assigned_release(&deployment, rollout.as_ref(), index);
            // 6: who is in no wave is not moved by a rollout that has not ended.
            let mut planned = rollout.iter().flat_map(|rollout| &rollout.plan.waves).map(|wave| &wave.targets);
            if rollout.is_some() && !planned.any(|targets| targets.contains(index)) {
                let release = rollout.as_ref().map(|rollout| &rollout.release);
                let elsewhere = deployment.retained.iter().chain(rollout.iter().flat_map(|rollout| &rollout.before));
                let known = elsewhere.filter(|(_, targets)| targets.contains(index)).any(|(kept, _)| *kept == assigned);
                if assigned.as_ref() == release && assigned != deployment.stable && !known {
                    return Err(format!("6: target {index} is in no wave and was assigned {assigned:?}"));
                }
            }
        }
        let mut reader = DesiredReader::new(&history.world.tables, history.world.index).unwrap();
        for agent in &history.agents {
            let target: Target = history.world.get(key(agent.target));
            let desired = reader.of(&target).unwrap().deployments;
            let mut ports =
                desired.values().flat_map(|release| release.services.values()).flat_map(|service| service.ports.values());
            if target.cordoned.is_none() && ports.any(Vec::is_empty) {
                return Err(format!("target {} is told {desired:?}, without ports", agent.target));
            }
            // Who is not told of a change would run what it ran before.
            let concerns = |event| match concerned(event) {
                Concerned::Nobody => false,
                Concerned::Target(name) => name == target.info.name,
                Concerned::Everyone => true,
            };
            let is_told = applied.events.iter().any(concerns);
            let before = self.desired.insert(agent.target, desired.clone());
            if before.is_some_and(|before| before != desired) && !is_told {
                return Err(format!("target {} is told {desired:?} by no event of {:?}", agent.target, applied.events));
            }
        }
        Ok(())
    }
}
