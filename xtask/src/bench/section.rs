//! The file of results: a section a benchmark, written whole or not at all. Knows nothing of measuring.

use std::{fs, process::Command};

use anyhow::{Context as _, Result, ensure};

use super::report::Report;
use crate::steps;

/// How the file begins.
pub const HEAD: &str = "\
# Benchmarks

Each section is written by `cargo xtask bench NAME`, which measures the product beside its peer in the same run; what is changed by hand is
overwritten. Numbers are medians. Machines are noisy: a ratio counts, a single absolute number does not.
";

/// Where and when something was measured.
#[derive(Debug)]
pub struct Place {
    /// Processor, cores, memory, kernel.
    pub machine: String,
    /// Our commit; ends in `-modified` where the checkout differs from it.
    pub commit: String,
    /// As YYYY-MM-DD, in UTC.
    pub date: String,
}

impl Place {
    /// This machine, this checkout, now.
    pub fn here() -> Result<Self> {
        let processor = field("/proc/cpuinfo", "model name").unwrap_or_else(|| std::env::consts::ARCH.to_owned());
        let cores = std::thread::available_parallelism().context("failed to count the cores")?;
        let kib: u64 = field("/proc/meminfo", "MemTotal")
            .and_then(|total| total.split_whitespace().next()?.parse().ok())
            .context("failed to read MemTotal in /proc/meminfo")?;
        let kernel = fs::read_to_string("/proc/sys/kernel/osrelease").context("failed to read the kernel's release")?;
        let machine = format!("{processor}, {cores} cores, {} GiB of memory, Linux {}", kib.div_ceil(1 << 20), kernel.trim());
        let modified =
            !printed(Command::new("git").args(["status", "--porcelain", "--", ".", ":!docs/BENCHMARKS.md"]))?.is_empty();
        let commit = printed(Command::new("git").args(["rev-parse", "--short=12", "HEAD"]))?;
        let commit = if modified { format!("{commit}-modified") } else { commit };
        Ok(Self { machine, commit, date: printed(Command::new("date").args(["-u", "+%Y-%m-%d"]))? })
    }

    /// One line for a terminal.
    pub fn line(&self) -> String {
        format!("{}, swell {}, {}", self.date, self.commit, self.machine)
    }
}

/// The value of the first `NAME : VALUE` in a file of /proc.
fn field(path: &str, name: &str) -> Option<String> {
    let text = fs::read_to_string(path).ok()?;
    let value = text.lines().find_map(|line| line.strip_prefix(name)?.trim_start().strip_prefix(':'))?;
    Some(value.trim().to_owned())
}

fn printed(command: &mut Command) -> Result<String> {
    let output = command.current_dir(steps::root()).output().with_context(|| format!("failed to start {command:?}"))?;
    ensure!(output.status.success(), "{command:?} failed: {}", String::from_utf8_lossy(&output.stderr).trim());
    Ok(String::from_utf8_lossy(&output.stdout).trim().to_owned())
}

/// The section of a benchmark, from its heading to its last row.
pub fn render(name: &str, place: &Place, report: &Report) -> String {
    let versions: Vec<String> =
        report.versions.iter().flatten().map(|(program, version)| format!("{program} {version}")).collect();
    let versions = [&[format!("swell {}", place.commit)], &versions[..]].concat().join(", ");
    format!(
        "## {name}\n\n- Date: {}\n- Machine: {}\n- Versions: {versions}\n\n{}",
        place.date,
        place.machine,
        report.table().markdown()
    )
}

/// The file with the section `name` replaced by `text`, or appended where there is none; the others stay as they are.
pub fn replace(file: &str, name: &str, text: &str) -> String {
    let heading = format!("## {name}");
    let mut parts: Vec<Vec<&str>> = vec![Vec::new()];
    for line in file.lines() {
        if line.starts_with("## ") {
            parts.push(Vec::new());
        }
        parts.last_mut().unwrap_or(&mut Vec::new()).push(line);
    }
    let mut parts: Vec<String> = parts.into_iter().map(|lines| lines.join("\n").trim_end().to_owned()).collect();
    let text = text.trim_end().to_owned();
    match parts.iter_mut().find(|part| part.lines().next() == Some(heading.as_str())) {
        Some(part) => *part = text,
        None => parts.push(text),
    }
    parts.join("\n\n") + "\n"
}

#[cfg(test)]
mod tests {
    use super::{HEAD, Place, render, replace};
    use crate::bench::report::Report;

    fn section() -> String {
        let place = Place { machine: "CPU, 2 cores".into(), commit: "abc".into(), date: "2026-11-24".into() };
        let mut report = Report::default();
        report.read(r#"{"versions": {"runc": "1.1.5", "crun": "1.8"}}"#).unwrap();
        report
            .read(r#"{"bench": "start", "case": "empty", "ours": 20, "peer": 32, "ratio": 0.625, "unit": "ms", "runs": 9, "note": "runc"}"#)
            .unwrap();
        render("start", &place, &report)
    }

    #[test]
    fn section_names_machine_versions_date_and_rows() {
        let expected = "## start\n\n- Date: 2026-11-24\n- Machine: CPU, 2 cores\n- Versions: swell abc, crun 1.8, runc 1.1.5\n\n\
                        | case | ours | peer | ratio | unit | runs | note |\n| --- | ---: | ---: | ---: | --- | ---: | --- |\n\
                        | empty | 20.0 | 32.0 | 0.62 | ms | 9 | runc |\n";
        assert_eq!(section(), expected);
    }

    #[test]
    fn new_section_is_appended_after_the_others() {
        let file = replace(HEAD, "start", &section());
        let file = replace(&file, "starting", "## starting\n\nfast\n");
        assert!(file.starts_with("# Benchmarks\n"));
        assert!(file.ends_with("| runc |\n\n## starting\n\nfast\n"), "{file}");
    }

    #[test]
    fn section_is_replaced_where_it_stands_and_the_others_stay() {
        let before = format!("{HEAD}\n## a\n\nold a\n\n## start\n\nold start\n\n### detail\n\n## z\n\nold z\n");
        let after = replace(&before, "start", &section());
        assert!(!after.contains("old start") && !after.contains("### detail"), "{after}");
        let expected = format!("{HEAD}\n## a\n\nold a\n\n{}\n## z\n\nold z\n", section());
        assert_eq!(after, expected);
        assert_eq!(replace(&after, "start", &section()), after);
    }

    #[test]
    fn place_of_measurement_is_known_on_this_machine() {
        let place = Place::here().unwrap();
        assert!(place.machine.contains("cores") && place.date.len() == 10 && place.commit.len() >= 12, "{place:?}");
    }
}
