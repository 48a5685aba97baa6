//! Errors of the API as RFC 9457 problems, each with a stable code and a hint. Maps reasons to HTTP statuses.
//! Knows nothing of routes.

use std::ops::Deref;

use axum::{
    Json,
    response::{IntoResponse, Response},
};
use hyper::{
    StatusCode,
    header::{CONTENT_TYPE, HeaderValue, RETRY_AFTER},
};
use serde::Serialize;
use utoipa::ToSchema;

use swell_artifacts::store::StoreError;
use swell_model::{
    interfaces::ProposeError,
    rejection::{Rejection, RuleError},
    tables::TablesError,
};
use swell_repositories::ResolveError;

/// An error answer. Boxed, so that results stay small.
#[derive(Debug, Clone, Serialize)]
#[serde(transparent)]
pub struct Problem(Box<ProblemView>);

impl Deref for Problem {
    type Target = ProblemView;

    fn deref(&self) -> &ProblemView {
        &self.0
    }
}

/// An error, as `application/problem+json`.
#[derive(Debug, Clone, Serialize, ToSchema)]
#[schema(as = Problem)]
pub struct ProblemView {
    /// Kind of the problem: `urn:groundswell:problem:` and the code.
    #[serde(rename = "type")]
    pub kind: String,
    /// HTTP status in words.
    pub title: String,
    /// Status code of the HTTP response.
    pub status: u16,
    /// What failed, on what, and why.
    pub detail: String,
    /// Stable code, for programs.
    pub code: String,
    /// What to do about it.
    pub hint: String,
    /// Whether the same request, with the same `Idempotency-Key`, may succeed later.
    pub retryable: bool,
    /// Possible values of a missing field.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub choices: Vec<String>,
    /// Holder of the lock that the request needs, such as `rollout/r7`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub holder: Option<String>,
    /// Resource that the error is about, such as `pipeline/shop`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub subject: Option<String>,
    /// Cursor to continue from, if the given one is too old.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cursor: Option<String>,
}

impl Problem {
    /// A problem with its own status and code.
    pub fn new(status: StatusCode, code: &str, detail: impl Into<String>, hint: impl Into<String>) -> Self {
        Self(Box::new(ProblemView {
            kind: format!("urn:groundswell:problem:{code}"),
            title: status.canonical_reason().unwrap_or("Problem").to_owned(),
            status: status.as_u16(),
            detail: detail.into(),
            code: code.to_owned(),
            hint: hint.into(),
            retryable: false,
            choices: Vec::new(),
            holder: None,
            subject: None,
            cursor: None,
        }))
    }

    /// A wrong value in the request.
    pub fn invalid(detail: impl Into<String>, hint: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, "invalid", detail, hint)
    }

    /// A failure of this server. The cause goes to its log, not to the client.
    pub fn internal(cause: impl std::fmt::Display) -> Self {
        tracing::error!(%cause, "request failed");
        let hint = "see the server's log for the cause; `swell doctor` checks for common problems";
        Self::new(StatusCode::INTERNAL_SERVER_ERROR, "internal", "the server failed to handle the request", hint)
    }

    /// Marks it as worth a retry.
    pub fn retryable(mut self) -> Self {
        self.0.retryable = true;
        self
    }

    /// Adds possible values of a missing field.
    pub fn choices(mut self, choices: impl IntoIterator<Item = String>) -> Self {
        self.0.choices = choices.into_iter().collect();
        self
    }

    /// Adds the cursor to continue from.
    pub fn cursor(mut self, cursor: impl ToString) -> Self {
        self.0.cursor = Some(cursor.to_string());
        self
    }

    /// Marks it as worth a retry or not.
    pub fn retryable_if(mut self, retryable: bool) -> Self {
        self.0.retryable = retryable;
        self
    }

    fn status_code(&self) -> StatusCode {
        StatusCode::from_u16(self.status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR)
    }
}

impl IntoResponse for Problem {
    fn into_response(self) -> Response {
        let status = self.status_code();
        let retry_later = self.retryable && status.is_server_error();
        let mut response = (status, Json(self)).into_response();
        response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/problem+json"));
        if retry_later {
            response.headers_mut().insert(RETRY_AFTER, HeaderValue::from_static("1"));
        }
        response
    }
}

/// The HTTP status of a rejected command.
fn status_of(rejection: &Rejection) -> StatusCode {
    match rejection {
        Rejection::NotFound(_) => StatusCode::NOT_FOUND,
        Rejection::Invalid { .. } | Rejection::KeyReused => StatusCode::UNPROCESSABLE_ENTITY,
        Rejection::Changed { .. } => StatusCode::PRECONDITION_FAILED,
        Rejection::ArtifactDeleted(_) => StatusCode::GONE,
        Rejection::Exists(_)
        | Rejection::Illegal { .. }
        | Rejection::StaleEpoch { .. }
        | Rejection::StaleAttempt(..)
        | Rejection::RefMoved { .. }
        | Rejection::Held { .. }
        | Rejection::Quarantined { .. }
        | Rejection::NoFormerRelease(_)
        | Rejection::NoTargets(_)
        | Rejection::PlanChanged { .. }
        | Rejection::Unavailable { .. }
        | Rejection::TooManyUnavailable { .. }
        | Rejection::Frozen(_)
        | Rejection::AddressInUse { .. }
        | Rejection::Needed { .. } => StatusCode::CONFLICT,
    }
}

impl From<Rejection> for Problem {
    fn from(rejection: Rejection) -> Self {
        let mut problem = Problem::new(status_of(&rejection), rejection.code(), rejection.to_string(), rejection.hint());
        problem.0.retryable = rejection.retryable();
        match &rejection {
            Rejection::Held { holder, .. } => problem.0.holder = Some(holder.to_string()),
            Rejection::NotFound(subject) => problem.0.subject = Some(subject.to_string()),
            _ => {}
        }
        problem
    }
}

impl From<ProposeError> for Problem {
    fn from(error: ProposeError) -> Self {
        let detail = error.to_string();
        let (status, code, hint) = match error {
            ProposeError::Rejected(rejection) => return rejection.into(),
            ProposeError::NoLeader => {
                (StatusCode::SERVICE_UNAVAILABLE, "no_leader", "retry in a few seconds; `swell cluster status` shows the servers")
            }
            ProposeError::Busy => (StatusCode::SERVICE_UNAVAILABLE, "busy", "retry in a moment"),
            ProposeError::TimedOut => (
                StatusCode::GATEWAY_TIMEOUT,
                "timed_out",
                "check whether the change was made, or repeat the request with the same `Idempotency-Key`",
            ),
            ProposeError::Stopped(_) => {
                (StatusCode::SERVICE_UNAVAILABLE, "stopped", "use another server; see this one's log for the reason")
            }
        };
        let mut problem = Problem::new(status, code, detail, hint);
        problem.0.retryable = code != "stopped";
        problem
    }
}

impl From<TablesError> for Problem {
    fn from(error: TablesError) -> Self {
        Problem::internal(error)
    }
}

impl From<RuleError> for Problem {
    fn from(error: RuleError) -> Self {
        match error {
            RuleError::Rejected(rejection) => rejection.into(),
            RuleError::Tables(error) => error.into(),
        }
    }
}

impl From<ResolveError> for Problem {
    fn from(error: ResolveError) -> Self {
        let error = match error {
            ResolveError::State(error) => return error.into(),
            error => error,
        };
        let (status, code, hint) = match &error {
            ResolveError::Tables(_) | ResolveError::Internal(_) => return Problem::internal(error),
            ResolveError::NoRepository(name) => {
                (StatusCode::NOT_FOUND, "not_found", format!("create it with `swell repo create {name}`"))
            }
            ResolveError::NoRef { .. } => {
                (StatusCode::NOT_FOUND, "no_ref", "push it first, or name another branch, tag or commit".to_owned())
            }
            ResolveError::NoMirrors => (StatusCode::BAD_REQUEST, "invalid", "name the commit".to_owned()),
            ResolveError::Remote(_) => {
                (StatusCode::BAD_GATEWAY, "repository_unreachable", "check the address of the repository".to_owned())
            }
            _ => return Problem::internal(error),
        };
        Problem::new(status, code, error.to_string(), hint).retryable_if(error.retryable())
    }
}

impl From<StoreError> for Problem {
    fn from(error: StoreError) -> Self {
        let (status, code, hint) = match &error {
            StoreError::NotFound(_) => {
                (StatusCode::NOT_FOUND, "no_content", "it may have been deleted by its pipeline's retention; build it again")
            }
            StoreError::Mismatch { .. } | StoreError::Incoming(_) | StoreError::Stalled(_) => {
                (StatusCode::BAD_REQUEST, "broken_upload", "send it again")
            }
            StoreError::TooLarge(_) => (StatusCode::PAYLOAD_TOO_LARGE, "too_large", "send a smaller body"),
            StoreError::NoSpace(_) => {
                (StatusCode::INSUFFICIENT_STORAGE, "no_space", "free space on the server's disk, or lower a pipeline's retention")
            }
            _ => return Problem::internal(error),
        };
        let mut problem = Problem::new(status, code, error.to_string(), hint);
        problem.0.retryable = error.retryable();
        problem
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use swell_model::{event::Subject, ids::RolloutId};

    #[test]
    fn conflict_names_holder_and_hint() {
        let holder = Subject::Rollout(RolloutId(7));
        let problem: Problem = Rejection::Held { subject: Subject::Cluster, holder }.into();
        let json = serde_json::to_value(&problem).unwrap();
        assert_eq!(json["status"], 409);
        assert_eq!(json["code"], "held");
        assert_eq!(json["holder"], "rollout/r7");
        assert_eq!(json["type"], "urn:groundswell:problem:held");
        assert!(json["hint"].as_str().unwrap().contains("swell abort r7"));
    }

    #[test]
    fn missing_leader_is_retryable() {
        let response = Problem::from(ProposeError::NoLeader).into_response();
        assert_eq!(response.status(), StatusCode::SERVICE_UNAVAILABLE);
        assert_eq!(response.headers()[RETRY_AFTER], "1");
        assert_eq!(response.headers()[CONTENT_TYPE], "application/problem+json");
    }
}
