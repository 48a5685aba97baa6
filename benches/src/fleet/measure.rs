//! The figures of one server at one scale, in the order in which they are taken.

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use serde_json::{Value, json};
use swell_loadgen::{counters::Span, fleet::Fleet};
use swell_model::ids::ReleaseId;
use tokio::time::sleep;

use super::{
    PATIENCE,
    scale::{ENVIRONMENT, START, Scale, canary, pipeline_name, rolling},
};
use crate::{
    Setup,
    sample::{ms, percentile},
    server::Server,
};

/// The share of failing and of stalled targets in the rollout that is aborted, in percent.
const FAILING: u32 = 20;
const STALLED: u32 = 2;

/// Rollouts whose canaries are timed.
const CANARIES: usize = 20;

/// One figure and what it should be.
#[derive(Debug)]
pub struct Figure {
    pub case: &'static str,
    pub value: f64,
    pub unit: &'static str,
    pub goal: &'static str,
}

/// Sets a server up and takes all figures.
pub async fn figures(setup: &Setup, scale: Scale) -> Result<Vec<Figure>> {
    let (mut server, mut fleet) = scale.set_up(setup).await?;
    let stable: ReleaseId = format!("{}@1", pipeline_name(0)).parse()?;
    let mut figures = Vec::new();
    let mut figure = |case, value, unit, goal| {
        eprintln!("{case}: {value:.2} {unit} (goal: {goal})");
        figures.push(Figure { case, value, unit, goal });
    };

    let canaries = canaries(setup, &server, &fleet).await.context("timing canaries")?;
    figure("deploy to first canary told, 99th percentile", canaries, "ms", "< 1,000 ms");
    let [told, restored] = abort(&server, &fleet, scale, &stable).await.context("aborting a rollout")?;
    figure("abort to last target told", told, "ms", "< 2,000 ms");
    figure("abort to all restored, beyond the instances' start", restored, "ms", "< 10,000 ms");
    settle(setup).await;
    figure("memory, all of it", server.usage()?.resident / f64::from(1 << 20), "MiB", "< 1,024 MiB");
    figure("processor time when idle", idle_cpu(setup, &server).await?, "% of a core", "< 5 %");
    let [back, writes] = restart(setup, &mut server, &fleet).await.context("restarting the server")?;
    figure("server killed and started, to all agents back", back, "ms", "< 30,000 ms");
    figure("state writes for targets that did not change", writes, "writes", "0");

    // A server that holds the same state and no session is what sessions are counted above.
    let stopped = fleet.stop().await;
    server.kill().await?;
    server.resume().await?;
    settle(setup).await;
    let without = server.usage()?.anonymous;
    fleet = stopped.start()?;
    fleet.connected(PATIENCE).await?;
    settle(setup).await;
    let each = (server.usage()?.anonymous - without) / f64::from(scale.agents) / 1024.0;
    figure("memory a session", each, "KiB", "≤ 16 KiB");
    fleet.stop().await;
    server.stop().await?;
    Ok(figures)
}

/// Time for what was begun to end: batches, presence, files that are merged.
async fn settle(setup: &Setup) {
    sleep(Duration::from_secs(if setup.quick { 1 } else { 15 })).await;
}

/// Deploys again and again, and takes the time until the first target is told.
async fn canaries(setup: &Setup, server: &Server, fleet: &Fleet) -> Result<f64> {
    let pipeline = pipeline_name(0);
    let release = server.push(&pipeline, &canary(Duration::from_secs(3600)), "canary").await?;
    let id: ReleaseId = release.parse()?;
    let mut took = Vec::new();
    for _ in 0..if setup.quick { 2 } else { CANARIES } {
        fleet.counters().clear_timeline();
        let began = Instant::now();
        let rollout = server.deploy(&pipeline, ENVIRONMENT, &release).await?;
        fleet.counters().wait("telling a canary", PATIENCE, |_, timeline| timeline.release(&id).assigned.count > 0).await?;
        took.push(since(began, timeline_span(fleet, &id, |spans| spans.assigned).first)?);
        server.api()?.post(&format!("/v1/rollouts/{rollout}/abort"), &json!({ "why": "measured" })).await?;
        server.ended(&rollout, PATIENCE).await?;
        // An aborted release is quarantined.
        let clear = format!("/v1/environments/{ENVIRONMENT}/quarantine/{release}/clear");
        server.api()?.post(&clear, &json!({})).await?;
    }
    percentile(&mut took, 99.0).map(ms).context("no canary was timed")
}

/// Aborts a rollout that has told every target, of which many fail: how long until the last is told to go back, and until all run the
/// stable release, beyond the time that instances take to start.
async fn abort(server: &Server, fleet: &Fleet, scale: Scale, stable: &ReleaseId) -> Result<[f64; 2]> {
    let pipeline = pipeline_name(0);
    let release = server.push(&pipeline, &rolling(FAILING, STALLED), "failing").await?;
    let id: ReleaseId = release.parse()?;
    let all = u64::from(scale.agents);
    // Stalled targets keep the rollout open; around their share, since each is chosen by itself.
    let settled = all - all * 2 * u64::from(STALLED) / 100;
    fleet.counters().clear_timeline();
    let rollout = server.deploy(&pipeline, ENVIRONMENT, &release).await?;
    let changed = |spans: swell_loadgen::counters::ReleaseSpans| {
        spans.assigned.count == all && spans.healthy.count + spans.failed.count >= settled
    };
    fleet.counters().wait("changing all targets", PATIENCE, |_, timeline| changed(timeline.release(&id))).await?;

    fleet.counters().clear_timeline();
    let began = Instant::now();
    server.api()?.post(&format!("/v1/rollouts/{rollout}/abort"), &json!({ "why": "measured" })).await?;
    let is_restored = |timeline: &swell_loadgen::counters::Timeline| timeline.release(stable).healthy.count >= all;
    fleet.counters().wait("restoring all targets", PATIENCE, |_, timeline| is_restored(timeline)).await?;
    let told = since(began, timeline_span(fleet, stable, |spans| spans.assigned).last)?;
    let restored = since(began, timeline_span(fleet, stable, |spans| spans.healthy).last)?;
    let state = server.ended(&rollout, PATIENCE).await?;
    ensure!(state == "rolled-back", "the aborted rollout ended as {state}");
    Ok([ms(told), ms(restored.saturating_sub(Duration::from_millis(START)))])
}

/// Processor time of a server to which nothing happens but heartbeats, in percent of a core.
async fn idle_cpu(setup: &Setup, server: &Server) -> Result<f64> {
    let before = server.usage()?.cpu_seconds;
    let began = Instant::now();
    sleep(Duration::from_secs(if setup.quick { 2 } else { 60 })).await;
    Ok((server.usage()?.cpu_seconds - before) / began.elapsed().as_secs_f64() * 100.0)
}

/// Kills the server under its agents and starts it again: how long until all are back, and how often they changed state.
async fn restart(setup: &Setup, server: &mut Server, fleet: &Fleet) -> Result<[f64; 2]> {
    let last = server.api()?.get("/v1/cluster").await?["last_event"].as_str().context("a cluster without events")?.to_owned();
    let reports = fleet.counters().totals().report_frames;
    server.kill().await?;
    fleet.counters().wait("losing all sessions", PATIENCE, |totals, _| totals.connected == 0).await?;
    let began = Instant::now();
    server.resume().await?;
    fleet.connected(PATIENCE).await?;
    let back = began.elapsed();
    settle(setup).await;
    let written = target_events(server, last).await?;
    let sent = fleet.counters().totals().report_frames - reports;
    eprintln!("agents sent {sent} reports after the restart");
    Ok([ms(back), written as f64])
}

/// Events after `cursor` that say that targets joined or reported.
async fn target_events(server: &Server, mut cursor: String) -> Result<usize> {
    let mut connection = server.api()?.connect().await?;
    let mut found = 0;
    loop {
        let page = connection.json(hyper::Method::GET, &format!("/v1/events?after={cursor}&limit=500"), None).await?;
        let items = page["items"].as_array().map(Vec::as_slice).unwrap_or_default();
        let is_write = |event: &&Value| matches!(event["kind"].as_str(), Some("fleet.reported" | "target.joined"));
        found += items.iter().filter(is_write).count();
        match page["next"].as_str() {
            Some(next) => cursor = next.to_owned(),
            None => return Ok(found),
        }
    }
}

fn timeline_span(fleet: &Fleet, release: &ReleaseId, span: fn(swell_loadgen::counters::ReleaseSpans) -> Span) -> Span {
    span(fleet.counters().timeline().release(release))
}

fn since(began: Instant, at: Option<Instant>) -> Result<Duration> {
    Ok(at.context("it did not happen")?.saturating_duration_since(began))
}
