//! Hosted repositories: creating one, and moving its refs by compare-and-swap.

use crate::apply::context::{Context, invalid};
use crate::{
    command::RepositoryAction,
    event::{DataKey, EventKind, Subject},
    ids::RepositoryName,
    rejection::{Rejection, RuleError},
    repository::{Bundle, Ref, RefUpdate, Repository},
    tables::{Scan, Tables, key},
};

/// The most refs that one push moves.
const REF_UPDATES_MAX: usize = 1000;

/// The most refs that a repository has.
const REFS_MAX: usize = 20_000;

/// The longest name of a ref, in bytes.
const REF_NAME_BYTES_MAX: usize = 250;

pub(crate) fn apply<T: Tables>(context: &mut Context<'_, T>, action: &RepositoryAction) -> Result<Subject, RuleError> {
    match action {
        RepositoryAction::Create { name, default_branch } => create(context, name, default_branch),
        RepositoryAction::Push { repository, updates, bundle } => {
            let subject = Subject::Repository(repository.clone());
            let kept: Option<Repository> = context.tables.get(&key(repository.as_str()))?;
            let mut kept = kept.ok_or_else(|| Rejection::NotFound(subject.clone()))?;
            if updates.is_empty() || updates.len() > REF_UPDATES_MAX {
                return Err(invalid("push", format!("it must move between 1 and {REF_UPDATES_MAX} refs")));
            }
            check_capacity(context, repository, updates)?;
            if let Some((digest, size)) = bundle {
                let bundle = Bundle { repository: repository.clone(), number: kept.next_bundle, digest: *digest, size: *size };
                context.tables.put(&bundle)?;
                kept.next_bundle += 1;
                context.tables.put(&kept)?;
            }
            // First what goes, so that its name is free.
            for update in updates.iter().filter(|update| update.new.is_none()) {
                move_ref(context, repository, update)?;
            }
            for update in updates.iter().filter(|update| update.new.is_some()) {
                move_ref(context, repository, update)?;
            }
            Ok(subject)
        }
    }
}

fn create<T: Tables>(context: &mut Context<'_, T>, name: &RepositoryName, default_branch: &str) -> Result<Subject, RuleError> {
    let subject = Subject::Repository(name.clone());
    if context.tables.get::<Repository>(&key(name.as_str()))?.is_some() {
        return Err(Rejection::Exists(subject).into());
    }
    check_ref_name(&format!("refs/heads/{default_branch}"))?;
    context.tables.put(&Repository {
        name: name.clone(),
        default_branch: default_branch.to_owned(),
        next_bundle: 0,
        created_at: context.at,
    })?;
    context.event(subject.clone(), EventKind::RepositoryCreated);
    context.created.push(subject.clone());
    Ok(subject)
}

fn move_ref<T: Tables>(context: &mut Context<'_, T>, repository: &RepositoryName, update: &RefUpdate) -> Result<(), RuleError> {
    check_ref_name(&update.name)?;
    let subject = Subject::Repository(repository.clone());
    let ref_key = key(repository.as_str()).then(update.name.as_str());
    let now = context.tables.get::<Ref>(&ref_key)?.map(|kept| kept.commit);
    if now != update.old {
        let now = now.map_or("nothing".to_owned(), |commit| commit.to_string());
        return Err(Rejection::RefMoved { subject, git_ref: update.name.clone(), now }.into());
    }
    match &update.new {
        Some(commit) => {
            check_no_folder(context, repository, &update.name)?;
            let (name, commit) = (update.name.clone(), commit.clone());
            let (moved_at, moved_by) = (context.at, context.principal.clone());
            context.tables.put(&Ref { repository: repository.clone(), name, commit, moved_at, moved_by })?;
        }
        None => context.tables.delete::<Ref>(&ref_key)?,
    }
    let text = |commit: &Option<crate::repository::CommitId>| commit.as_ref().map_or(String::new(), ToString::to_string);
    context
        .event(subject, EventKind::RepositoryRefMoved)
        .moved(text(&update.old), text(&update.new))
        .data(DataKey::Ref, &update.name);
    Ok(())
}

/// A pipeline looks at every branch whenever one moved, so there are not endlessly many.
fn check_capacity<T: Tables>(
    context: &Context<'_, T>,
    repository: &RepositoryName,
    updates: &[RefUpdate],
) -> Result<(), RuleError> {
    let new = updates.iter().filter(|update| update.old.is_none() && update.new.is_some()).count();
    if new == 0 {
        return Ok(());
    }
    let there = context.tables.scan::<Ref>(&Scan::prefix(key(repository.as_str())), REFS_MAX)?.len();
    if there + new <= REFS_MAX {
        return Ok(());
    }
    let why = format!("{repository} has {there} refs and may have {REFS_MAX}: delete branches that were merged, then push again");
    Err(invalid("ref", why))
}

/// A ref cannot have the name of a folder of refs, nor be in a folder that has the name of a ref: git keeps them as files.
fn check_no_folder<T: Tables>(context: &Context<'_, T>, repository: &RepositoryName, name: &str) -> Result<(), RuleError> {
    let of_repository = key(repository.as_str());
    for (slash, _) in name.match_indices('/') {
        if context.tables.get::<Ref>(&of_repository.clone().then(&name[..slash]))?.is_some() {
            return Err(invalid("ref", format!("`{name}` cannot be while there is a ref `{}`", &name[..slash])));
        }
    }
    let folder = format!("{name}/");
    let within = Scan::prefix(of_repository.clone()).after(of_repository.then(folder.as_str()));
    match context.tables.scan::<Ref>(&within, 1)?.first() {
        Some(other) if other.name.starts_with(&folder) => {
            Err(invalid("ref", format!("`{name}` cannot be while there is a ref `{}`", other.name)))
        }
        _ => Ok(()),
    }
}

/// The part of `git check-ref-format` that keeps a name harmless as a key and on a command line.
fn check_ref_name(name: &str) -> Result<(), RuleError> {
    let harmless = |c: char| !c.is_control() && !matches!(c, ' ' | '~' | '^' | ':' | '?' | '*' | '[' | '\\');
    let parts_are_good = name.split('/').all(|part| !part.is_empty() && !part.starts_with('.') && !part.ends_with(".lock"));
    let good = name.starts_with("refs/")
        && name.matches('/').count() >= 2
        && name.len() <= REF_NAME_BYTES_MAX
        && name.chars().all(harmless)
        && parts_are_good
        && !name.contains("..")
        && !name.contains("@{")
        && !name.ends_with('.');
    if good { Ok(()) } else { Err(invalid("ref", format!("`{name}` is not a ref's full name, such as `refs/heads/main`"))) }
}
