//! One table or story for each rule; what many nodes make of them is simulated in `tests/election`.

use std::net::{IpAddr, Ipv4Addr};
use std::time::Duration;

use proptest::prelude::*;

use super::*;
use crate::arp::Mac;
use crate::cause::Cause;
use crate::node::NodeId;
use crate::time::Moment;
use crate::unfit::Unfit;

pub(super) const VIP: IpAddr = IpAddr::V4(Ipv4Addr::new(10, 91, 91, 50));
pub(super) const MAC: Mac = Mac([0xaa, 0xbb, 0xcc, 0, 0, 1]);

pub(super) fn id(n: u8) -> NodeId {
    NodeId([n; 10])
}

pub(super) fn at(ms: u64) -> Moment {
    Moment::from_millis(ms)
}

pub(super) fn rules(priorities: &[u8]) -> VipRules {
    let candidates = priorities.iter().zip(1..).map(|(priority, n)| Candidate {
        node: id(n),
        priority: *priority,
        unfit: None,
    });
    // Node 9 is a master that is no candidate.
    VipRules { candidates: candidates.collect(), masters: vec![id(9)], ..VipRules::default() }
}

/// Node `own` of as many candidates as there are priorities, fit, and not polled yet.
pub(super) fn node(own: u8, priorities: &[u8]) -> Election {
    let mut one = Election::new(id(own), VIP, at(0));
    one.set_rules(at(0), rules(priorities));
    one.set_fact(at(0), EligibilityFact::Segment, Ok(()));
    one.checked(at(0), Ok(()));
    one
}

/// What a node does from one moment to another when it is polled in time.
pub(super) fn run(one: &mut Election, from: u64, to: u64) -> Vec<(u64, Action)> {
    let mut all = Vec::new();
    for ms in from..=to {
        if one.deadline() <= at(ms) {
            all.extend(one.poll(at(ms)).into_iter().map(|action| (ms, action)));
        }
    }
    all
}

pub(super) fn events(actions: &[(u64, Action)]) -> Vec<(u64, VipEvent)> {
    let event = |(ms, action): &(u64, Action)| match action {
        Action::Event(event) => Some((*ms, *event)),
        _ => None,
    };
    actions.iter().filter_map(event).collect()
}

pub(super) fn times(actions: &[(u64, Action)], wanted: &Action) -> Vec<u64> {
    actions.iter().filter(|(_, action)| action == wanted).map(|(ms, _)| *ms).collect()
}

pub(super) fn sent(actions: &[(u64, Action)], to: u8) -> usize {
    let goes = |action: &Action| matches!(action, Action::Send { to: all, .. } if all.contains(&id(to)));
    actions.iter().filter(|(_, action)| goes(action)).count()
}

/// The only candidate, which has claimed.
pub(super) fn lonely_owner() -> Election {
    let mut one = node(1, &[100]);
    run(&mut one, 0, 1_000);
    assert!(one.owns());
    one
}

pub(super) fn claim(epoch: u64, owner: u8) -> Claim {
    Claim::new(VIP, epoch, 100, id(owner))
}

pub(super) fn said(known: Option<HighestClaim>, heard: Option<u64>, state: CandidateState) -> VipMessage {
    let heard = heard.map(Duration::from_millis);
    VipMessage { vip: VIP, purpose: MessageKind::Beat, known, heard, state }
}

pub(super) fn held(epoch: u64, owner: u8) -> Option<HighestClaim> {
    Some(HighestClaim { claim: claim(epoch, owner), holding: Holding::Held })
}

pub(super) fn released(epoch: u64, owner: u8, successor: Option<u8>) -> Option<HighestClaim> {
    let holding = Holding::Released { why: ReleaseReason::Stop, successor: successor.map(id) };
    Some(HighestClaim { claim: claim(epoch, owner), holding })
}

/// A beat of an owner.
pub(super) fn owner_beat(epoch: u64, owner: u8) -> VipMessage {
    said(held(epoch, owner), Some(0), CandidateState::Fit)
}

/// Node 1 of three, with 2 as owner and 3 as other backup, all heard until this moment.
pub(super) fn backup(until: u64) -> Election {
    let mut one = node(1, &[100, 100, 100]);
    for ms in (0..=until).step_by(10) {
        one.receive(at(ms), id(2), &owner_beat(5, 2));
        one.receive(at(ms), id(3), &said(held(5, 2), Some(0), CandidateState::Fit));
        run(&mut one, ms, ms + 9);
    }
    assert!(!one.owns());
    one
}

#[test]
fn the_only_candidate_cleans_up_listens_and_claims() {
    let mut one = node(1, &[100]);
    let done = run(&mut one, 0, 5_000);
    assert_eq!(done[0], (0, Action::Delete));
    assert_eq!(times(&done, &Action::Add { lifetime: LIFETIME }), [550]);
    assert_eq!(
        times(&done, &Action::Announce),
        [550, 555, 600, 750, 1_650, 3_550],
        "at 0, 5, 50, 200 ms, 1.1 s and 3 s"
    );
    let renewed = times(&done, &Action::Renew { lifetime: LIFETIME });
    assert_eq!(
        renewed,
        [1_000, 1_500, 2_000, 2_500, 3_000, 3_500, 4_000, 4_500, 5_000],
        "when it beats, too"
    );
    assert_eq!(
        events(&done),
        [(550, VipEvent::Gained { epoch: 1, from: None, cause: Gain::Vacant })],
        "one claim, with its cause"
    );
    let refresh = times(&run(&mut one, 5_001, 70_000), &Action::Announce);
    assert_eq!(refresh, [33_550, 63_550]);
}

#[test]
fn who_does_not_hear_all_candidates_listens_for_two_seconds() {
    let mut one = node(1, &[100, 100]);
    let done = run(&mut one, 0, 3_000);
    assert_eq!(events(&done).first().map(|(ms, _)| *ms), Some(2_050));
    let mut one = node(1, &[100, 100]);
    let mut rules = rules(&[100, 100]);
    rules.candidates[1].unfit = Some(Cause::NoSegment.into());
    one.set_rules(at(0), rules);
    let done = run(&mut one, 0, 3_000);
    assert_eq!(events(&done).first().map(|(ms, _)| *ms), Some(550), "nobody waits for who can't");
}

#[test]
fn a_later_epoch_begins_above_the_floor() {
    let mut one = node(1, &[100]);
    one.set_minimum_epoch(41);
    run(&mut one, 0, 1_000);
    assert_eq!((one.owns(), one.epoch()), (true, 42));
}

#[test]
fn a_silent_owner_is_asked_for_at_110_ms_and_followed_at_160() {
    let mut one = backup(1_000);
    let mut done = run(&mut one, 1_010, 1_130);
    assert_eq!(times(&done, &Action::Probe).first(), Some(&1_110));
    // The other backup has not heard it any later.
    one.receive(at(1_130), id(3), &said(held(5, 2), Some(130), CandidateState::Fit));
    done = run(&mut one, 1_131, 1_400);
    let gained = VipEvent::Gained {
        epoch: 6,
        from: Some(id(2)),
        cause: Gain::Silent { quiet: Duration::from_millis(160) },
    };
    assert_eq!(events(&done), [(1_160, gained)]);
}

#[test]
fn a_candidate_that_stands_as_before_and_knows_what_is_known_has_no_news() {
    let mut one = backup(1_000);
    let says = |known, state: CandidateState| said(known, Some(130), state);
    let news = |one: &Election, ms, message| !one.knows_all_of(at(ms), &id(3), &message);
    one.receive(at(1_000), id(3), &says(held(5, 2), CandidateState::Fit));
    assert!(!news(&one, 1_100, says(held(5, 2), CandidateState::Fit)));
    assert!(news(&one, 1_100, says(held(5, 2), CandidateState::Recovering)));
    assert!(news(&one, 1_650, says(held(5, 2), CandidateState::Fit)), "it was silent");
    for known in [None, held(4, 2), held(6, 2), held(5, 3)] {
        assert!(news(&one, 1_100, says(known, CandidateState::Fit)), "{known:?}");
    }
    let asks = VipMessage { purpose: MessageKind::Ask, ..says(held(5, 2), CandidateState::Fit) };
    assert!(news(&one, 1_100, asks));
    assert!(!one.knows_all_of(at(1_100), &id(2), &owner_beat(5, 2)), "of the owner `follows` decides");
}

#[test]
fn a_beat_that_repeats_the_last_one_may_be_received_later_as_of_when_it_came() {
    let mut one = backup(1_000);
    assert!(one.follows(&id(2)) && !one.follows(&id(3)));
    assert!(!lonely_owner().follows(&id(1)), "its own claim may be one of two");
    assert_eq!(one.deadline(), at(1_110), "nothing is due before");
    one.receive(at(1_100), id(2), &owner_beat(5, 2));
    let done = run(&mut one, 1_110, 1_500);
    assert_eq!(times(&done, &Action::Probe).first(), Some(&1_210));
}

#[test]
fn a_witness_that_hears_the_owner_vetoes_for_as_long_as_it_does() {
    let mut one = backup(1_000);
    for ms in 1_010..3_000 {
        if ms % 50 == 0 {
            one.receive(at(ms), id(3), &said(held(5, 2), Some(90), CandidateState::Fit));
        }
        let done = run(&mut one, ms, ms);
        assert!(events(&done).is_empty(), "{ms}: {done:?}");
    }
    // The way was cut and not the owner: now five beats must be missing.
    one.receive(at(3_000), id(3), &said(held(5, 2), Some(100), CandidateState::Fit));
    let mut done = Vec::new();
    for ms in 3_001..4_000 {
        if ms % 50 == 0 {
            one.receive(at(ms), id(3), &said(held(5, 2), Some(ms - 2_900), CandidateState::Fit));
        }
        done.extend(run(&mut one, ms, ms));
    }
    assert_eq!(events(&done).first().map(|(ms, _)| *ms), Some(3_400));
}

#[test]
fn who_suddenly_hears_nobody_thinks_of_its_own_link_first() {
    let mut one = backup(1_000);
    let done = run(&mut one, 1_010, 4_000);
    assert_eq!(events(&done).first().map(|(ms, _)| *ms), Some(1_000 + 1_500));
}

#[test]
fn answers_to_probes() {
    // Who answers, whether another node answers questions, whether the owner's machine refuses packets.
    for (member, company, refused, claims) in [
        (None, true, false, false),
        (None, false, true, false),
        (Some(id(2)), true, false, true),
        (Some(id(2)), false, false, false),
        (Some(id(2)), false, true, true),
    ] {
        let mut one = node(1, &[100, 100]);
        one.receive(at(0), id(2), &owner_beat(5, 2));
        run(&mut one, 0, 20);
        let mut claimed = false;
        for ms in 21..1_000 {
            if ms % 20 == 0 {
                one.address_sighted(at(ms), MAC, member);
                if company {
                    one.receive(at(ms), id(9), &said(None, None, CandidateState::Witness));
                }
            }
            if refused && ms == 100 {
                one.refused(at(ms), &id(2));
            }
            one.skip_listening();
            run(&mut one, ms, ms);
            claimed |= one.owns();
        }
        assert_eq!(claimed, claims, "{member:?} {company} {refused}");
    }
}

#[test]
fn a_stranger_is_named_in_status_and_gone_when_two_questions_went_unanswered() {
    let mut one = node(1, &[100]);
    run(&mut one, 0, 510);
    one.address_sighted(at(515), MAC, None);
    let mut done = run(&mut one, 516, 600);
    let status = one.status(at(600));
    assert_eq!(status.state, OwnershipState::Unavailable);
    assert_eq!(
        status.reason.clone().map(|why| why.to_string()).as_deref(),
        Some("10.91.91.50 answers ARP from MAC aa:bb:cc:00:00:01, which belongs to no member")
    );
    assert_eq!(status.reason, Some(Cause::Stranger.into()));
    done.extend(run(&mut one, 601, 4_000));
    let told = events(&done);
    assert_eq!(told[0], (516, VipEvent::Stranger { mac: MAC, defended: false }));
    assert_eq!(told[1].0, 515 + 2_500 + 50);
}

#[test]
fn an_owner_defends_once_in_ten_seconds_and_then_yields() {
    for (again, yields) in [(100, false), (1_000, true), (9_900, true), (10_100, false)] {
        let mut one = lonely_owner();
        run(&mut one, 1_001, 20_000);
        one.address_sighted(at(20_000), MAC, None);
        let done = run(&mut one, 20_000, 20_000 + again - 1);
        assert_eq!(times(&done, &Action::Announce).first(), Some(&20_000), "defended");
        one.address_sighted(at(20_000 + again), MAC, None);
        let done = run(&mut one, 20_000 + again, 20_000 + again);
        assert_eq!(!one.owns(), yields, "{again}");
        assert_eq!(times(&done, &Action::Delete).len(), usize::from(yields));
    }
}

#[test]
fn a_higher_claim_ends_an_ownership_and_a_lower_one_is_answered() {
    let mut one = lonely_owner();
    one.receive(at(1_000), id(9), &owner_beat(1, 9));
    let mine = Claim::new(VIP, 1, 100, id(1));
    // In one epoch the lot decides, the same for both.
    assert_eq!(one.owns(), mine > claim(1, 9));
    let mut one = lonely_owner();
    run(&mut one, 1_001, 10_000);
    one.receive(at(10_000), id(9), &owner_beat(0, 9));
    let done = run(&mut one, 10_000, 10_300);
    assert!(one.owns() && sent(&done, 9) > 0);
    assert_eq!(times(&done, &Action::Announce), [10_000, 10_005, 10_050, 10_200]);
    one.receive(at(10_400), id(9), &owner_beat(2, 9));
    let done = run(&mut one, 10_400, 10_400);
    assert_eq!(done[0].1, Action::Delete, "before anything else");
    let lost = VipEvent::Lost { epoch: 1, to: Some(id(9)), cause: LossReason::Higher };
    assert!(!one.owns() && events(&done)[0].1 == lost);
}

#[test]
fn hearsay_of_a_higher_claim() {
    // How old it is, and whether this node goes on; if so with a higher epoch.
    for (age, stays) in [(Some(100), false), (Some(900), false), (Some(2_000), true), (None, true)] {
        let mut one = lonely_owner();
        one.receive(at(1_000), id(9), &said(held(7, 8), age, CandidateState::Witness));
        run(&mut one, 1_000, 1_000);
        assert_eq!(one.owns(), stays, "{age:?}");
        assert_eq!(one.epoch(), if stays { 8 } else { 7 });
    }
}

#[test]
fn a_witness_tells_an_owner_that_has_missed_a_higher_claim() {
    let mut witness = Election::new(id(9), VIP, at(0));
    witness.set_rules(at(0), rules(&[100, 100]));
    run(&mut witness, 0, 0);
    witness.receive(at(10), id(1), &owner_beat(5, 1));
    witness.receive(at(20), id(2), &owner_beat(6, 2));
    let done = run(&mut witness, 20, 20);
    assert_eq!(times(&done, &Action::Neighbour { owner: id(2) }), [20]);
    assert_eq!(sent(&done, 1), 0);
    witness.receive(at(30), id(1), &owner_beat(5, 1));
    let done = run(&mut witness, 30, 30);
    let Some((_, Action::Send { to, message })) = done.first() else { panic!("{done:?}") };
    assert_eq!((to.as_slice(), message.known), ([id(1)].as_slice(), held(6, 2)));
    assert_eq!(message.heard, Some(Duration::from_millis(10)));
}

#[test]
fn a_released_claim_is_never_held_again() {
    let mut one = backup(1_000);
    let holding = Holding::Released { why: ReleaseReason::Drain, successor: Some(id(3)) };
    let released = Some(HighestClaim { claim: claim(5, 2), holding });
    one.receive(at(1_000), id(9), &said(released, None, CandidateState::Witness));
    one.receive(at(1_001), id(2), &owner_beat(5, 2));
    assert_eq!(one.knowledge().holder(), None, "a beat that was overtaken");
}

#[test]
fn a_named_successor_claims_at_once_and_others_wait_for_it() {
    for (successor, claimed) in [(Some(id(1)), 1_000), (Some(id(3)), 1_150), (None, 1_050)] {
        let mut one = backup(990);
        let holding = Holding::Released { why: ReleaseReason::Stop, successor };
        let released = Some(HighestClaim { claim: claim(5, 2), holding });
        one.receive(
            at(1_000),
            id(2),
            &said(released, None, CandidateState::Unfit(Cause::AgentStopped.into())),
        );
        let mut done = Vec::new();
        for ms in 1_000..1_400 {
            if ms % 20 == 10 {
                one.receive(at(ms), id(3), &said(released, None, CandidateState::Fit));
            }
            done.extend(run(&mut one, ms, ms));
        }
        assert_eq!(events(&done).first().map(|(ms, _)| *ms), Some(claimed), "{successor:?}");
    }
}

#[test]
fn an_owner_names_the_best_that_is_alive_and_deletes_before_it_speaks() {
    let mut one = node(1, &[100, 50, 200, 200]);
    one.skip_listening();
    run(&mut one, 0, 2_400);
    assert!(one.owns());
    one.receive(at(2_000), id(4), &said(None, None, CandidateState::Fit));
    one.receive(at(2_900), id(2), &said(None, None, CandidateState::Fit));
    one.receive(at(2_900), id(3), &said(None, None, CandidateState::Recovering));
    run(&mut one, 2_401, 2_900);
    one.stop(at(2_910));
    let done = run(&mut one, 2_910, 2_910);
    assert_eq!(done[0].1, Action::Delete);
    let lost = VipEvent::Lost { epoch: 1, to: Some(id(2)), cause: LossReason::Released(ReleaseReason::Stop) };
    assert_eq!(events(&done)[0].1, lost, "2 is fit; 4 is silent and 3 only recovering");
    assert!(!one.is_finished(at(2_910)) && one.is_finished(at(2_970)));
}

#[test]
fn reasons_to_let_go() {
    type Input = fn(&mut Election, Moment);
    let table: [(ReleaseReason, Input); 6] = [
        (ReleaseReason::Drain, |one, now| {
            one.set_fact(now, EligibilityFact::Draining, Err(Cause::Draining.into()))
        }),
        (ReleaseReason::Unfit, |one, now| {
            one.set_fact(now, EligibilityFact::Link, Err(Cause::LinkDown.into()))
        }),
        (ReleaseReason::Unfit, |one, now| {
            (0..FALL).for_each(|_| one.checked(now, Err(Cause::PortClosed.into())))
        }),
        (ReleaseReason::Rules, |one, now| one.set_rules(now, VipRules::default())),
        (ReleaseReason::Stop, |one, now| one.stop(now)),
        (ReleaseReason::Stall, |one, now| one.loop_stalled(now, Duration::from_millis(1_500))),
    ];
    for (why, input) in table {
        let mut one = lonely_owner();
        input(&mut one, at(1_000));
        let done = run(&mut one, 1_000, 1_000);
        let lost = VipEvent::Lost { epoch: 1, to: None, cause: LossReason::Released(why) };
        assert!(!one.owns() && events(&done) == [(1_000, lost)], "{why:?}: {done:?}");
        assert_eq!(times(&done, &Action::Delete), [1_000]);
    }
}

#[test]
fn an_owner_that_slept_drops_the_address_first_and_listens_before_it_claims_again() {
    for (slept, drops) in [(1_000, false), (1_700, true), (60_000, true)] {
        let mut one = lonely_owner();
        let woken = 1_000 + slept;
        let done: Vec<_> = one.poll(at(woken)).into_iter().map(|action| (woken, action)).collect();
        assert_eq!(!one.owns(), drops, "{slept}");
        if drops {
            assert_eq!(done[0].1, Action::Delete);
            let done = run(&mut one, woken + 1, woken + 1_000);
            let again = events(&done);
            assert_eq!(again.first().map(|(ms, _)| *ms), Some(woken + 350));
        }
    }
}

#[test]
fn what_was_removed_by_hand_is_put_back_at_once_but_not_for_ever_at_once() {
    let mut one = lonely_owner();
    let mut back = Vec::new();
    for ms in 1_000..31_000 {
        let done = run(&mut one, ms, ms);
        if !times(&done, &Action::Add { lifetime: LIFETIME }).is_empty() {
            back.push(ms);
        }
        // Whatever is there is removed in the same moment.
        one.address(at(ms), false);
    }
    assert_eq!(back[..3], [1_001, 1_251, 1_501]);
    let late = back.iter().filter(|ms| **ms >= 21_000).count();
    assert!((9..=11).contains(&late), "once a second in the end: {late}");
}

#[test]
fn a_leftover_on_a_node_that_does_not_own_it_is_deleted() {
    let mut one = backup(1_000);
    one.address(at(1_001), true);
    one.address(at(1_002), true);
    let done = run(&mut one, 1_001, 1_010);
    assert_eq!(times(&done, &Action::Delete).len(), 1);
}

#[test]
fn a_move_is_refused_with_the_reason_or_handed_over() {
    let mut one = node(1, &[100, 100, 100]);
    assert_eq!(one.move_to(at(0), id(2)), Err(MoveError::NoOwner));
    one.skip_listening();
    run(&mut one, 0, 2_100);
    assert!(one.owns());
    one.receive(at(2_100), id(2), &said(None, None, CandidateState::Unfit(Cause::Draining.into())));
    for (to, wrong) in [
        (1, MoveError::Already),
        (9, MoveError::NotCandidate),
        (3, MoveError::NotHeard),
        (2, MoveError::Unfit(Cause::Draining.into())),
    ] {
        assert_eq!(one.move_to(at(2_100), id(to)), Err(wrong));
    }
    one.receive(at(2_110), id(2), &said(None, None, CandidateState::Fit));
    assert_eq!(one.move_to(at(2_110), id(2)), Ok(()));
    let lost = VipEvent::Lost { epoch: 1, to: Some(id(2)), cause: LossReason::Released(ReleaseReason::Move) };
    assert_eq!(events(&run(&mut one, 2_110, 2_110)), [(2_110, lost)]);
}

#[test]
fn an_owner_that_hands_over_asks_again_when_another_takes_it() {
    let mut one = node(1, &[100, 100, 100]);
    one.skip_listening();
    run(&mut one, 0, 2_100);
    one.receive(at(2_100), id(2), &said(None, None, CandidateState::Fit));
    one.receive(at(2_100), id(3), &said(None, None, CandidateState::Fit));
    assert_eq!(one.move_to(at(2_110), id(2)), Ok(()));
    // The successor's loop was late at this moment, so it listens first, and the third is faster.
    one.receive(at(2_120), id(2), &said(None, None, CandidateState::Listening));
    run(&mut one, 2_110, 2_299);
    let mut done = Vec::new();
    for ms in (2_300..2_500).step_by(50) {
        one.receive(at(ms), id(3), &owner_beat(9, 3));
        one.receive(at(ms), id(2), &said(held(9, 3), Some(0), CandidateState::Fit));
        done.extend(run(&mut one, ms, ms + 49));
    }
    let asks = |(_, action): &(u64, Action)| match action {
        Action::Send { to, message } => *to == [id(3)] && message.purpose == MessageKind::Move(id(2)),
        _ => false,
    };
    assert!(done.iter().any(asks), "the third is not asked: {done:?}");
    // Once it is there, nobody is asked any more.
    one.receive(at(2_500), id(2), &owner_beat(10, 2));
    let done = run(&mut one, 2_500, 2_549);
    one.receive(at(2_550), id(3), &owner_beat(11, 3));
    assert!(![done, run(&mut one, 2_550, 4_000)].concat().iter().any(asks));
}

#[test]
fn a_better_one_gets_it_only_with_preempt_and_after_the_delay() {
    for (preempt, handed) in [(None, None), (Some(Duration::from_secs(5)), Some(8_000))] {
        let mut one = node(1, &[100, 200]);
        one.set_rules(at(0), VipRules { preempt, ..rules(&[100, 200]) });
        run(&mut one, 0, 2_999);
        assert!(one.owns());
        let mut done = Vec::new();
        for ms in 3_000..12_000 {
            if ms % 200 == 0 {
                one.receive(at(ms), id(2), &said(None, None, CandidateState::Fit));
            }
            done.extend(run(&mut one, ms, ms));
        }
        let lost = events(&done).first().map(|(ms, _)| *ms);
        assert_eq!(lost, handed);
    }
}

#[test]
fn claims_are_staggered_by_rank() {
    let rules = rules(&[100, 200, 200]);
    let rank = |node: u8, candidate_state| rules.rank(&id(node), &candidate_state);
    let mut order = [
        rank(1, CandidateState::Fit),
        rank(2, CandidateState::Recovering),
        rank(2, CandidateState::Fit),
        rank(3, CandidateState::Fit),
    ];
    order.sort();
    assert_eq!(
        order,
        [
            rank(2, CandidateState::Fit),
            rank(3, CandidateState::Fit),
            rank(1, CandidateState::Fit),
            rank(2, CandidateState::Recovering)
        ],
        "health excludes, then priority, then turn"
    );
    assert_eq!(rank(1, CandidateState::Unfit(Cause::Draining.into())), None);
    // Among equals every VIP prefers another.
    let best = |turn: usize| {
        let equal = VipRules { turn, ..super::tests::rules(&[100, 100, 100]) };
        (1..=3).min_by_key(|node| equal.rank(&id(*node), &CandidateState::Fit))
    };
    assert_eq!([0, 1, 2, 3].map(best), [Some(1), Some(2), Some(3), Some(1)]);
}

#[test]
fn more_candidates_than_take_part_are_witnesses() {
    let many: Vec<u8> = (0..30).map(|n| if n < 10 { 50 } else { 100 }).collect();
    let effective = rules(&many).normalized(id(1));
    assert_eq!(effective.candidates.len(), MAX_CANDIDATES);
    assert!(effective.candidates.iter().all(|one| one.priority == 100));
    assert_eq!(effective.witnesses.len(), 30 - MAX_CANDIDATES - 1, "all others but this node");
}

#[test]
fn an_owner_tells_a_large_cluster_at_a_bounded_rate() {
    let mut one = node(1, &[100]);
    let witnesses = (2..=250).map(id).collect();
    one.set_rules(at(0), VipRules { witnesses, ..rules(&[100]) });
    run(&mut one, 0, 10_000);
    assert!(one.owns());
    let done = run(&mut one, 10_001, 20_000);
    assert_eq!((sent(&done, 2), sent(&done, 17), sent(&done, 18), sent(&done, 250)), (50, 50, 10, 10));
    let most = done.iter().filter_map(|(_, action)| match action {
        Action::Send { to, .. } => Some(to.len()),
        _ => None,
    });
    assert!(most.max().unwrap_or(0) < 40);
}

#[test]
fn without_a_segment_nothing_is_said_but_questions_are_answered() {
    let mut one = Election::new(id(1), VIP, at(0));
    one.set_rules(at(0), rules(&[100, 100]));
    one.checked(at(0), Ok(()));
    one.set_fact(at(0), EligibilityFact::Segment, Err(Cause::NoSegment.into()));
    let done = run(&mut one, 0, 10_000);
    assert_eq!(done, [(0, Action::Delete)]);
    let status = one.status(at(10_000));
    assert_eq!(status.state, OwnershipState::Unavailable);
    assert_eq!(status.reason, Some(Cause::NoSegment.into()));
    let ask = VipMessage { purpose: MessageKind::Ask, ..owner_beat(3, 2) };
    one.receive(at(10_000), id(2), &ask);
    assert_eq!(sent(&run(&mut one, 10_000, 10_000), 2), 1);
}

#[test]
fn status_shows_the_owner_first_and_why_others_can_not() {
    let mut one = backup(1_000);
    one.receive(at(1_005), id(3), &said(held(5, 2), Some(0), CandidateState::Unfit(Cause::Draining.into())));
    let status = one.status(at(1_010));
    assert_eq!((status.state, status.owner, status.epoch), (OwnershipState::Owned, Some(id(2)), 5));
    let places: Vec<_> = status.candidates.iter().map(|place| (place.node, place.reason.clone())).collect();
    assert_eq!(places, [(id(2), None), (id(1), None), (id(3), Some(Cause::Draining.into()))]);
    let later = one.status(at(7_000));
    assert_eq!((later.state, later.owner), (OwnershipState::Unowned, None));
}

fn any_known() -> impl Strategy<Value = Option<HighestClaim>> {
    let holding = prop_oneof![
        Just(Holding::Held),
        (any::<u8>(), proptest::option::of(any::<[u8; 10]>())).prop_map(|(code, node)| {
            Holding::Released { why: ReleaseReason::from_code(code), successor: node.map(NodeId) }
        }),
    ];
    proptest::option::of((any::<u64>(), any::<u8>(), any::<[u8; 10]>(), holding).prop_map(
        |(epoch, priority, owner, holding)| HighestClaim {
            claim: Claim::new(VIP, epoch, priority, NodeId(owner)),
            holding,
        },
    ))
}

pub(super) fn any_message() -> impl Strategy<Value = VipMessage> {
    let state = prop_oneof![
        Just(CandidateState::Witness),
        Just(CandidateState::Fit),
        Just(CandidateState::Recovering),
        Just(CandidateState::Listening),
        ("[ -~]{0,80}", any::<(u16, u16)>()).prop_map(|(reason, (code, argument))| {
            CandidateState::Unfit(Unfit::new(Cause::from_wire(code, argument), reason))
        }),
        (5..=255_u8).prop_map(CandidateState::Other),
    ];
    let purpose = prop_oneof![
        Just(MessageKind::Beat),
        Just(MessageKind::Ask),
        Just(MessageKind::Answer),
        any::<[u8; 10]>().prop_map(|node| MessageKind::Move(NodeId(node))),
        Just(MessageKind::Pausing),
        (5..=255_u8).prop_map(MessageKind::Other),
    ];
    let heard = proptest::option::of(0_u64..60_000);
    (purpose, any_known(), heard, state).prop_map(|(purpose, known, heard, state)| VipMessage {
        vip: VIP,
        purpose,
        known,
        heard: heard.map(Duration::from_millis),
        state,
    })
}

proptest! {
    #[test]
    fn no_order_of_messages_makes_knowledge_shrink(
        messages in proptest::collection::vec((0_u8..6, any_message()), 0..60),
    ) {
        let mut one = node(1, &[100, 100, 100]);
        let mut before: Option<HighestClaim> = None;
        for (ms, (from, message)) in (0..).step_by(7).zip(messages) {
            one.receive(at(ms), id(from), &message);
            one.poll(at(ms));
            if let (Some(old), Some(new)) = (before, one.knowledge().highest()) {
                prop_assert!(new.claim >= old.claim);
                let revived = new.claim == old.claim && old.holder().is_none() && new.holder().is_some();
                prop_assert!(!revived, "{old:?} became {new:?}");
            }
            before = one.knowledge().highest();
        }
    }
}
