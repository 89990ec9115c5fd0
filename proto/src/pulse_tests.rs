use proptest::prelude::*;

use super::*;

fn at(ms: u64) -> Moment {
    Moment::from_millis(ms)
}

/// Answers every pulse within 10 ms until `silent_from`, then none.
fn run(silent_from: u64, until: u64) -> (PeerPulse, Vec<u64>) {
    let mut pulse = PeerPulse::new(at(0), Pace::FAST, 7);
    let mut sent = Vec::new();
    let mut answers: VecDeque<(u64, u64)> = VecDeque::new();
    for ms in 0..=until {
        while answers.front().is_some_and(|(due, _)| *due <= ms) {
            if let Some((_, number)) = answers.pop_front() {
                pulse.answered(number, at(ms));
            }
        }
        if let Some(number) = pulse.poll(at(ms)) {
            sent.push(ms);
            if ms < silent_from {
                answers.push_back((ms + 10, number));
            }
        }
    }
    (pulse, sent)
}

#[test]
fn a_peer_that_answers_is_pulsed_ten_times_a_second() {
    let (pulse, sent) = run(u64::MAX, 1_000);
    assert_eq!(sent.len(), 11);
    assert_eq!(pulse.liveness(at(1_000)), Liveness::Alive);
    assert_eq!(pulse.rtt(), Some(Duration::from_millis(10)));
    assert_eq!(pulse.loss(), 0.0);
}

#[test]
fn silence_starts_a_burst_and_is_late_after_a_third_of_a_second_and_silent_after_one() {
    let (pulse, sent) = run(1_000, 2_100);
    // The last answer came at 910.
    assert_eq!(pulse.liveness(at(1_210)), Liveness::Alive);
    assert_eq!(pulse.liveness(at(1_220)), Liveness::Late);
    assert_eq!(pulse.liveness(at(1_910)), Liveness::Late);
    assert_eq!(pulse.liveness(at(1_920)), Liveness::Silent);
    let burst = sent.iter().filter(|ms| (1_200..2_000).contains(*ms)).count();
    assert_eq!(burst, 16, "{sent:?}");
}

#[test]
fn what_others_report_makes_silence_quicker_or_names_the_cut_path() {
    use Liveness::{CutOff, Late, Silent};
    // The last answer came at 910, the first pulse without one left at 1,000: silent for all at 910 + 100 + 10 +
    // 350, by itself at 1,000 + 20 + 900.
    let (pulse, _) = run(1_000, 2_100);
    let id = |n: u8| NodeId([n; NodeId::LEN]);
    let verdict = |ms: u64, heard: Option<u64>, said: &[(u8, bool, u64, u64)]| {
        let mut reports = PeerReports::default();
        for (from, is_master, at_ms, age) in said {
            reports.add(id(*from), *is_master, Duration::from_millis(*age), at(*at_ms));
        }
        pulse.liveness_for_all(at(ms), heard.map(at), &reports)
    };
    // Who reports, whether it is a master, when it arrived, and how old that was which it heard last.
    let master = (1, true, 1_300, 400);
    let workers = [(2, false, 1_300, 400), (3, false, 1_300, 400)];
    let last = Some(910);
    assert_eq!(verdict(1_369, last, &[master]), Late, "not long enough");
    assert_eq!(verdict(1_370, last, &[master]), Silent);
    assert_eq!(verdict(1_370, last, &workers), Silent);
    assert_eq!(verdict(1_370, last, &workers[..1]), Late, "one worker");
    assert_eq!(verdict(1_370, last, &[]), Late, "nobody");
    let other = Some(1_000);
    assert_eq!(verdict(1_370, other, &[master]), Late, "this node has heard it, by another datagram");
    assert_eq!(verdict(1_720, last, &[master]), Late, "an old report");
    assert_eq!(verdict(1_370, last, &[(1, true, 1_300, 380)]), Late, "the master has heard it too lately");
    // It is late at 1,220 by itself, and as soon as an answer is due if others do not hear it either.
    assert_eq!(verdict(1_080, last, &[(1, true, 1_070, 160)]), Late);
    assert_eq!(verdict(1_080, last, &[(2, false, 1_070, 160)]), Liveness::Alive, "one worker");
    assert_eq!(verdict(1_080, last, &[(1, true, 1_070, 140)]), Liveness::Alive, "it heard it a moment ago");
    // One that hears it, whoever else does not.
    let hears = (4, false, 1_360, 10);
    let all = [master, workers[0], workers[1], hears];
    assert_eq!(verdict(1_370, last, &all), Late);
    assert_eq!(verdict(1_850, last, &[master, (4, false, 1_840, 0), master]), Late);
    assert_eq!(verdict(1_919, last, &[(4, false, 1_900, 0)]), Late);
    assert_eq!(verdict(1_920, last, &[(4, false, 1_900, 0)]), CutOff);
    assert_eq!(verdict(1_920, last, &[]), Silent);
    assert_eq!(verdict(1_920, last, &[(4, false, 1_400, 0)]), Silent, "it heard it long ago");
    // Whatever is said, who answers is alive.
    let (alive, _) = run(u64::MAX, 2_000);
    let mut reports = PeerReports::default();
    (1..9).for_each(|n| reports.add(id(n), true, Duration::from_secs(9), at(2_000)));
    assert_eq!(alive.liveness_for_all(at(2_000), None, &reports), Liveness::Alive);
}

/// An attached node in a cluster of 5,000, whose first pulse at 0 was answered after 40 ms.
fn attached() -> PeerPulse {
    let pace = Pace { interval: Duration::from_secs(50), burst: Duration::from_millis(125), ..Pace::FAST };
    let mut pulse = PeerPulse::new(at(0), pace, 499);
    let first = pulse.poll(at(0)).unwrap();
    pulse.answered(first, at(40));
    pulse
}

#[test]
fn in_a_large_cluster_a_burst_is_slower_and_ends_when_the_peer_is_silent() {
    let mut pulse = attached();
    let mut sent = Vec::new();
    let mut silent = None;
    for ms in 41..=200_000 {
        sent.extend(pulse.poll(at(ms)).map(|_| ms));
        if pulse.liveness(at(ms)) == Liveness::Silent {
            silent.get_or_insert(ms);
        }
    }
    let first = sent[0];
    assert_eq!(first, 25_090, "nodes that start together pulse at times of their own");
    // Two round trips and 900 ms after the first without an answer.
    assert_eq!(silent, Some(first + 980));
    let (burst, after): (Vec<u64>, Vec<u64>) = sent.iter().partition(|ms| **ms < first + 1_000 + 125);
    assert_eq!(burst[..3], [first, first + 125, first + 250], "{sent:?}");
    assert_eq!(burst.len(), 9, "{sent:?}");
    assert!(after.windows(2).all(|pair| pair[1] - pair[0] == 50_000), "{after:?}");
}

#[test]
fn a_node_that_pulses_seldom_pulses_at_once_what_others_doubt_and_counts_from_then() {
    let mut pulse = attached();
    let next = pulse.deadline();
    pulse.hasten(at(600));
    let number = pulse.poll(at(600)).unwrap();
    assert_eq!(pulse.silence(at(650)), Duration::from_millis(50), "not since an answer long ago");
    pulse.answered(number, at(640));
    assert_eq!(pulse.deadline(), next, "it keeps to its own times");
    pulse.hasten(at(1_000));
    assert_eq!(pulse.poll(at(1_000)), None, "a moment ago");

    pulse.hasten(at(2_000));
    pulse.poll(at(2_000)).unwrap();
    let mut reports = PeerReports::default();
    reports.add(NodeId([1; NodeId::LEN]), true, Duration::from_millis(400), at(2_100));
    let verdict = |ms, reports: &PeerReports| pulse.liveness_for_all(at(ms), None, reports);
    assert_eq!(verdict(2_040, &reports), Liveness::Alive, "an answer is not due yet");
    assert_eq!(verdict(2_100, &PeerReports::default()), Liveness::Alive, "nobody else says so");
    assert_eq!(verdict(2_100, &reports), Liveness::Late);
    assert_eq!(verdict(2_279, &reports), Liveness::Late);
    assert_eq!(verdict(2_280, &reports), Liveness::Silent, "this node's own silence is long enough");
    let mut small = PeerPulse::new(at(0), Pace::FAST, 7);
    let number = small.poll(at(0)).unwrap();
    small.answered(number, at(10));
    small.hasten(at(20));
    assert_eq!(small.poll(at(20)), None, "the next pulse is due soon enough");
}

#[test]
fn a_node_that_has_just_started_pulses_within_a_while_and_at_once_what_others_doubt() {
    let start = Duration::from_secs(24);
    let pace = Pace { interval: Duration::from_secs(50), start, ..Pace::FAST };
    let mut pulse = PeerPulse::new(at(0), pace, 499);
    assert_eq!((pulse.poll(at(11_999)), pulse.deadline()), (None, at(12_000)));
    let mut reports = PeerReports::default();
    reports.add(NodeId([1; NodeId::LEN]), true, Duration::from_millis(400), at(1_100));
    assert_eq!(pulse.liveness_for_all(at(1_100), None, &reports), Liveness::Unknown);
    pulse.doubt(at(1_000));
    assert!(pulse.poll(at(1_000)).is_some() && pulse.poll(at(1_050)).is_some(), "a burst");
    assert_eq!(pulse.liveness_for_all(at(1_199), None, &reports), Liveness::Late);
    assert_eq!(pulse.liveness_for_all(at(1_200), None, &reports), Liveness::Silent);
    let number = pulse.poll(at(1_200)).unwrap();
    pulse.answered(number, at(1_240));
    assert_eq!(pulse.liveness_for_all(at(1_300), None, &reports), Liveness::Alive);
}

#[test]
fn a_refusal_makes_a_peer_late_at_once_and_never_silent() {
    let (mut pulse, _) = run(u64::MAX, 1_000);
    pulse.refused();
    assert_eq!(pulse.liveness(at(1_000)), Liveness::Late);
    let number = pulse.poll(at(1_100)).unwrap();
    pulse.answered(number, at(1_110));
    assert_eq!(pulse.liveness(at(1_110)), Liveness::Alive, "an answer is worth more");
    let mut unknown = PeerPulse::new(at(0), Pace::FAST, 7);
    unknown.refused();
    assert_eq!(unknown.liveness(at(5)), Liveness::Unknown);
}

#[test]
fn a_peer_that_never_answered_is_unknown_and_what_a_late_loop_adds_to_silence_is_forgiven() {
    let (pulse, _) = run(0, 3_000);
    assert_eq!(pulse.liveness(at(3_000)), Liveness::Unknown);
    let (mut pulse, _) = run(1_000, 3_000);
    assert_eq!(pulse.liveness(at(3_000)), Liveness::Silent);
    let silence = pulse.silence(at(3_000));
    pulse.forgive_silence(Duration::from_millis(1_900));
    assert_eq!(pulse.silence(at(3_000)), silence - Duration::from_millis(1_900));
    assert_eq!(pulse.liveness(at(3_000)), Liveness::Alive);
    assert_eq!(pulse.liveness(at(3_300)), Liveness::Late, "it goes on from there");
}

#[test]
fn a_peer_that_is_being_replaced_is_silent_only_after_the_pause() {
    let (mut pulse, _) = run(1_000, 1_050);
    pulse.set_pausing(true, at(1_000));
    let first = |wanted: Liveness, pulse: &mut PeerPulse| {
        (1_050..9_000).find(|ms| {
            pulse.poll(at(*ms));
            pulse.liveness(at(*ms)) == wanted
        })
    };
    let (late, silent) = (first(Liveness::Late, &mut pulse), first(Liveness::Silent, &mut pulse));
    let expected = [LATE, SILENT].map(|after| (Duration::from_secs(1) + PAUSE + after).as_millis() as u64);
    let slack = pulse.slack().as_millis() as u64;
    assert_eq!([late, silent], expected.map(|ms| Some(ms + slack)));
    // Back before that: it is like any other again.
    let (mut pulse, _) = run(1_000, 1_050);
    pulse.set_pausing(true, at(1_000));
    let number = pulse.poll(at(1_200)).unwrap();
    pulse.answered(number, at(1_201)).unwrap();
    pulse.set_pausing(false, at(1_201));
    assert!(first(Liveness::Silent, &mut pulse).unwrap() < 2_300);
}

#[test]
fn an_unsolicited_answer_does_not_count() {
    let mut pulse = PeerPulse::new(at(0), Pace::FAST, 7);
    assert_eq!(pulse.answered(7, at(0)), None);
    let number = pulse.poll(at(0)).unwrap();
    assert!(pulse.answered(number, at(3)).is_some());
    assert_eq!(pulse.answered(number, at(4)), None, "an answer counts once");
}

#[test]
fn additions_of_a_later_version_to_a_service_are_ignored() {
    let entry = |readiness: u8, name: &[u8], extra: &[u8]| {
        let parts = [&[name.len() as u8], name, &[readiness, 0, 5, 0, 0], extra].concat();
        [&[SERVICE, parts.len() as u8], parts.as_slice()].concat()
    };
    let fields = [vec![200, 2, 7, 7], vec![FLAGS, 2, 1, 9], entry(3, b"kube-api", b"more")];
    let bytes = [fields.concat(), entry(9, b"web", b""), entry(0, b"No Name", b"")].concat();
    let pulse_status = PulseStatus::from_bytes(&bytes).unwrap();
    let web = ("web".parse().unwrap(), (Readiness::Other, Cause::PortClosed));
    let kube_api = (ServiceName::kube_api(), (Readiness::Down, Cause::PortClosed));
    assert_eq!(pulse_status.services, [kube_api, web].into());
}

#[test]
fn the_largest_status_fits_into_a_datagram() {
    let name = |n: usize| format!("{n:02}{}", "x".repeat(30)).parse().unwrap();
    let services = (10..10 + MAX_SERVICES).map(|n| (name(n), (Readiness::Ready, Cause::Connected)));
    let pulse_status = PulseStatus { services: services.collect(), ..PulseStatus::default() };
    let bytes = pulse_status.to_bytes();
    assert!(bytes.len() <= MAX_STATUS && bytes.len() > MAX_STATUS - 40, "{}", bytes.len());
    assert!(PulseStatus::from_bytes(&bytes).is_some());
}

proptest! {
    #[test]
    fn a_status_reads_back_as_written(
        draining: bool,
        leaving: bool,
        pausing: bool,
        services in proptest::collection::btree_map(
            "[a-z][a-z0-9-]{0,30}[a-z0-9]",
            (0usize..4, any::<(u16, u16)>()),
            0..5,
        ),
    ) {
        let all = [Readiness::Ready, Readiness::Alive, Readiness::NotReady, Readiness::Down];
        let one = |(name, (i, (code, argument))): (String, (usize, (u16, u16)))| {
            (name.parse().unwrap(), (all[i], Cause::from_wire(code, argument)))
        };
        let services = services.into_iter().map(one).collect();
        let pulse_status = PulseStatus { draining, leaving, pausing, services };
        prop_assert_eq!(PulseStatus::from_bytes(&pulse_status.to_bytes()), Some(pulse_status));
    }

    #[test]
    fn no_bytes_make_it_panic(bytes in proptest::collection::vec(any::<u8>(), 0..100)) {
        let _ = PulseStatus::from_bytes(&bytes);
    }
}
