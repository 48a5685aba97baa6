//! What a push to a hosted repository means: its objects are stored durably, then its refs are moved by compare-and-swap, and only
//! then does git answer. Knows nothing of git's protocol.

use std::{path::Path, sync::Arc};

use futures::{StreamExt as _, TryStreamExt as _, future::BoxFuture};
use tokio::io::AsyncWriteExt as _;
use tokio_util::io::ReaderStream;

use crate::{
    artifacts::{
        git::{PushRequest, PushSink, RepositoryState},
        store::ContentStore,
    },
    model::{
        command::RepositoryAction,
        digest::Digest,
        ids::RepositoryName,
        pipeline::{Pipeline, Source},
        ports::{Proposal, ProposeError, Proposer},
        principal::{Principal, Role},
        repository::{Bundle, Ref, Repository},
        tables::{ReadTables, SCAN_RECORDS_MAX, Scan, key},
        units::ByteSize,
    },
    raft::Node,
};

/// Makes pushes durable and agreed. Cheap to clone.
#[derive(Clone)]
pub struct Pushes {
    /// State.
    pub node: Node,
    /// Where bundles are kept.
    pub content: Arc<dyn ContentStore>,
}

impl PushSink for Pushes {
    fn push(&self, request: PushRequest) -> BoxFuture<'_, Result<String, String>> {
        Box::pin(async move {
            let bundle = match &request.bundle_path {
                Some(path) => Some(self.store(path).await?),
                None => None,
            };
            let (repository, updates) = (request.repository.clone(), request.updates);
            let action = RepositoryAction::Push { repository, updates: updates.clone(), bundle };
            let proposal = Proposal::new(action, Principal::new(Role::Developer, request.pusher));
            match self.node.propose(proposal).await {
                Ok(_) => self.what_happens_now(&request.repository, &updates),
                Err(ProposeError::Rejected(rejection)) => Err(format!("{rejection}: {}", rejection.hint())),
                Err(error) => Err(format!("{error}; push again")),
            }
        })
    }

    fn state<'a>(&'a self, repository: &'a RepositoryName) -> BoxFuture<'a, Result<Option<RepositoryState>, String>> {
        Box::pin(async move {
            let view = self.node.linearizable_view().await.map_err(|error| error.to_string())?;
            let name = repository.clone();
            tokio::task::spawn_blocking(move || {
                let Some(kept) = view.get::<Repository>(&key(name.as_str()))? else { return Ok(None) };
                let of_it = Scan::prefix(key(name.as_str()));
                let refs = view.scan::<Ref>(&of_it, SCAN_RECORDS_MAX)?.into_iter().map(|kept| (kept.name, kept.commit)).collect();
                let bundles = view.scan::<Bundle>(&of_it, SCAN_RECORDS_MAX)?.into_iter().map(|bundle| bundle.digest).collect();
                Ok(Some(RepositoryState { refs, default_branch: kept.default_branch, bundles }))
            })
            .await
            .map_err(|error| error.to_string())?
            .map_err(|error: crate::model::tables::TablesError| error.to_string())
        })
    }

    fn bundle<'a>(&'a self, bundle: &'a Digest, destination: &'a Path) -> BoxFuture<'a, Result<(), String>> {
        Box::pin(async move {
            let stored = self.content.stat(*bundle).await.map_err(|error| error.to_string())?;
            let stored = stored.ok_or_else(|| format!("the bundle {bundle} is not in the content store"))?;
            let mut stream = self.content.get_range(*bundle, 0..stored.size).await.map_err(|error| error.to_string())?;
            let mut file = tokio::fs::File::create_new(destination).await.map_err(|error| error.to_string())?;
            while let Some(chunk) = stream.next().await {
                let chunk = chunk.map_err(|error| error.to_string())?;
                file.write_all(&chunk).await.map_err(|error| error.to_string())?;
            }
            file.flush().await.map_err(|error| error.to_string())
        })
    }
}

impl Pushes {
    async fn store(&self, path: &Path) -> Result<(Digest, ByteSize), String> {
        let file = tokio::fs::File::open(path).await.map_err(|error| format!("cannot read the pushed objects: {error}"))?;
        let stream = ReaderStream::new(file).map_err(std::io::Error::other).boxed();
        let stored = self.content.put(stream, None).await;
        let stored = stored.map_err(|error| format!("cannot store the pushed objects: {error}; push again when that is mended"))?;
        Ok((stored.digest, ByteSize(stored.size)))
    }

    /// What the pusher is told: which pipelines look at the push.
    fn what_happens_now(&self, repository: &RepositoryName, updates: &[crate::model::repository::RefUpdate]) -> Result<String, String> {
        let moves_branch = updates.iter().any(|update| update.new.is_some() && update.name.starts_with("refs/heads/"));
        if !moves_branch {
            return Ok(String::new());
        }
        let pipelines = self.node.view().scan::<Pipeline>(&Scan::all(), SCAN_RECORDS_MAX).unwrap_or_default();
        let of_it = |pipeline: &Pipeline| matches!(&pipeline.source, Source::Hosted(name) if name == repository);
        let names: Vec<String> = pipelines.into_iter().filter(of_it).map(|pipeline| pipeline.name.to_string()).collect();
        Ok(match names.as_slice() {
            [] => format!("no pipeline builds this repository yet: `swell pipeline create NAME --repo {repository}`"),
            [one] => format!("pipeline {one} looks at it: `swell status {one}`"),
            several => format!("pipelines {} look at it: `swell status`", several.join(", ")),
        })
    }
}
