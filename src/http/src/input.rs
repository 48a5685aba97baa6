//! Extractors of request bodies, queries, path parameters and the headers that guard a change; what cannot be parsed is a problem.
//! Knows nothing of single endpoints.

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

const IDEMPOTENCY_KEY: &str = "idempotency-key";
/// The largest JSON body, in bytes.
pub const JSON_BYTES_MAX: usize = 1 << 20;
/// The similarity from which a field is suggested for another (Jaro-Winkler, 0 to 1).
const SIMILARITY_MIN: f64 = 0.75;

/// A JSON body. An empty one counts as `{}`.
pub struct Body<T>(pub T);

impl<S: Send + Sync, T: DeserializeOwned> FromRequest<S> for Body<T> {
    type Rejection = Problem;

    async fn from_request(request: Request, state: &S) -> Result<Self, Problem> {
        let kind = request.headers().get(CONTENT_TYPE).and_then(|kind| kind.to_str().ok()).unwrap_or_default().to_owned();
        let bytes = whole_body(request, state).await?;
        if bytes.is_empty() {
            return serde_json::from_str("{}").map(Self).map_err(|error| unparsable("body", &error.to_string()));
        }
        if !kind.split(';').next().is_some_and(|kind| kind.trim().eq_ignore_ascii_case("application/json")) {
            let hint = "send JSON with `Content-Type: application/json`";
            return Err(Problem::new(
                StatusCode::UNSUPPORTED_MEDIA_TYPE,
                "not_json",
                "the body's content type is not JSON",
                hint,
            ));
        }
        serde_json::from_slice(&bytes).map(Self).map_err(|error| unparsable("body", &error.to_string()))
    }
}

async fn whole_body<S: Send + Sync>(request: Request, state: &S) -> Result<Bytes, Problem> {
    Bytes::from_request(request, state).await.map_err(|rejection| match rejection.status() {
        StatusCode::PAYLOAD_TOO_LARGE => {
            let detail = format!("the body exceeds {JSON_BYTES_MAX} bytes");
            Problem::new(StatusCode::PAYLOAD_TOO_LARGE, "too_large", detail, "send a smaller body")
        }
        _ => Problem::invalid("the body was cut off", "send it again"),
    })
}

/// The digest of the body of a request with an `Idempotency-Key`.
#[derive(Debug, Clone, Copy)]
struct Received(Digest);

/// Reads the body of a request with an `Idempotency-Key`, so that [`Guards`] can distinguish it from another request with the same
/// key. Not for streamed bodies: see [`Guards::and`].
pub async fn received(request: Request) -> Result<Request, Problem> {
    if !request.headers().contains_key(IDEMPOTENCY_KEY) {
        return Ok(request);
    }
    let (mut parts, body) = request.into_parts();
    let bytes = whole_body(Request::from_parts(parts.clone(), body), &()).await?;
    parts.extensions.insert(Received(Digest::of(&bytes)));
    Ok(Request::from_parts(parts, bytes.into()))
}

/// The query parameters.
pub struct Params<T>(pub T);

impl<S: Send + Sync, T: DeserializeOwned> FromRequestParts<S> for Params<T> {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Problem> {
        let query = Query::from_request_parts(parts, state).await;
        query.map(|Query(query)| Self(query)).map_err(|rejection| unparsable("query", &deepest(&rejection)))
    }
}

/// The path parameters.
pub struct At<T>(pub T);

impl<S: Send + Sync, T: DeserializeOwned + Send> FromRequestParts<S> for At<T> {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Problem> {
        let path = Path::from_request_parts(parts, state).await;
        path.map(|Path(path)| Self(path)).map_err(|rejection| unparsable("path", &deepest(&rejection)))
    }
}

/// The innermost cause: axum's outer messages do not help a client.
fn deepest(error: &dyn std::error::Error) -> String {
    let mut error = error;
    while let Some(source) = error.source() {
        error = source;
    }
    error.to_string()
}

/// A value that cannot be parsed; suggests the most similar field.
fn unparsable(place: &str, error: &str) -> Problem {
    let hint = match suggestion(error) {
        Some(meant) => format!("did you mean `{meant}`?"),
        None => "`/openapi.json` describes the accepted values".to_owned(),
    };
    Problem::invalid(format!("failed to parse the {place}: {error}"), hint)
}

/// The known name most similar to the unknown one in serde's "unknown field `nme`, expected one of `name`, `file`".
fn suggestion(error: &str) -> Option<String> {
    let (_, rest) = error.split_once("unknown field `").or_else(|| error.split_once("unknown variant `"))?;
    let mut names = rest.split('`');
    let unknown = names.next()?;
    let known = names.skip(1).step_by(2);
    let scored = known.map(|name| (strsim::jaro_winkler(unknown, name), name)).filter(|(score, _)| *score >= SIMILARITY_MIN);
    scored.max_by(|a, b| a.0.total_cmp(&b.0)).map(|(_, name)| name.to_owned())
}

/// The headers that guard a change: `Idempotency-Key` and `If-Match`.
pub struct Guards {
    /// The proposal's key. A client's key counts per method and path: the same key elsewhere is another one.
    pub idempotency_key: Option<String>,
    /// Digest of sender, method, path and body. The same key with another fingerprint is refused.
    pub fingerprint: Option<Digest>,
    /// The revision that the subject must have.
    pub if_revision: Option<u64>,
}

impl Guards {
    /// Adds the digest of a streamed body to the fingerprint.
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
            let hint = format!("use 1 to {IDEMPOTENCY_KEY_BYTES_MAX} characters, such as a UUID");
            return Err(Problem::invalid("`Idempotency-Key` is empty or too long", hint));
        }
        let scope = |key| format!("http:{}", Digest::of(format!("{} {} {key}", parts.method, parts.uri.path()).as_bytes()).hex());
        let if_match = header(&parts.headers, IF_MATCH.as_str())?;
        let if_revision = if_match.filter(|tag| *tag != "*").map(revision).transpose()?;
        let caller = parts.extensions.get::<Caller>().map(|caller| caller.0.to_string()).unwrap_or_default();
        let received = parts.extensions.get::<Received>().map(|received| received.0.hex()).unwrap_or_default();
        // Without the host: a retry may go to another server.
        let path = parts.uri.path_and_query().map(ToString::to_string).unwrap_or_default();
        let request = || Digest::of(format!("{caller} {} {path} {received}", parts.method).as_bytes());
        Ok(Self { idempotency_key: key.map(scope), fingerprint: key.map(|_| request()), if_revision })
    }
}

fn header<'h>(headers: &'h HeaderMap, name: &str) -> Result<Option<&'h str>, Problem> {
    let value = headers.get(name).map(|value| value.to_str()).transpose();
    value.map_err(|_| Problem::invalid(format!("`{name}` is not ASCII text"), "use printable ASCII characters"))
}

fn revision(tag: &str) -> Result<u64, Problem> {
    let number = tag.strip_prefix('"').and_then(|tag| tag.strip_suffix('"')).and_then(|tag| tag.parse().ok());
    number.ok_or_else(|| Problem::invalid("`If-Match` is not an `ETag` of this server", "send the `ETag` of the last answer"))
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
    fn unknown_field_is_refused_with_suggestion() {
        let error = serde_json::from_str::<Example>(r#"{"pipline":"shop"}"#).unwrap_err().to_string();
        assert_eq!(suggestion(&error).as_deref(), Some("pipeline"));
        let error = serde_json::from_str::<Example>(r#"{"zzz":"shop"}"#).unwrap_err().to_string();
        assert_eq!(suggestion(&error), None);
    }

    #[test]
    fn revision_is_parsed_from_etag() {
        assert_eq!(revision("\"12\"").unwrap(), 12);
        assert!(revision("12").is_err() && revision("W/\"12\"").is_err());
    }
}
