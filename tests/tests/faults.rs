//! What clients notice of failing masters: the rows of `bench faults` with fewer clients and with bounds that
//! also hold on a busy machine, so that neither the promise nor the bench can rot.

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use tests::faults::{Fault, Noticed, Stage};
use tests::lab::Lab;
use tests::load::Plan;
use tests::mesh::{LISTENER, with_agents};
use tests::scale::now;

/// Upper limits for a row.
struct Bounds {
    /// New connections without an answer.
    failed: usize,
    /// The longest that a new connection takes.
    worst: Duration,
    /// The longest silence of a held connection on the faulty master.
    silence: Duration,
    /// Whether held connections on it may be reset.
    resets: bool,
    /// How long it is watched.
    watched: Duration,
}

const fn seconds(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}

/// New connections a second, and held ones.
const LOAD: (u32, usize) = (20, 6);

/// A client gives up after this.
const PATIENCE: Duration = seconds(5);

/// Time before the fault.
const BEFORE: Duration = Duration::from_millis(500);

/// Tolerance for the test machine, which is busy with other things too.
const BUSY: Duration = seconds(1);

/// Nobody may notice anything.
const NOTHING: Bounds =
    Bounds { failed: 0, worst: BUSY, silence: seconds(2), resets: false, watched: seconds(3) };

/// Down after 0.6 s, and the client's next request after that.
const POWER_CUT: Bounds =
    Bounds { failed: 0, worst: BUSY, silence: seconds(2), resets: true, watched: seconds(4) };

const KILLED: Bounds =
    Bounds { failed: 1, worst: BUSY, silence: seconds(2), resets: true, watched: seconds(3) };

/// A connection to it is lost until its own agent has reported that it does not answer.
const HUNG: Bounds =
    Bounds { failed: 40, worst: PATIENCE, silence: seconds(5), resets: true, watched: seconds(7) };

/// Its port is open, and its TLS hellos are unanswered for three seconds.
const FROZEN: Bounds = Bounds { silence: seconds(5), resets: true, watched: seconds(7), ..NOTHING };

/// Longer than it takes to see the closed port and to have a better backend.
const STOPPING: Bounds = Bounds { watched: seconds(6), ..NOTHING };

/// A cut one way: connects fail, gossip still tells of it through the others.
const ONE_WAY: Bounds =
    Bounds { failed: 5, worst: PATIENCE, silence: seconds(6), resets: true, watched: seconds(7) };

/// Nothing is reset. How long a held connection is silent is up to retransmissions, whose pauses double; that a new one
/// takes longer than its client waits is as unlikely as five losses of one packet in a row.
const LOSS: Bounds =
    Bounds { failed: 2, worst: PATIENCE, silence: Duration::MAX, resets: false, watched: seconds(6) };

fn holds(fault: Fault, noticed: &Noticed, bounds: &Bounds) -> Result<()> {
    let name = fault.title();
    eprintln!("{name:<19}{noticed}");
    let why = |what: &str| format!("{name}: {what}\n{}\n{noticed}\n{:?}", Noticed::HEAD, noticed.why);
    ensure!(noticed.tries > 10, why("hardly any new connection was made"));
    ensure!(noticed.failed <= bounds.failed, why("new connections failed"));
    ensure!(noticed.worst <= bounds.worst + BUSY, why("a new connection took too long"));
    ensure!(noticed.held > 0, why("no held connection was on it"));
    ensure!(noticed.silence <= bounds.silence, why("a held connection was silent for too long"));
    ensure!(bounds.resets || noticed.resets == 0, why("held connections were reset"));
    ensure!(noticed.elsewhere == 0, why("held connections on healthy masters were reset"));
    Ok(())
}

/// One after the other on one stage, each undone before the next.
fn rows(rows: &[(Fault, Bounds)]) -> Result<()> {
    with_agents(Lab::wireguard(4), |lab, agents| {
        let mut stage = Stage::set(lab, agents)?;
        let (per_second, held) = LOAD;
        let plan = Plan { targets: vec![LISTENER.parse()?], per_second, held, patience: PATIENCE };
        eprintln!("{:<19}{}", "", Noticed::HEAD);
        for (fault, bounds) in rows {
            let (noticed, victim) = stage.row(*fault, &plan, BEFORE, bounds.watched)?;
            holds(*fault, &noticed[0], bounds)?;
            let began = Instant::now();
            stage.undo(*fault, victim)?;
            eprintln!("{:<19}back after {:.1} s", "", began.elapsed().as_secs_f64());
        }
        Ok(())
    })
}

#[test]
fn a_master_that_vanishes_dies_or_hangs() -> Result<()> {
    rows(&[(Fault::Kill, KILLED), (Fault::PowerCut, POWER_CUT), (Fault::Hang, HUNG)])
}

#[test]
fn a_frozen_machine_gets_no_new_connection_and_a_stopping_apiserver_keeps_held_ones() -> Result<()> {
    rows(&[(Fault::Frozen, FROZEN), (Fault::Stopping, STOPPING)])
}

#[test]
fn an_agent_restart_on_a_master_resets_no_held_connection() -> Result<()> {
    rows(&[
        (Fault::AgentRestarted, Bounds { watched: seconds(8), ..NOTHING }),
        (Fault::AgentRestartedUnanswered, Bounds { watched: seconds(10), silence: seconds(6), ..NOTHING }),
    ])
}

#[test]
fn a_path_that_is_cut_one_way_or_loses_packets() -> Result<()> {
    rows(&[(Fault::Loss, LOSS), (Fault::CutToWorker, ONE_WAY), (Fault::CutFromWorker, ONE_WAY)])
}

#[test]
fn a_dead_or_frozen_agent_and_a_slow_apiserver_disturb_nobody() -> Result<()> {
    rows(&[
        (Fault::AgentKilled, NOTHING),
        (Fault::AgentFrozen, NOTHING),
        (Fault::SlowReady, NOTHING),
        (Fault::Drained, NOTHING),
    ])
}

#[test]
fn a_slow_handshake_is_no_reason_to_call_a_master_down() -> Result<()> {
    with_agents(Lab::wireguard(4), |lab, agents| {
        let mut stage = Stage::set(lab, agents)?;
        let (per_second, held) = LOAD;
        let plan = Plan { targets: vec![LISTENER.parse()?], per_second, held, patience: PATIENCE };
        let since = now();
        let bounds = Bounds { watched: seconds(8), ..NOTHING };
        let (noticed, victim) = stage.row(Fault::SlowHello, &plan, BEFORE, bounds.watched)?;
        holds(Fault::SlowHello, &noticed[0], &bounds)?;
        for node in 0..stage.agents.len() {
            ensure!(!stage.was_down(node, victim, since)?, "n{node} took n{victim} for down");
        }
        stage.undo(Fault::SlowHello, victim)
    })
}

#[test]
fn masters_that_restart_one_after_the_other_or_return_from_the_dead() -> Result<()> {
    let rolling = Bounds { failed: 6, watched: seconds(13), ..KILLED };
    // Some of those that started while all were dead may still be in progress.
    let back = Bounds { failed: 80, worst: PATIENCE, silence: seconds(15), ..KILLED };
    rows(&[(Fault::Rolling, rolling), (Fault::AllDead, back)])
}
