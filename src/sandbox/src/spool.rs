//! The file in which a shim keeps what its command printed, as frames, and reading it. Must not know who prints or reads.
//!
//! Format, all integers little-endian. A file starts with a header of 16 bytes: the magic `SWSPOOL1`, then `base` (u64), the
//! logical offset of its first frame. A frame is: length of its bytes (u32, at most 65,536), Unix time in milliseconds (u64),
//! stream (u8: 1 stdout, 2 stderr, 3 a note of the shim), the bytes. A *logical offset* counts frames as if rotation had never
//! happened, so a reader's place stays valid while `spool` becomes `spool.1` and is replaced. A frame cut short at the end of
//! the file is not yet written, or never will be: readers stop before it.

use std::{
    collections::VecDeque,
    fs::{self, File, OpenOptions},
    io::{self, Read, Seek, SeekFrom, Write},
    os::unix::fs::{MetadataExt, OpenOptionsExt},
    path::{Path, PathBuf},
};

use serde::{Deserialize, Serialize};

use swell_model::units::Timestamp;

const MAGIC: &[u8; 8] = b"SWSPOOL1";
const HEADER_LEN: u64 = 16;
const FRAME_HEAD_LEN: usize = 13;
/// Most bytes in one frame.
pub const FRAME_BYTES_MAX: usize = 65_536;
/// The current file's name in a shim's folder.
pub const SPOOL_FILE: &str = "spool";
/// The rotated file's name.
pub const ROTATED_FILE: &str = "spool.1";

/// The source of a piece of output.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Stream {
    /// The command's standard output.
    Stdout,
    /// The command's standard error.
    Stderr,
    /// A remark of the shim, such as that the limit was reached.
    Note,
}

/// Some output, with when it was read from the command.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Frame {
    /// Logical offset of this frame.
    pub offset: u64,
    /// Logical offset of the next: hand it to [`SpoolReader::open`] to go on.
    pub next_offset: u64,
    /// When the shim read it.
    pub at: Timestamp,
    pub stream: Stream,
    /// The bytes, in no particular encoding.
    pub bytes: Vec<u8>,
}

/// How much output is kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum OutputPolicy {
    /// The first so many bytes (of the spool file); then a note, and what follows is counted but not kept. For builds.
    Head {
        /// Bound of the file in bytes.
        limit_bytes: u64,
    },
    /// The last: two files, each up to so many bytes. For instances, which may run for years.
    Rotate {
        /// Bound of each file in bytes.
        file_bytes: u64,
    },
}

impl OutputPolicy {
    /// The bound of a build's log: 256 MiB.
    pub const BUILD: Self = Self::Head { limit_bytes: 256 << 20 };
}

/// Why a spool could not be read.
#[derive(Debug, thiserror::Error)]
pub enum SpoolError {
    /// The file system said no.
    #[error("reading {}", path.display())]
    Io { path: PathBuf, source: io::Error },
    /// Not a frame: the file was damaged.
    #[error("{} is damaged at byte {position}: not a frame of output; what comes before it is intact", path.display())]
    Damaged {
        path: PathBuf,
        /// Place in the file.
        position: u64,
    },
}

/// The writing side; one for each spool, in the shim.
#[derive(Debug)]
pub struct SpoolWriter {
    dir: PathBuf,
    policy: OutputPolicy,
    file: File,
    base: u64,
    len: u64,
    full: bool,
    /// Bytes that the command printed.
    pub output_bytes: u64,
    /// Those of them that were not kept (or, rotating, are no longer: not counted here).
    pub truncated_bytes: u64,
}

impl SpoolWriter {
    /// Creates `dir/spool`, readable by its owner only.
    pub fn create(dir: &Path, policy: OutputPolicy) -> io::Result<Self> {
        let file = new_file(&dir.join(SPOOL_FILE), 0)?;
        let dir = dir.to_owned();
        Ok(Self { dir, policy, file, base: 0, len: HEADER_LEN, full: false, output_bytes: 0, truncated_bytes: 0 })
    }

    /// Keeps `bytes`, or counts them where the limit is reached or the disk is full. Never fails: output must not end a build.
    pub fn append(&mut self, at: Timestamp, stream: Stream, bytes: &[u8]) {
        self.output_bytes += bytes.len() as u64;
        for chunk in bytes.chunks(FRAME_BYTES_MAX) {
            if self.full {
                self.truncated_bytes += chunk.len() as u64;
                continue;
            }
            let frame_len = (FRAME_HEAD_LEN + chunk.len()) as u64;
            match self.policy {
                OutputPolicy::Head { limit_bytes } if self.len + frame_len > limit_bytes => {
                    self.full = true;
                    self.truncated_bytes += chunk.len() as u64;
                    self.note(at, &format!("output limit of {limit_bytes} bytes reached; what follows is counted, not kept\n"));
                    continue;
                }
                OutputPolicy::Rotate { file_bytes } if self.len + frame_len > file_bytes && self.len > HEADER_LEN => {
                    if let Err(error) = self.rotate() {
                        tracing::warn!(%error, dir = %self.dir.display(), "failed to rotate output");
                        self.truncated_bytes += chunk.len() as u64;
                        continue;
                    }
                }
                _ => {}
            }
            if let Err(error) = self.write_frame(at, stream, chunk) {
                self.truncated_bytes += chunk.len() as u64;
                tracing::warn!(%error, dir = %self.dir.display(), "failed to write output, dropping it");
            }
        }
    }

    /// A remark of the shim itself; kept also where the limit was reached, so there must be few.
    pub fn note(&mut self, at: Timestamp, text: &str) {
        if let Err(error) = self.write_frame(at, Stream::Note, text.as_bytes()) {
            tracing::warn!(%error, text, "failed to write a note to the output");
        }
    }

    fn write_frame(&mut self, at: Timestamp, stream: Stream, bytes: &[u8]) -> io::Result<()> {
        let mut frame = Vec::with_capacity(FRAME_HEAD_LEN + bytes.len());
        frame.extend((bytes.len() as u32).to_le_bytes());
        frame.extend(at.0.to_le_bytes());
        frame.push(stream as u8 + 1);
        frame.extend(bytes);
        if let Err(error) = self.file.write_all(&frame) {
            // A half frame would hide every later one.
            self.file.set_len(self.len)?;
            self.file.seek(SeekFrom::Start(self.len))?;
            return Err(error);
        }
        self.len += frame.len() as u64;
        Ok(())
    }

    /// The new file is complete before it gets its name, so that a reader never sees it without its header.
    fn rotate(&mut self) -> io::Result<()> {
        let base = self.base + self.len - HEADER_LEN;
        let fresh = self.dir.join("spool.new");
        if fresh.exists() {
            fs::remove_file(&fresh)?;
        }
        let file = new_file(&fresh, base)?;
        fs::rename(self.dir.join(SPOOL_FILE), self.dir.join(ROTATED_FILE))?;
        fs::rename(&fresh, self.dir.join(SPOOL_FILE))?;
        (self.file, self.base, self.len) = (file, base, HEADER_LEN);
        Ok(())
    }
}

fn new_file(path: &Path, base: u64) -> io::Result<File> {
    let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(path)?;
    file.write_all(&[MAGIC.as_slice(), &base.to_le_bytes()].concat())?;
    Ok(file)
}

/// The reading side: frames from a logical offset on, across rotation. Blocking.
#[derive(Debug)]
pub struct SpoolReader {
    dir: PathBuf,
    offset: u64,
    open: Option<OpenFile>,
    /// Logical bytes that had been rotated away before they could be read.
    pub lost_bytes: u64,
}

#[derive(Debug)]
struct OpenFile {
    file: File,
    path: PathBuf,
    inode: u64,
    base: u64,
}

impl SpoolReader {
    /// A reader at `offset`: 0, or a frame's `next_offset`. The spool need not exist yet.
    pub fn open(dir: &Path, offset: u64) -> Self {
        Self { dir: dir.to_owned(), offset, open: None, lost_bytes: 0 }
    }

    /// A reader of what remains of the last `bytes` bytes. It begins at a frame, that in which they begin, so the caller cuts what is
    /// too much. For the last words of a failed phase or instance.
    pub fn open_tail(dir: &Path, bytes: u64) -> Result<Self, SpoolError> {
        let mut reader = Self::open(dir, 0);
        // The fewest frames at the end that hold `bytes`. Each counts one byte at least, so there are no more of them than that.
        let mut tail = VecDeque::new();
        let mut kept = 0;
        while let Some(frame) = reader.next_frame()? {
            let len = (frame.bytes.len() as u64).max(1);
            tail.push_back((frame.offset, len));
            kept += len;
            while let Some((_, first)) = tail.front().filter(|(_, first)| kept - first >= bytes) {
                kept -= first;
                tail.pop_front();
            }
        }
        let offset = tail.front().map_or(reader.offset, |(offset, _)| *offset);
        Ok(Self::open(dir, offset))
    }

    /// The logical offset of the next frame.
    pub fn offset(&self) -> u64 {
        self.offset
    }

    /// The next whole frame; `None` where there is none yet.
    pub fn next_frame(&mut self) -> Result<Option<Frame>, SpoolError> {
        loop {
            if self.open.is_none() && !self.open_file()? {
                return Ok(None);
            }
            let Some(open) = &mut self.open else { return Ok(None) };
            if let Some(frame) = open.read_frame(self.offset)? {
                self.offset = frame.next_offset;
                return Ok(Some(frame));
            }
            // At the end of this file. Only once it has been replaced is this its real end: frames may have come between.
            match fs::metadata(self.dir.join(SPOOL_FILE)) {
                Ok(now) if now.ino() != open.inode => {}
                _ => return Ok(None),
            }
            if let Some(frame) = open.read_frame(self.offset)? {
                self.offset = frame.next_offset;
                return Ok(Some(frame));
            }
            let ended = open.inode;
            self.open = None;
            if !self.open_file()? {
                return Ok(None);
            }
            // A rotated file that ends within a frame: what it still held is lost, go on with the current one.
            if self.open.as_ref().is_some_and(|open| open.inode == ended) {
                self.open = OpenFile::open(&self.dir.join(SPOOL_FILE))?;
                self.count_lost();
            }
        }
    }

    /// Opens the file that holds `self.offset`, or the oldest there is. False where there is none yet.
    fn open_file(&mut self) -> Result<bool, SpoolError> {
        let current = OpenFile::open(&self.dir.join(SPOOL_FILE))?;
        self.open = match current {
            Some(current) if self.offset >= current.base => Some(current),
            current => match (OpenFile::open(&self.dir.join(ROTATED_FILE))?, current) {
                // Rotated again between the two opens: what `current` holds is then what `spool.1` holds.
                (Some(rotated), Some(current)) if rotated.base >= current.base => Some(current),
                (Some(rotated), _) => Some(rotated),
                (None, current) => current,
            },
        };
        self.count_lost();
        Ok(self.open.is_some())
    }

    fn count_lost(&mut self) {
        if let Some(open) = &self.open
            && open.base > self.offset
        {
            self.lost_bytes += open.base - self.offset;
            self.offset = open.base;
        }
    }
}

impl OpenFile {
    fn open(path: &Path) -> Result<Option<Self>, SpoolError> {
        let failed = |source| SpoolError::Io { path: path.to_owned(), source };
        let mut file = match File::open(path) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(failed(error)),
        };
        let mut header = [0; HEADER_LEN as usize];
        match file.read_exact(&mut header) {
            Ok(()) => {}
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(None),
            Err(error) => return Err(failed(error)),
        }
        let (magic, base) = header.split_at(MAGIC.len());
        if magic != MAGIC {
            return Err(SpoolError::Damaged { path: path.to_owned(), position: 0 });
        }
        let inode = file.metadata().map_err(failed)?.ino();
        Ok(Some(Self { file, path: path.to_owned(), inode, base: u64_le(base) }))
    }

    fn read_frame(&mut self, offset: u64) -> Result<Option<Frame>, SpoolError> {
        let position = HEADER_LEN + offset - self.base;
        let path = self.path.clone();
        let read = |file: &mut File, buffer: &mut [u8]| match file.read_exact(buffer) {
            Ok(()) => Ok(true),
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => Ok(false),
            Err(source) => Err(SpoolError::Io { path: path.clone(), source }),
        };
        self.file.seek(SeekFrom::Start(position)).map_err(|source| SpoolError::Io { path: path.clone(), source })?;
        let mut head = [0; FRAME_HEAD_LEN];
        if !read(&mut self.file, &mut head)? {
            return Ok(None);
        }
        let len = u32::from_le_bytes([head[0], head[1], head[2], head[3]]) as usize;
        let stream = match head[12] {
            1 => Stream::Stdout,
            2 => Stream::Stderr,
            3 => Stream::Note,
            _ => return Err(SpoolError::Damaged { path, position }),
        };
        if len > FRAME_BYTES_MAX {
            return Err(SpoolError::Damaged { path, position });
        }
        let mut bytes = vec![0; len];
        if !read(&mut self.file, &mut bytes)? {
            return Ok(None);
        }
        let next_offset = offset + (FRAME_HEAD_LEN + len) as u64;
        Ok(Some(Frame { offset, next_offset, at: Timestamp(u64_le(&head[4..12])), stream, bytes }))
    }
}

fn u64_le(bytes: &[u8]) -> u64 {
    bytes.iter().rev().fold(0, |number, byte| number << 8 | u64::from(*byte))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn texts(reader: &mut SpoolReader) -> Vec<String> {
        let mut found = Vec::new();
        while let Some(frame) = reader.next_frame().unwrap() {
            found.push(String::from_utf8(frame.bytes).unwrap());
        }
        found
    }

    #[test]
    fn written_frame_is_read_with_time_and_stream() {
        let dir = tempfile::tempdir().unwrap();
        let mut reader = SpoolReader::open(dir.path(), 0);
        assert_eq!(reader.next_frame().unwrap(), None);
        let mut writer = SpoolWriter::create(dir.path(), OutputPolicy::BUILD).unwrap();
        writer.append(Timestamp(5), Stream::Stdout, b"one\n");
        writer.append(Timestamp(6), Stream::Stderr, b"two\n");
        let first = reader.next_frame().unwrap().unwrap();
        assert_eq!((first.at, first.stream, first.bytes.as_slice()), (Timestamp(5), Stream::Stdout, b"one\n".as_slice()));
        assert_eq!(texts(&mut SpoolReader::open(dir.path(), first.next_offset)), ["two\n"]);
        assert_eq!(texts(&mut reader), ["two\n"]);
        writer.append(Timestamp(7), Stream::Stdout, b"three\n");
        assert_eq!(texts(&mut reader), ["three\n"]);
        assert_eq!(fs::metadata(dir.path().join(SPOOL_FILE)).unwrap().mode() & 0o777, 0o600);
    }

    #[test]
    fn tail_begins_at_the_frame_that_holds_its_first_byte() {
        let dir = tempfile::tempdir().unwrap();
        let tail = |bytes| texts(&mut SpoolReader::open_tail(dir.path(), bytes).unwrap());
        assert_eq!(tail(10), [] as [&str; 0]);
        let mut writer = SpoolWriter::create(dir.path(), OutputPolicy::BUILD).unwrap();
        for text in ["one\n", "two\n", "three\n"] {
            writer.append(Timestamp(1), Stream::Stdout, text.as_bytes());
        }
        assert_eq!(tail(100), ["one\n", "two\n", "three\n"]);
        assert_eq!(tail(11), ["one\n", "two\n", "three\n"]);
        assert_eq!(tail(10), ["two\n", "three\n"]);
        // One burst that is larger than what is asked for is still there.
        assert_eq!(tail(3), ["three\n"]);
        // However small the frames, what is remembered of them is bounded: the last four of a thousand are found.
        for _ in 0..1000 {
            writer.append(Timestamp(1), Stream::Stdout, b"x");
        }
        assert_eq!(tail(4), ["x"; 4]);
    }

    #[test]
    fn short_frame_is_waited_for_and_damaged_one_is_an_error() {
        let dir = tempfile::tempdir().unwrap();
        let mut writer = SpoolWriter::create(dir.path(), OutputPolicy::BUILD).unwrap();
        writer.append(Timestamp(1), Stream::Stdout, b"whole");
        writer.append(Timestamp(1), Stream::Stdout, b"cut");
        let path = dir.path().join(SPOOL_FILE);
        let bytes = fs::read(&path).unwrap();
        for cut in 1..FRAME_HEAD_LEN + 3 {
            fs::write(&path, &bytes[..bytes.len() - cut]).unwrap();
            assert_eq!(texts(&mut SpoolReader::open(dir.path(), 0)), ["whole"]);
        }
        fs::write(&path, [&bytes[..bytes.len() - 4], &[9; 40]].concat()).unwrap();
        let mut reader = SpoolReader::open(dir.path(), 0);
        assert!(reader.next_frame().unwrap().is_some());
        assert!(matches!(reader.next_frame(), Err(SpoolError::Damaged { .. })));
    }

    #[test]
    fn output_beyond_the_limit_is_dropped_noted_and_counted() {
        let dir = tempfile::tempdir().unwrap();
        let mut writer = SpoolWriter::create(dir.path(), OutputPolicy::Head { limit_bytes: 100 }).unwrap();
        for _ in 0..10 {
            writer.append(Timestamp(1), Stream::Stdout, &[b'x'; 20]);
        }
        assert_eq!((writer.output_bytes, writer.truncated_bytes), (200, 160));
        let found = texts(&mut SpoolReader::open(dir.path(), 0));
        assert_eq!(found.len(), 3);
        assert!(found[2].contains("limit of 100 bytes"), "{found:?}");
    }

    #[test]
    fn reader_follows_rotation_and_counts_lost_bytes() {
        let dir = tempfile::tempdir().unwrap();
        let mut writer = SpoolWriter::create(dir.path(), OutputPolicy::Rotate { file_bytes: 16 + 3 * 14 }).unwrap();
        let mut follower = SpoolReader::open(dir.path(), 0);
        let mut followed = Vec::new();
        for round in 0..20u8 {
            writer.append(Timestamp(1), Stream::Stdout, &[b'a' + round]);
            followed.extend(texts(&mut follower));
        }
        assert_eq!(followed.concat(), "abcdefghijklmnopqrst");
        assert_eq!(follower.lost_bytes, 0);
        let mut late = SpoolReader::open(dir.path(), 0);
        assert_eq!(texts(&mut late).concat(), "pqrst");
        assert_eq!(late.lost_bytes, 15 * 14);
        let sizes = [SPOOL_FILE, ROTATED_FILE].map(|name| fs::metadata(dir.path().join(name)).unwrap().len());
        assert!(sizes.iter().all(|size| *size <= 58), "{sizes:?}");
    }
}
