//! Suggestions for mistyped names: the most similar name among existing resources of the same kind.

use serde_json::Value;

use super::{client::Client, failure::Failure, human};

/// How many names are compared.
const NAMES_MAX: usize = 1000;

/// Adds the name that was probably meant to a failure that says that a resource does not exist. The server's `subject` names the
/// kind, so a mistyped pipeline is never answered with an environment.
pub async fn suggest(client: &Client, failure: Failure) -> Failure {
    if failure.code() != "not_found" {
        return failure;
    }
    let Some((kind, name)) = failure.field("subject").and_then(|subject| subject.split_once('/')) else { return failure };
    let collection = match kind {
        "pipeline" => "pipelines",
        "environment" => "environments",
        "target" => "targets",
        "repository" => "repositories",
        _ => return failure,
    };
    // Without a list there is no suggestion; the failure itself is what matters.
    let items = client.list(&["v1", collection], &[], NAMES_MAX).await.unwrap_or_default();
    let names = items.iter().filter_map(|item| item.get("name").and_then(Value::as_str).map(str::to_owned));
    match human::closest(name, names) {
        Some(meant) => failure.hint(format!("did you mean `{meant}`?")),
        None => failure,
    }
}
