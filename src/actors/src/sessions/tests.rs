//! Sessions over a real node and a real fleet, with channels for connections.

use std::time::Duration;

use futures::{channel::mpsc, future::BoxFuture};
use ractor::Actor as _;

use super::*;
use crate::fleet::{Fleet, FleetArguments, FleetHandle};
use swell_model::{apply::testing::info, interfaces::SessionSink as _, rollout::assignment::Generation, wire::AgentId};
use swell_raft::Options;

const PATIENCE: Duration = Duration::from_secs(20);

/// An agent's end of a session.
struct Agent {
    said: mpsc::Sender<AgentToServer>,
    told: mpsc::Receiver<ServerToAgent>,
}

impl Agent {
    /// The next thing it is told that is no heartbeat; none: its session is over.
    async fn told(&mut self) -> Option<ServerToAgent> {
        let mut news = self.told.by_ref().filter(|told| std::future::ready(*told != ServerToAgent::Heartbeat));
        timeout(PATIENCE, news.next()).await.unwrap()
    }
}

/// A session of an agent called `web-1`, served until it ends.
fn connect(fleet: &'static FleetHandle, id: &str, last_byte: u8) -> (Agent, tokio::task::JoinHandle<()>) {
    let ((mut said, incoming), (outgoing, told)) = (mpsc::channel(8), mpsc::channel(8));
    let served: BoxFuture<'static, ()> = fleet.agent(Link { incoming, outgoing });
    let info = TargetInfo { address: [10, 0, 0, last_byte].into(), ..info(1) };
    said.try_send(AgentToServer::Hello { info, following: Generation::default(), agent: AgentId(id.to_owned()) }).unwrap();
    (Agent { said, told }, tokio::spawn(served))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn of_two_agents_with_one_name_the_second_is_refused_and_the_first_goes_on() {
    let dir = tempfile::tempdir().unwrap();
    let node = Node::start(Options::new(dir.path(), 1)).await.unwrap();
    timeout(PATIENCE, node.leadership().wait_for(|now| now.is_leader)).await.unwrap().unwrap();
    let (handle, inbox) = FleetHandle::new(node.clone());
    let (fleet, ended) = Fleet::spawn(None, Fleet, FleetArguments { node: node.clone(), server: 1 }).await.unwrap();
    inbox.connect(fleet.clone());
    // A test's process ends soon enough.
    let handle: &'static FleetHandle = Box::leak(Box::new(handle));

    let (mut first, _serving) = connect(handle, "a", 1);
    assert!(matches!(first.told().await, Some(ServerToAgent::Desired(_))));
    let (mut second, refused) = connect(handle, "b", 2);
    let why = "the name web-1 is used by the agent at 10.0.0.1: give one of them another with --name";
    assert_eq!(second.told().await, Some(ServerToAgent::Refused(why.to_owned())));
    timeout(PATIENCE, refused).await.unwrap().unwrap();
    let recorded = known(&node, &info(1).name).unwrap().unwrap();
    assert_eq!(recorded.info.address.to_string(), "10.0.0.1", "gateways are not led astray");

    let (mut again, serving) = connect(handle, "a", 1);
    assert!(matches!(again.told().await, Some(ServerToAgent::Desired(_))), "the same agent takes its session's place");
    assert_eq!(first.told().await, None, "a session that was replaced ends");
    again.said.close_channel();
    timeout(PATIENCE, serving).await.unwrap().unwrap();
    let (mut heir, _serving) = connect(handle, "b", 2);
    assert!(matches!(heir.told().await, Some(ServerToAgent::Desired(_))), "a name that nobody uses is free");
    fleet.stop(None);
    ended.await.unwrap();
}
