//! What becomes of a push: its bundle goes to the content store, its refs through the state machine. Knows nothing of git.

use std::{collections::BTreeMap, path::Path, sync::Arc, time::Duration};

use futures::{StreamExt, TryStreamExt, future::BoxFuture};
use sha2::{Digest as _, Sha256};
use tokio::{fs::File, io::AsyncWriteExt};
use tokio_util::io::ReaderStream;

use crate::{
    artifacts::{
        git::{ObjectId, PushRequest, PushSink, RefUpdate as Moved, RepositoryState},
        store::{ContentStore, StoreError},
    },
    model::{
        command::RepositoryAction,
        digest::Digest,
        ids::{IdError, RepositoryName},
        ports::{Proposal, ProposeError, Proposer},
        principal::{Principal, Role},
        rejection::Rejection,
        repository::{Bundle, CommitId, Ref, RefUpdate, Repository},
        tables::{ReadTables, SCAN_RECORDS_MAX, Scan, TablesError, key},
        units::ByteSize,
    },
    raft::{Node, View},
};

/// How long the disk may take for the next chunk of a bundle.
const CHUNK_TIMEOUT: Duration = Duration::from_secs(60);

/// Where this server's hosted repositories keep what is pushed, and read what is agreed.
pub struct Pushes {
    /// State.
    pub node: Node,
    /// Where refs are moved.
    pub proposer: Arc<dyn Proposer>,
    /// Where bundles are kept.
    pub content: Arc<dyn ContentStore>,
}

impl PushSink for Pushes {
    fn push(&self, request: PushRequest) -> BoxFuture<'_, Result<String, String>> {
        Box::pin(async move { self.accept(request).await })
    }

    fn state<'a>(&'a self, repository: &'a RepositoryName) -> BoxFuture<'a, Result<Option<RepositoryState>, String>> {
        Box::pin(async move {
            let view = self.node.linearizable_view().await.map_err(|error| error.to_string())?;
            let name = repository.clone();
            let read = tokio::task::spawn_blocking(move || state(&view, &name)).await.map_err(|error| error.to_string())?;
            read.map_err(|error| error.to_string())
        })
    }

    fn bundle<'a>(&'a self, bundle: &'a Digest, destination: &'a Path) -> BoxFuture<'a, Result<(), String>> {
        Box::pin(async move { self.fetch(*bundle, destination).await.map_err(|error| error.to_string()) })
    }
}

impl Pushes {
    async fn accept(&self, request: PushRequest) -> Result<String, String> {
        let bundle = match &request.bundle_path {
            Some(path) => Some(self.keep(path).await.map_err(|error| error.to_string())?),
            None => None,
        };
        let updates: Result<Vec<RefUpdate>, IdError> = request.updates.iter().map(update).collect();
        let updates = updates.map_err(|error| error.to_string())?;
        let action = RepositoryAction::Push { repository: request.repository.clone(), updates, bundle };
        match self.proposer.propose(Proposal::new(action, pusher(&request.pusher))).await {
            Ok(_) => Ok("accepted: `swell status` shows the builds that follow".to_owned()),
            Err(ProposeError::Rejected(Rejection::RefMoved { .. })) if self.is_done(&request).await? => {
                Ok("accepted before".to_owned())
            }
            Err(error) => Err(match &error {
                ProposeError::Rejected(rejection) => format!("{error}: {}", rejection.hint()),
                _ => format!("{error}: push again"),
            }),
        }
    }

    /// Whether every ref is where the push wants it: it was applied, and its answer was lost.
    async fn is_done(&self, request: &PushRequest) -> Result<bool, String> {
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

fn update(moved: &Moved) -> Result<RefUpdate, IdError> {
    let commit = |id: &Option<ObjectId>| id.as_ref().map(|id| id.as_str().parse::<CommitId>()).transpose();
    Ok(RefUpdate { name: moved.name.clone(), old: commit(&moved.old)?, new: commit(&moved.new)? })
}

fn state(view: &View, name: &RepositoryName) -> Result<Option<RepositoryState>, TablesError> {
    let Some(repository) = view.get::<Repository>(&key(name.as_str()))? else { return Ok(None) };
    let all = Scan::prefix(key(name.as_str()));
    let mut refs = BTreeMap::new();
    for kept in view.scan::<Ref>(&all, SCAN_RECORDS_MAX)? {
        match kept.commit.as_str().parse() {
            Ok(id) => drop(refs.insert(kept.name, id)),
            Err(error) => tracing::error!(repository = %name, git_ref = kept.name, %error, "a ref in state names no object"),
        }
    }
    let bundles = view.scan::<Bundle>(&all, SCAN_RECORDS_MAX)?.into_iter().map(|bundle| bundle.digest).collect();
    Ok(Some(RepositoryState { refs, default_branch: repository.default_branch, bundles }))
}
