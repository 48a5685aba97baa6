//! The files of the embedded store, and atomic changes of them. Blocking; knows nothing of streams.
//!
//! `objects/ab/cdef…` (an object; its modification time is when it was last put or leased), `partial/` (uploads),
//! `deleted/<hex>` (tombstones, with the bytes), `corrupt/<hex>` (what scrubbing set aside).

use std::{
    fs::{self, File},
    io,
    os::unix::fs::{DirBuilderExt, MetadataExt},
    path::{Path, PathBuf},
    sync::{Mutex, MutexGuard, PoisonError},
    time::{Duration, SystemTime},
};
use swell_system::disk_space;

use super::{EmbeddedOptions, Level, Result, Scrubbed, StoreError, Stored, Usage};
use crate::hash;
use swell_model::{
    digest::Digest,
    units::{BasisPoints, Millis},
};

/// Prefix of the partial files of `put`: no upload can have such a name, and none of them outlives its process.
const PUT_PREFIX: &str = ".put-";

pub(super) struct Layout {
    dir: PathBuf,
    options: EmbeddedOptions,
    /// Held while an object appears or disappears, so that a lease and a deletion see each other. Never over a long operation.
    totals: Mutex<Totals>,
}

#[derive(Default)]
struct Totals {
    bytes: u64,
    objects: u64,
}

pub(super) fn io_error(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> StoreError {
    move |source| match disk_space::no_space(&source, path.parent().unwrap_or(path), None) {
        Some(error) => error.into(),
        None => StoreError::Io { action, path: path.to_owned(), source },
    }
}

fn sync_folder(path: &Path) -> Result<()> {
    File::open(path).and_then(|folder| folder.sync_all()).map_err(io_error("sync", path))
}

/// Removes a file, if it is there.
pub(super) fn remove_if_there(path: &Path) -> Result<bool> {
    match fs::remove_file(path) {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(error) => Err(io_error("remove", path)(error)),
    }
}

/// Time since a file was last changed; zero when the clock went back.
fn age(metadata: &fs::Metadata) -> Duration {
    metadata.modified().ok().and_then(|then| SystemTime::now().duration_since(then).ok()).unwrap_or_default()
}

fn touch(path: &Path) -> io::Result<()> {
    File::open(path)?.set_modified(SystemTime::now())
}

fn metadata_if_there(path: &Path) -> Result<Option<fs::Metadata>> {
    match fs::symlink_metadata(path) {
        Ok(metadata) if metadata.is_file() => Ok(Some(metadata)),
        Ok(_) => Ok(None),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(io_error("stat", path)(error)),
    }
}

/// Digest and size of a file.
pub(super) struct Hashed {
    pub(super) digest: Digest,
    pub(super) size: u64,
    inode: u64,
}

pub(super) fn hash_file(path: &Path) -> Result<Option<Hashed>> {
    let file = match File::open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(io_error("open", path)(error)),
    };
    let inode = file.metadata().map_err(io_error("stat", path))?.ino();
    let (digest, size) = hash::of(file).map_err(io_error("read", path))?;
    Ok(Some(Hashed { digest, size, inode }))
}

impl Layout {
    pub(super) fn open(dir: &Path, options: EmbeddedOptions) -> Result<Self> {
        let layout = Self { dir: dir.to_owned(), options, totals: Mutex::default() };
        let mut builder = fs::DirBuilder::new();
        builder.recursive(true).mode(0o700);
        let shards = (0..=255).map(|shard| layout.shard(shard));
        let folders = ["objects", "partial", "deleted", "corrupt"].map(|name| dir.join(name));
        for folder in folders.into_iter().chain(shards) {
            builder.create(&folder).map_err(io_error("create", &folder))?;
        }
        sync_folder(&dir.join("objects"))?;
        sync_folder(dir)?;
        layout.remove_where(&dir.join("partial"), |name, _| name.starts_with(PUT_PREFIX))?;
        layout.sweep()?;
        let mut totals = Totals::default();
        for shard in 0..=255 {
            for stored in layout.objects_of(shard)? {
                totals.bytes += stored.size;
                totals.objects += 1;
            }
        }
        *layout.totals() = totals;
        Ok(layout)
    }

    pub(super) fn dir(&self) -> &Path {
        &self.dir
    }

    fn totals(&self) -> MutexGuard<'_, Totals> {
        // The figures are consistent at all times, so a panic elsewhere does no harm.
        self.totals.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn shard(&self, first: u8) -> PathBuf {
        self.dir.join("objects").join(format!("{first:02x}"))
    }

    pub(super) fn object(&self, digest: Digest) -> PathBuf {
        self.shard(digest.0[0]).join(&digest.hex()[2..])
    }

    fn tombstone(&self, digest: Digest) -> PathBuf {
        self.dir.join("deleted").join(digest.hex())
    }

    pub(super) fn upload(&self, name: &str) -> PathBuf {
        self.dir.join("partial").join(name)
    }

    pub(super) fn put_file(&self, number: u64) -> PathBuf {
        self.upload(&format!("{PUT_PREFIX}{}-{number}", std::process::id()))
    }

    pub(super) fn stat(&self, digest: Digest) -> Result<Option<Stored>> {
        Ok(metadata_if_there(&self.object(digest))?.map(|metadata| Stored { digest, size: metadata.len() }))
    }

    /// Makes the synced file `partial`, whose digest was checked, an object. Replaces one that is there: should that have rotted, it is healed.
    pub(super) fn publish(&self, partial: &Path, digest: Digest, size: u64) -> Result<Stored> {
        let object = self.object(digest);
        touch(partial).map_err(io_error("set the time of", partial))?;
        swell_system::crash::point("store::before_rename");
        {
            let mut totals = self.totals();
            let before = metadata_if_there(&object)?;
            fs::rename(partial, &object).map_err(io_error("rename an upload to", &object))?;
            totals.bytes = totals.bytes.saturating_sub(before.as_ref().map_or(0, fs::Metadata::len)) + size;
            totals.objects += u64::from(before.is_none());
            remove_if_there(&self.tombstone(digest))?;
        }
        swell_system::crash::point("store::after_rename");
        sync_folder(&self.shard(digest.0[0]))?;
        Ok(Stored { digest, size })
    }

    pub(super) fn lease(&self, digest: Digest) -> Result<bool> {
        let (object, tombstone) = (self.object(digest), self.tombstone(digest));
        let revived = {
            let mut totals = self.totals();
            if metadata_if_there(&object)?.is_some() {
                touch(&object).map_err(io_error("set the time of", &object))?;
                return Ok(true);
            }
            let Some(metadata) = metadata_if_there(&tombstone)? else { return Ok(false) };
            touch(&tombstone).map_err(io_error("set the time of", &tombstone))?;
            fs::rename(&tombstone, &object).map_err(io_error("restore", &object))?;
            totals.bytes += metadata.len();
            totals.objects += 1;
            true
        };
        sync_folder(&self.shard(digest.0[0]))?;
        Ok(revived)
    }

    pub(super) fn delete(&self, digest: Digest, unused_for: Millis) -> Result<bool> {
        let (object, tombstone) = (self.object(digest), self.tombstone(digest));
        {
            let mut totals = self.totals();
            let Some(metadata) = metadata_if_there(&object)? else { return Ok(false) };
            let left = self.options.lease.max(unused_for).as_duration().saturating_sub(age(&metadata));
            if !left.is_zero() {
                let left = Millis(left.as_millis().try_into().unwrap_or(u64::MAX));
                return Err(StoreError::Leased { digest, left });
            }
            touch(&object).map_err(io_error("set the time of", &object))?;
            fs::rename(&object, &tombstone).map_err(io_error("set aside", &object))?;
            totals.bytes = totals.bytes.saturating_sub(metadata.len());
            totals.objects = totals.objects.saturating_sub(1);
        }
        sync_folder(&self.shard(digest.0[0]))?;
        sync_folder(&self.dir.join("deleted"))?;
        Ok(true)
    }

    fn objects_of(&self, first: u8) -> Result<Vec<Stored>> {
        let shard = self.shard(first);
        let mut objects = Vec::new();
        for entry in fs::read_dir(&shard).map_err(io_error("list", &shard))? {
            let entry = entry.map_err(io_error("list", &shard))?;
            let name = entry.file_name();
            let digest = name.to_str().and_then(|rest| format!("{first:02x}{rest}").parse::<Digest>().ok());
            // It may have been deleted since the folder was read.
            if let Some(digest) = digest
                && let Some(stored) = self.stat(digest)?
            {
                objects.push(stored);
            }
        }
        objects.sort_unstable_by_key(|stored| stored.digest);
        Ok(objects)
    }

    pub(super) fn list(&self, after: Option<Digest>, limit: usize) -> Result<Vec<Stored>> {
        let limit = limit.min(10_000);
        let mut page = Vec::new();
        for first in after.map_or(0, |after| after.0[0])..=255 {
            let objects = self.objects_of(first)?;
            page.extend(objects.into_iter().filter(|stored| after.is_none_or(|after| stored.digest > after)));
            if page.len() >= limit {
                page.truncate(limit);
                break;
            }
        }
        Ok(page)
    }

    pub(super) fn usage(&self) -> Result<Usage> {
        let disk = disk_space::room(&self.dir).map_err(io_error("read the free space of", &self.dir))?;
        let used = u128::from(disk.capacity.saturating_sub(disk.free));
        let at = |mark: BasisPoints| used * u128::from(BasisPoints::ALL.0) >= u128::from(disk.capacity) * u128::from(mark.0);
        let level = match () {
            () if at(self.options.high_water) => Level::High,
            () if at(self.options.low_water) => Level::Low,
            () => Level::Normal,
        };
        let totals = self.totals();
        Ok(Usage { bytes: totals.bytes, objects: totals.objects, free_bytes: disk.free, capacity_bytes: disk.capacity, level })
    }

    pub(super) fn scrub(&self, digest: Digest) -> Result<Scrubbed> {
        let object = self.object(digest);
        let Some(Hashed { digest: found, size, inode }) = hash_file(&object)? else { return Ok(Scrubbed::Missing) };
        if found == digest {
            return Ok(Scrubbed::Intact);
        }
        let aside = self.dir.join("corrupt").join(digest.hex());
        {
            let mut totals = self.totals();
            match metadata_if_there(&object)? {
                None => return Ok(Scrubbed::Missing),
                // A good copy replaced it meanwhile.
                Some(now) if now.ino() != inode => return Ok(Scrubbed::Intact),
                Some(_) => fs::rename(&object, &aside).map_err(io_error("set aside", &object))?,
            }
            totals.bytes = totals.bytes.saturating_sub(size);
            totals.objects = totals.objects.saturating_sub(1);
        }
        sync_folder(&self.shard(digest.0[0]))?;
        sync_folder(&self.dir.join("corrupt"))?;
        tracing::error!(%digest, %found, size, aside = %aside.display(), "damaged content set aside");
        Ok(Scrubbed::Corrupt { found })
    }

    /// Removes idle uploads and expired tombstones. Returns the number of files.
    pub(super) fn sweep(&self) -> Result<usize> {
        let (upload, tombstone) = (self.options.upload.as_duration(), self.options.tombstone.as_duration());
        let uploads = self.remove_where(&self.dir.join("partial"), |_, age| age >= upload)?;
        // Under the lock, so that a lease does not find a tombstone that is being removed.
        let _totals = self.totals();
        Ok(uploads + self.remove_where(&self.dir.join("deleted"), |_, age| age >= tombstone)?)
    }

    fn remove_where(&self, folder: &Path, goes: impl Fn(&str, Duration) -> bool) -> Result<usize> {
        let mut removed = 0;
        for entry in fs::read_dir(folder).map_err(io_error("list", folder))? {
            let entry = entry.map_err(io_error("list", folder))?;
            let path = entry.path();
            let Some(metadata) = metadata_if_there(&path)? else { continue };
            if goes(&entry.file_name().to_string_lossy(), age(&metadata)) && remove_if_there(&path)? {
                tracing::debug!(path = %path.display(), bytes = metadata.len(), "removed an expired file");
                removed += 1;
            }
        }
        Ok(removed)
    }
}
