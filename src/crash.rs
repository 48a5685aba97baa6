//! Named points at which a test may end this very process as a power cut would: by SIGKILL, with nothing flushed or unwound.
//! Knows nothing of what happens around the points; compiled to nothing where debug assertions are off.
//!
//! - `SWELL_CRASH_AT=name[:n][,name[:n]…]`: die at the n-th passing (the first unless given) of the point `name`.
//! - `SWELL_CRASH_ONCE=FILE`: only if `FILE` can be created by this crash; so that whoever is started again with the same
//!   environment lives.

/// Passes the point `name`; dies there when the environment says so. `name` is `module::step`, unique in the program.
#[cfg(debug_assertions)]
pub fn point(name: &str) {
    imp::point(name);
}

/// Passes the point `name`: nothing happens in a build without debug assertions.
#[cfg(not(debug_assertions))]
#[inline(always)]
pub fn point(_name: &str) {}

/// The variables that must be handed to a child process for its crash points to work; empty outside debug builds.
pub fn inherited_env() -> Vec<(String, String)> {
    if !cfg!(debug_assertions) {
        return Vec::new();
    }
    [AT, ONCE].iter().filter_map(|name| Some(((*name).to_owned(), std::env::var(name).ok()?))).collect()
}

const AT: &str = "SWELL_CRASH_AT";
const ONCE: &str = "SWELL_CRASH_ONCE";

#[cfg(debug_assertions)]
mod imp {
    use std::{
        collections::HashMap,
        sync::{LazyLock, Mutex, PoisonError},
    };

    /// Passings that remain until each armed point fires.
    static ARMED: LazyLock<Mutex<HashMap<String, u32>>> =
        LazyLock::new(|| Mutex::new(parse(&std::env::var(super::AT).unwrap_or_default())));

    pub(super) fn parse(text: &str) -> HashMap<String, u32> {
        text.split(',')
            .filter(|part| !part.is_empty())
            .map(|part| match part.rsplit_once(':').and_then(|(name, n)| Some((name, n.parse().ok()?))) {
                Some((name, n)) => (name.to_owned(), n),
                None => (part.to_owned(), 1),
            })
            .collect()
    }

    pub(super) fn point(name: &str) {
        let mut armed = ARMED.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(left) = armed.get_mut(name) else { return };
        *left = left.saturating_sub(1);
        if *left > 0 {
            return;
        }
        armed.remove(name);
        if let Some(file) = std::env::var_os(super::ONCE)
            && std::fs::File::create_new(file).is_err()
        {
            return;
        }
        // To ourselves, SIGKILL is delivered before the call returns; the abort is for the compiler.
        nix::sys::signal::raise(nix::sys::signal::Signal::SIGKILL).ok();
        std::process::abort();
    }
}

#[cfg(all(test, debug_assertions))]
mod tests {
    #[test]
    fn names_may_contain_colons() {
        let armed = super::imp::parse("shim::before_child,agent::switch:3");
        assert_eq!(armed.get("shim::before_child"), Some(&1));
        assert_eq!(armed.get("agent::switch"), Some(&3));
    }
}
