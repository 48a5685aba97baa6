//! How keys and values are written as bytes. A change here is a change of the format on disk: the golden bytes in the tests
//! notice it. Knows nothing of the database.
//!
//! A value is the version of its format (one byte, 1) and MessagePack with the fields' names, so that a field with a default can
//! be added without a new version.
//!
//! A key is its parts, one after the other. Bytes are ordered as the parts are:
//! - a number is the byte 1 and eight bytes, the most significant first;
//! - a text is the byte 2, its bytes, and a 0, which it may not contain itself: so a text is before each longer one that begins
//!   with it;
//! - no part begins with a byte above 2, so a 3 ends the range of all keys that begin with some parts.

use serde::{Serialize, de::DeserializeOwned};

use swell_model::tables::{Key, KeyPart};

/// The version of the format of values that is written.
pub const FORMAT: u8 = 1;

const NUMBER: u8 = 1;
const TEXT: u8 = 2;
const TEXT_END: u8 = 0;
const AFTER_ALL_PARTS: u8 = 3;

/// Why bytes and values do not fit.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CodecError {
    /// There is not even a version.
    #[error("the value is empty")]
    Empty,
    /// Written by a newer program.
    #[error("the value has format {0}, and this program knows {FORMAT}: start a newer one")]
    UnknownFormat(u8),
    /// The bytes are no such value.
    #[error("the value cannot be decoded: {0}")]
    Undecodable(String),
    /// The value has no such bytes.
    #[error("the value cannot be encoded: {0}")]
    Unencodable(String),
    /// A text in a key contains a NUL.
    #[error("the key contains a NUL")]
    Nul,
}

/// The bytes of `value`.
///
/// # Errors
/// When it holds something that MessagePack cannot.
pub fn encode<T: Serialize>(value: &T) -> Result<Vec<u8>, CodecError> {
    let mut bytes = vec![FORMAT];
    rmp_serde::encode::write_named(&mut bytes, value).map_err(|error| CodecError::Unencodable(error.to_string()))?;
    Ok(bytes)
}

/// The value of `bytes`.
///
/// # Errors
/// When they were not written by [`encode`], or by a newer program.
pub fn decode<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, CodecError> {
    match bytes.split_first() {
        None => Err(CodecError::Empty),
        Some((&FORMAT, value)) => rmp_serde::from_slice(value).map_err(|error| CodecError::Undecodable(error.to_string())),
        Some((&format, _)) => Err(CodecError::UnknownFormat(format)),
    }
}

/// The bytes of `key`.
///
/// # Errors
/// When a text contains a NUL.
pub fn encode_key(key: &Key) -> Result<Vec<u8>, CodecError> {
    let mut bytes = Vec::with_capacity(16 * key.0.len());
    for part in &key.0 {
        match part {
            KeyPart::Number(number) => {
                bytes.push(NUMBER);
                bytes.extend(number.to_be_bytes());
            }
            KeyPart::Text(text) if text.as_bytes().contains(&TEXT_END) => return Err(CodecError::Nul),
            KeyPart::Text(text) => {
                bytes.push(TEXT);
                bytes.extend(text.as_bytes());
                bytes.push(TEXT_END);
            }
        }
    }
    Ok(bytes)
}

/// The first bytes after every key that begins with the parts of `prefix`, itself encoded.
pub fn end_of_prefix(mut prefix: Vec<u8>) -> Vec<u8> {
    prefix.push(AFTER_ALL_PARTS);
    prefix
}

#[cfg(test)]
mod tests;
