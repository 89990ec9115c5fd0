//! Which clocks are named.

use super::*;

#[test]
fn of_clocks_the_one_that_stands_alone_is_wrong() {
    let mut mesh = mesh();
    for peer in &mut mesh.peers {
        peer.back.as_mut().unwrap().ahead_ms = 9_000;
    }
    let found = mesh::examine(&mesh).findings;
    assert_eq!(found.iter().map(|one| one.node.as_str()).collect::<Vec<_>>(), ["m1"], "{found:#?}");
    assert_eq!(lines(&found[0])[0], "timedatectl set-ntp true");
    // An exchange that took as long as the clocks differ says nothing.
    for peer in &mut mesh.peers {
        peer.back.as_mut().unwrap().slack_ms = 9_000;
    }
    let slow = mesh::examine(&mesh);
    assert!(slow.findings.iter().all(|one| one.node != "m2"), "{:#?}", slow.findings);
}

#[test]
fn without_a_majority_no_clock_is_blamed() {
    let with = |ahead: &[i64]| {
        let mut mesh = mesh();
        let peer = mesh.peers[0].clone();
        mesh.peers = (2..)
            .zip(ahead)
            .map(|(n, ahead)| {
                let mut peer = PeerFacts { name: format!("m{n}"), ..peer.clone() };
                peer.back.as_mut().unwrap().ahead_ms = *ahead;
                peer
            })
            .collect();
        let found = mesh::examine(&mesh).findings.into_iter().filter(|one| one.code == "clock");
        found.map(|one| (one.node, one.what)).collect::<Vec<_>>()
    };
    let told = |node: &str, what: &str| (node.to_owned(), what.to_owned());
    let differ = "the clocks differ, and no majority shows which are right: ";
    for (ahead, expected) in [
        (&[0, 60_000, 60_000][..], vec![told("m1", &format!("{differ}m1, m2; m3, m4 60 s ahead"))]),
        (&[0, -60_000, -60_000], vec![told("m1", &format!("{differ}m3, m4; m1, m2 60 s ahead"))]),
        (&[0, 60_000, -60_000], vec![told("m1", &format!("{differ}m4; m1, m2 60 s ahead; m3 120 s ahead"))]),
        (&[60_000], vec![told("m1", &format!("{differ}m1; m2 60 s ahead"))]),
        (&[60_000, 60_000, 60_000], vec![told("m1", "the clock of m1 is 60 s behind those of the majority")]),
        (
            &[0, 0, 60_000, -7_000],
            vec![
                told("m5", "the clock of m5 is 7 s behind those of the majority"),
                told("m4", "the clock of m4 is 60 s ahead of those of the majority"),
            ],
        ),
    ] {
        assert_eq!(with(ahead), expected, "{ahead:?}");
    }
}
