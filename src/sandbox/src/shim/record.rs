//! What a shim leaves on disk: who it is and how it ended. Atomic, durable, and safe against reused process ids.

use std::{
    fs::{self, OpenOptions},
    io::{self, Write},
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
};

use nix::unistd::Pid;
use serde::{Deserialize, Serialize, de::DeserializeOwned};

use super::spec::{SPEC_FILE, ShimSpec};
use swell_model::units::{Millis, Timestamp};
use swell_system::files::{Survives, beside, replace};

/// The exit record's name in a shim's folder.
pub const EXIT_FILE: &str = "exit.json";
/// What is reserved for it, in bytes. A larger one is written where there is room.
const EXIT_BYTES: usize = 4096;
/// The name of the file that says who the shim is.
pub const SHIM_PID_FILE: &str = "shim.pid";
/// The name of the file that says who the command is.
pub const CHILD_PID_FILE: &str = "child.pid";

/// Why a record could not be kept or read.
#[derive(Debug, thiserror::Error)]
pub enum RecordError {
    /// The file system said no.
    #[error("{what} {}", path.display())]
    Io {
        /// A verb for the message, such as `reading`.
        what: &'static str,
        /// On which file.
        path: PathBuf,
        source: io::Error,
    },
    /// It is not what was written: the file was damaged.
    #[error("{} is damaged; remove the folder after `reap`", path.display())]
    Damaged { path: PathBuf, source: serde_json::Error },
}

/// A process, told apart from a later one with the same id by when it started (clock ticks since boot, field 22 of
/// `/proc/PID/stat`, proc(5)) and by the boot.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ProcessRef {
    /// Process id on the machine.
    pub pid: i32,
    /// When it started, in clock ticks since boot.
    pub start_ticks: u64,
    /// Identifies the boot: the content of `/proc/sys/kernel/random/boot_id`.
    pub boot_id: String,
}

impl ProcessRef {
    /// The process with this id, if it lives. A zombie does not.
    pub fn of(pid: Pid) -> Option<Self> {
        let (state, start_ticks) = stat(pid.as_raw())?;
        let boot_id = boot_id();
        (state != 'Z' && state != 'X').then_some(Self { pid: pid.as_raw(), start_ticks, boot_id })
    }

    /// Whether exactly this process still lives.
    pub fn is_alive(&self) -> bool {
        Self::of(Pid::from_raw(self.pid)).as_ref() == Some(self)
    }
}

/// What tells this boot of the machine from any other.
pub fn boot_id() -> String {
    fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default().trim().to_owned()
}

/// State and start time. The name, in parentheses, may contain anything: fields are counted from the last `)`.
fn stat(pid: i32) -> Option<(char, u64)> {
    let text = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let mut fields = text.rsplit_once(')')?.1.split_whitespace();
    let state = fields.next()?.chars().next()?;
    Some((state, fields.nth(18)?.parse().ok()?))
}

/// The end of a command, as its shim recorded it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ExitRecord {
    /// Code, signal, or why it never ran.
    pub outcome: Outcome,
    /// When the command was started, by the machine's clock.
    pub started_at: Timestamp,
    /// When it had ended, by the same clock.
    pub ended_at: Timestamp,
    /// How long it ran, by a clock that nobody sets.
    pub took: Millis,
    /// The kernel killed something in it because the memory limit was reached.
    pub oom_killed: bool,
    /// It was killed because its time limit was reached.
    pub timed_out: bool,
    /// Somebody asked it to stop.
    pub stopped: bool,
    /// Most memory at once, in bytes, where it could be measured.
    pub memory_peak_bytes: Option<u64>,
    /// Processor time, user and system, where it could be measured.
    pub cpu_time: Option<Millis>,
    /// Bytes that it printed.
    pub output_bytes: u64,
    /// Those of them that were not kept.
    pub truncated_bytes: u64,
}

/// The end of a command.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Outcome {
    /// It ended by itself with this code.
    Exited(i32),
    /// A signal ended it: its number.
    Signaled(i32),
    /// The command could not be started.
    Failed(Failure),
}

/// Why a command could not be started.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Failure {
    /// The operation that failed.
    pub what: String,
    /// The cause, such as the system's message.
    pub why: String,
    /// What a person can do about it.
    pub way_out: String,
}

impl ExitRecord {
    /// The record of a command that never ran.
    pub fn not_started(failure: Failure) -> Self {
        let now = now();
        Self {
            outcome: Outcome::Failed(failure),
            started_at: now,
            ended_at: now,
            took: Millis(0),
            oom_killed: false,
            timed_out: false,
            stopped: false,
            memory_peak_bytes: None,
            cpu_time: None,
            output_bytes: 0,
            truncated_bytes: 0,
        }
    }

    /// Whether it ended with code 0, unasked and in time.
    pub fn succeeded(&self) -> bool {
        self.outcome == Outcome::Exited(0) && !self.timed_out
    }

    pub(super) fn write(&self, dir: &Path) -> Result<(), RecordError> {
        write_json(&dir.join(EXIT_FILE), self, Survives::PowerCuts)
    }
}

/// Takes the room on the disk that an exit record needs, so that a command which fills the disk is still told from one that vanished.
pub(super) fn reserve(dir: &Path) -> Result<(), RecordError> {
    let path = beside(&dir.join(EXIT_FILE));
    let failed = |source| RecordError::Io { what: "writing", path: path.clone(), source };
    let file = OpenOptions::new().write(true).create(true).truncate(false).mode(0o600).open(&path);
    file.and_then(|mut file| file.write_all(&[b' '; EXIT_BYTES])).map_err(failed)
}

/// The machine's clock. This is not a pure module: the shim is where time enters.
pub(super) fn now() -> Timestamp {
    Timestamp(swell_system::clock::unix_ms())
}

/// Reads the exit record in `dir`; `None` where there is none yet.
pub fn read_exit(dir: &Path) -> Result<Option<ExitRecord>, RecordError> {
    read_json(&dir.join(EXIT_FILE))
}

/// Reads `shim.pid` or `child.pid` in `dir`; `None` where there is none yet.
pub fn read_process(dir: &Path, file: &str) -> Result<Option<ProcessRef>, RecordError> {
    match read_json(&dir.join(file)) {
        // Not synced when written: a power cut may have emptied it, and it surely ended the process.
        Err(RecordError::Damaged { .. }) => Ok(Some(ProcessRef { pid: 0, start_ticks: 0, boot_id: String::new() })),
        result => result,
    }
}

/// Writes what a shim in `dir` is to run, readable by its owner only.
pub fn write_spec(dir: &Path, spec: &ShimSpec) -> Result<(), RecordError> {
    write_json(&dir.join(SPEC_FILE), spec, Survives::PowerCuts)
}

pub(super) fn write_process(path: &Path, pid: Pid) -> Result<(), RecordError> {
    // Of an own child that has ended already a zombie is left: its start time still names it.
    let start_ticks = stat(pid.as_raw()).map_or(0, |(_, ticks)| ticks);
    // Of no meaning after a power cut: not worth two fsyncs on the way to a build's first command.
    write_json(path, &ProcessRef { pid: pid.as_raw(), start_ticks, boot_id: boot_id() }, Survives::Crashes)
}

fn read_json<T: DeserializeOwned>(path: &Path) -> Result<Option<T>, RecordError> {
    match fs::read(path) {
        Ok(bytes) => {
            serde_json::from_slice(&bytes).map(Some).map_err(|source| RecordError::Damaged { path: path.to_owned(), source })
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(source) => Err(RecordError::Io { what: "reading", path: path.to_owned(), source }),
    }
}

fn write_json<T: Serialize>(path: &Path, value: &T, survives: Survives) -> Result<(), RecordError> {
    let written = serde_json::to_vec_pretty(value).map_err(io::Error::from).and_then(|bytes| replace(path, &bytes, survives));
    written.map_err(|source| RecordError::Io { what: "writing", path: path.to_owned(), source })
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn reused_process_id_is_another_process() {
        let own = ProcessRef::of(nix::unistd::getpid()).unwrap();
        assert!(own.is_alive());
        assert!(!ProcessRef { start_ticks: own.start_ticks + 1, ..own.clone() }.is_alive());
        assert!(!ProcessRef { boot_id: "another boot".into(), ..own }.is_alive());
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join(SHIM_PID_FILE), "").unwrap();
        assert!(!read_process(dir.path(), SHIM_PID_FILE).unwrap().unwrap().is_alive());
    }

    #[test]
    fn exit_record_is_read_back_and_damaged_one_is_an_error() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(read_exit(dir.path()).unwrap(), None);
        let failure = Failure { what: "a".into(), why: "b".into(), way_out: "c".into() };
        let record = ExitRecord { cpu_time: Some(Millis(1234)), ..ExitRecord::not_started(failure) };
        record.write(dir.path()).unwrap();
        assert_eq!(read_exit(dir.path()).unwrap(), Some(record));
        fs::write(dir.path().join(EXIT_FILE), "{").unwrap();
        assert!(matches!(read_exit(dir.path()), Err(RecordError::Damaged { .. })));
    }
}
