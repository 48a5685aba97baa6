//! Which refs of a hosted repository a pipeline has not considered yet, and whether what a push changed concerns it.

use std::collections::BTreeMap;

use crate::{
    build::Resources,
    pipeline::{ConsideredRef, Pipeline},
    pipeline_file::PipelineFile,
    principal::Principal,
    repository::{CommitId, Ref},
};

/// How often reading a push is tried before it is built unread.
const READS_MAX: u32 = 3;

/// A branch that stands elsewhere than when it was last looked at.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Moved {
    /// Its full name.
    pub git_ref: String,
    /// Where it stood; none: it was never looked at.
    pub old: Option<CommitId>,
    /// Where it stands and who moved it there; none: it is gone.
    pub new: Option<(CommitId, Principal)>,
}

/// Whether a push concerns a pipeline.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Concern {
    /// It is built, with these resources.
    Builds(Resources),
    /// It is not, and why.
    Skips(String),
}

/// The branches among `refs` that stand elsewhere than when they were last looked at, and those that are gone.
pub fn moved(considered: &[ConsideredRef], refs: &[Ref]) -> Vec<Moved> {
    let considered: BTreeMap<&String, &CommitId> = considered.iter().map(|seen| (&seen.git_ref, &seen.commit)).collect();
    let is_branch = |kept: &&Ref| kept.name.starts_with("refs/heads/");
    let branches: BTreeMap<&String, &Ref> = refs.iter().filter(is_branch).map(|kept| (&kept.name, kept)).collect();
    let changed = branches.values().filter(|kept| considered.get(&kept.name) != Some(&&kept.commit));
    let changed = changed.map(|kept| {
        let old = considered.get(&kept.name).map(|commit| (*commit).clone());
        Moved { git_ref: kept.name.clone(), old, new: Some((kept.commit.clone(), kept.moved_by.clone())) }
    });
    let gone = considered.iter().filter(|(name, _)| !branches.contains_key(*name));
    let gone = gone.map(|(name, old)| Moved { git_ref: (*name).clone(), old: Some((*old).clone()), new: None });
    changed.chain(gone).collect()
}

/// Whether a push concerns the pipeline: `file` is the pipeline file at the pushed commit, where it is there, and `changed` the
/// paths that differ from where the branch stood, where they are known.
pub fn concern(pipeline: &Pipeline, commit: &CommitId, file: Option<&str>, changed: Option<&[String]>) -> Concern {
    let Some(file) = file else {
        return Concern::Skips(format!("{} is not in commit {}", pipeline.file, commit.short()));
    };
    // A file that cannot be read is built all the same: the build says what is wrong with it, where people look.
    let Ok(file) = PipelineFile::parse(file) else { return Concern::Builds(Resources::default()) };
    // The old commit may be gone after a forced push; a filter that cannot be evaluated builds.
    if changed.is_none_or(|changed| file.path_filter().concerns(changed)) {
        return Concern::Builds(Resources {
            cpu_millis: file.build.cpu.0.try_into().unwrap_or(u32::MAX),
            memory: file.build.memory,
        });
    }
    Concern::Skips("nothing that it changed concerns this pipeline".to_owned())
}

/// What becomes of a push that could not be read `failures` times in a row; `None`: it is tried again. A filter that cannot be evaluated
/// builds.
pub fn unreadable(failures: u32) -> Option<Concern> {
    (failures >= READS_MAX).then(|| Concern::Builds(Resources::default()))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::{
        apply::testing::{FILE, World, commit, name},
        command::PipelineAction,
        principal::Role,
        tables::{ReadTables, SCAN_RECORDS_MAX, Scan, key},
        units::{ByteSize, Timestamp},
    };

    fn seen(git_ref: &str, number: u8) -> ConsideredRef {
        ConsideredRef { pipeline: name("shop"), git_ref: git_ref.into(), commit: commit(number) }
    }

    fn ada() -> Principal {
        Principal::new(Role::Developer, "ada")
    }

    fn branch(git_ref: &str, number: u8) -> Ref {
        let (moved_at, moved_by) = (Timestamp(0), ada());
        Ref { repository: name("shop"), name: git_ref.into(), commit: commit(number), moved_at, moved_by }
    }

    #[test]
    fn push_that_cannot_be_read_is_built_after_three_failures() {
        assert_eq!([1, 2, 3].map(unreadable), [None, None, Some(Concern::Builds(Resources::default()))]);
    }

    #[test]
    fn branch_that_moved_or_is_gone_is_considered_and_others_are_not() {
        let seen = [seen("refs/heads/same", 1), seen("refs/heads/moved", 2), seen("refs/heads/gone", 3)];
        let refs =
            [branch("refs/heads/moved", 4), branch("refs/heads/new", 5), branch("refs/heads/same", 1), branch("refs/tags/v1", 6)];
        let names: Vec<_> = moved(&seen, &refs).into_iter().map(|moved| (moved.git_ref, moved.old, moved.new)).collect();
        assert_eq!(
            names,
            [
                ("refs/heads/moved".to_owned(), Some(commit(2)), Some((commit(4), ada()))),
                ("refs/heads/new".to_owned(), None, Some((commit(5), ada()))),
                ("refs/heads/gone".to_owned(), Some(commit(3)), None),
            ]
        );
    }

    #[test]
    fn each_of_many_branches_is_considered_once() {
        let (mut world, _) = World::with_fleet(0, FILE);
        let refs: Vec<Ref> = (0..3000).map(|number| branch(&format!("refs/heads/b{number}"), 1)).collect();
        for git_ref in &refs {
            let (name, git_ref, commit) = (name("shop"), git_ref.name.clone(), Some(git_ref.commit.clone()));
            world.ok(PipelineAction::Considered { name, git_ref, commit, why: "no file".into() });
        }
        let of_shop = Scan::prefix(key("shop"));
        assert_eq!(moved(&world.tables.scan(&of_shop, SCAN_RECORDS_MAX).unwrap(), &refs), []);
        world.ok(PipelineAction::Remove { name: name("shop") });
        assert!(world.tables.scan::<ConsideredRef>(&of_shop, 1).unwrap().is_empty(), "nothing stays of a pipeline that is gone");
    }

    #[test]
    fn push_is_built_when_its_filter_cannot_be_evaluated_and_skipped_when_it_does_not_concern_the_pipeline() {
        let (world, _) = World::with_fleet(0, FILE);
        let pipeline: Pipeline = world.get(key("shop"));
        let file = "paths = [\"services/shop/**\"]\n[build]\nrun = \"make\"\ncpu = 1.5\nmemory = \"2GiB\"\n";
        let asked = Concern::Builds(Resources { cpu_millis: 1500, memory: ByteSize(2 << 30) });
        let concern = |file, changed: Option<&[&str]>| {
            let changed: Option<Vec<String>> = changed.map(|paths| paths.iter().map(|path| (*path).to_owned()).collect());
            concern(&pipeline, &commit(1), file, changed.as_deref())
        };
        assert_eq!(concern(Some(file), Some(&["services/shop/main.c"])), asked);
        assert_eq!(concern(Some(file), None), asked);
        assert!(matches!(concern(Some(file), Some(&["README"])), Concern::Skips(_)));
        assert_eq!(concern(Some("memoy = 1"), Some(&["README"])), Concern::Builds(Resources::default()));
        assert!(matches!(concern(None, None), Concern::Skips(why) if why.contains("swell.toml is not in commit")));
    }
}
