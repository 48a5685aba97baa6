//! Placeholder.
use std::{path::PathBuf, sync::Arc};
use crate::{artifacts::{git::Mirrors, store::ContentStore}, model::{build::Build, ids::{BuildId, RunnerName}, ports::{LogChunk, LogSource, Proposer}}};
pub struct GitSource { pub url: String, pub token: Option<String> }
pub struct AttemptJob { pub build: Build, pub attempt: u32, pub file: String, pub source: Result<GitSource, String> }
pub struct AttemptsOptions;
impl AttemptsOptions { pub fn new(_: PathBuf, _: RunnerName, _: super::isolation::Level) -> Self { Self } }
#[derive(Clone)] pub struct Attempts;
impl Attempts {
  pub async fn open(_: AttemptsOptions, _: Arc<dyn ContentStore>, _: Mirrors, _: Arc<dyn Proposer>) -> Result<Self, std::io::Error> { Ok(Self) }
  pub fn on_disk(&self) -> Vec<(BuildId, u32)> { vec![] }
  pub async fn run(&self, _job: AttemptJob, _stopped: tokio::sync::watch::Receiver<bool>) {}
  pub async fn discard(&self, _build: BuildId, _attempt: u32) {}
}
impl LogSource for Attempts { fn follow(&self, _: BuildId, _: u32, _: u64) -> Option<futures::stream::BoxStream<'static, LogChunk>> { None } }
