//! Someone else's server: lighttpd, its upstream release taken from Debian's source packages, unmodified except for a `swell.toml`.

use std::{path::Path, process::Command};

use crate::{
    harness::{Dev, Repo, example, isolation_is_here, text},
    traffic::ask,
};

/// What a team would write to deploy lighttpd. `perl` and the libraries are the host's.
const SWELL_TOML: &str = r#"
[build]
run = """
# git keeps no times, and automake looks at them: what is generated must not seem older than what it is generated from.
touch aclocal.m4 && sleep 1 && touch configure config.h.in && find . -name Makefile.in -exec touch {} +
./configure -q --prefix=/usr && make -s -j2
"""
cpu = 2.0
memory = "2GiB"
network = "none"

[test]
run = "make -s check"

[package]
run = """
make -s install DESTDIR=$OUT
mkdir -p $OUT/www $OUT/etc
echo 'served by lighttpd' > $OUT/www/index.html
cat > $OUT/etc/lighttpd.conf <<'CONF'
server.document-root = var.CWD + "/www"
server.port = env.PORT
server.bind = "127.0.0.1"
index-file.names = ("index.html")
CONF
"""

[service.web]
command = ["usr/sbin/lighttpd", "-D", "-m", "usr/lib", "-f", "etc/lighttpd.conf"]
ports = { http = "auto" }
start = "beside"
env = { PORT = "${port.http}" }
limits = { memory = "256MiB" }
health = { port = "http", interval = "500ms", min_healthy = "2s" }
stop = { signal = "INT", timeout = "10s", drain = "1s" }

[deploy.production]
auto = ["main"]
waves = [1, "100%"]
bake = "2s"
"#;

/// The sources of lighttpd, unpacked below `folder`.
fn sources(folder: &Path) -> std::path::PathBuf {
    let script = r#"
set -e
mkdir -p lists/partial archives
echo 'deb-src http://deb.debian.org/debian bookworm main' > src.list
apt="apt-get -qq -o Dir::Etc::sourcelist=$PWD/src.list -o Dir::Etc::sourceparts=- -o Dir::State::lists=$PWD/lists"
$apt update
$apt source --download-only lighttpd
mkdir lighttpd
tar -xf lighttpd_*.orig.tar.xz --strip-components=1 -C lighttpd
"#;
    let output = Command::new("sh").args(["-c", script]).current_dir(folder).output().unwrap();
    assert!(output.status.success(), "lighttpd's sources: {}", text(&output.stderr));
    folder.join("lighttpd")
}

#[test]
fn an_upstream_server_builds_passes_its_tests_and_runs_beside_another_pipeline() {
    if !isolation_is_here() {
        return;
    }
    let (mut dev, upstream) = (Dev::start(2), tempfile::tempdir().unwrap());
    dev.ok(&["env", "create", "production"]);
    for name in ["lighttpd", "pair"] {
        dev.ok(&["repo", "create", name]);
        dev.ok(&["pipeline", "create", name, "--repo", name]);
    }
    let repo = Repo::of(dev.folder.path(), "lighttpd-work", &sources(upstream.path()));
    repo.write("swell.toml", SWELL_TOML).commit("deploy it with Groundswell");
    repo.push(&dev, "lighttpd");

    let build = dev.ended_build(&dev.newest_build("lighttpd", 0));
    assert_eq!(build["state"], "ready-to-deploy", "{build:#}");
    let phases = build["attempts"][0]["phases"].as_array().unwrap();
    let tested = phases.iter().find(|phase| phase["phase"] == "test").unwrap();
    assert_eq!((&tested["exit_code"], &tested["skipped"]), (&0.into(), &false.into()), "its own tests ran: {tested}");
    let log = dev.ok(&["logs", build["id"].as_str().unwrap()]);
    assert!(log.contains("PASS: run-tests.pl"), "its own tests passed: {}", &log[log.len().saturating_sub(2000)..]);

    let rollout = dev.ended_rollout("lighttpd", 0);
    assert_eq!(rollout["state"], "deployed", "{rollout:#}");
    let host = "web.lighttpd.production";
    dev.wait_until(
        "lighttpd answers through the gateway",
        |dev| matches!(ask(dev.gateway, host, "/"), Ok((200, page)) if page.contains("served by lighttpd")),
    );

    // A second pipeline, with two services, on the same targets.
    Repo::of(dev.folder.path(), "pair-work", &example("pair")).push(&dev, "pair");
    let pair = dev.ended_rollout("pair", 0);
    assert_eq!(pair["state"], "deployed", "{pair:#}");
    let (status, page) = ask(dev.gateway, host, "/").unwrap();
    assert_eq!((status, page.trim()), (200, "served by lighttpd"), "the other pipeline's service is untouched");
    dev.stop();
    assert_eq!(dev.left_behind(), Vec::<String>::new());
}
