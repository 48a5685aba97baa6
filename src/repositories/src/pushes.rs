//! The [`PushSink`] of a server: bundles go to the content store, refs through the state machine. Knows nothing of git.

use std::{collections::BTreeMap, path::Path, sync::Arc, time::Duration};

use futures::{StreamExt, TryStreamExt, future::BoxFuture};
use sha2::{Digest as _, Sha256};
use tokio::{fs::File, io::AsyncWriteExt};
use tokio_util::io::ReaderStream;

use crate::{PushRequest, PushSink, RepositoryState, SinkError};
use swell_artifacts::store::{ContentStore, StoreError};
use swell_model::{
    command::RepositoryAction,
    digest::Digest,
    ids::RepositoryName,
    interfaces::{Proposal, ProposeError, Proposer},
    pipeline::{Pipeline, Source},
    principal::{Principal, Role},
    rejection::Rejection,
    repository::{Bundle, Ref, Repository},
    tables::{ReadTables, SCAN_RECORDS_MAX, Scan, TablesError, key},
    units::ByteSize,
};
use swell_raft::{Node, View};

/// How long the disk may take for the next chunk of a bundle.
const CHUNK_TIMEOUT: Duration = Duration::from_secs(60);

/// Keeps what is pushed to this server's hosted repositories, and reads what is agreed.
pub struct Pushes {
    pub node: Node,
    pub proposer: Arc<dyn Proposer>,
    /// The store of the bundles that pushes are kept in.
    pub content: Arc<dyn ContentStore>,
}

impl PushSink for Pushes {
    fn push(&self, request: PushRequest) -> BoxFuture<'_, Result<String, SinkError>> {
        Box::pin(async move { self.accept(request).await })
    }

    fn state<'a>(&'a self, repository: &'a RepositoryName) -> BoxFuture<'a, Result<Option<RepositoryState>, SinkError>> {
        Box::pin(async move { self.read(repository, state).await })
    }

    fn bundles<'a>(&'a self, repository: &'a RepositoryName) -> BoxFuture<'a, Result<Vec<Digest>, SinkError>> {
        Box::pin(async move { self.read(repository, bundles).await })
    }

    fn bundle<'a>(&'a self, bundle: &'a Digest, destination: &'a Path) -> BoxFuture<'a, Result<(), SinkError>> {
        Box::pin(async move { self.fetch(*bundle, destination).await.map_err(SinkError::failed("fetch a bundle")) })
    }
}

impl Pushes {
    /// Reads what is agreed now about `repository`.
    async fn read<T: Send + 'static>(
        &self,
        repository: &RepositoryName,
        read: fn(&View, &RepositoryName) -> Result<T, TablesError>,
    ) -> Result<T, SinkError> {
        let view = self.node.linearizable_view().await.map_err(SinkError::Undecided)?;
        let name = repository.clone();
        let read = tokio::task::spawn_blocking(move || read(&view, &name)).await;
        read.map_err(SinkError::failed("read a repository"))?.map_err(SinkError::failed("read a repository"))
    }

    async fn accept(&self, request: PushRequest) -> Result<String, SinkError> {
        let bundle = match &request.bundle_path {
            Some(path) => Some(self.keep(path).await.map_err(SinkError::failed("keep the bundle of a push"))?),
            None => None,
        };
        let (repository, updates) = (request.repository.clone(), request.updates.clone());
        let action = RepositoryAction::Push { repository, updates, bundle };
        match self.proposer.propose(Proposal::new(action, pusher(&request.pusher))).await {
            Ok(_) => Ok(self.what_happens_now(&request)),
            Err(ProposeError::Rejected(Rejection::RefMoved { .. })) if self.is_done(&request).await? => {
                Ok("accepted before".to_owned())
            }
            Err(ProposeError::Rejected(rejection)) => Err(SinkError::Refused(rejection)),
            Err(error) => Err(SinkError::Undecided(error)),
        }
    }

    /// The line for the pusher: which pipelines consider the push.
    fn what_happens_now(&self, request: &PushRequest) -> String {
        let repository = &request.repository;
        if !request.updates.iter().any(|update| update.new.is_some() && update.name.starts_with("refs/heads/")) {
            return String::new();
        }
        // Only a word for the pusher: where it cannot be read, the push is accepted all the same.
        let pipelines = self.node.view().scan::<Pipeline>(&Scan::all(), SCAN_RECORDS_MAX).unwrap_or_default();
        let of_it = |pipeline: &Pipeline| matches!(&pipeline.source, Source::Hosted(name) if name == repository);
        let names: Vec<String> = pipelines.into_iter().filter(of_it).map(|pipeline| pipeline.name.to_string()).collect();
        match names.as_slice() {
            [] => format!("no pipeline builds this repository yet: `swell pipeline create NAME --repo {repository}`"),
            [one] => format!("pipeline {one} looks at it: `swell status {one}`"),
            several => format!("pipelines {} look at it: `swell status`", several.join(", ")),
        }
    }

    /// Whether every ref is where the push wants it: it was applied, and its answer was lost.
    async fn is_done(&self, request: &PushRequest) -> Result<bool, SinkError> {
        let Some(now) = self.state(&request.repository).await? else { return Ok(false) };
        Ok(request.updates.iter().all(|update| now.refs.get(&update.name) == update.new.as_ref()))
    }

    async fn keep(&self, path: &Path) -> Result<(Digest, ByteSize), StoreError> {
        let file = File::open(path).await.map_err(StoreError::Incoming)?;
        let stored = self.content.put(ReaderStream::with_capacity(file, 256 << 10).boxed(), None).await?;
        Ok((stored.digest, ByteSize(stored.size)))
    }

    async fn fetch(&self, digest: Digest, destination: &Path) -> Result<(), StoreError> {
        let stored = self.content.stat(digest).await?.ok_or(StoreError::NotFound(digest))?;
        let mut content = self.content.get_range(digest, 0..stored.size).await?;
        let mut file = File::create_new(destination).await.map_err(StoreError::Incoming)?;
        let mut hasher = Sha256::new();
        while let Some(chunk) = tokio::time::timeout(CHUNK_TIMEOUT, content.try_next())
            .await
            .map_err(std::io::Error::from)
            .flatten()
            .map_err(StoreError::Incoming)?
        {
            hasher.update(&chunk);
            file.write_all(&chunk).await.map_err(StoreError::Incoming)?;
        }
        file.flush().await.map_err(StoreError::Incoming)?;
        let found = Digest(hasher.finalize().into());
        if found != digest {
            return Err(StoreError::Mismatch { expected: digest, found, size: stored.size });
        }
        Ok(())
    }
}

/// Who pushes, as [`Principal`] writes itself.
fn pusher(text: &str) -> Principal {
    let known = text.split_once(':').and_then(|(role, name)| Some(Principal::new(role.parse::<Role>().ok()?, name)));
    known.unwrap_or_else(|| Principal::new(Role::Developer, text))
}

/// All of its refs: one that is overlooked would be deleted from the cache, and with it what builds read.
fn state(tables: &impl ReadTables, name: &RepositoryName) -> Result<Option<RepositoryState>, TablesError> {
    let Some(repository) = tables.get::<Repository>(&key(name.as_str()))? else { return Ok(None) };
    let mut refs = BTreeMap::new();
    tables.for_each(Scan::prefix(key(name.as_str())), |kept: Ref| drop(refs.insert(kept.name, kept.commit)))?;
    Ok(Some(RepositoryState { refs, default_branch: repository.default_branch }))
}

fn bundles(tables: &impl ReadTables, name: &RepositoryName) -> Result<Vec<Digest>, TablesError> {
    let mut bundles = Vec::new();
    tables.for_each(Scan::prefix(key(name.as_str())), |bundle: Bundle| bundles.push(bundle.digest))?;
    Ok(bundles)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use swell_model::{
        tables::{MemoryTables, Tables},
        units::Timestamp,
    };

    #[test]
    fn repository_with_more_refs_than_one_scan_is_read_whole() {
        let repository: RepositoryName = "shop".parse().unwrap();
        let mut tables = MemoryTables::new();
        let created_at = Timestamp(1);
        let record = Repository { name: repository.clone(), default_branch: "main".into(), next_bundle: 3, created_at };
        tables.put(&record).unwrap();
        let count = SCAN_RECORDS_MAX + 1;
        for number in 0..count {
            let name = format!("refs/tags/v{number:06}");
            let commit = "4b825dc642cb6eb9a060e54bf8d69288fbee4904".parse().unwrap();
            let moved_by = Principal::new(Role::Developer, "ada");
            tables.put(&Ref { repository: repository.clone(), name, commit, moved_at: created_at, moved_by }).unwrap();
        }
        for number in [2, 0, 1] {
            let digest = Digest([number; 32]);
            tables.put(&Bundle { repository: repository.clone(), number: number.into(), digest, size: ByteSize(1) }).unwrap();
        }
        assert_eq!(state(&tables, &repository).unwrap().unwrap().refs.len(), count);
        assert_eq!(bundles(&tables, &repository).unwrap(), [0, 1, 2].map(|number| Digest([number; 32])), "in their order");
    }
}
