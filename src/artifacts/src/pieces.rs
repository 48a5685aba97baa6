//! Content in pieces, each with its hash, so that each can be checked by itself. Knows nothing of files.

use std::ops::Range;

use sha2::{Digest as _, Sha256};

use swell_model::digest::Digest;

/// The shortest piece: 1 MiB.
pub const PIECE_BYTES_MIN: u64 = 1 << 20;
/// The longest piece: 16 MiB.
pub const PIECE_BYTES_MAX: u64 = 16 << 20;
/// How many pieces content has at most, while [`PIECE_BYTES_MAX`] allows it.
pub const PIECES_MAX: u64 = 512;
/// The largest content that can be described: 64 GiB, 4096 pieces.
pub const CONTENT_BYTES_MAX: u64 = 64 << 30;

/// The length of a piece, in bytes, of content of `size` bytes: 1 MiB up to 512 MiB, then the power of two that gives 257 to 512 pieces,
/// at most 16 MiB.
pub fn piece_length(size: u64) -> u64 {
    size.div_ceil(PIECES_MAX).next_power_of_two().clamp(PIECE_BYTES_MIN, PIECE_BYTES_MAX)
}

/// The range of each piece in content of `size` bytes.
pub fn piece_ranges(size: u64, piece_length: u64) -> impl ExactSizeIterator<Item = Range<u64>> {
    // At most 4096 pieces by CONTENT_BYTES_MAX; what was read from elsewhere is checked against that before.
    let count = size.div_ceil(piece_length.max(1)) as usize;
    (0..count).map(move |index| {
        let start = index as u64 * piece_length;
        start..(start + piece_length).min(size)
    })
}

/// Size and digests of a stream of bytes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Content {
    /// SHA-256 of the whole.
    pub digest: Digest,
    pub size: u64,
    /// Bytes of a piece; the last may be shorter.
    pub piece_length: u64,
    pub pieces: Vec<Digest>,
}

/// There are more bytes than [`ContentHasher::new`] was given.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the content is larger than the {0} bytes expected at most")]
pub struct TooLarge(pub u64);

/// Hashes a stream, whole and in pieces, in one pass. The length of a piece depends on the size, known only at the end,
/// so each length that the largest foreseen size allows is hashed along: up to 512 MiB that is one.
pub struct ContentHasher {
    size_max: u64,
    size: u64,
    whole: Sha256,
    levels: Vec<Level>,
}

struct Level {
    length: u64,
    filled: u64,
    current: Sha256,
    done: Vec<Digest>,
}

impl Level {
    fn new(length: u64) -> Self {
        Self { length, filled: 0, current: Sha256::new(), done: Vec::new() }
    }

    fn update(&mut self, mut bytes: &[u8]) {
        while !bytes.is_empty() {
            let taken = (self.length - self.filled).min(bytes.len() as u64);
            let (now, rest) = bytes.split_at(taken as usize);
            self.current.update(now);
            self.filled += taken;
            bytes = rest;
            if self.filled == self.length {
                self.done.push(Digest(self.current.finalize_reset().into()));
                self.filled = 0;
            }
        }
    }

    fn finish(mut self) -> Vec<Digest> {
        if self.filled > 0 {
            self.done.push(Digest(self.current.finalize().into()));
        }
        self.done
    }
}

impl ContentHasher {
    /// A hasher of at most `size_max` bytes; an upper bound is enough.
    pub fn new(size_max: u64) -> Self {
        let size_max = size_max.min(CONTENT_BYTES_MAX);
        let lengths = std::iter::successors(Some(PIECE_BYTES_MIN), |length| Some(length * 2));
        let longest = piece_length(size_max);
        let levels = lengths.take_while(|length| *length <= longest).map(Level::new).collect();
        Self { size_max, size: 0, whole: Sha256::new(), levels }
    }

    /// Hashes the next bytes.
    pub fn update(&mut self, bytes: &[u8]) -> Result<(), TooLarge> {
        self.size += bytes.len() as u64;
        if self.size > self.size_max {
            return Err(TooLarge(self.size_max));
        }
        self.whole.update(bytes);
        self.levels.iter_mut().for_each(|level| level.update(bytes));
        Ok(())
    }

    /// Returns the size and digests.
    pub fn finish(mut self) -> Content {
        let piece_length = piece_length(self.size);
        // `update` kept the size within size_max, and the levels reach from the shortest length to that of size_max.
        let index = (piece_length / PIECE_BYTES_MIN).trailing_zeros() as usize;
        let level = self.levels.swap_remove(index);
        Content { digest: Digest(self.whole.finalize().into()), size: self.size, piece_length, pieces: level.finish() }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const MIB: u64 = 1 << 20;

    #[test]
    fn pieces_grow_with_the_content() {
        for (size, expected) in [
            (0, 1),
            (1, 1),
            (512 * MIB, 1),
            (512 * MIB + 1, 2),
            (1024 * MIB, 2),
            (1025 * MIB, 4),
            (8192 * MIB, 16),
            (65536 * MIB, 16),
        ] {
            assert_eq!(piece_length(size), expected * MIB, "{size}");
            if size > 512 * MIB && size <= 8192 * MIB {
                assert!((128..=512).contains(&piece_ranges(size, piece_length(size)).len()));
            }
        }
    }

    #[test]
    fn more_than_foreseen_is_refused() {
        let mut hasher = ContentHasher::new(3);
        hasher.update(b"abc").unwrap();
        assert_eq!(hasher.update(b"d"), Err(TooLarge(3)));
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(16))]
        #[test]
        fn each_piece_is_hashed_whatever_the_chunks(size in 0usize..(5 << 19), chunk in 1usize..700_000, foreseen in 0u64..(4 << 30)) {
            let bytes: Vec<u8> = (0..size).map(|i| (i * 31 % 251) as u8).collect();
            let mut hasher = ContentHasher::new(foreseen.max(size as u64));
            bytes.chunks(chunk).for_each(|part| hasher.update(part).unwrap());
            let content = hasher.finish();
            prop_assert_eq!(content.digest, Digest::of(&bytes));
            let expected: Vec<_> = bytes.chunks(MIB as usize).map(Digest::of).collect();
            prop_assert_eq!(content.pieces, expected);
            prop_assert_eq!(piece_ranges(size as u64, MIB).map(|r| r.end - r.start).sum::<u64>(), size as u64);
        }
    }
}
