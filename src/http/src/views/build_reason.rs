//! Sentences about builds, made of the typed reasons of the rules. Pure: reads no state.

use swell_model::{build::Resources, build::schedule::BuildWait};

/// What a build waits for, in a phrase that goes on after "waits for".
pub fn wait(wait: &BuildWait) -> String {
    match wait {
        BuildWait::NoRunner => "a runner: none is connected".to_owned(),
        BuildWait::TooLarge { asked, largest } => format!("a larger runner: {}", too_large(*asked, *largest)),
        BuildWait::Busy { ahead: 0 } => "a free runner: every one that is large enough is busy".to_owned(),
        BuildWait::Busy { ahead } => {
            format!("a free runner: every one that is large enough is busy, and {ahead} builds come before it")
        }
        BuildWait::Concurrency { running } => {
            format!("its pipeline: {running} of its builds are running, as many as its concurrency allows")
        }
        BuildWait::Turn { runner } => format!("its turn on runner {runner}"),
        BuildWait::Acknowledgement { runner } => format!("runner {runner} to acknowledge it"),
        BuildWait::Stopping { runner } => format!("runner {runner} to stop it"),
        BuildWait::Person => {
            "a person: the infrastructure failed it on every attempt; look at its attempts, then `swell retry`".to_owned()
        }
        BuildWait::ActorFailing { failure } => super::reason::actor_failure(failure),
    }
}

/// Which resource no runner has enough of.
fn too_large(asked: Resources, largest: Resources) -> String {
    let cpus = |resources: Resources| f64::from(resources.cpu_millis) / 1000.0;
    if asked.cpu_millis > largest.cpu_millis {
        return format!("it asks for {} CPUs, and the most that one has is {}", cpus(asked), cpus(largest));
    }
    if asked.memory > largest.memory {
        return format!("it asks for {} of memory, and the most that one has is {}", asked.memory, largest.memory);
    }
    format!("it asks for {} CPUs and {} of memory, and no runner has both", cpus(asked), asked.memory)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use swell_model::units::ByteSize;

    fn resources(cpu_millis: u32, gib: u64) -> Resources {
        Resources { cpu_millis, memory: ByteSize(gib << 30) }
    }

    #[test]
    fn too_large_build_names_the_resource_that_no_runner_has() {
        let said = |asked, largest| wait(&BuildWait::TooLarge { asked, largest });
        assert!(said(resources(2500, 1), resources(2000, 4)).contains("asks for 2.5 CPUs, and the most that one has is 2"));
        assert!(
            said(resources(1000, 8), resources(2000, 4)).contains("asks for 8GiB of memory, and the most that one has is 4GiB")
        );
        assert!(said(resources(2000, 4), resources(2000, 4)).contains("no runner has both"));
    }

    #[test]
    fn waiting_build_names_what_holds_it() {
        let runner = "r1".parse().unwrap();
        assert!(wait(&BuildWait::Concurrency { running: 2 }).contains("2 of its builds are running"));
        assert!(wait(&BuildWait::Busy { ahead: 3 }).contains("3 builds come before it"));
        assert!(!wait(&BuildWait::Busy { ahead: 0 }).contains("before it"));
        assert_eq!(wait(&BuildWait::Turn { runner }), "its turn on runner r1");
    }
}
