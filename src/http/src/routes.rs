//! The router with its layers, the access rules and the OpenAPI document, all made from the table of endpoints.

use std::sync::Arc;

use axum::{
    Router,
    extract::{DefaultBodyLimit, Request},
    middleware,
    response::{IntoResponse, Response},
    routing::get,
};
use bytes::Bytes;
use hyper::{
    HeaderMap, Method, StatusCode, Uri,
    header::{CONTENT_TYPE, ETAG, HeaderValue, IF_NONE_MATCH},
};
use tower_http::{catch_panic::CatchPanicLayer, trace::TraceLayer};
use utoipa::{
    OpenApi,
    openapi::{
        ContentBuilder, Ref, ResponseBuilder,
        security::{HttpAuthScheme, HttpBuilder, SecurityRequirement, SecurityScheme},
    },
};
use utoipa_axum::router::OpenApiRouter;

use super::{
    access::{self, Needs, Rule},
    app::{Api, App},
    endpoints,
    input::JSON_BYTES_MAX,
    problem::{Problem, ProblemView},
};
use swell_model::digest::Digest;

const DOCUMENT_PATH: &str = "/openapi.json";

#[derive(OpenApi)]
#[openapi(
    info(title = "Groundswell", description = "Turns a git push into a healthy fleet, and a bad push back before users notice."),
    components(schemas(ProblemView))
)]
struct Description;

/// The API as a service, with its state inside.
pub fn router(api: Api) -> Router {
    let app = App::new(api);
    let (mut router, document) = documented().split_for_parts();
    for endpoint in endpoints::undocumented() {
        router = router.route(endpoint.path, endpoint.routes);
    }
    let document = Arc::new(Document::new(&finished(document)));
    router
        .route(DOCUMENT_PATH, get(async move |headers: HeaderMap| document.answer(&headers)))
        .route_layer(middleware::from_fn_with_state(app.clone(), access::guard))
        .method_not_allowed_fallback(method_not_allowed)
        .fallback(not_found)
        .layer(DefaultBodyLimit::max(JSON_BYTES_MAX))
        .layer(CatchPanicLayer::custom(panicked))
        .layer(TraceLayer::new_for_http().make_span_with(span))
        .with_state(app)
}

/// The OpenAPI document that `/openapi.json` serves.
pub fn openapi() -> utoipa::openapi::OpenApi {
    finished(documented().into_openapi())
}

fn documented() -> OpenApiRouter<App> {
    let empty = OpenApiRouter::with_openapi(Description::openapi());
    endpoints::documented().into_iter().fold(empty, |router, endpoint| router.routes(endpoint.routes))
}

/// The access rule of every endpoint.
pub fn rules() -> Vec<Rule> {
    let open = Rule { method: Method::GET, path: DOCUMENT_PATH.to_owned(), needs: Needs::Nothing, streams: false };
    let mut rules = vec![open];
    for endpoint in endpoints::documented() {
        for (path, item) in endpoint.routes.1.paths {
            let methods = [(Method::GET, item.get), (Method::POST, item.post), (Method::DELETE, item.delete)];
            let methods = methods.into_iter().filter_map(|(method, operation)| operation.is_some().then_some(method));
            let rule = |method| Rule { method, path: path.clone(), needs: endpoint.needs, streams: endpoint.streams };
            rules.extend(methods.map(rule));
        }
    }
    for endpoint in endpoints::undocumented() {
        let rule = |method: &Method| Rule {
            method: method.clone(),
            path: endpoint.path.to_owned(),
            needs: endpoint.needs,
            streams: true,
        };
        rules.extend(endpoint.methods.iter().map(rule));
    }
    rules
}

/// The OpenAPI document, serialized once.
struct Document {
    json: Bytes,
    tag: HeaderValue,
}

impl Document {
    fn new(document: &utoipa::openapi::OpenApi) -> Self {
        // The document is built in; a test holds it to its snapshot.
        let json = Bytes::from(serde_json::to_vec(document).unwrap_or_default());
        let tag = HeaderValue::from_str(&format!("\"{}\"", Digest::of(&json).hex()));
        Self { json, tag: tag.unwrap_or(HeaderValue::from_static("\"openapi\"")) }
    }

    fn answer(&self, headers: &HeaderMap) -> Response {
        let is_known = headers.get_all(IF_NONE_MATCH).iter().any(|tags| {
            let mut tags = tags.as_bytes().split(|byte| *byte == b',').map(<[u8]>::trim_ascii);
            tags.any(|tag| tag == b"*" || tag.strip_prefix(b"W/").unwrap_or(tag) == self.tag.as_bytes())
        });
        let tag = [(ETAG, self.tag.clone())];
        if is_known {
            return (StatusCode::NOT_MODIFIED, tag).into_response();
        }
        (tag, [(CONTENT_TYPE, "application/json")], self.json.clone()).into_response()
    }
}

/// Adds to every operation the token that it needs, and its errors.
fn finished(mut document: utoipa::openapi::OpenApi) -> utoipa::openapi::OpenApi {
    let bearer = SecurityScheme::Http(HttpBuilder::new().scheme(HttpAuthScheme::Bearer).build());
    document.components.get_or_insert_default().add_security_scheme("token", bearer);
    let rules = rules();
    for (path, item) in &mut document.paths.paths {
        let operations = [(Method::GET, &mut item.get), (Method::POST, &mut item.post), (Method::DELETE, &mut item.delete)];
        for (method, operation) in operations {
            let Some(operation) = operation else { continue };
            let rule = rules.iter().find(|rule| rule.path == path.as_str() && rule.method == method);
            if rule.is_some_and(|rule| rule.needs != Needs::Nothing) {
                operation.security = Some(vec![SecurityRequirement::new::<_, [&str; 0], &str>("token", [])]);
            }
            let content = ContentBuilder::new().schema(Some(Ref::from_schema_name("Problem"))).build();
            let problem =
                ResponseBuilder::new().description("An error (RFC 9457)").content("application/problem+json", content).build();
            operation.responses.responses.insert("default".to_owned(), problem.into());
        }
    }
    document
}

fn span(request: &Request) -> tracing::Span {
    // Without the query, which may hold secrets.
    tracing::info_span!("http", method = %request.method(), path = request.uri().path(), principal = tracing::field::Empty)
}

async fn not_found(uri: Uri) -> Problem {
    let hint = "`/openapi.json` lists the endpoints";
    Problem::new(StatusCode::NOT_FOUND, "no_route", format!("there is no endpoint {}", uri.path()), hint)
}

async fn method_not_allowed(method: Method, uri: Uri) -> Problem {
    let hint = "`/openapi.json` lists the methods of each endpoint";
    Problem::new(StatusCode::METHOD_NOT_ALLOWED, "no_method", format!("{} does not support {method}", uri.path()), hint)
}

fn panicked(panic: Box<dyn std::any::Any + Send>) -> Response {
    let message = panic.downcast_ref::<&str>().map(|message| (*message).to_owned());
    let message = message.or_else(|| panic.downcast_ref::<String>().cloned()).unwrap_or_default();
    Problem::internal(format_args!("a handler panicked: {message}")).into_response()
}
