//! Pushes, and runners that build, fail, lose what they do and are told to stop.

use crate::simulation::history::{History, Step};
use crate::{
    apply::testing::{artifact, commit, lost, name, phase_record},
    build::{AttemptEnd, Build, BuildFailure, Cause, Phase, Resources},
    command::BuildAction,
    event::Subject,
    tables::key,
};

impl History {
    pub(super) fn builds(&mut self) -> Step {
        let builds = self.open_builds();
        if builds.is_empty() || self.random.chance(15) {
            if self.faults {
                let number = if self.random.chance(20) { self.next_commit } else { self.next_commit.wrapping_add(1) };
                self.next_commit = number;
                let again = self.random.chance(10);
                let git_ref = if self.random.chance(80) { "refs/heads/main" } else { "refs/heads/next" };
                let cause = if self.random.chance(90) { Cause::Push } else { Cause::Manual };
                let (pipeline, resources) = (name("shop"), Resources::default());
                let commit = commit(number);
                if self.random.chance(10) {
                    let file = Box::new(self.files[self.random.below(self.files.len())].clone());
                    let artifact = artifact(number);
                    let pushed =
                        self.person(BuildAction::ImportArtifact { pipeline, commit, git_ref: git_ref.into(), artifact, file })?;
                    let Some(Subject::Build(id)) = pushed.map(|pushed| pushed.outcome.subject) else { return Ok(()) };
                    self.releases.extend(self.world.get::<Build>(key(id.0)).release);
                    return Ok(());
                }
                self.person(BuildAction::Request { pipeline, commit, git_ref: git_ref.into(), cause, again, resources })?;
            }
            return Ok(());
        }
        let build = builds[self.random.below(builds.len())].clone();
        self.build(build)
    }

    pub(super) fn build(&mut self, build: Build) -> Step {
        let id = build.id;
        if self.faults && self.random.chance(4) {
            return self.person(BuildAction::Cancel { build: id }).map(drop);
        }
        let Some(live) = build.live_attempt() else {
            return self.lead(BuildAction::Assign { build: id, runner: name("r1") });
        };
        let attempt = live.number;
        if self.faults && self.random.chance(5) {
            // What a fenced attempt still says changes nothing.
            return self.lead(BuildAction::End { build: id, attempt: attempt + 1, end: lost(), log: None });
        }
        if build.cancel_asked && self.random.chance(50) {
            return self.lead(BuildAction::End { build: id, attempt, end: AttemptEnd::Canceled, log: None });
        }
        if self.faults && self.random.chance(self.losses) {
            return self.lead(BuildAction::End { build: id, attempt, end: lost(), log: None });
        }
        if !live.acknowledged {
            return self.lead(BuildAction::Acknowledge { build: id, attempt, unisolated: None });
        }
        if self.faults && self.random.chance(6) {
            let phase = *self.random.pick(&Phase::ALL).unwrap();
            let failure = BuildFailure { phase, reason: "exit 2".into(), hint: String::new(), output: "x".repeat(9000) };
            let end = if self.random.chance(50) { AttemptEnd::TimedOut(failure) } else { AttemptEnd::Failed(failure) };
            return self.lead(BuildAction::End { build: id, attempt, end, log: None });
        }
        match live.phases.len() {
            done if done < Phase::ALL.len() => {
                self.lead(BuildAction::Progress { build: id, attempt, phase: phase_record(Phase::ALL[done]) })
            }
            _ => {
                let number = u8::from_str_radix(&build.commit.as_str()[38..], 16).unwrap();
                let file = Box::new(self.files[self.random.below(self.files.len())].clone());
                self.lead(BuildAction::Succeed { build: id, attempt, artifact: artifact(number), file, log: None })?;
                self.releases.extend(self.world.get::<Build>(key(id.0)).release);
                Ok(())
            }
        }
    }
}
