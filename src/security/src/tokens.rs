//! API tokens: one for each role, made once and kept in a folder, each in a file that only its owner reads.
//! Knows nothing of HTTP or of what a role may do.
//!
//! Several servers of one cluster share the folder's content: copy it to each before it starts.

use std::{
    fs, hint, io,
    io::Write as _,
    os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _, PermissionsExt as _},
    path::{Path, PathBuf},
};

use swell_model::{digest::Digest, principal::Role};
use swell_system::files::{FileError, failed};

/// How many random bytes a token has: as many as the hash that it is compared by.
const SECRET_BYTES: usize = 32;
/// The longest text that is looked at; a longer one is no token.
const TOKEN_BYTES_MAX: usize = 128;

/// Why there are no tokens.
#[derive(Debug, thiserror::Error)]
pub enum TokensError {
    /// The folder or a file in it.
    #[error("{0}; the API tokens are kept there: check its owner, mode and free space")]
    File(#[from] FileError),
    /// Others could read it.
    #[error("others can read the token in `{}` (mode {mode:o}): run `chmod 600` on it, or delete it for a new one", path.display())]
    Exposed {
        /// Path of the token file.
        path: PathBuf,
        /// Permission bits of the file, of which those of group and others must be zero.
        mode: u32,
    },
    /// Not what this program wrote.
    #[error("`{}` does not hold a {role} token: delete it to get a new one", path.display())]
    Damaged {
        /// Path of the token file.
        path: PathBuf,
        /// The role whose token belongs in the file.
        role: Role,
    },
    /// The system has no randomness.
    #[error("cannot get random bytes for a token: {0}")]
    Random(getrandom::Error),
}

type Result<T, E = TokensError> = std::result::Result<T, E>;

/// The tokens of a server, by their hashes: the secrets themselves are only in the files.
#[derive(Debug, Clone)]
pub struct Tokens {
    hashes: Vec<(Role, Digest)>,
}

impl Tokens {
    /// Reads the tokens in `dir`, and makes those that are missing: `DIR/<role>`, mode 0600, the text `swell_<role>_` and 64
    /// hexadecimal digits. Blocks on the disk: for the start of a process.
    ///
    /// # Errors
    /// The disk; a file that others can read or that holds something else.
    pub fn load_or_create(dir: impl AsRef<Path>) -> Result<Self> {
        let dir = dir.as_ref();
        fs::DirBuilder::new().recursive(true).mode(0o700).create(dir).map_err(failed("create", dir))?;
        let mut hashes = Vec::new();
        for role in Role::WITH_TOKEN {
            let path = Self::path(dir, role);
            if !path.try_exists().map_err(failed("look for", &path))? {
                create(dir, &path, role)?;
            }
            hashes.push((role, Digest::of(Self::read(dir, role)?.as_bytes())));
        }
        Ok(Self { hashes })
    }

    /// Where the token of `role` is kept.
    pub fn path(dir: &Path, role: Role) -> PathBuf {
        dir.join(role.name())
    }

    /// The token of `role`, for a program on the same machine that may read it.
    ///
    /// # Errors
    /// As of [`Tokens::load_or_create`]; also where there is none.
    pub fn read(dir: &Path, role: Role) -> Result<String> {
        let path = Self::path(dir, role);
        let mode = fs::metadata(&path).map_err(failed("read", &path))?.permissions().mode() & 0o777;
        if mode & 0o077 != 0 {
            return Err(TokensError::Exposed { path, mode });
        }
        let text = fs::read_to_string(&path).map_err(failed("read", &path))?;
        let token = text.trim();
        let secret = token.strip_prefix(&prefix(role)).filter(|secret| secret.len() == 2 * SECRET_BYTES);
        match secret {
            Some(secret) if secret.bytes().all(|b| b.is_ascii_hexdigit()) => Ok(token.to_owned()),
            _ => Err(TokensError::Damaged { path, role }),
        }
    }

    /// The role that `token` proves, if any. Takes the same time whichever it is: hashes are compared, all of them and whole.
    pub fn verify(&self, token: &str) -> Option<Role> {
        if token.len() > TOKEN_BYTES_MAX {
            return None;
        }
        let given = Digest::of(token.as_bytes());
        let mut found = None;
        for (role, hash) in &self.hashes {
            if same(&given, hash) {
                found = Some(*role);
            }
        }
        found
    }
}

fn prefix(role: Role) -> String {
    format!("swell_{role}_")
}

/// Compares without stopping at the first difference.
fn same(a: &Digest, b: &Digest) -> bool {
    let difference = a.0.iter().zip(b.0).fold(0, |difference, (a, b)| hint::black_box(difference | (a ^ b)));
    hint::black_box(difference) == 0
}

/// Writes a new token beside `path` and links it there, so that a reader sees a whole one and two makers agree on the first.
fn create(dir: &Path, path: &Path, role: Role) -> Result<()> {
    let mut secret = [0; SECRET_BYTES];
    getrandom::fill(&mut secret).map_err(TokensError::Random)?;
    let new = dir.join(format!(".{role}.{}", hex::encode(Digest::of(&secret).0).split_at(8).0));
    let text = format!("{}{}\n", prefix(role), hex::encode(secret));
    let mut file = fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(&new).map_err(failed("create", &new))?;
    file.write_all(text.as_bytes()).and_then(|()| file.sync_all()).map_err(failed("write", &new))?;
    let linked = fs::hard_link(&new, path);
    fs::remove_file(&new).map_err(failed("remove", &new))?;
    match linked {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => Err(failed("create", path)(error).into()),
        _ => Ok(fs::File::open(dir).and_then(|dir| dir.sync_all()).map_err(failed("sync", dir))?),
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn token_is_made_once_and_proves_its_role() {
        let dir = tempfile::tempdir().unwrap();
        let tokens = Tokens::load_or_create(dir.path().join("tokens")).unwrap();
        let again = Tokens::load_or_create(dir.path().join("tokens")).unwrap();
        for role in Role::WITH_TOKEN {
            let token = Tokens::read(&dir.path().join("tokens"), role).unwrap();
            assert!(token.starts_with(&format!("swell_{role}_")) && token.len() > 70, "{token}");
            assert_eq!((tokens.verify(&token), again.verify(&token)), (Some(role), Some(role)));
            assert_eq!(tokens.verify(&token[..token.len() - 1]), None);
        }
        for bad in ["", "swell_admin_", &"x".repeat(1000)] {
            assert_eq!(tokens.verify(bad), None);
        }
        let files = fs::read_dir(dir.path().join("tokens")).unwrap().count();
        assert_eq!(files, Role::WITH_TOKEN.len(), "nothing is left beside them");
    }

    #[test]
    fn token_that_others_can_read_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        Tokens::load_or_create(dir.path()).unwrap();
        let path = Tokens::path(dir.path(), Role::Admin);
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        fs::set_permissions(&path, fs::Permissions::from_mode(0o644)).unwrap();
        assert!(matches!(Tokens::load_or_create(dir.path()), Err(TokensError::Exposed { mode: 0o644, .. })));
        fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
        fs::write(&path, "swell_viewer_00").unwrap();
        assert!(matches!(Tokens::load_or_create(dir.path()), Err(TokensError::Damaged { role: Role::Admin, .. })));
    }
}
