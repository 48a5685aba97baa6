//! Sessions over a real node, with channels for connections.

use std::time::Duration;

use futures::{SinkExt as _, StreamExt as _, channel::mpsc};
use tokio::time::timeout;

use super::*;
use swell_artifacts::store::{Embedded, EmbeddedOptions};
use swell_model::{
    apply::testing::info,
    command::{EnvironmentAction, FleetAction},
    fleet::{
        PortRange, Target, TargetInfo,
        observation::{Observation, Progress, Report, ReportsHash, observation_key},
    },
    ids::AgentId,
    interfaces::{Proposal, Proposer as _},
    principal::Principal,
    rollout::assignment::{DesiredTarget, Generation},
    tables::{ReadTables, Scan},
    wire::{AgentHello, PROTOCOL_VERSION, Refusal},
};
use swell_raft::Options;

const PATIENCE: Duration = Duration::from_secs(20);

/// A server of one node that leads.
struct Server {
    node: Node,
    sessions: Sessions,
    _tasks: SessionTasks,
    _dir: tempfile::TempDir,
}

impl Server {
    async fn start() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let node = Node::start(Options::new(dir.path().join("node"), 1)).await.unwrap();
        timeout(PATIENCE, node.leadership().wait_for(|now| now.is_leader)).await.unwrap().unwrap();
        let content = Embedded::open(dir.path().join("content"), EmbeddedOptions::default()).await.unwrap();
        let (sessions, tasks) = Sessions::start(node.clone(), 1, Arc::new(content));
        Self { node, sessions, _tasks: tasks, _dir: dir }
    }

    /// A session that begins with `hello`.
    fn connect(&self, hello: AgentHello) -> Agent {
        let ((mut says, incoming), (outgoing, hears)) = (mpsc::channel(8), mpsc::channel(8));
        says.try_send(AgentToServer::Hello(hello)).unwrap();
        let sessions = self.sessions.clone();
        let served = tokio::spawn(async move { sessions.agent(Link { incoming, outgoing }).await });
        Agent { says, hears, served }
    }

    fn targets(&self) -> Vec<Target> {
        self.node.view().scan(&Scan::all(), 10).unwrap()
    }
}

/// An agent's end of a session.
struct Agent {
    says: mpsc::Sender<AgentToServer>,
    hears: mpsc::Receiver<ServerToAgent>,
    served: tokio::task::JoinHandle<()>,
}

impl Agent {
    /// The next frame that is no heartbeat; `None`: the session is over.
    async fn hear(&mut self) -> Option<ServerToAgent> {
        let mut news = self.hears.by_ref().filter(|frame| std::future::ready(*frame != ServerToAgent::Heartbeat));
        timeout(PATIENCE, news.next()).await.unwrap()
    }

    async fn welcome(&mut self) -> bool {
        match self.hear().await {
            Some(ServerToAgent::Welcome { reports_known }) => reports_known,
            other => panic!("not a welcome: {other:?}"),
        }
    }

    async fn desired(&mut self) -> DesiredTarget {
        match self.hear().await {
            Some(ServerToAgent::Desired(desired)) => desired,
            other => panic!("not a desired state: {other:?}"),
        }
    }

    async fn report(&mut self, sequence: u64, progress: Progress) {
        self.says.send(AgentToServer::Report { sequence, reports: vec![report(progress)] }).await.unwrap();
    }

    /// Waits until the session is over and nobody is left in its place.
    async fn leave(mut self) {
        self.says.close_channel();
        timeout(PATIENCE, self.served).await.unwrap().unwrap();
    }
}

fn hello(agent: &str, number: u32) -> AgentHello {
    let first = 20_000 + 100 * number as u16;
    AgentHello {
        version: PROTOCOL_VERSION,
        info: TargetInfo { ports: PortRange { first, last: first + 99 }, address: [127, 0, 0, 1].into(), ..info(number) },
        agent: AgentId(agent.to_owned()),
        incarnation: 1,
        following: Generation::default(),
        desired_hash: None,
        reports_hash: ReportsHash::default(),
    }
}

fn report(progress: Progress) -> Report {
    let pipeline = "shop".parse().unwrap();
    Report { pipeline, release: None, progress, serving: true, instances: Vec::new(), failure: None }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn second_agent_of_a_name_is_refused_and_the_same_agent_replaces_its_session() {
    let server = Server::start().await;
    let mut first = server.connect(hello("a", 1));
    assert!(first.welcome().await, "neither knows a report");
    first.desired().await;
    let mut second =
        server.connect(AgentHello { info: TargetInfo { address: [10, 0, 0, 9].into(), ..info(1) }, ..hello("b", 1) });
    let by = [127, 0, 0, 1].into();
    assert_eq!(second.hear().await, Some(ServerToAgent::Refused(Refusal::NameInUse { by })));
    assert_eq!(server.targets()[0].info.address, by, "gateways are not led astray");

    let mut again = server.connect(hello("a", 1));
    again.welcome().await;
    assert_eq!(first.hear().await, None, "a session that was replaced ends");
    again.leave().await;
    let mut heir = server.connect(hello("b", 1));
    assert_eq!(heir.hear().await, Some(ServerToAgent::Refused(Refusal::NameInUse { by })), "the grace is not over");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn agent_of_another_version_or_with_a_used_address_is_refused() {
    let server = Server::start().await;
    let mut old = server.connect(AgentHello { version: 1, ..hello("a", 1) });
    assert_eq!(old.hear().await, Some(ServerToAgent::Refused(Refusal::Version { server: PROTOCOL_VERSION })));
    let mut first = server.connect(hello("a", 1));
    first.welcome().await;
    first.desired().await;
    let presence = async {
        while !server.sessions.agents.view.read().presence.connected().contains(0) {
            tokio::task::yield_now().await;
        }
    };
    timeout(PATIENCE, presence).await.unwrap();
    let same_ports = TargetInfo { ports: hello("a", 1).info.ports, ..hello("b", 2).info };
    let mut second = server.connect(AgentHello { info: same_ports, ..hello("b", 2) });
    let by = info(1).name;
    assert_eq!(second.hear().await, Some(ServerToAgent::Refused(Refusal::AddressInUse { by })));
    assert_eq!(server.targets().len(), 1, "nothing is recorded of an agent that is refused");
    server.connect(hello("b", 2)).welcome().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_the_agent_knows_is_not_sent_again() {
    let server = Server::start().await;
    let mut agent = server.connect(hello("a", 1));
    agent.welcome().await;
    let desired = agent.desired().await;
    agent.report(1, Progress::Healthy).await;
    assert_eq!(agent.hear().await, Some(ServerToAgent::Acknowledged { sequence: 1 }));
    assert_eq!(agent.hear().await, Some(ServerToAgent::Routed { sequence: 1 }), "there is no gateway to wait for");
    agent.leave().await;

    let mut reports_hash = ReportsHash::default();
    reports_hash.add(&report(Progress::Healthy));
    let known = AgentHello { following: desired.generation, desired_hash: Some(desired.hash()), reports_hash, ..hello("a", 1) };
    let mut agent = server.connect(known.clone());
    assert!(agent.welcome().await, "its report is applied");
    agent.report(1, Progress::Failed).await;
    let next = agent.hear().await;
    assert_eq!(next, Some(ServerToAgent::Acknowledged { sequence: 1 }), "no desired state before it: it is the same");
    let kept: Observation = server.node.view().get(&observation_key(&"shop".parse().unwrap(), 0)).unwrap().unwrap();
    assert_eq!(kept.report, report(Progress::Healthy), "a message that was applied changes nothing when it is repeated");
    agent.leave().await;

    let ahead = Generation { index: u64::MAX, ..desired.generation };
    let mut agent = server.connect(AgentHello { following: ahead, desired_hash: None, ..known });
    agent.welcome().await;
    agent.report(2, Progress::Stopped).await;
    let next = agent.hear().await;
    assert_eq!(next, Some(ServerToAgent::Acknowledged { sequence: 2 }), "a server that is behind sends nothing older");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn presence_follows_sessions() {
    let server = Server::start().await;
    let mut agent = server.connect(hello("a", 1));
    agent.welcome().await;
    let recorded = async |is_connected: bool| {
        let is_recorded = async {
            while server.sessions.agents.view.read().presence.connected().contains(0) != is_connected {
                tokio::task::yield_now().await;
            }
        };
        timeout(PATIENCE, is_recorded).await.unwrap();
    };
    recorded(true).await;
    // What the leader took away is recorded again.
    let cleared = FleetAction::Presence { server: 1, connected: Default::default() };
    server.node.propose(Proposal::new(cleared, Principal::system("leader"))).await.unwrap();
    recorded(false).await;
    recorded(true).await;
    agent.leave().await;
    recorded(false).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn desired_state_is_sent_only_to_targets_that_it_concerns() {
    let server = Server::start().await;
    let mut agent = server.connect(hello("a", 1));
    agent.welcome().await;
    agent.desired().await;
    let name = "production".parse().unwrap();
    let action = EnvironmentAction::Create { name, selector: Default::default(), policy: Default::default() };
    server.node.propose(Proposal::new(action, Principal::system("test"))).await.unwrap();
    agent.report(1, Progress::Healthy).await;
    let next = agent.hear().await;
    assert_eq!(next, Some(ServerToAgent::Acknowledged { sequence: 1 }), "it joined an environment in which nothing runs");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn session_at_rest_costs_little_beside_its_connection() {
    let server = Server::start().await;
    let ((_says, incoming), (outgoing, _hears)) = (mpsc::channel(3), mpsc::channel(3));
    let future = size_of_val(&agent::serve(&server.sessions.agents, Link { incoming, outgoing }));
    let outbox = size_of::<outbox::Outbox>();
    // The connection has 4 KiB of buffer each way; all in all a session may have 16 kB.
    assert!(future + outbox <= 4096, "{future} B of future, {outbox} B of outbox");
}
