//! Checks object ids and reference names as git writes them. Knows nothing of which ones exist.

use swell_model::{ids::IdError, repository::CommitId};

/// Git writes all zeros for no object.
pub fn parse_or_none(text: &str) -> Result<Option<CommitId>, IdError> {
    let id: CommitId = text.parse()?;
    Ok(Some(id).filter(|id| id.as_str().bytes().any(|digit| digit != b'0')))
}

/// The longest reference name, in bytes: a component followed by `.lock` must fit a file name.
const REF_BYTES_MAX: usize = 240;

/// Whether git accepts this as a reference's name, or as the end of one (git-check-ref-format(1)).
pub fn is_ref_name(name: &str) -> bool {
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

/// Whether two refs cannot exist together, since git may store `a/b` as a file in a folder `a`.
pub fn exclude_each_other(a: &str, b: &str) -> bool {
    let is_below = |folder: &str, name: &str| name.strip_prefix(folder).is_some_and(|rest| rest.starts_with('/'));
    is_below(a, b) || is_below(b, a)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn all_zeros_are_no_object() {
        assert_eq!(parse_or_none(&"0".repeat(40)), Ok(None));
        assert_eq!(parse_or_none(&"0".repeat(64)), Ok(None));
        let id = "4b825dc642cb6eb9a060e54bf8d69288fbee4904";
        assert_eq!(parse_or_none(id), Ok(Some(id.parse().unwrap())));
        assert!(parse_or_none("HEAD").is_err());
    }

    #[test]
    fn reference_name_is_checked_as_git_does() {
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
