//! The tree of commands: every command takes `--json` and has help.

use std::collections::BTreeSet;

use clap::CommandFactory as _;

use crate::{Cli, Exit, parse};

/// Every command without subcommands, as it is typed, such as `pipeline ls`.
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
fn every_command_takes_json_and_documents_itself_and_its_arguments() {
    Cli::command().debug_assert();
    let mut command = Cli::command();
    command.build();
    for leaf in leaves() {
        let mut at = &command;
        for word in leaf.split(' ') {
            at = at.find_subcommand(word).unwrap();
        }
        assert!(at.get_arguments().any(|argument| argument.get_long() == Some("json")), "{leaf} does not take --json");
        let about = at.get_about().map(ToString::to_string).unwrap_or_default();
        let verb = about.split(' ').next().unwrap_or_default();
        assert!(verb.ends_with('s') && !about.ends_with('.'), "{leaf}: `{about}` does not say what it does");
        for argument in at.get_arguments().filter(|argument| !argument.is_hide_set()) {
            let help = argument.get_help().map(ToString::to_string).unwrap_or_default();
            assert!(help.split(' ').count() > 1, "{leaf} {}: `{help}` does not say what it is", argument.get_id());
            assert!(!help.ends_with('.') && help.starts_with(char::is_uppercase), "{leaf} {}: `{help}`", argument.get_id());
        }
    }
}

#[test]
fn mistyped_command_is_refused_with_suggestion() {
    let error = Cli::command().try_get_matches_from(["swell", "deply"]).unwrap_err();
    assert!(error.to_string().contains("'deploy'"), "{error}");
    assert_eq!(parse(["swell", "deply"]).unwrap_err(), Exit::Usage);
    assert_eq!(parse(["swell", "--version"]).unwrap_err(), Exit::Done);
}

#[test]
fn agent_with_url_as_server_is_refused_with_form_to_write() {
    let error = Cli::command().try_get_matches_from(["swell", "agent", "--server", "http://10.0.0.1:7400"]).unwrap_err();
    assert!(error.to_string().contains("write HOST:PORT, such as 10.0.0.1:7400, without http://"), "{error}");
}

#[test]
fn top_level_help_matches_snapshot() {
    insta::assert_snapshot!(Cli::command().term_width(100).render_help(), @r"
    Turns a git push into a healthy fleet, and a bad push back before users notice

    Usage: swell [OPTIONS] <COMMAND>

    Commands:
      dev         Runs everything on this machine: a server with a runner, a gateway and a few agents
      server      Runs a server of the cluster
      agent       Makes this machine a target that releases are deployed to
      gateway     Forwards users' requests to healthy instances
      init        Writes a commented swell.toml for the current repository
      validate    Checks a pipeline file without a server
      schema      Prints the JSON Schema of swell.toml
      plan        Shows what a deploy would do, without changing anything
      build       Builds a commit and follows the build
      deploy      Deploys a release to an environment and follows the rollout
      rollback    Returns an environment to its last good release and follows the rollout
      promote     Skips the waiting time of a rollout's current gate
      pause       Pauses a rollout before its next change
      resume      Resumes a paused rollout
      abort       Cancels a build, or stops a rollout and reverts what it changed
      retry       Queues a failed build again and follows it
      status      Shows what runs where, or one build, rollout, release or pipeline
      logs        Prints the log of a build, or the last output of a rollout's failed targets
      history     Lists builds and rollouts, newest first
      why         Explains the state of a build or rollout
      diff        Compares two releases
      events      Lists events, and follows them
      audit       Lists who changed what
      pipeline    Manages pipelines: repositories that are built and deployed
      repo        Manages git repositories hosted by Groundswell
      artifact    Manages artifacts: the output of builds
      fleet       Manages targets: the machines that releases run on
      env         Manages environments: sets of targets, and the policy for changing them
      cluster     Shows the servers of the cluster
      login       Stores a token for a server
      whoami      Shows the role and name that the server knows you by
      doctor      Checks this machine and the server for common problems
      config      Shows the settings of this program
      completion  Prints a completion script for a shell
      version     Prints the version

    Options:
      -h, --help     Print help (see more with '--help')
      -V, --version  Print version

    Global options:
          --json               Print the result as JSON on standard output; for roles, log as JSON
          --addr <URL>         Address of the server, such as http://10.0.0.1:7400
          --config <FILE>      Configuration file in place of the user's; for roles, of the system's
          --token-file <FILE>  File that holds the token
          --color <WHEN>       When to use colors [possible values: auto, always, never]
      -q, --quiet              Print only the result and errors, no progress

    Exit codes:
      0  done                           6  stopped waiting, the work continues
      1  failed                         7  conflict or lock
      2  usage or configuration         8  not allowed
      3  failed and rolled back         9  no leader, or no server answers
      4  rollback failed               10  `plan` found changes
      5  waiting for approval

    The server is --addr, SWELL_ADDR, `addr` in a configuration file, or http://127.0.0.1:7400.
    Run `swell config show --origin` to see which applies.
    ");
}
