//! The tree of commands: every leaf takes `--json`, has help, and the top reads well.

use std::collections::BTreeSet;

use clap::CommandFactory as _;

use crate::{Cli, Exit, parse};

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
    for role in ["dev", "server", "agent", "gateway"] {
        assert!(parse(["swell", role]).unwrap().command.is_role(), "{role}");
    }
    assert!(!parse(["swell", "status"]).unwrap().command.is_role());
}

#[test]
fn the_top_reads_well() {
    insta::assert_snapshot!(Cli::command().term_width(100).render_help(), @r"
    Turns a git push into a healthy fleet, and a bad push back before users notice

    Usage: swell [OPTIONS] <COMMAND>

    Commands:
      dev         Run everything on this machine: a server with a runner, a gateway and a few agents
      server      Run a server of the cluster
      agent       Make this machine a target: converge it to what it should run
      gateway     Split traffic between releases
      init        Write a commented swell.toml for the repository at hand
      validate    Check a pipeline file, without a server
      schema      Print the JSON Schema of swell.toml
      plan        Show what a deploy would do, and change nothing
      build       Build a commit, and follow it
      deploy      Move an environment to a release, and follow it
      rollback    Go back to the last good release, and follow it
      promote     Pass the gate at which a rollout stands
      pause       Let a rollout stand still
      resume      Let a paused rollout go on
      abort       Stop a build, or a rollout and take back what it changed
      retry       Queue a failed build again, and follow it
      status      Show what runs where, or one thing
      logs        Show the log of a build, or the last output of a rollout's failed targets
      history     List builds and rollouts, newest first
      why         Explain why a build or a rollout is where it is
      diff        Compare two releases
      events      Show what happened, and follow it
      audit       Show who did what
      pipeline    Registered repositories
      repo        Repositories that Groundswell hosts
      artifact    What builds made
      fleet       The servers on which releases run
      env         Named sets of targets, and the policy for changing them
      cluster     The servers that agree
      login       Keep a token for a server
      whoami      Show who the server takes you for
      doctor      Look for the usual causes of trouble
      config      This program's own settings
      completion  Print a completion script for a shell
      version     Show the version

    Options:
      -h, --help     Print help (see more with '--help')
      -V, --version  Print version

    Everywhere:
          --json               Print the result as JSON on standard output (roles: log as JSON)
          --addr <URL>         The server's address, such as http://10.0.0.1:7400
          --config <FILE>      A configuration file in place of the user's (roles: of the system's)
          --token-file <FILE>  The file that holds the token
          --color <WHEN>       Whether to use colours [possible values: auto, always, never]
      -q, --quiet              Print no progress, only the result and errors

    Exit codes:
      0  done                           6  stopped waiting, the work goes on
      1  failed                         7  conflict or lock
      2  usage or configuration         8  not allowed
      3  failed and rolled back         9  no leader, or no server answers
      4  rollback failed               10  `plan` found changes
      5  waits for approval

    The server is --addr, SWELL_ADDR, `addr` of a configuration file, or http://127.0.0.1:7400;
    `swell config show --origin` says which.
    ");
}
