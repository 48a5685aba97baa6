//! Bundles: a push's new objects as one file that git itself can read (gitformat-bundle(5), version 2). Written while the
//! objects are still in git's quarantine, where `git bundle create` cannot name the refs that do not exist yet.
//! Knows nothing of where bundles are stored.

use std::{
    collections::BTreeSet,
    fs::File,
    io::{BufRead as _, BufReader, Read as _, Seek as _, SeekFrom, Write as _},
    path::{Path, PathBuf},
};

use crate::{
    command::{Git, NETWORK_TIMEOUT},
    error::GitError,
};
use swell_model::repository::{CommitId, RefUpdate};

const SIGNATURE_V2: &str = "# v2 git bundle";
const SIGNATURE_V3: &str = "# v3 git bundle";
/// The most bytes of a listing of a push's commits, which finds their bases: about 1.5 million commits.
const COMMITS_BYTES_MAX: usize = 64 << 20;

/// Environment that shows git the objects of a push that is not accepted yet.
pub struct Quarantine {
    pub env: Vec<(&'static str, PathBuf)>,
}

/// Writes the objects that `updates` add to `existing` to `path`. Returns false, and writes no file, when they add none.
pub async fn write(
    git: &Git,
    git_dir: &Path,
    quarantine: &Quarantine,
    updates: &[RefUpdate],
    existing: &BTreeSet<CommitId>,
    path: &Path,
) -> Result<bool, GitError> {
    let tips: Vec<(&CommitId, &str)> = updates.iter().filter_map(|u| Some((u.new.as_ref()?, u.name.as_str()))).collect();
    if tips.is_empty() {
        return Ok(false);
    }
    let mut revisions = String::new();
    tips.iter().for_each(|(id, _)| revisions.push_str(&format!("{id}\n")));
    existing.iter().for_each(|id| revisions.push_str(&format!("^{id}\n")));

    let list = git.command("finding what the push builds on").in_repository(git_dir).envs(quarantine.env.iter().cloned());
    let list = list.args(["rev-list", "--boundary", "--stdin"]).stdin(revisions.clone()).stdout_bytes_max(COMMITS_BYTES_MAX);
    let commits = list.run_ok().await?;
    let mut header = format!("{SIGNATURE_V2}\n");
    for line in String::from_utf8_lossy(&commits).lines().filter(|line| line.starts_with('-')) {
        header.push_str(&format!("{line} \n"));
    }
    tips.iter().for_each(|(id, name)| header.push_str(&format!("{id} {name}\n")));
    header.push('\n');

    let mut file = File::options().read(true).append(true).create_new(true).open(path).map_err(GitError::io("create", path))?;
    file.write_all(header.as_bytes()).map_err(GitError::io("write", path))?;
    let pack = git.command("packing the push").in_repository(git_dir).envs(quarantine.env.iter().cloned());
    let pack = pack.args(["pack-objects", "--quiet", "--stdout", "--revs", "--thin", "--delta-base-offset"]);
    let output = file.try_clone().map_err(GitError::io("write", path))?;
    pack.stdin(revisions).timeout(NETWORK_TIMEOUT).run_with_files(None, Some(output)).await?;

    // A pack begins with `PACK`, its version, and the number of objects, each four bytes.
    let mut pack_head = [0; 12];
    file.seek(SeekFrom::Start(header.len() as u64)).map_err(GitError::io("read", path))?;
    file.read_exact(&mut pack_head).map_err(GitError::io("read", path))?;
    let has_objects = pack_head[8..] != [0; 4];
    if !has_objects {
        std::fs::remove_file(path).map_err(GitError::io("remove", path))?;
    }
    Ok(has_objects)
}

/// Adds a bundle's objects to a repository that has the objects they build on. Refs stay as they are.
pub async fn apply(git: &Git, git_dir: &Path, path: &Path) -> Result<(), GitError> {
    let mut reader = BufReader::new(File::open(path).map_err(GitError::io("open", path))?);
    let mut header_len = 0;
    loop {
        let mut line = Vec::new();
        // A line of the header is an id and a ref's name; anything longer is not a bundle.
        let read = reader.by_ref().take(4096).read_until(b'\n', &mut line).map_err(GitError::io("read", path))?;
        let first_is_wrong =
            header_len == 0 && ![SIGNATURE_V2, SIGNATURE_V3].iter().any(|s| line.trim_ascii_end() == s.as_bytes());
        if first_is_wrong || !line.ends_with(b"\n") {
            return Err(GitError::Failed {
                what: format!("reading `{}`", path.display()),
                detail: "it is no git bundle".to_owned(),
            });
        }
        header_len += read as u64;
        if line == b"\n" {
            break;
        }
    }
    let mut file = reader.into_inner();
    file.seek(SeekFrom::Start(header_len)).map_err(GitError::io("read", path))?;
    let index = git.command("unpacking a bundle").in_repository(git_dir).args(["index-pack", "--stdin", "--fix-thin"]);
    index.timeout(NETWORK_TIMEOUT).run_with_files(Some(file), None).await
}
