//! Each thing that cannot be is refused with its place, the reason and a way out.

use crate::pipeline_file::{
    FILE_BYTES_MAX,
    tests::{PipelineFile, listed},
};

fn refused(text: &str) -> Vec<String> {
    listed(&PipelineFile::parse(text).unwrap_err())
}

#[test]
fn each_mistake_is_told_with_its_place_and_a_way_out() {
    let cases: &[(&str, &[&str])] = &[
        ("[build]\nmemroy = \"4GiB\"\n", &["2:1 unknown_key: unknown key `memroy` in `build` (did you mean `memory`?)"]),
        ("[biuld]\n", &["1:2 unknown_key: unknown key `biuld` (did you mean `build`?)"]),
        (
            "[build]\nwhatever = 1\n",
            &[
                "2:1 unknown_key: unknown key `whatever` in `build` (known here: cpu, disk, env, image, memory, network, run, secrets, timeout)",
            ],
        ),
        ("[build]\ncpu = \"two\"\n", &["2:7 wrong_type: `build.cpu` must be a number such as 1.5, found a text"]),
        (
            "[build]\nmemory = \"4Gb\"\ntimeout = 30\n",
            &[
                "2:10 bad_value: `build.memory`: `4Gb` is not a size such as `512MiB`, `4GiB` or `200MB`",
                "3:11 wrong_type: `build.timeout` must be a text such as \"30s\", found a whole number",
            ],
        ),
        ("[build]\ntimeout = \"0s\"\n", &["2:11 out_of_range: `build.timeout` is out of range (from 1s to 7d is possible)"]),
        (
            "[build]\nnetwork = [\"example.com\"]\n",
            &[
                "2:12 bad_value: `example.com` is not host:port (write a host name or address and a port, such as \"registry.example.com:443\")",
            ],
        ),
        (
            "[build]\nsecrets = [\"hunter2!\"]\n",
            &[
                "2:12 bad_name: `hunter2!` is not a secret's name: up to 63 of `a-z 0-9 - _ .`, beginning with a letter or a digit (only the name of a secret stands here; its value is given with `swell secret set`)",
            ],
        ),
        ("[build\nrun = 1\n", &["1:7 syntax: this is not TOML: unclosed table, expected `]`"]),
        ("[build]\nrun = \"a\"\nrun = \"b\"\n", &["3:1 syntax: this is not TOML: duplicate key"]),
        (
            "[[cache]]\npaths = [\"../x\"]\n",
            &[
                "1:1 missing_key: `cache[0]` has no `key` (add a line such as `key = [\"package-lock.json\"]`)",
                "2:10 bad_value: `../x` leads out of the workspace (write it relative to the workspace)",
            ],
        ),
        ("[[cache]]\nkey = []\npaths = [\"a\"]\n", &["2:7 bad_value: `cache[0].key` names no file"]),
        ("[test]\n", &["1:2 missing_key: `test` has no `run` (add a line such as `run = \"make check\"`)"]),
        (
            "paths = [\"docs/\", \"a[\"]\n",
            &["1:10 bad_glob: `docs/` matches no file: names are relative to the repository's root (write \"docs/**\")"],
        ),
        (
            "[service.Web]\ncommand = [\"a\"]\n",
            &["1:10 bad_name: `Web` is not a service's name: up to 63 of `a-z 0-9 - _ .`, beginning with a letter or a digit"],
        ),
        (
            "[service.a]\n",
            &[
                "1:10 missing_key: `service.a` has neither a command nor a systemd unit (add `command = [\"bin/name\"]`, or `systemd = \"name.service\"`)",
            ],
        ),
        (
            "[service.a]\ncommand = []\n",
            &["2:11 bad_value: `service.a.command` names no program (write one such as [\"bin/api\"])"],
        ),
        (
            "[service.a]\ncommand = \"bin/a\"\n",
            &["2:11 wrong_type: `service.a.command` must be a list of texts such as [\"bin/api\", \"--verbose\"], found a text"],
        ),
        (
            "[service.a]\ncommand = [\"a\"]\nsystemd = \"a.service\"\n",
            &[
                "3:11 contradiction: `service.a` has a command and a systemd unit: only one of them can run it (remove one of the two)",
            ],
        ),
        (
            "[service.a]\nsystemd = \"a.service\"\nuser = \"x\"\nstart = \"beside\"\n",
            &[
                "3:8 contradiction: `service.a.user` has no effect on a systemd unit (set it in the unit)",
                "4:9 contradiction: `service.a`: a systemd unit cannot start beside itself (write `start = \"in-place\"`)",
            ],
        ),
        (
            "[service.a]\ncommand = [\"a\"]\nports = { http = 0, admin = \"any\" }\n",
            &[
                "3:18 out_of_range: `service.a.ports.http` is out of range (from 1 to 65535 is possible)",
                "3:29 bad_value: `service.a.ports.admin` must be \"auto\"",
            ],
        ),
        (
            "[service.a]\ncommand = [\"a\", \"${port.htp}\"]\nports = { http = \"auto\" }\nenv = { A = \"${relase}\", B = \"${x\" }\n",
            &[
                "2:17 undefined: `${port.htp}`: there is no port `htp` (add `htp` to the service's `ports`)",
                "4:13 bad_variable: `${relase}` is not a variable; did you mean `${release}`?",
                "4:30 bad_variable: `${` is never closed; write `$${` for the two characters themselves",
            ],
        ),
        (
            "[service.a]\ncommand = [\"a\"]\nports = { http = \"auto\" }\nhealth = { port = \"htp\", http = \"/\" }\n",
            &["4:19 undefined: `service.a` has no port `htp` to probe (write `port = \"http\"`)"],
        ),
        (
            "[service.a]\ncommand = [\"a\"]\nhealth = { http = \"healthz\" }\n",
            &["3:19 bad_value: `healthz` is not the path of a request (write one such as \"/healthz\")"],
        ),
        (
            "[service.a]\ncommand = [\"a\"]\nports = { x = \"auto\", y = \"auto\" }\nhealth = { http = \"/\" }\n",
            &["4:19 missing_key: `service.a.health` does not say which port to ask (its ports are: x, y)"],
        ),
        (
            "[service.a]\ncommand = [\"a\"]\nhealth = { command = [\"x\"], port = \"y\", interval = \"0s\" }\n",
            &[
                "3:1 contradiction: `service.a.health` has a command and a port: only one of them can probe (keep `command`, or `port` with or without `http`)",
                "3:52 out_of_range: `service.a.health.interval` is out of range (from 50ms to 10m is possible)",
            ],
        ),
        (
            "[service.a]\ncommand = [\"a\"]\nports = { http = 80 }\n[service.b]\ncommand = [\"b\"]\nports = { web = 80 }\n",
            &["6:17 contradiction: port 80 is already `service.a.ports.http` (give it another number, or \"auto\")"],
        ),
        (
            "[service.a]\ncommand = [\"a\"]\nenv = { \"1A\" = \"x\", B = 1, P = \"x\" }\nsecrets = { P = \"p\" }\n",
            &[
                "3:9 bad_name: `1A` is not a variable's name: letters, digits and `_`, not beginning with a digit",
                "3:25 wrong_type: `service.a.env.B` must be a text in quotes, found a whole number",
            ],
        ),
        (
            "[service.a]\ncommand = [\"a\"]\nenv = { P = \"x\" }\nsecrets = { P = \"p\" }\nstop = { signal = \"SIGTERM\" }\n",
            &[
                "5:19 bad_value: `service.a.stop.signal` must be one of \"TERM\", \"INT\", \"QUIT\", \"HUP\", \"USR1\", \"USR2\", \"WINCH\", \"KILL\"",
            ],
        ),
        (
            "[service.a]\ncommand = [\"a\"]\nenv = { P = \"x\" }\nsecrets = { P = \"p\" }\n",
            &["4:17 contradiction: `P` is set by `service.a.env` and by `service.a.secrets` (remove one of the two)"],
        ),
        ("[deploy.x]\nwaves = [1, \"10%\"]\n", &["2:9 bad_waves: the last wave is not 100% (add \"100%\" at the end)"]),
        (
            "[deploy.x]\nwaves = [\"50%\", \"10%\", \"100%\"]\n",
            &[
                "2:17 bad_waves: wave 10% adds no target to those before it (each wave says how many are changed when it is done: let them grow)",
            ],
        ),
        ("[deploy.x]\nwaves = [\"100%\", 5]\n", &["2:10 bad_waves: 100% is not the last wave (remove the waves after it)"]),
        (
            "[deploy.x]\nwaves = [0, \"100%\"]\n",
            &[
                "2:10 bad_waves: wave 0 adds no target to those before it (each wave says how many are changed when it is done: let them grow)",
            ],
        ),
        ("[deploy.x]\nwaves = []\n", &["2:9 bad_waves: the last wave is not 100% (add \"100%\" at the end)"]),
        (
            "[deploy.x]\nwaves = [\"110%\"]\n",
            &["2:10 bad_value: `deploy.x.waves[0]`: `110%` is not a count such as `3` or a share such as `10%`"],
        ),
        (
            "[deploy.x]\nstrategy = \"rolling\"\nwaves = [1, \"100%\"]\n",
            &["3:9 contradiction: only a canary has waves (remove `waves`, or write `strategy = \"canary\"`)"],
        ),
        (
            "[deploy.x]\nstrategy = \"cannary\"\n",
            &[
                "2:12 bad_value: `deploy.x.strategy` must be one of \"canary\", \"blue-green\", \"rolling\" (did you mean \"canary\"?)",
            ],
        ),
        (
            "[deploy.x]\nmax_unavailable = 0\n",
            &["2:19 bad_value: `deploy.x.max_unavailable` is 0: then no target may ever be changed (write at least 1)"],
        ),
        (
            "[deploy.x]\nbefore = \"migrat\"\nafter = \"smoke\"\n[task.migrate]\ncommand = [\"m\"]\n",
            &[
                "2:10 undefined: there is no task `migrat` (did you mean \"migrate\"?)",
                "3:9 undefined: there is no task `smoke` (add a section `[task.smoke]`)",
            ],
        ),
        (
            "[service.a]\ncommand = [\"a\"]\n[deploy.x]\nstrategy = \"blue-green\"\n",
            &[
                "4:12 contradiction: blue-green needs a service that speaks HTTP (give a service `health = { port = \"http\", http = \"/\" }`)",
            ],
        ),
        (
            "[service.a]\ncommand = [\"a\"]\nports = { http = \"auto\" }\nstart = \"in-place\"\n[deploy.x]\ntraffic = [\"1%\", \"10%\", \"50%\", \"100%\"]\n",
            &[
                "6:11 contradiction: splitting traffic needs both releases at once, but `service.a` starts in place (write `start = \"beside\"` in `[service.a]`)",
            ],
        ),
        (
            "[service.a]\ncommand = [\"a\"]\nports = { http = \"auto\" }\n[deploy.x]\ntraffic = [\"1%\", \"100%\"]\n",
            &["5:11 contradiction: 2 traffic steps for 4 waves (write one step for each wave)"],
        ),
        ("[deploy.x]\ntraffic = [\"50%\", \"10%\"]\n", &["2:19 bad_traffic: traffic goes back to 10% (let the steps grow)"]),
        (
            "[deploy.x]\ngates = [{ http = \"/a\", command = [\"b\"] }, { prometheus = \"q\" }, {}]\n",
            &[
                "2:10 contradiction: `deploy.x.gates[0]` must be exactly one of http, prometheus and command (write each check as a gate of its own)",
                "2:44 contradiction: `deploy.x.gates[1]`: `below` or `above` goes with `prometheus`, and `prometheus` with one of them (write { prometheus = \"queue_depth\", below = 1000 })",
                "2:66 contradiction: `deploy.x.gates[2]` must be exactly one of http, prometheus and command (write each check as a gate of its own)",
            ],
        ),
        ("[deploy.x]\nsticky = {}\n", &["2:1 contradiction: `deploy.x.sticky` must be exactly one of header and cookie"]),
        (
            "[task.t]\ncommand = [\"t\", \"${port.http}\"]\n",
            &["2:17 undefined: `${port.http}`: there is no port `http` (a task has no ports)"],
        ),
        (
            "[service.a]\ncommand = [\"a\"]\n[environment.e]\nenv = { L = \"${port.http}\" }\n",
            &["4:13 undefined: `${port.http}`: there is no port `http` (add `http` to the service's `ports`)"],
        ),
        (
            "service = 1\ncache = 2\n",
            &[
                "1:11 wrong_type: `service` must be a table of keys and values, found a whole number",
                "2:9 wrong_type: `cache` must be a list of tables: write `[[cache]]`, found a whole number",
            ],
        ),
    ];
    for (text, expected) in cases {
        assert_eq!(refused(text), *expected, "{text}");
    }
}

#[test]
fn a_problem_is_shown_with_its_line() {
    let text = "[build]\n\tmemroy = \"4GiB\" # é\n";
    let found = PipelineFile::parse(text).unwrap_err();
    let expected = [
        "error[unknown_key]: unknown key `memroy` in `build`",
        "  --> swell.toml:2:2",
        "   |",
        " 2 | \tmemroy = \"4GiB\" # é",
        "   | \t^^^^^^",
        "   = help: did you mean `memory`?",
        "",
    ];
    assert_eq!(found[0].render("swell.toml", text), expected.join("\n"));
}

#[test]
fn a_long_line_is_cut_around_the_problem() {
    let text = format!("build = {{ env = {{ A = \"{}\" }}, memroy = \"4GiB\" }}", "x".repeat(500));
    let shown = PipelineFile::parse(&text).unwrap_err()[0].render("swell.toml", &text);
    assert!(shown.contains("memroy = ") && shown.lines().all(|line| line.chars().count() < 200), "{shown}");
    let lines: Vec<&str> = shown.lines().collect();
    assert_eq!(lines[3].find("memroy"), lines[4].find('^'), "{shown}");
}

#[test]
fn sizes_are_bounded() {
    let large = format!("# {}", "x".repeat(FILE_BYTES_MAX));
    assert_eq!(PipelineFile::parse(&large).unwrap_err()[0].code, "too_large");
    let services: String = (0..65).map(|number| format!("[service.s{number}]\ncommand = [\"s\"]\n")).collect();
    assert_eq!(PipelineFile::parse(&services).unwrap_err()[0].message, "`service` has 65 entries, at most 64 are possible");
    let waves: String = (1..33).map(|number| format!("{number}, ")).collect();
    let found = PipelineFile::parse(&format!("[deploy.x]\nwaves = [{waves} \"100%\"]")).unwrap_err();
    assert_eq!(found[0].message, "`deploy.x.waves` has 33 entries, at most 32 are possible");
    let nested = format!("paths = {}{}", "[".repeat(50_000), "]".repeat(50_000));
    assert_eq!(PipelineFile::parse(&nested).unwrap_err()[0].code, "syntax");
    let keys: String = (0..50_000).map(|number| format!("k{number} = 1\n")).collect();
    assert_eq!(PipelineFile::parse(&keys).unwrap_err().len(), 100, "no more than a person reads");
}
