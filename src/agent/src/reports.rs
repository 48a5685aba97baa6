//! What is to be told to servers: the latest report of each pipeline, and which of them the present session has not heard. Knows nothing
//! of sessions.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Mutex, PoisonError},
};

use tokio::sync::Notify;

use swell_model::{fleet::observation::Report, ids::PipelineName};

/// Most reports in one frame: with their texts they stay well below the bound of a frame.
const REPORTS_MAX: usize = 200;

/// Written by the pipelines, read by the session.
#[derive(Debug, Default)]
pub(super) struct Reports {
    state: Mutex<State>,
    changed: Notify,
}

#[derive(Debug, Default)]
struct State {
    latest: BTreeMap<PipelineName, Report>,
    unheard: BTreeSet<PipelineName>,
}

impl Reports {
    /// Keeps a report and wakes the session, unless it says what the one before said.
    pub fn put(&self, report: Report) {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        if state.latest.get(&report.pipeline) == Some(&report) {
            return;
        }
        state.unheard.insert(report.pipeline.clone());
        state.latest.insert(report.pipeline.clone(), report);
        self.changed.notify_one();
    }

    /// A new session has heard nothing.
    pub fn forget_heard(&self) {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        state.unheard = state.latest.keys().cloned().collect();
        self.changed.notify_one();
    }

    /// Waits until there is something to tell; takes it. Reports that could not be sent are told by the next session.
    pub async fn take(&self) -> Vec<Report> {
        loop {
            let taken = self.take_now();
            if !taken.is_empty() {
                return taken;
            }
            self.changed.notified().await;
        }
    }

    fn take_now(&self) -> Vec<Report> {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let mut taken = Vec::new();
        while taken.len() < REPORTS_MAX
            && let Some(name) = state.unheard.pop_first()
        {
            taken.extend(state.latest.get(&name).cloned());
        }
        taken
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use swell_model::fleet::observation::Progress;

    fn report(pipeline: &str, progress: Progress) -> Report {
        let pipeline = pipeline.parse().unwrap();
        Report { pipeline, release: None, progress, serving: false, instances: vec![], failure: None }
    }

    #[tokio::test]
    async fn only_changes_are_told_and_all_of_them_to_a_new_session() {
        let reports = Reports::default();
        reports.put(report("a", Progress::Starting));
        reports.put(report("a", Progress::Healthy));
        reports.put(report("b", Progress::Healthy));
        assert_eq!(reports.take().await, [report("a", Progress::Healthy), report("b", Progress::Healthy)]);
        reports.put(report("a", Progress::Healthy));
        assert_eq!(reports.take_now(), []);
        reports.forget_heard();
        assert_eq!(reports.take().await.len(), 2);
    }
}
