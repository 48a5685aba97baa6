//! The whole vocabulary is read, kept and printed.

use crate::pipeline_file::{
    Health, Image, Network, Order, Port, Probe, SecretUse, Signal, Spread, Start, Strategy, Thousandths,
    tests::{EXAMPLE, PipelineFile, listed, parse, printed},
};
use crate::units::{Amount, BasisPoints, ByteSize, Millis};

fn share(basis_points: u32) -> Amount {
    Amount::Share(BasisPoints(basis_points))
}

#[test]
fn the_example_says_what_it_seems_to_say() {
    let file = parse(EXAMPLE);
    assert_eq!(file.paths, ["services/shop/**", "libs/**"]);
    assert_eq!((&file.build.image, &file.build.network), (&Image::Host, &Network::None));
    assert_eq!((file.build.cpu, file.build.memory), (Thousandths(2000), ByteSize(4 << 30)));
    assert_eq!(file.build.timeout, Millis::from_secs(1800));
    assert_eq!(file.package.as_ref().unwrap().run, "make install prefix=$OUT");
    let api = &file.service[&"api".parse().unwrap()];
    assert_eq!(api.start, Start::Beside);
    assert_eq!(api.ports[&"http".parse().unwrap()], Port::Auto);
    assert_eq!(api.ports[&"admin".parse().unwrap()], Port::Fixed(8081));
    assert_eq!(api.health.probe(), Probe::Http { port: &"http".parse().unwrap(), path: "/healthz" });
    assert_eq!((api.stop.signal, api.stop.drain), (Signal::Term, Millis::from_secs(10)));
    assert_eq!(api.secrets["TLS_KEY"], SecretUse::File("tls_key".to_owned()));
    let production = "production".parse().unwrap();
    let deploy = file.deploy_to(&production);
    assert_eq!(deploy.strategy, Strategy::Canary);
    assert_eq!(deploy.waves, [Amount::Count(1), share(1000), share(5000), share(10_000)]);
    assert_eq!((deploy.order, deploy.spread), (Order::Region, Spread::Zone));
    assert!(deploy.deploys_by_itself("main") && deploy.deploys_by_itself("release/2"));
    assert!(!deploy.deploys_by_itself("mainly") && !deploy.deploys_by_itself("release/2/x"));
    let env = file.env_of(&"api".parse().unwrap(), &production);
    assert_eq!((env["LOG"].as_str(), env["LISTEN"].as_str()), ("warn", "0.0.0.0:${port.http}"));
}

#[test]
fn little_is_needed() {
    let file = parse(
        "[package]\nrun = \"make\"\n[service.web]\ncommand = [\"bin/web\"]\nports = { http = \"auto\" }\nhealth = { http = \"/\" }\n",
    );
    let web = &file.service[&"web".parse().unwrap()];
    let http = "http".parse().unwrap();
    assert_eq!(web.health.probe(), Probe::Http { port: &http, path: "/" }, "the only port is meant");
    assert_eq!(web.health, Health { port: Some(http.clone()), http: Some("/".to_owned()), ..Health::default() });
    assert_eq!((web.start, web.stop.drain), (Start::Beside, Millis::from_secs(10)));
    let deploy = file.deploy_to(&"anywhere".parse().unwrap());
    assert_eq!((deploy.bake, deploy.max_unavailable), (Millis::from_secs(300), share(1000)));
    assert!(file.unsupported().is_empty());
    assert_eq!(parse(""), PipelineFile::default());
}

#[test]
fn defaults_follow_what_is_said() {
    let file = parse(
        "service.a = { command = ['a'], ports = { http = 80 } }\nservice.b = { command = ['b'] }\nservice.c = { systemd = 'c.service' }\n[deploy.test]\nstrategy = 'rolling'",
    );
    let start = |name: &str| file.service[&name.parse().unwrap()].start;
    assert_eq!([start("a"), start("b"), start("c")], [Start::InPlace, Start::Beside, Start::InPlace]);
    assert_eq!(file.service[&"b".parse().unwrap()].stop.drain, Millis(0));
    let deploy = file.deploy_to(&"test".parse().unwrap());
    assert_eq!((deploy.bake, deploy.waves), (Millis(0), vec![share(10_000)]));
}

#[test]
fn what_is_not_built_yet_is_said_with_its_line() {
    let found = listed(&parse(EXAMPLE).unsupported());
    let line_of = |text: &str| EXAMPLE.lines().position(|line| line.starts_with(text)).unwrap() + 1;
    assert!(found.contains(&format!(
        "{}:11 unsupported: not in this version yet: secrets in builds (remove `build.secrets` for now)",
        line_of("secrets = [\"npm_token\"]")
    )));
    for (text, path) in
        [("[task.migrate]", "task.migrate"), ("traffic", "deploy.production.traffic"), ("systemd", "service.legacy.systemd")]
    {
        let prefix = format!("{}:", line_of(text));
        assert!(found.iter().any(|found| found.starts_with(&prefix) && found.contains(path)), "{path} in {found:#?}");
    }
    assert_eq!(found.len(), 13, "{found:#?}");
}

#[test]
fn state_keeps_it_whole_in_any_encoding() {
    #[derive(serde::Serialize, serde::Deserialize)]
    struct Around(u8, PipelineFile, u8);
    let file = parse(EXAMPLE);
    for bytes in
        [rmp_serde::to_vec(&Around(1, file.clone(), 2)).unwrap(), rmp_serde::to_vec_named(&Around(1, file.clone(), 2)).unwrap()]
    {
        let back: Around = rmp_serde::from_slice(&bytes).unwrap();
        assert_eq!((back.0, &back.1, back.2), (1, &file, 2));
        assert!(bytes.len() < 4096, "{} bytes", bytes.len());
    }
    let json = serde_json::to_string(&file).unwrap();
    assert_eq!(serde_json::from_str::<PipelineFile>(&json).unwrap(), file);
}

#[test]
fn an_older_or_newer_version_can_read_it() {
    #[derive(serde::Serialize)]
    struct Newer {
        paths: Vec<String>,
        build: NewerBuild,
        quantum: u8,
    }
    #[derive(serde::Serialize)]
    struct NewerBuild {
        run: &'static str,
        entangled: bool,
    }
    let newer = Newer { paths: vec!["a/**".to_owned()], build: NewerBuild { run: "make", entangled: true }, quantum: 7 };
    let packed = rmp_serde::to_vec_named(&newer).unwrap();
    let mut bytes = Vec::new();
    serde::Serializer::serialize_bytes(&mut rmp_serde::Serializer::new(&mut bytes), &packed).unwrap();
    let file: PipelineFile = rmp_serde::from_slice(&bytes).unwrap();
    assert_eq!((file.paths, file.build.run.as_deref()), (vec!["a/**".to_owned()], Some("make")));
    assert_eq!(file.build.memory, ByteSize(2 << 30), "what an older version did not write has its default");
}

#[test]
fn what_is_printed_is_read_back() {
    let file = parse(EXAMPLE);
    assert_eq!(parse(&printed(&file)), file);
}
