//! Removes what a killed git leaves in a repository: locks, unfinished packs, pushes that were not accepted. Nothing else removes them.
//! Knows nothing of other processes: the caller makes sure that none uses the repository.

use std::{
    io,
    path::{Path, PathBuf},
};

use crate::error::GitError;

/// Removes the lock files of refs and of the repository, on which every later change would fail.
pub async fn remove_locks(git_dir: &Path) {
    let git_dir = git_dir.to_owned();
    aside(move || {
        let is_lock = |path: &PathBuf| path.extension().is_some_and(|extension| extension == "lock");
        let refs = walkdir::WalkDir::new(git_dir.join("refs")).into_iter().flatten().map(|entry| entry.into_path());
        below(&git_dir).chain(refs).filter(is_lock).for_each(|lock| remove(&lock));
    })
    .await;
}

/// Removes the objects of pushes that were not accepted, which may be gigabytes: git leaves them when it is asked to end.
pub async fn remove_pushes(git_dir: &Path) {
    let objects = git_dir.join("objects");
    aside(move || below(&objects).filter(|path| begins(path, &["tmp_objdir-"])).for_each(|push| remove(&push))).await;
}

/// Removes unfinished packs.
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
        tracing::warn!(%error, "failed to look for leftovers of git");
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
        Ok(()) => tracing::warn!(path = %path.display(), "removed leftovers of a killed git command"),
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => tracing::warn!(%error, path = %path.display(), "failed to remove leftovers of a git command"),
    }
}
