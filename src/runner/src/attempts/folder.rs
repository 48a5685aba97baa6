//! What an attempt leaves on disk, so that whoever comes after a crash goes on where it stood. Blocking; every write is whole or not
//! at all, also through a power cut. Must not know how phases run.
//!
//! | in `attempts/b12-1/` | meaning |
//! |---|---|
//! | `record` | [`Record`]: what has been done so far (MessagePack, since sizes must be exact) |
//! | `end` | [`Ending`]: how it ended, before state is told; from then on nothing but telling is left, and the log is complete |
//! | `workspace/`, `out/`, `home/` | the checkout, `$OUT`, and `$HOME` of phases that are not isolated |
//! | `log/` | see `log` |
//! | `*.part` | the archive and the log on their way into the content store |

use std::{
    fs, io,
    os::unix::fs::DirBuilderExt,
    path::{Path, PathBuf},
};

use serde::{Deserialize, Serialize, de::DeserializeOwned};

use super::AttemptKey;
use swell_model::{
    build::{AttemptEnd, Build, Phase, PhaseRecord},
    command::StoredArtifact,
    digest::Digest,
    ids::{BuildId, PipelineName},
    pipeline_file::PipelineFile,
    repository::CommitId,
    units::Millis,
};
use swell_sandbox::shim::boot_id;
use swell_system::files::{FileError, Survives, failed, replace};

/// Why the folder of an attempt could not be used.
#[derive(Debug, thiserror::Error)]
pub enum FolderError {
    /// The disk did not do as told.
    #[error("{0}; check the owner, mode and free space of the runner's data folder")]
    File(#[from] FileError),
    /// It is not what was written.
    #[error("{} is damaged: {why}", path.display())]
    Damaged {
        path: PathBuf,
        /// The first mismatch that was found.
        why: String,
    },
}

/// The checkout, once it is whole.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct CheckedOut {
    /// The time of the commit, in seconds since 1970; phases see it as `SOURCE_DATE_EPOCH`.
    pub committed_at_s: u64,
    /// The pipeline file of the commit.
    pub file: PipelineFile,
}

/// A phase whose shim was, or is about to be, started.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Running {
    pub phase: Phase,
    /// The shim's folder below `log/`.
    pub segment: String,
}

/// What has been done so far.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct Record {
    pub build: BuildId,
    pub attempt: u32,
    pub pipeline: PipelineName,
    pub commit: CommitId,
    /// Files of phases that ended before the machine restarted may never have reached the disk: such an attempt cannot go on.
    pub boot_id: String,
    /// Phases that began; those that ended did well or were skipped, except the last.
    pub phases: Vec<PhaseRecord>,
    /// The time that the phases which ended took.
    pub spent: Millis,
    pub checkout: Option<CheckedOut>,
    pub running: Option<Running>,
    /// The artifact, once it and its manifest are in the content store.
    pub artifact: Option<StoredArtifact>,
}

impl Record {
    pub fn new(build: &Build, attempt: u32) -> Self {
        Self {
            build: build.id,
            attempt,
            pipeline: build.pipeline.clone(),
            commit: build.commit.clone(),
            boot_id: boot_id(),
            phases: Vec::new(),
            spent: Millis(0),
            checkout: None,
            running: None,
            artifact: None,
        }
    }

    /// Whether it is of this attempt, and not of one with the same number in a cluster that was made anew.
    pub fn is_of(&self, build: &Build, attempt: u32) -> bool {
        (self.build, self.attempt, &self.pipeline, &self.commit) == (build.id, attempt, &build.pipeline, &build.commit)
    }

    pub fn phase(&self, phase: Phase) -> Option<&PhaseRecord> {
        self.phases.iter().find(|record| record.phase == phase)
    }

    /// Keeps how a phase stands, in place of what was known of it.
    pub fn set_phase(&mut self, phase: PhaseRecord) {
        match self.phases.iter_mut().find(|kept| kept.phase == phase.phase) {
            Some(kept) => *kept = phase,
            None => self.phases.push(phase),
        }
    }

    pub fn has_ended(&self, phase: Phase) -> bool {
        self.phase(phase).is_some_and(|record| record.ended_at.is_some())
    }
}

/// How an attempt ended, as state is told.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) enum Ending {
    Succeeded { artifact: StoredArtifact, file: Box<PipelineFile>, log: Option<Digest> },
    Ended { end: AttemptEnd, log: Option<Digest> },
}

/// The name of an attempt's folder: `b12-1`.
pub(super) fn name_of((build, attempt): AttemptKey) -> String {
    format!("{build}-{attempt}")
}

/// The attempt whose folder has this name.
pub(super) fn key_of(name: &str) -> Option<AttemptKey> {
    let (build, attempt) = name.rsplit_once('-')?;
    let key = (build.parse().ok()?, attempt.parse().ok()?);
    (name_of(key) == name).then_some(key)
}

/// One attempt's folder.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Folder {
    path: PathBuf,
}

impl Folder {
    /// The folder of `key` below `attempts`; creates nothing.
    pub fn of(attempts: &Path, key: AttemptKey) -> Self {
        Self { path: attempts.join(name_of(key)) }
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    pub fn workspace(&self) -> PathBuf {
        self.path.join("workspace")
    }

    pub fn out(&self) -> PathBuf {
        self.path.join("out")
    }

    pub fn home(&self) -> PathBuf {
        self.path.join("home")
    }

    pub fn log(&self) -> PathBuf {
        self.path.join("log")
    }

    pub fn part(&self, name: &str) -> PathBuf {
        self.path.join(format!("{name}.part"))
    }

    fn record_path(&self) -> PathBuf {
        self.path.join("record")
    }

    fn end_path(&self) -> PathBuf {
        self.path.join("end")
    }

    pub fn exists(&self) -> bool {
        self.path.is_dir()
    }

    /// Whether the attempt has ended, so that its log is complete.
    pub fn has_ended(&self) -> bool {
        self.end_path().exists()
    }

    pub fn create(&self) -> Result<(), FolderError> {
        make_dir(&self.path)?;
        make_dir(&self.log())
    }

    /// Empty folders for a checkout: what an interrupted one left is removed.
    pub fn clear_workspace(&self) -> Result<(), FolderError> {
        for dir in [self.workspace(), self.out(), self.home()] {
            remove_dir(&dir)?;
            make_dir(&dir)?;
        }
        Ok(())
    }

    /// The record; none before the first was written.
    pub fn read_record(&self) -> Result<Option<Record>, FolderError> {
        read(&self.record_path())
    }

    pub fn write_record(&self, record: &Record) -> Result<(), FolderError> {
        write(&self.record_path(), record)
    }

    pub fn read_end(&self) -> Result<Option<Ending>, FolderError> {
        read(&self.end_path())
    }

    pub fn write_end(&self, end: &Ending) -> Result<(), FolderError> {
        write(&self.end_path(), end)
    }

    /// Removes everything. Whatever runs in it must have been ended before. The name disappears first, so that half a folder is never
    /// taken for an attempt; [`remove_leftovers`] ends what a crash interrupted here.
    pub fn remove(&self) -> Result<(), FolderError> {
        let parent = self.path.parent().unwrap_or(Path::new("/"));
        let name = self.path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let trash = parent.join(format!("{TRASH_PREFIX}{name}"));
        remove_dir(&trash)?;
        match fs::rename(&self.path, &trash) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            Err(error) => Err(failed("set aside", &self.path)(error).into()),
            Ok(()) => {
                swell_system::crash::point("attempt::discarding");
                remove_dir(&trash)
            }
        }
    }
}

const TRASH_PREFIX: &str = ".removed-";

/// Removes folders whose removal was interrupted.
pub(super) fn remove_leftovers(attempts: &Path) -> Result<(), FolderError> {
    for entry in fs::read_dir(attempts).map_err(failed("list", attempts))? {
        let entry = entry.map_err(failed("list", attempts))?;
        if entry.file_name().to_string_lossy().starts_with(TRASH_PREFIX) {
            remove_dir(&entry.path())?;
        }
    }
    Ok(())
}

pub(super) fn make_dir(path: &Path) -> Result<(), FolderError> {
    Ok(fs::DirBuilder::new().recursive(true).mode(0o700).create(path).map_err(failed("create", path))?)
}

pub(super) fn remove_dir(path: &Path) -> Result<(), FolderError> {
    match fs::remove_dir_all(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(failed("remove", path)(error).into()),
        _ => Ok(()),
    }
}

fn read<T: DeserializeOwned>(path: &Path) -> Result<Option<T>, FolderError> {
    let bytes = match fs::read(path) {
        Ok(bytes) => bytes,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(failed("read", path)(error).into()),
    };
    let damaged = |error: rmp_serde::decode::Error| FolderError::Damaged { path: path.to_owned(), why: error.to_string() };
    rmp_serde::from_slice(&bytes).map(Some).map_err(damaged)
}

fn write<T: Serialize>(path: &Path, value: &T) -> Result<(), FolderError> {
    let damaged = |error: rmp_serde::encode::Error| FolderError::Damaged { path: path.to_owned(), why: error.to_string() };
    let bytes = rmp_serde::to_vec_named(value).map_err(damaged)?;
    Ok(replace(path, &bytes, Survives::PowerCuts).map_err(failed("write", path))?)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use swell_model::units::{ByteSize, Timestamp};

    #[test]
    fn folder_name_leads_back_to_its_attempt() {
        assert_eq!(key_of("b12-3"), Some((BuildId(12), 3)));
        for other in ["b12", "b12-", "b12-03", "12-3", ".removed-b12-3", "b12-3x"] {
            assert_eq!(key_of(other), None, "{other}");
        }
    }

    #[test]
    fn record_is_read_back_exactly_and_damaged_one_is_an_error() {
        let dir = tempfile::tempdir().unwrap();
        let folder = Folder::of(dir.path(), (BuildId(1), 1));
        folder.create().unwrap();
        assert!(folder.read_record().unwrap().is_none());
        let artifact = StoredArtifact {
            digest: Digest::of(b"a"),
            size: ByteSize((3 << 20) + 1),
            unpacked_size: ByteSize((7 << 20) + 3),
            manifest: Digest::of(b"m"),
        };
        let file = PipelineFile::parse("[build]\nmemory = \"1048577KiB\"\n[package]\nrun = \"true\"\n").unwrap();
        let phase = PhaseRecord {
            phase: Phase::Build,
            started_at: Timestamp(5),
            ended_at: None,
            skipped: false,
            exit_code: Some(2),
            memory_peak: Some(ByteSize(1_234_567)),
            cpu_time: Some(Millis(61_001)),
        };
        let record = Record {
            build: BuildId(1),
            attempt: 1,
            pipeline: "shop".parse().unwrap(),
            commit: "1".repeat(40).parse().unwrap(),
            boot_id: boot_id(),
            phases: vec![phase],
            spent: Millis(17),
            checkout: Some(CheckedOut { committed_at_s: 99, file: file.clone() }),
            running: Some(Running { phase: Phase::Build, segment: "002-build".into() }),
            artifact: Some(artifact.clone()),
        };
        folder.write_record(&record).unwrap();
        let kept = folder.read_record().unwrap().unwrap();
        assert_eq!((kept.artifact, kept.phases, kept.running), (record.artifact, record.phases, record.running));
        assert_eq!(kept.checkout.unwrap().file.build, file.build);
        folder.write_end(&Ending::Succeeded { artifact, file: Box::new(file), log: None }).unwrap();
        assert!(matches!(folder.read_end().unwrap(), Some(Ending::Succeeded { .. })) && folder.has_ended());
        fs::write(folder.record_path(), "x").unwrap();
        assert!(matches!(folder.read_record(), Err(FolderError::Damaged { .. })));
        folder.remove().unwrap();
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
    }
}
