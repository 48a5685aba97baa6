//! Checks entries as they would be created on a disk, without creating them. Must refuse whatever [`super::disk`] would refuse.

use std::{collections::BTreeMap, io::Read};

use super::{FileHeader, NO_FILE, NO_FOLDER, Place, Result, UnpackError, each_chunk, refused};
use crate::tree::as_path;

#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    Folder,
    File,
    Link,
}

/// Entries so far. The caller bounds their names.
#[derive(Default)]
pub(super) struct Seen(BTreeMap<Vec<u8>, Kind>);

impl Seen {
    fn make(&mut self, path: &[u8], kind: Kind) -> Result<()> {
        if let Some(slash) = path.iter().rposition(|byte| *byte == b'/')
            && self.0.get(&path[..slash]) != Some(&Kind::Folder)
        {
            return Err(refused(path, NO_FOLDER));
        }
        match self.0.insert(path.to_vec(), kind) {
            None => Ok(()),
            Some(_) => Err(UnpackError::Duplicate(as_path(path))),
        }
    }
}

impl Place for Seen {
    fn folder(&mut self, path: Vec<u8>, _: u64) -> Result<()> {
        self.make(&path, Kind::Folder)
    }

    fn file(&mut self, path: &[u8], header: FileHeader, content: &mut dyn Read) -> Result<()> {
        self.make(path, Kind::File)?;
        each_chunk(content, header.size, |_| Ok(()))
    }

    fn symbolic_link(&mut self, path: &[u8], _: &[u8]) -> Result<()> {
        self.make(path, Kind::Link)
    }

    fn hard_link(&mut self, path: &[u8], to: &[u8]) -> Result<()> {
        if self.0.get(to) != Some(&Kind::File) {
            return Err(refused(path, NO_FILE));
        }
        self.make(path, Kind::File)
    }
}
