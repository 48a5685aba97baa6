//! The content store: bytes by their SHA-256. Knows nothing of what the bytes mean or who may read them.

pub mod embedded;
mod layout;
mod uploads;

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests;

use std::{fmt, io, ops::Range, path::PathBuf, str::FromStr};

use bytes::{Bytes, BytesMut};
use futures::{StreamExt, future::BoxFuture, stream::BoxStream};

use swell_model::{digest::Digest, units::Millis};
use swell_system::disk_space::{NoSpace, SpaceError};

pub use embedded::{Embedded, EmbeddedOptions};

/// A stream of content. Chunks should stay below 1 MiB: a store buffers up to 1 MiB and one chunk.
pub type ByteStream = BoxStream<'static, io::Result<Bytes>>;

/// A stored object.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Stored {
    pub digest: Digest,
    pub size: u64,
}

/// Usage of a store.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Usage {
    /// Bytes of its objects.
    pub bytes: u64,
    pub objects: u64,
    /// Bytes still free on its disk.
    pub free_bytes: u64,
    /// Bytes of its disk.
    pub capacity_bytes: u64,
    /// Level against the water marks.
    pub level: Level,
}

/// Usage of a disk against its water marks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Level {
    /// Below both water marks.
    Normal,
    /// At the low mark: the oldest unreferenced artifacts are deleted, and a warning is shown.
    Low,
    /// At the high mark: builds wait; rollouts and rollbacks go on.
    High,
}

/// Result of checking an object.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Scrubbed {
    /// The object matches its digest.
    Intact,
    /// There is no such object.
    Missing,
    /// It did not match its digest. It is no longer served, and set aside for inspection.
    Corrupt { found: Digest },
}

/// The name of an upload that can be resumed: chosen by the client, 1 to 100 of `a-z 0-9 - _`, the digest's hexadecimal digits for example.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct UploadId(String);

/// A text that cannot name an upload.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` cannot name an upload: use 1 to 100 of `a-z 0-9 - _`")]
pub struct UploadIdError(String);

impl FromStr for UploadId {
    type Err = UploadIdError;

    fn from_str(text: &str) -> Result<Self, UploadIdError> {
        let allowed = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || matches!(c, '-' | '_');
        let good = (1..=100).contains(&text.len()) && text.chars().all(allowed);
        if good { Ok(Self(text.to_owned())) } else { Err(UploadIdError(text.to_owned())) }
    }
}

impl fmt::Display for UploadId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Why an operation of a store failed.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// It has no such object.
    #[error("this store has no content {0}")]
    NotFound(Digest),
    /// The content received does not match the digest announced; it is discarded.
    #[error("the content sent is {found} ({size} bytes), not {expected} as announced: send it again")]
    Mismatch {
        expected: Digest,
        /// The digest of what came.
        found: Digest,
        /// The bytes that came.
        size: u64,
    },
    /// It was stored or leased too recently to be deleted.
    #[error("{digest} may be in use for another {left}, so it was not deleted: try again later")]
    Leased {
        digest: Digest,
        /// Until the lease ends.
        left: Millis,
    },
    /// The object has no such bytes.
    #[error("{digest} has {size} bytes, so it has no bytes {start} to {end}")]
    Range {
        digest: Digest,
        size: u64,
        /// First byte asked for.
        start: u64,
        /// First byte no longer asked for.
        end: u64,
    },
    /// An upload continues at another byte than the one given.
    #[error("upload `{upload}` has {have} bytes, so it continues there and not at {given}")]
    Offset {
        upload: UploadId,
        /// Bytes that it has.
        have: u64,
        /// Where it was to go on.
        given: u64,
    },
    /// The same upload is being sent by another client.
    #[error("upload `{0}` is being sent over another connection: wait for that to end")]
    Busy(UploadId),
    /// The store has no byte of that upload.
    #[error("there is no upload `{0}`: begin it at byte 0")]
    UnknownUpload(UploadId),
    /// Larger than any object may be.
    #[error("the content is larger than the {0} bytes an object may have")]
    TooLarge(u64),
    /// The sender was silent for too long.
    #[error("nothing was received for {0}: send again, an upload continues where it stopped")]
    Stalled(Millis),
    /// The sender's stream broke.
    #[error("the content broke off while it was received")]
    Incoming(#[source] io::Error),
    /// The disk has too little room.
    #[error(transparent)]
    NoSpace(#[from] NoSpace),
    /// A file operation failed.
    #[error("failed to {action} `{}` of the content store", path.display())]
    Io { action: &'static str, path: PathBuf, source: io::Error },
}

impl From<SpaceError> for StoreError {
    fn from(error: SpaceError) -> Self {
        match error {
            SpaceError::NoSpace(error) => Self::NoSpace(error),
            SpaceError::Unknown { path, source } => Self::Io { action: "ask for the space of", path, source },
        }
    }
}

impl StoreError {
    /// Whether the same call may succeed later, unchanged.
    pub fn retryable(&self) -> bool {
        matches!(self, Self::Busy(_) | Self::Stalled(_) | Self::Incoming(_) | Self::Leased { .. } | Self::Mismatch { .. })
    }
}

type Result<T, E = StoreError> = std::result::Result<T, E>;

/// Stores bytes by their SHA-256. What `put` and `upload_finish` acknowledged is on the disk; incomplete objects are never visible.
pub trait ContentStore: Send + Sync + 'static {
    /// Stores a stream, and leases it as [`ContentStore::lease`] does. With `expected`, any other digest is refused. Idempotent.
    fn put(&self, content: ByteStream, expected: Option<Digest>) -> BoxFuture<'_, Result<Stored>>;

    /// The bytes `range` of an object, also when it is deleted while they are read.
    fn get_range(&self, digest: Digest, range: Range<u64>) -> BoxFuture<'_, Result<ByteStream>>;

    /// The object, if it is stored.
    fn stat(&self, digest: Digest) -> BoxFuture<'_, Result<Option<Stored>>>;

    /// Protects the object from deletion for the time of a lease (an hour), and restores it if it was deleted within the last hour.
    /// Returns false when it is not stored and must be put.
    fn lease(&self, digest: Digest) -> BoxFuture<'_, Result<bool>>;

    /// Deletes the object, unless it is leased. For an hour [`ContentStore::lease`] restores it. Returns false when it was not stored.
    fn delete(&self, digest: Digest) -> BoxFuture<'_, Result<bool>>;

    /// Like [`ContentStore::delete`], but also refuses what was put or leased within `unused_for`.
    fn delete_unused(&self, digest: Digest, unused_for: Millis) -> BoxFuture<'_, Result<bool>>;

    /// Up to `limit` objects (at most 10,000) by ascending digest, those after `after`.
    fn list(&self, after: Option<Digest>, limit: usize) -> BoxFuture<'_, Result<Vec<Stored>>>;

    /// Usage of the store.
    fn usage(&self) -> BoxFuture<'_, Result<Usage>>;

    /// Reads the object and sets it aside if it does not match its digest.
    fn scrub(&self, digest: Digest) -> BoxFuture<'_, Result<Scrubbed>>;

    /// Bytes that an upload has: where it continues; 0 before it begins.
    fn upload_offset(&self, upload: UploadId) -> BoxFuture<'_, Result<u64>>;

    /// Adds to an upload at `offset`, which must be the bytes that it has; 0 begins one. Returns the bytes that it then has. When the
    /// stream breaks, what was received is kept for a day.
    fn upload_append(&self, upload: UploadId, offset: u64, content: ByteStream) -> BoxFuture<'_, Result<u64>>;

    /// Turns the upload into an object if it matches `expected`; else it is dropped. Idempotent.
    fn upload_finish(&self, upload: UploadId, expected: Digest) -> BoxFuture<'_, Result<Stored>>;

    /// Drops an upload.
    fn upload_abort(&self, upload: UploadId) -> BoxFuture<'_, Result<()>>;
}

/// Bytes in memory as a stream.
pub fn stream_of(bytes: impl Into<Bytes>) -> ByteStream {
    futures::stream::iter([Ok(bytes.into())]).boxed()
}

/// A small object whole, such as a manifest: at most `bytes_max`. Its digest is checked.
pub async fn read_small(store: &dyn ContentStore, digest: Digest, bytes_max: u64) -> Result<Bytes> {
    let stored = store.stat(digest).await?.ok_or(StoreError::NotFound(digest))?;
    if stored.size > bytes_max {
        return Err(StoreError::TooLarge(bytes_max));
    }
    let mut stream = store.get_range(digest, 0..stored.size).await?;
    let mut whole = BytesMut::with_capacity(stored.size as usize);
    while let Some(chunk) = stream.next().await {
        whole.extend_from_slice(&chunk.map_err(StoreError::Incoming)?);
    }
    let found = Digest::of(&whole);
    if found != digest {
        return Err(StoreError::Mismatch { expected: digest, found, size: whole.len() as u64 });
    }
    Ok(whole.freeze())
}
