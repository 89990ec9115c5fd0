use proptest::prelude::*;

use super::*;

const MS: Duration = Duration::from_millis(1);

fn id(n: u8) -> NodeId {
    NodeId([n; NodeId::LEN])
}

fn at(ms: u64) -> Moment {
    Moment::from_millis(ms)
}

#[test]
fn a_report_reads_back_rounded_down_and_names_the_silent_ones_first() {
    let bytes = to_bytes(vec![(id(1), MS * 99), (id(2), Duration::from_secs(60))]);
    assert_eq!(bytes, [2, 1, 1, 1, 1, 9, 2, 2, 2, 2, 255]);
    let later = [bytes.as_slice(), b"next"].concat();
    let ages: Vec<ReportedAge> = from_bytes(&later).collect();
    assert_eq!([ages[0].age, ages[1].age], [MS * 90, MS * 2_550]);
    assert!(ages[0].is_about(&id(1)) && !ages[0].is_about(&id(2)) && ages.len() == 2);
    assert_eq!(from_bytes(&bytes[..10]).count(), 0, "truncated");
    assert_eq!(from_bytes(&[]).count(), 0);
    let many = to_bytes((1..=20).map(|n| (id(n), MS * 10 * u32::from(n))).collect());
    assert!(many.len() == 1 + MAX_REPORTED * ENTRY && from_bytes(&many).any(|one| one.is_about(&id(20))));
    assert!(!from_bytes(&many).any(|one| one.is_about(&id(1))));
}

#[test]
fn two_nodes_or_a_master_that_do_not_hear_it_lately() {
    let silent = |reports: &PeerReports, ms| reports.silent_elsewhere(MS * 400, at(ms));
    let mut reports = PeerReports::default();
    reports.add(id(1), false, MS * 300, at(1_000));
    reports.add(id(1), false, MS * 350, at(1_050));
    assert!(!silent(&reports, 1_050), "one worker, twice");
    reports.add(id(2), false, MS * 240, at(1_100));
    assert!(!silent(&reports, 1_100), "another, which pulses every 200 ms");
    reports.add(id(2), false, MS * 250, at(1_110));
    assert!(silent(&reports, 1_110) && silent(&reports, 1_450));
    assert!(!silent(&reports, 1_451), "old");
    let mut reports = PeerReports::default();
    reports.add(id(3), true, MS * 150, at(1_000));
    reports.add(id(1), false, Duration::ZERO, at(1_000));
    reports.add(id(2), false, Duration::ZERO, at(1_000));
    assert!(silent(&reports, 1_000), "a master");
    assert!(reports.heard_within(MS * 400, at(1_399)) && !reports.heard_within(MS * 400, at(1_400)));
}

#[test]
fn a_report_of_long_silence_moves_nothing_back() {
    let mut reports = PeerReports::default();
    reports.add(id(1), true, MS * 10, at(1_000));
    reports.add(id(2), true, MS * 2_550, at(1_100));
    assert!(reports.heard_within(MS * 200, at(1_100)));
}

/// When this node last heard each, in milliseconds.
fn last(heard: &[(u8, u64)]) -> impl Fn(&NodeId) -> Option<Moment> {
    |peer: &NodeId| heard.iter().find(|(n, _)| id(*n) == *peer).map(|(_, ms)| at(*ms))
}

/// A book that watches these peers and has sent a pulse to each at that time, in milliseconds.
fn watching(peers: &[(u8, u64)]) -> HeardBook {
    let mut book = HeardBook::default();
    book.watch(peers.iter().map(|(n, _)| id(*n)), true);
    peers.iter().for_each(|(n, ms)| book.asked(&id(*n), MS * 20, None, at(*ms)));
    book
}

#[test]
fn a_report_tells_who_was_heard_a_moment_ago_and_who_does_not_answer() {
    let book = watching(&[(1, 100), (2, 700), (3, 880)]);
    let report = |to: u8, heard: &[(u8, u64)], now| {
        let bytes = book.report(&id(to), last(heard), at(now))?;
        Some(from_bytes(&bytes).map(|one| one.age.as_millis()).collect::<Vec<_>>())
    };
    assert_eq!(report(9, &[], 1_000), None, "it has never heard anyone");
    assert_eq!(report(9, &[(1, 900), (2, 500)], 1_000), Some(vec![100, 500]));
    assert_eq!(report(1, &[(1, 900), (2, 500)], 1_000), Some(vec![500]), "nobody is told of itself");
    assert_eq!(report(9, &[(3, 500)], 999), None, "an answer may take 20 ms, and 100 more are no silence");
    assert_eq!(report(9, &[(3, 500)], 1_000), Some(vec![500]));
    assert_eq!(report(9, &[(1, 800)], 1_000), None, "it was not asked since");
    assert_eq!(report(9, &[(1, 50), (2, 50)], 1_000), None, "this node has lost its network");
}

#[test]
fn a_worker_that_pulses_every_200_ms_says_that_it_hears_a_master() {
    let mut book = HeardBook::default();
    let names = |book: &HeardBook, ms| book.report(&id(9), last(&[(1, 1_000)]), at(ms)).is_some();
    book.watch([id(1)].into_iter(), false);
    assert!(names(&book, 1_249) && !names(&book, 1_250));
    book.watch([id(1)].into_iter(), true);
    assert!(names(&book, 1_149) && !names(&book, 1_150), "a master asks again sooner");
}

#[test]
fn a_report_counts_for_watched_peers_and_not_for_its_sender() {
    let mut book = watching(&[(1, 0), (2, 0)]);
    let report = to_bytes([1, 2, 3].map(|n| (id(n), Duration::ZERO)).into());
    book.add(id(2), true, &report, |_| None, at(1_000));
    let heard = |book: &HeardBook, n| book.of(&id(n)).heard_within(MS * 100, at(1_000));
    assert!(heard(&book, 1) && !heard(&book, 2) && !heard(&book, 3));
    book.watch([id(1), id(3)].into_iter(), true);
    assert!(heard(&book, 1) && !heard(&book, 3));
}

#[test]
fn a_master_or_two_others_raise_a_doubt_unless_someone_has_just_heard_it() {
    let silent = to_bytes(vec![(id(1), MS * 250)]);
    let mut book = watching(&[(1, 0)]);
    assert_eq!(
        book.add(id(5), false, &silent, |_| None, at(1_000)),
        [id(1)],
        "one worker, every three seconds"
    );
    assert!(book.add(id(5), false, &silent, |_| None, at(1_100)).is_empty(), "the same");
    assert_eq!(book.add(id(6), false, &silent, |_| None, at(1_150)), [id(1)]);
    let mut book = watching(&[(1, 0)]);
    assert_eq!(book.add(id(2), true, &silent, |_| None, at(1_000)), [id(1)], "a master");
    let hears = to_bytes(vec![(id(1), MS * 10)]);
    book.add(id(5), false, &hears, |_| None, at(1_010));
    assert_eq!(
        book.add(id(2), true, &silent, |_| None, at(1_020)),
        [id(1)],
        "a worker does not speak for a master"
    );
    book.add(id(3), true, &hears, |_| None, at(1_030));
    assert_eq!(
        book.add(id(2), true, &silent, |_| None, at(1_040)),
        [id(1)],
        "another hears it, but it may lie"
    );
    assert!(
        book.add(id(2), true, &silent, |_| None, at(1_050)).is_empty(),
        "that is asked every three seconds"
    );
}

#[test]
fn those_attached_are_told_at_once_and_again_while_it_lasts() {
    let heard = [(1, 850), (2, 1_000)];
    let core = BTreeSet::from([id(8)]);
    let alarm = |book: &mut HeardBook, ms| book.alarm(&core, last(&heard), at(ms));
    let mut book = watching(&[(1, 880), (2, 900)]);
    book.attached(id(7), at(500));
    assert_eq!(alarm(&mut book, 999), None);
    let one = alarm(&mut book, 1_000).unwrap();
    assert!(one.to.iter().eq(&[id(7), id(8)]), "a master tells all of the core, too");
    let ages: Vec<ReportedAge> = from_bytes(&one.report).collect();
    assert!(ages.len() == 1 && ages[0].is_about(&id(1)) && ages[0].age == MS * 150);
    assert_eq!(alarm(&mut book, 1_079), None, "a moment ago");
    assert!(alarm(&mut book, 1_080).is_some());
    assert!(alarm(&mut book, 1_860).is_some());
    assert_eq!(alarm(&mut book, 2_099), None, "most have decided");
    assert!(alarm(&mut book, 2_100).is_some());
    assert_eq!(alarm(&mut book, 2_850), None, "by now all have decided");
    // One that this node has not asked since, by the word of a master; and of one that another hears, nothing.
    let mut book = watching(&[(1, 0)]);
    let report = |age: u32| to_bytes(vec![(id(1), MS * age)]);
    book.add(id(3), true, &report(200), |_| None, at(1_100));
    let one = alarm(&mut book, 1_100).unwrap();
    assert!(one.to.is_empty(), "the core was told by that master");
    assert!(from_bytes(&one.report).all(|one| one.age == MS * 250));
    book.add(id(4), false, &report(0), |_| None, at(1_190));
    assert!(alarm(&mut book, 1_195).is_some(), "a worker's word");
    book.add(id(4), true, &report(0), |_| None, at(1_200));
    assert_eq!(alarm(&mut book, 1_210), None);
    // It is heard after all, which is told once.
    let mut book = watching(&[(1, 880), (2, 900)]);
    let back = [(1, 1_030), (2, 1_000)];
    assert!(alarm(&mut book, 1_000).is_some() && book.has_told(at(1_040)));
    let clear = book.alarm(&core, last(&back), at(1_040)).unwrap();
    assert!(clear.to.contains(&id(8)) && from_bytes(&clear.report).all(|one| one.age == MS * 10));
    assert!(!book.has_told(at(1_040)) && book.alarm(&core, last(&back), at(1_041)).is_none());
    // Who has not reported for long is not told.
    let mut book = watching(&[(1, 880), (2, 900)]);
    book.attached(id(7), at(0));
    assert!(alarm(&mut book, 1_000).unwrap().to.contains(&id(7)));
    let later = [(1, 7_000), (2, 7_150)];
    assert!(book.alarm(&core, last(&later), at(7_200)).is_none(), "it was not asked");
    book.asked(&id(1), MS * 20, Some(at(7_000)), at(7_001));
    assert!(book.alarm(&core, last(&later), at(7_200)).unwrap().to.iter().eq([&id(8)]));
}

#[test]
fn a_path_that_is_cut_for_long_makes_nobody_look_again() {
    // Another master has not heard it for long; this node does, now and then.
    let mut book = watching(&[(1, 0)]);
    let report = |age: u32| to_bytes(vec![(id(1), MS * age)]);
    assert_eq!(book.add(id(2), true, &report(1_990), |_| None, at(10_000)), [id(1)]);
    assert!(book.add(id(2), true, &report(2_000), |_| None, at(10_100)).is_empty());
    assert_eq!(book.alarm(&BTreeSet::new(), last(&[(1, 9_800)]), at(10_100)), None);
    // This node has not heard it for long, others did a second ago.
    let mut book = watching(&[(1, 0), (2, 9_950)]);
    book.asked(&id(1), MS * 20, Some(at(5_000)), at(5_010));
    book.add(id(3), false, &report(1_000), |_| None, at(10_000));
    assert_eq!(book.alarm(&BTreeSet::new(), last(&[(1, 5_000), (2, 9_990)]), at(10_000)), None);
}

proptest! {
    #[test]
    fn no_bytes_make_it_panic(bytes in proptest::collection::vec(any::<u8>(), 0..100)) {
        prop_assert!(from_bytes(&bytes).count() <= MAX_REPORTED);
    }
}

#[test]
fn an_alarm_of_a_node_that_pulses_seldom_is_news_however_long_ago_it_heard_the_peer() {
    let mut book = watching(&[(1, 0)]);
    book.attached(id(7), at(9_000));
    book.add(id(3), true, &to_bytes(vec![(id(1), MS * 200)]), |_| None, at(9_900));
    let alarm = book.alarm(&BTreeSet::new(), last(&[(1, 1_000)]), at(10_000)).unwrap();
    let mut attached = watching(&[(1, 0)]);
    let doubts = attached.add(id(8), false, &alarm.report, last(&[(1, 1_000)]), at(10_000));
    assert_eq!(doubts, [id(1)], "8.9 s of silence would be an old one");
}

#[test]
fn a_worker_says_that_a_master_is_silent_when_four_of_its_pulses_are_lost() {
    let alarm = |is_master: bool, ms| {
        let mut book = watching(&[(1, 0), (2, 0)]);
        book.watch([id(1), id(2)].into_iter(), is_master);
        book.attached(id(7), at(500));
        book.asked(&id(1), MS * 20, Some(at(850)), at(880));
        book.alarm(&BTreeSet::new(), last(&[(1, 850), (2, 1_000)]), at(ms)).is_some()
    };
    assert!(!alarm(true, 999) && alarm(true, 1_000));
    assert!(!alarm(false, 1_299) && alarm(false, 1_300));
}

#[test]
fn a_master_that_hears_no_third_one_waits_until_it_says_that_another_is_silent() {
    let mut book = watching(&[(1, 880)]);
    book.attached(id(7), at(500));
    let mut alarm = |ms| book.alarm(&BTreeSet::new(), last(&[(1, 850)]), at(ms)).is_some();
    assert!(!alarm(1_099) && alarm(1_100));
}

#[test]
fn who_has_looked_since_a_silence_began_looks_no_second_time() {
    let silent = to_bytes(vec![(id(1), MS * 250)]);
    let mut book = watching(&[(1, 0)]);
    let mut told = |from: u8, heard, ms| book.add(id(from), true, &silent, last(&[(1, heard)]), at(ms));
    assert_eq!(told(2, 900, 1_000), [id(1)]);
    assert!(told(2, 1_050, 1_080).is_empty(), "it has heard it since");
    assert!(told(2, 1_050, 1_400).is_empty(), "still the same silence");
    assert_eq!(told(2, 1_050, 1_901), [id(1)], "another, half a second later");
    assert_eq!(told(3, 1_950, 2_000), [id(1)], "and one that another reports");
}

#[test]
fn four_reports_are_kept_and_any_two_of_them_count() {
    let silent = |age: u32| to_bytes(vec![(id(1), MS * age)]);
    let mut book = watching(&[(1, 0)]);
    for (from, ms) in [(5, 1_000), (6, 1_010), (7, 1_020), (8, 1_030)] {
        book.add(id(from), false, &silent(if from < 7 { 250 } else { 0 }), |_| None, at(ms));
    }
    assert!(book.of(&id(1)).silent_elsewhere(MS * 300, at(1_030)));
    book.add(id(9), false, &silent(0), |_| None, at(1_040));
    assert!(!book.of(&id(1)).silent_elsewhere(MS * 300, at(1_040)), "the oldest is forgotten");
}

#[test]
fn a_master_that_another_has_just_heard_is_not_reported_as_silent() {
    let mut book = watching(&[(1, 700), (2, 0)]);
    let names = |book: &HeardBook| book.report(&id(9), last(&[(1, 500), (2, 1_000)]), at(1_000)).is_some();
    let only_silent = |book: &HeardBook| book.report(&id(2), last(&[(1, 500), (2, 1_000)]), at(1_000));
    assert!(names(&book) && only_silent(&book).is_some());
    book.add(id(2), true, &to_bytes(vec![(id(1), MS * 100)]), |_| None, at(990));
    assert_eq!(only_silent(&book), None);
}
