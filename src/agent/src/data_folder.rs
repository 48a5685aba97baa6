//! The agent's data folder: its lock, who the agent is, and what the target should run as it was sent last. Blocking. Must not know what
//! pipelines keep in it.

use std::{
    collections::BTreeSet,
    fs::{self, File, OpenOptions},
    os::unix::{
        ffi::OsStrExt,
        fs::{OpenOptionsExt, PermissionsExt},
    },
    path::{Path, PathBuf},
};

use nix::{
    errno::Errno,
    fcntl::{Flock, FlockArg},
};
use serde::{Deserialize, Serialize};

use super::options::AgentError;
use swell_model::{
    digest::Digest,
    ids::{AgentId, PipelineName},
    rollout::assignment::DesiredTarget,
};
use swell_system::{
    checksummed_file::{self, Error, Magic},
    files::failed,
};

/// What the agent's own files begin with.
pub(super) const MAGIC: &Magic = b"SWELLAG1";

/// Who an agent is to its servers.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Identity {
    /// Stays as long as the data folder.
    pub id: AgentId,
    /// How often the agent was started with this id, from 1.
    pub incarnation: u64,
}

/// A data folder that no other agent uses while this lives.
pub(super) struct DataFolder {
    /// Absolute, since links and shims name it whatever the working directory is later.
    pub path: PathBuf,
    _lock: Flock<File>,
}

impl DataFolder {
    /// Makes the folder where it is missing, and locks it.
    ///
    /// # Errors
    /// When it cannot be made or another agent has it.
    pub fn open(path: &Path) -> Result<Self, AgentError> {
        fs::create_dir_all(path).map_err(failed("create", path))?;
        let path = path.canonicalize().map_err(failed("resolve", path))?;
        for folder in ["current", "pipelines"].map(|name| path.join(name)) {
            make_open_folder(&folder).map_err(failed("create", &folder))?;
        }
        let file = path.join("lock");
        let opened = OpenOptions::new().create(true).append(true).mode(0o600).open(&file).map_err(failed("open", &file))?;
        let lock = Flock::lock(opened, FlockArg::LockExclusiveNonblock).map_err(|(_, errno)| match errno {
            Errno::EWOULDBLOCK => AgentError::Locked(path.clone()),
            errno => failed("lock", &file)(errno.into()).into(),
        })?;
        Ok(Self { path, _lock: lock })
    }

    /// A few characters that stand for the folder.
    pub fn tag(&self) -> String {
        Digest::of(self.path.as_os_str().as_bytes()).short()
    }

    /// Begins another incarnation, which is on disk when this returns. An identity that cannot be read or written is replaced by a new
    /// one: the number of an incarnation is never used twice with one id.
    ///
    /// # Errors
    /// When the system has no random bytes.
    pub fn begin_incarnation(&self) -> Result<Identity, AgentError> {
        let path = self.path.join("identity");
        let identity = match checksummed_file::load::<Identity>(&path, MAGIC) {
            Ok(Some(last)) => Identity { incarnation: last.incarnation + 1, ..last },
            Ok(None) => new_identity()?,
            Err(error) => {
                tracing::warn!(%error, "failed to load the agent's identity, taking a new one");
                new_identity()?
            }
        };
        match checksummed_file::save(&path, MAGIC, &identity) {
            Ok(()) => Ok(identity),
            // A full disk must not keep an agent away; servers take it for another one until it can be saved.
            Err(error) => {
                tracing::warn!(%error, "failed to save the agent's identity, using one for this run alone");
                new_identity()
            }
        }
    }

    /// What the target should run, as it was sent last; `None` when nothing was, or when that is damaged.
    ///
    /// # Errors
    /// When it cannot be read.
    pub fn load_desired(&self) -> Result<Option<DesiredTarget>, AgentError> {
        match checksummed_file::load(&self.path.join("desired"), MAGIC) {
            Ok(desired) => Ok(desired),
            Err(error @ Error::Damaged { .. }) => {
                tracing::error!(%error, "desired state is damaged, keeping instances running until a server sends it");
                Ok(None)
            }
            Err(error) => Err(error.into()),
        }
    }

    /// The pipelines of which something is recorded.
    ///
    /// # Errors
    /// When the folder cannot be read.
    pub fn pipelines(&self) -> Result<BTreeSet<PipelineName>, AgentError> {
        let folder = self.path.join("pipelines");
        let entries = fs::read_dir(&folder).map_err(failed("read", &folder))?;
        Ok(entries.flatten().filter_map(|entry| entry.file_name().to_str()?.parse().ok()).collect())
    }
}

/// Saves what the target should run in the data folder `path`.
///
/// # Errors
/// When it cannot be written.
pub(super) fn save_desired(path: &Path, desired: &DesiredTarget) -> Result<(), Error> {
    checksummed_file::save(&path.join("desired"), MAGIC, desired)
}

fn new_identity() -> Result<Identity, AgentError> {
    let mut bytes = [0; 16];
    getrandom::fill(&mut bytes).map_err(AgentError::Random)?;
    Ok(Identity { id: AgentId(hex::encode(bytes)), incarnation: 1 })
}

/// A folder through which services' users can pass, whatever the umask.
pub(super) fn make_open_folder(path: &Path) -> std::io::Result<()> {
    fs::create_dir_all(path)?;
    fs::set_permissions(path, fs::Permissions::from_mode(0o755))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn begin(folder: &Path) -> Identity {
        DataFolder::open(folder).unwrap().begin_incarnation().unwrap()
    }

    #[test]
    fn restarted_agent_keeps_its_id_and_counts_incarnations() {
        let root = tempfile::tempdir().unwrap();
        let (one, two) = (root.path().join("one"), root.path().join("two"));
        let first = begin(&one);
        assert_eq!((first.id.0.len(), first.incarnation), (32, 1));
        assert_eq!(begin(&one), Identity { incarnation: 2, ..first.clone() });
        assert_eq!(begin(&one), Identity { incarnation: 3, ..first.clone() });
        assert_ne!(begin(&two).id, first.id);
    }

    #[test]
    fn damaged_identity_is_replaced_by_a_new_one() {
        let root = tempfile::tempdir().unwrap();
        let first = begin(root.path());
        fs::write(root.path().join("identity"), "damaged").unwrap();
        let second = begin(root.path());
        assert_ne!(second.id, first.id);
        assert_eq!(begin(root.path()), Identity { incarnation: 2, ..second });
    }

    #[test]
    fn identity_that_cannot_be_saved_is_never_used_twice() {
        let root = tempfile::tempdir().unwrap();
        let first = begin(root.path());
        // In place of the file that is written first stands a folder.
        fs::create_dir(root.path().join("identity.tmp")).unwrap();
        let (second, third) = (begin(root.path()), begin(root.path()));
        assert!(first.id != second.id && second.id != third.id);
    }

    #[test]
    fn second_agent_is_refused() {
        let root = tempfile::tempdir().unwrap();
        let _first = DataFolder::open(root.path()).unwrap();
        assert!(matches!(DataFolder::open(root.path()), Err(AgentError::Locked(_))));
    }
}
