//! What a benchmark prints: JSON lines on standard output, progress on standard error. Must not know what is measured.

use anyhow::{Context as _, Result};
use serde_json::{Map, Value, json};

use crate::sample::{Paired, median};

/// Prints the lines of one benchmark.
#[derive(Debug)]
pub struct Report {
    bench: &'static str,
}

impl Report {
    pub fn new(bench: &'static str) -> Self {
        Self { bench }
    }

    /// Prints the peers and their versions; comes before any row.
    pub fn versions(&self, versions: &[(&str, String)]) {
        let versions: Map<String, Value> =
            versions.iter().map(|(program, version)| ((*program).to_owned(), json!(version))).collect();
        println!("{}", json!({ "versions": versions }));
    }

    /// Prints the medians of both sides and of the ratios of each round.
    pub fn compared(&self, case: &str, rounds: &[Paired], unit: &str, note: &str) -> Result<()> {
        let values = |value: fn(&Paired) -> f64| rounds.iter().map(value).collect::<Vec<_>>();
        let of = |values: Vec<f64>| median(&values).with_context(|| format!("{case} was not measured"));
        let ours = of(values(|round| round.ours))?;
        let peer = of(values(|round| round.peer))?;
        let ratio = of(values(|round| round.ours / round.peer))?;
        self.row(case, ours, Some((peer, ratio)), unit, rounds.len(), note);
        Ok(())
    }

    /// Prints the median of what has no peer.
    pub fn alone(&self, case: &str, values: &[f64], unit: &str, note: &str) -> Result<()> {
        let ours = median(values).with_context(|| format!("{case} was not measured"))?;
        self.row(case, ours, None, unit, values.len(), note);
        Ok(())
    }

    fn row(&self, case: &str, ours: f64, peer: Option<(f64, f64)>, unit: &str, runs: usize, note: &str) {
        let (peer, ratio) = peer.unzip();
        println!(
            "{}",
            json!({
                "bench": self.bench, "case": case, "ours": ours, "peer": peer, "ratio": ratio,
                "unit": unit, "runs": runs, "note": note,
            })
        );
    }
}
