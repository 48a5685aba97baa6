//! Ids and reference names as git writes them, checked. Does not know which ones exist.

use swell_model::{ids::IdError, repository::CommitId};

/// Git writes all zeros for "there is none".
pub fn parse_or_none(text: &str) -> Result<Option<CommitId>, IdError> {
    let id: CommitId = text.parse()?;
    Ok(Some(id).filter(|id| id.as_str().bytes().any(|digit| digit != b'0')))
}

/// The longest reference name that is taken, in bytes: a component must fit a file name with `.lock` behind it.
const REF_BYTES_MAX: usize = 240;

/// Whether git would take this as a reference's name, or as the end of one (git-check-ref-format(1)).
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

/// Whether both names cannot exist together, since git may keep `a/b` as a file in a folder `a`.
pub fn exclude_each_other(a: &str, b: &str) -> bool {
    let is_below = |folder: &str, name: &str| name.strip_prefix(folder).is_some_and(|rest| rest.starts_with('/'));
    is_below(a, b) || is_below(b, a)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn all_zeros_mean_none() {
        assert_eq!(parse_or_none(&"0".repeat(40)), Ok(None));
        assert_eq!(parse_or_none(&"0".repeat(64)), Ok(None));
        let id = "4b825dc642cb6eb9a060e54bf8d69288fbee4904";
        assert_eq!(parse_or_none(id), Ok(Some(id.parse().unwrap())));
        assert!(parse_or_none("HEAD").is_err());
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
