//! What would happen: the waves by name, the settings, how long at least, and what blocks.

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

/// How long a rollout takes at least, fetching and the services' own start aside.
#[derive(Debug, Clone, Serialize, ToSchema)]
pub struct TimingView {
    /// From the first change to the end.
    pub least_ms: u64,
    /// To take all of it back.
    pub least_rollback_ms: u64,
}

/// A dry run.
#[derive(Debug, Clone, Serialize, ToSchema)]
pub struct PlanView {
    /// Whose.
    pub pipeline: String,
    /// Where.
    pub environment: String,
    /// To which release.
    pub release: String,
    /// What the environment runs now.
    pub stable: Option<String>,
    /// `deploy` or `rollback`.
    pub purpose: String,
    /// What `if_plan` compares.
    pub digest: String,
    /// What would keep it from starting.
    pub blocked: Option<String>,
    /// How many targets would be changed.
    pub total: u32,
    /// How many of them are connected now.
    pub reachable: u64,
    /// The waves.
    pub waves: Vec<PlannedWaveView>,
    /// How they are changed and judged.
    pub settings: SettingsView,
    /// How long at least.
    pub timing: TimingView,
    /// What the pipeline file asks for that this version does not carry out.
    pub warnings: Vec<String>,
}

/// Targets that would be changed together.
#[derive(Debug, Clone, Serialize, ToSchema)]
pub struct PlannedWaveView {
    /// From 0.
    pub number: u32,
    /// The region, where regions are changed one by one.
    pub region: Option<String>,
    /// Which.
    pub targets: TargetSet,
    /// The gates after it, in a phrase each.
    pub gates: Vec<String>,
}

/// How waves are changed and judged.
#[derive(Debug, Clone, Serialize, ToSchema)]
pub struct SettingsView {
    /// `canary`, `blue-green` or `rolling`; a rollback is one wave.
    pub strategy: String,
    /// Whether an instance must stop before its successor starts.
    pub in_place: bool,
    /// Whether a wave is changed in batches of `max_unavailable`.
    pub batched: bool,
    /// How long each wave but the last is watched.
    pub bake_ms: u64,
    /// How long a batch may take to converge.
    pub batch_deadline_ms: u64,
    /// How many targets may be unavailable at once.
    pub max_unavailable: u32,
    /// How many targets may be unavailable at once while going back.
    pub rollback_max_unavailable: u32,
    /// Whether a failing verdict pauses instead of going back.
    pub irreversible: bool,
}

impl PlanView {
    /// What `planned` says of moving `environment` to `release`.
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
            waves.push(PlannedWaveView { number: place as u32, region: wave.region.clone(), targets, gates });
        }
        Ok(Self {
            pipeline: release.id.pipeline.to_string(),
            environment: environment.to_string(),
            release: release.id.to_string(),
            stable: planned.stable.as_ref().map(ToString::to_string),
            purpose: if purpose == Purpose::Rollback { "rollback" } else { "deploy" }.to_owned(),
            digest: planned.digest(&release.id).to_string(),
            blocked: planned.blocked.as_ref().map(ToString::to_string),
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
