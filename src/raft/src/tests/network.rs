//! A network between nodes of one process: calls to the other node, over links that can be cut.

use std::{
    collections::{BTreeMap, BTreeSet},
    error::Error,
    sync::{Arc, Mutex},
};

use openraft::{
    BasicNode, OptionalSend, RaftNetworkFactory, RaftNetworkV2,
    errors::{RPCError, ReplicationClosed, StreamingError, Unreachable},
    network::{Backoff, RPCOption},
    raft::{
        AppendEntriesRequest, AppendEntriesResponse, SnapshotResponse, TransferLeaderRequest, TransferLeaderResponse,
        VoteRequest, VoteResponse,
    },
};

use super::{super::network::unreachable, *};
use crate::types::{Snapshot, Types, Vote};
use swell_storage::checkpoint::SnapshotDir;

#[derive(Default)]
struct Links {
    nodes: BTreeMap<u64, Node>,
    cut: BTreeSet<u64>,
    snapshots_sent: usize,
}

/// The links of one test, or one node's end of them.
#[derive(Clone, Default)]
pub struct Network {
    links: Arc<Mutex<Links>>,
    from: u64,
}

impl Network {
    /// The end of node `from`.
    pub fn end(&self, from: u64) -> Self {
        Self { links: Arc::clone(&self.links), from }
    }

    pub fn add(&self, id: u64, node: &Node) {
        self.links.lock().unwrap().nodes.insert(id, node.clone());
    }

    pub fn remove(&self, id: u64) {
        self.links.lock().unwrap().nodes.remove(&id);
    }

    /// Cuts the node off from all others, or heals that.
    pub fn cut(&self, id: u64, cut: bool) {
        let mut links = self.links.lock().unwrap();
        if cut {
            links.cut.insert(id)
        } else {
            links.cut.remove(&id)
        };
    }

    pub fn snapshots_sent(&self) -> usize {
        self.links.lock().unwrap().snapshots_sent
    }

    pub fn clear(&self) {
        self.links.lock().unwrap().nodes.clear();
    }
}

impl RaftNetworkFactory<Types> for Network {
    type Network = Link;

    async fn new_client(&mut self, to: u64, _: &BasicNode) -> Link {
        Link { network: self.clone(), to }
    }
}

pub struct Link {
    network: Network,
    to: u64,
}

impl Link {
    fn peer(&self) -> Result<Node, Unreachable<Types>> {
        let links = self.network.links.lock().unwrap();
        if links.cut.contains(&self.to) || links.cut.contains(&self.network.from) {
            return Err(unreachable("the link is cut"));
        }
        links.nodes.get(&self.to).cloned().ok_or_else(|| unreachable("the node is not started"))
    }

    /// A request over the link, and its answer back over it.
    async fn call<T, E, F>(&self, request: impl FnOnce(Node) -> F) -> Result<T, Unreachable<Types>>
    where
        E: Error + 'static,
        F: Future<Output = Result<T, E>>,
    {
        let answer = request(self.peer()?).await.map_err(|error| Unreachable::new(&error))?;
        self.peer()?;
        Ok(answer)
    }
}

impl RaftNetworkV2<Types> for Link {
    type SnapshotData = SnapshotDir;

    async fn append_entries(
        &mut self,
        request: AppendEntriesRequest<Types>,
        _: RPCOption,
    ) -> Result<AppendEntriesResponse<Types>, RPCError<Types>> {
        Ok(self.call(|peer| async move { peer.raft().append_entries(request).await }).await?)
    }

    async fn vote(&mut self, request: VoteRequest<Types>, _: RPCOption) -> Result<VoteResponse<Types>, RPCError<Types>> {
        Ok(self.call(|peer| async move { peer.raft().vote(request).await }).await?)
    }

    async fn pre_vote(&mut self, request: VoteRequest<Types>, _: RPCOption) -> Result<VoteResponse<Types>, RPCError<Types>> {
        Ok(self.call(|peer| async move { peer.raft().pre_vote(request).await }).await?)
    }

    async fn transfer_leader(
        &mut self,
        request: TransferLeaderRequest<Types>,
        _: RPCOption,
    ) -> Result<TransferLeaderResponse<Types>, RPCError<Types>> {
        Ok(self.call(|peer| async move { peer.raft().handle_transfer_leader(request).await }).await?)
    }

    async fn full_snapshot(
        &mut self,
        vote: Vote,
        snapshot: Snapshot,
        cancel: impl Future<Output = ReplicationClosed> + OptionalSend + 'static,
        _: RPCOption,
    ) -> Result<SnapshotResponse<Types>, StreamingError<Types>> {
        let peer = self.peer()?;
        let coming = peer.snapshots().unfinished();
        snapshot.snapshot.copy(&coming).unwrap();
        self.network.links.lock().unwrap().snapshots_sent += 1;
        let snapshot = Snapshot { meta: snapshot.meta, snapshot: SnapshotDir::open(&coming).unwrap() };
        tokio::select! {
            closed = cancel => Err(closed.into()),
            answer = self.call(|peer| async move { peer.raft().install_full_snapshot(vote, snapshot).await }) => Ok(answer?),
        }
    }

    fn backoff(&self) -> Option<Backoff> {
        Some(Backoff::new(std::iter::repeat(Duration::from_millis(50))))
    }
}
