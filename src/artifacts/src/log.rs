//! The log of an ended attempt as one object of the content store: writing and reading it.
//! Knows nothing of where logs come from or who reads them.
//!
//! Form: one zstd frame (level 3, with checksum) of NDJSON: each line is a [`LogChunk`], as
//! `{"start":0,"end":6,"at":1700000000000,"stderr":false,"phase":"build","text":"hello\n"}`. `start` and `end` count the raw bytes of the
//! log; the `start` of each line is the `end` of the one before, and the first begins at 0. A line holds at most [`CHUNK_BYTES_MAX`] raw bytes.

use std::{
    collections::VecDeque,
    io::{self, Write},
    sync::Arc,
};

use bytes::Bytes;
use futures::{StreamExt, stream::BoxStream};

use super::store::{ByteStream, ContentStore, StoreError};
use swell_model::{digest::Digest, interfaces::LogChunk};

/// The most raw bytes of one chunk; a longer line of output is cut.
pub const CHUNK_BYTES_MAX: usize = 16 << 10;

/// The most bytes of one line of JSON: six for each raw byte where all are escaped, and the fields around them.
const LINE_BYTES_MAX: usize = 8 * CHUNK_BYTES_MAX;

const ZSTD_LEVEL: i32 = 3;

/// Compressed bytes that are unpacked at once, so that an async task is not blocked for long.
const STEP_BYTES: usize = 4 << 10;

/// Why a stored log was not read.
#[derive(Debug, thiserror::Error)]
pub enum LogError {
    /// The store does not have it, or failed.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The connection to its source broke.
    #[error("failed to read the log {0}; try again")]
    Read(Digest, #[source] io::Error),
    /// The object is not a log.
    #[error("{0} is not the log of a build, or is damaged: {1}")]
    Damaged(Digest, String),
}

/// Writes a log to `out`.
pub struct LogEncoder<W: Write> {
    out: zstd::Encoder<'static, W>,
    line: Vec<u8>,
}

impl<W: Write> LogEncoder<W> {
    /// Begins a log. Errors: those of `out`.
    pub fn new(out: W) -> io::Result<Self> {
        let mut out = zstd::Encoder::new(out, ZSTD_LEVEL)?;
        out.include_checksum(true)?;
        Ok(Self { out, line: Vec::new() })
    }

    /// Adds the next chunk, which begins where the last one ended. Errors: those of `out`.
    pub fn push(&mut self, chunk: &LogChunk) -> io::Result<()> {
        self.line.clear();
        serde_json::to_writer(&mut self.line, chunk)?;
        self.line.push(b'\n');
        self.out.write_all(&self.line)
    }

    /// Ends the log. Errors: those of `out`.
    pub fn finish(self) -> io::Result<W> {
        let mut out = self.out.finish()?;
        out.flush()?;
        Ok(out)
    }
}

/// The part of `chunk` from raw byte `start` on; `None` when it ends before. A chunk whose text differs from its bytes (they were not
/// UTF-8) is returned whole rather than cut at a wrong place.
pub fn from_byte(mut chunk: LogChunk, start: u64) -> Option<LogChunk> {
    if chunk.end <= start {
        return None;
    }
    let skipped = start.saturating_sub(chunk.start) as usize;
    let is_exact = chunk.text.len() as u64 == chunk.end - chunk.start;
    if skipped > 0 && is_exact && chunk.text.is_char_boundary(skipped) {
        chunk.text.drain(..skipped);
        chunk.start = start;
    }
    Some(chunk)
}

/// The log `digest` from raw byte `start` on. The stream ends after an error. Memory: about 100 KiB.
pub async fn read_log(
    store: Arc<dyn ContentStore>,
    digest: Digest,
    start: u64,
) -> Result<BoxStream<'static, Result<LogChunk, LogError>>, LogError> {
    let stored = store.stat(digest).await?.ok_or(StoreError::NotFound(digest))?;
    let content = store.get_range(digest, 0..stored.size).await?;
    let decoder = Decoder::new(digest, content).map_err(|error| LogError::Read(digest, error))?;
    let chunks = futures::stream::unfold(Some(decoder), |decoder| async move {
        let mut decoder = decoder?;
        match decoder.next().await {
            Ok(Some(chunk)) => Some((Ok(chunk), Some(decoder))),
            Ok(None) => None,
            Err(error) => Some((Err(error), None)),
        }
    });
    let wanted = chunks.filter_map(move |chunk| async move {
        match chunk {
            Ok(chunk) => from_byte(chunk, start).map(Ok),
            Err(error) => Some(Err(error)),
        }
    });
    Ok(wanted.boxed())
}

struct Decoder {
    digest: Digest,
    content: ByteStream,
    /// Compressed bytes received and not yet unpacked.
    packed: Bytes,
    unpacker: zstd::stream::write::Decoder<'static, Vec<u8>>,
    line: Vec<u8>,
    chunks: VecDeque<LogChunk>,
}

impl Decoder {
    fn new(digest: Digest, content: ByteStream) -> io::Result<Self> {
        let unpacker = zstd::stream::write::Decoder::new(Vec::new())?;
        Ok(Self { digest, content, packed: Bytes::new(), unpacker, line: Vec::new(), chunks: VecDeque::new() })
    }

    async fn next(&mut self) -> Result<Option<LogChunk>, LogError> {
        loop {
            if let Some(chunk) = self.chunks.pop_front() {
                return Ok(Some(chunk));
            }
            if self.packed.is_empty() {
                match self.content.next().await {
                    Some(Ok(bytes)) => self.packed = bytes,
                    Some(Err(error)) => return Err(LogError::Read(self.digest, error)),
                    None if self.line.is_empty() => return Ok(None),
                    None => return Err(self.damaged("it breaks off within a line")),
                }
                continue;
            }
            let step = self.packed.split_to(self.packed.len().min(STEP_BYTES));
            self.unpack(&step)?;
        }
    }

    fn unpack(&mut self, packed: &[u8]) -> Result<(), LogError> {
        let written = self.unpacker.write_all(packed).and_then(|()| self.unpacker.flush());
        written.map_err(|error| self.damaged(error))?;
        let bytes = std::mem::take(self.unpacker.get_mut());
        for part in bytes.split_inclusive(|byte| *byte == b'\n') {
            if self.line.len() + part.len() > LINE_BYTES_MAX {
                return Err(self.damaged("it has a line that is too long"));
            }
            self.line.extend_from_slice(part);
            if part.ends_with(b"\n") {
                let chunk = serde_json::from_slice(&self.line).map_err(|error| self.damaged(error))?;
                self.chunks.push_back(chunk);
                self.line.clear();
            }
        }
        Ok(())
    }

    fn damaged(&self, why: impl ToString) -> LogError {
        LogError::Damaged(self.digest, why.to_string())
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use futures::TryStreamExt;

    use super::*;
    use crate::store::{Embedded, EmbeddedOptions, stream_of};
    use swell_model::units::Timestamp;

    fn chunk(start: u64, text: &str) -> LogChunk {
        let end = start + text.len() as u64;
        LogChunk { start, end, at: Timestamp(7), stderr: false, phase: "build".into(), text: text.into() }
    }

    #[tokio::test]
    async fn written_log_is_read_from_any_byte() {
        let dir = tempfile::tempdir().unwrap();
        let store = Arc::new(Embedded::open(dir.path(), EmbeddedOptions::default()).await.unwrap());
        let mut chunks = Vec::new();
        let mut start = 0;
        for number in 0..20_000 {
            let text =
                if number % 1000 == 0 { "\u{1}".repeat(CHUNK_BYTES_MAX) } else { format!("line {number} \u{1b}[31mred é\n") };
            chunks.push(chunk(start, &text));
            start += text.len() as u64;
        }
        let mut encoder = LogEncoder::new(Vec::new()).unwrap();
        chunks.iter().for_each(|chunk| encoder.push(chunk).unwrap());
        let bytes = encoder.finish().unwrap();
        let digest = store.put(stream_of(bytes), None).await.unwrap().digest;
        let all: Vec<_> = read_log(store.clone(), digest, 0).await.unwrap().try_collect().await.unwrap();
        assert_eq!(all, chunks);
        let from = chunks[15_000].start + 3;
        let tail: Vec<_> = read_log(store.clone(), digest, from).await.unwrap().try_collect().await.unwrap();
        assert_eq!((tail.len(), tail[0].start, &tail[0].text[..3]), (5000, from, &chunks[15_000].text[3..6]));
        let past: Vec<_> = read_log(store, digest, start).await.unwrap().try_collect().await.unwrap();
        assert_eq!(past, []);
    }

    #[tokio::test]
    async fn invalid_log_is_refused_and_replaced_characters_are_not_cut() {
        let dir = tempfile::tempdir().unwrap();
        let store = Arc::new(Embedded::open(dir.path(), EmbeddedOptions::default()).await.unwrap());
        let digest = store.put(stream_of("not a log at all"), None).await.unwrap().digest;
        let read: Result<Vec<_>, _> = read_log(store, digest, 0).await.unwrap().try_collect().await;
        assert!(matches!(read, Err(LogError::Damaged(..))), "{read:?}");
        let replaced = LogChunk { end: 3, text: "a\u{fffd}b".into(), ..chunk(0, "") };
        assert_eq!(from_byte(replaced.clone(), 2), Some(replaced));
    }
}
