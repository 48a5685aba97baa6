//! The units in `config/systemd/`: they start existing roles, and systemd accepts them.

use std::{fs, path::Path, process::Command};

use clap::Parser as _;

use crate::Cli;

#[test]
fn systemd_units_start_existing_roles_and_pass_verification() {
    let folder = tempfile::tempdir().unwrap();
    for role in ["server", "agent", "gateway"] {
        let name = format!("swell-{role}.service");
        let unit =
            fs::read_to_string(Path::new(&std::env::var("CARGO_MANIFEST_DIR").unwrap()).join("../../config/systemd").join(&name))
                .unwrap();
        let typed = unit.lines().find_map(|line| line.strip_prefix("ExecStart=/usr/bin/")).unwrap();
        assert!(typed.starts_with(&format!("swell {role}")) && Cli::try_parse_from(typed.split(' ')).is_ok(), "{typed}");
        assert!(unit.contains(&format!("\nStateDirectory=swell/{role}\n")), "{name} must make the folder that is the default");
        // The program need not be installed for its unit to be checked.
        let path = folder.path().join(&name);
        fs::write(&path, unit.replace("/usr/bin/swell", "/bin/true")).unwrap();
        match Command::new("systemd-analyze").args(["verify", "--man=no"]).arg(&path).output() {
            Ok(output) => {
                let said = String::from_utf8_lossy(&output.stderr);
                let ours = said.lines().any(|line| line.contains("swell"));
                assert!(output.status.success() && !ours, "systemd-analyze verify {name}: {said}");
            }
            Err(error) => eprintln!("SKIPPED: what systemd says of {name}: systemd-analyze: {error}"),
        }
    }
}
