//! Keeps long output of failed instances out of the log of commands: its end stays in the report, the whole goes to the content store.

use swell_artifacts::store::{ContentStore, stream_of};
use swell_model::fleet::observation::Report;

/// Output that a report may carry, in bytes.
const OUTPUT_BYTES_MAX: usize = 4096;

/// Leaves the end of a long output in `report`. Where the store fails, the rest is lost and the report goes on.
pub(super) async fn trim_output(report: &mut Report, content: &dyn ContentStore) {
    let Some(failure) = report.failure.as_mut().filter(|failure| failure.output.len() > OUTPUT_BYTES_MAX) else { return };
    let whole = std::mem::take(&mut failure.output);
    let mut from = whole.len() - OUTPUT_BYTES_MAX;
    while !whole.is_char_boundary(from) {
        from += 1;
    }
    failure.output = whole[from..].to_owned();
    if failure.output_blob.is_some() {
        return;
    }
    match content.put(stream_of(whole.into_bytes()), None).await {
        Ok(stored) => failure.output_blob = Some(stored.digest),
        Err(error) => tracing::warn!(pipeline = %report.pipeline, %error, "failed to store the output of a failed instance"),
    }
}
