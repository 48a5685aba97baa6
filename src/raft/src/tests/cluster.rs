//! Three servers: they elect, replicate, survive the loss of the leader, and bring a laggard forward with a snapshot.

use std::collections::BTreeMap;

use openraft::BasicNode;
use tempfile::TempDir;

use super::{network::Network, *};

pub struct Cluster {
    network: Network,
    nodes: BTreeMap<u64, Node>,
    _dir: Option<TempDir>,
}

impl Cluster {
    async fn start() -> Self {
        let dir = TempDir::new().unwrap();
        let cluster = Self::at(dir.path()).await;
        Self { _dir: Some(dir), ..cluster }
    }

    /// The cluster whose servers are in `dir`, which may be empty.
    pub async fn at(dir: &Path) -> Self {
        let network = Network::default();
        let mut nodes = BTreeMap::new();
        let members: BTreeMap<u64, BasicNode> = (1..=3).map(|id| (id, BasicNode::default())).collect();
        for id in 1..=3 {
            let options = Options { snapshot_every_entries: 30, keep_entries: 5, ..Options::new(dir.join(id.to_string()), id) };
            let members = (id == 3).then(|| members.clone());
            let node = Node::start_with(options, network.end(id), members).await.unwrap();
            network.add(id, &node);
            nodes.insert(id, node);
        }
        Self { network, nodes, _dir: None }
    }

    /// The leader that the nodes other than `without` agree on.
    async fn leader(&self, without: Option<u64>) -> (u64, Node) {
        let mut found = None;
        eventually("a leader", || {
            let others = self.nodes.iter().filter(|(id, _)| Some(**id) != without);
            let leaders: Vec<_> = others.map(|(_, node)| node.leadership().borrow().leader).collect();
            found = leaders[0].filter(|leader| Some(*leader) != without && leaders.iter().all(|other| *other == Some(*leader)));
            found.is_some_and(|leader| self.nodes[&leader].leadership().borrow().is_leader)
        })
        .await;
        let id = found.unwrap();
        (id, self.nodes[&id].clone())
    }

    /// Cuts one server off until the others have purged what it lacks, up to `r99`.
    async fn leave_one_behind(&self) -> u64 {
        let (id, leader) = self.leader(None).await;
        applied(&leader, "before").await;
        self.all_have("before").await;
        let away = *self.nodes.keys().find(|other| **other != id).unwrap();
        self.network.cut(away, true);
        let was = self.nodes[&away].view().applied();
        for number in 0..100 {
            applied(&leader, &format!("r{number}")).await;
        }
        eventually("the log is purged", || leader.purged() > Some(was)).await;
        assert_eq!(self.network.snapshots_sent(), 0);
        away
    }

    /// A server that was away comes back, and gets a snapshot.
    pub async fn bring_one_forward(&self) {
        let away = self.leave_one_behind().await;
        self.network.cut(away, false);
        self.all_have("r99").await;
    }

    pub async fn all_have(&self, name: &str) {
        for (id, node) in &self.nodes {
            eventually(&format!("{name} on {id}"), || names(&node.view()).contains(&name.to_owned())).await;
        }
    }

    pub async fn stop(self) {
        self.network.clear();
        for node in self.nodes.values() {
            node.shutdown().await.unwrap();
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cluster_survives_its_leader_and_is_not_disturbed_when_it_returns() {
    let cluster = Cluster::start().await;
    let (first, leader) = cluster.leader(None).await;
    applied(&leader, "one").await;
    cluster.all_have("one").await;
    let follower = cluster.nodes.iter().find(|(id, _)| **id != first).unwrap().1;
    assert!(matches!(follower.propose(create("elsewhere")).await, Err(ProposeError::NoLeader)));
    assert!(matches!(follower.linearizable_view().await, Err(ProposeError::NoLeader)));

    cluster.network.cut(first, true);
    let (second, leader) = cluster.leader(Some(first)).await;
    applied(&leader, "two").await;
    let cut_off = &cluster.nodes[&first];
    let minority = tokio::time::timeout(Duration::from_secs(3), cut_off.propose(create("minority"))).await;
    assert!(!matches!(minority, Ok(Ok(_))), "the minority agrees on nothing");
    assert!(!names(&cut_off.view()).contains(&"two".to_owned()));

    let term = leader.leadership().borrow().term;
    cluster.network.cut(first, false);
    cluster.all_have("two").await;
    applied(&leader, "three").await;
    cluster.all_have("three").await;
    let (now, _) = cluster.leader(None).await;
    assert_eq!((now, leader.leadership().borrow().term), (second, term), "its return deposes nobody");
    assert!(cluster.nodes.values().all(|node| !names(&node.view()).contains(&"minority".to_owned())));

    leader.raft().trigger().transfer_leader(first).await.unwrap();
    eventually("the leadership is handed over", || cluster.nodes[&first].leadership().borrow().is_leader).await;
    applied(&cluster.nodes[&first], "four").await;
    cluster.all_have("four").await;
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_that_was_away_for_long_is_brought_forward_by_a_snapshot() {
    let cluster = Cluster::start().await;
    let away = cluster.leave_one_behind().await;
    let was = cluster.nodes[&away].view();
    let (_, leader) = cluster.leader(Some(away)).await;
    cluster.network.cut(away, false);
    cluster.all_have("r99").await;
    assert!(cluster.network.snapshots_sent() > 0);
    assert_eq!(names(&cluster.nodes[&away].view()), names(&leader.view()));
    // Views show an event before followers are told of it.
    let (told, expected) = (cluster.nodes[&away].last_event(), leader.last_event());
    eventually("followers are told of the newest event", || *told.borrow() == *expected.borrow()).await;
    assert_eq!(names(&was), ["before"], "who read the former state still does");
    drop(was);
    applied(&leader, "after").await;
    cluster.all_have("after").await;
    cluster.stop().await;
}
