//! What requests bring: bodies, queries, paths and the headers that guard a change, all refused as problems. Knows nothing of
//! what they ask for.

use axum::{
    body::Bytes,
    extract::{FromRequest, FromRequestParts, Path, Query, Request},
};
use hyper::{
    HeaderMap, StatusCode,
    header::{CONTENT_TYPE, IF_MATCH},
    http::request::Parts,
};
use serde::de::DeserializeOwned;

use super::{access::Caller, problem::Problem};
use swell_model::{command::IDEMPOTENCY_KEY_BYTES_MAX, digest::Digest};

/// Marks the retries of one request.
const IDEMPOTENCY_KEY: &str = "idempotency-key";
/// The largest JSON body, in bytes.
pub const JSON_BYTES_MAX: usize = 1 << 20;
/// How alike two names must be for one to be suggested for the other (Jaro-Winkler, 0 to 1).
const ALIKE: f64 = 0.75;

/// A JSON body. An empty one counts as `{}`.
pub struct Body<T>(pub T);

impl<S: Send + Sync, T: DeserializeOwned> FromRequest<S> for Body<T> {
    type Rejection = Problem;

    async fn from_request(request: Request, state: &S) -> Result<Self, Problem> {
        let kind = request.headers().get(CONTENT_TYPE).and_then(|kind| kind.to_str().ok()).unwrap_or_default().to_owned();
        let bytes = whole_body(request, state).await?;
        if bytes.is_empty() {
            return serde_json::from_str("{}").map(Self).map_err(|error| unreadable("body", &error.to_string()));
        }
        if !kind.split(';').next().is_some_and(|kind| kind.trim().eq_ignore_ascii_case("application/json")) {
            let hint = "send JSON with `Content-Type: application/json`";
            return Err(Problem::new(StatusCode::UNSUPPORTED_MEDIA_TYPE, "not_json", "the body is not said to be JSON", hint));
        }
        serde_json::from_slice(&bytes).map(Self).map_err(|error| unreadable("body", &error.to_string()))
    }
}

async fn whole_body<S: Send + Sync>(request: Request, state: &S) -> Result<Bytes, Problem> {
    Bytes::from_request(request, state).await.map_err(|rejection| match rejection.status() {
        StatusCode::PAYLOAD_TOO_LARGE => {
            let detail = format!("the body has more than {JSON_BYTES_MAX} bytes");
            Problem::new(StatusCode::PAYLOAD_TOO_LARGE, "too_large", detail, "send less")
        }
        _ => Problem::invalid("the body broke off", "send it again"),
    })
}

/// The digest of a body that came with an `Idempotency-Key`.
#[derive(Debug, Clone, Copy)]
struct Received(Digest);

/// Receives the body of a request with an `Idempotency-Key`, so that [`Guards`] can tell the request from another with the same key.
/// Not for bodies that are streamed: see [`Guards::and`].
pub async fn received(request: Request) -> Result<Request, Problem> {
    if !request.headers().contains_key(IDEMPOTENCY_KEY) {
        return Ok(request);
    }
    let (mut parts, body) = request.into_parts();
    let bytes = whole_body(Request::from_parts(parts.clone(), body), &()).await?;
    parts.extensions.insert(Received(Digest::of(&bytes)));
    Ok(Request::from_parts(parts, bytes.into()))
}

/// The query.
pub struct Params<T>(pub T);

impl<S: Send + Sync, T: DeserializeOwned> FromRequestParts<S> for Params<T> {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Problem> {
        let query = Query::from_request_parts(parts, state).await;
        query.map(|Query(query)| Self(query)).map_err(|rejection| unreadable("query", &deepest(&rejection)))
    }
}

/// The variable parts of the path.
pub struct At<T>(pub T);

impl<S: Send + Sync, T: DeserializeOwned + Send> FromRequestParts<S> for At<T> {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Problem> {
        let path = Path::from_request_parts(parts, state).await;
        path.map(|Path(path)| Self(path)).map_err(|rejection| unreadable("path", &deepest(&rejection)))
    }
}

/// The innermost cause: axum's own words say nothing that a client needs.
fn deepest(error: &dyn std::error::Error) -> String {
    let mut error = error;
    while let Some(source) = error.source() {
        error = source;
    }
    error.to_string()
}

/// A value that cannot be read, with the field that was perhaps meant.
fn unreadable(place: &str, error: &str) -> Problem {
    let hint = match suggestion(error) {
        Some(meant) => format!("did you mean `{meant}`?"),
        None => "`/openapi.json` says what is understood".to_owned(),
    };
    Problem::invalid(format!("the {place} cannot be read: {error}"), hint)
}

/// Of "unknown field `nme`, expected one of `name`, `file`", the name that is most like the unknown one.
fn suggestion(error: &str) -> Option<String> {
    let (_, rest) = error.split_once("unknown field `").or_else(|| error.split_once("unknown variant `"))?;
    let mut names = rest.split('`');
    let unknown = names.next()?;
    let known = names.skip(1).step_by(2);
    let scored = known.map(|name| (strsim::jaro_winkler(unknown, name), name)).filter(|(score, _)| *score >= ALIKE);
    scored.max_by(|a, b| a.0.total_cmp(&b.0)).map(|(_, name)| name.to_owned())
}

/// What guards a change: `Idempotency-Key` and `If-Match`.
pub struct Guards {
    /// The proposal's key. The client's key counts for one method and path, so a key that is used again elsewhere is another.
    pub idempotency_key: Option<String>,
    /// Of the request as it was received: who sent it, to where, and the body. The key with another one is refused.
    pub fingerprint: Option<Digest>,
    /// Only while the subject is at this revision.
    pub if_revision: Option<u64>,
}

impl Guards {
    /// With `content` in the fingerprint, which came as a stream.
    pub fn and(mut self, content: Digest) -> Self {
        self.fingerprint = self.fingerprint.map(|before| Digest::of(&[before.0, content.0].concat()));
        self
    }
}

impl<S: Send + Sync> FromRequestParts<S> for Guards {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, Problem> {
        let key = header(&parts.headers, IDEMPOTENCY_KEY)?;
        if key.is_some_and(|key| key.is_empty() || key.len() > IDEMPOTENCY_KEY_BYTES_MAX) {
            let hint = format!("give between 1 and {IDEMPOTENCY_KEY_BYTES_MAX} characters, such as a UUID");
            return Err(Problem::invalid("`Idempotency-Key` has no good length", hint));
        }
        let scope = |key| format!("http:{}", Digest::of(format!("{} {} {key}", parts.method, parts.uri.path()).as_bytes()).hex());
        let if_match = header(&parts.headers, IF_MATCH.as_str())?;
        let if_revision = if_match.filter(|tag| *tag != "*").map(revision).transpose()?;
        let caller = parts.extensions.get::<Caller>().map(|caller| caller.0.to_string()).unwrap_or_default();
        let received = parts.extensions.get::<Received>().map(|received| received.0.hex()).unwrap_or_default();
        // Without the authority: a retry may go to another server.
        let path = parts.uri.path_and_query().map(ToString::to_string).unwrap_or_default();
        let request = || Digest::of(format!("{caller} {} {path} {received}", parts.method).as_bytes());
        Ok(Self { idempotency_key: key.map(scope), fingerprint: key.map(|_| request()), if_revision })
    }
}

fn header<'h>(headers: &'h HeaderMap, name: &str) -> Result<Option<&'h str>, Problem> {
    let value = headers.get(name).map(|value| value.to_str()).transpose();
    value.map_err(|_| Problem::invalid(format!("`{name}` is not plain text"), "write it in ASCII"))
}

fn revision(tag: &str) -> Result<u64, Problem> {
    let number = tag.strip_prefix('"').and_then(|tag| tag.strip_suffix('"')).and_then(|tag| tag.parse().ok());
    number
        .ok_or_else(|| Problem::invalid("`If-Match` is not an `ETag` of this server", "send back the `ETag` of the last answer"))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[derive(Debug, serde::Deserialize)]
    #[serde(deny_unknown_fields)]
    #[allow(dead_code)]
    struct Example {
        #[serde(default)]
        pipeline: String,
        #[serde(default)]
        commit: String,
    }

    #[test]
    fn an_unknown_field_is_answered_with_what_was_meant() {
        let error = serde_json::from_str::<Example>(r#"{"pipline":"shop"}"#).unwrap_err().to_string();
        assert_eq!(suggestion(&error).as_deref(), Some("pipeline"));
        let error = serde_json::from_str::<Example>(r#"{"zzz":"shop"}"#).unwrap_err().to_string();
        assert_eq!(suggestion(&error), None);
    }

    #[test]
    fn a_revision_is_read_from_its_tag() {
        assert_eq!(revision("\"12\"").unwrap(), 12);
        assert!(revision("12").is_err() && revision("W/\"12\"").is_err());
    }
}
