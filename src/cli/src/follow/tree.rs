//! Progress on a terminal: a tree redrawn in place, with a bar for each wave or a line for each phase.

use std::time::Duration;

use indicatif::{MultiProgress, ProgressBar, ProgressDrawTarget, ProgressStyle};

use super::{lines, resource::FollowedResource};
use crate::{
    human,
    output::{Output, Tone, tone_of},
    views::{Build, Rollout},
};

/// How many waves are drawn.
const WAVES_SHOWN_MAX: usize = 40;
const HEAD: &str = "{spinner} {wide_msg}";
const LINE: &str = "  {wide_msg}";
const BAR: &str = "  {prefix} {bar:24} {wide_msg}";

/// The progress tree of one build or rollout.
pub struct Tree {
    multi: MultiProgress,
    head: ProgressBar,
    branches: Vec<ProgressBar>,
    foot: ProgressBar,
}

fn style(template: &str) -> ProgressStyle {
    ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar()).progress_chars("━╸ ")
}

impl Tree {
    /// An empty tree on standard error.
    pub fn new() -> Self {
        Self::on(ProgressDrawTarget::stderr())
    }

    /// An empty tree on another target, for tests.
    pub fn on(target: ProgressDrawTarget) -> Self {
        let multi = MultiProgress::with_draw_target(target);
        let head = multi.add(ProgressBar::new_spinner().with_style(style(HEAD)));
        let foot = multi.add(ProgressBar::new_spinner().with_style(style(LINE)));
        head.enable_steady_tick(Duration::from_millis(120));
        Self { multi, head, branches: Vec::new(), foot }
    }

    /// Draws the state of a resource.
    pub fn show(&mut self, output: &Output, resource: &FollowedResource, now_ms: u64) {
        let passed = human::duration(now_ms.saturating_sub(resource.created_at()));
        let state = output.state(resource.state());
        match resource {
            FollowedResource::Build(build) => {
                let commit = human::short(&build.commit);
                self.head.set_message(format!("{} {} {commit}  {state}  {passed}", build.id, build.pipeline));
                self.phases(output, build, now_ms);
            }
            FollowedResource::Rollout(rollout) => {
                let way = format!("{} to {}", rollout.release, rollout.environment);
                self.head.set_message(format!("{} {way}  {state}  {passed}", rollout.id));
                self.waves(output, rollout);
            }
        }
        let foot = resource.waiting().map(|waiting| output.paint(Tone::Faint, &waiting));
        self.foot.set_message(foot.unwrap_or_default());
    }

    /// Prints a line above the tree.
    pub fn note(&self, line: &str) {
        // Progress that cannot be drawn is no reason to stop following.
        self.multi.println(line).ok();
    }

    /// Stops redrawing and leaves the last state on the screen.
    pub fn finish(self) {
        self.foot.finish_and_clear();
        for branch in &self.branches {
            branch.abandon();
        }
        self.head.abandon();
    }

    fn branch(&mut self, place: usize, template: &str) -> &ProgressBar {
        while self.branches.len() <= place {
            let bar = ProgressBar::new(1).with_style(style(template));
            self.branches.push(self.multi.insert_before(&self.foot, bar));
        }
        &self.branches[place]
    }

    fn phases(&mut self, output: &Output, build: &Build, now_ms: u64) {
        let Some(attempt) = build.attempts.last() else { return };
        for (place, phase) in attempt.phases.iter().enumerate() {
            let took = human::duration(phase.ended_at.unwrap_or(now_ms).saturating_sub(phase.started_at));
            let mark = match (phase.ended_at, phase.skipped, phase.exit_code) {
                (_, true, _) => output.paint(Tone::Faint, "- skipped"),
                (None, ..) => output.paint(Tone::Notice, &format!("… {took}")),
                (Some(_), _, Some(code)) if code != 0 => output.paint(Tone::Bad, &format!("✗ exit {code}, {took}")),
                (Some(_), ..) => output.paint(Tone::Good, &format!("✓ {took}")),
            };
            self.branch(place, LINE).set_message(format!("{:9} {mark}", phase.phase));
        }
    }

    fn waves(&mut self, output: &Output, rollout: &Rollout) {
        let many = rollout.waves.len();
        // The waves around the current one.
        let first = (rollout.wave as usize).saturating_sub(WAVES_SHOWN_MAX / 2).min(many.saturating_sub(WAVES_SHOWN_MAX));
        for (place, wave) in rollout.waves.iter().skip(first).take(WAVES_SHOWN_MAX).enumerate() {
            let region = wave.region.as_ref().map(|region| format!(" {region}")).unwrap_or_default();
            let gate = rollout.gate.as_ref().filter(|_| wave.state == "at-work").map(|gate| {
                format!("  {} {} of {}", gate.gate, human::duration(gate.elapsed_ms), human::duration(gate.limit_ms))
            });
            let where_they_are = lines::counts(&wave.counts, wave.targets.count);
            let state = output.paint(tone_of(&wave.state), &wave.state);
            let message = format!("{where_they_are}  {state}{}", gate.unwrap_or_default());
            let bar = self.branch(place, BAR);
            bar.set_prefix(format!("wave {}/{many}{region}", wave.number));
            bar.set_length(wave.targets.count.max(1));
            bar.set_position(wave.counts.healthy + wave.counts.restored);
            bar.set_message(message);
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::{
        follow::ResourceKind,
        output::{ColorChoice, Surroundings},
    };

    #[test]
    fn rollout_tree_shows_state_wave_bars_and_reason_for_waiting() {
        for template in [HEAD, LINE, BAR] {
            ProgressStyle::with_template(template).unwrap();
        }
        let streams = || Box::new(std::io::sink());
        let output = Output::new(false, false, Surroundings::default(), ColorChoice::Never, streams(), streams());
        let rollout = json!({
            "id": "r7", "release": "shop@12", "environment": "production", "state": "rolling-out", "created_at": 0, "wave": 2,
            "waits_for": "2 targets", "gate": { "gate": "bake", "elapsed_ms": 5000, "limit_ms": 60_000 },
            "waves": [
                { "number": 1, "state": "passed", "targets": { "count": 1 }, "counts": { "healthy": 1 } },
                { "number": 2, "state": "at-work", "targets": { "count": 5 }, "counts": { "healthy": 3, "changing": 2 } },
            ],
        });
        let mut tree = Tree::on(ProgressDrawTarget::hidden());
        tree.show(&output, &FollowedResource::read(ResourceKind::Rollout, &rollout).unwrap(), 61_000);
        assert_eq!(tree.head.message(), "r7 shop@12 to production  rolling-out  1m01s");
        assert_eq!(tree.foot.message(), "waiting for 2 targets");
        let wave = &tree.branches[1];
        assert_eq!((wave.prefix().as_str(), wave.position(), wave.length()), ("wave 2/2", 3, Some(5)));
        assert_eq!(wave.message(), "3/5 healthy, 2 changing  at-work  bake 5s of 1m");
    }
}
