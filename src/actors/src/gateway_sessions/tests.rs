//! Sessions of gateways over a real node, with channels for connections.

use futures::channel::mpsc;

use super::*;
use swell_model::{
    command::EnvironmentAction,
    interfaces::{Proposal, Proposer as _},
    principal::{Principal, Role},
    routing::{
        messages::{GatewayId, ServedServices},
        table::{RouteTable, RoutesHash},
    },
};
use swell_raft::Options;

const PATIENCE: Duration = Duration::from_secs(20);

/// A gateway's end of a session.
struct Gateway {
    says: mpsc::Sender<GatewayToServer>,
    hears: mpsc::Receiver<ServerToGateway>,
    served: tokio::task::JoinHandle<()>,
}

impl Gateway {
    fn connect(sessions: &GatewaySessions, hello: GatewayHello) -> Self {
        let ((says, incoming), (outgoing, hears)) = (mpsc::channel(8), mpsc::channel(8));
        let sessions = sessions.clone();
        let served = tokio::spawn(async move { sessions.serve(hello, Link { incoming, outgoing }).await });
        Self { says, hears, served }
    }

    /// The next message that is not a heartbeat; `None` when the session ended.
    async fn hear(&mut self) -> Option<ServerToGateway> {
        let mut messages = self.hears.by_ref().filter(|message| std::future::ready(*message != ServerToGateway::Heartbeat));
        timeout(PATIENCE, messages.next()).await.unwrap()
    }
}

fn hello(generation: Generation, hash: RoutesHash) -> GatewayHello {
    GatewayHello {
        version: PROTOCOL_VERSION,
        gateway: GatewayId("edge-1".into()),
        name: "edge-1".into(),
        zone: "a".into(),
        addresses: Vec::new(),
        serves: ServedServices::All,
        generation,
        hash,
    }
}

async fn create_environment(node: &Node, name: &str) -> u64 {
    let action =
        EnvironmentAction::Create { name: name.parse().unwrap(), selector: Default::default(), policy: Default::default() };
    node.propose(Proposal::new(action, Principal::new(Role::Admin, "ada"))).await.unwrap();
    node.view().applied()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn gateway_obeys_what_it_acknowledged_and_what_does_not_concern_it() {
    let dir = tempfile::tempdir().unwrap();
    let node = Node::start(Options::new(dir.path(), 1)).await.unwrap();
    timeout(PATIENCE, node.leadership().wait_for(|now| now.is_leader)).await.unwrap().unwrap();
    let sessions = GatewaySessions::new();
    let publishing = tokio::spawn(sessions.clone().publish(node.clone()));
    let mut obeyed = sessions.obeyed();
    assert_eq!(*obeyed.borrow(), None);

    let mut gateway = Gateway::connect(&sessions, hello(Generation::default(), RoutesHash::default()));
    let Some(ServerToGateway::Routes(update)) = gateway.hear().await else { panic!("no routes") };
    assert_eq!((update.from, update.services.len()), (None, 0), "the first table, without a service");
    let table = RouteTable::default().updated(update).unwrap();
    assert_eq!(*obeyed.borrow_and_update(), Some(0), "nothing is acknowledged");
    gateway.says.try_send(GatewayToServer::Routed { generation: table.generation }).unwrap();
    let index = create_environment(&node, "production").await;
    let obeys = |index| move |obeyed: &Option<u64>| obeyed.is_some_and(|obeyed| obeyed >= index);
    timeout(PATIENCE, obeyed.wait_for(obeys(index))).await.unwrap().unwrap();

    gateway.says.try_send(GatewayToServer::SnapshotWanted).unwrap();
    let Some(ServerToGateway::Routes(update)) = gateway.hear().await else { panic!("no routes") };
    assert_eq!(update.from, None);
    let table = table.updated(update).unwrap();
    gateway.says.try_send(GatewayToServer::Routed { generation: table.generation }).unwrap();
    timeout(PATIENCE, obeyed.wait_for(obeys(table.generation.index))).await.unwrap().unwrap();
    gateway.says.close_channel();
    timeout(PATIENCE, gateway.served).await.unwrap().unwrap();

    let later = create_environment(&node, "staging").await;
    let before = *obeyed.borrow();
    assert!(before.is_some_and(|before| before < later), "a lost gateway counts for a while");
    let again = Gateway::connect(&sessions, hello(table.generation, table.hash()));
    timeout(PATIENCE, obeyed.wait_for(obeys(later))).await.unwrap().unwrap();
    drop(again);
    publishing.abort();
    node.shutdown().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn gateway_of_another_version_is_refused() {
    let sessions = GatewaySessions::new();
    let old = GatewayHello { version: PROTOCOL_VERSION + 1, ..hello(Generation::default(), RoutesHash::default()) };
    let mut gateway = Gateway::connect(&sessions, old);
    assert_eq!(gateway.hear().await, Some(ServerToGateway::Refused(Refusal::Version { server: PROTOCOL_VERSION })));
    assert_eq!(gateway.hear().await, None);
    timeout(PATIENCE, gateway.served).await.unwrap().unwrap();
    assert_eq!(*sessions.obeyed().borrow(), None);
}
