//! Answers requests for content, whole or by range (RFC 9110, sections 13 and 14), in servers, caches and agents.
//! Knows nothing of routes or permissions: the caller has checked them.

use std::ops::Range;

use bytes::Bytes;
use futures::{StreamExt, TryStreamExt};
use http_body_util::{BodyExt, Full, StreamBody, combinators::UnsyncBoxBody};
use hyper::{
    HeaderMap, Method, Response, StatusCode,
    body::Frame,
    header::{self, HeaderName, HeaderValue},
};

use super::store::{ContentStore, StoreError};
use swell_model::digest::Digest;

/// The body of an answer; at most one read's buffer (256 KiB) of it is in memory.
pub type ContentBody = UnsyncBoxBody<Bytes, std::io::Error>;

/// The bytes of a digest never change, so clients need not ask again. Private, as access to them is checked.
const CACHE_CONTROL: &str = "private, max-age=31536000, immutable";

/// Answers GET and HEAD for `digest`: 200, 206 for one range, 304 when the client has it, 404, 405, 416. Several ranges at once, and
/// unknown forms of ranges, are answered with the whole, as RFC 9110 allows.
pub async fn serve_content(
    store: &dyn ContentStore,
    digest: Digest,
    headers: &HeaderMap,
    method: &Method,
) -> Response<ContentBody> {
    if method != Method::GET && method != Method::HEAD {
        let mut response = problem(StatusCode::METHOD_NOT_ALLOWED, "content is read with GET or HEAD");
        response.headers_mut().insert(header::ALLOW, HeaderValue::from_static("GET, HEAD"));
        return response;
    }
    let size = match store.stat(digest).await {
        Ok(Some(stored)) => stored.size,
        Ok(None) => return refusal(&StoreError::NotFound(digest)),
        Err(error) => return refusal(&error),
    };
    let etag = format!("\"{digest}\"");
    if has_etag(headers, &etag) {
        return with_content_headers(Response::new(empty()), StatusCode::NOT_MODIFIED, &etag, None);
    }
    // A range of other content than the client has a part of would be of no use to it.
    let range_applies = headers.get(header::IF_RANGE).is_none_or(|tag| tag.as_bytes() == etag.as_bytes());
    // RFC 9110 14.2: Range means something with GET only.
    let range = headers.get(header::RANGE).filter(|_| range_applies && method == Method::GET);
    let (status, range) = match range.map_or(Asked::Whole, |range| parse_range(range, size)) {
        Asked::Whole => (StatusCode::OK, 0..size),
        Asked::Part(range) => (StatusCode::PARTIAL_CONTENT, range),
        Asked::Outside => {
            let mut response = problem(StatusCode::RANGE_NOT_SATISFIABLE, &format!("{digest} has only {size} bytes"));
            insert(&mut response, header::CONTENT_RANGE, &format!("bytes */{size}"));
            return response;
        }
    };
    let body = if method == Method::HEAD {
        empty()
    } else {
        match store.get_range(digest, range.clone()).await {
            Ok(stream) => StreamBody::new(stream.map_ok(Frame::data).boxed()).boxed_unsync(),
            Err(error) => return refusal(&error),
        }
    };
    let mut response = with_content_headers(Response::new(body), status, &etag, Some(range.end - range.start));
    if status == StatusCode::PARTIAL_CONTENT {
        insert(&mut response, header::CONTENT_RANGE, &format!("bytes {}-{}/{size}", range.start, range.end - 1));
    }
    response
}

enum Asked {
    Whole,
    Part(Range<u64>),
    Outside,
}

/// Reads `bytes=a-b`, `bytes=a-` or `bytes=-n`.
fn parse_range(value: &HeaderValue, size: u64) -> Asked {
    let parsed = value.to_str().ok().and_then(|text| {
        let (unit, range) = text.trim().split_once('=')?;
        let (first, last) = range.trim().split_once('-')?;
        let number = |text: &str| match text {
            "" => Some(None),
            // Only digits: `parse` would take a sign too.
            digits if digits.bytes().all(|byte| byte.is_ascii_digit()) => digits.parse::<u64>().ok().map(Some),
            _ => None,
        };
        unit.eq_ignore_ascii_case("bytes").then_some((number(first.trim())?, number(last.trim())?))
    });
    match parsed {
        Some((Some(first), last)) if last.is_none_or(|last| first <= last) => {
            let end = last.map_or(size, |last| last.saturating_add(1).min(size));
            if first < size { Asked::Part(first..end) } else { Asked::Outside }
        }
        Some((None, Some(suffix))) if suffix == 0 || size == 0 => Asked::Outside,
        Some((None, Some(suffix))) => Asked::Part(size.saturating_sub(suffix)..size),
        _ => Asked::Whole,
    }
}

/// Whether `If-None-Match` names `etag`, or anything.
fn has_etag(headers: &HeaderMap, etag: &str) -> bool {
    let values = headers.get_all(header::IF_NONE_MATCH).into_iter().filter_map(|value| value.to_str().ok());
    values
        .flat_map(|value| value.split(','))
        .map(str::trim)
        .any(|tag| tag == "*" || tag.strip_prefix("W/").unwrap_or(tag) == etag)
}

fn insert(response: &mut Response<ContentBody>, name: HeaderName, value: &str) {
    // Digits, hexadecimal digits and ASCII punctuation of our own: always a header value.
    if let Ok(value) = HeaderValue::from_str(value) {
        response.headers_mut().insert(name, value);
    }
}

fn with_content_headers(
    mut response: Response<ContentBody>,
    status: StatusCode,
    etag: &str,
    length: Option<u64>,
) -> Response<ContentBody> {
    *response.status_mut() = status;
    insert(&mut response, header::ETAG, etag);
    insert(&mut response, header::CACHE_CONTROL, CACHE_CONTROL);
    insert(&mut response, header::ACCEPT_RANGES, "bytes");
    if let Some(length) = length {
        insert(&mut response, header::CONTENT_TYPE, "application/octet-stream");
        insert(&mut response, header::CONTENT_LENGTH, &length.to_string());
    }
    response
}

fn empty() -> ContentBody {
    Full::new(Bytes::new()).map_err(|never| match never {}).boxed_unsync()
}

/// The answer to an error of the store.
fn refusal(error: &StoreError) -> Response<ContentBody> {
    match error {
        StoreError::NotFound(_) => problem(StatusCode::NOT_FOUND, &error.to_string()),
        _ => {
            tracing::error!(error = error as &dyn std::error::Error, "failed to serve content");
            problem(
                StatusCode::INTERNAL_SERVER_ERROR,
                "the content cannot be read here: ask another source, and see this server's log",
            )
        }
    }
}

/// An error as RFC 9457 problem details.
fn problem(status: StatusCode, detail: &str) -> Response<ContentBody> {
    let body = serde_json::json!({
        "type": "about:blank", "title": status.canonical_reason().unwrap_or_default(), "status": status.as_u16(), "detail": detail,
    });
    let mut response = Response::new(Full::new(Bytes::from(body.to_string())).map_err(|never| match never {}).boxed_unsync());
    *response.status_mut() = status;
    insert(&mut response, header::CONTENT_TYPE, "application/problem+json");
    response
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests;
