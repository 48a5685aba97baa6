//! Which pushes concern a pipeline: `paths` and `paths_ignore`. Knows nothing of git.

use globset::{GlobBuilder, GlobSet, GlobSetBuilder};

use crate::pipeline_file::read::Value;

/// Decides by the names of the changed files whether a push concerns a pipeline.
///
/// Globs are those of the globset crate, where `*` and `?` stay within a folder and `**` crosses folders. A push
/// concerns the pipeline when some changed file matches one of `paths` (every file does where there are none) and none of
/// `paths_ignore`. Whatever cannot be decided concerns it: building once too often harms less than not building.
#[derive(Debug, Clone)]
pub struct PathFilter {
    /// None: every file.
    wanted: Option<GlobSet>,
    /// None: no file.
    ignored: Option<GlobSet>,
    is_broken: bool,
}

impl PathFilter {
    /// A filter from globs. Globs that cannot be read make a filter that every push concerns.
    pub fn new(paths: &[String], paths_ignore: &[String]) -> Self {
        let (wanted, ignored) = (glob_set(paths), glob_set(paths_ignore));
        let is_broken = wanted.is_err() || ignored.is_err();
        Self { wanted: wanted.ok().flatten(), ignored: ignored.ok().flatten(), is_broken }
    }

    /// Whether a push that changed these files (relative to the repository, with `/`) concerns the pipeline.
    /// An empty list says nothing, so it does: a first push, an empty commit made to build again.
    pub fn concerns(&self, changed: &[String]) -> bool {
        if self.is_broken || changed.is_empty() {
            return true;
        }
        let is_wanted = |path: &String| self.wanted.as_ref().is_none_or(|globs| globs.is_match(path));
        let is_ignored = |path: &String| self.ignored.as_ref().is_some_and(|globs| globs.is_match(path));
        changed.iter().any(|path| is_wanted(path) && !is_ignored(path))
    }
}

fn glob(pattern: &str) -> Result<globset::Glob, globset::Error> {
    GlobBuilder::new(pattern).literal_separator(true).backslash_escape(true).build()
}

fn glob_set(patterns: &[String]) -> Result<Option<GlobSet>, globset::Error> {
    if patterns.is_empty() {
        return Ok(None);
    }
    let mut set = GlobSetBuilder::new();
    for pattern in patterns {
        set.add(glob(pattern)?);
    }
    set.build().map(Some)
}

/// A list of globs, refusing those that no file of a repository can match.
pub(super) fn read_globs(value: &Value<'_>, most: usize) -> Option<Vec<String>> {
    let mut globs = Vec::new();
    for item in value.items(r#"a list of globs such as ["services/shop/**"]"#, most)? {
        let text = item.text(r#""services/shop/**""#)?;
        let trimmed = text.trim_start_matches("./").trim_matches('/');
        if let Err(error) = glob(&text) {
            item.report("bad_glob", format!("`{text}` is not a glob: {}", error.kind()), None);
            return None;
        }
        if trimmed.len() < text.len() {
            let fixed = if text.ends_with('/') { format!("{trimmed}/**") } else { trimmed.to_owned() };
            let message = format!("`{text}` matches no file: names are relative to the repository's root");
            item.report("bad_glob", message, Some(format!("write \"{fixed}\"")));
            return None;
        }
        globs.push(text);
    }
    Some(globs)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn concerns(paths: &[&str], ignore: &[&str], changed: &[&str]) -> bool {
        let owned = |list: &[&str]| list.iter().map(|text| (*text).to_owned()).collect::<Vec<_>>();
        PathFilter::new(&owned(paths), &owned(ignore)).concerns(&owned(changed))
    }

    #[test]
    fn one_repository_feeds_many_pipelines() {
        let shop = ["services/shop/**", "libs/**"];
        assert!(concerns(&shop, &[], &["services/shop/src/main.c"]));
        assert!(concerns(&shop, &[], &["README.md", "libs/a.c"]));
        assert!(!concerns(&shop, &[], &["services/mail/main.c", "README.md"]));
        assert!(concerns(&[], &[], &["anything"]));
    }

    #[test]
    fn ignored_files_alone_do_not_build() {
        assert!(!concerns(&[], &["docs/**", "*.md"], &["docs/a/b.txt", "README.md"]));
        assert!(concerns(&[], &["docs/**", "*.md"], &["docs/a.txt", "main.c"]));
        assert!(concerns(&[], &["*.md"], &["src/NOTES.md"]), "`*` stays within a folder");
        assert!(!concerns(&["src/**"], &["**/*.md"], &["src/NOTES.md"]));
    }

    #[test]
    fn what_cannot_be_decided_builds() {
        assert!(concerns(&["a["], &[], &["b"]));
        assert!(concerns(&["src/**"], &["{"], &["b"]));
        assert!(concerns(&["src/**"], &["**"], &[]));
    }
}
