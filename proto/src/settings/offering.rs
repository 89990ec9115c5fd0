//! A service that nobody offers: why, and the command that mends it.

use std::fmt::Write;

use super::{NodeSelector, Settings};
use crate::problem::{Problem, ProblemCode};
use crate::service::{CheckKind, Service, ServiceName};

/// Names that fit a line.
const NAMES: usize = 4;

impl Settings {
    /// The problem of a service that no node offers. `service` is as it holds on this node: where no setting
    /// describes it, only the nodes whose own file does can offer it.
    pub fn not_offered(&self, service: &Service) -> Problem {
        let name = &service.name;
        let described = self.services.iter().any(|one| one.name == *name);
        let (detail, fix) = if described {
            let (whose, others) = self.may_be_offered_by(name);
            let others = others.map_or_else(String::new, |others| {
                format!(", or let others offer it: agent set service.{name}.offer={others}")
            });
            let port = service.port;
            (
                format!("no node offers {name}: nothing answers on port {port} of {whose}"),
                format!("start it there{others}"),
            )
        } else {
            (
                format!(
                    "no node offers {name}: agent.toml describes it here, and no setting does for others"
                ),
                format!("to have masters offer it, run: {}", set_command(service)),
            )
        };
        Problem::new(ProblemCode::NotOffered, detail).about(name.as_str()).fix(fix)
    }

    /// Whose instances count, in words, and who else could be named.
    fn may_be_offered_by(&self, name: &ServiceName) -> (String, Option<&'static str>) {
        match self.offerers.get(name) {
            None | Some(NodeSelector::Masters) => ("any master".to_owned(), Some("workers")),
            Some(NodeSelector::Workers) => ("any worker".to_owned(), Some("masters")),
            Some(NodeSelector::All) => ("any node".to_owned(), None),
            Some(NodeSelector::Names(names)) => {
                let some: Vec<&str> = names.iter().take(NAMES).map(|name| name.as_str()).collect();
                let more = if names.len() > NAMES { " and others" } else { "" };
                (format!("{}{more}", some.join(", ")), Some("all"))
            }
        }
    }
}

/// The command that describes a service of a node's file for all nodes. The file's node goes on listening where its
/// file says, so that no other does.
fn set_command(service: &Service) -> String {
    let mut command = "agent set".to_owned();
    let mut set = |key: &str, value: &str| {
        let plain = |b: u8| b.is_ascii_alphanumeric() || b"/-_.,:".contains(&b);
        let quote = if value.bytes().all(plain) { "" } else { "'" };
        // A text that the shell would end the quotes at is left to the reader.
        if !value.contains('\'') {
            let _ = write!(command, " {quote}service.{}.{key}={value}{quote}", service.name);
        }
    };
    set("port", &service.port.to_string());
    set("listen", "");
    if service.check.kind != CheckKind::Tcp {
        set("check", service.check.kind.as_str());
    }
    if let CheckKind::Http(http) | CheckKind::Https(http, _) = &service.check.kind {
        set("check.path", &http.path);
        set("check.expect", &http.expect.to_string());
    }
    set("offer", "masters");
    command
}

#[cfg(test)]
mod tests {
    use super::super::tests::read;
    use super::*;
    use crate::config::parse;

    #[test]
    fn what_nobody_offers_is_named_with_the_command_that_mends_it() {
        let join = ["service.join.port=9345", "service.join.listen=0.0.0.0:9345"];
        for (offer, detail, fix) in [
            (
                None,
                "any master",
                "start it there, or let others offer it: agent set service.join.offer=workers",
            ),
            (
                Some("service.join.offer=workers"),
                "any worker",
                "start it there, or let others offer it: agent set service.join.offer=masters",
            ),
            (Some("service.join.offer=all"), "any node", "start it there"),
            (
                Some("service.join.offer=m1,m2"),
                "m1, m2",
                "start it there, or let others offer it: agent set service.join.offer=all",
            ),
        ] {
            let settings = read(&join.iter().copied().chain(offer).collect::<Vec<_>>());
            let problem = settings.not_offered(&settings.services[0]);
            let said = (problem.code, problem.detail.to_string(), problem.fix.to_string());
            let detail = format!("no node offers join: nothing answers on port 9345 of {detail}");
            assert_eq!(said, (ProblemCode::NotOffered, detail, fix.to_owned()));
        }
    }

    #[test]
    fn a_service_of_a_file_is_described_for_all_by_a_command_that_works() {
        let file = "[[service]]\nname = \"join\"\nlisten = \"0.0.0.0:9345\"\nport = 9345\n\
                    [service.check]\nkind = \"https\"\npath = \"/a?b=c\"\nexpect = \"200-399\"\n";
        let service = parse(file).unwrap().services[1].clone();
        let problem = Settings::default().not_offered(&service);
        assert_eq!(
            problem.to_string(),
            "no node offers join: agent.toml describes it here, and no setting does for others; to have masters \
             offer it, run: agent set service.join.port=9345 service.join.listen= service.join.check=https \
             'service.join.check.path=/a?b=c' service.join.check.expect=200-399 service.join.offer=masters"
        );
        let text = problem.fix.to_string();
        let words = text.split("agent set ").nth(1).unwrap().split(' ');
        let words: Vec<&str> = words.map(|word| word.trim_matches('\'')).collect();
        let set = read(&words).services[0].clone();
        assert_eq!((set.port, &set.check, set.listen.len()), (service.port, &service.check, 0));
    }
}
