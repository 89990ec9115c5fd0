//! Many nodes that join at once: `bench scale` in small, with bounds that also hold on a busy machine.

use std::time::Duration;

use anyhow::{Result, ensure};
use tests::lab::Lab;
use tests::mesh::with_agents;
use tests::scale::{MASTERS, cut, join_at_once};

/// As many as a test machine runs beside everything else.
const NODES: usize = 12;

/// Time for all to see all: gossip needs some rounds once everybody is admitted.
const JOINED: Duration = Duration::from_secs(20);

/// How long a master is away, and is given to return.
const AWAY: Duration = Duration::from_secs(4);

#[test]
fn nodes_that_join_at_once_serve_see_each_other_and_all_notice_a_master_that_is_cut() -> Result<()> {
    with_agents(Lab::bridge(NODES), |lab, agents| {
        let _masters = (0..MASTERS).map(|i| lab.nginx_master(i)).collect::<Result<Vec<_>>>()?;
        for agent in agents.iter_mut() {
            agent.options = vec!["--iface".to_owned(), agent.node().interface.to_owned()];
        }
        let joined = join_at_once(agents, JOINED)?;
        ensure!(joined.serve.last().is_some(), "until all served: {}", joined.serve.shown());
        ensure!(joined.all.last().is_some(), "until all saw all: {}", joined.all.shown());
        let noticed = cut(agents, MASTERS - 1, AWAY)?;
        ensure!(noticed.down.last().is_some(), "until it was down on all: {}", noticed.down.shown());
        ensure!(noticed.back.last().is_some(), "until it was ready on all: {}", noticed.back.shown());
        Ok(())
    })
}
