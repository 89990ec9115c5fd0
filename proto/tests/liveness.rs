//! Liveness under loss, over years of virtual time: pulses and connects of one node to one master, which is
//! always there until its power or the path is cut, and what up to two other masters report. Every Down before
//! that is a false alarm.
//!
//! `LIVENESS_SEEDS=1000 cargo test --profile simulation -p proto --test liveness -- --nocapture` is what was reported;
//! without it some dozens keep it so. A seed that fails prints itself; `LIVENESS_SEED=N` replays it.

mod simulation;

use std::time::Duration;

use proto::pulse::Pace;
use proto::topology::{Place, pace};
use simulation::{World, run};

fn seeds() -> std::ops::Range<u64> {
    let read = |name: &str| std::env::var(name).ok().and_then(|text| text.parse::<u64>().ok());
    match read("LIVENESS_SEED") {
        Some(seed) => seed..seed + 1,
        None => 0..read("LIVENESS_SEEDS").unwrap_or(40),
    }
}

const TEN_MINUTES: u64 = 600_000;

/// Nobody else, one other master, two.
const REPORTERS: [u8; 3] = [0, 1, 2];

/// Paces of a node in a small cluster: a master's, which is the fastest, and a worker's.
fn paces() -> [Pace; 2] {
    [true, false].map(|is_master| pace(Place::Everyone, is_master, 3, 10))
}

/// A node whose regular pulses are somewhere between those of others.
fn world(seed: u64, pace: Pace, loss: u64, reporters: u8, length_ms: u64) -> World {
    let phase = Duration::from_millis(seed * 37 % 200).min(pace.interval);
    let reporters_pace = Pace::FAST;
    World { reporters, reporters_pace, ..World::new(Pace { phase, ..pace }, loss, length_ms) }
}

/// False alarms in the hours of all seeds.
fn alarms(pace: Pace, loss: u64, reporters: u8) -> (usize, f64) {
    let (mut suspicions, mut downs) = (0, 0);
    for seed in seeds() {
        let outcome = run(seed, world(seed, pace, loss, reporters, TEN_MINUTES));
        suspicions += outcome.suspicions;
        downs += outcome.downs.len();
        for ms in outcome.downs {
            println!("LIVENESS_SEED={seed}, {reporters} reporters, {loss} % loss: down at {ms} ms");
        }
    }
    let hours = (seeds().end - seeds().start) as f64 / 6.0;
    println!(
        "every {:?}, {loss} % each way, {reporters} reporters: {downs} downs in {hours:.0} h, {:.1} suspicions an hour",
        pace.interval,
        f64::from(suspicions) / hours
    );
    (downs, hours)
}

#[test]
fn at_ten_percent_loss_each_way_nobody_is_called_down() {
    for (pace, reporters) in paces().into_iter().flat_map(|pace| REPORTERS.map(|reporters| (pace, reporters)))
    {
        assert_eq!(alarms(pace, 10, reporters).0, 0);
    }
}

#[test]
fn at_twenty_percent_loss_each_way_a_pair_sees_less_than_one_false_down_in_ten_hours() {
    for (pace, reporters) in paces().into_iter().flat_map(|pace| REPORTERS.map(|reporters| (pace, reporters)))
    {
        let (downs, hours) = alarms(pace, 20, reporters);
        // One may fall into the few hours of a short run.
        assert!(downs as f64 <= (hours * 0.1).max(1.0), "{downs} in {hours} hours");
    }
}

/// After how many milliseconds it is down, over all seeds, in order.
fn cuts(pace: Pace, loss: u64, reporters: u8, path: bool) -> Vec<u64> {
    let one = |seed: u64| {
        // Not always at the same moment between two pulses.
        let cut = 20_000 + seed * 7 % 200;
        let world = world(seed, pace, loss, reporters, 30_000);
        let outcome = run(seed, if path { World { path_cut: cut, ..world } } else { World { cut, ..world } });
        let down = outcome.downs.iter().find(|ms| **ms >= cut);
        let named = outcome.cut_off.is_some_and(|ms| ms >= cut);
        assert!(named || !path || reporters == 0, "LIVENESS_SEED={seed}: not called a cut path");
        down.map(|ms| ms - cut).unwrap_or_else(|| panic!("LIVENESS_SEED={seed}: never down"))
    };
    let mut times: Vec<u64> = seeds().map(one).collect();
    times.sort_unstable();
    let (median, last) = (times[times.len() / 2], times[times.len() - 1]);
    let what = if path { "path" } else { "power" };
    println!(
        "{what} cut to down, every {:?}, {loss} % loss, {reporters} reporters: min {} median {median} max {last} ms",
        pace.interval, times[0]
    );
    times
}

#[test]
fn a_power_cut_is_down_in_0_6_seconds_when_others_say_so_and_within_1_5_alone() {
    for pace in paces() {
        for (loss, reporters) in
            [0, 10].into_iter().flat_map(|loss| REPORTERS.map(|reporters| (loss, reporters)))
        {
            let times = cuts(pace, loss, reporters, false);
            let (median, most) = if reporters > 0 { (700, 1_000) } else { (1_200, 1_500) };
            assert!(times[times.len() / 2] <= median && times.iter().all(|ms| *ms <= most));
        }
    }
}

#[test]
fn a_cut_path_gets_this_nodes_own_full_time_and_a_cause_of_its_own() {
    for (pace, loss) in paces().into_iter().flat_map(|pace| [0, 10].map(|loss| (pace, loss))) {
        let times = cuts(pace, loss, 2, true);
        assert!(times.iter().all(|ms| (700..=1_800).contains(ms)));
    }
}
