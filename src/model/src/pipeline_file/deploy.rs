//! `[deploy.NAME]`: how an environment is moved to a release. Knows nothing of targets; `model::plan` applies it to them.

use globset::GlobBuilder;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::pipeline_file::{
    gates::{Analysis, Gate, Sticky},
    read::Value,
    schema,
};
use crate::units::{Amount, BasisPoints, Millis};

/// The most waves of a rollout in one region.
pub const WAVES_MAX: usize = 32;
/// The most branches that deploy by themselves.
const BRANCHES_MAX: usize = 64;
/// The most custom gates.
const GATES_MAX: usize = 16;

/// How an environment is moved to a release. An environment without such a section is deployed to with the defaults.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default)]
#[schemars(deny_unknown_fields)]
pub struct Deploy {
    /// Branches that deploy by themselves when ready; `*` stands for a part of a name, as in "release/*".
    pub auto: Vec<String>,
    /// How targets are changed.
    pub strategy: Strategy,
    /// How many targets are changed when each wave is done, ending with "100%". Only a canary has more than one wave;
    /// by default [1, "10%", "50%", "100%"].
    #[schemars(with = "Vec<schema::AmountText>")]
    pub waves: Vec<Amount>,
    /// The share of traffic that the new release has during each wave; without it, that of the targets.
    #[schemars(with = "Vec<schema::ShareText>")]
    pub traffic: Vec<BasisPoints>,
    /// Whether one region is finished before the next.
    pub order: Order,
    /// Whether targets of several zones may be unavailable at once.
    pub spread: Spread,
    /// How many targets may be unavailable at once because of the rollout; rounded down, at least one.
    #[schemars(with = "schema::AmountText")]
    pub max_unavailable: Amount,
    /// How many of the attempted targets of a wave may fail; rounded down.
    #[schemars(with = "schema::AmountText")]
    pub max_failures: Amount,
    /// How long each wave but the last is watched after all of it is healthy (0s to 7d). Default: 5m for a canary, else 0s.
    #[schemars(with = "schema::DurationText")]
    pub bake: Millis,
    /// How long a batch of targets may take to be healthy (1s to 1d). A wave may take so long for each batch of
    /// `max_unavailable` that it needs. Default: one minute to fetch, and for the slowest service its
    /// `stop.drain + stop.timeout + health.start_timeout + health.min_healthy`.
    #[schemars(with = "schema::DurationText")]
    pub deadline: Option<Millis>,
    /// How a release is judged by its traffic; without it, by its health alone.
    #[schemars(with = "Analysis")]
    pub analysis: Option<Analysis>,
    /// By what a user is known, so that the same user always meets the same release.
    #[schemars(with = "Sticky")]
    pub sticky: Option<Sticky>,
    /// What else must hold before the next wave.
    pub gates: Vec<Gate>,
    /// The task that runs before the first target is changed.
    #[schemars(with = "String")]
    pub before: Option<String>,
    /// The task that runs after the last wave.
    #[schemars(with = "String")]
    pub after: Option<String>,
    /// No automatic rollback across this release: a failing verdict pauses instead.
    pub irreversible: bool,
    /// Whether a person must approve the rollout; the environment can ask for it too.
    pub approval: bool,
    /// How it goes back.
    pub rollback: Rollback,
}

/// One target, a tenth, a half, all.
fn canary_waves() -> Vec<Amount> {
    vec![Amount::Count(1), share(1000), share(5000), share(10_000)]
}

const fn share(basis_points: u32) -> Amount {
    Amount::Share(BasisPoints(basis_points))
}

impl Default for Deploy {
    fn default() -> Self {
        Self {
            auto: Vec::new(),
            strategy: Strategy::Canary,
            waves: canary_waves(),
            traffic: Vec::new(),
            order: Order::Any,
            spread: Spread::None,
            max_unavailable: share(1000),
            max_failures: Amount::Count(0),
            bake: Millis::from_secs(300),
            deadline: None,
            analysis: None,
            sticky: None,
            gates: Vec::new(),
            before: None,
            after: None,
            irreversible: false,
            approval: false,
            rollback: Rollback::default(),
        }
    }
}

impl Deploy {
    /// Whether a push to `branch` (its short name, such as `main`) is deployed without being asked.
    pub fn deploys_by_itself(&self, branch: &str) -> bool {
        let matches = |pattern: &String| match GlobBuilder::new(pattern).literal_separator(true).build() {
            Ok(glob) => glob.compile_matcher().is_match(branch),
            Err(_) => pattern == branch,
        };
        self.auto.iter().any(matches)
    }

    pub(super) fn read(value: Value<'_>) -> Option<Self> {
        let section = value.section()?;
        let default = Self::default();
        let strategies = [("canary", Strategy::Canary), ("blue-green", Strategy::BlueGreen), ("rolling", Strategy::Rolling)];
        let strategy = section.or("strategy", default.strategy, |value| value.word(&strategies));
        let (waves, bake) = match strategy {
            Strategy::Canary => (default.waves, default.bake),
            Strategy::BlueGreen | Strategy::Rolling => (vec![share(10_000)], Millis(0)),
        };
        let day = Millis::from_secs(24 * 3600);
        let deploy = Self {
            auto: section.or("auto", default.auto, |value| value.texts(r#"["main"]"#, BRANCHES_MAX)),
            strategy,
            waves: section.or("waves", waves, |value| read_waves(&value)),
            traffic: section.or("traffic", default.traffic, |value| read_traffic(&value)),
            order: section.or("order", default.order, |value| value.word(&[("any", Order::Any), ("region", Order::Region)])),
            spread: section.or("spread", default.spread, |value| value.word(&[("none", Spread::None), ("zone", Spread::Zone)])),
            max_unavailable: section.or("max_unavailable", default.max_unavailable, |value| read_positive(&value)),
            max_failures: section.or("max_failures", default.max_failures, |value| value.amount()),
            bake: section.or("bake", bake, |value| value.duration(Millis(0), Millis::from_secs(7 * 24 * 3600))),
            deadline: section.opt("deadline", |value| value.duration(Millis::from_secs(1), day)),
            analysis: section.opt("analysis", Analysis::read),
            sticky: section.opt("sticky", Sticky::read),
            gates: section.or("gates", default.gates, |value| {
                let items = value.items("a list of gates such as [{ http = \"/deep-health\" }]", GATES_MAX)?;
                Some(items.into_iter().filter_map(Gate::read).collect())
            }),
            before: section.opt("before", |value| value.text(r#""migrate""#)),
            after: section.opt("after", |value| value.text(r#""smoke""#)),
            irreversible: section.or("irreversible", false, |value| value.boolean()),
            approval: section.or("approval", false, |value| value.boolean()),
            rollback: section.or("rollback", default.rollback, Rollback::read),
        };
        section.finish();
        Some(deploy)
    }
}

/// How targets are changed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Strategy {
    /// A few first, judged before the rest follows in waves.
    Canary,
    /// All new instances beside all old ones, then the traffic flips.
    BlueGreen,
    /// One wave, in batches of `max_unavailable`.
    Rolling,
}

/// In which order regions are changed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Order {
    /// All at once.
    Any,
    /// One region, with its own waves, before the next.
    Region,
}

/// What may be unavailable together.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Spread {
    /// Targets of any zones.
    None,
    /// Never targets of two zones.
    Zone,
}

/// `rollback = { … }`: how a rollout goes back.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default)]
#[schemars(deny_unknown_fields)]
pub struct Rollback {
    /// How many targets may be unavailable at once while services that start in place go back; rounded down, at least
    /// one. Services that start beside go back all at once.
    #[schemars(with = "schema::AmountText")]
    pub max_unavailable: Amount,
}

impl Default for Rollback {
    fn default() -> Self {
        Self { max_unavailable: share(5000) }
    }
}

impl Rollback {
    fn read(value: Value<'_>) -> Option<Self> {
        let section = value.section()?;
        let default = Self::default();
        let rollback =
            Self { max_unavailable: section.or("max_unavailable", default.max_unavailable, |value| read_positive(&value)) };
        section.finish();
        Some(rollback)
    }
}

fn is_zero(amount: Amount) -> bool {
    matches!(amount, Amount::Count(0) | Amount::Share(BasisPoints(0)))
}

fn read_positive(value: &Value<'_>) -> Option<Amount> {
    let amount = value.amount()?;
    if is_zero(amount) {
        let help = Some("write at least 1".to_owned());
        value.report("bad_value", format!("`{}` is {amount}: then no target may ever be changed", value.path), help);
        return None;
    }
    Some(amount)
}

/// Counts and shares must each grow; how a count compares to a share is known only once the targets are.
fn read_waves(value: &Value<'_>) -> Option<Vec<Amount>> {
    let items = value.items(r#"a list of counts and shares such as [1, "10%", "100%"]"#, WAVES_MAX)?;
    let mut waves = Vec::new();
    let (mut count_before, mut share_before) = (0, BasisPoints(0));
    for item in &items {
        let amount = item.amount()?;
        let grows = match amount {
            Amount::Count(count) => std::mem::replace(&mut count_before, count) < count,
            Amount::Share(share) => std::mem::replace(&mut share_before, share) < share,
        };
        if !grows {
            let message = format!("wave {amount} adds no target to those before it");
            item.report(
                "bad_waves",
                message,
                Some("each wave says how many are changed when it is done: let them grow".to_owned()),
            );
            return None;
        }
        if share_before == BasisPoints::ALL && waves.len() + 1 < items.len() {
            item.report("bad_waves", "100% is not the last wave".to_owned(), Some("remove the waves after it".to_owned()));
            return None;
        }
        waves.push(amount);
    }
    if waves.last() != Some(&Amount::Share(BasisPoints::ALL)) {
        value.report("bad_waves", "the last wave is not 100%".to_owned(), Some("add \"100%\" at the end".to_owned()));
        return None;
    }
    Some(waves)
}

fn read_traffic(value: &Value<'_>) -> Option<Vec<BasisPoints>> {
    let items = value.items(r#"a list of shares such as ["1%", "100%"]"#, WAVES_MAX)?;
    let mut steps = Vec::new();
    for item in &items {
        let step = item.share()?;
        if steps.last().is_some_and(|before| *before > step) {
            item.report("bad_traffic", format!("traffic goes back to {step}"), Some("let the steps grow".to_owned()));
            return None;
        }
        steps.push(step);
    }
    if steps.last().is_some_and(|last| *last != BasisPoints::ALL) {
        value.report("bad_traffic", "the last step is not 100%".to_owned(), Some("let it be \"100%\"".to_owned()));
        return None;
    }
    Some(steps)
}
