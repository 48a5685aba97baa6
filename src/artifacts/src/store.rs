//! The content store: bytes kept by their SHA-256. One interface, so that a server's disks and (later) S3 serve alike.
//! Knows nothing of what the bytes mean or who may see them.

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

/// Bytes on their way. Chunks should stay below 1 MiB: a store buffers up to 1 MiB and one chunk.
pub type ByteStream = BoxStream<'static, io::Result<Bytes>>;

/// One object that is kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Stored {
    /// Its name.
    pub digest: Digest,
    /// Bytes.
    pub size: u64,
}

/// How full a store is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Usage {
    /// Bytes of its objects.
    pub bytes: u64,
    /// Number of its objects.
    pub objects: u64,
    /// Bytes still free on its disk.
    pub free_bytes: u64,
    /// Bytes of its disk.
    pub capacity_bytes: u64,
    /// What that means.
    pub level: Level,
}

/// Where a disk stands against its water marks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Level {
    /// Below both.
    Normal,
    /// At the low mark: the oldest unreferenced artifacts go, and people are told.
    Low,
    /// At the high mark: builds wait; rollouts and rollbacks go on.
    High,
}

/// What re-hashing an object found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Scrubbed {
    /// It is what its name says.
    Intact,
    /// There is no such object.
    Missing,
    /// It was not what its name says. It is no longer served, and kept aside for people to look at.
    Corrupt {
        /// What it was.
        found: Digest,
    },
}

/// The name of an upload that can be resumed: chosen by who uploads, 1 to 100 of `a-z 0-9 - _`, the digest's hexadecimal digits for example.
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

/// Why a store did not do as asked.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// It has no such object.
    #[error("there is no content {0} here")]
    NotFound(Digest),
    /// What came is not what was announced; nothing of it is kept.
    #[error("the content sent is {found} ({size} bytes), announced was {expected}: send it again")]
    Mismatch {
        /// The digest announced.
        expected: Digest,
        /// The digest of what came.
        found: Digest,
        /// The bytes that came.
        size: u64,
    },
    /// It was stored or leased too lately to be deleted.
    #[error("{digest} may be in use for another {left}, so it was not deleted: try again later")]
    Leased {
        /// Which object.
        digest: Digest,
        /// Until the lease ends.
        left: Millis,
    },
    /// The object has no such bytes.
    #[error("{digest} has {size} bytes, so it has no bytes {start} to {end}")]
    Range {
        /// Which object.
        digest: Digest,
        /// Its size.
        size: u64,
        /// First byte asked for.
        start: u64,
        /// First byte no longer asked for.
        end: u64,
    },
    /// An upload goes on elsewhere than at the byte given.
    #[error("upload `{upload}` has {have} bytes, so it goes on there and not at {given}")]
    Offset {
        /// Which upload.
        upload: UploadId,
        /// Bytes that it has.
        have: u64,
        /// Where it was to go on.
        given: u64,
    },
    /// Somebody else is sending the same upload.
    #[error("upload `{0}` is being sent over another connection: wait for that to end")]
    Busy(UploadId),
    /// No byte of that upload is here.
    #[error("there is no upload `{0}` here: begin it at byte 0")]
    UnknownUpload(UploadId),
    /// Larger than any object may be.
    #[error("the content is larger than the {0} bytes an object may have")]
    TooLarge(u64),
    /// The sender sent nothing for too long.
    #[error("nothing came for {0}: send again, an upload goes on where it stopped")]
    Stalled(Millis),
    /// The sender's stream broke.
    #[error("the content broke off while it was received")]
    Incoming(#[source] io::Error),
    /// The disk has too little room.
    #[error(transparent)]
    NoSpace(#[from] NoSpace),
    /// The disk did not do as told.
    #[error("cannot {action} `{}` of the content store", path.display())]
    Io {
        /// What was tried.
        action: &'static str,
        /// On what.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
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
    /// Whether the same call may succeed a little later, with nothing changed by people.
    pub fn retryable(&self) -> bool {
        matches!(self, Self::Busy(_) | Self::Stalled(_) | Self::Incoming(_) | Self::Leased { .. } | Self::Mismatch { .. })
    }
}

type Result<T, E = StoreError> = std::result::Result<T, E>;

/// Keeps bytes by their SHA-256. What `put` and `upload_finish` acknowledged is on the disk; nothing half-written can be seen.
pub trait ContentStore: Send + Sync + 'static {
    /// Keeps a stream, and leases it like [`ContentStore::lease`]. With `expected`, anything else is refused. Putting what is there already is fine.
    fn put(&self, content: ByteStream, expected: Option<Digest>) -> BoxFuture<'_, Result<Stored>>;

    /// The bytes `range` of an object. Goes on reading the object even if it is deleted meanwhile.
    fn get_range(&self, digest: Digest, range: Range<u64>) -> BoxFuture<'_, Result<ByteStream>>;

    /// The object, if it is there.
    fn stat(&self, digest: Digest) -> BoxFuture<'_, Result<Option<Stored>>>;

    /// Says that the object is about to be used: it cannot be deleted for the time of a lease (an hour), and if it was deleted within the
    /// last hour it is there again. False: it is not there and must be put.
    fn lease(&self, digest: Digest) -> BoxFuture<'_, Result<bool>>;

    /// Removes the object, unless it is leased. For an hour [`ContentStore::lease`] brings it back. False: it was not there.
    fn delete(&self, digest: Digest) -> BoxFuture<'_, Result<bool>>;

    /// Like [`ContentStore::delete`], but also refuses what was put or leased within `unused_for`.
    fn delete_unused(&self, digest: Digest, unused_for: Millis) -> BoxFuture<'_, Result<bool>>;

    /// Up to `limit` objects (at most 10,000) by ascending digest, those after `after`.
    fn list(&self, after: Option<Digest>, limit: usize) -> BoxFuture<'_, Result<Vec<Stored>>>;

    /// How full it is.
    fn usage(&self) -> BoxFuture<'_, Result<Usage>>;

    /// Reads the object again and sets it aside if it is not what its name says.
    fn scrub(&self, digest: Digest) -> BoxFuture<'_, Result<Scrubbed>>;

    /// Bytes that an upload has: where it goes on. 0: it has not begun.
    fn upload_offset(&self, upload: UploadId) -> BoxFuture<'_, Result<u64>>;

    /// Adds to an upload at `offset`, which must be what it has; 0 begins one. Returns what it then has. When the stream breaks,
    /// what came is kept for a day.
    fn upload_append(&self, upload: UploadId, offset: u64, content: ByteStream) -> BoxFuture<'_, Result<u64>>;

    /// Makes the upload an object, if it is `expected`; otherwise it is dropped. May be repeated.
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
