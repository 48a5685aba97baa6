//! From a release and an environment to a plan and settings: what `swell plan` shows and what starting a rollout carries out.

use roaring::RoaringBitmap;

use super::{
    digest::Digest,
    event::Subject,
    fleet::{Environment, Presence, Target},
    ids::{EnvironmentName, ReleaseId},
    observation::{Observation, observation_key},
    pipeline_file::{Deploy, Order, Spread, Start, Strategy},
    plan::{Plan, PlanError, PlanInput, PlanTarget, Timing, plan},
    rejection::{Rejection, RuleError},
    release::{Artifact, Release, release_key},
    rollout::{Blocked, Deployment, Purpose, Settings, deployment_key},
    tables::{ReadTables, SCAN_RECORDS_MAX, Scan, TablesError, key},
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
    pub blocked: Option<Blocked>,
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
    let settings = settings(tables, &release, stable.as_ref(), &deploy, &environment, purpose, plan.total)?;
    let blocked = blocked(&environment, deployment.as_ref(), purpose);
    Ok(Planned { plan, settings, stable, blocked, reachable })
}

/// The targets whose agents are connected to any server.
pub fn connected<T: ReadTables>(tables: &T) -> Result<RoaringBitmap, TablesError> {
    let servers: Vec<Presence> = tables.scan(&Scan::all(), SCAN_RECORDS_MAX)?;
    Ok(servers.into_iter().fold(RoaringBitmap::new(), |all, presence| all | presence.connected))
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
        let (release, why) = (release.id.clone(), quarantined.why.clone());
        return Err(Rejection::Quarantined { release, environment: Subject::Environment(environment.name.clone()), why }.into());
    }
    let artifact: Option<Artifact> = tables.get(&key(release.artifact.hex().as_str()))?;
    if artifact.is_none_or(|artifact| artifact.deleted_at.is_some()) {
        return Err(Rejection::ArtifactDeleted(release.id.clone()).into());
    }
    let stable = deployment.and_then(|deployment| deployment.stable.as_ref());
    let undoes_a_rollout = deployment.is_some_and(|deployment| deployment.rollout.is_some());
    if purpose == Purpose::Rollback && stable == Some(&release.id) && !undoes_a_rollout {
        let what = "release".to_owned();
        return Err(Rejection::Invalid { what, why: format!("{} runs {} already", environment.name, release.id) }.into());
    }
    Ok(())
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
            region: target.facts.region,
            zone: target.facts.zone,
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
    if purpose == Purpose::Rollback {
        waves = vec![all];
    } else if let Some(most) = environment.floors.first_wave_max {
        let total = targets.len() as u32;
        if waves.first().is_none_or(|first| first.rounded_up(total) > most.rounded_up(total)) {
            waves.insert(0, most);
        }
    }
    PlanInput {
        rollout_seed: seed,
        targets,
        strategy: if purpose == Purpose::Rollback { Strategy::Rolling } else { deploy.strategy },
        waves,
        max_unavailable: if purpose == Purpose::Rollback { deploy.rollback.max_unavailable } else { deploy.max_unavailable },
        max_failures: deploy.max_failures,
        spread_zone: deploy.spread == Spread::Zone,
        by_region: deploy.order == Order::Region && purpose == Purpose::Deploy,
    }
}

fn settings<T: ReadTables>(
    tables: &T,
    release: &Release,
    stable: Option<&ReleaseId>,
    deploy: &Deploy,
    environment: &Environment,
    purpose: Purpose,
    total: u32,
) -> Result<Settings, TablesError> {
    let stable: Option<Release> = stable.map(|stable| tables.get(&release_key(stable))).transpose()?.flatten();
    let services = || release.file.service.values().chain(stable.iter().flat_map(|stable| stable.file.service.values()));
    let in_place = services().any(|service| service.start == Start::InPlace);
    let rolling = deploy.strategy == Strategy::Rolling && purpose == Purpose::Deploy;
    let bake = match purpose {
        Purpose::Rollback => Millis(0),
        Purpose::Deploy => deploy.bake.max(environment.floors.least_bake.unwrap_or_default()),
    };
    let rollback_max_unavailable = deploy.rollback.max_unavailable.rounded_down(total).max(1);
    Ok(Settings {
        canary: deploy.strategy == Strategy::Canary && purpose == Purpose::Deploy,
        in_place,
        batched: in_place || rolling,
        bake,
        batch_deadline: Timing::of(&release.file, deploy).batch_deadline,
        rollback_max_unavailable,
        irreversible: deploy.irreversible,
    })
}

/// What keeps a rollout from starting. A rollback ignores freezes and takes the place of what is at work.
pub fn blocked(environment: &Environment, deployment: Option<&Deployment>, purpose: Purpose) -> Option<Blocked> {
    if purpose == Purpose::Rollback {
        return None;
    }
    let frozen = environment.frozen.clone().map(Blocked::Frozen);
    frozen.or_else(|| deployment.and_then(|deployment| deployment.rollout).map(Blocked::Rollout))
}

fn refused(subject: &Subject, error: PlanError) -> Rejection {
    Rejection::Invalid { what: format!("plan for {subject}"), why: error.to_string() }
}
