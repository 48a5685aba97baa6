//! Small helpers for work on the disk. Must not know what the files mean.

use std::{fs, io, path::Path};

use super::pipeline::StepError;
use swell_sandbox::runtime;
use swell_system::files::failed;

/// Runs `work` where blocking is allowed.
pub(super) async fn blocking<T, E>(work: impl FnOnce() -> Result<T, E> + Send + 'static) -> Result<T, StepError>
where
    T: Send + 'static,
    E: Send + 'static,
    StepError: From<E>,
{
    Ok(tokio::task::spawn_blocking(work).await.map_err(|_| StepError::Stopping)??)
}

/// Ends whatever runs under the shim in `dir` and removes the folder.
pub(super) async fn remove_shim(dir: &Path) -> Result<(), StepError> {
    runtime::clear(dir).await?;
    let dir = dir.to_owned();
    blocking(move || ignore_missing(fs::remove_dir_all(&dir)).map_err(failed("remove", &dir))).await
}

/// Takes a file that is not there for one that was removed.
pub(super) fn ignore_missing(result: io::Result<()>) -> io::Result<()> {
    match result {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        result => result,
    }
}

/// Names of what is in `folder`; none where it is missing.
pub(super) fn names_in(folder: &Path) -> Result<Vec<String>, StepError> {
    let entries = match fs::read_dir(folder) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        entries => entries.map_err(failed("read", folder))?,
    };
    Ok(entries.flatten().filter_map(|entry| entry.file_name().into_string().ok()).collect())
}
