//! `[vip."ADDRESS"]`: what one node has to say about a virtual IP of the cluster. A program is named here alone, never
//! by a setting: whoever may change settings would run it with the agent's rights on every node.

use toml::de::DeValue;

use super::walk::{Field, Mistakes, Section, kind};
use super::{Config, fields};

/// The keys of an address.
const KEYS: &[&str] = &["check"];

/// Reads it into `config`.
pub(super) fn read(top: &Section<'_, '_>, config: &mut Config, mistakes: &mut Mistakes<'_>) {
    let Some(field) = top.field("vip") else { return };
    let DeValue::Table(table) = field.value.get_ref() else {
        let found = kind(field.value.get_ref());
        let message = format!(
            "expected a table, found {found}; write [vip.\"10.0.0.50\"] for this node's check, and set the address \
             itself for the cluster: agent set vip=10.0.0.50"
        );
        return mistakes.add(field.offset(), &field.key, message);
    };
    for (name, value) in table {
        let offset = name.span().start;
        let Ok(address) = fields::ip(name.get_ref()) else {
            let message = format!(
                "\"{}\" is not an IP address; write [vip.\"10.0.0.50\"]",
                fields::shown(name.get_ref())
            );
            mistakes.add(offset, "vip", message);
            continue;
        };
        let Some(table) = (Field { key: format!("vip.\"{address}\""), value }).table(mistakes) else {
            continue;
        };
        let section = Section::open("vip", offset, table, KEYS, mistakes);
        match section.text("check", mistakes, fields::path) {
            Some(path) => {
                config.vip_checks.insert(address.to_canonical(), path);
            }
            None if section.field("check").is_none() => {
                let right = "missing: the program that decides whether this node may own it, such as \"/etc/agent/check\"";
                mistakes.missing(offset, "vip.check", right);
            }
            None => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::parse;

    #[test]
    fn a_node_names_its_own_check_of_an_address() {
        let text =
            "[vip.\"10.0.0.50\"]\ncheck = \"/etc/agent/check\"\n[vip.\"fd00:0::50\"]\ncheck = \"/c\"\n";
        let checks = parse(text).unwrap().vip_checks;
        let expected = [("10.0.0.50", "/etc/agent/check"), ("fd00::50", "/c")];
        assert_eq!(checks, expected.map(|(ip, path)| (ip.parse().unwrap(), path.to_owned())).into());
        for (text, words) in [
            ("vip = \"10.0.0.50\"", "agent set vip=10.0.0.50"),
            ("[vip]\nwg0 = 1", "\"wg0\" is not an IP address; write [vip.\"10.0.0.50\"]"),
            ("vip.10.0.0.50.check = \"/c\"", "\"10\" is not an IP address"),
            ("[vip.\"10.0.0.50\"]\ncheck = \"c\"", "must begin with /"),
            ("[vip.\"10.0.0.50\"]\n", "vip.check: missing: the program"),
            ("[vip.\"10.0.0.50\"]\nchek = \"/c\"", "did you mean check?"),
            ("[vip]\n\"10.0.0.50\" = \"/c\"", "expected a table, found a string"),
        ] {
            let mistakes = parse(text).unwrap_err();
            let said: Vec<String> = mistakes.iter().map(ToString::to_string).collect();
            assert!(said.iter().any(|one| one.contains(words)), "{said:?} lacks {words}");
        }
    }
}
