//! Planted manifests: each rule of manifests.rs catches its violations and passes what is legal.

use crate::{
    manifests::{arrows, documentation, homes, inheritance, places},
    violation::{Violation, found_in, sorted},
    workspace::Workspace,
};

const PACKAGE: &str = "\
[package]
version.workspace = true
edition.workspace = true
rust-version.workspace = true
license.workspace = true
publish.workspace = true
[lints]
workspace = true
";

type Rule = fn(&Workspace) -> Vec<Violation>;

#[test]
fn planted_imports_are_caught() {
    let cases: &[(Rule, &str, &str, &str)] = &[
        (arrows, "src/http/Cargo.toml", "[dependencies]\nswell-actors.workspace = true", "arrow@2"),
        (arrows, "src/http/Cargo.toml", "[dependencies]\nserde = \"1\"\nswell-actors = { workspace = true }", "arrow@3"),
        (arrows, "src/http/Cargo.toml", "[dependencies.swell-actors]\nworkspace = true", "arrow@1"),
        (arrows, "src/http/Cargo.toml", "[build-dependencies]\nswell-actors.workspace = true", "arrow@2"),
        (arrows, "src/http/Cargo.toml", "[dev-dependencies]\nswell-actors.workspace = true", "arrow@2"),
        (arrows, "src/http/Cargo.toml", "[target.'cfg(unix)'.dependencies]\nswell-actors.workspace = true", "arrow@2"),
        (arrows, "src/http/Cargo.toml", "[dependencies]\nnode = { package = \"swell-actors\", path = \"x\" }", "arrow@2"),
        (arrows, "src/storage/Cargo.toml", "[dependencies]\nswell-raft.workspace = true", "arrow@2"),
        (arrows, "src/model/Cargo.toml", "[dependencies]\nswell-system.workspace = true", "arrow@2"),
        (arrows, "src/cellar/Cargo.toml", "[dependencies]\nswell-model.workspace = true", "arrow@2"),
        (arrows, "src/raft/Cargo.toml", "[dependencies]\nswell-xtask.workspace = true", "arrow@2"),
        (arrows, "xtask/Cargo.toml", "[dependencies]\nswell-model.workspace = true", "arrow@2"),
        (
            arrows,
            "src/raft/Cargo.toml",
            "[dependencies]\nswell-model = { workspace = true, features = [\"testing\"] }",
            "arrow@2",
        ),
        (places, "src/cellar/Cargo.toml", "[package]\nname = \"swell-cellar\"", "place@1"),
        (places, "src/raft/Cargo.toml", "[package]\nname = \"raft\"", "place@2"),
        (places, "src/raft/lib.rs", "//! No manifest.\n", "place@1"),
        (homes, "src/raft/Cargo.toml", "[dependencies]\nrocksdb.workspace = true", "home@2"),
        (homes, "src/storage/Cargo.toml", "[dependencies]\nopenraft.workspace = true", "home@2"),
        (homes, "src/http/Cargo.toml", "[dependencies]\nractor_cluster.workspace = true", "home@2"),
        (homes, "src/agent/Cargo.toml", "[build-dependencies]\nlibcontainer.workspace = true", "home@2"),
        (homes, "src/cli/Cargo.toml", "[dependencies]\nutoipa-axum.workspace = true", "home@2"),
        (homes, "src/http/Cargo.toml", "[dependencies]\naws-sdk-s3.workspace = true", "home@2"),
        (homes, "src/http/Cargo.toml", "[dependencies]\nraft = { package = \"openraft\", version = \"1\" }", "home@2"),
        (homes, "Cargo.toml", "[package]\nname = \"groundswell\"\n[dependencies]\naxum.workspace = true", "home@4"),
    ];
    for (rule, file, text, expected) in cases {
        assert_eq!(found_in(rule, &[(file, text)]), [*expected], "in {file}: {text}");
    }
}

#[test]
fn package_renamed_in_the_root_manifest_is_known_by_its_own_name() {
    let root = "[workspace.dependencies]\nnode = { package = \"swell-actors\", path = \"src/actors\" }";
    let http = "[dependencies]\nnode.workspace = true";
    assert_eq!(found_in(arrows, &[("Cargo.toml", root), ("src/http/Cargo.toml", http)]), ["arrow@2"]);
}

#[test]
fn planted_versions_and_lints_are_caught() {
    let cases = [
        (PACKAGE.replace("edition.workspace = true", "edition = \"2024\""), "inherit@3"),
        (PACKAGE.replace("license.workspace = true\n", ""), "inherit@1"),
        (
            PACKAGE.replace("workspace = true\n", "workspace = false\n").replace(".workspace = false", ".workspace = true"),
            "inherit@8",
        ),
        (PACKAGE.replace("[lints]\nworkspace = true", "[lints.rust]\nunsafe_code = \"deny\""), "inherit@7"),
        (format!("{PACKAGE}[dependencies]\nserde = \"1\""), "inherit@10"),
        (format!("{PACKAGE}[dependencies]\nserde = {{ version = \"1\", features = [\"rc\"] }}"), "inherit@10"),
        (format!("{PACKAGE}[dev-dependencies]\nserde.version = \"1\""), "inherit@10"),
        (format!("{PACKAGE}[dependencies.serde]\ngit = \"https://example.org\""), "inherit@9"),
        (format!("{PACKAGE}[dependencies]\nswell-model = {{ path = \"../model\" }}"), "inherit@10"),
    ];
    for (text, expected) in cases {
        for file in ["src/raft/Cargo.toml", "xtask/Cargo.toml", "Cargo.toml"] {
            assert_eq!(found_in(inheritance, &[(file, &text)]), [expected], "in {file}: {text}");
        }
    }
}

#[test]
fn legal_manifests_pass() {
    let raft = format!(
        "{}[dependencies]\nserde = {{ workspace = true, features = [\"rc\"] }}\nopenraft.workspace = true\n\
         swell-model.workspace = true\nswell-storage.workspace = true\n[dev-dependencies]\n\
         swell-model = {{ workspace = true, features = [\"testing\"] }}\nrocksdb.workspace = true\n\
         [features]\ntesting = [\"swell-model/testing\"]\n",
        PACKAGE.replace("[package]", "[package]\nname = \"swell-raft\"")
    );
    let root = format!(
        "[workspace.dependencies]\nserde = \"1\"\nswell-raft = {{ path = \"src/raft\" }}\n{PACKAGE}[dependencies]\n\
         swell-actors.workspace = true\nswell-ui.workspace = true\n[dev-dependencies]\naxum.workspace = true"
    );
    let bench = format!("{PACKAGE}[dependencies]\nswell-http.workspace = true");
    let files = [("src/raft/Cargo.toml", &*raft), ("Cargo.toml", &*root), ("benches/Cargo.toml", &*bench)];
    for rule in [arrows, places, homes, inheritance] {
        assert_eq!(sorted(rule(&Workspace::planted(&files))), []);
    }
}

#[test]
fn message_names_place_rule_and_way_out() {
    let manifest = "[dependencies]\nswell-raft.workspace = true";
    let violations = arrows(&Workspace::planted(&[("src/gateway/Cargo.toml", manifest)]));
    let message = violations[0].to_string();
    for part in ["src/gateway/Cargo.toml:2", "[arrow]", "`gateway` may not import `raft`", "model::interfaces"] {
        assert!(message.contains(part), "{part} is missing in: {message}");
    }
}

#[test]
fn documented_table_that_differs_is_caught() {
    let files = [("src/model/Cargo.toml", ""), ("src/raft/Cargo.toml", ""), ("src/roles/mod.rs", "")];
    let found = |text: &str| found_in(|workspace| documentation(workspace, text), &files);
    let model = "| `src/model/` | the rules | nothing of ours |";
    assert_eq!(found(&format!("{model}\n| `src/raft/` | agreement | model |")), [""; 0]);
    assert_eq!(
        found(&format!(
            "| `src/main.rs`, `src/roles/` | wires | everything |\n{model}\n| `src/raft/` | agreement | model, storage |"
        )),
        [""; 0]
    );
    assert_eq!(found(&format!("{model}\n| `src/raft/` | agreement | model, cellar |")), ["table@2"]);
    assert_eq!(found(&format!("{model}\n| `src/raft/` | agreement | nothing of ours |")), ["table@2"]);
    assert_eq!(found(model), ["table@1"]);
}
