//! Support of the tests: manifests of made-up content, a loopback server, a small disk.

#![allow(clippy::unwrap_used)]

use std::{
    convert::Infallible,
    net::SocketAddr,
    os::fd::{AsRawFd, OwnedFd},
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
};

use futures::future::BoxFuture;
use hyper::{Request, Response, body::Incoming, server::conn::http1, service::service_fn};
use hyper_util::rt::TokioIo;
use tokio::task::JoinSet;

use super::{
    archive::Packed,
    manifest::{Manifest, Origin},
    pieces::ContentHasher,
    serve::ContentBody,
};
use swell_model::units::Timestamp;

/// Bytes that look random but are the same in each run.
pub fn noise(size: usize) -> Vec<u8> {
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state.to_le_bytes()
    };
    (0..size.div_ceil(8)).flat_map(|_| next()).take(size).collect()
}

pub fn origin() -> Origin {
    Origin {
        pipeline: "shop".parse().unwrap(),
        build: Some("b42".parse().unwrap()),
        commit: "8c4b1d0c7f0f4a0e9a6f3b8f4f0c2d1e5a6b7c8d".to_owned(),
        git_ref: Some("main".to_owned()),
        created_at: Timestamp(1_760_000_000_000),
        host_fingerprint: None,
        provenance: None,
    }
}

/// A manifest whose compressed archive would be `content`.
pub fn manifest_of(content: &[u8]) -> Manifest {
    let mut hasher = ContentHasher::new(content.len() as u64);
    hasher.update(content).unwrap();
    let found = hasher.finish();
    let packed = Packed {
        digest: found.digest,
        size: found.size,
        piece_length: found.piece_length,
        pieces: found.pieces,
        unpacked_digest: found.digest,
        unpacked_size: found.size,
        files: 1,
    };
    Manifest::new(packed, origin())
}

type Handler = dyn Fn(Request<Incoming>) -> BoxFuture<'static, Response<ContentBody>> + Send + Sync;

/// An HTTP server on a free port of the loopback, gone with all its connections when dropped.
pub struct Server {
    pub url: String,
    pub connections: Arc<AtomicUsize>,
    pub requests: Arc<AtomicUsize>,
    _task: JoinSet<()>,
}

impl Server {
    pub async fn start(
        handler: impl Fn(Request<Incoming>) -> BoxFuture<'static, Response<ContentBody>> + Send + Sync + 'static,
    ) -> Self {
        let handler: Arc<Handler> = Arc::new(handler);
        let listener = tokio::net::TcpListener::bind(SocketAddr::from(([127, 0, 0, 1], 0))).await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let (connections, requests) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
        let counts = (connections.clone(), requests.clone());
        let mut task = JoinSet::new();
        task.spawn(async move {
            let mut open = JoinSet::new();
            while let Ok((stream, _)) = listener.accept().await {
                counts.0.fetch_add(1, Ordering::Relaxed);
                let (handler, requests) = (handler.clone(), counts.1.clone());
                let service = service_fn(move |request| {
                    requests.fetch_add(1, Ordering::Relaxed);
                    let answer = handler(request);
                    async move { Ok::<_, Infallible>(answer.await) }
                });
                // A connection that a test breaks is an error here, and meant to be.
                open.spawn(async move { drop(http1::Builder::new().serve_connection(TokioIo::new(stream), service).await) });
            }
        });
        Self { url, connections, requests, _task: task }
    }
}

/// A file system in memory of `bytes`, seen only through the returned path and gone with the descriptor: it is mounted in a mount namespace
/// that ends with the thread that made it. `None`, with a message, without the right to mount.
pub fn small_disk(bytes: u64) -> Option<(OwnedFd, PathBuf)> {
    use nix::{fcntl, mount, sched};
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().to_owned();
    let mounted = std::thread::spawn(move || -> nix::Result<OwnedFd> {
        sched::unshare(sched::CloneFlags::CLONE_NEWNS)?;
        let private = mount::MsFlags::MS_REC | mount::MsFlags::MS_PRIVATE;
        mount::mount(None::<&str>, "/", None::<&str>, private, None::<&str>)?;
        let options = format!("size={bytes}");
        mount::mount(Some("tmpfs"), &path, Some("tmpfs"), mount::MsFlags::empty(), Some(options.as_str()))?;
        fcntl::open(&path, fcntl::OFlag::O_DIRECTORY | fcntl::OFlag::O_CLOEXEC, nix::sys::stat::Mode::empty())
    });
    match mounted.join().unwrap() {
        Ok(folder) => {
            let path = PathBuf::from(format!("/proc/self/fd/{}", folder.as_raw_fd()));
            Some((folder, path))
        }
        Err(error) => {
            eprintln!("SKIPPED: a full disk cannot be tried here, mounting needs root: {error}");
            None
        }
    }
}
