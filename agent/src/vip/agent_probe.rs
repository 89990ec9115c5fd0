//! Asks the machine of a silent owner whether anyone listens at its agent's port. A refusal says that only the agent is
//! gone, so that its address is a leftover.

use std::collections::BTreeMap;
use std::io::ErrorKind;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use proto::node::NodeId;
use proto::time::Moment;
use tokio::net::TcpStream;
use tokio::sync::mpsc;

use crate::lifecycle::Lifecycle;

/// Between two questions about one virtual IP, and the wait for an answer.
const PAUSE: Duration = Duration::from_millis(200);

/// One for each virtual IP and a few more: they come at most five times a second.
const REFUSALS: usize = 16;

/// What was asked, and who refused.
pub(super) struct AgentProbe {
    asked: BTreeMap<IpAddr, Moment>,
    refusals: mpsc::Sender<(IpAddr, NodeId)>,
    refused: mpsc::Receiver<(IpAddr, NodeId)>,
}

impl AgentProbe {
    pub(super) fn new() -> AgentProbe {
        let (refusals, refused) = mpsc::channel(REFUSALS);
        AgentProbe { asked: BTreeMap::new(), refusals, refused }
    }

    /// Forgets when it has asked about this one.
    pub(super) fn forget(&mut self, vip: IpAddr) {
        self.asked.remove(&vip);
    }

    /// Asks at the address of the owner, unless it has a moment ago.
    pub(super) fn ask(&mut self, now: Moment, vip: IpAddr, owner: NodeId, at: SocketAddr, life: &Lifecycle) {
        if self.asked.get(&vip).is_some_and(|last| now.since(*last) < PAUSE) {
            return;
        }
        self.asked.insert(vip, now);
        let refusals = self.refusals.clone();
        life.spawn(async move {
            if let Ok(Err(error)) = tokio::time::timeout(PAUSE, TcpStream::connect(at)).await
                && error.kind() == ErrorKind::ConnectionRefused
            {
                let _ = refusals.try_send((vip, owner));
            }
        });
    }

    /// Waits for a refusal. Nothing is lost by giving up waiting.
    pub(super) async fn refused(&mut self) -> Option<(IpAddr, NodeId)> {
        self.refused.recv().await
    }
}

#[cfg(test)]
mod tests {
    use tokio::net::TcpListener;

    use super::*;

    #[tokio::test]
    async fn a_closed_port_is_told_and_an_open_one_is_not_and_nobody_is_asked_all_the_time() {
        let life = Lifecycle::new();
        let (vip, owner) = ([10, 9, 0, 50].into(), NodeId([2; 10]));
        let open = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let closed = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
        let mut probe = AgentProbe::new();
        let at = Moment::from_millis;
        probe.ask(at(1_000), vip, owner, open.local_addr().unwrap(), &life);
        open.accept().await.unwrap();
        probe.ask(at(1_199), vip, owner, closed, &life);
        life.finished().await;
        assert!(probe.refused.try_recv().is_err(), "open, and then too soon");
        probe.ask(at(1_200), vip, owner, closed, &life);
        assert_eq!(probe.refused().await, Some((vip, owner)));
        probe.forget(vip);
        probe.ask(at(1_200), vip, owner, closed, &life);
        assert_eq!(probe.refused().await, Some((vip, owner)));
    }
}
