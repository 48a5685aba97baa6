//! The node as its users see it. Each file tries one thing.

#![allow(clippy::unwrap_used)]

mod cluster;
mod crash;
mod disk;
mod network;
mod node;
mod suite;

use std::{path::Path, time::Duration};

use tokio::time::{Instant, sleep};

use super::{Error, Node, Options, View};
use swell_model::{
    command::{Outcome, RepositoryAction},
    event::EventSeq,
    interfaces::{Proposal, ProposeError, Proposer},
    principal::{Principal, Role},
    repository::Repository,
    tables::{ReadTables, Scan},
};

const PATIENCE: Duration = Duration::from_secs(60);

/// Waits until `condition` holds.
async fn eventually(what: &str, mut condition: impl FnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !condition() {
        assert!(Instant::now() < deadline, "not in time: {what}");
        sleep(Duration::from_millis(10)).await;
    }
}

async fn started(dir: &Path) -> Node {
    let node = Node::start(Options::new(dir, 1)).await.unwrap();
    leads(&node).await;
    node
}

async fn leads(node: &Node) {
    let mut leadership = node.leadership();
    tokio::time::timeout(PATIENCE, leadership.wait_for(|now| now.is_leader)).await.unwrap().unwrap();
}

async fn refused(dir: &Path) -> Error {
    Node::start(Options::new(dir, 1)).await.err().unwrap()
}

fn create(name: &str) -> Proposal {
    let action = RepositoryAction::Create { name: name.parse().unwrap(), default_branch: "main".into() };
    Proposal::new(action, Principal::new(Role::Developer, "ada"))
}

fn create_keyed(name: &str, key: &str) -> Proposal {
    Proposal { idempotency_key: Some(key.to_owned()), ..create(name) }
}

/// Proposes until it is applied, as every client does.
async fn applied(node: &Node, name: &str) -> Outcome {
    let deadline = Instant::now() + PATIENCE;
    loop {
        match node.propose(create_keyed(name, name)).await {
            Ok(outcome) => return outcome,
            Err(error) if error.retryable() && Instant::now() < deadline => sleep(Duration::from_millis(20)).await,
            Err(error) => panic!("{name}: {error}"),
        }
    }
}

fn names(view: &View) -> Vec<String> {
    let all: Vec<Repository> = view.scan(&Scan::all(), 100_000).unwrap();
    all.iter().map(|repository| repository.name.to_string()).collect()
}

fn is_stopped(result: &Result<Outcome, ProposeError>) -> bool {
    matches!(result, Err(ProposeError::Stopped(_)))
}
