//! Events come back in order, a gap is never passed over, and a segment shows its own damage.

#![allow(clippy::unwrap_used)]

use tempfile::TempDir;

use super::{segment::SegmentError, *};
use swell_model::{
    event::EventKind,
    principal::{Principal, Role},
    units::Timestamp,
};

fn subject(number: u64) -> Subject {
    Subject::Pipeline(["shop", "shopping", "site"][number as usize % 3].parse().unwrap())
}

/// A chain of two events for each index.
fn events(indexes: std::ops::Range<u64>) -> Vec<Event> {
    let mut head = Digest([0; 32]);
    let places = indexes.flat_map(|index| (0..2).map(move |ordinal| EventSeq { index, ordinal }));
    let chain = places.map(|seq| {
        let event = Event {
            seq,
            at: Timestamp(seq.index),
            principal: Principal::new(Role::Developer, "ada"),
            subject: subject(seq.index * 2 + u64::from(seq.ordinal)),
            kind: EventKind::PipelineCreated,
            from: None,
            to: None,
            note: None,
            data: Default::default(),
            previous: head,
        };
        head = event.chain_hash();
        event
    });
    chain.collect()
}

fn seq(index: u64, ordinal: u32) -> EventSeq {
    EventSeq { index, ordinal }
}

fn store(dir: &TempDir, indexes: std::ops::Range<u64>) -> EventStore {
    let store = EventStore::open(dir.path()).unwrap();
    store.append(&events(indexes)).unwrap();
    store.show_up_to(store.last_written().unwrap());
    store
}

fn seqs(events: &[Event]) -> Vec<(u64, u32)> {
    events.iter().map(|event| (event.seq.index, event.seq.ordinal)).collect()
}

#[test]
fn range_returns_what_follows_the_cursor_also_after_a_restart() {
    let dir = TempDir::new().unwrap();
    let before = store(&dir, 1..4);
    assert_eq!(before.range(EventSeq::default(), 100).unwrap(), events(1..4));
    assert_eq!(seqs(&before.range(seq(1, 1), 2).unwrap()), [(2, 0), (2, 1)]);
    assert_eq!(before.range(seq(3, 1), 9).unwrap(), []);
    assert_eq!((before.first_kept().unwrap(), before.last()), (Some(seq(1, 0)), seq(3, 1)));
    drop(before);
    let again = store(&dir, 1..4);
    assert_eq!(again.range(EventSeq::default(), 100).unwrap(), events(1..4), "written again, they are the same");
}

#[test]
fn event_is_hidden_until_state_shows_it() {
    let dir = TempDir::new().unwrap();
    let store = store(&dir, 1..2);
    store.append(&events(1..3)).unwrap();
    assert_eq!(seqs(&store.range(EventSeq::default(), 9).unwrap()), [(1, 0), (1, 1)]);
    assert_eq!(seqs(&store.by_subject(&subject(4), None, false, 9).unwrap()), []);
    store.show_up_to(seq(2, 0));
    assert_eq!(seqs(&store.range(EventSeq::default(), 9).unwrap()), [(1, 0), (1, 1), (2, 0)]);
    assert_eq!(seqs(&store.by_subject(&subject(4), None, false, 9).unwrap()), [(2, 0)]);
}

#[test]
fn by_subject_returns_only_that_subject_either_way() {
    let dir = TempDir::new().unwrap();
    let store = store(&dir, 1..10);
    let about = subject(2);
    let expected: Vec<Event> = events(1..10).into_iter().filter(|event| event.subject == about).collect();
    assert_eq!(store.by_subject(&about, None, false, 100).unwrap(), expected);
    assert_eq!(store.by_subject(&about, Some(expected[1].seq), false, 2).unwrap(), expected[2..4]);
    let newest_first: Vec<Event> = expected.iter().rev().cloned().collect();
    assert_eq!(store.by_subject(&about, None, true, 2).unwrap(), newest_first[..2]);
    assert_eq!(store.by_subject(&about, Some(expected[2].seq), true, 9).unwrap(), [expected[1].clone(), expected[0].clone()]);
}

#[test]
fn forgotten_events_are_gone_and_later_ones_stay() {
    let dir = TempDir::new().unwrap();
    let kept = store(&dir, 1..2000);
    kept.forget_up_to(seq(1500, 0)).unwrap();
    kept.forget_up_to(seq(1500, 0)).unwrap();
    drop(kept);
    let kept = store(&dir, 2000..2001);
    let gone = kept.range(seq(7, 0), 9).unwrap_err();
    let EventsError::Gone { first_kept, resume_after } = gone else { panic!("{gone}") };
    assert_eq!((first_kept, resume_after), (Some(seq(1500, 1)), seq(1500, 0)));
    assert_eq!(kept.first_kept().unwrap(), first_kept);
    assert_eq!(seqs(&kept.range(resume_after, 2).unwrap()), [(1500, 1), (1501, 0)]);
    let about = kept.by_subject(&subject(3000), None, false, 1).unwrap();
    assert!(about[0].seq > seq(1500, 0), "the index forgets too: {about:?}");
}

#[test]
fn snapshot_leaves_a_gap_that_is_never_passed_over() {
    let dir = TempDir::new().unwrap();
    let store = store(&dir, 1..3);
    store.skip_to(seq(2, 0)).unwrap();
    assert_eq!(store.last_written().unwrap(), seq(2, 1), "what was written is no gap");
    store.skip_to(seq(10, 1)).unwrap();
    store.show_up_to(seq(10, 1));
    assert_eq!(seqs(&store.range(seq(1, 1), 9).unwrap()), [(2, 0), (2, 1)], "a read ends where the gap begins");
    assert!(
        matches!(store.range(seq(2, 1), 9), Err(EventsError::Gone { first_kept: None, resume_after }) if resume_after == seq(10, 1))
    );
    assert_eq!(store.range(seq(10, 1), 9).unwrap(), []);
    let later: Vec<Event> = events(1..13).into_iter().filter(|event| event.seq.index > 10).collect();
    store.append(&later).unwrap();
    store.show_up_to(seq(12, 1));
    assert!(matches!(store.range(seq(5, 0), 9), Err(EventsError::Gone { first_kept: Some(first), .. }) if first == seq(11, 0)));
    assert_eq!(store.range(seq(10, 1), 9).unwrap(), later);
    store.forget_up_to(seq(1, 0)).unwrap();
    assert_eq!(seqs(&store.range(seq(1, 0), 9).unwrap()), [(1, 1), (2, 0), (2, 1)]);
    store.forget_up_to(seq(4, 0)).unwrap();
    assert!(matches!(store.range(seq(1, 0), 9), Err(EventsError::Gone { resume_after, .. }) if resume_after == seq(10, 1)));
}

#[test]
fn segment_returns_its_events_and_continues_the_chain() {
    let dir = TempDir::new().unwrap();
    let store = store(&dir, 1..600);
    let (mut first, mut second) = (Vec::new(), Vec::new());
    let one = store.write_segment(EventSeq::default(), seq(550, 0), Digest([0; 32]), &mut first).unwrap();
    assert_eq!((one.range, one.count), (Some((seq(1, 0), seq(550, 0))), 1099));
    let two = store.write_segment(seq(550, 0), seq(599, 1), one.head, &mut second).unwrap();
    assert_eq!((two.range, two.count), (Some((seq(550, 1), seq(599, 1))), 99));
    let mut read = Vec::new();
    for segment in [&first, &second] {
        let mut reader = segment::Reader::new(&segment[..]).unwrap();
        while let Some(event) = reader.next_event().unwrap() {
            read.push(event);
        }
    }
    assert_eq!(read, events(1..600));
    let wrong_start = store.write_segment(seq(550, 0), seq(599, 1), Digest([1; 32]), Vec::new());
    assert!(matches!(wrong_start, Err(SegmentError::Damaged(_))));
    store.forget_up_to(seq(550, 0)).unwrap();
    let gone = store.write_segment(seq(549, 0), seq(551, 0), one.head, Vec::new());
    assert!(matches!(gone, Err(SegmentError::Events(EventsError::Gone { .. }))));
}

fn read_all(bytes: &[u8]) -> Result<usize, SegmentError> {
    let mut reader = segment::Reader::new(bytes)?;
    while reader.next_event()?.is_some() {}
    Ok(reader.summary().count as usize)
}

#[test]
fn segment_that_is_cut_or_changed_is_refused() {
    let dir = TempDir::new().unwrap();
    let mut bytes = Vec::new();
    store(&dir, 1..40).write_segment(EventSeq::default(), seq(99, 0), Digest([0; 32]), &mut bytes).unwrap();
    assert_eq!(read_all(&bytes).unwrap(), 78);
    for length in (0..bytes.len()).filter(|length| length % 7 == 0 || length + 16 > bytes.len()) {
        // zstd's own end mark may be missing: all events and the trailer are there.
        if let Ok(count) = read_all(&bytes[..length]) {
            assert!(count == 78 && length + 4 >= bytes.len(), "cut to {length} of {}", bytes.len());
        }
    }
    let mut newer = bytes.clone();
    newer[8] = 2;
    assert!(matches!(read_all(&newer), Err(SegmentError::UnknownFormat(2))));

    // A changed event, written by somebody who does not know the chain.
    let mut changed = events(1..4);
    changed[3].note = Some("it was not so".into());
    let mut writer = segment::Writer::new(Vec::new(), Digest([0; 32])).unwrap();
    let written: Result<Vec<()>, _> = changed.iter().map(|event| writer.push(event)).collect();
    assert!(matches!(written, Err(SegmentError::Damaged(cause)) if cause.contains("3.0")));
}

/// Values as they are on disk, one a line. Add lines for new formats; never change one once a release wrote it.
const GOLDEN: &str = include_str!("golden.txt");

#[test]
fn former_values_are_read_and_written_the_same() {
    for line in GOLDEN.lines() {
        let value = hex::decode(line).unwrap();
        let event: Event = codec::decode(&value).unwrap();
        assert_eq!(hex::encode(codec::encode(&event).unwrap()), line);
    }
    assert_eq!(hex::encode(key_of_seq(seq(1, 2))), "000000000000000100000002");
}

#[test]
#[ignore = "prints golden bytes for formats that are new"]
fn print_golden() {
    println!("golden {}", hex::encode(codec::encode(&events(1..2)[0]).unwrap()));
}
