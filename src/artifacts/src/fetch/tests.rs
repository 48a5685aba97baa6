//! Fetching from real servers on the loopback: good ones, and ones that die, lie, stall and refuse.

use std::{
    fs,
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
};

use futures::FutureExt;
use http_body_util::{BodyExt, Full, StreamBody};
use hyper::{Response, body::Frame};

use super::*;
use crate::{
    serve::{ContentBody, serve_content},
    store::{ContentStore, Embedded, EmbeddedOptions, stream_of},
    testing::{self, Server},
};

const OPTIONS: FetchOptions =
    FetchOptions { piece_timeout: Millis(20_000), attempts_max: 3, backoff: Millis(1), backoff_max: Millis(4), parallel: 1 };

const SIZE: usize = (5 << 20) + 12_345;

struct Fixture {
    dir: tempfile::TempDir,
    store: Embedded,
    content: Vec<u8>,
    manifest: Manifest,
}

impl Fixture {
    async fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let store = Embedded::open(dir.path().join("store"), EmbeddedOptions::default()).await.unwrap();
        let content = testing::noise(SIZE);
        store.put(stream_of(content.clone()), None).await.unwrap();
        fs::create_dir(dir.path().join("dest")).unwrap();
        let manifest = testing::manifest_of(&content);
        Self { dir, store, content, manifest }
    }

    fn dest(&self) -> PathBuf {
        self.dir.path().join("dest/artifact")
    }

    fn partial(&self) -> PathBuf {
        self.dir.path().join("dest/.artifact.partial")
    }

    /// Serves the store; `fault` may turn the answer to the nth request (from 0) into another.
    async fn server(
        &self,
        fault: impl Fn(usize, Response<ContentBody>) -> Response<ContentBody> + Send + Sync + 'static,
    ) -> Server {
        let (store, digest) = (self.store.clone(), self.manifest.digest);
        let (fault, count) = (Arc::new(fault), AtomicUsize::new(0));
        Server::start(move |request| {
            let (store, fault, number) = (store.clone(), fault.clone(), count.fetch_add(1, Ordering::Relaxed));
            async move {
                assert_eq!(request.uri().path(), format!("/content/{digest}"));
                if request.headers().get(header::AUTHORIZATION).is_none_or(|token| token != "Bearer secret") {
                    return answer(StatusCode::UNAUTHORIZED, "");
                }
                fault(number, serve_content(&store, digest, request.headers(), request.method()).await)
            }
            .boxed()
        })
        .await
    }

    async fn fetch(&self, server: &Server, options: &FetchOptions) -> Result<Fetched> {
        let (client, base_url) = (reqwest::Client::new(), format!("{}/content/", server.url));
        let source = Source { client: &client, base_url: &base_url, token: Some("secret") };
        fetch(source, &self.manifest, &self.dest(), options, &|| 0.5, &|_| ()).await
    }

    fn assert_fetched(&self) {
        assert_eq!(fs::read(self.dest()).unwrap(), self.content);
        assert_eq!(fs::read_dir(self.dir.path().join("dest")).unwrap().count(), 1, "a partial file was left");
    }
}

fn answer(status: StatusCode, body: &'static str) -> Response<ContentBody> {
    let body = Full::new(Bytes::from(body)).map_err(|never| match never {}).boxed_unsync();
    let mut response = Response::new(body);
    *response.status_mut() = status;
    response
}

/// The answer breaks off after some of its body.
fn cut(response: Response<ContentBody>) -> Response<ContentBody> {
    response.map(|body| {
        let first = body.into_data_stream().take(1).map_ok(Frame::data);
        let broken = futures::stream::iter([Err(io::Error::from(io::ErrorKind::ConnectionReset))]);
        StreamBody::new(first.chain(broken).boxed()).boxed_unsync()
    })
}

/// Each chunk of the answer has one bit wrong.
fn corrupt(response: Response<ContentBody>) -> Response<ContentBody> {
    response.map(|body| {
        let flipped = body.into_data_stream().map_ok(|chunk| {
            let mut chunk = chunk.to_vec();
            chunk[0] ^= 1;
            Frame::data(Bytes::from(chunk))
        });
        StreamBody::new(flipped.boxed()).boxed_unsync()
    })
}

#[tokio::test]
async fn artifact_is_fetched_over_one_connection() {
    let fixture = Fixture::new().await;
    let server = fixture.server(|_, response| response).await;
    let seen = Mutex::new(Vec::new());
    let (client, base_url) = (reqwest::Client::new(), format!("{}/content", server.url));
    let source = Source { client: &client, base_url: &base_url, token: Some("secret") };
    let progress = |progress: Progress| seen.lock().unwrap().push((progress.pieces_done, progress.bytes_done));
    let fetched = fetch(source, &fixture.manifest, &fixture.dest(), &OPTIONS, &|| 0.5, &progress).await.unwrap();
    assert_eq!(fetched, Fetched { fetched_bytes: SIZE as u64, resumed_bytes: 0 });
    fixture.assert_fetched();
    assert_eq!(server.connections.load(Ordering::Relaxed), 1);
    assert_eq!(server.requests.load(Ordering::Relaxed), 6);
    let seen = seen.into_inner().unwrap();
    assert_eq!((seen.len(), seen[0], seen[6]), (7, (0, 0), (6, SIZE as u64)));

    let again = fixture.fetch(&server, &OPTIONS).await.unwrap();
    assert_eq!(again, Fetched { fetched_bytes: 0, resumed_bytes: SIZE as u64 });
    assert_eq!(server.requests.load(Ordering::Relaxed), 6, "what is there is not fetched");
}

#[tokio::test]
async fn pieces_are_fetched_in_parallel() {
    let fixture = Fixture::new().await;
    let server = fixture.server(|_, response| response).await;
    fixture.fetch(&server, &FetchOptions { parallel: 4, ..OPTIONS }).await.unwrap();
    fixture.assert_fetched();
}

#[tokio::test]
async fn fetch_resumes_after_server_died() {
    let fixture = Fixture::new().await;
    let dying = fixture.server(|number, response| if number < 3 { response } else { cut(response) }).await;
    let error = fixture.fetch(&dying, &OPTIONS).await.unwrap_err();
    assert!(matches!(error, FetchError::Connection { index: 3, .. }) && error.retryable(), "{error}");
    assert!(!fixture.dest().exists(), "half of it must not be taken for the whole");
    let url = dying.url.clone();
    drop(dying);

    let client = reqwest::Client::new();
    let source = Source { client: &client, base_url: &url, token: None };
    let gone = fetch(source, &fixture.manifest, &fixture.dest(), &OPTIONS, &|| 0.5, &|_| ()).await.unwrap_err();
    assert!(matches!(gone, FetchError::Connection { .. }), "{gone}");

    // A crash may have lost what was written last.
    let file = OpenOptions::new().write(true).open(fixture.partial()).unwrap();
    file.write_all_at(&[0; 100], 2_000_000).unwrap();
    let server = fixture.server(|_, response| response).await;
    let fetched = fixture.fetch(&server, &OPTIONS).await.unwrap();
    assert_eq!(fetched.resumed_bytes, 2 << 20);
    assert_eq!(server.requests.load(Ordering::Relaxed), 4);
    fixture.assert_fetched();
}

#[tokio::test]
async fn fetch_survives_one_failure_of_each_kind() {
    let fixture = Fixture::new().await;
    let server = fixture
        .server(|number, response| match number {
            0 => corrupt(response),
            2 => cut(response),
            4 => answer(StatusCode::SERVICE_UNAVAILABLE, "busy"),
            _ => response,
        })
        .await;
    fixture.fetch(&server, &OPTIONS).await.unwrap();
    fixture.assert_fetched();
    assert_eq!(server.requests.load(Ordering::Relaxed), 9);
}

#[tokio::test]
async fn corrupting_source_is_named_and_its_bytes_are_not_kept() {
    let fixture = Fixture::new().await;
    let server = fixture.server(|_, response| corrupt(response)).await;
    let error = fixture.fetch(&server, &OPTIONS).await.unwrap_err();
    assert!(matches!(error, FetchError::CorruptPiece { index: 0, .. }) && error.retryable(), "{error}");
    assert!(error.to_string().contains(&server.url), "{error}");
    assert_eq!(server.requests.load(Ordering::Relaxed), 3, "retries are bounded");
    assert!(fs::read(fixture.partial()).unwrap().iter().all(|byte| *byte == 0), "bad bytes were written");
    let good = fixture.server(|_, response| response).await;
    fixture.fetch(&good, &OPTIONS).await.unwrap();
    fixture.assert_fetched();
}

#[tokio::test]
async fn silent_source_times_out() {
    let fixture = Fixture::new().await;
    let server = Server::start(|_| futures::future::pending().boxed()).await;
    let options = FetchOptions { piece_timeout: Millis(50), ..OPTIONS };
    let error = fixture.fetch(&server, &options).await.unwrap_err();
    assert!(matches!(error, FetchError::TimedOut { .. }) && error.retryable(), "{error}");
}

#[tokio::test]
async fn refused_request_is_not_repeated() {
    let fixture = Fixture::new().await;
    for status in [StatusCode::NOT_FOUND, StatusCode::FORBIDDEN, StatusCode::RANGE_NOT_SATISFIABLE, StatusCode::OK] {
        let server = fixture.server(move |_, _| answer(status, "no")).await;
        let error = fixture.fetch(&server, &OPTIONS).await.unwrap_err();
        assert!(!error.retryable(), "{error}");
        assert_eq!(server.requests.load(Ordering::Relaxed), 1, "{status}");
    }
    let lying = fixture
        .server(|_, mut response| {
            response.headers_mut().insert(header::CONTENT_RANGE, "bytes 0-1/2".parse().unwrap());
            response
        })
        .await;
    assert!(matches!(fixture.fetch(&lying, &OPTIONS).await, Err(FetchError::Protocol { .. })));
}

#[tokio::test]
async fn wrong_manifest_yields_no_file() {
    let mut fixture = Fixture::new().await;
    let other = testing::manifest_of(&testing::noise(SIZE - 1));
    let truth = fixture.manifest.clone();
    fixture.manifest.pieces = other.pieces[..1].to_vec();
    let server = fixture.server(|_, response| response).await;
    assert!(matches!(fixture.fetch(&server, &OPTIONS).await, Err(FetchError::Manifest(_))));

    // All pieces are as it says, but the whole is not.
    fixture.manifest = Manifest { digest: Digest::of(b"something else"), ..truth.clone() };
    let store = fixture.store.clone();
    let liar = Server::start(move |request| {
        let store = store.clone();
        async move { serve_content(&store, truth.digest, request.headers(), request.method()).await }.boxed()
    })
    .await;
    let error = fixture.fetch(&liar, &OPTIONS).await.unwrap_err();
    assert!(matches!(error, FetchError::WrongWhole { .. }) && !error.retryable(), "{error}");
    assert_eq!(fs::read_dir(fixture.dir.path().join("dest")).unwrap().count(), 0);
}

#[tokio::test]
async fn full_disk_is_reported_with_figures() {
    let Some((_disk, path)) = testing::small_disk(2 << 20) else { return };
    let fixture = Fixture::new().await;
    let server = fixture.server(|_, response| response).await;
    let (client, base_url) = (reqwest::Client::new(), format!("{}/content", server.url));
    let source = Source { client: &client, base_url: &base_url, token: Some("secret") };
    let error = fetch(source, &fixture.manifest, &path.join("artifact"), &OPTIONS, &|| 0.5, &|_| ()).await.unwrap_err();
    let FetchError::NoSpace(error) = error else { panic!("{error}") };
    assert_eq!(error.needed, Some(SIZE as u64));
    assert_eq!(server.requests.load(Ordering::Relaxed), 0, "it is known beforehand");
}
