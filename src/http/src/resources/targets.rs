//! `/v1/targets`: the machines that releases run on.

use axum::{Json, extract::State};
use roaring::RoaringBitmap;
use serde::Deserialize;
use utoipa::IntoParams;

use super::environments::Why;
use crate::{
    access::Caller,
    app::{Answer, App, existing},
    input::{At, Body, Guards, Params},
    page::{self, Page},
    problem::Problem,
    views::fleet::{ObservationView, TargetView},
};
use swell_model::{
    command::FleetAction,
    event::Subject,
    fleet::{
        Environment, Target, TargetByName,
        observation::{Observation, observation_key},
    },
    ids::{EnvironmentName, TargetName},
    pipeline::Pipeline,
    rollout::plan_input::connected,
    tables::{Key, ReadTables, SCAN_RECORDS_MAX, Scan, key},
};
use swell_raft::View;

/// Filters of a list of targets.
#[derive(Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub struct TargetFilter {
    /// Returns only targets of this environment.
    #[param(value_type = Option<String>)]
    environment: Option<EnvironmentName>,
    /// Returns only targets in this region.
    region: Option<String>,
    /// Returns only targets in zones with this name.
    zone: Option<String>,
    /// Returns only targets whose agent is connected (`true`) or not (`false`).
    connected: Option<bool>,
    /// `next` of the previous page.
    cursor: Option<String>,
    /// Number of items, 1 to 500. Default: 50.
    #[param(minimum = 1, maximum = 500)]
    limit: Option<usize>,
}

/// Lists targets in the order in which they joined, without observations.
#[utoipa::path(get, path = "/v1/targets", tag = "fleet", params(TargetFilter), responses((status = OK, body = Page<TargetView>)))]
pub async fn list(State(app): State<App>, Params(query): Params<TargetFilter>) -> Result<Json<Page<TargetView>>, Problem> {
    let limit = page::limit(query.limit)?;
    let after: Option<u32> = page::cursor(&query.cursor)?;
    app.read(move |view| {
        let connected = connected(view)?;
        let members = members(view, query.environment.as_ref())?;
        let wanted = |target: &Target| {
            members.as_ref().is_none_or(|members| members.contains(target.index))
                && query.region.as_ref().is_none_or(|region| target.info.region == *region)
                && query.zone.as_ref().is_none_or(|zone| target.info.zone == *zone)
                && query.connected.is_none_or(|wanted| wanted == connected.contains(target.index))
        };
        let (targets, last) = page::collect(view, page::scan(Key::all(), after.map(key)), limit, wanted)?;
        let brief = |target: Target| {
            let is_connected = connected.contains(target.index);
            TargetView::brief(target, is_connected)
        };
        let items = targets.into_iter().map(brief).collect();
        Ok(Json(Page { items, next: last.map(|last: Target| last.index.to_string()), as_of: view.applied() }))
    })
    .await
}

fn members(view: &View, environment: Option<&EnvironmentName>) -> Result<Option<RoaringBitmap>, Problem> {
    let Some(name) = environment else { return Ok(None) };
    let environment: Environment = existing(view, &key(name.as_str()), || Subject::Environment(name.clone()))?;
    Ok(Some(environment.members))
}

/// Shows a target with its last report about each pipeline.
#[utoipa::path(
    get, path = "/v1/targets/{name}", tag = "fleet",
    params(("name" = String, Path)),
    responses((status = OK, body = TargetView)),
)]
pub async fn get(State(app): State<App>, At(name): At<TargetName>) -> Result<Answer<TargetView>, Problem> {
    shown(&app, name).await
}

async fn shown(app: &App, name: TargetName) -> Result<Answer<TargetView>, Problem> {
    app.read(move |view| {
        let by_name: TargetByName = existing(view, &key(name.as_str()), || Subject::Target(name.clone()))?;
        let target: Target = existing(view, &key(by_name.index), || Subject::Target(name.clone()))?;
        let (revision, index) = (target.revision, target.index);
        let mut shown = TargetView::brief(target, connected(view)?.contains(index));
        for pipeline in view.scan::<Pipeline>(&Scan::all(), SCAN_RECORDS_MAX)? {
            let observed: Option<Observation> = view.get(&observation_key(&pipeline.name, index))?;
            shown.observations.extend(observed.map(ObservationView::from));
        }
        Ok(Answer::read(view, shown, Some(revision)))
    })
    .await
}

/// Excludes a target from rollouts.
#[utoipa::path(
    post, path = "/v1/targets/{name}/cordon", tag = "fleet",
    params(("name" = String, Path)),
    request_body = Why,
    responses((status = OK, body = TargetView)),
)]
pub async fn cordon(
    State(app): State<App>,
    caller: Caller,
    guards: Guards,
    At(name): At<TargetName>,
    Body(Why { why }): Body<Why>,
) -> Result<Answer<TargetView>, Problem> {
    let outcome = app.propose(caller, guards, FleetAction::Cordon { name: name.clone(), why }).await?;
    Ok(shown(&app, name).await?.after(&outcome))
}

/// Includes a cordoned target in rollouts again.
#[utoipa::path(
    post, path = "/v1/targets/{name}/uncordon", tag = "fleet",
    params(("name" = String, Path)),
    responses((status = OK, body = TargetView)),
)]
pub async fn uncordon(
    State(app): State<App>,
    caller: Caller,
    guards: Guards,
    At(name): At<TargetName>,
) -> Result<Answer<TargetView>, Problem> {
    let outcome = app.propose(caller, guards, FleetAction::Uncordon { name: name.clone() }).await?;
    Ok(shown(&app, name).await?.after(&outcome))
}
