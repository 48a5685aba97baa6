//! `/livez`, `/readyz`, `/metrics`: endpoints for load balancers and monitoring.

use axum::{Json, extract::State, response::IntoResponse};
use hyper::{StatusCode, header::CONTENT_TYPE};
use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};

use crate::{app::App, input::Params, metrics, problem::Problem};
use swell_artifacts::store::{Level, Usage};
use swell_model::units::ByteSize;

/// Answers if the process is alive.
#[utoipa::path(get, path = "/livez", tag = "health", responses((status = OK, body = String)))]
pub async fn live() -> &'static str {
    "alive\n"
}

/// Detail of the answer.
#[derive(Debug, Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
pub struct ReadyQuery {
    /// Includes each check in the answer; any value.
    verbose: Option<String>,
}

/// Readiness of this server.
#[derive(Debug, Serialize, ToSchema)]
pub struct ReadyView {
    /// Whether all checks passed.
    ready: bool,
    /// Results of the checks, with `verbose`.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    checks: Vec<CheckView>,
}

/// Result of one check.
#[derive(Debug, Serialize, ToSchema)]
pub struct CheckView {
    /// Name of the check.
    name: String,
    /// Whether the check passed.
    ok: bool,
    /// Finding of the check in one line.
    detail: String,
}

/// Shows whether this server is ready: it knows a leader, takes part in the cluster, and its content store answers.
#[utoipa::path(
    get, path = "/readyz", tag = "health",
    params(ReadyQuery),
    responses((status = OK, body = ReadyView), (status = SERVICE_UNAVAILABLE, body = ReadyView)),
)]
pub async fn ready(State(app): State<App>, Params(query): Params<ReadyQuery>) -> Result<impl IntoResponse, Problem> {
    let node = app.node.clone();
    let status = app.read(move |_| Ok(node.status())).await?;
    let usage = app.content.usage().await;
    let check = |name: &str, ok: bool, detail: String| CheckView { name: name.to_owned(), ok, detail };
    let checks = vec![
        check("leader", status.leader.is_some(), status.leader.map_or("none".to_owned(), |leader| format!("server {leader}"))),
        check("raft", status.stopped.is_none(), status.stopped.unwrap_or_else(|| "running".to_owned())),
        check("content", usage.is_ok(), usage.map_or_else(|error| error.to_string(), free_space)),
    ];
    let ready = checks.iter().all(|check| check.ok);
    let status = if ready { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    let checks = if query.verbose.is_some() { checks } else { Vec::new() };
    Ok((status, Json(ReadyView { ready, checks })))
}

fn free_space(usage: Usage) -> String {
    let free = format!("{} free of {}", ByteSize(usage.free_bytes), ByteSize(usage.capacity_bytes));
    match usage.level {
        Level::Normal => free,
        Level::Low => format!("{free}: running low"),
        Level::High => format!("{free}: too little, nothing new is stored"),
    }
}

/// Returns metrics for Prometheus (text format 0.0.4).
#[utoipa::path(get, path = "/metrics", tag = "health", responses((status = OK, body = String, content_type = "text/plain")))]
pub async fn figures(State(app): State<App>) -> Result<impl IntoResponse, Problem> {
    let text = metrics::text(&app).await?;
    Ok(([(CONTENT_TYPE, "text/plain; version=0.0.4; charset=utf-8")], text))
}
