//! SHA-256 of a reader's bytes. Knows nothing of expected digests.

use std::io::{self, Read};

use sha2::{Digest as _, Sha256};

use swell_model::digest::Digest;

/// The digest and the number of all bytes of `reader`.
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
    fn digest_is_the_same_when_read_in_parts() {
        let bytes = vec![7; (1 << 20) + 1];
        assert_eq!(of(&bytes[..]).unwrap(), (Digest::of(&bytes), bytes.len() as u64));
        assert_eq!(of(&b""[..]).unwrap(), (Digest::of(b""), 0));
    }
}
