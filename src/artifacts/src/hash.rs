//! The SHA-256 of whatever can be read. Knows nothing of what it should be.

use std::io::{self, Read};

use sha2::{Digest as _, Sha256};

use swell_model::digest::Digest;

/// The digest of all that `reader` gives, and how many bytes that is.
pub(super) fn of(mut reader: impl Read) -> io::Result<(Digest, u64)> {
    let (mut hash, mut size, mut buffer) = (Sha256::new(), 0, vec![0; 1 << 20]);
    loop {
        match reader.read(&mut buffer) {
            Ok(0) => return Ok((Digest(hash.finalize().into()), size)),
            Ok(read) => {
                hash.update(&buffer[..read]);
                size += read as u64;
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn what_is_read_in_parts_has_the_digest_of_the_whole() {
        let bytes = vec![7; (1 << 20) + 1];
        assert_eq!(of(&bytes[..]).unwrap(), (Digest::of(&bytes), bytes.len() as u64));
        assert_eq!(of(&b""[..]).unwrap(), (Digest::of(b""), 0));
    }
}
