//! The tree of commands: every leaf takes `--json`, has help, and the top reads well.

use std::collections::BTreeSet;

use clap::CommandFactory as _;

use crate::cli::{Cli, Exit, parse};

/// Every leaf as the words that are typed, such as `pipeline ls`.
pub fn leaves() -> BTreeSet<String> {
    fn walk(command: &clap::Command, path: &str, found: &mut BTreeSet<String>) {
        let below: Vec<_> = command.get_subcommands().filter(|below| below.get_name() != "help").collect();
        if below.is_empty() {
            found.insert(path.trim().to_owned());
        }
        for command in below {
            walk(command, &format!("{path} {}", command.get_name()), found);
        }
    }
    let mut command = Cli::command();
    command.build();
    let mut found = BTreeSet::new();
    walk(&command, "", &mut found);
    found
}

#[test]
fn the_tree_is_sound_and_every_leaf_takes_json_and_says_what_it_does() {
    Cli::command().debug_assert();
    let mut command = Cli::command();
    command.build();
    for leaf in leaves() {
        let mut at = &command;
        for word in leaf.split(' ') {
            at = at.find_subcommand(word).unwrap();
        }
        assert!(at.get_arguments().any(|argument| argument.get_long() == Some("json")), "{leaf} does not take --json");
        assert!(at.get_about().is_some(), "{leaf} does not say what it does");
        for argument in at.get_arguments().filter(|argument| !argument.is_hide_set()) {
            assert!(argument.get_help().is_some(), "{leaf} {} has no help", argument.get_id());
        }
    }
}

#[test]
fn a_typo_is_answered_with_what_was_meant() {
    let error = Cli::command().try_get_matches_from(["swell", "deply"]).unwrap_err();
    assert!(error.to_string().contains("'deploy'"), "{error}");
    assert_eq!(parse(["swell", "deply"]).unwrap_err(), Exit::Usage);
    assert_eq!(parse(["swell", "--version"]).unwrap_err(), Exit::Done);
}

#[test]
fn roles_are_not_run_by_the_client() {
    for role in ["dev", "server", "runner", "agent", "gateway"] {
        assert!(parse(["swell", role]).unwrap().command.is_role(), "{role}");
    }
    assert!(!parse(["swell", "status"]).unwrap().command.is_role());
}

#[test]
fn the_top_reads_well() {
    insta::assert_snapshot!(Cli::command().term_width(100).render_help());
}
