//! Random histories of records, against routes that start over and against the table that is derived from state alone.

use std::collections::{BTreeMap, BTreeSet};

use proptest::prelude::*;
use roaring::RoaringBitmap;

use super::{gateway::INSTANCES_PER_RELEASE_MAX, *};
use swell_model::{
    apply::testing::{FILE, World, info, name},
    change::{AppliedBatch, RecordingTables},
    fleet::{
        Environment, Target, TargetInfo,
        observation::{InstanceObserved, InstanceState as Reported, Observation, Progress, Report, observation_key},
    },
    ids::{EnvironmentName, ReleaseId, RolloutId, TargetName},
    pipeline_file::PipelineFile,
    release::{Release, release_key},
    rollout::{Deployment, OpenRollout, Purpose, Rollout, RolloutState, assignment::Generation, deployment_key},
    routing::{
        derive::route_table,
        messages::{GatewayHello, GatewayId, ServedServices},
        table::{RouteTable, RoutesHash, ServiceKey, ServiceRoute},
    },
    tables::{MemoryTables, Record, Tables, key},
};

const TARGETS: u32 = 6;
const RELEASES: u64 = 4;
const ENVIRONMENTS: [&str; 2] = ["production", "staging"];

/// Pipeline files whose services have different names and ports.
fn file(variant: u8) -> PipelineFile {
    let text = match variant % 4 {
        0 => FILE.to_owned(),
        1 => FILE.replace("[service.web]", "[service.api]"),
        2 => FILE.replace("http = \"auto\" }", "http = \"auto\", admin = \"auto\" }"),
        _ => FILE.replace("ports = { http = \"auto\" }\nhealth = { port = \"http\", http = \"/healthz\" }", ""),
    };
    PipelineFile::parse(&text).unwrap()
}

/// Records of every kind that routes follow from, to be varied.
struct Templates {
    environment: Environment,
    target: Target,
    release: Release,
    rollout: Rollout,
    deployment: Deployment,
    observation: Observation,
}

impl Templates {
    fn new() -> (Self, MemoryTables) {
        let (mut world, file) = World::with_fleet(TARGETS, FILE);
        let release = world.release(1, &file);
        let rollout = world.start(&release, Purpose::Deploy).unwrap();
        world.change_wave(rollout);
        world.report(0, Some(&release), Progress::Healthy, true);
        let templates = Self {
            environment: world.get(key("production")),
            target: world.get(key(0_u32)),
            release: world.get(release_key(&release)),
            rollout: world.rollout(rollout),
            deployment: world.deployment(),
            observation: world.get(observation_key(&name("shop"), 0)),
        };
        (templates, world.tables)
    }

    fn release_id(&self, number: u64) -> ReleaseId {
        ReleaseId { number: 1 + number % RELEASES, ..self.release.id.clone() }
    }

    fn write(&self, tables: &mut impl Tables, operation: &Operation) {
        let environment = |number: u8| -> EnvironmentName { name(ENVIRONMENTS[usize::from(number % 2)]) };
        match operation {
            Operation::Observe { target, instances } => {
                let instance = |(service, release, port, state): &(bool, u64, bool, u8)| InstanceObserved {
                    service: name(if *service { "web" } else { "api" }),
                    release: self.release_id(*release),
                    ports: [("http", 20_000), ("admin", 20_001)]
                        .into_iter()
                        .skip(usize::from(*port))
                        .map(|(n, p)| (name(n), p))
                        .collect(),
                    state: [Reported::Serving, Reported::Draining, Reported::Starting, Reported::Unhealthy]
                        [usize::from(*state) % 4],
                    restarts: 0,
                };
                let report = Report { instances: instances.iter().map(instance).collect(), ..self.observation.report.clone() };
                tables.put(&Observation { target: *target, report, ..self.observation.clone() }).unwrap();
            }
            Operation::Forget { target } => tables.delete::<Observation>(&observation_key(&name("shop"), *target)).unwrap(),
            Operation::Target { target, zone } => {
                let info = TargetInfo { zone: zone.to_string(), ..info(*target) };
                tables.put(&Target { index: *target, info, ..self.target.clone() }).unwrap();
            }
            Operation::RemoveTarget { target } => tables.delete::<Target>(&key(*target)).unwrap(),
            Operation::Members { environment: number, members } => {
                let members = RoaringBitmap::from_iter((0..TARGETS).filter(|target| members & (1 << target) != 0));
                tables.put(&Environment { name: environment(*number), members, ..self.environment.clone() }).unwrap();
            }
            Operation::RemoveEnvironment { environment: number } => {
                tables.delete::<Environment>(&key(environment(*number).as_str())).unwrap();
            }
            Operation::Deploy { environment: number, stable, release } => {
                let rollout = release.map(|release| self.rollout_of(*number, release, RolloutState::Deploying));
                rollout.iter().for_each(|rollout| put_rollout(tables, rollout));
                let stable = stable.map(|release| self.release_id(release));
                let (environment, rollout) = (environment(*number), rollout.map(|rollout| rollout.id));
                tables.put(&Deployment { environment, stable, rollout, ..self.deployment.clone() }).unwrap();
            }
            Operation::EndRollout { environment: number, release } => {
                put_rollout(tables, &self.rollout_of(*number, *release, RolloutState::Deployed));
            }
            Operation::RemoveDeployment { environment: number } => {
                tables.delete::<Deployment>(&deployment_key(&environment(*number), &name("shop"))).unwrap();
            }
            Operation::Release { release, variant } => {
                tables.put(&Release { id: self.release_id(*release), file: file(*variant), ..self.release.clone() }).unwrap();
            }
            Operation::RemoveRelease { release } => {
                tables.delete::<Release>(&release_key(&self.release_id(*release))).unwrap();
            }
        }
    }

    fn rollout_of(&self, environment: u8, release: u64, state: RolloutState) -> Rollout {
        let (number, release) = (u64::from(environment % 2), self.release_id(release));
        let (id, environment) = (RolloutId(10 * number + release.number), name(ENVIRONMENTS[usize::from(environment % 2)]));
        Rollout { id, environment, release, state, ..self.rollout.clone() }
    }
}

fn put_rollout(tables: &mut impl Tables, rollout: &Rollout) {
    tables.put(rollout).unwrap();
    let open = OpenRollout { rollout: rollout.id };
    if rollout.state.is_end() { tables.delete::<OpenRollout>(&open.key()).unwrap() } else { tables.put(&open).unwrap() }
}

#[derive(Debug, Clone)]
enum Operation {
    Observe { target: u32, instances: Vec<(bool, u64, bool, u8)> },
    Forget { target: u32 },
    Target { target: u32, zone: char },
    RemoveTarget { target: u32 },
    Members { environment: u8, members: u8 },
    RemoveEnvironment { environment: u8 },
    Deploy { environment: u8, stable: Option<u64>, release: Option<u64> },
    EndRollout { environment: u8, release: u64 },
    RemoveDeployment { environment: u8 },
    Release { release: u64, variant: u8 },
    RemoveRelease { release: u64 },
}

fn operation() -> impl Strategy<Value = Operation> {
    let instance = (any::<bool>(), 0..RELEASES, any::<bool>(), 0_u8..4);
    prop_oneof![
        6 => (0..TARGETS, proptest::collection::vec(instance, 0..4))
            .prop_map(|(target, instances)| Operation::Observe { target, instances }),
        1 => (0..TARGETS).prop_map(|target| Operation::Forget { target }),
        2 => (0..TARGETS, prop_oneof![Just('a'), Just('b')]).prop_map(|(target, zone)| Operation::Target { target, zone }),
        1 => (0..TARGETS).prop_map(|target| Operation::RemoveTarget { target }),
        2 => (0_u8..2, any::<u8>()).prop_map(|(environment, members)| Operation::Members { environment, members }),
        1 => (0_u8..2).prop_map(|environment| Operation::RemoveEnvironment { environment }),
        3 => (0_u8..2, proptest::option::of(0..RELEASES), proptest::option::of(0..RELEASES))
            .prop_map(|(environment, stable, release)| Operation::Deploy { environment, stable, release }),
        1 => (0_u8..2, 0..RELEASES).prop_map(|(environment, release)| Operation::EndRollout { environment, release }),
        1 => (0_u8..2).prop_map(|environment| Operation::RemoveDeployment { environment }),
        2 => (0..RELEASES, 0_u8..4).prop_map(|(release, variant)| Operation::Release { release, variant }),
        1 => (0..RELEASES).prop_map(|release| Operation::RemoveRelease { release }),
    ]
}

/// A gateway as `swell-gateway` behaves: it takes what it is sent, and says so.
struct Gateway {
    session: GatewayRoutes,
    table: RouteTable,
    owes: Option<Generation>,
}

impl Gateway {
    fn connect(table: RouteTable) -> Self {
        let hello = hello("a", &table);
        Self { session: GatewayRoutes::new(&hello), table, owes: None }
    }

    fn step(&mut self, routes: &Routes) -> bool {
        match self.session.next(routes) {
            Step::Send(update) => {
                self.table = self.table.updated(update).unwrap();
                self.owes = Some(self.table.generation);
                true
            }
            Step::Wait => false,
            Step::Stale => panic!("the cluster has one generation"),
        }
    }

    fn acknowledge(&mut self) {
        if let Some(generation) = self.owes.take() {
            self.session.acknowledge(generation);
        }
    }
}

fn hello(zone: &str, table: &RouteTable) -> GatewayHello {
    GatewayHello {
        version: swell_model::wire::PROTOCOL_VERSION,
        gateway: GatewayId("edge-1".into()),
        name: "edge-1".into(),
        zone: zone.into(),
        addresses: Vec::new(),
        serves: ServedServices::All,
        generation: table.generation,
        hash: table.hash(),
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, ..ProptestConfig::default() })]

    #[test]
    fn updated_routes_equal_those_started_over(
        batches in proptest::collection::vec((proptest::collection::vec(operation(), 1..4), any::<bool>(), any::<bool>()), 1..60),
    ) {
        let (templates, mut tables) = Templates::new();
        let mut routes = Routes::from_tables(&tables, 100).unwrap();
        let mut gateway = Gateway::connect(RouteTable::default());
        for (number, (operations, steps, acknowledges)) in batches.iter().enumerate() {
            let index = 101 + number as u64;
            let mut recording = RecordingTables::new(&mut tables);
            operations.iter().for_each(|operation| templates.write(&mut recording, operation));
            let batch = AppliedBatch { index, changes: recording.into_changes(), events: Vec::new() };
            let before = routes.table();
            let changed = routes.update(&batch);

            let (updated, derived) = (routes.table(), route_table(&tables, index).unwrap());
            let contents = |table: &RouteTable| -> BTreeMap<ServiceKey, _> {
                table.services().iter().map(|(key, route)| (key.clone(), route.releases.clone())).collect()
            };
            prop_assert_eq!(contents(&updated), contents(&derived));
            prop_assert_eq!(updated.generation, derived.generation);
            let started_over = Routes::from_tables(&tables, index).unwrap();
            prop_assert_eq!(started_over.table().hash(), updated.hash());
            for (service, route) in updated.services() {
                let is_same = before.services().get(service).is_some_and(|before| before.releases == route.releases);
                prop_assert!(is_same || changed.contains(service), "{service} changed and was not named");
                prop_assert!(!is_same || changed.contains(service) || route.version < index, "{service} has a new version");
            }
            let gone = before.services().keys().filter(|service| !updated.services().contains_key(*service));
            prop_assert!(gone.into_iter().all(|service| changed.contains(service)));

            if *steps && gateway.step(&routes) {
                prop_assert_eq!(gateway.table.hash(), updated.hash());
            }
            if *acknowledges {
                gateway.acknowledge();
            }
        }
        // However slow the gateway was, it is one update behind at most.
        gateway.acknowledge();
        gateway.step(&routes);
        gateway.acknowledge();
        prop_assert!(!gateway.step(&routes));
        prop_assert_eq!(gateway.table.hash(), routes.table().hash());
        prop_assert_eq!(gateway.session.obeyed(), routes.generation());
        // A session that begins with these routes is sent nothing, also by a server that started over.
        let mut again = Gateway::connect(gateway.table.clone());
        prop_assert!(!again.step(&Routes::from_tables(&tables, routes.generation().index).unwrap()));
    }
}

/// Routes of one release on `count` targets, three quarters of them in zone `a`.
fn large(count: u32) -> (Templates, Routes) {
    let (templates, tables) = Templates::new();
    let mut routes = Routes::from_tables(&tables, 100).unwrap();
    let mut tables = MemoryTables::new();
    let mut recording = RecordingTables::new(&mut tables);
    for target in 0..count {
        let zone = if target % 4 == 3 { 'b' } else { 'a' };
        templates.write(&mut recording, &Operation::Target { target, zone });
        templates.write(&mut recording, &Operation::Observe { target, instances: vec![(true, 0, false, 0)] });
    }
    let environment = Environment { members: (0..count).collect(), ..templates.environment.clone() };
    recording.put(&environment).unwrap();
    routes.update(&AppliedBatch { index: 101, changes: recording.into_changes(), events: Vec::new() });
    (templates, routes)
}

fn names(table: &RouteTable, zone: &str) -> BTreeSet<TargetName> {
    let instances = table.services().values().flat_map(|route| route.releases.values().flatten());
    instances.filter(|instance| instance.zone == zone).map(|instance| instance.target.clone()).collect()
}

fn first_table(routes: &Routes, gateway: &str, zone: &str) -> RouteTable {
    let hello = GatewayHello { gateway: GatewayId(gateway.to_owned()), ..hello(zone, &RouteTable::default()) };
    match GatewayRoutes::new(&hello).next(routes) {
        Step::Send(update) => RouteTable::default().updated(update).unwrap(),
        other => panic!("{other:?}"),
    }
}

#[test]
fn large_release_is_split_among_gateways_by_zone() {
    let (_, routes) = large(1000);
    let table = first_table(&routes, "edge-1", "a");
    assert_eq!((names(&table, "a").len(), names(&table, "b").len()), (150, 50));
    let far = first_table(&routes, "edge-1", "nowhere");
    assert_eq!(names(&far, "a").len() + names(&far, "b").len(), INSTANCES_PER_RELEASE_MAX);
    let gateways = (0..40).map(|number| first_table(&routes, &format!("edge-{number}"), "nowhere"));
    let used: BTreeSet<TargetName> = gateways.flat_map(|table| names(&table, "a")).collect();
    assert!(used.len() > 740, "together the gateways use only {} of 750", used.len());
}

#[test]
fn change_outside_a_gateways_subset_is_not_sent_and_counts_as_obeyed() {
    let (templates, mut routes) = large(400);
    let mut gateway = Gateway::connect(RouteTable::default());
    assert!(gateway.step(&routes));
    gateway.acknowledge();
    let used = &names(&gateway.table, "a") | &names(&gateway.table, "b");
    let (mut tables, mut index, mut sent) = (MemoryTables::new(), 101, 0);
    for target in 0..400 {
        index += 1;
        let mut recording = RecordingTables::new(&mut tables);
        templates.write(&mut recording, &Operation::Observe { target, instances: Vec::new() });
        routes.update(&AppliedBatch { index, changes: recording.into_changes(), events: Vec::new() });
        let is_used =
            names(&gateway.table, "a").contains(&info(target).name) || names(&gateway.table, "b").contains(&info(target).name);
        let is_sent = gateway.step(&routes);
        assert!(is_sent || !is_used, "web-{target} is gone and the gateway was sent nothing");
        sent += usize::from(is_sent);
        gateway.acknowledge();
        assert_eq!(gateway.session.obeyed(), routes.generation());
        if target == 99 {
            assert!(
                sent <= used.iter().filter(|name| (0..100).any(|gone| info(gone).name == **name)).count() + 40,
                "{sent} updates"
            );
        }
    }
    assert!(names(&gateway.table, "a").is_empty());
}

#[test]
fn gateway_that_is_ahead_of_its_server_is_left_alone() {
    let (_, routes) = large(10);
    let ahead = |cluster, index| {
        let mut table = RouteTable::default();
        table.generation = Generation { cluster, index };
        GatewayRoutes::new(&GatewayHello { hash: RoutesHash::default(), ..hello("a", &table) })
    };
    assert_eq!(ahead(1, 102).next(&routes), Step::Wait, "the server is behind and will catch up");
    assert_eq!(ahead(2, 1).next(&routes), Step::Stale);
    assert!(matches!(ahead(0, 500).next(&routes), Step::Send(_)), "the cluster was restored: its log counts anew");
}

#[test]
fn gateway_is_sent_only_services_that_it_serves() {
    let (_, routes) = large(10);
    let only = |service: &str| ServedServices::Only(BTreeSet::from([service.parse().unwrap()]));
    let begin = |serves| GatewayRoutes::new(&GatewayHello { serves, ..hello("a", &RouteTable::default()) }).next(&routes);
    let Step::Send(update) = begin(only("shop/production/web")) else { panic!("nothing sent") };
    assert_eq!(update.services.len(), 1);
    let Step::Send(update) = begin(only("shop/staging/web")) else { panic!("nothing sent") };
    assert!(update.services.is_empty(), "a first table, with no service");
}

#[test]
fn cordoned_target_keeps_serving() {
    let (templates, mut routes) = large(10);
    let service: ServiceKey = "shop/production/web".parse().unwrap();
    let mut tables = MemoryTables::new();
    let mut recording = RecordingTables::new(&mut tables);
    let cordoned = Target { cordoned: Some("disk".into()), info: info(1), index: 1, ..templates.target.clone() };
    recording.put(&cordoned).unwrap();
    let before = routes.route(&service, |_| {}).unwrap();
    let changes = recording.into_changes();
    routes.update(&AppliedBatch { index: 102, changes, events: Vec::new() });
    let after = routes.route(&service, |_| {}).unwrap();
    let targets =
        |route: &ServiceRoute| route.releases.values().flatten().map(|instance| instance.target.clone()).collect::<Vec<_>>();
    assert_eq!(targets(&before), targets(&after));
}

#[test]
fn lost_target_is_left_out_while_another_serves() {
    let (_, mut routes) = large(3);
    let service: ServiceKey = "shop/production/web".parse().unwrap();
    let targets = |routes: &Routes| -> Vec<String> {
        let route = routes.route(&service, |_| {}).unwrap();
        route.releases.values().flatten().map(|instance| instance.target.to_string()).collect()
    };
    assert_eq!(routes.set_lost_targets(&RoaringBitmap::from([1])), BTreeSet::from([service.clone()]));
    assert_eq!(targets(&routes), ["web-0", "web-2"]);
    routes.set_lost_targets(&(0..3).collect());
    assert_eq!(targets(&routes), ["web-0", "web-1", "web-2"], "all agents are silent, which the services need not be");
    routes.set_lost_targets(&RoaringBitmap::new());
    assert_eq!(targets(&routes).len(), 3);
    assert!(routes.set_lost_targets(&RoaringBitmap::new()).is_empty());
}
