//! The last phase: what is under `$OUT` becomes an artifact in the content store, with its manifest. Repeating it changes nothing: content
//! has one name.

use std::{
    fs::File,
    io::{self, BufWriter, Write},
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use tokio::time::timeout;

use super::{
    chain, host, now,
    run::{Run, Stop, lost, new_phase},
};
use swell_artifacts::{
    archive::{self, PackError, PackOptions, Packed},
    manifest::{Manifest, Origin},
    store::{StoreError, stream_of},
};
use swell_model::{
    build::{AttemptEnd, BuildFailure, Phase, PhaseRecord},
    command::StoredArtifact,
    digest::Digest,
    pipeline_file::{Image, PipelineFile},
    units::{ByteSize, Millis, Timestamp},
};

/// Packing and storing may take so long even where the phases before left less of the attempt's time.
const UPLOAD_WITHIN_MIN: Duration = Duration::from_secs(5 * 60);

impl Run {
    /// Packs and stores, unless that was done before.
    pub(super) async fn upload(&mut self, committed_at_s: u64) -> Result<StoredArtifact, Stop> {
        if let Some(stored) = &self.record.artifact {
            return Ok(stored.clone());
        }
        let Some(file) = self.record.checkout.as_ref().map(|checkout| checkout.file.clone()) else {
            return Err(lost("the record of the checkout is missing"));
        };
        let left = Millis(file.build.timeout.0.saturating_sub(self.record.spent.0)).as_duration().max(UPLOAD_WITHIN_MIN);
        let within = timeout(left, self.pack_and_store(&file, committed_at_s));
        match within.await {
            Ok(stored) => stored,
            Err(_) => Err(lost(format!("storing the artifact took longer than {}", Millis(left.as_millis() as u64)))),
        }
    }

    async fn pack_and_store(&mut self, file: &PipelineFile, committed_at_s: u64) -> Result<StoredArtifact, Stop> {
        self.acknowledged().await?;
        let mut begun = self.record.phase(Phase::Upload).cloned().unwrap_or_else(|| new_phase(Phase::Upload));
        // Before state is told that the phase began: an artifact that cannot be is the fault of [package].
        let packed = self.pack(committed_at_s).await?;
        swell_system::crash::point("attempt::packed");
        if self.record.phase(Phase::Upload).is_none() {
            begun = self.begin(Phase::Upload).await?;
        }
        let files = if packed.files == 1 { "1 file".to_owned() } else { format!("{} files", packed.files) };
        self.line(Phase::Upload, &format!("packed {files}, {}, {}", ByteSize(packed.size), packed.digest))?;
        let archive = self.folder.part("artifact");
        self.unless_stopped(self.store_file(archive.clone(), Some(packed.digest))).await?.map_err(not_stored)?;
        swell_system::crash::point("attempt::artifact_stored");
        let (digest, size, unpacked_size) = (packed.digest, ByteSize(packed.size), ByteSize(packed.unpacked_size));
        let manifest = self.store_manifest(packed, file, begun.started_at).await?;
        swell_system::crash::point("attempt::manifest_stored");
        self.line(Phase::Upload, "stored; the build is done")?;
        let stored = StoredArtifact { digest, size, unpacked_size, manifest };
        self.record.artifact = Some(stored.clone());
        let ended_at = now();
        let took = ended_at.since(begun.started_at);
        self.end_well(PhaseRecord { ended_at: Some(ended_at), ..begun }, took).await?;
        swell_system::crash::point("attempt::upload_done");
        Ok(stored)
    }

    async fn pack(&self, committed_at_s: u64) -> Result<Packed, Stop> {
        let (out, archive) = (self.folder.out(), self.folder.part("artifact"));
        // So that nothing goes on packing after the attempt was stopped.
        let canceled = Arc::new(AtomicBool::new(false));
        let _cancel = CancelOnDrop(canceled.clone());
        let work = self.aside(move || pack(&out, &archive, committed_at_s, canceled));
        self.unless_stopped(work).await??.map_err(not_packed)
    }

    async fn store_manifest(&self, packed: Packed, file: &PipelineFile, created_at: Timestamp) -> Result<Digest, Stop> {
        let host_fingerprint = match file.build.image {
            Image::Host => Some(self.aside(host::fingerprint).await?),
            Image::Oci(_) => None,
        };
        let build = &self.job.build;
        let origin = Origin {
            pipeline: build.pipeline.clone(),
            build: Some(build.id),
            commit: build.commit.to_string(),
            git_ref: Some(build.git_ref.clone()),
            created_at,
            host_fingerprint,
            provenance: None,
        };
        let bytes = Manifest::new(packed, origin).to_bytes();
        let digest = Digest::of(&bytes);
        let put = self.inner.content.put(stream_of(bytes), Some(digest));
        Ok(self.unless_stopped(put).await?.map_err(not_stored)?.digest)
    }
}

fn pack(out: &Path, archive: &Path, committed_at_s: u64, canceled: Arc<AtomicBool>) -> Result<Packed, PackError> {
    let file = File::create(archive).map_err(PackError::Write)?;
    let writer = CancelableWrite { out: BufWriter::with_capacity(1 << 20, file), canceled };
    archive::pack(out, writer, PackOptions { mtime_secs: committed_at_s })
}

struct CancelOnDrop(Arc<AtomicBool>);

impl Drop for CancelOnDrop {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

struct CancelableWrite<W> {
    out: W,
    canceled: Arc<AtomicBool>,
}

impl<W: Write> Write for CancelableWrite<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if self.canceled.load(Ordering::Relaxed) {
            return Err(io::Error::other("the attempt was stopped"));
        }
        self.out.write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.out.flush()
    }
}

/// What lies under `$OUT` is the package phase's; that it cannot be read or written is the runner's.
fn not_packed(error: PackError) -> Stop {
    let hint = match &error {
        PackError::Read { .. } | PackError::Write(_) => return lost(format!("the runner's disk: {}", chain(&error))),
        PackError::Empty(_) => {
            let reason = "[package] left nothing under $OUT, so there is nothing to deploy".to_owned();
            let hint = "let [package].run put files under $OUT, such as `make install prefix=$OUT`".to_owned();
            return Stop::End(AttemptEnd::Failed(BuildFailure { phase: Phase::Package, reason, hint, output: String::new() }));
        }
        _ => "change what [package].run leaves under $OUT",
    };
    let (reason, hint) = (chain(&error), hint.to_owned());
    Stop::End(AttemptEnd::Failed(BuildFailure { phase: Phase::Package, reason, hint, output: String::new() }))
}

fn not_stored(error: StoreError) -> Stop {
    lost(format!("the artifact could not be stored: {}", chain(&error)))
}
