//! Deletes content that no record of state names any more: what refused pushes, canceled builds and expired artifacts left in a server's
//! store. What a record is and names is the model's to say; when this runs is the caller's.

use std::collections::BTreeSet;

use swell_artifacts::store::{ContentStore, StoreError};
use swell_model::{
    digest::Digest, interfaces::ProposeError, release::retention::unnamed_content, tables::TablesError, units::Millis,
};
use swell_raft::Node;

/// So many digests are compared with state at once: 64 MiB of memory.
const AT_ONCE: usize = 1_000_000;
const PAGE: usize = 10_000;

/// Why content was not swept, or not all of it.
#[derive(Debug, thiserror::Error)]
pub enum SweepError {
    /// State cannot be read as it is now; without it nothing is known to be garbage.
    #[error("the cluster's state cannot be read, so nothing is swept: {0}")]
    NoState(#[from] ProposeError),
    /// State cannot be read at all.
    #[error(transparent)]
    Tables(#[from] TablesError),
    /// The store does not answer.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The process is ending.
    #[error("reading state was broken off: {0}")]
    Ending(#[from] tokio::task::JoinError),
}

/// Deletes what no record names and nobody put or leased within `unused_for`, which must be longer than anyone takes from storing content
/// to naming it. Returns how many objects went.
///
/// # Errors
/// Where this server does not lead, or its store fails; what was deleted until then was garbage.
pub async fn sweep_unnamed(node: &Node, content: &dyn ContentStore, unused_for: Millis) -> Result<usize, SweepError> {
    let (mut deleted, mut after) = (0, None);
    loop {
        let stored = some_stored(content, after).await?;
        let Some(last) = stored.last().copied() else { return Ok(deleted) };
        after = Some(last);
        // Only after the listing, so that whatever was named before its content was seen here is in it.
        let view = node.linearizable_view().await?;
        let unnamed = tokio::task::spawn_blocking(move || unnamed_content(&view, stored)).await??;
        for digest in unnamed {
            match content.delete_unused(digest, unused_for).await {
                Ok(went) => deleted += usize::from(went),
                Err(StoreError::Leased { .. }) => {}
                Err(error) => return Err(error.into()),
            }
        }
    }
}

async fn some_stored(content: &dyn ContentStore, mut after: Option<Digest>) -> Result<BTreeSet<Digest>, StoreError> {
    let mut stored = BTreeSet::new();
    while stored.len() < AT_ONCE {
        let page = content.list(after, PAGE).await?;
        let Some(last) = page.last() else { break };
        after = Some(last.digest);
        stored.extend(page.into_iter().map(|object| object.digest));
    }
    Ok(stored)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::time::Duration;

    use super::*;
    use swell_artifacts::store::{Embedded, EmbeddedOptions, stream_of};
    use swell_model::{
        apply::testing::FILE,
        command::{Action, ArtifactAction, BuildAction, PipelineAction, RepositoryAction, StoredArtifact},
        interfaces::{Proposal, Proposer},
        pipeline::{Retention, Source},
        pipeline_file::PipelineFile,
        principal::{Principal, Role},
        repository::RefUpdate,
        units::ByteSize,
    };
    use swell_raft::Options;

    const SOON: Duration = Duration::from_secs(20);

    async fn apply(node: &Node, action: impl Into<Action>) {
        node.propose(Proposal::new(action, Principal::new(Role::Admin, "ada"))).await.unwrap();
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn garbage_goes_and_what_state_names_stays() {
        let dir = tempfile::tempdir().unwrap();
        let node = Node::start(Options::new(dir.path().join("raft"), 1)).await.unwrap();
        tokio::time::timeout(SOON, node.leadership().wait_for(|now| now.is_leader)).await.unwrap().unwrap();
        // As if all of this had been stored long ago.
        let old = EmbeddedOptions { lease: Millis(0), tombstone: Millis(0), ..EmbeddedOptions::default() };
        let content = Embedded::open(dir.path().join("content"), old).await.unwrap();
        let mut stored = Vec::new();
        for text in ["archive", "manifest", "bundle", "garbage", "more garbage"] {
            stored.push(content.put(stream_of(text), None).await.unwrap().digest);
        }
        let [archive, manifest, bundle, ..] = stored[..] else { unreachable!() };

        apply(&node, RepositoryAction::Create { name: "shop".parse().unwrap(), default_branch: "main".into() }).await;
        let new = Some("4b825dc642cb6eb9a060e54bf8d69288fbee4904".parse().unwrap());
        let updates = vec![RefUpdate { name: "refs/heads/main".into(), old: None, new }];
        let repository = "shop".parse().unwrap();
        apply(&node, RepositoryAction::Push { repository, updates, bundle: Some((bundle, ByteSize(6))) }).await;
        let create = PipelineAction::Create {
            name: "shop".parse().unwrap(),
            source: Source::Remote("https://git.example/shop".into()),
            file: "swell.toml".into(),
            concurrency: 1,
            supersede: true,
            retention: Retention { age: Millis(0), ..Retention::default() },
        };
        apply(&node, create).await;
        let push = BuildAction::ImportArtifact {
            pipeline: "shop".parse().unwrap(),
            commit: "4b825dc642cb6eb9a060e54bf8d69288fbee4904".parse().unwrap(),
            git_ref: "HEAD".into(),
            artifact: StoredArtifact { digest: archive, size: ByteSize(7), unpacked_size: ByteSize(9), manifest },
            file: Box::new(PipelineFile::parse(FILE).unwrap()),
        };
        apply(&node, push).await;

        assert_eq!(sweep_unnamed(&node, &content, Millis::from_secs(86_400)).await.unwrap(), 0, "all of it is young");
        assert_eq!(sweep_unnamed(&node, &content, Millis(0)).await.unwrap(), 2);
        let left: BTreeSet<_> = content.list(None, 10).await.unwrap().into_iter().map(|object| object.digest).collect();
        assert_eq!(left, [archive, manifest, bundle].into());

        apply(&node, PipelineAction::Remove { name: "shop".parse().unwrap() }).await;
        apply(&node, ArtifactAction::Delete { digests: vec![archive] }).await;
        assert_eq!(sweep_unnamed(&node, &content, Millis(0)).await.unwrap(), 2, "the archive and its manifest");
        content.put(stream_of("late garbage"), None).await.unwrap();
        node.shutdown().await.unwrap();
        sweep_unnamed(&node, &content, Millis(0)).await.unwrap_err();
        assert_eq!(content.list(None, 10).await.unwrap().len(), 2, "where state is not known, nothing is garbage");
    }
}
