//! What a build with `image = "host"` depends on besides its commit: a fingerprint of the runner's own system. Blocking; must not know
//! what it is used for.

use std::{
    fs,
    path::Path,
    sync::{Mutex, PoisonError},
    time::SystemTime,
};

use sha2::{Digest as _, Sha256};

/// What the distributions' package managers write whenever they change `/usr`.
const PACKAGE_LISTS: [&str; 5] = [
    "/var/lib/dpkg/status",
    "/usr/lib/sysimage/rpm/rpmdb.sqlite",
    "/var/lib/rpm/rpmdb.sqlite",
    "/var/lib/rpm/Packages",
    "/lib/apk/db/installed",
];

/// Where nothing lists what is installed, and for what was installed past the package manager.
const FOLDERS: [&str; 3] = ["/usr/local/bin", "/usr/local/lib", "/usr/local/include"];

/// The longest list that is read; of a longer one, size and time count.
const LIST_BYTES_MAX: u64 = 256 << 20;

/// The sizes and times of the files that it depends on, and the fingerprint itself.
type Fingerprint = (Vec<(u64, SystemTime)>, String);

/// The last answer, and the times and sizes of the files from which it follows.
static CACHED: Mutex<Option<Fingerprint>> = Mutex::new(None);

/// `sha256:` and the hash of the architecture, `/etc/os-release`, the list of installed packages, and the names in `/usr/local`. Two runners
/// with the same packages have the same.
pub(super) fn fingerprint() -> String {
    let stamp = |path: &&str| {
        let meta = fs::metadata(path).ok();
        meta.map_or((0, SystemTime::UNIX_EPOCH), |meta| (meta.len(), meta.modified().unwrap_or(SystemTime::UNIX_EPOCH)))
    };
    let stamps: Vec<_> = PACKAGE_LISTS.iter().chain(&FOLDERS).chain(&["/etc/os-release"]).map(stamp).collect();
    let mut cached = CACHED.lock().unwrap_or_else(PoisonError::into_inner);
    match &*cached {
        Some((known, answer)) if *known == stamps => answer.clone(),
        _ => {
            let answer = compute();
            *cached = Some((stamps, answer.clone()));
            answer
        }
    }
}

fn compute() -> String {
    let mut hash = Sha256::new();
    let mut add = |name: &str, bytes: &[u8]| {
        hash.update(format!("{name} {}\n", bytes.len()));
        hash.update(bytes);
    };
    add("arch", std::env::consts::ARCH.as_bytes());
    add("os-release", &fs::read("/etc/os-release").unwrap_or_default());
    for path in PACKAGE_LISTS {
        let small = fs::metadata(path).is_ok_and(|meta| meta.len() <= LIST_BYTES_MAX);
        if let Some(bytes) = small.then(|| fs::read(path).ok()).flatten() {
            add(path, &bytes);
        }
    }
    for folder in FOLDERS {
        add(folder, names_in(Path::new(folder)).as_bytes());
    }
    format!("sha256:{}", hex::encode(hash.finalize()))
}

fn names_in(folder: &Path) -> String {
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    let mut names: Vec<_> = entries.map(|entry| entry.file_name().to_string_lossy().into_owned()).collect();
    names.sort();
    names.join("\n")
}

#[cfg(test)]
mod tests {
    #[test]
    fn unchanged_machine_has_one_fingerprint() {
        let first = super::fingerprint();
        assert!(first.starts_with("sha256:") && first.len() == 71, "{first}");
        assert_eq!(first, super::compute());
    }
}
