//! Whether a load balancer should send clients to this node.

use super::{ListenerState, ServiceStatus, Status};

impl Status {
    /// Whether the agent serves all that it should: it is a member, and each listener is open.
    pub fn is_ready(&self) -> bool {
        !self.node.removed && self.services.iter().all(ServiceStatus::is_listening)
    }

    /// Whether clients of a service are served here: by an instance of this node, or by its proxy, which listens for
    /// others and has a good backend.
    pub fn serves(&self, service: &str) -> bool {
        let Some(service) = self.services.iter().find(|one| one.name.as_str() == service) else {
            return false;
        };
        let mut good = service.backends.iter().filter(|backend| backend.state.is_good());
        let listens = service
            .listen
            .iter()
            .any(|one| one.state == ListenerState::Listening && !one.address.ip().is_loopback());
        if listens { good.next().is_some() } else { good.any(|backend| backend.node == self.node.name) }
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::{service, status};
    use super::super::{ListenerStatus, ServiceStatus};
    use super::*;
    use crate::backends::BackendState;
    use crate::cause::{Cause, Fault};
    use crate::node::Name;

    fn with(listen: &[(&str, bool)], backends: &[(&str, BackendState)]) -> Status {
        let fault = Fault::new(Cause::AddressInUse, "");
        let listener =
            |(at, open): &(&str, bool)| ListenerStatus::new(at.parse().unwrap(), (!open).then_some(&fault));
        let backend = |(node, state): &(&str, BackendState)| {
            let mut one = service().backends[0].clone();
            (one.node, one.state) = (Name::nearest(node), *state);
            one
        };
        let mut status = status();
        status.node.name = Name::nearest("own");
        status.node.removed = false;
        status.services = vec![ServiceStatus {
            listen: listen.iter().map(listener).collect(),
            backends: backends.iter().map(backend).collect(),
            ..service()
        }];
        status
    }

    #[test]
    fn clients_are_wanted_where_they_would_be_served() {
        use BackendState::{Alive, Down, Draining, Ready};
        let (local, any) = (("127.0.0.1:16443", true), ("0.0.0.0:6443", true));
        for (listen, backends, serves) in [
            // A balancer.
            (&[any][..], &[("m1", Ready)][..], true),
            (&[local, any], &[("m1", Down), ("m2", Alive)], true),
            (&[any], &[("m1", Down), ("m2", Draining)], false),
            (&[any], &[], false),
            (&[("0.0.0.0:6443", false)], &[("m1", Ready)], false),
            // A master, whose clients come to its own instance.
            (&[local], &[("own", Ready), ("m1", Ready)], true),
            (&[local], &[("own", Down), ("m1", Ready)], false),
            // A node that serves itself alone.
            (&[local], &[("m1", Ready)], false),
        ] {
            let status = with(listen, backends);
            assert_eq!(status.serves("kube-api"), serves, "{listen:?} {backends:?}");
            assert!(!status.serves("ingress"), "there is none");
        }
    }

    #[test]
    fn the_agent_is_ready_while_all_its_listeners_are_open() {
        assert!(with(&[("0.0.0.0:6443", true)], &[]).is_ready());
        assert!(!with(&[("0.0.0.0:6443", false)], &[]).is_ready());
        let mut removed = with(&[], &[]);
        removed.node.removed = true;
        assert!(!removed.is_ready());
    }
}
