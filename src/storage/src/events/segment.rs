//! Sealed events outside the database: one stream that shows by itself whether it is complete and unchanged. Knows nothing of where it
//! is kept.
//!
//! Eight bytes say what it is (`SWEVENTS`), one which version (1); the rest is one zstd stream of frames. A frame is its length (four
//! bytes, the most significant first) and that many bytes of MessagePack: the header, each event, and the trailer. Every event holds the
//! hash over all before it, so the header's hash, the events and the trailer's hash are one chain.

use std::io::{self, Read, Write};

use serde::{Deserialize, Serialize, de::DeserializeOwned};

use super::EventsError;
use swell_model::{
    digest::Digest,
    event::{Event, EventSeq},
};

const MAGIC: &[u8; 8] = b"SWEVENTS";
const FORMAT: u8 = 1;

/// The most bytes of one frame: far more than an event's notes and data can hold.
const FRAME_BYTES_MAX: u32 = 4 << 20;

/// zstd's default: events are small and alike, more effort gains little.
const COMPRESSION_LEVEL: i32 = 3;

/// Why a segment cannot be written or read.
#[derive(Debug, thiserror::Error)]
pub enum SegmentError {
    /// The stream fails.
    #[error("failed to read or write an event segment: {0}")]
    Io(#[from] io::Error),
    /// The events to be sealed cannot be read.
    #[error(transparent)]
    Events(#[from] EventsError),
    /// The stream is not what a writer wrote.
    #[error("the event segment is damaged: {0}; take another copy of it")]
    Damaged(String),
    /// A newer program wrote it.
    #[error("the event segment has format {0}, this program reads {FORMAT}; upgrade it")]
    UnknownFormat(u8),
}

/// The range, size and hashes of a segment's events.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Summary {
    /// First and last event; `None` where it holds none.
    pub range: Option<(EventSeq, EventSeq)>,
    pub count: u64,
    /// Hash of the chain before the first event.
    pub previous: Digest,
    /// Hash of the chain up to and including the last event: what the next segment begins with.
    pub head: Digest,
}

#[derive(Debug, Serialize, Deserialize)]
enum Frame<E> {
    Header { previous: Digest },
    Event(E),
    Trailer { count: u64, head: Digest },
}

/// Checks that events follow each other, and counts them.
struct Chain(Summary);

impl Chain {
    fn new(previous: Digest) -> Self {
        Self(Summary { range: None, count: 0, previous, head: previous })
    }

    fn push(&mut self, event: &Event) -> Result<(), SegmentError> {
        let ordered = self.0.range.is_none_or(|(_, last)| last < event.seq);
        if event.previous != self.0.head || !ordered {
            return Err(SegmentError::Damaged(format!("event {} does not follow the one before it", event.seq)));
        }
        self.0.range = Some((self.0.range.map_or(event.seq, |(first, _)| first), event.seq));
        self.0.count += 1;
        self.0.head = event.chain_hash();
        Ok(())
    }
}

/// Writes one segment.
pub struct Writer<W: Write> {
    output: zstd::Encoder<'static, W>,
    chain: Chain,
}

impl<W: Write> Writer<W> {
    /// Begins a segment after an event with which the chain's hash is `previous` (zeros before the first of all).
    ///
    /// # Errors
    /// When `output` fails.
    pub fn new(mut output: W, previous: Digest) -> Result<Self, SegmentError> {
        output.write_all(MAGIC)?;
        output.write_all(&[FORMAT])?;
        let mut output = zstd::Encoder::new(output, COMPRESSION_LEVEL)?;
        write_frame(&mut output, &Frame::<&Event>::Header { previous })?;
        Ok(Self { output, chain: Chain::new(previous) })
    }

    /// Appends the event that comes next.
    ///
    /// # Errors
    /// When it does not follow the one before it, or the output fails.
    pub fn push(&mut self, event: &Event) -> Result<(), SegmentError> {
        self.chain.push(event)?;
        write_frame(&mut self.output, &Frame::Event(event))
    }

    /// Completes the segment.
    ///
    /// # Errors
    /// When the output fails.
    pub fn finish(mut self) -> Result<Summary, SegmentError> {
        let Summary { count, head, .. } = self.chain.0;
        write_frame(&mut self.output, &Frame::<&Event>::Trailer { count, head })?;
        self.output.finish()?.flush()?;
        Ok(self.chain.0)
    }
}

/// Reads one segment, event by event. Trust nothing of it before [`Reader::next_event`] returned `None`: a stream that is cut short
/// ends with an error.
pub struct Reader<R: Read> {
    input: zstd::Decoder<'static, io::BufReader<R>>,
    chain: Chain,
    finished: bool,
}

impl<R: Read> Reader<R> {
    /// Begins to read.
    ///
    /// # Errors
    /// When it is no segment, or one of a newer program.
    pub fn new(mut input: R) -> Result<Self, SegmentError> {
        let mut start = [0; 9];
        input.read_exact(&mut start)?;
        match start.split_last() {
            Some((&FORMAT, magic)) if magic == MAGIC => {}
            Some((&format, magic)) if magic == MAGIC => return Err(SegmentError::UnknownFormat(format)),
            _ => return Err(SegmentError::Damaged("it does not begin as one does".to_owned())),
        }
        let mut input = zstd::Decoder::new(input)?;
        let Frame::<Event>::Header { previous } = read_frame(&mut input)? else {
            return Err(SegmentError::Damaged("it has no header".to_owned()));
        };
        Ok(Self { input, chain: Chain::new(previous), finished: false })
    }

    /// The next event, checked against the one before it; `None` after the last, once the trailer was checked.
    ///
    /// # Errors
    /// When the segment is damaged or the input fails.
    pub fn next_event(&mut self) -> Result<Option<Event>, SegmentError> {
        if self.finished {
            return Ok(None);
        }
        match read_frame(&mut self.input)? {
            Frame::Event(event) => {
                self.chain.push(&event)?;
                Ok(Some(event))
            }
            Frame::Trailer { count, head } if (count, head) == (self.chain.0.count, self.chain.0.head) => {
                self.finished = true;
                Ok(None)
            }
            Frame::Trailer { .. } => Err(SegmentError::Damaged("its end does not fit its events".to_owned())),
            Frame::Header { .. } => Err(SegmentError::Damaged("it has two headers".to_owned())),
        }
    }

    /// What was read so far; all of the segment once [`Reader::next_event`] returned `None`.
    pub fn summary(&self) -> Summary {
        self.chain.0
    }
}

fn write_frame<E: Serialize>(output: &mut impl Write, frame: &Frame<E>) -> Result<(), SegmentError> {
    let bytes = rmp_serde::to_vec_named(frame).map_err(|error| SegmentError::Damaged(error.to_string()))?;
    let length = u32::try_from(bytes.len()).ok().filter(|length| *length <= FRAME_BYTES_MAX);
    let length = length.ok_or_else(|| SegmentError::Damaged(format!("an event of {} bytes is too large", bytes.len())))?;
    output.write_all(&length.to_be_bytes())?;
    Ok(output.write_all(&bytes)?)
}

fn read_frame<E: DeserializeOwned>(input: &mut impl Read) -> Result<Frame<E>, SegmentError> {
    let mut length = [0; 4];
    input.read_exact(&mut length)?;
    let length = u32::from_be_bytes(length);
    if length > FRAME_BYTES_MAX {
        return Err(SegmentError::Damaged(format!("a frame of {length} bytes is too large")));
    }
    let mut bytes = vec![0; length as usize];
    input.read_exact(&mut bytes)?;
    rmp_serde::from_slice(&bytes).map_err(|error| SegmentError::Damaged(error.to_string()))
}
