//! The API's view of a plan: waves, settings, least duration, and what blocks it.

use serde::Serialize;
use utoipa::ToSchema;

use super::targets::TargetSet;
use swell_model::{
    pipeline_file::Strategy,
    release::Release,
    rollout::{
        Purpose,
        plan::{Timing, least_duration, least_rollback_duration, wave_deadline},
        plan_input::Planned,
    },
    tables::{ReadTables, TablesError},
};

/// Least duration of a rollout, without downloads and the start of services.
#[derive(Debug, Clone, Serialize, ToSchema)]
pub struct TimingView {
    /// Least duration from the first change to the end.
    pub least_ms: u64,
    /// Least duration of reverting all of it.
    pub least_rollback_ms: u64,
}

/// Dry run of a rollout.
#[derive(Debug, Clone, Serialize, ToSchema)]
pub struct PlanView {
    /// Name of the pipeline.
    pub pipeline: String,
    /// Name of the environment.
    pub environment: String,
    /// Release to deploy.
    pub release: String,
    /// Release that the environment runs now.
    pub stable: Option<String>,
    /// `deploy` or `rollback`.
    pub purpose: String,
    /// Digest of the plan, for `if_plan`.
    pub digest: String,
    /// What would block the start.
    pub blocked: Option<String>,
    /// Number of targets that would be changed.
    pub total: u32,
    /// Number of those that are connected now.
    pub reachable: u64,
    /// Waves in order.
    pub waves: Vec<PlannedWaveView>,
    /// Settings of the rollout.
    pub settings: SettingsView,
    /// Least durations of the rollout and of reverting it.
    pub timing: TimingView,
    /// Settings of the pipeline file that this version does not support.
    pub warnings: Vec<String>,
}

/// Targets that would be changed together.
#[derive(Debug, Clone, Serialize, ToSchema)]
pub struct PlannedWaveView {
    /// Number of the wave, from 1.
    pub number: u32,
    /// Region of the targets, if regions are changed one by one.
    pub region: Option<String>,
    /// Targets of the wave.
    pub targets: TargetSet,
    /// Gates that the wave must pass, as text.
    pub gates: Vec<String>,
}

/// Settings of a rollout.
#[derive(Debug, Clone, Serialize, ToSchema)]
pub struct SettingsView {
    /// `canary`, `blue-green` or `rolling`; a rollback has one wave.
    pub strategy: String,
    /// Whether an instance stops before its successor starts.
    pub in_place: bool,
    /// Whether a wave is changed in batches of `max_unavailable`.
    pub batched: bool,
    /// How long each wave but the last must stay healthy.
    pub bake_ms: u64,
    /// How long a batch may take to become healthy.
    pub batch_deadline_ms: u64,
    /// Number of targets that may be unavailable at once.
    pub max_unavailable: u32,
    /// Number of targets that may be unavailable at once during a rollback.
    pub rollback_max_unavailable: u32,
    /// Whether a failing gate pauses the rollout instead of rolling back.
    pub irreversible: bool,
}

impl PlanView {
    /// The plan of a rollout of `release` to `environment`.
    pub fn new<T: ReadTables>(
        tables: &T,
        planned: &Planned,
        environment: &swell_model::ids::EnvironmentName,
        release: &Release,
        purpose: Purpose,
    ) -> Result<Self, TablesError> {
        let (plan, settings) = (&planned.plan, &planned.settings);
        let deploy = release.file.deploy_to(environment);
        let timing = Timing::of(&release.file, &deploy).within(settings);
        let mut waves = Vec::new();
        let mut reachable = 0;
        for (place, wave) in plan.waves.iter().enumerate() {
            let deadline = wave_deadline(plan, place, &timing);
            let mut gates = vec![match wave.max_failures {
                0 => format!("convergence: healthy within {deadline}"),
                most => format!("convergence: healthy within {deadline}, all but {most} of those changed by then"),
            }];
            if place + 1 < plan.waves.len() && settings.bake.0 > 0 {
                gates.push(format!("bake: healthy for {}", settings.bake));
            }
            reachable += wave.targets.intersection_len(&planned.reachable);
            let targets = TargetSet::of(tables, &wave.targets, super::targets::NAMED_MAX)?;
            waves.push(PlannedWaveView { number: place as u32 + 1, region: wave.region.clone(), targets, gates });
        }
        Ok(Self {
            pipeline: release.id.pipeline.to_string(),
            environment: environment.to_string(),
            release: release.id.to_string(),
            stable: planned.stable.as_ref().map(ToString::to_string),
            purpose: if purpose == Purpose::Rollback { "rollback" } else { "deploy" }.to_owned(),
            digest: planned.digest(&release.id).to_string(),
            blocked: planned.blocked.as_ref().map(super::reason::block),
            total: plan.total,
            reachable,
            waves,
            settings: SettingsView {
                strategy: match (purpose, deploy.strategy) {
                    (Purpose::Rollback, _) | (_, Strategy::Rolling) => "rolling",
                    (_, Strategy::Canary) => "canary",
                    (_, Strategy::BlueGreen) => "blue-green",
                }
                .to_owned(),
                in_place: settings.in_place,
                batched: settings.batched,
                bake_ms: settings.bake.0,
                batch_deadline_ms: settings.batch_deadline.0,
                max_unavailable: plan.max_unavailable,
                rollback_max_unavailable: settings.rollback_max_unavailable,
                irreversible: settings.irreversible,
            },
            timing: TimingView {
                least_ms: least_duration(plan, &timing).0,
                least_rollback_ms: least_rollback_duration(plan, &timing).0,
            },
            warnings: release.file.unsupported().into_iter().map(|found| found.message).collect(),
        })
    }
}
