//! The endpoints of the Service `kubernetes`: as they stand, and as they are to be.

use std::collections::BTreeSet;
use std::fmt::Write;
use std::net::{IpAddr, SocketAddr};

use serde::Deserialize;

/// Where the Endpoints of the Service are.
pub const ENDPOINTS_PATH: &str = "/api/v1/namespaces/default/endpoints/kubernetes";
/// Where the EndpointSlice is that apiservers write, and that is ours then.
pub const SLICE_PATH: &str = "/apis/discovery.k8s.io/v1/namespaces/default/endpointslices/kubernetes";
/// Where all of its EndpointSlices are, since kube-proxy takes them together.
pub const SLICES_PATH: &str = "/apis/discovery.k8s.io/v1/namespaces/default/endpointslices\
                               ?labelSelector=kubernetes.io%2Fservice-name%3Dkubernetes";

/// Most places of an object that are looked at; one of ours has one.
const MOST: usize = 64;

/// The Endpoints of a Service, as far as they lead anywhere.
#[derive(Debug, Clone, Default, Deserialize)]
pub struct Endpoints {
    subsets: Option<Vec<Subset>>,
}

#[derive(Debug, Clone, Default, Deserialize)]
struct Subset {
    addresses: Option<Vec<Address>>,
    ports: Option<Vec<Port>>,
}

#[derive(Debug, Clone, Deserialize)]
struct Address {
    ip: String,
}

#[derive(Debug, Clone, Deserialize)]
struct Port {
    port: Option<u16>,
}

/// EndpointSlices.
#[derive(Debug, Clone, Default, Deserialize)]
pub struct SliceList {
    items: Option<Vec<Slice>>,
}

#[derive(Debug, Clone, Default, Deserialize)]
struct Slice {
    endpoints: Option<Vec<SliceEndpoint>>,
    ports: Option<Vec<Port>>,
}

#[derive(Debug, Clone, Default, Deserialize)]
struct SliceEndpoint {
    addresses: Option<Vec<String>>,
}

fn places<'a>(ips: impl Iterator<Item = &'a str>, ports: Option<&[Port]>, into: &mut BTreeSet<SocketAddr>) {
    for ip in ips.filter_map(|ip| ip.parse::<IpAddr>().ok()) {
        for port in ports.into_iter().flatten().filter_map(|port| port.port) {
            if into.len() < MOST {
                into.insert(SocketAddr::new(ip, port));
            }
        }
    }
}

/// Where pods are led by all of them together.
pub fn named(endpoints: &Endpoints, slices: &SliceList) -> BTreeSet<SocketAddr> {
    let mut all = BTreeSet::new();
    for subset in endpoints.subsets.iter().flatten() {
        let ips = subset.addresses.iter().flatten().map(|one| one.ip.as_str());
        places(ips, subset.ports.as_deref(), &mut all);
    }
    for slice in slices.items.iter().flatten() {
        let ips = slice.endpoints.iter().flatten().flat_map(|one| one.addresses.iter().flatten());
        places(ips.map(String::as_str), slice.ports.as_deref(), &mut all);
    }
    all
}

/// Where pods are to be led: the node-local address, in the family of the Service.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Target(pub SocketAddr);

impl Target {
    /// The one of the family that the endpoints have now: the Service `kubernetes` has one, and ignores others. Without
    /// any IPv4, if there is one.
    pub fn of(addresses: &BTreeSet<IpAddr>, port: u16, now: &BTreeSet<SocketAddr>) -> Option<Target> {
        let family = now.first().map(SocketAddr::is_ipv4);
        let same = addresses.iter().find(|ip| family == Some(ip.is_ipv4()));
        same.or(addresses.first()).map(|ip| Target(SocketAddr::new(*ip, port)))
    }

    /// What is wrong with where pods are led; `None`: it is this place alone. `name`: whose an address is.
    pub fn deviation(
        &self,
        now: &BTreeSet<SocketAddr>,
        name: impl Fn(IpAddr) -> Option<String>,
    ) -> Option<String> {
        let Target(at) = self;
        if now.len() == 1 && now.contains(at) {
            return None;
        }
        let Some(first) = now.iter().find(|one| *one != at) else {
            return Some(format!("the endpoints of default/kubernetes are empty, not {at}"));
        };
        let mut text = format!("pods are led to {first}");
        let whose = name(first.ip());
        if let Some(name) = &whose {
            let _ = write!(text, " ({name})");
        }
        match now.len() - 1 {
            0 => {}
            more => {
                let _ = write!(text, " and {more} more");
            }
        }
        let _ = write!(text, ", not to {at} alone");
        // With the default reconciler an apiserver keeps our port, where it does not listen.
        if let Some(name) = whose.filter(|_| first.port() == at.port()) {
            let _ = write!(text, "; {name}'s apiserver lacks --endpoint-reconciler-type=none");
        }
        Some(text)
    }
}

/// The Endpoints that lead pods to these places, as JSON, which is YAML too. Server-side apply takes it.
pub fn endpoints_object(places: &[SocketAddr]) -> String {
    let ips: Vec<String> = places.iter().map(|at| format!("{{\"ip\":\"{}\"}}", at.ip())).collect();
    let port = places.first().map_or(0, SocketAddr::port);
    format!(
        "{{\"apiVersion\":\"v1\",\"kind\":\"Endpoints\",\"metadata\":{{\"name\":\"kubernetes\",\"namespace\":\
         \"default\",\"labels\":{{\"endpointslice.kubernetes.io/skip-mirror\":\"true\"}}}},\"subsets\":\
         [{{\"addresses\":[{}],\"ports\":[{{\"name\":\"https\",\"port\":{port},\"protocol\":\"TCP\"}}]}}]}}",
        ips.join(",")
    )
}

/// The EndpointSlice that does.
pub fn slice_object(places: &[SocketAddr]) -> String {
    let endpoint =
        |at: &SocketAddr| format!("{{\"addresses\":[\"{}\"],\"conditions\":{{\"ready\":true}}}}", at.ip());
    let endpoints: Vec<String> = places.iter().map(endpoint).collect();
    let family = if places.iter().all(SocketAddr::is_ipv4) { "IPv4" } else { "IPv6" };
    let port = places.first().map_or(0, SocketAddr::port);
    format!(
        "{{\"apiVersion\":\"discovery.k8s.io/v1\",\"kind\":\"EndpointSlice\",\"metadata\":{{\"name\":\
         \"kubernetes\",\"namespace\":\"default\",\"labels\":{{\"kubernetes.io/service-name\":\"kubernetes\",\
         \"endpointslice.kubernetes.io/skip-mirror\":\"true\"}}}},\"addressType\":\"{family}\",\"endpoints\":[{}],\
         \"ports\":[{{\"name\":\"https\",\"port\":{port},\"protocol\":\"TCP\"}}]}}",
        endpoints.join(",")
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(text: &str) -> SocketAddr {
        text.parse().unwrap()
    }

    #[test]
    fn what_is_printed_reads_back() {
        for place in ["10.91.91.50:16443", "[fd91::50]:16443"] {
            let endpoints = serde_json::from_str(&endpoints_object(&[at(place)])).unwrap();
            let list = format!("{{\"items\":[{}]}}", slice_object(&[at(place)]));
            let slices = serde_json::from_str(&list).unwrap();
            assert_eq!(named(&endpoints, &SliceList::default()), BTreeSet::from([at(place)]));
            assert_eq!(named(&Endpoints::default(), &slices), BTreeSet::from([at(place)]));
            let target = Target(at(place));
            assert_eq!(target.deviation(&named(&endpoints, &slices), |_| None), None);
        }
        let three = ["10.0.0.1:6443", "10.0.0.2:6443", "10.0.0.3:6443"].map(at);
        let endpoints = serde_json::from_str(&endpoints_object(&three)).unwrap();
        assert_eq!(named(&endpoints, &SliceList::default()), BTreeSet::from(three));
    }

    #[test]
    fn what_an_apiserver_writes_is_told_with_whose_it_is() {
        // As a kube-apiserver 1.36 has left them, with the default reconciler and our port.
        let endpoints: Endpoints = serde_json::from_str(
            r#"{"kind":"Endpoints","subsets":[{"addresses":[{"ip":"10.0.0.2"}],"notReadyAddresses":null,
                "ports":[{"name":"https","port":16443,"protocol":"TCP"}]}]}"#,
        )
        .unwrap();
        let slices: SliceList = serde_json::from_str(
            r#"{"items":[{"addressType":"IPv4","endpoints":[{"addresses":["10.0.0.2"],
                "conditions":{"ready":true}}],"ports":[{"name":"https","port":16443,"protocol":"TCP"}]}]}"#,
        )
        .unwrap();
        let addresses = BTreeSet::from(["10.91.91.50", "fd91::50"].map(|ip| ip.parse().unwrap()));
        let now = named(&endpoints, &slices);
        let target = Target::of(&addresses, 16443, &now).unwrap();
        assert_eq!(target, Target(at("10.91.91.50:16443")));
        let m2 = |ip: IpAddr| (ip.to_string() == "10.0.0.2").then(|| "m2".to_owned());
        assert_eq!(
            target.deviation(&now, m2).unwrap(),
            "pods are led to 10.0.0.2:16443 (m2), not to 10.91.91.50:16443 alone; m2's apiserver lacks \
             --endpoint-reconciler-type=none"
        );
        let before = BTreeSet::from([at("10.0.0.2:6443")]);
        let told = target.deviation(&before, m2).unwrap();
        assert_eq!(told, "pods are led to 10.0.0.2:6443 (m2), not to 10.91.91.50:16443 alone");
        let more = BTreeSet::from([at("10.91.91.50:16443"), at("10.0.0.9:6443")]);
        let told = target.deviation(&more, m2).unwrap();
        assert_eq!(told, "pods are led to 10.0.0.9:6443 and 1 more, not to 10.91.91.50:16443 alone");
        let none = named(&serde_json::from_str(r#"{"subsets":null}"#).unwrap(), &SliceList::default());
        let told = target.deviation(&none, m2).unwrap();
        assert_eq!(told, "the endpoints of default/kubernetes are empty, not 10.91.91.50:16443");
        let v6 = BTreeSet::from([at("[fd00::1]:6443")]);
        assert_eq!(Target::of(&addresses, 16443, &v6), Some(Target(at("[fd91::50]:16443"))));
        assert_eq!(Target::of(&addresses, 16443, &none), Some(Target(at("10.91.91.50:16443"))));
    }
}
