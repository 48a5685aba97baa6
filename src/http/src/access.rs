//! Authentication and authorization: the layer that verifies a request's token against its endpoint's rule. An endpoint without a
//! rule is refused. Knows nothing of what endpoints do.

use std::time::Duration;

use axum::{
    extract::{FromRequestParts, MatchedPath, Request, State},
    middleware::Next,
    response::{IntoResponse, Response},
};
use base64::Engine as _;
use hyper::{
    HeaderMap, Method, StatusCode,
    header::{AUTHORIZATION, HeaderValue, WWW_AUTHENTICATE},
    http::request::Parts,
};

use super::{App, input, problem::Problem};
use swell_model::principal::{Principal, Role, is_user};
use swell_repositories::HostedRepositories;

/// Names the user within the token's role. For attribution only: the holder of the token may write any name.
pub const USER_HEADER: &str = "x-swell-user";

/// What a request must prove.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Needs {
    /// Nothing: the answer reveals only that a server runs here.
    Nothing,
    /// A token that allows one of these roles.
    OneOf(&'static [Role]),
    /// A viewer's token to fetch, a developer's to push; git sends it as the password.
    Git,
}

/// The access rule of an endpoint.
#[derive(Debug, Clone)]
pub struct Rule {
    pub method: Method,
    /// The path with its parameters, as the router matches it.
    pub path: String,
    pub needs: Needs,
    /// The request body is a stream with limits of its own: the request may take longer than the request time-out.
    pub streams: bool,
}

pub const READ: Needs = Needs::OneOf(&[Role::Viewer]);
pub const WORK: Needs = Needs::OneOf(&[Role::Developer]);
pub const ADMIN: Needs = Needs::OneOf(&[Role::Admin]);
pub const CONTENT: Needs = Needs::OneOf(&[Role::Viewer, Role::Agent, Role::Runner]);

/// The sender of a request, as its token proves. Only available behind [`guard`].
#[derive(Debug, Clone)]
pub struct Caller(pub Principal);

impl<S: Send + Sync> FromRequestParts<S> for Caller {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, Problem> {
        parts.extensions.get::<Caller>().cloned().ok_or_else(|| unauthorized("the request has no token"))
    }
}

/// Passes a request to its endpoint if the endpoint's rule allows it, and ends it when the answer takes too long to begin.
pub async fn guard(State(app): State<App>, matched: MatchedPath, mut request: Request, next: Next) -> Response {
    let method = if request.method() == Method::HEAD { Method::GET } else { request.method().clone() };
    let Some(rule) = app.rules.find(&method, matched.as_str()) else {
        let detail = format!("{method} {} has no access rule", request.uri().path());
        return Problem::new(StatusCode::FORBIDDEN, "forbidden", detail, "`/openapi.json` lists the endpoints").into_response();
    };
    match allow(&app, rule, request.method().clone(), &request) {
        Ok(None) => {}
        Ok(Some(principal)) => {
            tracing::Span::current().record("principal", tracing::field::display(&principal));
            request.extensions_mut().insert(Caller(principal));
        }
        Err(problem) => return challenge(rule, problem),
    }
    if rule.streams {
        return next.run(request).await;
    }
    let answer = async {
        match input::received(request).await {
            Ok(request) => next.run(request).await,
            Err(problem) => problem.into_response(),
        }
    };
    within(app.options.request_timeout, answer).await
}

async fn within(limit: Duration, answer: impl Future<Output = Response>) -> Response {
    tokio::time::timeout(limit, answer).await.unwrap_or_else(|_| {
        let detail = format!("no answer within {} s; a change may still be made", limit.as_secs());
        let hint = "check whether the change was made, or repeat the request with the same `Idempotency-Key`";
        Problem::new(StatusCode::GATEWAY_TIMEOUT, "timed_out", detail, hint).retryable().into_response()
    })
}

fn allow(app: &App, rule: &Rule, method: Method, request: &Request) -> Result<Option<Principal>, Problem> {
    let needed: &[Role] = match rule.needs {
        Needs::Nothing => return Ok(None),
        Needs::OneOf(roles) => roles,
        Needs::Git => {
            let path = request.uri().path();
            // Authorized by the path as written and served by the path as decoded, so the two must be equal.
            if path.contains('%') {
                let detail = "a path below `/git/` must not contain `%`";
                return Err(Problem::invalid(detail, "write the name of the repository without escapes"));
            }
            let sub_path = path.splitn(4, '/').nth(3).unwrap_or_default();
            if HostedRepositories::is_push(sub_path, request.uri().query()) { &[Role::Developer] } else { &[Role::Viewer] }
        }
    };
    let (token, login) = credentials(request.headers(), rule.needs == Needs::Git)
        .ok_or_else(|| unauthorized("the request has no `Authorization: Bearer TOKEN` header"))?;
    let role = app.tokens.verify(&token).ok_or_else(|| unauthorized("the token does not belong to this cluster"))?;
    if !needed.iter().any(|needed| role.allows(*needed)) {
        let names: Vec<_> = needed.iter().map(|role| role.name()).collect();
        let path = request.uri().path();
        let detail = format!("the token's role is {role}; {method} {path} needs the role {}", names.join(" or "));
        return Err(Problem::new(
            StatusCode::FORBIDDEN,
            "forbidden",
            detail,
            "use a token of that role, or ask an administrator",
        ));
    }
    Ok(Some(Principal::new(role, user(request.headers(), login, role)?)))
}

/// The token, and the user name that git sent with it.
fn credentials(headers: &HeaderMap, basic_too: bool) -> Option<(String, Option<String>)> {
    let value = headers.get(AUTHORIZATION)?.to_str().ok()?;
    let (scheme, rest) = value.split_once(' ')?;
    if scheme.eq_ignore_ascii_case("bearer") {
        return Some((rest.trim().to_owned(), None));
    }
    if !(basic_too && scheme.eq_ignore_ascii_case("basic")) {
        return None;
    }
    let decoded = base64::engine::general_purpose::STANDARD.decode(rest.trim()).ok()?;
    let (login, password) = String::from_utf8(decoded).ok()?.split_once(':').map(|(a, b)| (a.to_owned(), b.to_owned()))?;
    // Git asks for a user name and a password; people paste the token into either.
    if password.is_empty() { Some((login, None)) } else { Some((password, Some(login))) }
}

/// The user's name: from the header, else from git if it is well-formed, else the name of the role.
fn user(headers: &HeaderMap, login: Option<String>, role: Role) -> Result<String, Problem> {
    if let Some(value) = headers.get(USER_HEADER) {
        let name = value.to_str().unwrap_or_default();
        let hint = "write up to 64 characters of `A-Z a-z 0-9 . _ @ + -`";
        return if is_user(name) {
            Ok(name.to_owned())
        } else {
            Err(Problem::invalid("`X-Swell-User` is not a user name", hint))
        };
    }
    Ok(login.filter(|login| is_user(login)).unwrap_or_else(|| role.name().to_owned()))
}

fn unauthorized(detail: &str) -> Problem {
    Problem::new(StatusCode::UNAUTHORIZED, "unauthorized", detail, "set `SWELL_TOKEN`, or run `swell login`")
}

fn challenge(rule: &Rule, problem: Problem) -> Response {
    let scheme = match rule.needs {
        Needs::Git => "Basic realm=\"groundswell: the password is your token\"",
        _ => "Bearer realm=\"groundswell\"",
    };
    let unauthorized = problem.status == StatusCode::UNAUTHORIZED.as_u16();
    let mut response = problem.into_response();
    if unauthorized {
        response.headers_mut().insert(WWW_AUTHENTICATE, HeaderValue::from_static(scheme));
    }
    response
}
