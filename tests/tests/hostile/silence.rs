//! A worker that lies about whom it hears: that counts for a moment, and decides nothing.

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use proto::event::EventKind;
use proto::heard;
use proto::transport::DatagramFrame;
use tests::hostile::cluster::row;
use tests::hostile::{Cluster, Hostile, Sent};
use tests::mesh::SOON;
use tests::scale::{events, now};

/// The master that it lies about, and whom it tells.
const SUBJECT: usize = 2;
const TOLD: [usize; 3] = [0, 1, 3];

/// Between two lies: five times as often as a pulse.
const PAUSE: Duration = Duration::from_millis(20);

/// Says that the master was last heard this long ago, in a pulse, in an answer that nobody asked for, and alone.
fn lie(hostile: &Hostile, age: Duration) -> Result<()> {
    let report = heard::to_bytes(vec![(hostile.id_of(SUBJECT), age)]);
    let said = DatagramFrame::Heard(&report);
    for node in TOLD {
        let to = hostile.id_of(node);
        hostile.line.send(&to, &[DatagramFrame::Pulse(1), DatagramFrame::Heard(&report)])?;
        hostile.line.send(&to, &[said])?;
    }
    std::thread::sleep(PAUSE);
    Ok(())
}

fn is_down(cluster: &Cluster, node: usize) -> Result<bool> {
    Ok(cluster.agents[node].backend_state("n2")? == "down")
}

#[test]
fn who_claims_not_to_hear_a_master_takes_nobody_down() -> Result<()> {
    row("member: has not heard n2 for 1 s, 50 times a second", |cluster| {
        let hostile = cluster.fresh()?;
        let (since, began) = (now(), Instant::now());
        while began.elapsed() < Duration::from_secs(4) {
            lie(&hostile, Duration::from_secs(1))?;
        }
        let mut doubts = 0;
        for node in TOLD {
            for event in events(&cluster.agents[node], since)? {
                if event.kind == EventKind::Backend && event.subject == "kube-api/n2" {
                    ensure!(event.to != "down", "n{node} took n2 down: {event:?}");
                    doubts += usize::from(event.to == "suspect");
                }
            }
        }
        Ok(Sent { bytes: hostile.line.sent(), note: format!("suspected {doubts} times"), ..Sent::default() })
    })
}

#[test]
fn who_claims_to_hear_a_master_keeps_no_dead_one_up() -> Result<()> {
    row("member: has just heard n2, whose power is cut", |cluster| {
        let hostile = cluster.fresh()?;
        let cut = cluster.lab.node(SUBJECT);
        let began = Instant::now();
        cut.power_cut()?;
        let mut up = TOLD.to_vec();
        while began.elapsed() < SOON && !up.is_empty() {
            for _ in 0..5 {
                lie(&hostile, Duration::ZERO)?;
            }
            let mut still = Vec::new();
            for node in up {
                if !is_down(cluster, node)? {
                    still.push(node);
                }
            }
            up = still;
        }
        let took = began.elapsed();
        cut.power_on()?;
        // A second of their own silence and three connects, on a machine that is busy with other things.
        ensure!(up.is_empty() && took < Duration::from_secs(4), "n2 was kept up for {took:?} on {up:?}");
        for node in TOLD {
            cluster.agents[node].wait_for_backend("n2", &["ready"], SOON)?;
        }
        let note = format!("down after {} ms all the same", took.as_millis());
        Ok(Sent { bytes: hostile.line.sent(), note, ..Sent::default() })
    })
}
