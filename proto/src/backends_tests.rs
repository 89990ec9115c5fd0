//! Tests of the ranking.

use proptest::prelude::*;

use super::*;
use crate::health::ServiceHealth;
use crate::path::Evidence;
use crate::pulse::Liveness;
use crate::record::NodeRecord;
use crate::view::MemberView;

fn id(n: u8) -> NodeId {
    NodeId([n; 10])
}

fn backend(n: u8, state: BackendState, weight: u16) -> Backend {
    Backend {
        node: id(n),
        name: format!("m{n}").parse().unwrap(),
        address: SocketAddr::from(([10, 0, 0, n], 6443)),
        weight,
        state,
        cause: None,
        detail: Detail::default(),
        since: UnixMs(0),
        rtt: None,
        probe_only: false,
    }
}

fn member(n: u8, heard: bool, readiness: Option<Readiness>) -> MemberView {
    let offer = |readiness| ServiceOffer {
        address: SocketAddr::from(([10, 0, 0, n], 6443)),
        weight: 100,
        health: ServiceHealth {
            readiness,
            cause: Cause::Connected,
            detail: Detail::default(),
            since: UnixMs(7),
        },
        check_ms: None,
    };
    let services = readiness.map(|readiness| (ServiceName::kube_api(), offer(readiness)));
    let services = services.into_iter().collect();
    let record = NodeRecord { services, ..NodeRecord::new(format!("m{n}").parse().unwrap()) };
    MemberView { id: id(n), record, heard, since: UnixMs(0) }
}

fn states(
    members: &[MemberView],
    paths: &[(u8, &[Evidence])],
    last_good: &[u8],
) -> BTreeMap<u8, BackendState> {
    let view = ClusterView {
        members: members.iter().map(|member| (member.id, member.clone())).collect(),
        ..ClusterView::default()
    };
    let paths = paths
        .iter()
        .map(|(n, evidence)| {
            let mut path = BackendPath::new(UnixMs(0));
            for one in *evidence {
                path.observe(Moment::ZERO, UnixMs(0), *one);
            }
            ((id(*n), ServiceName::kube_api()), path)
        })
        .collect();
    let last_good: Vec<KnownBackend> = last_good
        .iter()
        .map(|n| KnownBackend {
            node: id(*n),
            name: format!("m{n}").parse().unwrap(),
            address: SocketAddr::from(([10, 0, 0, *n], 6443)),
            weight: 100,
        })
        .collect();
    backends(&ServiceName::kube_api(), &view, &paths, &last_good, |who| *who != id(9))
        .into_iter()
        .map(|one| (one.node.0[0], one.state))
        .collect()
}

#[test]
fn the_state_follows_from_view_and_last_known_good() {
    use Evidence::Unanswered;
    const LOST: Evidence = Evidence::Liveness(Liveness::Silent);
    let ready = Some(Readiness::Ready);
    let table = [
        (states(&[member(1, true, ready)], &[], &[]), Some(BackendState::Ready)),
        (states(&[member(1, true, Some(Readiness::Alive))], &[], &[]), Some(BackendState::Alive)),
        (states(&[member(1, true, Some(Readiness::NotReady))], &[], &[]), Some(BackendState::NotReady)),
        (states(&[member(1, true, Some(Readiness::Down))], &[], &[]), Some(BackendState::Down)),
        (states(&[member(1, false, ready)], &[(1, &[LOST])], &[]), Some(BackendState::Suspect)),
        (
            states(
                &[member(1, false, ready)],
                &[(1, &[LOST, Unanswered, Unanswered, Unanswered, Unanswered])],
                &[],
            ),
            Some(BackendState::Down),
        ),
        // No node has answered yet: the last known good list serves.
        (states(&[], &[], &[1]), Some(BackendState::Unknown)),
        // A live member without an offer is no backend, whatever the old list contains.
        (states(&[member(1, true, None)], &[], &[1]), None),
        // A removed node is no backend.
        (states(&[], &[], &[9]), None),
    ];
    for (i, (states, expected)) in table.into_iter().enumerate() {
        assert_eq!(states.values().next().copied(), expected, "row {i}");
    }
}

#[test]
fn a_known_backend_ends_where_another_node_offers_its_address() {
    let mut anew = member(2, true, Some(Readiness::Ready));
    anew.record.services.values_mut().for_each(|offer| offer.address = ([10, 0, 0, 1], 6443).into());
    assert_eq!(states(&[anew], &[], &[1]), [(2, BackendState::Ready)].into());
    let other = member(2, true, Some(Readiness::Ready));
    assert_eq!(states(&[other], &[], &[1]).len(), 2);
}

#[test]
fn better_states_come_first_and_the_own_instance_before_equal_ones() {
    let backends = [
        backend(1, BackendState::Down, 100),
        backend(2, BackendState::Ready, 100),
        backend(3, BackendState::Ready, 100),
        backend(4, BackendState::Alive, 100),
        backend(5, BackendState::Ready, 0),
    ];
    let order =
        Balancer::new(1).rank(Balance::LeastConnections, &backends, Some(id(3)), None, Moment::ZERO, idle);
    assert_eq!(order, [2, 1, 4, 3, 0]);
}

fn idle(_: &NodeId) -> BackendLoad {
    BackendLoad::default()
}

fn shares(balance: Balance, weights: &[u16], rounds: usize) -> Vec<usize> {
    let backends: Vec<Backend> =
        weights.iter().enumerate().map(|(i, w)| backend(i as u8 + 1, BackendState::Ready, *w)).collect();
    let mut balancer = Balancer::new(42);
    let mut counts = vec![0; weights.len()];
    for _ in 0..rounds {
        let usage = |node: &NodeId| BackendLoad {
            connections: counts[usize::from(node.0[0]) - 1] as u64,
            ..BackendLoad::default()
        };
        let first = balancer.rank(balance, &backends, None, None, Moment::ZERO, usage)[0];
        balancer.connection_assigned(&backends, first, Moment::ZERO);
        counts[first] += 1;
    }
    counts
}

#[test]
fn balances_share_by_weight() {
    for balance in [Balance::LeastConnections, Balance::RoundRobin, Balance::Nearest] {
        let equal = shares(balance, &[100, 100, 100], 300);
        assert!(equal.iter().all(|count| (99..=101).contains(count)), "{balance}: {equal:?}");
        let shared = shares(balance, &[200, 100], 300);
        assert!((199..=201).contains(&shared[0]), "{balance}: {shared:?}");
    }
}

/// The backend of each of 3,000 clients.
fn by_source(backends: &[Backend], own: Option<NodeId>) -> Vec<NodeId> {
    let of = |n: u16| {
        let [a, b] = n.to_be_bytes();
        let client = Some([10, 1, a, b].into());
        let order = Balancer::new(7).rank(Balance::Source, backends, own, client, Moment::ZERO, idle);
        backends[order[0]].node
    };
    (0..3_000).map(of).collect()
}

#[test]
fn by_source_only_the_clients_of_a_lost_backend_move() {
    let all = [1, 2, 3, 4].map(|n| backend(n, BackendState::Ready, 100));
    let before = by_source(&all, None);
    for n in 1..=4 {
        let share = before.iter().filter(|node| **node == id(n)).count();
        assert!((650..850).contains(&share), "{share} of 3000 at {n}");
    }
    assert_eq!(before, by_source(&all, Some(id(2))), "the same on every node, also on that of a backend");
    for lost in [BackendState::Down, BackendState::Draining] {
        let mut less = all.clone();
        less[1].state = lost;
        let without = [all[0].clone(), all[2].clone(), all[3].clone()];
        let now = by_source(&less, None);
        assert_eq!(now, by_source(&without, None), "as if it were none");
        let mut taken = [0; 5];
        for (old, new) in before.iter().zip(&now) {
            assert!(old == new || *old == id(2), "a client of another backend moved");
            taken[usize::from(new.0[0])] += usize::from(*old == id(2));
        }
        assert!([1, 3, 4].iter().all(|n| taken[*n] > 180), "its clients are shared: {taken:?}");
    }
    let mut heavy = all.clone();
    heavy[0].weight = 200;
    let now = by_source(&heavy, None);
    let share = now.iter().filter(|node| **node == id(1)).count();
    assert!((1_100..1_300).contains(&share), "two fifths of them: {share}");
    assert!(before.iter().zip(&now).all(|(old, new)| old == new || *new == id(1)), "only towards it");
}

#[test]
fn by_source_an_address_is_one_client_however_it_is_written_and_a_machine_is_one() {
    let all = [1, 2, 3].map(|n| backend(n, BackendState::Ready, 100));
    let first = |client: &str, own: u8| {
        let client = Some(client.parse().unwrap());
        Balancer::new(u64::from(own)).rank(Balance::Source, &all, Some(id(own)), client, Moment::ZERO, idle)
            [0]
    };
    for n in 1..50 {
        assert_eq!(first(&format!("10.1.0.{n}"), 8), first(&format!("::ffff:10.1.0.{n}"), 9));
    }
    let of = |own| {
        assert_eq!(first("127.0.0.1", own), first("::1", own), "one machine");
        first("127.0.0.1", own)
    };
    let machines: std::collections::BTreeSet<usize> = (10..60).map(of).collect();
    assert_eq!(machines.len(), 3, "machines are spread");
}

#[test]
fn a_newcomer_to_round_robin_gets_its_share_and_no_more() {
    let old = [backend(1, BackendState::Ready, 100), backend(2, BackendState::Ready, 100)];
    let all = [old[0].clone(), old[1].clone(), backend(3, BackendState::Ready, 100)];
    let mut balancer = Balancer::new(7);
    for _ in 0..1000 {
        let first = balancer.rank(Balance::RoundRobin, &old, None, None, Moment::ZERO, idle)[0];
        balancer.connection_assigned(&old, first, Moment::ZERO);
    }
    let mut counts = [0; 3];
    for _ in 0..30 {
        let first = balancer.rank(Balance::RoundRobin, &all, None, None, Moment::ZERO, idle)[0];
        balancer.connection_assigned(&all, first, Moment::ZERO);
        counts[first] += 1;
    }
    assert!(counts.iter().all(|count| (9..=11).contains(count)), "{counts:?}");
}

#[test]
fn the_nearest_comes_first_by_coarse_steps_and_load_decides_within_one() {
    let ms = |rtt| Some(Duration::from_millis(rtt));
    let at = |n, rtt| Backend { rtt, ..backend(n, BackendState::Ready, 100) };
    let backends = [at(1, None), at(2, ms(12)), at(3, ms(19)), at(4, ms(1)), at(5, ms(700)), at(6, ms(90))];
    let usage =
        |node: &NodeId| BackendLoad { connections: u64::from(*node == id(2)), ..BackendLoad::default() };
    let order = Balancer::new(1).rank(Balance::Nearest, &backends, Some(id(6)), None, Moment::ZERO, usage);
    assert_eq!(order, [5, 3, 2, 1, 4, 0]);
}

#[test]
fn the_first_by_name_gets_all_until_it_is_full() {
    let backends = [1, 2, 3].map(|n| backend(n, BackendState::Ready, 100));
    let first = |usage: &dyn Fn(&NodeId) -> BackendLoad| {
        Balancer::new(9).rank(Balance::First, &backends, None, None, Moment::ZERO, usage)
    };
    assert_eq!(first(&|_| BackendLoad { connections: 5, ..BackendLoad::default() }), [0, 1, 2]);
    assert_eq!(first(&|node| BackendLoad { full: *node == id(1), ..BackendLoad::default() }), [1, 2, 0]);
}

#[test]
fn full_and_unresponsive_backends_rank_between_good_and_not_good() {
    let backends = [
        (1, BackendState::Ready),
        (2, BackendState::Suspect),
        (3, BackendState::Alive),
        (4, BackendState::Ready),
    ]
    .map(|(n, state)| backend(n, state, 100));
    let usage = |node: &NodeId| BackendLoad {
        full: *node == id(1),
        unresponsive: *node == id(4),
        ..BackendLoad::default()
    };
    let order = Balancer::new(1).rank(Balance::LeastConnections, &backends, None, None, Moment::ZERO, usage);
    assert_eq!((order[0], order[3]), (2, 1));
}

#[test]
fn a_probe_only_backend_ranks_after_live_ones_and_before_those_not_good() {
    let all = |heard| {
        [(1, BackendState::Ready), (2, BackendState::Alive), (3, BackendState::Draining)]
            .map(|(n, state)| Backend { probe_only: n == 1, ..backend(n, state, 100) })
            .map(|one| Backend {
                state: if one.probe_only || heard { one.state } else { BackendState::NotReady },
                ..one
            })
    };
    let order = |backends: &[Backend], own| {
        Balancer::new(1).rank(Balance::LeastConnections, backends, own, None, Moment::ZERO, idle)
    };
    assert_eq!(order(&all(true), None), [1, 0, 2]);
    assert_eq!(order(&all(false), None)[0], 0, "nobody better: it is used all the same");
    let usage = |node: &NodeId| BackendLoad { full: *node == id(2), ..BackendLoad::default() };
    let full = Balancer::new(1).rank(Balance::LeastConnections, &all(true), None, None, Moment::ZERO, usage);
    assert_eq!(full, [0, 1, 2]);
    assert_eq!(
        held_action(&id(1), &all(true)),
        HeldAction::Keep,
        "what is held there is not given up for that"
    );
}

#[test]
fn a_silent_agent_with_an_open_port_makes_a_backend_probe_only() {
    let found = |evidence: &[Evidence]| {
        let view = ClusterView {
            members: BTreeMap::from([(id(1), member(1, false, Some(Readiness::Ready)))]),
            ..ClusterView::default()
        };
        let mut path = BackendPath::new(UnixMs(0));
        for one in evidence {
            path.observe(Moment::ZERO, UnixMs(0), *one);
        }
        let paths = BTreeMap::from([((id(1), ServiceName::kube_api()), path)]);
        let one = backends(&ServiceName::kube_api(), &view, &paths, &[], |_| true).remove(0);
        (one.state, one.probe_only)
    };
    let (lost, heard) = (Evidence::Liveness(Liveness::Silent), Evidence::Liveness(Liveness::Alive));
    let connected = Evidence::Connected { took: Duration::from_millis(1) };
    assert_eq!(found(&[heard, connected]), (BackendState::Ready, false));
    assert_eq!(found(&[lost, connected]), (BackendState::Ready, true));
    assert_eq!(found(&[lost, connected, heard]), (BackendState::Ready, false));
}

/// How many of 100 new connections go to the first backend, which returned `after` this long, when both had
/// `before` connections before.
fn caught_up(balance: Balance, after: u64, before: u64) -> u64 {
    let at = |s: u64| Moment::ZERO.after(Duration::from_secs(s));
    let table = |state| [backend(1, state, 100), backend(2, BackendState::Ready, 100)];
    let mut balancer = Balancer::new(3);
    balancer.update(&table(BackendState::Ready), at(0));
    balancer.update(&table(BackendState::Down), at(100));
    let mut counts = [0, before];
    for _ in 0..before {
        balancer.connection_assigned(&table(BackendState::Down), 1, at(100));
    }
    balancer.update(&table(BackendState::Ready), at(200));
    for _ in 0..100 {
        let now = at(200 + after);
        let usage = |node: &NodeId| BackendLoad {
            connections: counts[usize::from(node.0[0]) - 1],
            ..BackendLoad::default()
        };
        let first = balancer.rank(balance, &table(BackendState::Ready), None, None, now, usage)[0];
        balancer.connection_assigned(&table(BackendState::Ready), first, now);
        counts[first] += 1;
    }
    counts[0]
}

#[test]
fn a_returning_backend_is_not_flooded() {
    for balance in [Balance::LeastConnections, Balance::RoundRobin] {
        assert!(caught_up(balance, 0, 1000) <= 25, "{balance}: {}", caught_up(balance, 0, 1000));
        let half = caught_up(balance, 15, 0);
        assert!((30..=36).contains(&half), "{balance}: half the weight is a third: {half}");
    }
    assert_eq!(caught_up(Balance::RoundRobin, 31, 1000), 50);
    assert_eq!(caught_up(Balance::LeastConnections, 31, 1000), 100, "in the end they are level again");
}

#[test]
fn suspect_and_the_first_tables_are_no_return() {
    let at = |s: u64| Moment::ZERO.after(Duration::from_secs(s));
    let table = |states: &[BackendState]| -> Vec<Backend> {
        states.iter().zip(1..).map(|(state, n)| backend(n, *state, 100)).collect()
    };
    let mut balancer = Balancer::new(3);
    let weight = |balancer: &Balancer, n, now| balancer.weight(&backend(n, BackendState::Ready, 100), now);
    balancer.update(&table(&[BackendState::Unknown]), at(0));
    balancer.update(&table(&[BackendState::Ready, BackendState::Ready]), at(1));
    assert_eq!((weight(&balancer, 1, at(1)), weight(&balancer, 2, at(1))), (100_000, 100_000));
    balancer.update(&table(&[BackendState::Suspect, BackendState::Ready]), at(40));
    balancer.update(&table(&[BackendState::Ready; 3]), at(41));
    assert_eq!(weight(&balancer, 1, at(41)), 100_000);
    assert_eq!(weight(&balancer, 3, at(41)), 2_000, "a newcomer");
    assert_eq!(weight(&balancer, 3, at(56)), 50_000);
    assert_eq!(weight(&balancer, 3, at(71)), 100_000);
}

#[test]
fn held_connections_drain_when_another_backend_is_better() {
    use BackendState::{Alive, Down, Draining, NotReady, Ready, Suspect, Unknown};
    // The state of the holding backend (none: it is gone), of the others, and the verdict.
    let table: &[(Option<BackendState>, &[BackendState], HeldAction)] = &[
        (Some(Down), &[Ready], HeldAction::Reset),
        (Some(Down), &[Down, Alive], HeldAction::Reset),
        (Some(Down), &[], HeldAction::Keep),
        (Some(Down), &[Down], HeldAction::Keep),
        (Some(Down), &[Suspect, NotReady, Draining, Unknown], HeldAction::Keep),
        (Some(Suspect), &[Ready], HeldAction::Keep),
        (Some(NotReady), &[Ready], HeldAction::Drain),
        (Some(NotReady), &[NotReady], HeldAction::Keep),
        (Some(Draining), &[Alive], HeldAction::Drain),
        (Some(Draining), &[Suspect], HeldAction::Keep),
        (Some(Unknown), &[Ready], HeldAction::Keep),
        (Some(Ready), &[Ready], HeldAction::Keep),
        (None, &[Ready], HeldAction::Reset),
        (None, &[Down], HeldAction::Reset),
        (None, &[], HeldAction::Reset),
    ];
    for (own, others, verdict) in table {
        let own = own.iter().map(|state| backend(1, *state, 100));
        let others = others.iter().zip(2..).map(|(state, n)| backend(n, *state, 100));
        let backends: Vec<Backend> = own.chain(others).collect();
        assert_eq!(held_action(&id(1), &backends), *verdict, "{backends:?}");
    }
    for closed in [Cause::PortClosed, Cause::LoopbackOnly] {
        let closed = Backend { cause: Some(closed), ..backend(1, Down, 100) };
        let verdict = held_action(&id(1), &[closed, backend(2, Ready, 100)]);
        assert_eq!(verdict, HeldAction::Drain, "it may only have closed its port, and answer what it holds");
    }
    let stopped = Backend { cause: Some(Cause::AgentStopped), ..backend(1, Draining, 100) };
    assert_eq!(
        held_action(&id(1), &[stopped, backend(2, Ready, 100)]),
        HeldAction::Keep,
        "its apiserver serves on"
    );
}

#[test]
fn drained_connections_are_closed_over_the_spread() {
    let mut tenths = [0; 10];
    for (seed, number) in (0..100).flat_map(|seed| (0..10).map(move |number| (seed, number))) {
        let after = close_delay(seed, number) - GRACE;
        tenths[(after.as_millis() * 10 / SPREAD.as_millis()) as usize] += 1;
    }
    assert!(tenths.iter().all(|count| (60..=140).contains(count)), "{tenths:?}");
}

fn any_state() -> impl Strategy<Value = BackendState> {
    proptest::sample::select(BackendState::ALL.to_vec())
}

proptest! {
    #[test]
    fn ranking_keeps_everyone_and_never_puts_worse_before_better(
        states in proptest::collection::vec((any_state(), 0u16..=256), 0..12),
        seed: u64,
        balance in proptest::sample::select(Balance::ALL.to_vec()),
    ) {
        let backends: Vec<Backend> = states
            .iter()
            .enumerate()
            .map(|(i, (state, weight))| backend(i as u8, *state, *weight))
            .collect();
        let order = Balancer::new(seed).rank(balance, &backends, None, None, Moment::ZERO, idle);
        let mut sorted = order.clone();
        sorted.sort_unstable();
        prop_assert_eq!(sorted, (0..backends.len()).collect::<Vec<_>>());
        prop_assert!(order.windows(2).all(|pair| backends[pair[0]].state <= backends[pair[1]].state));
    }
}
