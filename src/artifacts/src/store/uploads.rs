//! Writing a stream to a file in bounded batches, off the async threads. Knows nothing of objects.

use std::{
    collections::HashSet,
    fs::{File, OpenOptions},
    io::Write,
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
};
use swell_system::disk_space;

use bytes::Bytes;
use futures::StreamExt;
use sha2::{Digest as _, Sha256};
use tokio::time::timeout;

use super::{
    ByteStream, Result, StoreError, UploadId,
    layout::{io_error, remove_if_there},
};
use crate::pieces::CONTENT_BYTES_MAX;
use swell_model::{digest::Digest, units::Millis};

/// Bytes gathered before they are written.
const BATCH_BYTES: usize = 1 << 20;

/// Runs blocking work on another thread and waits for it.
pub(super) async fn aside<T: Send + 'static>(work: impl FnOnce() -> Result<T> + Send + 'static) -> Result<T> {
    match tokio::task::spawn_blocking(work).await {
        Ok(result) => result,
        Err(error) => match error.try_into_panic() {
            Ok(panic) => std::panic::resume_unwind(panic),
            // The runtime is shutting down.
            Err(error) => {
                Err(StoreError::Io { action: "finish work on", path: PathBuf::new(), source: std::io::Error::other(error) })
            }
        },
    }
}

/// Uploads that are being sent.
#[derive(Default)]
pub(super) struct Sending(Mutex<HashSet<UploadId>>);

/// One upload that is being sent, until dropped.
pub(super) struct Claim(Arc<Sending>, UploadId);

impl Sending {
    pub(super) fn claim(self: &Arc<Self>, upload: &UploadId) -> Result<Claim> {
        let mut sending = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if !sending.insert(upload.clone()) {
            return Err(StoreError::Busy(upload.clone()));
        }
        Ok(Claim(self.clone(), upload.clone()))
    }
}

impl Drop for Claim {
    fn drop(&mut self) {
        self.0.0.lock().unwrap_or_else(PoisonError::into_inner).remove(&self.1);
    }
}

/// A file being written. It moves into the blocking work and back, so that what it holds lives as long as that work, even when the
/// caller is gone.
pub(super) struct Sink {
    file: File,
    path: PathBuf,
    hash: Option<Sha256>,
    size: u64,
    remove: bool,
    _claim: Option<Claim>,
}

impl Sink {
    /// A new file that is hashed while written, and removed unless it is kept.
    pub(super) fn create(path: PathBuf) -> Result<Self> {
        let file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&path).map_err(io_error("create", &path))?;
        Ok(Self { file, path, hash: Some(Sha256::new()), size: 0, remove: true, _claim: None })
    }

    /// A file that is appended to, and stays.
    pub(super) fn append(path: PathBuf, claim: Claim) -> Result<Self> {
        let file = OpenOptions::new().append(true).create(true).mode(0o600).open(&path).map_err(io_error("open", &path))?;
        let size = file.metadata().map_err(io_error("stat", &path))?.len();
        Ok(Self { file, path, hash: None, size, remove: false, _claim: Some(claim) })
    }

    pub(super) fn size(&self) -> u64 {
        self.size
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    fn write(&mut self, batch: &[Bytes]) -> Result<()> {
        let needed = batch.iter().map(|chunk| chunk.len() as u64).sum::<u64>();
        if self.size + needed > CONTENT_BYTES_MAX {
            return Err(StoreError::TooLarge(CONTENT_BYTES_MAX));
        }
        disk_space::check_space(self.path.parent().unwrap_or(&self.path), needed)?;
        for chunk in batch {
            self.file.write_all(chunk).map_err(io_error("write", &self.path))?;
            if let Some(hash) = &mut self.hash {
                hash.update(chunk);
            }
            self.size += chunk.len() as u64;
        }
        Ok(())
    }

    /// Syncs the file. Returns the digest of what was written if it was created.
    pub(super) fn sync(&mut self) -> Result<Option<Digest>> {
        self.file.sync_all().map_err(io_error("sync", &self.path))?;
        Ok(self.hash.take().map(|hash| Digest(hash.finalize().into())))
    }

    /// Keeps the file, which was renamed: there is nothing to remove.
    pub(super) fn keep(mut self) {
        self.remove = false;
    }
}

impl Drop for Sink {
    fn drop(&mut self) {
        if !self.remove {
            return;
        }
        let path = std::mem::take(&mut self.path);
        let remove = move || {
            if let Err(error) = remove_if_there(&path) {
                tracing::warn!(%error, "failed to remove an unfinished upload, the next start will");
            }
        };
        // Freeing the blocks of a large file takes a while; a caller that is gone drops this on an async thread.
        match tokio::runtime::Handle::try_current() {
            Ok(runtime) => drop(runtime.spawn_blocking(remove)),
            Err(_) => remove(),
        }
    }
}

/// Writes all of `content` to `sink`. When the stream breaks, what was received before is written.
pub(super) async fn drain(mut sink: Sink, mut content: ByteStream, stall: Millis) -> Result<Sink> {
    let mut ended = None;
    while ended.is_none() {
        let (mut batch, mut batch_len) = (Vec::new(), 0);
        while batch_len < BATCH_BYTES && ended.is_none() {
            match timeout(stall.as_duration(), content.next()).await {
                Ok(Some(Ok(chunk))) => {
                    batch_len += chunk.len();
                    batch.push(chunk);
                }
                Ok(Some(Err(error))) => ended = Some(Err(StoreError::Incoming(error))),
                Ok(None) => ended = Some(Ok(())),
                Err(_) => ended = Some(Err(StoreError::Stalled(stall))),
            }
        }
        sink = aside(move || {
            sink.write(&batch)?;
            Ok(sink)
        })
        .await?;
    }
    ended.unwrap_or(Ok(())).map(|()| sink)
}
