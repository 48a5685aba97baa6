//! People who deploy, interfere and change the fleet.

use crate::simulation::history::{History, Step, labelled};
use crate::{
    apply::testing::name,
    command::{ArtifactAction, BuildAction, EnvironmentAction, FleetAction, RolloutAction},
    ids::{BuildId, ReleaseId},
    release::{Release, release_key, retention::expired_artifacts},
    rollout::Purpose,
    simulation::agent::Agent,
};

impl History {
    pub(super) fn people(&mut self) -> Step {
        let open = self.open_rollouts();
        let rollout = self.random.pick(&open).map(|rollout| rollout.id);
        let why = "because".to_owned();
        let release =
            if self.random.chance(60) { self.releases.last().cloned() } else { self.random.pick(&self.releases).cloned() };
        let target = name(&format!("web-{}", self.random.below(self.agents.len())));
        match (self.random.below(40), rollout, release) {
            (0..=11, _, Some(release)) => self.start(release, Purpose::Deploy),
            (12..=14, _, release) => {
                let deployment = self.deployment();
                let stable = deployment.as_ref().and_then(|deployment| deployment.stable.clone());
                let former = deployment.and_then(|deployment| deployment.former(stable.as_ref()).cloned());
                // Undoing what is at work, going back further, or to anything.
                let goal = if rollout.is_some() && self.random.chance(50) { stable } else { former };
                match goal.filter(|_| self.random.chance(90)).or(release) {
                    Some(release) => self.start(release, Purpose::Rollback),
                    None => Ok(()),
                }
            }
            (15..=16, Some(rollout), _) if self.random.chance(60) => self.person(RolloutAction::Abort { rollout, why }).map(drop),
            (17..=18, Some(rollout), _) => self.person(RolloutAction::Pause { rollout, why }).map(drop),
            (19..=22, Some(rollout), _) => self.person(RolloutAction::Resume { rollout }).map(drop),
            (23..=24, Some(rollout), _) => self.person(RolloutAction::Promote { rollout, why }).map(drop),
            (25, ..) => self.person(EnvironmentAction::Freeze { name: name("production"), why }).map(drop),
            (26..=28, ..) => self.person(EnvironmentAction::Unfreeze { name: name("production") }).map(drop),
            (29..=31, ..) => {
                let quarantined = self.deployment().map(|deployment| deployment.quarantined).unwrap_or_default();
                let Some(kept) = self.random.pick(&quarantined).cloned() else { return Ok(()) };
                let name = name("production");
                self.person(EnvironmentAction::ClearQuarantine { name, release: kept.release }).map(drop)
            }
            (32, ..) => self.person(FleetAction::Cordon { name: target, why }).map(drop),
            (33..=35, ..) => self.person(FleetAction::Uncordon { name: target }).map(drop),
            (36, ..) => {
                if self.agents.len() >= 12 {
                    return Ok(());
                }
                let number = self.agents.len() as u32;
                self.agents.push(Agent::new(number));
                let info = labelled(number, true);
                let command = self.world.command(FleetAction::Join { info });
                self.propose(command)?;
                self.say_presence()
            }
            (37, ..) => {
                // Retention at work, and someone who asks for more than it allows.
                let digests = expired_artifacts(&self.world.tables, self.world.now, 3).unwrap();
                self.lead(ArtifactAction::Delete { digests })?;
                let Some(release) = self.random.pick(&self.releases).cloned() else { return Ok(()) };
                let digests = vec![self.world.get::<Release>(release_key(&release)).artifact];
                self.person(ArtifactAction::Delete { digests }).map(drop)
            }
            (39, ..) => {
                let number = self.random.below(self.agents.len()) as u32;
                let belongs = !self.members().contains(number);
                self.person(FleetAction::Join { info: labelled(number, belongs) }).map(drop)
            }
            (38, ..) => {
                let build = BuildId(1 + self.random.below(20) as u64);
                self.person(BuildAction::Retry { build }).map(drop)
            }
            _ => Ok(()),
        }
    }

    fn start(&mut self, release: ReleaseId, purpose: Purpose) -> Step {
        let environment = name("production");
        self.person(RolloutAction::Start { environment, release, purpose, why: None, if_plan: None }).map(drop)
    }
}
