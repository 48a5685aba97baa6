//! The network between servers, as openraft sees it. For now a cluster has one voter and nobody to talk to.

use std::io;

use openraft::{
    AnyError, BasicNode, OptionalSend, RaftNetworkFactory, RaftNetworkV2,
    errors::{RPCError, ReplicationClosed, StreamingError, Unreachable},
    network::RPCOption,
    raft::{AppendEntriesRequest, AppendEntriesResponse, SnapshotResponse, VoteRequest, VoteResponse},
};

use super::types::{Snapshot, Types, Vote};
use swell_storage::checkpoint::SnapshotDir;

/// A network without peers.
pub struct NoPeers;

impl RaftNetworkFactory<Types> for NoPeers {
    type Network = NoPeers;

    async fn new_client(&mut self, _: u64, _: &BasicNode) -> NoPeers {
        NoPeers
    }
}

/// openraft's error for a peer that cannot be reached.
pub fn unreachable(why: &str) -> Unreachable<Types> {
    Unreachable::new(&AnyError::new(&io::Error::other(why.to_owned())))
}

const NO_PEERS: &str = "this server has no way to other servers yet";

impl RaftNetworkV2<Types> for NoPeers {
    type SnapshotData = SnapshotDir;

    async fn append_entries(
        &mut self,
        _: AppendEntriesRequest<Types>,
        _: RPCOption,
    ) -> Result<AppendEntriesResponse<Types>, RPCError<Types>> {
        Err(unreachable(NO_PEERS).into())
    }

    async fn vote(&mut self, _: VoteRequest<Types>, _: RPCOption) -> Result<VoteResponse<Types>, RPCError<Types>> {
        Err(unreachable(NO_PEERS).into())
    }

    /// Without this every request would be granted unasked.
    async fn pre_vote(&mut self, _: VoteRequest<Types>, _: RPCOption) -> Result<VoteResponse<Types>, RPCError<Types>> {
        Err(unreachable(NO_PEERS).into())
    }

    async fn full_snapshot(
        &mut self,
        _: Vote,
        _: Snapshot,
        _: impl Future<Output = ReplicationClosed> + OptionalSend + 'static,
        _: RPCOption,
    ) -> Result<SnapshotResponse<Types>, StreamingError<Types>> {
        Err(unreachable(NO_PEERS).into())
    }
}
