//! The newest report on each pipeline, and which of them servers and gateways are known to have taken into account. Bounded: one report
//! a pipeline and a few messages under way. Must not know how messages travel.
//!
//! A report has a version, which grows with every change on the target. A message has a sequence number of the agent's incarnation and
//! carries reports. A message that was not acknowledged is sent again in the next session under its number, without what is outdated;
//! never with something newer, because the server before may still deliver the first one.

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    sync::{Mutex, MutexGuard, PoisonError},
};

use tokio::sync::{Notify, watch};

use swell_model::{
    fleet::observation::{Report, ReportsHash},
    ids::PipelineName,
};

/// Most reports in one message: with their texts they stay well below the bound of a frame.
const REPORTS_MAX: usize = 200;
/// Most messages that wait for their acknowledgement; while so many do, changes are gathered.
const UNDER_WAY_MAX: usize = 32;

/// Up to which version the reports on a pipeline count.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Confirmed {
    /// Applied to the state that servers share.
    pub acknowledged: u64,
    /// Obeyed by every gateway that is connected to a server.
    pub routed: u64,
}

/// Written by the pipelines, read by the session.
#[derive(Debug, Default)]
pub(super) struct Reports {
    state: Mutex<State>,
    changed: Notify,
}

#[derive(Debug, Default)]
struct State {
    pipelines: BTreeMap<PipelineName, Entry>,
    /// Of all newest reports.
    hash: ReportsHash,
    /// The last version given.
    version: u64,
    /// The last sequence number given.
    sequence: u64,
    /// Whose newest report is in no message of this session.
    unsent: BTreeSet<PipelineName>,
    /// Messages that were not acknowledged: the versions that they carry.
    under_way: BTreeMap<u64, BTreeMap<PipelineName, u64>>,
    /// Of those, the ones that are to be sent again.
    again: VecDeque<u64>,
    /// The last version that the present session's hello stands for.
    said_hello_at: u64,
}

#[derive(Debug)]
struct Entry {
    report: Report,
    version: u64,
    /// Messages whose routing is awaited, as (sequence, version): the earliest and the latest. Those between are covered by the latest.
    earliest: Option<(u64, u64)>,
    latest: Option<(u64, u64)>,
    confirmed: watch::Sender<Confirmed>,
}

impl Reports {
    /// Keeps a report in place of the one before and wakes the session, unless both say the same. Returns its version.
    pub fn put(&self, report: Report) -> u64 {
        let mut state = self.lock();
        let name = report.pipeline.clone();
        if let Some(entry) = state.pipelines.get(&name)
            && entry.report == report
        {
            return entry.version;
        }
        state.version += 1;
        let version = state.version;
        state.hash.add(&report);
        match state.pipelines.get_mut(&name) {
            Some(entry) => {
                entry.version = version;
                let before = std::mem::replace(&mut entry.report, report);
                state.hash.remove(&before);
            }
            None => {
                let confirmed = watch::Sender::default();
                state.pipelines.insert(name.clone(), Entry { report, version, earliest: None, latest: None, confirmed });
            }
        }
        state.unsent.insert(name);
        self.changed.notify_one();
        version
    }

    /// What is confirmed of the reports on `pipeline`; `None` before its first report.
    pub fn confirmed(&self, pipeline: &PipelineName) -> Option<watch::Receiver<Confirmed>> {
        self.lock().pipelines.get(pipeline).map(|entry| entry.confirmed.subscribe())
    }

    /// Begins a session. Nothing is to be sent before [`Reports::welcomed`].
    pub fn hello(&self) -> ReportsHash {
        let mut state = self.lock();
        state.said_hello_at = state.version;
        state.hash
    }

    /// Decides what this session sends: where state has the reports that the hello stood for, only what nobody routed yet or what
    /// changed since; else what is under way, and everything anew.
    pub fn welcomed(&self, reports_known: bool) {
        let mut state = self.lock();
        let state = &mut *state;
        if reports_known {
            state.under_way.clear();
        }
        state.again = state.under_way.keys().copied().collect();
        state.unsent.clear();
        for (name, entry) in &mut state.pipelines {
            let is_known = reports_known && entry.version <= state.said_hello_at;
            if is_known {
                entry.confirm(|confirmed| confirmed.acknowledged = entry.version);
            }
            if !is_known || entry.confirmed.borrow().routed < entry.version {
                state.unsent.insert(name.clone());
            }
            // What the server before routed of older messages says nothing about the gateways of this one.
            (entry.earliest, entry.latest) = (None, None);
        }
        self.changed.notify_one();
    }

    /// Waits until there is something to send; takes it as a sequence number and its reports.
    pub async fn take(&self) -> (u64, Vec<Report>) {
        loop {
            if let Some(taken) = self.take_now() {
                return taken;
            }
            self.changed.notified().await;
        }
    }

    fn take_now(&self) -> Option<(u64, Vec<Report>)> {
        let mut state = self.lock();
        let state = &mut *state;
        while let Some(sequence) = state.again.pop_front() {
            // Acknowledged meanwhile.
            let Some(carried) = state.under_way.get_mut(&sequence) else { continue };
            carried.retain(|name, version| state.pipelines.get(name).is_some_and(|entry| entry.version == *version));
            let entries = state.pipelines.iter_mut().filter(|(name, _)| carried.contains_key(name));
            return Some((sequence, entries.map(|(_, entry)| entry.sent_in(sequence)).collect()));
        }
        if state.unsent.is_empty() || state.under_way.len() >= UNDER_WAY_MAX {
            return None;
        }
        state.sequence += 1;
        let (mut reports, mut carried) = (Vec::new(), BTreeMap::new());
        while reports.len() < REPORTS_MAX
            && let Some(name) = state.unsent.pop_first()
        {
            let Some(entry) = state.pipelines.get_mut(&name) else { continue };
            reports.push(entry.sent_in(state.sequence));
            carried.insert(name, entry.version);
        }
        state.under_way.insert(state.sequence, carried);
        Some((state.sequence, reports))
    }

    /// Everything up to `sequence` is in the state that servers share.
    pub fn acknowledged(&self, sequence: u64) {
        let mut state = self.lock();
        let state = &mut *state;
        let later = state.under_way.split_off(&sequence.saturating_add(1));
        for (name, version) in std::mem::replace(&mut state.under_way, later).into_values().flatten() {
            if let Some(entry) = state.pipelines.get_mut(&name) {
                entry.confirm(|confirmed| confirmed.acknowledged = confirmed.acknowledged.max(version));
            }
        }
        self.changed.notify_one();
    }

    /// Every connected gateway obeys everything up to `sequence`.
    pub fn routed(&self, sequence: u64) {
        for entry in self.lock().pipelines.values_mut() {
            let covered = |sent: Option<(u64, u64)>| sent.filter(|(number, _)| *number <= sequence);
            let version = match (covered(entry.latest), covered(entry.earliest)) {
                (Some((_, version)), _) => {
                    (entry.earliest, entry.latest) = (None, None);
                    version
                }
                (None, Some((_, version))) => {
                    entry.earliest = entry.latest;
                    version
                }
                (None, None) => continue,
            };
            entry.confirm(|confirmed| confirmed.routed = confirmed.routed.max(version));
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Entry {
    fn sent_in(&mut self, sequence: u64) -> Report {
        let sent = Some((sequence, self.version));
        self.latest = sent;
        self.earliest = self.earliest.or(sent);
        self.report.clone()
    }

    /// Wakes the pipeline only where that says something new.
    fn confirm(&self, change: impl FnOnce(&mut Confirmed)) {
        self.confirmed.send_if_modified(|confirmed| {
            let before = *confirmed;
            change(confirmed);
            *confirmed != before
        });
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use swell_model::fleet::observation::Progress::{self, *};

    fn report(pipeline: &str, progress: Progress) -> Report {
        let pipeline = pipeline.parse().unwrap();
        Report { pipeline, release: None, progress, serving: false, instances: vec![], failure: None }
    }

    fn welcomed(reports: &Reports, reports_known: bool) {
        reports.hello();
        reports.welcomed(reports_known);
    }

    fn confirmed(reports: &Reports, pipeline: &str) -> Confirmed {
        *reports.confirmed(&pipeline.parse().unwrap()).unwrap().borrow()
    }

    #[test]
    fn report_is_sent_once_while_it_says_the_same() {
        let reports = Reports::default();
        welcomed(&reports, false);
        reports.put(report("a", Starting));
        let version = reports.put(report("a", Healthy));
        reports.put(report("b", Healthy));
        assert_eq!(reports.take_now(), Some((1, vec![report("a", Healthy), report("b", Healthy)])));
        assert_eq!(reports.put(report("a", Healthy)), version);
        assert_eq!(reports.take_now(), None);
    }

    #[test]
    fn hash_stands_for_newest_reports_whatever_their_order() {
        let (one, two) = (Reports::default(), Reports::default());
        one.put(report("a", Starting));
        one.put(report("b", Healthy));
        one.put(report("a", Healthy));
        two.put(report("a", Healthy));
        assert_ne!(one.hello(), two.hello());
        two.put(report("b", Healthy));
        assert_eq!(one.hello(), two.hello());
        assert_ne!(one.hello(), ReportsHash::default());
    }

    #[test]
    fn unacknowledged_message_is_sent_again_under_its_number_without_outdated_reports() {
        let reports = Reports::default();
        welcomed(&reports, false);
        reports.put(report("a", Starting));
        reports.put(report("b", Starting));
        assert_eq!(reports.take_now().unwrap().0, 1);
        reports.put(report("a", Healthy));
        welcomed(&reports, false);
        assert_eq!(reports.take_now(), Some((1, vec![report("b", Starting)])));
        assert_eq!(reports.take_now(), Some((2, vec![report("a", Healthy), report("b", Starting)])));
        reports.acknowledged(2);
        welcomed(&reports, false);
        assert_eq!(reports.take_now().unwrap().0, 3, "what was acknowledged is under way no more");
        welcomed(&reports, false);
        reports.acknowledged(3);
        assert_eq!(reports.take_now().unwrap().0, 4, "nor what is acknowledged before it was sent again");
    }

    #[test]
    fn known_reports_are_not_sent_again_once_routed() {
        let reports = Reports::default();
        welcomed(&reports, false);
        let (a, b) = (reports.put(report("a", Healthy)), reports.put(report("b", Healthy)));
        reports.take_now().unwrap();
        reports.acknowledged(1);
        reports.routed(1);
        assert_eq!((confirmed(&reports, "a").routed, confirmed(&reports, "b").routed), (a, b));
        welcomed(&reports, true);
        assert_eq!(reports.take_now(), None);
        // A change between hello and welcome is not covered by the hash of the hello.
        reports.hello();
        reports.put(report("b", Unhealthy));
        reports.welcomed(true);
        assert_eq!(reports.take_now(), Some((2, vec![report("b", Unhealthy)])));
    }

    #[test]
    fn known_report_that_nobody_routed_is_acknowledged_and_sent_again() {
        let reports = Reports::default();
        welcomed(&reports, false);
        let version = reports.put(report("a", Healthy));
        reports.take_now().unwrap();
        assert_eq!(confirmed(&reports, "a"), Confirmed::default());
        welcomed(&reports, true);
        assert_eq!(confirmed(&reports, "a"), Confirmed { acknowledged: version, routed: 0 });
        assert_eq!(reports.take_now(), Some((2, vec![report("a", Healthy)])));
        reports.routed(1);
        assert_eq!(confirmed(&reports, "a").routed, 0, "another session's number");
        reports.routed(2);
        assert_eq!(confirmed(&reports, "a").routed, version);
    }

    #[test]
    fn report_that_changes_on_and_on_is_confirmed_all_the_same() {
        let reports = Reports::default();
        welcomed(&reports, false);
        let first = reports.put(report("a", Starting));
        for sequence in 1..=10 {
            assert_eq!(reports.take_now().unwrap().0, sequence);
            reports.put(report("a", if sequence % 2 == 0 { Starting } else { Unhealthy }));
        }
        reports.routed(3);
        assert_eq!(confirmed(&reports, "a").routed, first);
        reports.take_now().unwrap();
        reports.routed(10);
        assert!(confirmed(&reports, "a").routed > first, "{:?}", confirmed(&reports, "a"));
    }

    #[test]
    fn messages_under_way_are_bounded_and_changes_gathered_meanwhile() {
        let reports = Reports::default();
        welcomed(&reports, false);
        for number in 0..2 * UNDER_WAY_MAX {
            reports.put(report("a", if number % 2 == 0 { Starting } else { Unhealthy }));
            assert_eq!(reports.take_now().is_some(), number < UNDER_WAY_MAX);
        }
        reports.acknowledged(1);
        assert_eq!(reports.take_now(), Some((UNDER_WAY_MAX as u64 + 1, vec![report("a", Unhealthy)])));
    }
}
