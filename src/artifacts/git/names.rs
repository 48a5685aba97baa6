//! Object ids and reference names, checked before git sees them. Does not know which ones exist.

use std::{fmt, str::FromStr};

use serde::{Deserialize, Deserializer, Serialize, de};

/// A git object, most often a commit: 40 (SHA-1) or 64 (SHA-256) lower-case hexadecimal digits, never all zero.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(transparent)]
pub struct ObjectId(String);

/// A text that is no whole object id.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is not a git object id: give all 40 (or 64) hexadecimal digits")]
pub struct ObjectIdError(String);

impl ObjectId {
    /// All digits.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The first 12 digits, for people.
    pub fn short(&self) -> &str {
        &self.0[..12]
    }

    /// Git writes all zeros for "there is none".
    pub(super) fn parse_or_none(text: &str) -> Result<Option<Self>, ObjectIdError> {
        if is_hex_id(text) && text.bytes().all(|b| b == b'0') { Ok(None) } else { text.parse().map(Some) }
    }
}

fn is_hex_id(text: &str) -> bool {
    matches!(text.len(), 40 | 64) && text.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'))
}

impl FromStr for ObjectId {
    type Err = ObjectIdError;

    fn from_str(text: &str) -> Result<Self, ObjectIdError> {
        if is_hex_id(text) && text.bytes().any(|b| b != b'0') {
            Ok(Self(text.to_owned()))
        } else {
            Err(ObjectIdError(text.to_owned()))
        }
    }
}

impl fmt::Display for ObjectId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl<'de> Deserialize<'de> for ObjectId {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(de::Error::custom)
    }
}

/// The longest reference name that is taken, in bytes: a component must fit a file name with `.lock` behind it.
const REF_BYTES_MAX: usize = 240;

/// Whether git would take this as a reference's name, or as the end of one (git-check-ref-format(1)).
pub(super) fn is_ref_name(name: &str) -> bool {
    let is_component = |part: &str| !part.is_empty() && !part.starts_with('.') && !part.ends_with(".lock");
    name.len() <= REF_BYTES_MAX
        && name.split('/').all(is_component)
        && !name.starts_with('-')
        && !name.ends_with('.')
        && !name.contains("..")
        && !name.contains("@{")
        && name != "@"
        && !name.chars().any(|c| c.is_ascii_control() || matches!(c, ' ' | '~' | '^' | ':' | '?' | '*' | '[' | '\\'))
}

/// Whether both names cannot exist together, since git may keep `a/b` as a file in a folder `a`.
pub(super) fn exclude_each_other(a: &str, b: &str) -> bool {
    let is_below = |folder: &str, name: &str| name.strip_prefix(folder).is_some_and(|rest| rest.starts_with('/'));
    is_below(a, b) || is_below(b, a)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn ids_are_whole_and_not_zero() {
        let id = "4b825dc642cb6eb9a060e54bf8d69288fbee4904";
        assert_eq!(id.parse::<ObjectId>().unwrap().short(), "4b825dc642cb");
        for bad in ["", "HEAD", "4b825dc", &"0".repeat(40), &id.to_uppercase(), "--upload-pack=x"] {
            assert!(bad.parse::<ObjectId>().is_err(), "{bad}");
        }
        assert_eq!(ObjectId::parse_or_none(&"0".repeat(40)), Ok(None));
    }

    #[test]
    fn names_are_those_that_git_takes() {
        for good in ["main", "refs/heads/feature/x-1", "v1.2.3", "übung"] {
            assert!(is_ref_name(good), "{good}");
        }
        for bad in
            ["", "-x", "a..b", "a//b", "/a", "a/", ".a", "a/.b", "a.lock", "a.lock/b", "a b", "a^", "a:b", "a@{1}", "@", "a\n"]
        {
            assert!(!is_ref_name(bad), "{bad}");
        }
        assert!(exclude_each_other("refs/heads/a", "refs/heads/a/b"));
        assert!(!exclude_each_other("refs/heads/a", "refs/heads/ab"));
    }
}
