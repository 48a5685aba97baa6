//! The manifest of an artifact: its digests and origin, which a release names. Knows nothing of where the bytes are stored.

use std::ops::Range;

use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

use super::{
    archive::Packed,
    pieces::{self, CONTENT_BYTES_MAX},
};
use swell_model::{
    digest::Digest,
    ids::{BuildId, PipelineName},
    units::Timestamp,
};

/// The most bytes of a stored manifest: 4096 pieces take about 300 KB.
pub const MANIFEST_BYTES_MAX: usize = 1 << 20;

/// Version of the stored form. Another one is refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Format;

const FORMAT: u32 = 1;

impl Serialize for Format {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_u32(FORMAT)
    }
}

impl<'de> Deserialize<'de> for Format {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        match u32::deserialize(deserializer)? {
            FORMAT => Ok(Self),
            other => Err(de::Error::custom(format_args!("its form is {other}, this program knows form {FORMAT}: upgrade it"))),
        }
    }
}

/// Where an artifact comes from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Origin {
    pub pipeline: PipelineName,
    /// The build that made it; none when it was built elsewhere and pushed.
    pub build: Option<BuildId>,
    /// The commit, as git names it.
    pub commit: String,
    /// The branch or tag that was built, where one is known.
    pub git_ref: Option<String>,
    /// Time of packing.
    pub created_at: Timestamp,
    /// Of the runner's own `/usr`, for an artifact built with `image = "host"`, since it depends on it.
    pub host_fingerprint: Option<String>,
    /// Digest of the provenance statement.
    pub provenance: Option<Digest>,
}

/// One artifact, described. Immutable. Its stored form is JSON with these fields in this order and no spaces, so that it has a digest.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Manifest {
    /// The stored form's number.
    pub format: Format,
    /// SHA-256 of the compressed archive: the artifact's name.
    pub digest: Digest,
    /// Bytes of the compressed archive.
    pub size: u64,
    /// Bytes of a piece; see [`pieces::piece_length`].
    pub piece_length: u64,
    /// SHA-256 of each piece of the compressed archive.
    pub pieces: Vec<Digest>,
    /// SHA-256 of the tar inside.
    pub unpacked_digest: Digest,
    /// Bytes of the tar inside.
    pub unpacked_size: u64,
    pub pipeline: PipelineName,
    pub build: Option<BuildId>,
    pub commit: String,
    pub git_ref: Option<String>,
    pub created_at: Timestamp,
    pub host_fingerprint: Option<String>,
    pub provenance: Option<Digest>,
}

/// Why a manifest, or a piece of its artifact, was refused.
#[derive(Debug, thiserror::Error)]
pub enum ManifestError {
    /// It is not valid JSON of this form.
    #[error("failed to read the manifest of an artifact: {0}")]
    Form(#[from] serde_json::Error),
    /// It is larger than [`MANIFEST_BYTES_MAX`].
    #[error("the manifest has {0} bytes, more than the 1 MiB any artifact needs")]
    TooLarge(usize),
    /// Its bytes are not the canonical form of its content, so their digest is not the manifest's.
    #[error("the manifest is not in its canonical form: fetch it again")]
    NotCanonical,
    /// Its figures contradict one another.
    #[error("the manifest of {digest} contradicts itself: {why}")]
    Contradiction { digest: Digest, why: &'static str },
    /// The bytes of a piece do not match the manifest.
    #[error("piece {index} of {digest} is damaged: fetch it again from another source")]
    BadPiece {
        digest: Digest,
        /// Number of the piece, from 0.
        index: usize,
    },
}

impl Manifest {
    /// The description of what was packed.
    pub fn new(packed: Packed, origin: Origin) -> Self {
        Self {
            format: Format,
            digest: packed.digest,
            size: packed.size,
            piece_length: packed.piece_length,
            pieces: packed.pieces,
            unpacked_digest: packed.unpacked_digest,
            unpacked_size: packed.unpacked_size,
            pipeline: origin.pipeline,
            build: origin.build,
            commit: origin.commit,
            git_ref: origin.git_ref,
            created_at: origin.created_at,
            host_fingerprint: origin.host_fingerprint,
            provenance: origin.provenance,
        }
    }

    /// The one stored form.
    pub fn to_bytes(&self) -> Vec<u8> {
        // Numbers, texts and lists of them under fixed names: JSON can express each value this type can have.
        serde_json::to_vec(self).expect("a manifest is always JSON")
    }

    /// Reads a stored form, and refuses one that is not canonical or contradicts itself.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, ManifestError> {
        if bytes.len() > MANIFEST_BYTES_MAX {
            return Err(ManifestError::TooLarge(bytes.len()));
        }
        let manifest: Self = serde_json::from_slice(bytes)?;
        manifest.check()?;
        if manifest.to_bytes() != bytes {
            return Err(ManifestError::NotCanonical);
        }
        Ok(manifest)
    }

    /// Whether its figures fit together; everything here relies on that.
    pub fn check(&self) -> Result<(), ManifestError> {
        let refuse = |why| Err(ManifestError::Contradiction { digest: self.digest, why });
        if self.size == 0 || self.unpacked_size == 0 {
            return refuse("it has no bytes");
        }
        if self.size > CONTENT_BYTES_MAX || self.unpacked_size > CONTENT_BYTES_MAX {
            return refuse("it has more than 64 GiB");
        }
        if self.piece_length != pieces::piece_length(self.size) {
            return refuse("its pieces have another length than its size gives");
        }
        if self.pieces.len() as u64 != self.size.div_ceil(self.piece_length) {
            return refuse("it has another number of pieces than its size gives");
        }
        Ok(())
    }

    /// Where each piece lies in the compressed archive.
    pub fn piece_ranges(&self) -> impl ExactSizeIterator<Item = Range<u64>> {
        pieces::piece_ranges(self.size, self.piece_length)
    }

    /// Whether `bytes` are piece `index` (from 0).
    pub fn verify_piece(&self, index: usize, bytes: &[u8]) -> Result<(), ManifestError> {
        if self.pieces.get(index) == Some(&Digest::of(bytes)) {
            return Ok(());
        }
        Err(ManifestError::BadPiece { digest: self.digest, index })
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::testing;

    #[test]
    fn has_one_stored_form() {
        let manifest = testing::manifest_of(b"some content");
        let bytes = manifest.to_bytes();
        assert_eq!(Manifest::from_bytes(&bytes).unwrap(), manifest);
        assert!(bytes.starts_with(br#"{"format":1,"digest":"sha256:"#), "{}", String::from_utf8_lossy(&bytes));
        let spaced = [b" ", &bytes[..]].concat();
        assert!(matches!(Manifest::from_bytes(&spaced), Err(ManifestError::NotCanonical)));
        let newer = String::from_utf8(bytes).unwrap().replace(r#""format":1"#, r#""format":2"#);
        let error = Manifest::from_bytes(newer.as_bytes()).unwrap_err();
        assert!(error.to_string().contains("upgrade"), "{error}");
        let parts = rmp_serde::to_vec(&manifest).unwrap();
        assert_eq!(rmp_serde::from_slice::<Manifest>(&parts).unwrap(), manifest);
    }

    #[test]
    fn contradictions_are_refused() {
        let good = testing::manifest_of(&[7; 3 << 20]);
        let refused = |change: fn(&mut Manifest)| {
            let mut manifest = good.clone();
            change(&mut manifest);
            Manifest::from_bytes(&manifest.to_bytes()).is_err()
        };
        assert!(!refused(|_| ()));
        assert!(refused(|m| m.size = 0));
        assert!(refused(|m| m.size = u64::MAX));
        assert!(refused(|m| m.size += 1 << 20));
        assert!(refused(|m| m.piece_length = 1));
        assert!(refused(|m| m.piece_length = 0));
        assert!(refused(|m| m.pieces.clear()));
        assert!(refused(|m| m.unpacked_size = u64::MAX));
    }

    #[test]
    fn pieces_are_checked_one_by_one() {
        let content: Vec<u8> = (0..(5 << 19)).map(|i: u32| (i % 251) as u8).collect();
        let manifest = testing::manifest_of(&content);
        for (index, range) in manifest.piece_ranges().enumerate() {
            let piece = &content[range.start as usize..range.end as usize];
            manifest.verify_piece(index, piece).unwrap();
            assert!(manifest.verify_piece(index + 1, piece).is_err());
            assert!(manifest.verify_piece(index, &piece[1..]).is_err());
        }
    }
}
