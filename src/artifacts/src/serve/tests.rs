//! What HTTP clients see, without a network.

use proptest::prelude::*;

use super::*;
use crate::{
    store::{Embedded, EmbeddedOptions, stream_of},
    testing,
};

struct Fixture {
    _dir: tempfile::TempDir,
    store: Embedded,
    content: Vec<u8>,
    digest: Digest,
}

impl Fixture {
    async fn new(size: usize) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let store = Embedded::open(dir.path(), EmbeddedOptions::default()).await.unwrap();
        let content = testing::noise(size);
        let digest = store.put(stream_of(content.clone()), None).await.unwrap().digest;
        Self { _dir: dir, store, content, digest }
    }

    async fn ask(&self, method: Method, headers: &[(HeaderName, &str)]) -> (StatusCode, HeaderMap, Bytes) {
        let headers = headers.iter().map(|(name, value)| (name.clone(), value.parse().unwrap())).collect();
        let response = serve_content(&self.store, self.digest, &headers, &method).await;
        let (head, body) = response.into_parts();
        (head.status, head.headers, body.collect().await.unwrap().to_bytes())
    }
}

#[tokio::test]
async fn whole_content_is_served_with_its_headers() {
    let fixture = Fixture::new(600_000).await;
    let (status, headers, body) = fixture.ask(Method::GET, &[]).await;
    assert_eq!(status, StatusCode::OK);
    assert_eq!(body, fixture.content);
    assert_eq!(headers[header::CONTENT_LENGTH], "600000");
    assert_eq!(headers[header::ACCEPT_RANGES], "bytes");
    assert_eq!(headers[header::ETAG], format!("\"{}\"", fixture.digest));
    assert!(headers[header::CACHE_CONTROL].to_str().unwrap().contains("immutable"));

    let (status, head, body) = fixture.ask(Method::HEAD, &[(header::RANGE, "bytes=0-1")]).await;
    assert_eq!((status, body.len()), (StatusCode::OK, 0));
    assert_eq!(head, headers);
}

#[tokio::test]
async fn one_range_is_served() {
    let fixture = Fixture::new(1000).await;
    for (asked, range) in [
        ("bytes=0-0", 0..1),
        ("bytes=10-19", 10..20),
        ("bytes=990-", 990..1000),
        ("bytes=990-5000", 990..1000),
        ("bytes=-10", 990..1000),
        ("bytes=-5000", 0..1000),
        ("Bytes= 1-2 ", 1..3),
    ] {
        let (status, headers, body) = fixture.ask(Method::GET, &[(header::RANGE, asked)]).await;
        assert_eq!(status, StatusCode::PARTIAL_CONTENT, "{asked}");
        assert_eq!(body, fixture.content[range.clone()], "{asked}");
        assert_eq!(headers[header::CONTENT_RANGE], format!("bytes {}-{}/1000", range.start, range.end - 1));
        assert_eq!(headers[header::CONTENT_LENGTH], body.len().to_string());
    }
    for asked in ["bytes=1000-", "bytes=1000-2000", "bytes=-0"] {
        let (status, headers, _) = fixture.ask(Method::GET, &[(header::RANGE, asked)]).await;
        assert_eq!(status, StatusCode::RANGE_NOT_SATISFIABLE, "{asked}");
        assert_eq!(headers[header::CONTENT_RANGE], "bytes */1000");
    }
    for asked in
        ["bytes=0-1,5-6", "bytes=5-1", "bytes=", "bytes=-", "items=0-1", "bytes=+1-2", "0-1", "bytes=99999999999999999999-"]
    {
        let (status, _, body) = fixture.ask(Method::GET, &[(header::RANGE, asked)]).await;
        assert_eq!((status, body.len()), (StatusCode::OK, 1000), "{asked}");
    }
}

#[tokio::test]
async fn conditional_request_is_answered_by_digest() {
    let fixture = Fixture::new(100).await;
    let etag = format!("\"{}\"", fixture.digest);
    for tags in [etag.clone(), format!("\"other\", W/{etag}"), "*".to_owned()] {
        let (status, headers, body) = fixture.ask(Method::GET, &[(header::IF_NONE_MATCH, &tags)]).await;
        assert_eq!((status, body.len()), (StatusCode::NOT_MODIFIED, 0), "{tags}");
        assert_eq!(headers[header::ETAG], etag);
    }
    let (status, ..) = fixture.ask(Method::GET, &[(header::IF_NONE_MATCH, "\"other\"")]).await;
    assert_eq!(status, StatusCode::OK);
    let range = (header::RANGE, "bytes=0-1");
    let (status, ..) = fixture.ask(Method::GET, &[range.clone(), (header::IF_RANGE, &etag)]).await;
    assert_eq!(status, StatusCode::PARTIAL_CONTENT);
    let (status, ..) = fixture.ask(Method::GET, &[range, (header::IF_RANGE, "\"other\"")]).await;
    assert_eq!(status, StatusCode::OK);
}

#[tokio::test]
async fn refused_request_gets_problem_details() {
    let mut fixture = Fixture::new(10).await;
    let (status, headers, _) = fixture.ask(Method::PUT, &[]).await;
    assert_eq!((status, headers[header::ALLOW].to_str().unwrap()), (StatusCode::METHOD_NOT_ALLOWED, "GET, HEAD"));
    fixture.digest = Digest::of(b"absent");
    let (status, headers, body) = fixture.ask(Method::GET, &[]).await;
    assert_eq!(status, StatusCode::NOT_FOUND);
    assert_eq!(headers[header::CONTENT_TYPE], "application/problem+json");
    assert!(String::from_utf8_lossy(&body).contains(&fixture.digest.to_string()));
}

proptest! {
    #[test]
    fn any_range_header_gives_bytes_within(text in "\\PC{0,20}|bytes=[0-9]{0,4}-[0-9]{0,4}", size in 0u64..2000) {
        if let Ok(value) = HeaderValue::from_str(&text)
            && let Asked::Part(range) = parse_range(&value, size)
        {
            prop_assert!(range.start < range.end && range.end <= size, "{range:?}");
        }
    }
}
