//! `/v1/why/{id}`: explains the state of a build or rollout with its verdicts, failures, last output and events.

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

/// Explanation of the state of a build or rollout.
#[derive(Debug, Serialize, ToSchema)]
pub struct WhyView {
    /// Id of the build or rollout, such as `r7`.
    id: String,
    /// The state and its reason, in a sentence.
    summary: String,
    /// What to do about it, if anything can be done.
    hint: Option<String>,
    /// The build, if `id` names one.
    build: Option<BuildView>,
    /// The rollout, if `id` names one.
    rollout: Option<RolloutView>,
    /// Its newest 200 events, oldest first.
    events: Vec<EventView>,
}

/// Explains the state of a build (`b42`) or rollout (`r7`).
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
    Err(Problem::invalid(format!("`{id}` is not the id of a build or rollout"), "write an id such as `b42` or `r7`"))
}

fn of_build(view: &View, events: &EventStore, id: BuildId) -> Result<WhyView, Problem> {
    let build = builds::of(view, id)?;
    let events = events::about(events, &Subject::Build(id))?;
    let shown = builds::full(view, build)?;
    let failure = shown.attempts.last().and_then(|attempt| attempt.failure.as_ref());
    let because = shown.failure.as_ref().or(shown.waits_for.as_ref());
    Ok(WhyView {
        id: id.to_string(),
        summary: match shown.cancel_asked && !shown.ended {
            true => format!("{id} is being canceled; waiting for {}", shown.waits_for.as_deref().unwrap_or("the runner")),
            false => sentence(id, &shown.state, because),
        },
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
