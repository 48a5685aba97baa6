//! From a release and an environment to a plan and settings: what `swell plan` shows and what starting a rollout carries out.

use roaring::RoaringBitmap;

use crate::{
    digest::Digest,
    event::Subject,
    fleet::{
        Environment, LostTargets, Presence, Target,
        observation::{Observation, observation_key},
    },
    ids::{EnvironmentName, PipelineName, ReleaseId, TargetName},
    pipeline_file::{Deploy, Order, Spread, Start, Strategy},
    rejection::{Rejection, RuleError},
    release::{Artifact, Release, release_key},
    rollout::{
        BlockReason, Deployment, Purpose, Rollout, RolloutState, Settings, deployment_key,
        plan::{Plan, PlanError, PlanInput, PlanTarget, Timing, plan},
    },
    tables::{Key, ReadTables, SCAN_RECORDS_MAX, Scan, TablesError, key},
    units::{Amount, BasisPoints, Millis},
};

/// Everything that is known before a rollout starts.
#[derive(Debug, Clone, PartialEq)]
pub struct Planned {
    /// Which targets change together.
    pub plan: Plan,
    /// How they are changed and judged.
    pub settings: Settings,
    /// What the environment runs now.
    pub stable: Option<ReleaseId>,
    /// What would keep it from starting.
    pub blocked: Option<BlockReason>,
    /// The targets whose agents are connected.
    pub reachable: RoaringBitmap,
}

impl Planned {
    /// What `deploy --if-plan` compares: the plan, and what it moves between.
    pub fn digest(&self, release: &ReleaseId) -> Digest {
        let stable = self.stable.as_ref().map_or(String::new(), ToString::to_string);
        Digest::of(format!("{} {stable} {release}", self.plan.digest()).as_bytes())
    }
}

/// Plans moving `environment` to `release`. Changes nothing. `seed` makes the choice of targets repeatable: the rollout's number.
pub fn planned<T: ReadTables>(
    tables: &T,
    environment: &EnvironmentName,
    release: &ReleaseId,
    purpose: Purpose,
    seed: u64,
) -> Result<Planned, RuleError> {
    let subject = Subject::Environment(environment.clone());
    let kept: Option<Environment> = tables.get(&key(environment.as_str()))?;
    let environment = kept.ok_or_else(|| Rejection::NotFound(subject.clone()))?;
    let kept: Option<Release> = tables.get(&release_key(release))?;
    let release = kept.ok_or_else(|| Rejection::NotFound(Subject::Release(release.clone())))?;
    let deployment: Option<Deployment> = tables.get(&deployment_key(&environment.name, &release.id.pipeline))?;
    check(tables, &environment, &release, deployment.as_ref(), purpose)?;

    let reachable = connected(tables)?;
    let targets = plan_targets(tables, &environment, &release, &reachable)?;
    if targets.is_empty() {
        return Err(Rejection::NoTargets(subject).into());
    }
    let deploy = release.file.deploy_to(&environment.name);
    let stable = deployment.as_ref().and_then(|deployment| deployment.stable.clone());
    let input = plan_input(&deploy, &environment, targets, purpose, seed);
    let plan = plan(&input).map_err(|error| refused(&subject, error))?;
    let present = releases_there(tables, deployment.as_ref())?;
    let canary = input.strategy == Strategy::Canary;
    let settings = settings(&release, &present, &deploy, &environment, purpose, Shape { canary, total: plan.total });
    let blocked = blocked(&environment, deployment.as_ref(), purpose);
    Ok(Planned { plan, settings, stable, blocked, reachable })
}

/// The targets whose agents are connected to any server.
pub fn connected<T: ReadTables>(tables: &T) -> Result<RoaringBitmap, TablesError> {
    let servers: Vec<Presence> = tables.scan(&Scan::all(), SCAN_RECORDS_MAX)?;
    Ok(servers.into_iter().fold(RoaringBitmap::new(), |all, presence| all | presence.connected))
}

/// The targets whose loss the leader declared and that have not connected since.
pub fn lost<T: ReadTables>(tables: &T) -> Result<RoaringBitmap, TablesError> {
    Ok(tables.get::<LostTargets>(&Key::all())?.unwrap_or_default().targets)
}

fn check<T: ReadTables>(
    tables: &T,
    environment: &Environment,
    release: &Release,
    deployment: Option<&Deployment>,
    purpose: Purpose,
) -> Result<(), RuleError> {
    let quarantined = deployment.and_then(|deployment| deployment.quarantined.iter().find(|kept| kept.release == release.id));
    if let Some(quarantined) = quarantined {
        let (release, rollout) = (release.id.clone(), quarantined.rollout);
        return Err(
            Rejection::Quarantined { release, environment: Subject::Environment(environment.name.clone()), rollout }.into()
        );
    }
    if purpose == Purpose::Rollback {
        check_goes_back(environment, release, deployment)?;
    }
    if let Some((other, target)) = shared_target(tables, environment, &release.id.pipeline)? {
        let why = format!(
            "{target} belongs to {other} too, which runs {}: a target has a pipeline from one environment only",
            release.id.pipeline
        );
        return Err(Rejection::Invalid { what: format!("environment {}", environment.name), why }.into());
    }
    let artifact: Option<Artifact> = tables.get(&key(release.artifact.hex().as_str()))?;
    if artifact.is_none_or(|artifact| artifact.deleted_at.is_some()) {
        return Err(Rejection::ArtifactDeleted(release.id.clone()).into());
    }
    Ok(())
}

/// A rollback skips what guards a deploy, so it leads only to what was there before, or is older than what is there.
fn check_goes_back(environment: &Environment, release: &Release, deployment: Option<&Deployment>) -> Result<(), Rejection> {
    let nothing = || Rejection::NoFormerRelease(Subject::Environment(environment.name.clone()));
    let deployment = deployment.ok_or_else(nothing)?;
    let stable = deployment.stable.as_ref().ok_or_else(nothing)?;
    let invalid = |why: String| Rejection::Invalid { what: "release".to_owned(), why };
    if *stable == release.id && deployment.rollout.is_none() {
        return Err(invalid(format!("{} runs {} already", environment.name, release.id)));
    }
    let was_there = deployment.history.iter().any(|past| past.end == RolloutState::Deployed && past.release == release.id);
    if release.id.number <= stable.number || was_there {
        return Ok(());
    }
    Err(invalid(format!("{} never ran {}, so that it cannot go back to it: deploy it", environment.name, release.id)))
}

/// A target of `environment` that another one has too, which has `pipeline` as well: only one of them could say what runs there.
pub(crate) fn shared_target<T: ReadTables>(
    tables: &T,
    environment: &Environment,
    pipeline: &PipelineName,
) -> Result<Option<(EnvironmentName, TargetName)>, TablesError> {
    for other in tables.scan::<Environment>(&Scan::all(), SCAN_RECORDS_MAX)? {
        let Some(index) = (&other.members & &environment.members).min() else { continue };
        if other.name == environment.name {
            continue;
        }
        let there: Option<Deployment> = tables.get(&deployment_key(&other.name, pipeline))?;
        if there.is_some_and(|there| there.is_in_use()) {
            let target: Option<Target> = tables.get(&key(index))?;
            return Ok(target.map(|target| (other.name, target.info.name)));
        }
    }
    Ok(None)
}

/// The environment's targets that may be changed, with where they stand.
fn plan_targets<T: ReadTables>(
    tables: &T,
    environment: &Environment,
    release: &Release,
    reachable: &RoaringBitmap,
) -> Result<Vec<PlanTarget>, TablesError> {
    let mut targets = Vec::with_capacity(environment.members.len() as usize);
    for index in &environment.members {
        let Some(target) = tables.get::<Target>(&key(index))? else { continue };
        if target.cordoned.is_some() {
            continue;
        }
        let observed: Option<Observation> = tables.get(&observation_key(&release.id.pipeline, index))?;
        targets.push(PlanTarget {
            index,
            region: target.info.region,
            zone: target.info.zone,
            serves_healthy: observed.is_some_and(|observation| observation.report.serving),
            reachable: reachable.contains(index),
        });
    }
    Ok(targets)
}

/// The waves within the environment's floors. A rollback is one wave: it was judged before.
fn plan_input(deploy: &Deploy, environment: &Environment, targets: Vec<PlanTarget>, purpose: Purpose, seed: u64) -> PlanInput {
    let all = Amount::Share(BasisPoints::ALL);
    let mut waves = deploy.waves.clone();
    let mut strategy = deploy.strategy;
    if purpose == Purpose::Rollback {
        waves = vec![all];
        strategy = Strategy::Rolling;
    } else if let Some(most) = environment.policy.first_wave_max {
        let total = targets.len() as u32;
        let first = waves.first().filter(|_| strategy == Strategy::Canary).copied().unwrap_or(all);
        if first.rounded_up(total) > most.rounded_up(total) {
            waves.insert(0, most);
            // Whatever the strategy, its first wave is judged before the others.
            strategy = Strategy::Canary;
        }
    }
    PlanInput {
        rollout_seed: seed,
        targets,
        strategy,
        waves,
        max_unavailable: if purpose == Purpose::Rollback { deploy.rollback.max_unavailable } else { deploy.max_unavailable },
        max_failures: deploy.max_failures,
        spread_zone: deploy.spread == Spread::Zone,
        by_region: deploy.order == Order::Region && purpose == Purpose::Deploy,
    }
}

/// The releases that targets may run now: the stable one and that of the rollout at work.
fn releases_there<T: ReadTables>(tables: &T, deployment: Option<&Deployment>) -> Result<Vec<Release>, TablesError> {
    let Some(deployment) = deployment else { return Ok(Vec::new()) };
    let rollout: Option<Rollout> = deployment.rollout.map(|id| tables.get(&key(id.0))).transpose()?.flatten();
    let mut releases = Vec::new();
    for id in deployment.stable.iter().chain(rollout.as_ref().map(|rollout| &rollout.release)) {
        releases.extend(tables.get::<Release>(&release_key(id))?);
    }
    Ok(releases)
}

/// What a plan looks like, as far as the settings depend on it.
struct Shape {
    canary: bool,
    total: u32,
}

fn settings(
    release: &Release,
    present: &[Release],
    deploy: &Deploy,
    environment: &Environment,
    purpose: Purpose,
    shape: Shape,
) -> Settings {
    let services = || release.file.service.values().chain(present.iter().flat_map(|present| present.file.service.values()));
    let in_place = services().any(|service| service.start == Start::InPlace);
    let rolling = deploy.strategy == Strategy::Rolling && purpose == Purpose::Deploy;
    let bake = match purpose {
        Purpose::Rollback => Millis(0),
        Purpose::Deploy => deploy.bake.max(environment.policy.least_bake.unwrap_or_default()),
    };
    let rollback_max_unavailable = deploy.rollback.max_unavailable.rounded_down(shape.total).max(1);
    let deadline_of = |release: &Release| Timing::of(&release.file, &release.file.deploy_to(&environment.name)).batch_deadline;
    let own = Timing::of(&release.file, deploy).batch_deadline;
    let slowest = present.iter().map(deadline_of).fold(own, Millis::max);
    Settings {
        canary: shape.canary,
        in_place,
        batched: in_place || rolling,
        bake,
        // What a file says is meant; else the old release's stop counts as the new one's start does.
        batch_deadline: deploy.deadline.unwrap_or(slowest),
        rollback_deadline: slowest,
        rollback_max_unavailable,
        irreversible: deploy.irreversible,
    }
}

/// What keeps a rollout from starting. A rollback ignores freezes and takes the place of what is at work.
pub fn blocked(environment: &Environment, deployment: Option<&Deployment>, purpose: Purpose) -> Option<BlockReason> {
    if purpose == Purpose::Rollback {
        return None;
    }
    let frozen = environment.frozen.clone().map(BlockReason::Frozen);
    frozen.or_else(|| deployment.and_then(|deployment| deployment.rollout).map(BlockReason::Rollout))
}

fn refused(subject: &Subject, error: PlanError) -> Rejection {
    Rejection::Invalid { what: format!("plan for {subject}"), why: error.to_string() }
}
