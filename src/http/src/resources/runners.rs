//! `/v1/runners`: the machines that run builds.

use std::collections::BTreeMap;

use axum::{Json, extract::State};

use crate::{
    app::App,
    input::Params,
    page::{self, Listing, Page},
    problem::Problem,
    views::fleet::RunnerView,
};
use swell_model::{
    build::{Build, OpenBuild, Runner},
    ids::RunnerName,
    tables::{Key, ReadTables, SCAN_RECORDS_MAX, Scan, key},
};
use swell_raft::View;

/// Lists runners by name, with the builds that run there.
#[utoipa::path(get, path = "/v1/runners", tag = "fleet", params(Listing), responses((status = OK, body = Page<RunnerView>)))]
pub async fn list(State(app): State<App>, Params(query): Params<Listing>) -> Result<Json<Page<RunnerView>>, Problem> {
    let limit = page::limit(query.limit)?;
    let after: Option<RunnerName> = page::cursor(&query.cursor)?;
    app.read(move |view| {
        let mut running = running_builds(view)?;
        let scan = page::scan(Key::all(), after.map(|name| key(name.as_str())));
        let (runners, last) = page::collect::<_, Runner>(view, scan, limit, |_| true)?;
        let shown = |runner: Runner| {
            let builds = running.remove(&runner.name).unwrap_or_default();
            RunnerView::new(runner, builds)
        };
        let items = runners.into_iter().map(shown).collect();
        Ok(Json(Page { items, next: last.map(|last| last.name.to_string()), as_of: view.applied() }))
    })
    .await
}

fn running_builds(view: &View) -> Result<BTreeMap<RunnerName, Vec<String>>, Problem> {
    let mut running: BTreeMap<_, Vec<String>> = BTreeMap::new();
    for open in view.scan::<OpenBuild>(&Scan::all(), SCAN_RECORDS_MAX)? {
        let build: Option<Build> = view.get(&key(open.build.0))?;
        if let Some(attempt) = build.as_ref().and_then(|build| build.live_attempt()) {
            running.entry(attempt.runner.clone()).or_default().push(open.build.to_string());
        }
    }
    Ok(running)
}
