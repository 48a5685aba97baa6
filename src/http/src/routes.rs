//! Every route with its handler, the layers around them, and the OpenAPI document that follows. Knows nothing of what they do.

use axum::{
    Json, Router,
    extract::{DefaultBodyLimit, Request},
    middleware,
    response::{IntoResponse, Response},
    routing::get,
};
use hyper::{Method, StatusCode, Uri};
use tower_http::{catch_panic::CatchPanicLayer, trace::TraceLayer};
use utoipa::{
    OpenApi,
    openapi::{
        ContentBuilder, Ref, ResponseBuilder,
        security::{HttpAuthScheme, HttpBuilder, SecurityRequirement, SecurityScheme},
    },
};
use utoipa_axum::{router::OpenApiRouter, routes};

use super::{
    access,
    app::{Api, App},
    input::JSON_BYTES_MAX,
    problem::{Problem, ProblemView},
    resources::{
        artifacts, blobs, builds, cluster, environments, events, git, health, logs, pipelines, plans, push, releases,
        repositories, rollbacks, rollouts, runners, sessions, targets, why,
    },
};

#[derive(OpenApi)]
#[openapi(
    info(title = "Groundswell", description = "Turns a git push into a healthy fleet, and a bad push back before users notice."),
    components(schemas(ProblemView))
)]
struct Document;

/// The API as a service: its state is inside.
pub fn router(api: Api) -> Router {
    let app = App::new(api);
    let (documented, document) = documented().split_for_parts();
    let document = finished(document);
    documented
        .route("/openapi.json", get(async move || Json(document)))
        // WebSockets and git have no place in OpenAPI.
        .route("/v1/agents/session", get(sessions::agent))
        .route("/v1/gateways/session", get(sessions::gateway))
        .route("/git/{repository}/{*rest}", get(git::serve).post(git::serve).layer(DefaultBodyLimit::disable()))
        .route_layer(middleware::from_fn_with_state(app.clone(), access::guard))
        .method_not_allowed_fallback(method_not_allowed)
        .fallback(not_found)
        .layer(DefaultBodyLimit::max(JSON_BYTES_MAX))
        .layer(CatchPanicLayer::custom(panicked))
        .layer(TraceLayer::new_for_http().make_span_with(span))
        .with_state(app)
}

/// The OpenAPI document, as `/openapi.json` serves it.
pub fn openapi() -> utoipa::openapi::OpenApi {
    finished(documented().into_openapi())
}

fn documented() -> OpenApiRouter<App> {
    OpenApiRouter::with_openapi(Document::openapi())
        .routes(routes!(health::live))
        .routes(routes!(health::ready))
        .routes(routes!(health::figures))
        .routes(routes!(cluster::whoami))
        .routes(routes!(cluster::get))
        .routes(routes!(events::events))
        .routes(routes!(why::get))
        .routes(routes!(repositories::list, repositories::create))
        .routes(routes!(repositories::get))
        .routes(routes!(pipelines::list, pipelines::create))
        .routes(routes!(pipelines::get, pipelines::remove))
        .routes(routes!(push::create))
        .routes(routes!(builds::list, builds::create))
        .routes(routes!(builds::get))
        .routes(routes!(builds::cancel))
        .routes(routes!(builds::retry))
        .routes(routes!(logs::log))
        .routes(routes!(artifacts::list))
        .routes(routes!(artifacts::get))
        .routes(routes!(artifacts::content))
        .routes(routes!(artifacts::manifest))
        .routes(routes!(blobs::create))
        .routes(routes!(blobs::get))
        .routes(routes!(releases::list))
        .routes(routes!(releases::get))
        .routes(routes!(environments::list, environments::create))
        .routes(routes!(environments::get))
        .routes(routes!(environments::deployments))
        .routes(routes!(environments::freeze))
        .routes(routes!(environments::unfreeze))
        .routes(routes!(environments::clear_quarantine))
        .routes(routes!(targets::list))
        .routes(routes!(targets::get))
        .routes(routes!(targets::cordon))
        .routes(routes!(targets::uncordon))
        .routes(routes!(runners::list))
        .routes(routes!(rollouts::list, rollouts::create))
        .routes(routes!(rollouts::get))
        .routes(routes!(rollouts::pause))
        .routes(routes!(rollouts::resume))
        .routes(routes!(rollouts::abort))
        .routes(routes!(rollouts::promote))
        .routes(routes!(rollbacks::create))
        .routes(routes!(plans::create))
}

/// Adds what every operation has: the token, and problems.
fn finished(mut document: utoipa::openapi::OpenApi) -> utoipa::openapi::OpenApi {
    let bearer = SecurityScheme::Http(HttpBuilder::new().scheme(HttpAuthScheme::Bearer).build());
    document.components.get_or_insert_default().add_security_scheme("token", bearer);
    for (path, item) in &mut document.paths.paths {
        let operations = [("GET", &mut item.get), ("POST", &mut item.post), ("DELETE", &mut item.delete)];
        for (method, operation) in operations {
            let Some(operation) = operation else { continue };
            let rule = access::RULES.iter().find(|rule| rule.path == path.as_str() && rule.method == method);
            if rule.is_some_and(|rule| rule.needs != access::Needs::Nothing) {
                operation.security = Some(vec![SecurityRequirement::new::<_, [&str; 0], &str>("token", [])]);
            }
            let content = ContentBuilder::new().schema(Some(Ref::from_schema_name("Problem"))).build();
            let problem =
                ResponseBuilder::new().description("A refusal (RFC 9457)").content("application/problem+json", content).build();
            operation.responses.responses.insert("default".to_owned(), problem.into());
        }
    }
    document
}

fn span(request: &Request) -> tracing::Span {
    // The path alone: a query may hold what is not for logs.
    tracing::info_span!("http", method = %request.method(), path = request.uri().path(), principal = tracing::field::Empty)
}

async fn not_found(uri: Uri) -> Problem {
    let hint = "`/openapi.json` lists what there is";
    Problem::new(StatusCode::NOT_FOUND, "no_route", format!("there is nothing at {}", uri.path()), hint)
}

async fn method_not_allowed(method: Method, uri: Uri) -> Problem {
    let hint = "`/openapi.json` lists what there is";
    Problem::new(StatusCode::METHOD_NOT_ALLOWED, "no_method", format!("{} does not take {method}", uri.path()), hint)
}

fn panicked(panic: Box<dyn std::any::Any + Send>) -> Response {
    let said = panic.downcast_ref::<&str>().map(|said| (*said).to_owned());
    let said = said.or_else(|| panic.downcast_ref::<String>().cloned()).unwrap_or_default();
    Problem::internal(format_args!("a handler panicked: {said}")).into_response()
}
