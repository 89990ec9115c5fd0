//! Places that are listened at, each by one.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use super::Config;
use super::services::{link_address, meet};

/// Who listens at a place.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Listener {
    /// The agents' own messages.
    Link,
    /// The status page.
    Page,
    /// Where load balancers ask.
    Health,
    /// A service, by its name.
    Service(String),
}

impl fmt::Display for Listener {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Listener::Link => f.write_str("the agent itself"),
            Listener::Page => f.write_str("the status page"),
            Listener::Health => f.write_str("the listener for load balancers"),
            Listener::Service(name) => write!(f, "service {name}"),
        }
    }
}

/// Places that are taken.
#[derive(Debug)]
pub(crate) struct Listeners(Vec<(SocketAddr, Listener)>);

impl Listeners {
    /// Those of the agent itself, as a node with this configuration has them.
    pub(crate) fn new(config: &Config) -> Listeners {
        let of = |ip: IpAddr| (link_address(config, SocketAddr::new(ip, 0)), Listener::Link);
        Listeners(vec![of(Ipv4Addr::UNSPECIFIED.into()), of(Ipv6Addr::UNSPECIFIED.into())])
    }

    /// Takes a place, or says who has it, or one that meets it, already.
    pub(crate) fn take(&mut self, address: SocketAddr, by: Listener) -> Result<(), (SocketAddr, Listener)> {
        if let Some(other) = self.0.iter().find(|(taken, _)| meet(*taken, address)) {
            return Err(other.clone());
        }
        self.0.push((address, by));
        Ok(())
    }
}

impl Config {
    /// Where the status page and a service want one place. An agent runs all the same, without one of them.
    pub fn page_conflicts(&self) -> Vec<String> {
        let mut all = Listeners::new(self);
        for (address, name) in
            self.services.iter().flat_map(|one| one.listen.iter().map(move |at| (at, &one.name)))
        {
            // Two services that meet are a mistake of the file's already.
            let _ = all.take(*address, Listener::Service(name.to_string()));
        }
        let mut told = Vec::new();
        for address in &self.web.listen {
            if let Err((other, who)) = all.take(*address, Listener::Page) {
                let same = if other == *address { String::new() } else { format!(" on {other}") };
                told.push(format!(
                    "web.listen: {address} is also that of {who}{same}; give one of them another port, or write \
                     listen = [] under [web]"
                ));
            }
        }
        told
    }
}

#[cfg(test)]
mod tests {
    use super::super::parse;

    #[test]
    fn a_page_and_a_service_at_one_place_are_told() {
        let service = "[[service]]\nname = \"web\"\nport = 80\nlisten = ";
        for (text, words) in [
            (format!("{service}\"127.0.0.1:1936\"\n"), "127.0.0.1:1936 is also that of service web; give"),
            (format!("{service}\"0.0.0.0:1936\"\n"), "is also that of service web on 0.0.0.0:1936"),
            ("[web]\nlisten = \"127.0.0.1:16443\"\n".to_owned(), "of service kube-api"),
            ("[web]\nlisten = \"127.0.0.1:7646\"\n".to_owned(), "of the agent itself on 0.0.0.0:7646"),
            ("[web]\nlisten = [\"127.0.0.1:81\", \"127.0.0.1:81\"]\n".to_owned(), "of the status page; give"),
        ] {
            let told = parse(&text).unwrap().page_conflicts();
            assert!(told.len() == 1 && told[0].contains(words), "{text} {told:?}");
        }
        for good in [String::new(), format!("{service}\"127.0.0.1:1936\"\n[web]\nlisten = []\n")] {
            assert!(parse(&good).unwrap().page_conflicts().is_empty(), "{good}");
        }
    }
}
