//! What a git that was killed leaves in a repository, and nothing else ever removes: locks, packs that were not finished, pushes that
//! were not accepted. Knows nothing of who may be at work there: the caller sees to it that nobody is.

use std::{
    io,
    path::{Path, PathBuf},
};

use crate::error::GitError;

/// Removes the lock files of refs and of the repository: every later change would fail on them.
pub async fn remove_locks(git_dir: &Path) {
    let git_dir = git_dir.to_owned();
    aside(move || {
        let is_lock = |path: &PathBuf| path.extension().is_some_and(|extension| extension == "lock");
        let refs = walkdir::WalkDir::new(git_dir.join("refs")).into_iter().flatten().map(|entry| entry.into_path());
        below(&git_dir).chain(refs).filter(is_lock).for_each(|lock| remove(&lock));
    })
    .await;
}

/// Removes what pushes brought that were not accepted, gigabytes each: git does not when it is told to end.
pub async fn remove_pushes(git_dir: &Path) {
    let objects = git_dir.join("objects");
    aside(move || below(&objects).filter(|path| begins(path, &["tmp_objdir-"])).for_each(|push| remove(&push))).await;
}

/// Removes packs that were not finished.
pub async fn remove_half_packs(git_dir: &Path) {
    let packs = git_dir.join("objects/pack");
    aside(move || below(&packs).filter(|path| begins(path, &["tmp_", ".tmp-"])).for_each(|half| remove(&half))).await;
}

/// All of these, in every repository below `root`. Errors: the disk.
pub async fn remove_all(root: &Path) -> Result<(), GitError> {
    let mut entries = tokio::fs::read_dir(root).await.map_err(GitError::io("list", root))?;
    while let Some(entry) = entries.next_entry().await.map_err(GitError::io("list", root))? {
        let git_dir = entry.path();
        if git_dir.extension().is_some_and(|extension| extension == "git") {
            remove_locks(&git_dir).await;
            remove_pushes(&git_dir).await;
            remove_half_packs(&git_dir).await;
        }
    }
    Ok(())
}

async fn aside(work: impl FnOnce() + Send + 'static) {
    if let Err(error) = tokio::task::spawn_blocking(work).await {
        tracing::warn!(%error, "looking for what git left was broken off");
    }
}

fn below(folder: &Path) -> impl Iterator<Item = PathBuf> + use<> {
    std::fs::read_dir(folder).into_iter().flatten().flatten().map(|entry| entry.path())
}

fn begins(path: &Path, prefixes: &[&str]) -> bool {
    let name = path.file_name().unwrap_or_default().as_encoded_bytes();
    prefixes.iter().any(|prefix| name.starts_with(prefix.as_bytes()))
}

fn remove(path: &Path) {
    let removed = match path.symlink_metadata() {
        Ok(metadata) if metadata.is_dir() => std::fs::remove_dir_all(path),
        Ok(_) => std::fs::remove_file(path),
        Err(error) => Err(error),
    };
    match removed {
        Ok(()) => tracing::warn!(path = %path.display(), "a git command was killed here; what it left is removed"),
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => tracing::warn!(%error, path = %path.display(), "what a git command left cannot be removed"),
    }
}
