//! Snapshots as folders: a checkpoint of the database in `db/`, and a manifest with the size and SHA-256 of each of its files.
//! A snapshot counts once it was renamed to its log index. Knows nothing of how it is sent between servers.

use std::{
    fs::{self, File},
    io,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
    sync::atomic::{AtomicU64, Ordering},
};

use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

use super::{
    StorageError, files,
    state::{Applied, StateDb, applied_of_checkpoint},
};
use swell_model::digest::Digest;

const DATABASE: &str = "db";
const MANIFEST: &str = "manifest.json";

/// The version of the manifest's format.
const FORMAT: u32 = 1;

/// Snapshots kept: another server may still be fetching the one before the newest.
const KEPT: usize = 2;

/// The files of a snapshot.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Manifest {
    /// Version of this format.
    pub format: u32,
    /// Index of the last log entry that the snapshot covers.
    pub applied: u64,
    pub files: Vec<FileRecord>,
}

/// One file of a snapshot.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FileRecord {
    /// Without a folder.
    pub name: String,
    /// The file's length, in bytes.
    pub size: u64,
    pub sha256: Digest,
}

/// A snapshot in its folder.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SnapshotDir {
    path: PathBuf,
    manifest: Manifest,
}

impl SnapshotDir {
    /// The snapshot in `path`. Reads its manifest, not its files.
    ///
    /// # Errors
    /// When there is no manifest, or it is damaged or newer than this program.
    pub fn open(path: &Path) -> Result<Self, StorageError> {
        let file = path.join(MANIFEST);
        let text = fs::read(&file).map_err(|error| StorageError::io("read", &file, &error))?;
        let manifest: Manifest =
            serde_json::from_slice(&text).map_err(|error| StorageError::damaged(&file, error.to_string()))?;
        let outside = manifest.files.iter().find(|file| Path::new(&file.name).file_name() != Some(file.name.as_ref()));
        match outside {
            _ if manifest.format != FORMAT => Err(StorageError::damaged(&file, format!("unknown format {}", manifest.format))),
            Some(outside) => Err(StorageError::damaged(&file, format!("`{}` is not the name of a file", outside.name))),
            None => Ok(Self { path: path.to_owned(), manifest }),
        }
    }

    /// Returns the snapshot's folder.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The list of its files.
    pub fn manifest(&self) -> &Manifest {
        &self.manifest
    }

    /// Where the file of the database with this name is.
    pub fn file(&self, name: &str) -> PathBuf {
        self.path.join(DATABASE).join(name)
    }

    /// How far its state has come, read from the database itself.
    ///
    /// # Errors
    /// When that cannot be opened, or the manifest says otherwise.
    pub fn applied(&self) -> Result<Applied, StorageError> {
        let applied = applied_of_checkpoint(&self.path.join(DATABASE))?.unwrap_or_default();
        if applied.index != self.manifest.applied {
            let cause = format!("its state is at {}, its manifest says {}", applied.index, self.manifest.applied);
            return Err(StorageError::damaged(&self.path, cause));
        }
        Ok(applied)
    }

    /// Reads every file and compares it with the manifest. For a snapshot that came over the network.
    ///
    /// # Errors
    /// [`StorageError::Damaged`] with the name of the first file that differs.
    pub fn verify(&self) -> Result<(), StorageError> {
        for record in &self.manifest.files {
            let path = self.file(&record.name);
            let (size, sha256) = hash(&path)?;
            if size != record.size || sha256 != record.sha256 {
                let cause = format!("it has {size} bytes and {sha256}, not {} and {}", record.size, record.sha256);
                return Err(StorageError::damaged(&path, cause));
            }
        }
        Ok(())
    }

    /// Compares the size of every file with the manifest.
    fn verify_sizes(&self) -> Result<(), StorageError> {
        for record in &self.manifest.files {
            let path = self.file(&record.name);
            let size = fs::metadata(&path).map_err(|error| StorageError::io("read", &path, &error))?.len();
            if size != record.size {
                return Err(StorageError::damaged(&path, format!("it has {size} bytes, not {}", record.size)));
            }
        }
        Ok(())
    }

    /// Copies the database to `to`, which must not exist. Files that never change again are shared.
    pub(super) fn copy_database(&self, to: &Path) -> Result<(), StorageError> {
        self.verify_sizes()?;
        files::create_dir(to)?;
        for record in &self.manifest.files {
            let (from, to) = (self.file(&record.name), to.join(&record.name));
            if never_changes(&record.name) {
                files::link(&from, &to)?;
            } else {
                files::copy(&from, &to)?;
            }
        }
        files::sync(to)
    }

    /// The record of the file `name` where this snapshot has the very same one as `path`: a hard link to it, which never changes.
    fn record_of_same_file(&self, name: &str, path: &Path) -> Option<FileRecord> {
        if !never_changes(name) {
            return None;
        }
        let record = self.manifest.files.iter().find(|record| record.name == name)?;
        let (ours, theirs) = (fs::metadata(self.file(name)).ok()?, fs::metadata(path).ok()?);
        let same = ours.dev() == theirs.dev() && ours.ino() == theirs.ino() && theirs.len() == record.size;
        same.then(|| record.clone())
    }

    /// Copies the whole snapshot to `to`, as the network does between servers.
    ///
    /// # Errors
    /// When a file cannot be copied.
    pub fn copy(&self, to: &Path) -> Result<(), StorageError> {
        files::create_dir(&to.join(DATABASE))?;
        for record in &self.manifest.files {
            files::copy(&self.file(&record.name), &to.join(DATABASE).join(&record.name))?;
        }
        files::copy(&self.path.join(MANIFEST), &to.join(MANIFEST))
    }
}

/// The folder `snapshots/`.
#[derive(Debug)]
pub struct SnapshotStore {
    dir: PathBuf,
    next: AtomicU64,
    files_hashed: AtomicU64,
}

impl SnapshotStore {
    /// Opens the folder, makes it where there is none, and removes what was never finished.
    ///
    /// # Errors
    /// When the folder may not be written.
    pub fn open(dir: &Path) -> Result<Self, StorageError> {
        files::create_dir(dir)?;
        for path in files::entries(dir)?.iter().filter(|path| index_of(path).is_none()) {
            files::remove(path)?;
        }
        Ok(Self { dir: dir.to_owned(), next: AtomicU64::new(0), files_hashed: AtomicU64::new(0) })
    }

    /// A new name in the folder for a snapshot that is not finished.
    pub fn unfinished(&self) -> PathBuf {
        self.dir.join(format!("unfinished-{}", self.next.fetch_add(1, Ordering::Relaxed)))
    }

    /// The newest snapshot.
    ///
    /// # Errors
    /// When its manifest is damaged.
    pub fn newest(&self) -> Result<Option<SnapshotDir>, StorageError> {
        let newest = files::entries(&self.dir)?.into_iter().filter_map(|path| Some((index_of(&path)?, path))).max();
        newest.map(|(_, path)| SnapshotDir::open(&path)).transpose()
    }

    /// The first half of a snapshot: a checkpoint of what is applied now. To be called where nothing is applied beside it.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn begin(&self, state: &StateDb) -> Result<PathBuf, StorageError> {
        let path = self.unfinished();
        files::remove(&path)?;
        files::create_dir(&path)?;
        state.checkpoint(&path.join(DATABASE))?;
        Ok(path)
    }

    /// The second half: hashes the files that the newest snapshot does not have, and makes this one count. May run while the next
    /// entries are applied.
    ///
    /// # Errors
    /// When it cannot be read or written.
    pub fn finish(&self, unfinished: &Path) -> Result<SnapshotDir, StorageError> {
        let database = unfinished.join(DATABASE);
        let applied = applied_of_checkpoint(&database)?.unwrap_or_default().index;
        let before = self.newest()?;
        let mut records = Vec::new();
        for path in files::entries(&database)? {
            let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default().to_owned();
            // RocksDB's own diary, which even reading begins anew.
            if name.starts_with("LOG") {
                files::remove(&path)?;
                continue;
            }
            if let Some(known) = before.as_ref().and_then(|before| before.record_of_same_file(&name, &path)) {
                records.push(known);
                continue;
            }
            let (size, sha256) = hash(&path)?;
            self.files_hashed.fetch_add(1, Ordering::Relaxed);
            files::sync(&path)?;
            records.push(FileRecord { name, size, sha256 });
        }
        let manifest = Manifest { format: FORMAT, applied, files: records };
        let file = unfinished.join(MANIFEST);
        let text = serde_json::to_vec_pretty(&manifest).map_err(|error| StorageError::io("write", &file, &error.into()))?;
        fs::write(&file, text).map_err(|error| StorageError::io("write", &file, &error))?;
        files::sync(&file)?;
        files::sync(&database)?;
        files::sync(unfinished)?;
        self.publish(unfinished, applied)
    }

    /// Makes a snapshot that came from another server, and was verified, count: from now on a restart may install it.
    ///
    /// # Errors
    /// When it cannot be renamed.
    pub fn adopt(&self, snapshot: &SnapshotDir) -> Result<SnapshotDir, StorageError> {
        self.publish(&snapshot.path, snapshot.manifest.applied)
    }

    /// How many files were hashed since this was opened: those that were new, not all of every snapshot.
    pub fn files_hashed(&self) -> u64 {
        self.files_hashed.load(Ordering::Relaxed)
    }

    fn publish(&self, unfinished: &Path, applied: u64) -> Result<SnapshotDir, StorageError> {
        let path = self.dir.join(format!("{applied:020}"));
        if path == unfinished {
            return SnapshotDir::open(&path);
        }
        files::remove(&path)?;
        swell_system::crash::point("storage::before_snapshot");
        files::rename(unfinished, &path)?;
        swell_system::crash::point("storage::after_snapshot");
        let mut finished: Vec<_> = files::entries(&self.dir)?.into_iter().filter(|path| index_of(path).is_some()).collect();
        finished.truncate(finished.len().saturating_sub(KEPT));
        for old in finished {
            files::remove(&old)?;
        }
        SnapshotDir::open(&path)
    }
}

/// Whether RocksDB writes a file of this name once and never again: a table file, which other databases may link.
fn never_changes(name: &str) -> bool {
    name.ends_with(".sst")
}

fn index_of(path: &Path) -> Option<u64> {
    path.file_name()?.to_str()?.parse().ok()
}

fn hash(path: &Path) -> Result<(u64, Digest), StorageError> {
    let failed = |error| StorageError::io("read", path, &error);
    let mut hasher = Sha256::new();
    let mut file = File::open(path).map_err(failed)?;
    let size = io::copy(&mut file, &mut HashWriter(&mut hasher)).map_err(failed)?;
    Ok((size, Digest(hasher.finalize().into())))
}

/// Feeds what is written into the hash.
struct HashWriter<'a>(&'a mut Sha256);

impl io::Write for HashWriter<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.update(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests;
