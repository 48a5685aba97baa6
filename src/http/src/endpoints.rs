//! The table of endpoints: each with the role that it takes and its handler, from which router, access rules and OpenAPI document
//! follow. Method and path stand with the handler. Knows nothing of what handlers do.

use axum::{
    extract::DefaultBodyLimit,
    routing::{self, MethodRouter},
};
use hyper::Method;
use utoipa_axum::{router::UtoipaMethodRouter, routes};

use super::{
    access::{ADMIN, CONTENT, Needs, READ, WORK},
    app::App,
    resources::{
        artifacts, blobs, builds, cluster, environments, events, git, health, logs, pipelines, plans, push, releases,
        repositories, rollbacks, rollouts, runners, sessions, targets, why,
    },
};
use swell_model::principal::Role;

/// An endpoint that the OpenAPI document describes.
pub struct Documented {
    pub needs: Needs,
    /// The request body is a stream with limits of its own: the request may take longer than the request time-out.
    pub streams: bool,
    pub routes: UtoipaMethodRouter<App>,
}

/// An endpoint that OpenAPI cannot describe: a WebSocket, git's protocol.
pub struct Undocumented {
    pub methods: &'static [Method],
    pub path: &'static str,
    pub needs: Needs,
    pub routes: MethodRouter<App>,
}

const GET: &[Method] = &[Method::GET];
const GET_AND_POST: &[Method] = &[Method::GET, Method::POST];

fn of(needs: Needs, routes: UtoipaMethodRouter<App>) -> Documented {
    Documented { needs, streams: false, routes }
}

fn streaming(needs: Needs, routes: UtoipaMethodRouter<App>) -> Documented {
    Documented { needs, streams: true, routes }
}

/// Viewers read. Developers create repositories and pipelines, push, build, deploy and roll back. What concerns everyone
/// (environments and their policy, targets, removing a pipeline) takes an admin. Agents, gateways and runners have what they need
/// and nothing else.
pub fn documented() -> Vec<Documented> {
    vec![
        of(Needs::Nothing, routes!(health::live)),
        of(Needs::Nothing, routes!(health::ready)),
        of(READ, routes!(health::figures)),
        of(Needs::OneOf(&Role::WITH_TOKEN), routes!(cluster::whoami)),
        of(READ, routes!(cluster::get)),
        of(READ, routes!(events::events)),
        of(READ, routes!(why::get)),
        of(READ, routes!(repositories::list)),
        of(WORK, routes!(repositories::create)),
        of(READ, routes!(repositories::get)),
        of(READ, routes!(pipelines::list)),
        of(WORK, routes!(pipelines::create)),
        of(READ, routes!(pipelines::get)),
        of(ADMIN, routes!(pipelines::remove)),
        streaming(WORK, routes!(push::create)),
        of(READ, routes!(builds::list)),
        of(WORK, routes!(builds::create)),
        of(READ, routes!(builds::get)),
        of(WORK, routes!(builds::cancel)),
        of(WORK, routes!(builds::retry)),
        of(READ, routes!(logs::log)),
        of(READ, routes!(artifacts::list)),
        of(READ, routes!(artifacts::get)),
        of(CONTENT, routes!(artifacts::content)),
        of(CONTENT, routes!(artifacts::manifest)),
        of(Needs::OneOf(&[Role::Agent, Role::Runner]), routes!(blobs::create)),
        of(READ, routes!(blobs::get)),
        of(READ, routes!(releases::list)),
        of(READ, routes!(releases::get)),
        of(READ, routes!(environments::list)),
        of(ADMIN, routes!(environments::create)),
        of(READ, routes!(environments::get)),
        of(READ, routes!(environments::deployments)),
        of(ADMIN, routes!(environments::freeze)),
        of(ADMIN, routes!(environments::unfreeze)),
        of(ADMIN, routes!(environments::clear_quarantine)),
        of(READ, routes!(targets::list)),
        of(READ, routes!(targets::get)),
        of(ADMIN, routes!(targets::cordon)),
        of(ADMIN, routes!(targets::uncordon)),
        of(READ, routes!(runners::list)),
        of(READ, routes!(rollouts::list)),
        of(WORK, routes!(rollouts::create)),
        of(READ, routes!(rollouts::get)),
        of(WORK, routes!(rollouts::pause)),
        of(WORK, routes!(rollouts::resume)),
        of(WORK, routes!(rollouts::abort)),
        of(WORK, routes!(rollouts::promote)),
        of(WORK, routes!(rollbacks::create)),
        // A dry run changes nothing.
        of(READ, routes!(plans::create)),
    ]
}

/// The endpoints beside the OpenAPI document; `/openapi.json` itself stands with the router, which makes the document.
pub fn undocumented() -> Vec<Undocumented> {
    let git = routing::get(git::serve).post(git::serve).layer(DefaultBodyLimit::disable());
    vec![
        Undocumented {
            methods: GET,
            path: "/v1/agents/session",
            needs: Needs::OneOf(&[Role::Agent]),
            routes: routing::get(sessions::agent),
        },
        Undocumented {
            methods: GET,
            path: "/v1/gateways/session",
            needs: Needs::OneOf(&[Role::Gateway]),
            routes: routing::get(sessions::gateway),
        },
        Undocumented { methods: GET_AND_POST, path: "/git/{repository}/{*rest}", needs: Needs::Git, routes: git },
    ]
}
