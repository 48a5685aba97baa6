//! Three servers: they elect, replicate, survive the loss of the leader, and bring a laggard forward with a snapshot.

use std::{collections::BTreeMap, path::PathBuf};

use openraft::BasicNode;
use tempfile::TempDir;

use super::{network::Network, *};
use swell_storage::{
    EventsError,
    log::{RaftLog, gate::Passage},
};

pub struct Cluster {
    network: Network,
    nodes: BTreeMap<u64, Node>,
    path: PathBuf,
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
        let mut cluster = Self { network: Network::default(), nodes: BTreeMap::new(), path: dir.to_owned(), _dir: None };
        let members: BTreeMap<u64, BasicNode> = (1..=3).map(|id| (id, BasicNode::default())).collect();
        for id in 1..=3 {
            cluster.start_node(id, (id == 3).then(|| members.clone())).await;
        }
        cluster
    }

    async fn start_node(&mut self, id: u64, members: Option<BTreeMap<u64, BasicNode>>) {
        let dir = self.path.join(id.to_string());
        let options = Options { snapshot_every_entries: 30, keep_entries: 5, ..Options::new(dir, id) };
        let node = Node::start_with(options, self.network.end(id), members).await.unwrap();
        self.network.add(id, &node);
        self.nodes.insert(id, node);
    }

    /// Ends a server as a kill does: what its log has not written yet never gets there.
    async fn kill(&mut self, id: u64) {
        self.network.remove(id);
        let node = self.nodes.remove(&id).unwrap();
        node.writer_gate().set(Passage::Dead);
        // It may say that its log failed: that is how it dies.
        node.shutdown().await.ok();
    }

    async fn restart(&mut self, id: u64) {
        self.start_node(id, None).await;
    }

    /// The servers other than `id`.
    fn others(&self, id: u64) -> [u64; 2] {
        let others: Vec<u64> = self.nodes.keys().copied().filter(|other| *other != id).collect();
        others.try_into().unwrap()
    }

    /// Waits until all servers have `name`, and the same repositories.
    async fn agrees_on(&self, name: &str) {
        self.all_have(name).await;
        let all: Vec<_> = self.nodes.values().map(|node| names(&node.view())).collect();
        assert!(all.windows(2).all(|pair| pair[0] == pair[1]), "the servers' states differ: {all:?}");
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
async fn returning_leader_that_was_cut_off_deposes_nobody() {
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
async fn server_that_was_away_for_long_catches_up_with_a_snapshot() {
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
    let (ours, theirs) = (cluster.nodes[&away].events(), leader.events());
    let all = theirs.range(EventSeq::default(), 1000).unwrap();
    let known = ours.range(EventSeq::default(), 1000).unwrap();
    assert!(!known.is_empty() && all.starts_with(&known) && known.len() < 100, "{} of {}", known.len(), all.len());
    let gone = ours.range(known.last().unwrap().seq, 10);
    let Err(EventsError::Gone { resume_after, .. }) = gone else { panic!("a gap was passed over: {gone:?}") };
    assert!(resume_after > known.last().unwrap().seq);
    drop(was);
    applied(&leader, "after").await;
    cluster.all_have("after").await;
    let after = ours.range(resume_after, 1000).unwrap();
    assert!(
        !after.is_empty()
            && all.iter().chain(&theirs.range(all.last().unwrap().seq, 10).unwrap()).any(|event| *event == after[0])
    );
    cluster.stop().await;
}

/// With a leader that resumed its term, the follower would keep `unsynced` where the others have `next`: two states, unnoticed.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn leader_killed_before_its_own_sync_does_not_reuse_a_term_and_index() {
    let mut cluster = Cluster::start().await;
    let (first, leader) = cluster.leader(None).await;
    applied(&leader, "before").await;
    cluster.all_have("before").await;
    let [holder, away] = cluster.others(first);
    cluster.network.cut(away, true);
    leader.writer_gate().set(Passage::Held);
    let last = cluster.nodes[&holder].status().last_log;
    let proposing = tokio::spawn(async move { leader.propose(create("unsynced")).await.map(drop) });
    eventually("a follower holds the entry", || cluster.nodes[&holder].status().last_log > last).await;
    cluster.kill(first).await;
    assert!(proposing.await.unwrap().is_err(), "nobody was told that it is safe");

    let log = RaftLog::open(&cluster.path.join(first.to_string()).join("raft")).unwrap();
    assert_eq!(log.bounds().0.last(), last, "the leader lost what it had not synced");
    drop(log);
    cluster.restart(first).await;
    cluster.network.cut(away, false);
    let (_, leader) = cluster.leader(None).await;
    applied(&leader, "next").await;
    cluster.agrees_on("next").await;
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn follower_killed_with_state_ahead_of_its_log_starts_again() {
    let mut cluster = Cluster::start().await;
    let (first, leader) = cluster.leader(None).await;
    applied(&leader, "before").await;
    cluster.all_have("before").await;
    let [slow, _] = cluster.others(first);
    cluster.nodes[&slow].writer_gate().set(Passage::Held);
    applied(&leader, "quorum").await;
    let node = cluster.nodes[&slow].clone();
    eventually("it applies what the others made safe", || names(&node.view()).contains(&"quorum".to_owned())).await;
    drop(node);
    cluster.kill(slow).await;
    cluster.restart(slow).await;
    applied(&leader, "after").await;
    cluster.agrees_on("after").await;
    cluster.stop().await;
}
