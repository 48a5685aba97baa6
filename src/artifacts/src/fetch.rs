//! Fetches an artifact by range requests, piece by piece, and resumes where an earlier attempt stopped. Each piece is checked before it is
//! written. Knows one source at a time; the caller chooses sources.

use std::{
    fs::{File, OpenOptions},
    io::{self, Seek},
    os::unix::fs::{FileExt, OpenOptionsExt},
    path::{Path, PathBuf},
    sync::Arc,
};

use bytes::{Bytes, BytesMut};
use futures::{StreamExt, TryStreamExt};
use reqwest::{StatusCode, header};

use super::{
    hash,
    manifest::{Manifest, ManifestError},
};
use swell_model::{digest::Digest, units::Millis};
use swell_system::disk_space::{self, NoSpace, SpaceError};

/// A server that has the artifact.
#[derive(Clone, Copy)]
pub struct Source<'a> {
    /// Client whose connections and redirect policy are used.
    pub client: &'a reqwest::Client,
    /// The artifact is at `<base_url>/<digest>`, `http://server:7700/v1/content` for example; or, where `{digest}` stands in it, at what it is
    /// with the digest in that place: `http://server:7700/v1/artifacts/{digest}/content`.
    pub base_url: &'a str,
    /// Sent as a bearer token.
    pub token: Option<&'a str>,
}

/// Bounds of time and retries.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FetchOptions {
    /// Time for one piece (1 to 16 MiB).
    pub piece_timeout: Millis,
    /// Attempts of one piece, at least one.
    pub attempts_max: u32,
    /// The wait after the first failure of a piece; it doubles.
    pub backoff: Millis,
    /// The longest wait.
    pub backoff_max: Millis,
    /// Pieces requested at once, each over its own connection and in memory.
    pub parallel: usize,
}

impl Default for FetchOptions {
    fn default() -> Self {
        Self {
            piece_timeout: Millis::from_secs(60),
            attempts_max: 5,
            backoff: Millis(200),
            backoff_max: Millis::from_secs(10),
            parallel: 2,
        }
    }
}

/// Progress of a fetch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Progress {
    /// Pieces on the disk.
    pub pieces_done: usize,
    /// Pieces in all.
    pub pieces: usize,
    /// Bytes on the disk.
    pub bytes_done: u64,
    /// Bytes in all.
    pub bytes: u64,
}

/// Figures of a finished fetch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Fetched {
    /// Bytes received and written.
    pub fetched_bytes: u64,
    /// Bytes kept from an earlier attempt.
    pub resumed_bytes: u64,
}

/// Why an artifact was not fetched. The pieces fetched so far stay for the next attempt.
#[derive(Debug, thiserror::Error)]
pub enum FetchError {
    /// The manifest is invalid.
    #[error(transparent)]
    Manifest(#[from] ManifestError),
    /// The source could not be reached, or the connection broke.
    #[error("failed to fetch piece {index} from {url}: the connection failed")]
    Connection {
        /// Number of the piece, from 0.
        index: usize,
        url: String,
        source: reqwest::Error,
    },
    /// The source was too slow.
    #[error("{url} did not send piece {index} within {timeout}")]
    TimedOut {
        /// Number of the piece, from 0.
        index: usize,
        url: String,
        timeout: Millis,
    },
    /// The source refused.
    #[error("{url} answered {status} to a request for piece {index}")]
    Status {
        /// Number of the piece, from 0.
        index: usize,
        url: String,
        status: StatusCode,
    },
    /// The source does not speak the protocol.
    #[error("{url} does not serve ranges as requested: {why}")]
    Protocol { url: String, why: &'static str },
    /// The bytes of the source do not match the manifest.
    #[error("{url} sent a damaged piece {index}: scrub its copy")]
    CorruptPiece {
        /// Number of the piece, from 0.
        index: usize,
        url: String,
    },
    /// The pieces match the manifest, the whole does not.
    #[error("the pieces of {expected} add up to {found}: its manifest is wrong")]
    WrongWhole { expected: Digest, found: Digest },
    /// The disk has too little room.
    #[error(transparent)]
    NoSpace(#[from] NoSpace),
    /// A file operation failed.
    #[error("failed to {action} `{}` while fetching an artifact", path.display())]
    Io { action: &'static str, path: PathBuf, source: io::Error },
}

impl FetchError {
    /// Whether another attempt, at this source or another, may succeed unchanged.
    pub fn retryable(&self) -> bool {
        match self {
            Self::Connection { .. } | Self::TimedOut { .. } | Self::CorruptPiece { .. } => true,
            Self::Status { status, .. } => {
                status.is_server_error() || matches!(*status, StatusCode::REQUEST_TIMEOUT | StatusCode::TOO_MANY_REQUESTS)
            }
            Self::Manifest(_) | Self::Protocol { .. } | Self::WrongWhole { .. } | Self::NoSpace(_) | Self::Io { .. } => false,
        }
    }
}

type Result<T, E = FetchError> = std::result::Result<T, E>;

/// Fetches the artifact of `manifest` to `dest`. Until it is whole it is `.<name>.partial` beside it; pieces that are good there are not
/// fetched again. `jitter` gives numbers from 0 to 1 that spread the retries of many. Two calls for one `dest` must not run at once.
pub async fn fetch(
    source: Source<'_>,
    manifest: &Manifest,
    dest: &Path,
    options: &FetchOptions,
    jitter: &(dyn Fn() -> f64 + Send + Sync),
    progress: &(dyn Fn(Progress) + Send + Sync),
) -> Result<Fetched> {
    manifest.check()?;
    let url = url_of(source.base_url, manifest.digest);
    let (shared, path) = (Arc::new(manifest.clone()), dest.to_owned());
    let Some(partial) = aside(dest, move || Partial::open(path, shared)).await? else {
        return Ok(Fetched { fetched_bytes: 0, resumed_bytes: manifest.size });
    };
    let missing = partial.missing.clone();
    let missing_bytes = missing.iter().map(|(_, range)| range.end - range.start).sum::<u64>();
    let mut done = Progress {
        pieces_done: manifest.pieces.len() - missing.len(),
        pieces: manifest.pieces.len(),
        bytes_done: manifest.size - missing_bytes,
        bytes: manifest.size,
    };
    progress(done);

    let partial = Arc::new(partial);
    let fetches = futures::stream::iter(missing).map(|(index, range)| {
        let (url, partial) = (&url, partial.clone());
        async move {
            let (start, length) = (range.start, range.end - range.start);
            let bytes = piece_with_retries(source, url, manifest, index, range, options, jitter).await?;
            aside(dest, move || partial.write(start, &bytes)).await?;
            Ok::<_, FetchError>(length)
        }
    });
    let mut fetches = std::pin::pin!(fetches.buffer_unordered(options.parallel.max(1)));
    while let Some(length) = fetches.try_next().await? {
        done.pieces_done += 1;
        done.bytes_done += length;
        progress(done);
    }
    let whole = partial.clone();
    aside(dest, move || whole.finish()).await?;
    Ok(Fetched { fetched_bytes: missing_bytes, resumed_bytes: manifest.size - missing_bytes })
}

fn url_of(base_url: &str, digest: Digest) -> String {
    if base_url.contains("{digest}") {
        return base_url.replace("{digest}", &digest.to_string());
    }
    format!("{}/{digest}", base_url.trim_end_matches('/'))
}

/// Runs blocking work on another thread and waits for it.
async fn aside<T: Send + 'static>(dest: &Path, work: impl FnOnce() -> Result<T> + Send + 'static) -> Result<T> {
    match tokio::task::spawn_blocking(work).await {
        Ok(result) => result,
        Err(error) => Err(FetchError::Io { action: "finish work on", path: dest.to_owned(), source: io::Error::other(error) }),
    }
}

type Range = std::ops::Range<u64>;

async fn piece_with_retries(
    source: Source<'_>,
    url: &str,
    manifest: &Manifest,
    index: usize,
    range: Range,
    options: &FetchOptions,
    jitter: &(dyn Fn() -> f64 + Send + Sync),
) -> Result<Bytes> {
    let mut failures = 0;
    loop {
        let attempt = piece(source, url, manifest, index, range.clone());
        let error = match tokio::time::timeout(options.piece_timeout.as_duration(), attempt).await {
            Ok(Ok(bytes)) => return Ok(bytes),
            Ok(Err(error)) => error,
            Err(_) => FetchError::TimedOut { index, url: url.to_owned(), timeout: options.piece_timeout },
        };
        failures += 1;
        if !error.retryable() || failures >= options.attempts_max {
            return Err(error);
        }
        // Half of the wait is fixed, to relieve the source; half is random, so that clients that failed together do not retry together.
        let wait_ms = options.backoff.0.saturating_mul(1 << (failures - 1).min(20)).min(options.backoff_max.0);
        let wait = Millis(wait_ms).as_duration().mul_f64(0.5 + 0.5 * jitter().clamp(0.0, 1.0));
        tracing::debug!(%url, index, failures, ?wait, error = &error as &dyn std::error::Error, "failed to fetch a piece, trying again");
        tokio::time::sleep(wait).await;
    }
}

async fn piece(source: Source<'_>, url: &str, manifest: &Manifest, index: usize, range: Range) -> Result<Bytes> {
    let failed = |error: reqwest::Error| FetchError::Connection { index, url: url.to_owned(), source: error.without_url() };
    let protocol = |why| FetchError::Protocol { url: url.to_owned(), why };
    let mut request = source.client.get(url).header(header::RANGE, format!("bytes={}-{}", range.start, range.end - 1));
    if let Some(token) = source.token {
        request = request.bearer_auth(token);
    }
    let mut response = request.send().await.map_err(failed)?;
    let whole = range == (0..manifest.size);
    match response.status() {
        StatusCode::PARTIAL_CONTENT => {
            let expected = format!("bytes {}-{}/{}", range.start, range.end - 1, manifest.size);
            if response.headers().get(header::CONTENT_RANGE).is_none_or(|range| range.as_bytes() != expected.as_bytes()) {
                return Err(protocol("it sent another range"));
            }
        }
        StatusCode::OK if whole => {}
        StatusCode::OK => return Err(protocol("it sent the whole")),
        StatusCode::RANGE_NOT_SATISFIABLE => return Err(protocol("its copy has another size")),
        status => return Err(FetchError::Status { index, url: url.to_owned(), status }),
    }
    // At most a piece, 16 MiB: the manifest was checked.
    let length = (range.end - range.start) as usize;
    let mut bytes = BytesMut::with_capacity(length);
    while let Some(chunk) = response.chunk().await.map_err(failed)? {
        if bytes.len() + chunk.len() > length {
            return Err(protocol("it sent more than asked"));
        }
        bytes.extend_from_slice(&chunk);
    }
    match manifest.verify_piece(index, &bytes) {
        Ok(()) => Ok(bytes.freeze()),
        Err(_) => Err(FetchError::CorruptPiece { index, url: url.to_owned() }),
    }
}

/// The file that is being completed. Blocking.
struct Partial {
    file: File,
    path: PathBuf,
    dest: PathBuf,
    manifest: Arc<Manifest>,
    /// Missing pieces, with their ranges.
    missing: Vec<(usize, Range)>,
}

fn parent_of(path: &Path) -> &Path {
    path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

fn io_error(action: &'static str, path: &Path, needed: Option<u64>) -> impl FnOnce(io::Error) -> FetchError {
    move |source| match disk_space::no_space(&source, parent_of(path), needed) {
        Some(error) => error.into(),
        None => FetchError::Io { action, path: path.to_owned(), source },
    }
}

impl Partial {
    /// Opens what an earlier attempt left and checks its pieces. `None` when `dest` is complete.
    fn open(dest: PathBuf, manifest: Arc<Manifest>) -> Result<Option<Self>> {
        if let Ok(file) = File::open(&dest)
            && hash_of(&file, manifest.size).map_err(io_error("read", &dest, None))? == Some(manifest.digest)
        {
            return Ok(None);
        }
        let Some(name) = dest.file_name() else {
            return Err(FetchError::Io { action: "write to", path: dest, source: io::ErrorKind::InvalidInput.into() });
        };
        let mut partial_name = std::ffi::OsString::from(".");
        partial_name.push(name);
        partial_name.push(".partial");
        let path = parent_of(&dest).join(partial_name);
        let file = OpenOptions::new().read(true).write(true).create(true).truncate(false).mode(0o600).open(&path);
        let file = file.map_err(io_error("open", &path, Some(manifest.size)))?;
        let size = file.metadata().map_err(io_error("stat", &path, None))?.len();

        let mut buffer = vec![0; if size == 0 { 0 } else { manifest.piece_length as usize }];
        let mut missing = Vec::new();
        for (index, range) in manifest.piece_ranges().enumerate() {
            let length = (range.end - range.start) as usize;
            let there = range.end <= size && {
                let piece = &mut buffer[..length];
                file.read_exact_at(piece, range.start).map_err(io_error("read", &path, None))?;
                manifest.verify_piece(index, piece).is_ok()
            };
            if !there {
                missing.push((index, range));
            }
        }
        let needed = missing.iter().map(|(_, range)| range.end - range.start).sum();
        match disk_space::check_space(parent_of(&dest), needed) {
            Ok(()) => {}
            Err(SpaceError::NoSpace(error)) => return Err(error.into()),
            Err(SpaceError::Unknown { path, source }) => {
                return Err(FetchError::Io { action: "ask for the space of", path, source });
            }
        }
        file.set_len(manifest.size).map_err(io_error("resize", &path, Some(manifest.size)))?;
        Ok(Some(Self { file, path, dest, manifest, missing }))
    }

    fn write(&self, start: u64, bytes: &[u8]) -> Result<()> {
        self.file.write_all_at(bytes, start).map_err(io_error("write", &self.path, Some(bytes.len() as u64)))
    }

    /// Checks the whole and renames it to its destination.
    fn finish(&self) -> Result<()> {
        let (expected, size) = (self.manifest.digest, self.manifest.size);
        self.file.sync_all().map_err(io_error("sync", &self.path, Some(size)))?;
        let found = hash_of(&self.file, size).map_err(io_error("read", &self.path, None))?;
        if found != Some(expected) {
            std::fs::remove_file(&self.path).map_err(io_error("remove", &self.path, None))?;
            return Err(FetchError::WrongWhole { expected, found: found.unwrap_or(Digest([0; 32])) });
        }
        swell_system::crash::point("fetch::before_rename");
        std::fs::rename(&self.path, &self.dest).map_err(io_error("rename a finished file to", &self.dest, None))?;
        let parent = parent_of(&self.dest);
        File::open(parent).and_then(|folder| folder.sync_all()).map_err(io_error("sync", parent, None))
    }
}

/// The digest of a file of `size` bytes; `None` when it has another size.
fn hash_of(mut file: &File, size: u64) -> io::Result<Option<Digest>> {
    if file.metadata()?.len() != size {
        return Ok(None);
    }
    file.seek(io::SeekFrom::Start(0))?;
    let (digest, read) = hash::of(file)?;
    Ok((read == size).then_some(digest))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests;
