//! `/v1/why/{id}`: why a build or a rollout is where it is: what judged it, what failed, its last output, and its events.

use axum::{Json, extract::State};
use serde::Serialize;
use utoipa::ToSchema;

use super::{builds, events, rollouts};
use crate::{
    app::App,
    input::At,
    problem::Problem,
    views::{build::BuildView, event::EventView, rollout::RolloutView},
};
use swell_model::{
    event::Subject,
    ids::{BuildId, RolloutId},
};
use swell_raft::{EventStore, View};

/// The evidence.
#[derive(Debug, Serialize, ToSchema)]
pub struct WhyView {
    /// Which, such as `r7`.
    id: String,
    /// Where it is and why, in a sentence.
    summary: String,
    /// What to do about it, where something can be done.
    hint: Option<String>,
    /// The build, where it is one.
    build: Option<BuildView>,
    /// The rollout, where it is one.
    rollout: Option<RolloutView>,
    /// What happened to it, oldest first: the last 200, as far as the last 20,000 events of the cluster hold them.
    events: Vec<EventView>,
}

/// Explains a build (`b42`) or a rollout (`r7`).
#[utoipa::path(
    get, path = "/v1/why/{id}", tag = "events",
    params(("id" = String, Path)),
    responses((status = OK, body = WhyView)),
)]
pub async fn get(State(app): State<App>, At(id): At<String>) -> Result<Json<WhyView>, Problem> {
    let events = app.node.events();
    if let Ok(id) = id.parse::<BuildId>() {
        return app.read(move |view| Ok(Json(of_build(view, &events, id)?))).await;
    }
    if let Ok(id) = id.parse::<RolloutId>() {
        return app.read(move |view| Ok(Json(of_rollout(view, &events, id)?))).await;
    }
    Err(Problem::invalid(format!("`{id}` is neither a build nor a rollout"), "write an id such as `b42` or `r7`"))
}

fn of_build(view: &View, events: &EventStore, id: BuildId) -> Result<WhyView, Problem> {
    let build = builds::of(view, id)?;
    let events = events::about(events, &Subject::Build(id))?;
    let shown = builds::full(view, build)?;
    let failure = shown.attempts.last().and_then(|attempt| attempt.failure.as_ref());
    let because = shown.failure.as_ref().or(shown.waits_for.as_ref());
    Ok(WhyView {
        id: id.to_string(),
        summary: sentence(id, &shown.state, because),
        hint: failure.map(|failure| failure.hint.clone()),
        events,
        build: Some(shown),
        rollout: None,
    })
}

fn of_rollout(view: &View, events: &EventStore, id: RolloutId) -> Result<WhyView, Problem> {
    let rollout = rollouts::of(view, id)?;
    let events = events::about(events, &Subject::Rollout(id))?;
    let shown = RolloutView::full(view, &rollout)?;
    let failing = shown.verdicts.iter().rev().find(|verdict| verdict.verdict == "fail").map(|verdict| &verdict.evidence);
    let because = failing.or(shown.waits_for.as_ref()).or(shown.why.as_ref());
    Ok(WhyView {
        id: id.to_string(),
        summary: sentence(id, &shown.state, because),
        hint: shown.failures.first().map(|failed| failed.failure.hint.clone()),
        events,
        build: None,
        rollout: Some(shown),
    })
}

fn sentence(id: impl std::fmt::Display, state: &str, because: Option<&String>) -> String {
    because.map_or_else(|| format!("{id} is {state}"), |because| format!("{id} is {state}: {because}"))
}
