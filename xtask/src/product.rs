//! How the product is selected for building, the same for everything that compiles it. Knows nothing of what is done with it.
//!
//! Cargo unifies features over the packages that one command selects. Another selection is another set of dependencies, down to
//! RocksDB, whose C++ alone takes longer than all the Rust. So the demonstration, clippy and the tests select alike.

use std::{
    path::{Path, PathBuf},
    time::SystemTime,
};

use anyhow::{Context as _, Result, ensure};

use crate::steps;

/// What every command that compiles the product passes to cargo.
pub const SELECTION: &str = "--locked --workspace --all-features";

/// Builds the program `swell` and returns its path.
pub fn build() -> Result<PathBuf> {
    steps::run(&mut steps::cargo(&format!("build {SELECTION} --bin swell"))?)?;
    program()
}

/// Where [`build`] puts the program.
pub fn program() -> Result<PathBuf> {
    Ok(steps::target_dir()?.join("debug/swell"))
}

/// Counts how often RocksDB is compiled from now on.
pub struct RocksDbBuilds {
    since: SystemTime,
}

impl RocksDbBuilds {
    /// Begins to count.
    pub fn watch() -> Self {
        Self { since: SystemTime::now() }
    }

    /// Fails when two units of RocksDB were compiled: two steps wanted it with different features, profiles or dependencies.
    pub fn expect_at_most_one(&self) -> Result<()> {
        let count = self.count(&steps::target_dir()?.join("debug/build"))?;
        ensure!(
            count <= 1,
            "RocksDB was compiled {count} times where once is enough: two steps select different packages, features or profiles. \
             Compare librocksdb-sys and its build dependencies in `cargo build --unit-graph` of each step, and see [profile.dev] \
             in Cargo.toml"
        );
        println!("   RocksDB was compiled {}", if count == 1 { "once" } else { "before, and not again" });
        Ok(())
    }

    /// A build script leaves what it printed in a file of its unit's folder, written anew only when it runs.
    fn count(&self, builds: &Path) -> Result<usize> {
        let entries = std::fs::read_dir(builds).with_context(|| format!("failed to list {}", builds.display()))?;
        let folders = entries.flatten().filter(|entry| entry.file_name().to_string_lossy().starts_with("librocksdb-sys-"));
        let ran = folders.filter(|folder| {
            let output = std::fs::metadata(folder.path().join("output")).and_then(|output| output.modified());
            output.is_ok_and(|at| at >= self.since)
        });
        Ok(ran.count())
    }
}

#[cfg(test)]
mod tests {
    use std::{
        fs,
        time::{Duration, SystemTime},
    };

    use super::RocksDbBuilds;

    #[test]
    fn rocksdb_builds_count_only_what_ran_since() {
        let folder = std::env::temp_dir().join(format!("xtask-rocksdb-builds-{}", std::process::id()));
        for name in ["librocksdb-sys-1", "librocksdb-sys-2", "zstd-sys-1"] {
            fs::create_dir_all(folder.join(name)).unwrap();
        }
        fs::write(folder.join("librocksdb-sys-1/output"), "").unwrap();
        fs::write(folder.join("zstd-sys-1/output"), "").unwrap();
        let hour = Duration::from_secs(3600);
        let earlier = RocksDbBuilds { since: SystemTime::now() - hour };
        let later = RocksDbBuilds { since: SystemTime::now() + hour };
        let counts = (earlier.count(&folder).unwrap(), later.count(&folder).unwrap());
        fs::remove_dir_all(&folder).unwrap();
        assert_eq!(counts, (1, 0));
    }
}
