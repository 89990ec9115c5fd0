//! `[health]`: where load balancers ask, without credentials, whether to send clients here.

use std::net::SocketAddr;

use super::services::{link_address, meet};
use super::walk::{Mistakes, Section};
use super::{Config, fields};

/// The keys of `[health]`.
const KEYS: &[&str] = &["listen"];

/// Most addresses: one of each family, and a few more.
const MAX_LISTEN: usize = 8;

/// Reads it into `config`, which has all other listeners already.
pub(super) fn read(top: &Section<'_, '_>, config: &mut Config, mistakes: &mut Mistakes<'_>) {
    let Some(field) = top.field("health") else { return };
    let Some(table) = field.table(mistakes) else { return };
    let section = Section::open("health", field.offset(), table, KEYS, mistakes);
    let Some(list) = section.texts("listen", mistakes, fields::socket) else {
        if section.field("listen").is_none() {
            let right = "missing: where load balancers ask, such as \"0.0.0.0:8404\"";
            mistakes.missing(section.offset, "health.listen", right);
        }
        return;
    };
    for (offset, address) in &list {
        if let Some(other) = taken(config, *address) {
            let message = format!("{address} is used by {other}; choose another port");
            mistakes.add(*offset, "health.listen", message);
        }
    }
    if let Some((offset, _)) = list.get(MAX_LISTEN) {
        mistakes.add(*offset, "health.listen", format!("more than {MAX_LISTEN} addresses"));
    }
    config.health = list.into_iter().map(|(_, address)| address).collect();
}

/// What else listens there.
fn taken(config: &Config, address: SocketAddr) -> Option<String> {
    if meet(address, link_address(config, address)) {
        return Some("the agent's own port".to_owned());
    }
    if config.web.listen.iter().any(|one| meet(*one, address)) {
        return Some("the status page".to_owned());
    }
    let service =
        config.services.iter().find(|service| service.listen.iter().any(|one| meet(*one, address)))?;
    Some(format!("service {}", service.name))
}

#[cfg(test)]
mod tests {
    use super::super::parse;

    #[test]
    fn it_listens_nowhere_unless_told_and_nowhere_else_does() {
        assert!(parse("").unwrap().health.is_empty());
        let config = parse("[health]\nlisten = [\"0.0.0.0:8404\", \"[::]:8404\"]\n").unwrap();
        assert_eq!(config.health, ["0.0.0.0:8404".parse().unwrap(), "[::]:8404".parse().unwrap()]);
        for (text, words) in [
            ("[health]\n", "health.listen: missing: where load balancers ask"),
            ("[health]\nlisten = \"8404\"", "not an address with a port"),
            ("[health]\nlisten = \"0.0.0.0:1936\"", "0.0.0.0:1936 is used by the status page"),
            ("[health]\nlisten = \"0.0.0.0:16443\"", "is used by service kube-api; choose another port"),
            ("[health]\nlisten = \"0.0.0.0:7646\"", "is used by the agent's own port"),
            ("[health]\nlisen = \"0.0.0.0:8404\"", "did you mean listen?"),
            ("health = \"0.0.0.0:8404\"", "expected a table, found a string; write [health]"),
        ] {
            let mistakes = parse(text).unwrap_err();
            let said: Vec<String> = mistakes.iter().map(ToString::to_string).collect();
            assert!(said.iter().any(|one| one.contains(words)), "{said:?} lacks {words}");
        }
    }
}
