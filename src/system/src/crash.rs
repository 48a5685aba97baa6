//! Named points at which a test may end this very process as a power cut would (by SIGKILL, with nothing flushed or unwound), or one
//! actor by a panic. Knows nothing of what happens around the points; compiled to nothing where debug assertions are off.
//!
//! - `SWELL_CRASH_AT=name[:n][,name[:n]…]`: die at the n-th passing (the first unless given) of the point `name`.
//! - `SWELL_PANIC_AT=name:n[,name:n…]`: panic at the n-th passing of the actor's point `name`; a name may be given several times.
//! - `SWELL_CRASH_DIR=DIR`: die or panic at the point `name` if the file `DIR/name` can be removed by it; so that a test can arm a
//!   point at any moment, in whichever process passes it first, and whoever is started again with the same environment lives.

/// Passes the point `name`; dies there when the environment says so. `name` is `module::step`, unique in the program.
#[cfg(debug_assertions)]
pub fn point(name: &str) {
    imp::point(name);
}

/// Passes the point `name`: nothing happens in a build without debug assertions.
#[cfg(not(debug_assertions))]
#[inline(always)]
pub fn point(_name: &str) {}

/// Passes a point of the actor `name`; panics there when the environment says so.
///
/// # Panics
/// When a test planted it.
#[cfg(debug_assertions)]
pub fn panic_point(name: &str) {
    imp::panic_point(name);
}

/// Passes a point of the actor `name`: nothing happens in a build without debug assertions.
#[cfg(not(debug_assertions))]
#[inline(always)]
pub fn panic_point(_name: &str) {}

/// The variables that must be handed to a child process for its crash points to work; empty outside debug builds.
pub fn inherited_env() -> Vec<(String, String)> {
    if !cfg!(debug_assertions) {
        return Vec::new();
    }
    [AT, DIR].iter().filter_map(|name| Some(((*name).to_owned(), std::env::var(name).ok()?))).collect()
}

const AT: &str = "SWELL_CRASH_AT";
const DIR: &str = "SWELL_CRASH_DIR";
#[cfg(debug_assertions)]
const PANIC_AT: &str = "SWELL_PANIC_AT";

#[cfg(debug_assertions)]
mod imp {
    use std::{
        collections::{BTreeMap, BTreeSet},
        path::PathBuf,
        sync::{LazyLock, Mutex, PoisonError},
    };

    /// At which passings of a point something happens, and how often each was passed.
    #[derive(Default)]
    pub(super) struct Plan {
        at: BTreeMap<String, BTreeSet<u32>>,
        passed: BTreeMap<String, u32>,
    }

    impl Plan {
        pub(super) fn parse(text: &str) -> Self {
            let mut plan = Self::default();
            for part in text.split(',').filter(|part| !part.is_empty()) {
                let (name, n) = match part.rsplit_once(':').and_then(|(name, n)| Some((name, n.parse().ok()?))) {
                    Some((name, n)) => (name, n),
                    None => (part, 1),
                };
                plan.at.entry(name.to_owned()).or_default().insert(n);
            }
            plan
        }

        /// Counts a passing; its number where something is to happen.
        pub(super) fn pass(&mut self, name: &str) -> Option<u32> {
            let at = self.at.get(name)?;
            let passed = self.passed.entry(name.to_owned()).or_default();
            *passed += 1;
            at.contains(passed).then_some(*passed)
        }
    }

    static CRASHES: LazyLock<Mutex<Plan>> = LazyLock::new(|| Mutex::new(from_env(super::AT)));
    static PANICS: LazyLock<Mutex<Plan>> = LazyLock::new(|| Mutex::new(from_env(super::PANIC_AT)));
    static ARMED: LazyLock<Option<PathBuf>> = LazyLock::new(|| std::env::var_os(super::DIR).map(PathBuf::from));

    fn from_env(name: &str) -> Plan {
        Plan::parse(&std::env::var(name).unwrap_or_default())
    }

    fn pass(plan: &Mutex<Plan>, name: &str) -> Option<u32> {
        plan.lock().unwrap_or_else(PoisonError::into_inner).pass(name)
    }

    fn is_armed(name: &str) -> bool {
        ARMED.as_ref().is_some_and(|folder| std::fs::remove_file(folder.join(name)).is_ok())
    }

    pub(super) fn point(name: &str) {
        if pass(&CRASHES, name).is_some() || is_armed(name) {
            // To ourselves, SIGKILL is delivered before the call returns; the abort is for the compiler.
            nix::sys::signal::raise(nix::sys::signal::Signal::SIGKILL).ok();
            std::process::abort();
        }
    }

    pub(super) fn panic_point(name: &str) {
        if let Some(passing) = pass(&PANICS, name) {
            panic!("planted panic at {name}:{passing}");
        }
        assert!(!is_armed(name), "planted panic at {name}");
    }
}

#[cfg(all(test, debug_assertions))]
mod tests {
    use super::imp::Plan;

    #[test]
    fn plan_names_points_and_passings() {
        let mut plan = Plan::parse("shim::before_child,rollout:2,rollout:4");
        assert_eq!(plan.pass("shim::before_child"), Some(1), "names may contain colons");
        assert_eq!(plan.pass("shim::before_child"), None);
        let passings: Vec<_> = (0..5).filter_map(|_| plan.pass("rollout")).collect();
        assert_eq!(passings, [2, 4]);
        assert_eq!(plan.pass("another"), None);
    }
}
