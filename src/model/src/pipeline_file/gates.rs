//! What a release is judged by besides its health: analysis, custom gates, and by what users are told apart.
//! Knows nothing of statistics.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::pipeline_file::{health::read_path, quantities::Thousandths, read::Value, schema, service::read_command};
use crate::units::BasisPoints;

/// `analysis = { … }`: the new release's traffic against the old one's.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default)]
#[schemars(deny_unknown_fields)]
pub struct Analysis {
    /// Which judge decides.
    pub judge: Judge,
    /// How many times the old release's error rate the new one's may be (1 to 1000).
    #[schemars(with = "schema::Number")]
    pub error_rate: Thousandths,
    /// How many times the old release's 99th percentile of latency the new one's may be (1 to 1000).
    #[schemars(with = "schema::Number")]
    pub p99: Thousandths,
    /// Whether its verdict is acted on.
    pub mode: AnalysisMode,
}

impl Default for Analysis {
    fn default() -> Self {
        Self { judge: Judge::Sequential, error_rate: Thousandths::whole(2), p99: Thousandths(1500), mode: AnalysisMode::Enforce }
    }
}

impl Analysis {
    pub(super) fn read(value: Value<'_>) -> Option<Self> {
        let section = value.section()?;
        let default = Self::default();
        let judges = [("threshold", Judge::Threshold), ("sequential", Judge::Sequential), ("mann-whitney", Judge::MannWhitney)];
        let modes = [("enforce", AnalysisMode::Enforce), ("shadow", AnalysisMode::Shadow)];
        let ratio = |value: Value<'_>| value.decimal(Thousandths::whole(1), Thousandths::whole(1000));
        let analysis = Self {
            judge: section.or("judge", default.judge, |value| value.word(&judges)),
            error_rate: section.or("error_rate", default.error_rate, ratio),
            p99: section.or("p99", default.p99, ratio),
            mode: section.or("mode", default.mode, |value| value.word(&modes)),
        };
        section.finish();
        Some(analysis)
    }
}

/// A way to conclude from measurements.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Judge {
    /// Ratios, with a least sample and a floor.
    Threshold,
    /// A test that may be looked at every second.
    Sequential,
    /// Kayenta's.
    MannWhitney,
}

/// What follows from a verdict.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum AnalysisMode {
    /// A failing verdict rolls back.
    Enforce,
    /// It is recorded.
    Shadow,
}

/// One custom gate: an HTTP check, a Prometheus query or a command; exactly one of the three.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema, Default)]
#[serde(default)]
#[schemars(deny_unknown_fields)]
pub struct Gate {
    /// A path asked of every instance of the new release.
    #[schemars(with = "String")]
    pub http: Option<String>,
    /// The share of these requests that must succeed; all where not given.
    #[schemars(with = "schema::ShareText")]
    pub success: Option<BasisPoints>,
    /// A query whose value is compared with `below` or `above`.
    #[schemars(with = "String")]
    pub prometheus: Option<String>,
    /// The query's value must be less.
    #[schemars(with = "schema::Number")]
    pub below: Option<Thousandths>,
    /// The query's value must be more.
    #[schemars(with = "schema::Number")]
    pub above: Option<Thousandths>,
    /// A command that must exit with 0.
    pub command: Vec<String>,
}

impl Gate {
    pub(super) fn read(value: Value<'_>) -> Option<Self> {
        let section = value.section()?;
        let number = |value: Value<'_>| value.decimal(Thousandths(0), Thousandths::whole(1_000_000_000_000));
        let gate = Self {
            http: section.opt("http", read_path),
            success: section.opt("success", |value| value.share()),
            prometheus: section.opt("prometheus", |value| value.text(r#""queue_depth""#)),
            below: section.opt("below", number),
            above: section.opt("above", number),
            command: section.or("command", Vec::new(), |value| read_command(&value)),
        };
        let kinds = [gate.http.is_some(), gate.prometheus.is_some(), !gate.command.is_empty()];
        let help = |text: &str| Some(text.to_owned());
        if kinds.iter().filter(|kind| **kind).count() != 1 {
            let message = format!("`{}` must be exactly one of http, prometheus and command", section.path);
            section.report("contradiction", message, help("write each check as a gate of its own"));
        } else if gate.prometheus.is_some() == (gate.below.is_none() && gate.above.is_none()) {
            let message =
                format!("`{}`: `below` or `above` goes with `prometheus`, and `prometheus` with one of them", section.path);
            section.report("contradiction", message, help("write { prometheus = \"queue_depth\", below = 1000 }"));
        } else if gate.success.is_some() && gate.http.is_none() {
            section.report("contradiction", format!("`{}`: `success` goes with `http`", section.path), None);
        }
        section.finish();
        Some(gate)
    }
}

/// By what a user is known: a header or a cookie; exactly one.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema, Default)]
#[serde(default)]
#[schemars(deny_unknown_fields)]
pub struct Sticky {
    /// The name of a request header.
    #[schemars(with = "String")]
    pub header: Option<String>,
    /// The name of a cookie; it is set where there is none.
    #[schemars(with = "String")]
    pub cookie: Option<String>,
}

impl Sticky {
    pub(super) fn read(value: Value<'_>) -> Option<Self> {
        let section = value.section()?;
        let token = |value: Value<'_>| {
            let name = value.text(r#""x-user-id""#)?;
            if name.chars().all(|c| c.is_ascii_alphanumeric() || "!#$%&'*+-.^_`|~".contains(c)) {
                return Some(name);
            }
            value.report("bad_value", format!("`{name}` is not the name of a header or a cookie"), None);
            None
        };
        let sticky = Self { header: section.opt("header", token), cookie: section.opt("cookie", token) };
        if sticky.header.is_some() == sticky.cookie.is_some() {
            section.report("contradiction", format!("`{}` must be exactly one of header and cookie", section.path), None);
        }
        section.finish();
        Some(sticky)
    }
}
