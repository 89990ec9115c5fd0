//! What a worker can say and what comes of it, a table or a story for each rule.

use super::tests::*;
use super::*;
use crate::cause::Cause;

const WORKER: u8 = 7;
const OTHER: u8 = 8;
const MASTER: u8 = 9;

fn witness(known: Option<HighestClaim>, heard: Option<u64>) -> VipMessage {
    said(known, heard, CandidateState::Witness)
}

/// Node 1 of three whose owner 2 has been silent since `from`, with the other candidate asked and answering
/// that it hears nothing either, and what else is said. When it claims.
fn claimed_at(from: u64, to: u64, mut say: impl FnMut(u64, &mut Election)) -> Option<u64> {
    let mut one = backup(from);
    for ms in from + 1..to {
        if ms % 20 == 0 {
            one.receive(at(ms), id(3), &said(held(5, 2), Some(ms - from), CandidateState::Fit));
        }
        say(ms, &mut one);
        let done = run(&mut one, ms, ms);
        if let Some((ms, _)) =
            events(&done).iter().find(|(_, event)| matches!(event, VipEvent::Gained { .. }))
        {
            return Some(*ms);
        }
    }
    None
}

#[test]
fn nothing_that_one_worker_says_changes_what_is_known() {
    for (says, known) in [
        ("it owns it", held(6, WORKER)),
        ("it owns it with the highest number", held(u64::MAX, WORKER)),
        ("the owner released it", released(5, 2, None)),
        ("the owner released it to this node", released(5, 2, Some(1))),
        ("another owns it", held(6, 3)),
        ("this node owns it", held(6, 1)),
        ("this node released it", released(6, 1, None)),
        ("another released a higher claim", released(u64::MAX - 1, 3, None)),
    ] {
        for heard in [None, Some(0)] {
            let mut one = backup(1_000);
            let before = (one.knowledge().highest(), one.knowledge().heard_directly());
            one.receive(at(1_001), id(WORKER), &witness(known, heard));
            let done = run(&mut one, 1_001, 1_009);
            assert_eq!((one.knowledge().highest(), one.knowledge().heard_directly()), before, "{says}");
            assert!(events(&done).is_empty() && !one.owns(), "{says}: {done:?}");
        }
    }
}

#[test]
fn nothing_that_one_worker_says_takes_it_from_its_owner_or_moves_it() {
    for purpose in [
        MessageKind::Beat,
        MessageKind::Ask,
        MessageKind::Answer,
        MessageKind::Move(id(2)),
        MessageKind::Other(9),
    ] {
        for known in [
            None,
            held(2, WORKER),
            held(2, 2),
            held(u64::MAX, 2),
            released(1, 1, Some(2)),
            released(9, 2, None),
        ] {
            let mut one = node(1, &[100, 100]);
            run(&mut one, 0, 2_100);
            assert!(one.owns());
            one.receive(at(2_100), id(2), &said(None, None, CandidateState::Fit));
            let message = VipMessage { purpose, ..witness(known, Some(0)) };
            one.receive(at(2_101), id(WORKER), &message);
            let done = run(&mut one, 2_101, 2_200);
            assert!(one.owns() && events(&done).is_empty(), "{purpose:?} {known:?}: {done:?}");
        }
    }
}

#[test]
fn only_masters_have_it_moved() {
    for (from, moves) in [(WORKER, false), (3, false), (MASTER, true)] {
        let mut one = node(1, &[100, 100, 100]);
        run(&mut one, 0, 2_100);
        for n in [2, 3] {
            one.receive(at(2_100), id(n), &said(None, None, CandidateState::Fit));
        }
        let move_request = VipMessage { purpose: MessageKind::Move(id(2)), ..witness(None, None) };
        one.receive(at(2_101), id(from), &move_request);
        run(&mut one, 2_101, 2_101);
        assert_eq!(!one.owns(), moves, "{from}");
    }
}

#[test]
fn one_worker_vetoes_for_three_seconds_two_for_as_long_as_they_say_and_a_master_too() {
    let plain = claimed_at(1_000, 2_000, |_, _| ()).unwrap();
    let peer_link = |who: &'static [u8], known: Option<HighestClaim>| {
        claimed_at(1_000, 20_000, move |ms, one| {
            if ms % 20 == 0 {
                who.iter().for_each(|from| one.receive(at(ms), id(*from), &witness(known, Some(0))));
            }
        })
    };
    let most = plain + SOLO.as_millis() as u64;
    // What else it may say of it: the very claim, a higher one, its own, one that can't be.
    for (known, bound) in
        [(held(5, 2), most), (held(99, 3), most), (held(6, WORKER), plain), (held(u64::MAX, 3), plain)]
    {
        let claimed = peer_link(&[WORKER], known).unwrap();
        assert!(claimed <= bound, "{known:?}: {claimed} and not {bound}");
    }
    assert!(peer_link(&[WORKER], held(5, 2)).unwrap() > plain + 2_500, "an honest one is worth something");
    assert_eq!(peer_link(&[WORKER, OTHER], held(5, 2)), None);
    assert_eq!(peer_link(&[MASTER], held(5, 2)), None);
}

#[test]
fn one_worker_alone_can_not_hold_up_a_first_claim_either() {
    let claims = |lies: bool| {
        let mut one = node(1, &[100]);
        (0..20_000).find(|ms| {
            if lies && ms % 20 == 0 {
                one.receive(at(*ms), id(WORKER), &witness(held(3, 2), Some(0)));
            }
            run(&mut one, *ms, *ms);
            one.owns()
        })
    };
    let (plain, held_up) = (claims(false).unwrap(), claims(true).unwrap());
    assert!(held_up <= plain + SOLO.as_millis() as u64, "{plain} {held_up}");
}

#[test]
fn two_workers_that_hear_the_same_higher_owner_end_an_ownership() {
    let owner = |who: &[(u8, Option<HighestClaim>, u64)]| {
        let mut one = lonely_owner();
        for (from, known, heard) in who {
            one.receive(at(1_000), id(*from), &witness(*known, Some(*heard)));
        }
        run(&mut one, 1_000, 1_000);
        one.owns()
    };
    assert!(owner(&[(WORKER, held(7, 2), 10)]));
    assert!(owner(&[(WORKER, held(7, 2), 10), (WORKER, held(7, 2), 20)]), "one that says it twice");
    assert!(owner(&[(WORKER, held(7, 2), 10), (OTHER, held(7, 3), 10)]), "not the same");
    assert!(owner(&[(WORKER, held(7, 2), 10), (OTHER, held(7, 2), 2_000)]), "one has not heard it lately");
    assert!(!owner(&[(WORKER, held(7, 2), 10), (OTHER, held(7, 2), 10)]));
    assert!(owner(&[(WORKER, released(7, 2, None), 10), (OTHER, released(7, 2, None), 10)]));
}

#[test]
fn epochs_step_and_never_lock() {
    let epochs = [0, 1, 5, STEP, STEP + 5, STEP + 6, CEILING - 1, CEILING, u64::MAX - 1, u64::MAX];
    for epoch in epochs {
        let mut one = backup(1_000);
        one.receive(at(1_001), id(3), &owner_beat(epoch, 3));
        let adopted = one.knowledge().highest().is_some_and(|known| known.claim.owner == id(3));
        // 5 of the lower id is higher or lower by chance; what is known is 5.
        if epoch != 5 {
            assert_eq!(adopted, epoch > 5 && epoch <= 5 + STEP, "{epoch}");
        }
        assert!(one.knowledge().next_epoch().is_some_and(|next| next <= 5 + STEP + 1));
    }
}

#[test]
fn persisted_epochs_are_checked_too() {
    for (epoch, first) in [(41, 42), (CEILING / 2 - 1, CEILING / 2), (CEILING / 2, 1), (u64::MAX, 1)] {
        let mut one = node(1, &[100]);
        assert_eq!(one.set_minimum_epoch(epoch), epoch < CEILING / 2, "{epoch}");
        run(&mut one, 0, 1_000);
        assert_eq!((one.owns(), one.epoch()), (true, first), "{epoch}");
    }
    // What this node remembers is not held against what all others say.
    let mut one = backup(1_000);
    one.set_minimum_epoch(CEILING / 2 - 1);
    assert_eq!(one.knowledge().next_epoch(), Some(6));
}

#[test]
fn what_workers_say_of_higher_numbers_lifts_the_next_claim_by_a_bounded_step() {
    // All candidates have lost what they knew; a worker remembers.
    let mut one = node(1, &[100]);
    one.receive(at(10), id(WORKER), &witness(held(7, 2), None));
    run(&mut one, 0, 1_000);
    assert_eq!((one.owns(), one.epoch()), (true, 8));
    // An owner takes a higher number too, now and then; the address stays.
    let mut news = 0;
    for ms in 1_000..100_000 {
        one.receive(at(ms), id(WORKER), &witness(released(one.epoch() + STEP - 1, 2, None), None));
        let before = one.epoch();
        let done = run(&mut one, ms, ms);
        assert!(one.owns() && events(&done).is_empty());
        assert!(one.epoch() - before < STEP);
        news += u64::from(one.epoch() > before);
    }
    assert!(news <= 10, "{news} in 99 s");
    assert!(one.epoch() < STEP);
    // Who does not own it does not get farther and farther away.
    let mut two = backup(1_000);
    for _ in 0..1_000 {
        two.receive(at(1_001), id(WORKER), &witness(released(STEP, 2, None), None));
        two.receive(at(1_001), id(WORKER), &witness(released(CEILING - 1, 2, None), None));
    }
    assert!(two.knowledge().next_epoch().is_some_and(|next| next < 5 + STEP / 2));
}

#[test]
fn gossip_raises_the_number_only_from_those_who_may_own_it() {
    for (from, epoch, next) in
        [(WORKER, 40, 6), (2, 40, 41), (MASTER, 40, 41), (2, u64::MAX, 6), (3, CEILING - 1, 6)]
    {
        let mut one = backup(1_000);
        one.gossiped(at(1_000), &id(from), epoch);
        assert_eq!(one.knowledge().next_epoch(), Some(next), "{from} {epoch}");
    }
}

#[test]
fn an_owner_that_is_no_candidate_any_more_is_heard_for_a_while() {
    let mut one = backup(1_000);
    let mut rules = rules(&[100, 100, 100]);
    rules.candidates.remove(1);
    one.set_rules(at(1_000), rules);
    let mut claimed = None;
    for ms in 1_001..10_000 {
        if ms % 20 == 0 {
            one.receive(at(ms), id(2), &owner_beat(5, 2));
            one.receive(
                at(ms),
                id(3),
                &said(held(5, 2), None, CandidateState::Unfit(Cause::Draining.into())),
            );
        }
        run(&mut one, ms, ms);
        if one.owns() {
            claimed.get_or_insert(ms);
        }
    }
    assert!(claimed.is_some_and(|ms| (4_000..4_400).contains(&ms)), "{claimed:?}");
}

#[test]
fn a_named_successor_is_a_candidate_before_all_have_heard_that_it_is() {
    let mut one = backup(1_000);
    one.receive(at(1_001), id(WORKER), &owner_beat(6, WORKER));
    assert_eq!(one.epoch(), 5);
    one.receive(at(1_002), id(2), &said(released(5, 2, Some(WORKER)), None, CandidateState::Fit));
    one.receive(at(1_003), id(WORKER), &owner_beat(6, WORKER));
    assert_eq!(one.knowledge().holder(), Some(id(WORKER)));
}
