//! The log of an attempt as its runner has it: segments that are written one after the other and read as one. Must not know what the
//! phases do.
//!
//! `log/` holds a folder for each segment, `NNN-PHASE`, numbered from 000: either the folder of a phase's shim, or one with the spool of
//! the runner's own lines. A segment gets nothing more once the next exists, or once the attempt's `end` exists; so readers know when to
//! go on. The raw log is the bytes of all their frames, one after the other; an offset in it stays valid for good.

use std::{
    fs,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use futures::stream::BoxStream;
use tokio::{task::spawn_blocking, time::sleep};

use super::{
    folder::{Folder, FolderError, make_dir},
    now,
};
use swell_artifacts::log::{CHUNK_BYTES_MAX, from_byte};
use swell_model::{build::Phase, interfaces::LogChunk};
use swell_sandbox::spool::{Frame, OutputPolicy, SPOOL_FILE, SpoolReader, SpoolWriter, Stream};
use swell_system::files::failed;

/// The bound of all segments of an attempt together, in bytes of their files.
pub(super) const LOG_BYTES_MAX: u64 = 256 << 20;

/// What a segment may have even where the bound was reached: room for the words that say so.
const SEGMENT_BYTES_MIN: u64 = 64 << 10;

/// How often a follower looks for new output at first, and at the least when there is none.
const LOOK_EVERY: (Duration, Duration) = (Duration::from_millis(10), Duration::from_millis(250));

/// A follower shows the beginning of a line that is not ended after so long: a prompt, a progress bar.
const PARTIAL_LINE_AFTER: Duration = Duration::from_millis(500);

/// Raw bytes that are read at once.
const BATCH_BYTES: u64 = 128 << 10;

/// A segment's number and phase; `None` for what is no segment.
fn parse(name: &str) -> Option<(u32, Phase)> {
    let (number, phase) = name.split_once('-')?;
    let phase = Phase::ALL.into_iter().find(|known| known.name() == phase)?;
    Some((number.parse().ok()?, phase))
}

/// The segments in `log`, by number.
pub(super) fn segments(log: &Path) -> Vec<(u32, Phase, PathBuf)> {
    let entries = fs::read_dir(log).into_iter().flatten().flatten();
    let known =
        entries.filter_map(|entry| parse(entry.file_name().to_str()?).map(|(number, phase)| (number, phase, entry.path())));
    let mut segments: Vec<_> = known.collect();
    segments.sort();
    segments
}

/// Adds segments, and the runner's own lines. One at a time for each attempt.
pub(super) struct LogWriter {
    log: PathBuf,
    next: u32,
    own: Option<(Phase, SpoolWriter)>,
}

impl LogWriter {
    /// Goes on after what is there.
    pub fn open(log: PathBuf) -> Self {
        let next = segments(&log).last().map_or(0, |(number, ..)| number + 1);
        Self { log, next, own: None }
    }

    fn add(&mut self, phase: Phase) -> String {
        self.own = None;
        let name = format!("{:03}-{phase}", self.next);
        self.next += 1;
        name
    }

    /// The name of a new segment for a shim, which creates the folder.
    pub fn add_shim(&mut self, phase: Phase) -> String {
        self.add(phase)
    }

    /// How much the next segment may hold.
    pub fn policy(&self) -> OutputPolicy {
        let size = |(_, _, dir): (u32, Phase, PathBuf)| fs::metadata(dir.join(SPOOL_FILE)).map_or(0, |meta| meta.len());
        let used: u64 = segments(&self.log).into_iter().map(size).sum();
        OutputPolicy::Head { limit_bytes: LOG_BYTES_MAX.saturating_sub(used).max(SEGMENT_BYTES_MIN) }
    }

    /// Writes a line of the runner's own.
    pub fn line(&mut self, phase: Phase, text: &str) -> Result<(), FolderError> {
        if self.own.as_ref().is_none_or(|(own, _)| *own != phase) {
            let name = self.add(phase);
            let dir = self.log.join(name);
            make_dir(&dir)?;
            let policy = OutputPolicy::Head { limit_bytes: SEGMENT_BYTES_MIN };
            let spool = SpoolWriter::create(&dir, policy).map_err(failed("create a log in", &dir))?;
            self.own = Some((phase, spool));
        }
        if let Some((_, spool)) = &mut self.own {
            spool.append(now(), Stream::Stdout, format!("{text}\n").as_bytes());
        }
        Ok(())
    }
}

/// Cuts frames into lines. What a line is shown with is the time of its first byte.
struct Cutter {
    /// Where `line` begins in the raw log.
    start: u64,
    line: Vec<u8>,
    /// Time, whether on standard error, and phase of `line`.
    of: Option<(swell_model::units::Timestamp, bool, Phase)>,
}

impl Cutter {
    fn push(&mut self, frame: &Frame, phase: Phase, chunks: &mut Vec<LogChunk>) {
        let stderr = frame.stream == Stream::Stderr;
        if self.of.is_some_and(|(_, was_stderr, was_phase)| (was_stderr, was_phase) != (stderr, phase)) {
            self.flush(chunks);
        }
        for part in frame.bytes.split_inclusive(|byte| *byte == b'\n') {
            let mut rest = part;
            while !rest.is_empty() {
                if self.line.is_empty() {
                    self.of = Some((frame.at, stderr, phase));
                }
                let (now, later) = rest.split_at(rest.len().min(CHUNK_BYTES_MAX - self.line.len()));
                self.line.extend_from_slice(now);
                rest = later;
                if self.line.ends_with(b"\n") {
                    self.flush(chunks);
                } else if self.line.len() >= CHUNK_BYTES_MAX {
                    self.cut(whole_characters(&self.line), chunks);
                }
            }
        }
    }

    fn flush(&mut self, chunks: &mut Vec<LogChunk>) {
        self.cut(self.line.len(), chunks);
    }

    fn cut(&mut self, len: usize, chunks: &mut Vec<LogChunk>) {
        let Some((at, stderr, phase)) = self.of.filter(|_| len > 0) else { return };
        let end = self.start + len as u64;
        let text = String::from_utf8_lossy(&self.line[..len]).into_owned();
        chunks.push(LogChunk { start: self.start, end, at, stderr, phase: phase.name().to_owned(), text });
        self.line.drain(..len);
        self.start = end;
        if self.line.is_empty() {
            self.of = None;
        }
    }
}

/// How many of the bytes are there without the beginning of a character whose rest is still to come.
fn whole_characters(bytes: &[u8]) -> usize {
    let tail = bytes.len().saturating_sub(3);
    let incomplete = |at: &usize| {
        let length = match bytes[*at] {
            0xc2..=0xdf => 2,
            0xe0..=0xef => 3,
            0xf0..=0xf4 => 4,
            _ => 1,
        };
        at + length > bytes.len()
    };
    (tail..bytes.len()).find(incomplete).filter(|at| *at > 0).unwrap_or(bytes.len())
}

/// What a look at the log found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Found {
    /// There may be more at once.
    More,
    /// Nothing new for now.
    Nothing,
    /// The log is complete and was read to its end, or its folder is gone.
    End,
}

/// Reads the log of an attempt from its beginning. Blocking.
pub(super) struct LogReader {
    folder: Folder,
    /// The segment that is being read.
    current: Option<(u32, Phase, SpoolReader)>,
    /// The number of the next.
    next: u32,
    cutter: Cutter,
    /// Frames before this raw offset are passed over.
    start: u64,
    raw: u64,
}

impl LogReader {
    pub fn open(folder: Folder, start: u64) -> Self {
        let cutter = Cutter { start: 0, line: Vec::new(), of: None };
        Self { folder, current: None, next: 0, cutter, start, raw: 0 }
    }

    /// Adds the next lines to `chunks`.
    pub fn read(&mut self, chunks: &mut Vec<LogChunk>) -> Found {
        let first = chunks.len();
        let found = self.read_lines(chunks);
        self.leave_out(first, chunks);
        found
    }

    /// Of the chunks from `first` on, what comes before the raw offset that was asked for.
    fn leave_out(&self, first: usize, chunks: &mut Vec<LogChunk>) {
        if chunks.get(first).is_some_and(|chunk| chunk.start < self.start) {
            let wanted: Vec<_> = chunks.drain(first..).filter_map(|chunk| from_byte(chunk, self.start)).collect();
            chunks.extend(wanted);
        }
    }

    fn read_lines(&mut self, chunks: &mut Vec<LogChunk>) -> Found {
        let stop_at = self.raw + BATCH_BYTES;
        loop {
            if self.raw >= stop_at {
                return Found::More;
            }
            if self.read_frame(chunks) {
                continue;
            }
            // In this order: whatever was written before the end, or before the next segment, is there by the second read.
            let is_over = self.folder.has_ended() || !self.folder.exists();
            let next = segments(&self.folder.log()).into_iter().find(|(number, ..)| *number >= self.next);
            if self.current.is_some() && next.is_none() && !is_over {
                return Found::Nothing;
            }
            if self.read_frame(chunks) {
                continue;
            }
            match next {
                Some((number, phase, dir)) => {
                    self.cutter.flush(chunks);
                    self.current = Some((number, phase, SpoolReader::open(&dir, 0)));
                    self.next = number + 1;
                }
                None if is_over => {
                    self.cutter.flush(chunks);
                    return Found::End;
                }
                None => return Found::Nothing,
            }
        }
    }

    /// Whether there was a frame.
    fn read_frame(&mut self, chunks: &mut Vec<LogChunk>) -> bool {
        let Some((_, phase, reader)) = &mut self.current else { return false };
        let frame = match reader.next_frame() {
            Ok(frame) => frame,
            Err(error) => {
                // What comes after it in this segment is lost; the other segments are not.
                tracing::warn!(%error, "failed to read a part of a build's log");
                None
            }
        };
        let Some(frame) = frame else { return false };
        self.raw += frame.bytes.len() as u64;
        if self.raw <= self.start {
            self.cutter.start = self.raw;
        } else {
            self.cutter.push(&frame, *phase, chunks);
        }
        true
    }

    /// Gives a line that is waiting for its rest as it is.
    pub fn flush(&mut self, chunks: &mut Vec<LogChunk>) {
        let first = chunks.len();
        self.cutter.cut(whole_characters(&self.cutter.line), chunks);
        self.leave_out(first, chunks);
    }

    /// The same at the end, where no rest will come.
    pub fn finish(&mut self, chunks: &mut Vec<LogChunk>) {
        self.cutter.flush(chunks);
    }

    fn has_partial_line(&self) -> bool {
        !self.cutter.line.is_empty()
    }
}

/// The last words of a segment: at most `bytes_max`, beginning at a line where there is one.
pub(super) fn last_output(dir: &Path, bytes_max: usize) -> String {
    let mut bytes = Vec::new();
    // One more, so that what is not longer is all there is.
    let mut reader = match SpoolReader::open_tail(dir, bytes_max as u64 + 1) {
        Ok(reader) => reader,
        Err(error) => return format!("(the output cannot be read: {error})"),
    };
    while let Ok(Some(frame)) = reader.next_frame() {
        bytes.extend(frame.bytes);
    }
    let text = String::from_utf8_lossy(&bytes);
    if text.len() <= bytes_max {
        return text.into_owned();
    }
    let tail = &text[text.ceil_char_boundary(text.len() - bytes_max)..];
    match tail.find('\n') {
        Some(end) if end + 1 < tail.len() => tail[end + 1..].to_owned(),
        _ => tail.to_owned(),
    }
}

/// The log from raw byte `start` on, followed until the attempt has ended.
pub(super) fn follow(folder: Folder, start: u64) -> BoxStream<'static, LogChunk> {
    let follower = Follower { reader: Some(LogReader::open(folder, start)), pending: Vec::new().into_iter(), found: Found::More };
    Box::pin(futures::stream::unfold(
        follower,
        |mut follower| async move { follower.next().await.map(|chunk| (chunk, follower)) },
    ))
}

struct Follower {
    /// `None` after the program began to shut down.
    reader: Option<LogReader>,
    pending: std::vec::IntoIter<LogChunk>,
    found: Found,
}

impl Follower {
    async fn next(&mut self) -> Option<LogChunk> {
        let mut pause = LOOK_EVERY.0;
        let mut silent_since = Instant::now();
        loop {
            if let Some(chunk) = self.pending.next() {
                return Some(chunk);
            }
            if self.found == Found::End {
                return None;
            }
            let mut reader = self.reader.take()?;
            let show_partial = silent_since.elapsed() >= PARTIAL_LINE_AFTER;
            let looked = spawn_blocking(move || {
                let mut chunks = Vec::new();
                let found = reader.read(&mut chunks);
                if chunks.is_empty() && show_partial && reader.has_partial_line() {
                    reader.flush(&mut chunks);
                }
                (reader, chunks, found)
            });
            let (reader, chunks, found) = looked.await.ok()?;
            (self.reader, self.pending, self.found) = (Some(reader), chunks.into_iter(), found);
            if show_partial {
                silent_since = Instant::now();
            }
            if self.pending.len() == 0 && found == Found::Nothing {
                sleep(pause).await;
                pause = (pause * 2).min(LOOK_EVERY.1);
            }
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use futures::{FutureExt, StreamExt};

    use super::*;
    use swell_model::{command::StoredArtifact, digest::Digest, ids::BuildId, units::ByteSize};

    fn folder(root: &Path) -> Folder {
        let folder = Folder::of(root, (BuildId(1), 1));
        folder.create().unwrap();
        folder
    }

    fn end(folder: &Folder) {
        let (digest, size) = (Digest::of(b""), ByteSize(0));
        let artifact = StoredArtifact { digest, size, unpacked_size: size, manifest: digest };
        let ending = super::super::folder::Ending::Succeeded { artifact, file: Box::default(), log: None };
        folder.write_end(&ending).unwrap();
    }

    fn read_all(folder: &Folder, start: u64) -> Vec<LogChunk> {
        let mut reader = LogReader::open(folder.clone(), start);
        let mut chunks = Vec::new();
        while reader.read(&mut chunks) == Found::More {}
        chunks
    }

    #[test]
    fn segments_read_as_one_log_from_any_byte() {
        let root = tempfile::tempdir().unwrap();
        let folder = folder(root.path());
        let mut log = LogWriter::open(folder.log());
        log.line(Phase::Checkout, "checking out").unwrap();
        let shim = folder.log().join(log.add_shim(Phase::Build));
        make_dir(&shim).unwrap();
        let mut spool = SpoolWriter::create(&shim, log.policy()).unwrap();
        // A character in two frames, a line in two streams, a byte that is no text, no line break at the end.
        for (stream, bytes) in [
            (Stream::Stdout, b"caf\xc3".as_slice()),
            (Stream::Stdout, b"\xa9\nhalf".as_slice()),
            (Stream::Stderr, b"oops\n".as_slice()),
            (Stream::Stdout, b"way \xff".as_slice()),
        ] {
            spool.append(now(), stream, bytes);
        }
        // After a crash, another writer goes on behind it.
        drop(log);
        LogWriter::open(folder.log()).line(Phase::Upload, "packed").unwrap();
        end(&folder);
        let chunks = read_all(&folder, 0);
        let told: Vec<_> = chunks.iter().map(|chunk| (chunk.phase.as_str(), chunk.stderr, chunk.text.as_str())).collect();
        let expected = [
            ("checkout", false, "checking out\n"),
            ("build", false, "café\n"),
            ("build", false, "half"),
            ("build", true, "oops\n"),
            ("build", false, "way \u{fffd}"),
            ("upload", false, "packed\n"),
        ];
        assert_eq!(told, expected);
        for pair in chunks.windows(2) {
            assert_eq!(pair[0].end, pair[1].start);
        }
        let whole: String = chunks.iter().map(|chunk| chunk.text.as_str()).collect();
        let within_a_character = chunks[1].start + 4..chunks[1].end;
        for start in (0..chunks.last().unwrap().end).filter(|start| !within_a_character.contains(start)) {
            let read = read_all(&folder, start);
            assert!(read[0].start <= start && read[0].end > start, "{start}: {:?}", read[0]);
            let tail: String = read.iter().map(|chunk| chunk.text.as_str()).collect();
            assert!(whole.ends_with(&tail), "{start}");
        }
        assert_eq!(read_all(&folder, 10_000), []);
        assert_eq!(last_output(&shim, 10), "way \u{fffd}".to_owned());
    }

    #[test]
    fn last_output_is_of_the_last_burst_however_large() {
        let dir = tempfile::tempdir().unwrap();
        let mut spool = SpoolWriter::create(dir.path(), OutputPolicy::BUILD).unwrap();
        spool.append(now(), Stream::Stdout, b"compiling\n");
        let burst: String = (0..5000).map(|number| format!("error {number}\n")).collect();
        spool.append(now(), Stream::Stderr, burst.as_bytes());
        let said = last_output(dir.path(), 4096);
        assert!(said.starts_with("error ") && said.ends_with("error 4999\n"), "{said}");
        assert!(said.len() <= 4096 && said.len() > 4000, "{}", said.len());
    }

    #[test]
    fn long_line_is_cut_between_characters() {
        let root = tempfile::tempdir().unwrap();
        let folder = folder(root.path());
        let line = format!("x{}", "é".repeat(CHUNK_BYTES_MAX));
        LogWriter::open(folder.log()).line(Phase::Build, &line).unwrap();
        end(&folder);
        let chunks = read_all(&folder, 0);
        assert!(chunks.len() == 3 && chunks.iter().all(|chunk| chunk.text.len() <= CHUNK_BYTES_MAX), "{}", chunks.len());
        assert_eq!(chunks.iter().map(|chunk| chunk.text.as_str()).collect::<String>(), line + "\n");
    }

    #[tokio::test]
    async fn follower_reads_lines_as_they_are_written_and_stops_at_the_end() {
        let root = tempfile::tempdir().unwrap();
        let folder = folder(root.path());
        let mut log = LogWriter::open(folder.log());
        let mut lines = follow(folder.clone(), 0);
        assert!(lines.next().now_or_never().is_none());
        log.line(Phase::Checkout, "one").unwrap();
        assert_eq!(lines.next().await.unwrap().text, "one\n");
        log.line(Phase::Build, "two").unwrap();
        let two = lines.next().await.unwrap();
        assert_eq!((two.text.as_str(), two.phase.as_str(), two.start), ("two\n", "build", 4));
        end(&folder);
        assert_eq!(lines.next().await, None);
        let mut gone = follow(folder.clone(), 4);
        folder.remove().unwrap();
        assert_eq!(gone.next().await, None);
    }
}
