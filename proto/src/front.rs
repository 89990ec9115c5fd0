//! Whether a node serves the clients of a virtual IP: it listens on the port that they use, for that address and
//! family, and there is someone to hand them to.
//!
//! A master's own instance may serve them directly, as an apiserver on all addresses does; a balancer's proxy hands
//! them to good backends. Either is asked of the kernel or the proxy, not taken from the configuration: an address that
//! attracts clients to a closed port is worse than none.

use std::net::{IpAddr, SocketAddr};

use crate::backends::Backend;
use crate::cause::{Cause, Fault};
use crate::health::Readiness;
use crate::record::ServiceOffer;
use crate::service::Service;
use crate::unfit::Unfit;

/// A TCP socket of this machine that listens, whoever's it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct HostListener {
    /// Where.
    pub address: SocketAddr,
    /// It takes clients of IPv6 alone; of no meaning for IPv4.
    pub only_v6: bool,
}

impl HostListener {
    /// Whether clients of `ip` at `port` reach it.
    pub fn takes(&self, ip: IpAddr, port: u16) -> bool {
        let HostListener { address, only_v6 } = self;
        let any = address.ip().is_unspecified();
        let family = address.is_ipv4() == ip.is_ipv4() || (address.is_ipv6() && !only_v6);
        address.port() == port && (address.ip().to_canonical() == ip || (any && family))
    }
}

/// A listener of this node's proxy, and why it is not open.
pub type ProxyListener = (SocketAddr, Option<Fault>);

/// What is known of a service that a virtual IP fronts, on one node.
#[derive(Debug, Clone, Copy)]
pub struct VipFront<'a> {
    /// The virtual IP.
    pub address: IpAddr,
    /// The service, as it holds on this node.
    pub service: &'a Service,
    /// Where it is listened to for the cluster, on whichever node.
    pub shared_listen: &'a [SocketAddr],
    /// This proxy's listeners of the service.
    pub listeners: &'a [ProxyListener],
    /// This node's own instance.
    pub own: Option<&'a ServiceOffer>,
    /// Whether anything on this machine listens for the address at the service's port; `None`: the kernel does not say,
    /// or this node has no instance.
    pub listens: Option<bool>,
    /// The backends of the service, as this node sees them.
    pub backends: &'a [Backend],
}

/// Whether a listener at `listen` is for clients of `vip`.
fn is_for(listen: SocketAddr, vip: IpAddr) -> bool {
    listen.ip() == vip || (listen.ip().is_unspecified() && listen.is_ipv4() == vip.is_ipv4())
}

impl VipFront<'_> {
    /// The port that clients use: that of the cluster's listeners for the address; else the service's own, which a
    /// master's instance has; else the one that this node listens on.
    fn port(&self) -> u16 {
        let own = self.service.port;
        let among = |all: &[SocketAddr]| {
            let ports = || all.iter().filter(|one| is_for(**one, self.address)).map(SocketAddr::port);
            ports().find(|port| *port == own).or_else(|| ports().next())
        };
        let here = || among(&self.service.listen).filter(|_| self.own.is_none());
        among(self.shared_listen).or_else(here).unwrap_or(own)
    }

    /// Whether this node may own the address.
    ///
    /// # Errors
    /// Why its clients would be refused here.
    pub fn evaluate(&self) -> Result<(), Unfit> {
        let port = self.port();
        if let Some(own) = self.own {
            // Whichever port its clients use, a node whose own instance is well serves them better.
            self.own_instance_is_well(own)?;
            if port == self.service.port {
                return self.own_instance_listens();
            }
        }
        let mut listeners = self.listeners.iter().filter(|(at, _)| at.port() == port);
        let Some((at, fault)) = listeners.clone().find(|(at, _)| is_for(*at, self.address)) else {
            return Err(self.not_listening(port, listeners.next().map(|(at, _)| *at)));
        };
        match fault {
            // It is bound once the address is here.
            Some(fault) if fault.cause == Cause::AddressUnavailable && at.ip() == self.address => {}
            Some(fault) => {
                let reason = format_args!("its proxy cannot listen on {at}: {fault}");
                return Err(Unfit::new(Cause::NotListening, reason));
            }
            None => {}
        }
        if self.backends.iter().any(|backend| backend.state.is_good()) {
            Ok(())
        } else {
            Err(Unfit::new(Cause::NoBackend, format_args!("no {} serves", self.service.name)))
        }
    }

    fn own_instance_is_well(&self, own: &ServiceOffer) -> Result<(), Unfit> {
        let (name, cause, reason) = (&self.service.name, own.health.cause, own.health.reason());
        match own.health.readiness {
            Readiness::Alive if cause == Cause::NotCheckedYet => {
                Err(Unfit::new(cause, format_args!("its {name} is {reason}")))
            }
            Readiness::Ready | Readiness::Alive => Ok(()),
            readiness => {
                let reason = format_args!("its {name} is {}: {reason}", readiness.as_str());
                Err(Unfit::new(cause, reason))
            }
        }
    }

    fn own_instance_listens(&self) -> Result<(), Unfit> {
        let name = &self.service.name;
        let (ip, port) = (self.address, self.service.port);
        if self.listens == Some(false) {
            let at = SocketAddr::new(ip, port);
            return Err(Unfit::new(Cause::NotListening, format_args!("its {name} does not listen on {at}")));
        }
        Ok(())
    }

    /// Why the proxy does not serve the address. `near`: it listens on the port, for others.
    fn not_listening(&self, port: u16, near: Option<SocketAddr>) -> Unfit {
        let name = &self.service.name;
        let at = SocketAddr::new(self.address, port);
        match near {
            Some(near) if near.is_ipv4() != self.address.is_ipv4() && near.ip().is_unspecified() => {
                let other = if near.is_ipv4() { "[::]" } else { "0.0.0.0" };
                let reason = format_args!("its proxy listens on {near}, not on {other}:{port}");
                Unfit::new(Cause::NotListening, reason)
            }
            Some(near) => {
                Unfit::new(Cause::NotListening, format_args!("its proxy listens on {near}, not on {at}"))
            }
            None if self.service.listen.iter().any(|listen| is_for(*listen, self.address)) => {
                Unfit::new(Cause::NotListening, format_args!("its proxy does not listen on {at}"))
            }
            None => {
                let reason = format_args!("it has no {name}, and its proxy does not listen for other nodes");
                Unfit::new(Cause::NotServed, reason)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::backends::BackendState;
    use crate::cause::Detail;
    use crate::health::ServiceHealth;
    use crate::node::NodeId;
    use crate::time::UnixMs;

    fn offer(readiness: Readiness) -> ServiceOffer {
        let health =
            ServiceHealth { readiness, cause: Cause::Http(500), detail: Detail::default(), since: UnixMs(0) };
        ServiceOffer { address: ([10, 0, 0, 1], 6443).into(), weight: 100, health, check_ms: None }
    }

    fn backend(state: BackendState) -> Backend {
        Backend {
            node: NodeId([1; 10]),
            name: "m1".parse().unwrap(),
            address: ([10, 0, 0, 1], 6443).into(),
            weight: 100,
            state,
            cause: None,
            detail: Detail::default(),
            since: UnixMs(0),
            rtt: None,
            probe_only: false,
        }
    }

    fn sockets(texts: &[&str]) -> Vec<SocketAddr> {
        texts.iter().map(|text| text.parse().unwrap()).collect()
    }

    /// The outcome for a balancer: what the cluster listens to, what this proxy does, with faults, and its backend.
    fn balancer(
        vip: &str,
        shared: &[&str],
        listeners: &[(&str, Option<Cause>)],
        state: BackendState,
    ) -> Result<(), (Cause, String)> {
        let texts: Vec<&str> = listeners.iter().map(|(text, _)| *text).collect();
        let service = Service { listen: sockets(&texts), ..Service::kube_api() };
        let fault = |cause: &Option<Cause>| cause.map(|cause| Fault::new(cause, "stop nginx"));
        let listeners: Vec<ProxyListener> =
            listeners.iter().map(|(text, cause)| (text.parse().unwrap(), fault(cause))).collect();
        let front = VipFront {
            address: vip.parse().unwrap(),
            service: &service,
            shared_listen: &sockets(shared),
            listeners: &listeners,
            own: None,
            listens: Some(false),
            backends: &[backend(state)],
        };
        front.evaluate().map_err(|why| (why.cause, why.to_string()))
    }

    #[test]
    fn a_balancer_may_own_it_while_it_listens_there_and_has_a_good_backend() {
        let (v4, v6) = ("10.0.0.50", "fd00::50");
        let (any, any6) = (("0.0.0.0:6443", None), ("[::]:6443", None));
        let ready = BackendState::Ready;
        let (not_listening, not_served) = (Cause::NotListening, Cause::NotServed);
        for (vip, shared, listeners, state, outcome) in [
            (v4, &["0.0.0.0:6443"][..], &[any][..], ready, Ok(())),
            (v4, &[], &[any], ready, Ok(())),
            (v6, &[], &[any, any6], BackendState::Alive, Ok(())),
            (v4, &[], &[("10.0.0.50:6443", None)], ready, Ok(())),
            // Its address comes with it.
            (v4, &[], &[("10.0.0.50:6443", Some(Cause::AddressUnavailable))], ready, Ok(())),
            (v4, &[], &[any], BackendState::Down, Err((Cause::NoBackend, "no kube-api serves"))),
            (v4, &[], &[any], BackendState::Suspect, Err((Cause::NoBackend, "no kube-api serves"))),
            (
                v4,
                &[],
                &[("127.0.0.1:16443", None)],
                ready,
                Err((not_served, "it has no kube-api, and its proxy does not listen for other nodes")),
            ),
            (
                v4,
                &["0.0.0.0:6443"],
                &[],
                ready,
                Err((not_served, "it has no kube-api, and its proxy does not listen for other nodes")),
            ),
            (
                v4,
                &[],
                &[("0.0.0.0:6443", Some(Cause::AddressInUse))],
                ready,
                Err((not_listening, "its proxy cannot listen on 0.0.0.0:6443: address in use: stop nginx")),
            ),
            (
                v6,
                &["0.0.0.0:6443"],
                &[any],
                ready,
                Err((not_listening, "its proxy listens on 0.0.0.0:6443, not on [::]:6443")),
            ),
            (
                v4,
                &[],
                &[any6],
                ready,
                Err((not_listening, "its proxy listens on [::]:6443, not on 0.0.0.0:6443")),
            ),
            (
                v4,
                &[],
                &[("10.0.0.7:6443", None)],
                ready,
                Err((not_listening, "its proxy listens on 10.0.0.7:6443, not on 10.0.0.50:6443")),
            ),
            // The clients' port is the cluster's to say, where it does.
            (
                v4,
                &["0.0.0.0:8443"],
                &[any],
                ready,
                Err((not_listening, "its proxy does not listen on 10.0.0.50:8443")),
            ),
            (v4, &["0.0.0.0:8443"], &[any, ("0.0.0.0:8443", None)], ready, Ok(())),
            (v4, &["127.0.0.1:8443"], &[any], ready, Ok(())),
        ] {
            let outcome: Result<(), (Cause, &str)> = outcome;
            let found = balancer(vip, shared, listeners, state);
            assert_eq!(
                found,
                outcome.map_err(|(cause, text)| (cause, text.to_owned())),
                "{vip} {shared:?} {listeners:?}"
            );
        }
    }

    #[test]
    fn a_master_may_own_it_while_its_own_instance_is_well_and_listens_there() {
        let service = Service::kube_api();
        let host = |text: &str, only_v6| HostListener { address: text.parse().unwrap(), only_v6 };
        let evaluate = |vip: &str, own: &ServiceOffer, host: Option<&[HostListener]>, shared: &[&str]| {
            let front = VipFront {
                address: vip.parse().unwrap(),
                service: &service,
                shared_listen: &sockets(shared),
                listeners: &[("127.0.0.1:16443".parse().unwrap(), None)],
                own: Some(own),
                listens: host.map(|host| host.iter().any(|one| one.takes(vip.parse().unwrap(), 6443))),
                backends: &[backend(BackendState::Ready)],
            };
            front.evaluate().map_err(|why| (why.cause, why.to_string()))
        };
        let ready = offer(Readiness::Ready);
        for (vip, listener, can) in [
            ("10.0.0.50", host("0.0.0.0:6443", false), true),
            // As Go listens by default.
            ("10.0.0.50", host("[::]:6443", false), true),
            ("10.0.0.50", host("[::]:6443", true), false),
            ("10.0.0.50", host("10.0.0.50:6443", false), true),
            ("10.0.0.50", host("[::ffff:10.0.0.50]:6443", false), true),
            ("10.0.0.50", host("10.0.0.1:6443", false), false),
            ("10.0.0.50", host("0.0.0.0:6444", false), false),
            ("fd00::50", host("[::]:6443", true), true),
            ("fd00::50", host("0.0.0.0:6443", false), false),
        ] {
            let found = evaluate(vip, &ready, Some(&[listener]), &[]);
            let at = SocketAddr::new(vip.parse().unwrap(), 6443);
            let no = Err((Cause::NotListening, format!("its kube-api does not listen on {at}")));
            assert_eq!(found, if can { Ok(()) } else { no }, "{vip} {listener:?}");
        }
        let vip = "10.0.0.50";
        assert_eq!(evaluate(vip, &ready, None, &[]), Ok(()), "where the kernel does not say");
        assert_eq!(evaluate(vip, &offer(Readiness::Alive), None, &[]), Ok(()));
        let not_ready = evaluate(vip, &offer(Readiness::NotReady), None, &[]).unwrap_err();
        assert_eq!(not_ready, (Cause::Http(500), "its kube-api is not-ready: HTTP 500".to_owned()));
        let fresh =
            ServiceOffer { health: ServiceHealth::not_checked_yet(UnixMs(0)), ..offer(Readiness::Alive) };
        let why = evaluate(vip, &fresh, None, &[]).unwrap_err();
        assert_eq!(why.0, Cause::NotCheckedYet, "an address is claimed for what is known to serve");
        let not_ready = evaluate(vip, &offer(Readiness::NotReady), None, &["0.0.0.0:8443"]).unwrap_err();
        assert_eq!(not_ready.0, Cause::Http(500), "on whichever port");
        let elsewhere = evaluate(vip, &ready, None, &["0.0.0.0:8443"]).unwrap_err();
        assert_eq!(elsewhere.0, Cause::NotServed, "its clients use the balancers' port");
    }
}
