//! The content store on a server's own disk: the async interface of [`super::layout`]. Knows nothing of other servers' copies.

use std::{
    io::{Seek, SeekFrom},
    ops::Range,
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

use futures::{FutureExt, StreamExt, future::BoxFuture};
use tokio::io::AsyncReadExt;
use tokio_util::io::ReaderStream;

use super::{
    ByteStream, ContentStore, Result, Scrubbed, StoreError, Stored, UploadId, Usage,
    layout::{Hashed, Layout, hash_file, io_error, remove_if_there},
    uploads::{Sending, Sink, aside, drain},
};
use swell_model::{
    digest::Digest,
    units::{BasisPoints, Millis},
};

/// Options of an embedded store. The defaults are meant for production.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct EmbeddedOptions {
    /// Time after being put or leased during which an object is not deleted: longer than a build takes from finding it to naming it in state.
    pub lease: Millis,
    /// Time during which a deleted object can be restored.
    pub tombstone: Millis,
    /// Time after which an idle upload is removed.
    pub upload: Millis,
    /// Time that a sender may be silent.
    pub stall: Millis,
    /// Share of the disk in use at which the oldest artifacts are deleted.
    pub low_water: BasisPoints,
    /// Share of the disk in use at which builds wait.
    pub high_water: BasisPoints,
}

impl Default for EmbeddedOptions {
    fn default() -> Self {
        Self {
            lease: Millis::from_secs(3600),
            tombstone: Millis::from_secs(3600),
            upload: Millis::from_secs(24 * 3600),
            stall: Millis::from_secs(60),
            low_water: BasisPoints(8000),
            high_water: BasisPoints(9000),
        }
    }
}

/// Bytes read at a time from an object: one buffer of it is in memory for each reader.
const READ_BYTES: usize = 256 << 10;

/// The store in one folder, which belongs to one process at a time. Cheap to clone.
#[derive(Clone)]
pub struct Embedded {
    layout: Arc<Layout>,
    sending: Arc<Sending>,
    next_put: Arc<AtomicU64>,
    stall: Millis,
}

impl Embedded {
    /// Opens the store in `dir`, which is created if missing, and removes unusable leftovers of an interrupted process.
    pub async fn open(dir: impl AsRef<Path>, options: EmbeddedOptions) -> Result<Self> {
        let dir = dir.as_ref().to_owned();
        let layout = aside(move || Layout::open(&dir, options)).await?;
        Ok(Self { layout: Arc::new(layout), sending: Arc::default(), next_put: Arc::default(), stall: options.stall })
    }

    /// Folder of the store.
    pub fn dir(&self) -> &Path {
        self.layout.dir()
    }

    /// Removes idle uploads, and deleted objects that can no longer be restored. Call it periodically. Returns the number of files
    /// removed.
    pub async fn sweep(&self) -> Result<usize> {
        self.on_disk(|layout| layout.sweep()).await
    }

    fn on_disk<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Layout) -> Result<T> + Send + 'static,
    ) -> BoxFuture<'static, Result<T>> {
        let layout = self.layout.clone();
        aside(move || work(&layout)).boxed()
    }
}

impl ContentStore for Embedded {
    fn put(&self, content: ByteStream, expected: Option<Digest>) -> BoxFuture<'_, Result<Stored>> {
        async move {
            let path = self.layout.put_file(self.next_put.fetch_add(1, Ordering::Relaxed));
            let sink = aside(move || Sink::create(path)).await?;
            let mut sink = drain(sink, content, self.stall).await?;
            self.on_disk(move |layout| {
                let size = sink.size();
                // A created sink is always hashed.
                let found = sink.sync()?.unwrap_or(Digest([0; 32]));
                if let Some(expected) = expected
                    && expected != found
                {
                    return Err(StoreError::Mismatch { expected, found, size });
                }
                let stored = layout.publish(sink.path(), found, size)?;
                sink.keep();
                Ok(stored)
            })
            .await
        }
        .boxed()
    }

    fn get_range(&self, digest: Digest, range: Range<u64>) -> BoxFuture<'_, Result<ByteStream>> {
        let length = range.end.saturating_sub(range.start);
        let open = self.on_disk(move |layout| {
            let path = layout.object(digest);
            let mut file = match std::fs::File::open(&path) {
                Ok(file) => file,
                Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Err(StoreError::NotFound(digest)),
                Err(error) => return Err(io_error("open", &path)(error)),
            };
            let size = file.metadata().map_err(io_error("stat", &path))?.len();
            if range.start > range.end || range.end > size {
                return Err(StoreError::Range { digest, size, start: range.start, end: range.end });
            }
            file.seek(SeekFrom::Start(range.start)).map_err(io_error("seek in", &path))?;
            Ok(file)
        });
        async move {
            let file = tokio::fs::File::from_std(open.await?).take(length);
            let buffer = READ_BYTES.min(usize::try_from(length).unwrap_or(READ_BYTES)).max(1);
            Ok(ReaderStream::with_capacity(file, buffer).boxed())
        }
        .boxed()
    }

    fn stat(&self, digest: Digest) -> BoxFuture<'_, Result<Option<Stored>>> {
        self.on_disk(move |layout| layout.stat(digest))
    }

    fn lease(&self, digest: Digest) -> BoxFuture<'_, Result<bool>> {
        self.on_disk(move |layout| layout.lease(digest))
    }

    fn delete(&self, digest: Digest) -> BoxFuture<'_, Result<bool>> {
        self.delete_unused(digest, Millis(0))
    }

    fn delete_unused(&self, digest: Digest, unused_for: Millis) -> BoxFuture<'_, Result<bool>> {
        self.on_disk(move |layout| layout.delete(digest, unused_for))
    }

    fn list(&self, after: Option<Digest>, limit: usize) -> BoxFuture<'_, Result<Vec<Stored>>> {
        self.on_disk(move |layout| layout.list(after, limit))
    }

    fn usage(&self) -> BoxFuture<'_, Result<Usage>> {
        self.on_disk(|layout| layout.usage())
    }

    fn scrub(&self, digest: Digest) -> BoxFuture<'_, Result<Scrubbed>> {
        self.on_disk(move |layout| layout.scrub(digest))
    }

    fn upload_offset(&self, upload: UploadId) -> BoxFuture<'_, Result<u64>> {
        self.on_disk(move |layout| {
            let path = layout.upload(&upload.0);
            match std::fs::metadata(&path) {
                Ok(metadata) => Ok(metadata.len()),
                Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(0),
                Err(error) => Err(io_error("stat", &path)(error)),
            }
        })
    }

    fn upload_append(&self, upload: UploadId, offset: u64, content: ByteStream) -> BoxFuture<'_, Result<u64>> {
        async move {
            let claim = self.sending.claim(&upload)?;
            let path = self.layout.upload(&upload.0);
            let sink = aside(move || {
                let sink = Sink::append(path, claim)?;
                let have = sink.size();
                if have == offset { Ok(sink) } else { Err(StoreError::Offset { upload, have, given: offset }) }
            })
            .await?;
            let mut sink = drain(sink, content, self.stall).await?;
            aside(move || {
                sink.sync()?;
                Ok(sink.size())
            })
            .await
        }
        .boxed()
    }

    fn upload_finish(&self, upload: UploadId, expected: Digest) -> BoxFuture<'_, Result<Stored>> {
        let claim = self.sending.claim(&upload);
        self.on_disk(move |layout| {
            let _claim = claim?;
            let path = layout.upload(&upload.0);
            let Some(Hashed { digest: found, size, .. }) = hash_file(&path)? else {
                // It may have been finished before, with the answer lost.
                return match layout.lease(expected)?.then(|| layout.stat(expected)).transpose()?.flatten() {
                    Some(stored) => Ok(stored),
                    None => Err(StoreError::UnknownUpload(upload)),
                };
            };
            if found != expected {
                remove_if_there(&path)?;
                return Err(StoreError::Mismatch { expected, found, size });
            }
            std::fs::File::open(&path).and_then(|file| file.sync_all()).map_err(io_error("sync", &path))?;
            layout.publish(&path, found, size)
        })
    }

    fn upload_abort(&self, upload: UploadId) -> BoxFuture<'_, Result<()>> {
        let claim = self.sending.claim(&upload);
        self.on_disk(move |layout| {
            let _claim = claim?;
            remove_if_there(&layout.upload(&upload.0)).map(|_| ())
        })
    }
}
