//! The folders that a service keeps across releases: found or made, and then of the service's user. Blocking. Must not know what they
//! are for.
//!
//! The agent is root, and whoever may write in a folder on the way is not. So the way is gone step by step with open folders, only
//! root's links are followed, and what is there already is never taken from its owner.

use std::{
    collections::VecDeque,
    ffi::{OsStr, OsString},
    io,
    os::fd::{AsFd, OwnedFd},
    path::{Component, Path},
    sync::atomic::{AtomicU64, Ordering},
};

use nix::{
    dir::Dir,
    errno::Errno,
    fcntl::{AtFlags, OFlag, open, openat, readlinkat, renameat},
    sys::stat::{Mode, SFlag, fchmod, fstat, fstatat, mkdirat},
    unistd::{Uid, UnlinkatFlags, User, fchown, geteuid, unlinkat},
};

use super::refusal::Refusal;

/// Links on one way, as in the kernel (path_resolution(7)).
const LINKS_MAX: u32 = 40;
/// How often the last step is taken again because another agent made the folder meanwhile, or removed it.
const TRIES_MAX: u32 = 8;

/// Makes `folder`, which is absolute, unless it is there, and gives what it made to `user`; without one it stays the agent's.
///
/// # Errors
/// Where the way there has a link that is not root's or the agent's; where the folder is there and belongs to somebody else; where the
/// file system refuses.
pub(super) fn make_folder(folder: &str, user: Option<&str>) -> Result<(), Refusal> {
    let hint = "check the folder named in the service's `data`";
    let failed = |reason: String| Refusal {
        reason: format!("failed to prepare the data folder {folder}: {reason}"),
        hint: hint.to_owned(),
    };
    let user = match user {
        None => None,
        Some(name) => match User::from_name(name).map_err(|errno| failed(io::Error::from(errno).to_string()))? {
            Some(user) => Some(user),
            None => {
                return Err(Refusal {
                    reason: format!("this target has no user `{name}`"),
                    hint: "create it (`useradd --system`), or name another in `user`".to_owned(),
                });
            }
        },
    };
    match find_or_make(Path::new(folder), user.as_ref()) {
        Ok(()) => Ok(()),
        Err(DataDirError::Taken { owner, user }) => Err(Refusal {
            reason: format!("the data folder {folder} belongs to {owner}, not to {user}"),
            hint: format!("chown it to {user}, or name another folder in the service's `data`"),
        }),
        Err(error) => Err(failed(error.to_string())),
    }
}

#[derive(Debug, thiserror::Error)]
enum DataDirError {
    #[error("{what} `{}`: {}", name.display(), io::Error::from(*errno))]
    System { what: &'static str, name: OsString, errno: Errno },
    #[error("`{}` on the way there is a link of {owner}, and only root's are followed", name.display())]
    Link { name: OsString, owner: String },
    #[error("it belongs to {owner}")]
    Taken { owner: String, user: String },
}

fn system<'a>(what: &'static str, name: &'a OsStr) -> impl FnOnce(Errno) -> DataDirError + 'a {
    move |errno| DataDirError::System { what, name: name.to_owned(), errno }
}

/// The steps of a path; those to `/` and `.` are none.
fn steps(path: &Path) -> Vec<OsString> {
    let is_step = |part: &Component<'_>| matches!(part, Component::Normal(_) | Component::ParentDir);
    path.components().filter(is_step).map(|part| part.as_os_str().to_owned()).collect()
}

fn root() -> Result<OwnedFd, DataDirError> {
    open("/", OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC, Mode::empty()).map_err(system("opening", OsStr::new("/")))
}

fn find_or_make(path: &Path, user: Option<&User>) -> Result<(), DataDirError> {
    let mut ahead = VecDeque::from(steps(path));
    let mut at = root()?;
    let (mut links, mut tries) = (0, 0);
    while let Some(name) = ahead.pop_front() {
        let flags = OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
        match openat(&at, name.as_os_str(), flags, Mode::empty()) {
            Ok(next) => at = next,
            Err(Errno::ENOENT) if tries < TRIES_MAX => {
                tries += 1;
                match user.filter(|_| ahead.is_empty()) {
                    Some(user) if make_for(&at, &name, user)? => return Ok(()),
                    Some(_) => {}
                    None => {
                        let mode = if ahead.is_empty() { 0o750 } else { 0o755 };
                        match mkdirat(&at, name.as_os_str(), Mode::from_bits_truncate(mode)) {
                            Ok(()) | Err(Errno::EEXIST) => {}
                            Err(errno) => return Err(system("making", &name)(errno)),
                        }
                    }
                }
                ahead.push_front(name);
            }
            Err(errno @ (Errno::ENOTDIR | Errno::ELOOP)) => {
                links += 1;
                let to =
                    link(&at, &name)?.filter(|_| links <= LINKS_MAX).ok_or_else(|| system("opening folder", &name)(errno))?;
                if Path::new(&to).is_absolute() {
                    at = root()?;
                }
                steps(Path::new(&to)).into_iter().rev().for_each(|step| ahead.push_front(step));
            }
            Err(errno) => return Err(system("opening folder", &name)(errno)),
        }
    }
    let Some(user) = user else { return Ok(()) };
    let owner = fstat(&at).map_err(system("looking at", path.as_os_str()))?.st_uid;
    if owner == user.uid.as_raw() {
        return Ok(());
    }
    Err(DataDirError::Taken { owner: name_of(owner), user: user.name.clone() })
}

/// Where `name` leads, if it is a link that may be followed: it and its folder are root's or the agent's, so nobody else put it there.
fn link(at: &OwnedFd, name: &OsStr) -> Result<Option<OsString>, DataDirError> {
    let found = fstatat(at, name, AtFlags::AT_SYMLINK_NOFOLLOW).map_err(system("looking at", name))?;
    if SFlag::from_bits_truncate(found.st_mode) & SFlag::S_IFMT != SFlag::S_IFLNK {
        return Ok(None);
    }
    let folder = fstat(at).map_err(system("looking at the folder of", name))?;
    let is_trusted = |uid: u32| uid == 0 || uid == geteuid().as_raw();
    match [folder.st_uid, found.st_uid].into_iter().find(|uid| !is_trusted(*uid)) {
        Some(owner) => Err(DataDirError::Link { name: name.to_owned(), owner: name_of(owner) }),
        None => readlinkat(at, name).map(Some).map_err(system("reading link", name)),
    }
}

/// Makes `name` in `at` for `user`: under another name first, so that what a crash leaves is never found half given away. False when
/// it was there after all.
fn make_for(at: &OwnedFd, name: &OsStr, user: &User) -> Result<bool, DataDirError> {
    static COUNT: AtomicU64 = AtomicU64::new(0);
    let beside = OsString::from(format!(".swell-{}-{}.new", std::process::id(), COUNT.fetch_add(1, Ordering::Relaxed)));
    let failed = || system("making", name);
    mkdirat(at, beside.as_os_str(), Mode::S_IRWXU).map_err(failed())?;
    let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
    let given = openat(at, beside.as_os_str(), flags, Mode::empty()).and_then(|made| give(made.as_fd(), user));
    let named = given.and_then(|()| renameat(at, beside.as_os_str(), at, name));
    if named.is_err()
        && let Err(errno) = unlinkat(at, beside.as_os_str(), UnlinkatFlags::RemoveDir)
    {
        tracing::warn!(%errno, folder = %beside.display(), "failed to remove an unused folder");
    }
    match named {
        Ok(()) => Ok(true),
        Err(Errno::EEXIST | Errno::ENOTEMPTY | Errno::ENOTDIR) => Ok(false),
        Err(errno) => Err(failed()(errno)),
    }
}

/// Gives away a folder that was just made. Whoever may write around it could have put another in its place meanwhile: what is not the
/// agent's own and empty is refused.
fn give(made: impl AsFd + Copy, user: &User) -> nix::Result<()> {
    let mut folder = Dir::openat(made, ".", OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC, Mode::empty())?;
    let is_empty = folder.iter().all(|entry| entry.is_ok_and(|entry| matches!(entry.file_name().to_bytes(), b"." | b"..")));
    if !is_empty || fstat(made)?.st_uid != geteuid().as_raw() {
        return Err(Errno::EPERM);
    }
    fchown(made, Some(user.uid), Some(user.gid))?;
    fchmod(made, Mode::from_bits_truncate(0o750))
}

fn name_of(uid: u32) -> String {
    match User::from_uid(Uid::from_raw(uid)) {
        Ok(Some(user)) => user.name,
        _ => format!("user {uid}"),
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::{
        fs,
        os::unix::fs::{MetadataExt, PermissionsExt, chown, symlink},
    };

    use super::*;

    /// Every machine has this user; 0 where only root could give folders away.
    fn nobody() -> u32 {
        if geteuid().is_root() {
            return User::from_name("nobody").unwrap().unwrap().uid.as_raw();
        }
        assert!(std::env::var_os("CI").is_none(), "these tests need root, and in CI nothing is skipped");
        eprintln!("SKIPPED: giving folders away needs root");
        0
    }

    fn owner(path: &Path) -> u32 {
        fs::symlink_metadata(path).unwrap().uid()
    }

    #[test]
    fn missing_data_dir_is_made_for_the_user_and_found_again() {
        let nobody = nobody();
        if nobody == 0 {
            return;
        }
        let root = tempfile::tempdir().unwrap();
        // An administrator's link is followed, such as one to a larger disk.
        fs::create_dir(root.path().join("large")).unwrap();
        symlink("large/../large", root.path().join("link")).unwrap();
        let folder = root.path().join("link/of/shop");
        let text = folder.to_str().unwrap();
        make_folder(text, Some("nobody")).unwrap();
        let made = fs::metadata(root.path().join("large/of/shop")).unwrap();
        assert_eq!((made.uid(), made.permissions().mode() & 0o777), (nobody, 0o750));
        assert_eq!(owner(&root.path().join("large/of")), 0);
        fs::write(folder.join("kept"), "x").unwrap();
        make_folder(text, Some("nobody")).unwrap();
        assert_eq!(fs::read_to_string(folder.join("kept")).unwrap(), "x");
        assert_eq!(fs::read_dir(root.path().join("large/of")).unwrap().count(), 1);
        // Who is to run as the agent takes what is there.
        make_folder(text, None).unwrap();
        make_folder(root.path().join("own").to_str().unwrap(), None).unwrap();
        assert_eq!(owner(&root.path().join("own")), 0);
    }

    #[test]
    fn data_dir_of_another_owner_is_refused() {
        let nobody = nobody();
        if nobody == 0 {
            return;
        }
        let root = tempfile::tempdir().unwrap();
        let folder = root.path().join("etc");
        fs::create_dir(&folder).unwrap();
        let refusal = make_folder(folder.to_str().unwrap(), Some("nobody")).unwrap_err();
        assert_eq!(refusal.reason, format!("the data folder {} belongs to root, not to nobody", folder.display()));
        assert_eq!(refusal.hint, "chown it to nobody, or name another folder in the service's `data`");
        assert_eq!(owner(&folder), 0);
        fs::write(root.path().join("file"), "").unwrap();
        let refusal = make_folder(root.path().join("file/x").to_str().unwrap(), Some("nobody")).unwrap_err();
        assert!(refusal.reason.contains("opening folder `file`: Not a directory"), "{refusal}");
    }

    #[test]
    fn link_of_a_service_in_place_of_its_data_dir_is_refused() {
        let nobody = nobody();
        if nobody == 0 {
            return;
        }
        let root = tempfile::tempdir().unwrap();
        let (victim, own) = (root.path().join("victim"), root.path().join("own"));
        fs::create_dir(&victim).unwrap();
        make_folder(own.to_str().unwrap(), Some("nobody")).unwrap();
        for folder in [own.join("data"), own.join("data/below")] {
            let link = own.join("data");
            symlink(&victim, &link).unwrap();
            std::os::unix::fs::lchown(&link, Some(nobody), Some(nobody)).unwrap();
            let refusal = make_folder(folder.to_str().unwrap(), Some("nobody")).unwrap_err();
            assert!(refusal.reason.contains("`data` on the way there is a link of nobody"), "{refusal}");
            // Root's own link, moved to where somebody else may write, is no better.
            fs::remove_file(&link).unwrap();
            symlink(&victim, &link).unwrap();
            assert!(make_folder(folder.to_str().unwrap(), Some("nobody")).is_err());
            fs::remove_file(&link).unwrap();
        }
        assert_eq!((owner(&victim), fs::read_dir(&victim).unwrap().count()), (0, 0));
        // Nor is one given away that it put in place of the one that was just made.
        fs::write(victim.join("shadow"), "").unwrap();
        let user = User::from_name("nobody").unwrap().unwrap();
        assert_eq!(give(fs::File::open(&victim).unwrap().as_fd(), &user), Err(Errno::EPERM));
        assert_eq!(owner(&victim), 0);
        // Nor does a folder of its own that it handed to another come back by itself.
        chown(&own, Some(1), None).unwrap();
        assert!(make_folder(own.to_str().unwrap(), Some("nobody")).is_err());
    }
}
