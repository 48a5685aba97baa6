//! Which server is at work in a data folder. It says there where it listens, and holds a lock that ends with its process, however
//! that ends: a client on the same machine gives the folder's token to that server, and never to whoever took over its port.

use std::{fs, io, io::Write as _, net::SocketAddr, os::unix::fs::OpenOptionsExt as _, path::Path};

use nix::{
    errno::Errno,
    fcntl::{FcntlArg, fcntl},
};

/// The file in a data folder that says where its server listens.
const FILE: &str = "addr";

/// Says in `folder` that its server listens at `listen`, for as long as what is returned lives.
///
/// # Errors
/// When the file cannot be written, or another server is at work in the folder.
pub fn announce(folder: &Path, listen: SocketAddr) -> io::Result<impl Send + use<>> {
    let is_any = listen.ip().is_unspecified();
    let here = if is_any { SocketAddr::from(([127, 0, 0, 1], listen.port())) } else { listen };
    let file = fs::OpenOptions::new().write(true).create(true).truncate(false).mode(0o600).open(folder.join(FILE))?;
    fcntl(&file, FcntlArg::F_OFD_SETLK(&whole_file())).map_err(|errno| match errno {
        Errno::EAGAIN | Errno::EACCES => {
            io::Error::other("another server is at work in this folder: stop it, or name another with --data")
        }
        errno => errno.into(),
    })?;
    file.set_len(0)?;
    (&file).write_all(format!("http://{here}\n").as_bytes())?;
    Ok(file)
}

/// The URL of the server that is at work in `folder`, if one is and this user may know.
pub fn url(folder: &Path) -> Option<String> {
    let file = fs::File::open(folder.join(FILE)).ok()?;
    let says = io::read_to_string(&file).ok()?;
    let mut lock = whole_file();
    fcntl(&file, FcntlArg::F_OFD_GETLK(&mut lock)).ok()?;
    let is_at_work = lock.l_type != libc::F_UNLCK as libc::c_short;
    is_at_work.then(|| says.trim().to_owned())
}

/// A lock of the open file description, as `fcntl(2)` has it: it can be asked about without being taken, so that a client that looks
/// never stands in the way of a server that starts.
fn whole_file() -> libc::flock {
    libc::flock { l_type: libc::F_WRLCK as _, l_whence: libc::SEEK_SET as _, l_start: 0, l_len: 0, l_pid: 0 }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn server_is_found_while_it_is_at_work_and_no_longer() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(url(dir.path()), None);
        let at_work = announce(dir.path(), "0.0.0.0:7999".parse().unwrap()).unwrap();
        assert_eq!(url(dir.path()).as_deref(), Some("http://127.0.0.1:7999"));
        assert!(announce(dir.path(), "127.0.0.1:7400".parse().unwrap()).is_err(), "a second one does not take its place");
        drop(at_work);
        assert_eq!(url(dir.path()), None, "who listens there now is somebody else");
    }
}
