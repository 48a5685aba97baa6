//! Placeholder.
use crate::model::{build::Build, ids::BuildId};
pub struct GitSource { pub url: String, pub token: Option<String> }
pub struct AttemptJob { pub build: Build, pub attempt: u32, pub file: String, pub source: Result<GitSource, String> }
#[derive(Clone)] pub struct Attempts;
impl Attempts {
  pub fn on_disk(&self) -> Vec<(BuildId, u32)> { vec![] }
  pub async fn run(&self, _job: AttemptJob, _stopped: tokio::sync::watch::Receiver<bool>) {}
  pub async fn discard(&self, _build: BuildId, _attempt: u32) {}
}
