//! `[web]`: where the status page and the metrics are, and who may see them.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use super::error::BadValue;
use super::fields;
use super::walk::{Mistakes, Section};

/// The keys of `[web]`.
const KEYS: &[&str] = &["listen", "user", "password", "token", "haproxy-metrics"];

/// Shortest password and token: one that is guessed in a year at ten tries a minute has six letters.
const MIN_SECRET: usize = 8;

/// Longest one, so that comparing it costs nothing.
const MAX_SECRET: usize = 200;

/// Most addresses: one of each family, and a few more.
const MAX_LISTEN: usize = 8;

/// haproxy's own habit, and a node that had haproxy has nothing else there.
const PORT: u16 = 1936;

/// A text that stands in no log.
#[derive(Clone, PartialEq, Eq)]
pub struct HiddenText(pub String);

impl fmt::Debug for HiddenText {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("…")
    }
}

/// The status page and the metrics of one node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WebConfig {
    /// Where they are; empty: nowhere.
    pub listen: Vec<SocketAddr>,
    /// The addresses are the default ones: where they are taken, that is no mistake of anyone.
    pub by_default: bool,
    /// Who may see and act, by HTTP's basic authentication.
    pub login: Option<(String, HiddenText)>,
    /// Who may see, by a bearer token: for what collects metrics.
    pub token: Option<HiddenText>,
    /// Metrics have haproxy's names too.
    pub haproxy_metrics: bool,
}

impl Default for WebConfig {
    fn default() -> WebConfig {
        WebConfig {
            listen: vec![SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), PORT)],
            by_default: true,
            login: None,
            token: None,
            haproxy_metrics: false,
        }
    }
}

pub(super) fn read(top: &Section<'_, '_>, config: &mut super::Config, mistakes: &mut Mistakes<'_>) {
    let Some(field) = top.field("web") else { return };
    let Some(table) = field.table(mistakes) else { return };
    let section = Section::open("web", field.offset(), table, KEYS, mistakes);
    let web = &mut config.web;
    web.haproxy_metrics = section.flag("haproxy-metrics", mistakes).unwrap_or_default();
    let user = section.text("user", mistakes, user);
    let password = section.text("password", mistakes, secret);
    web.token = section.text("token", mistakes, secret);
    let has = |key| section.field(key).is_some();
    match (user, password) {
        (Some(user), Some(password)) => web.login = Some((user, password)),
        _ if has("user") == has("password") => {}
        _ => {
            let missing = if has("user") { "password" } else { "user" };
            let key = section.dotted(missing);
            mistakes.missing(section.offset, &key, "missing: user and password must be set together");
        }
    }
    if let Some(list) = section.texts("listen", mistakes, fields::socket) {
        web.by_default = false;
        let closed = !(has("user") || has("token"));
        for (offset, address) in list.iter().filter(|(_, address)| closed && !address.ip().is_loopback()) {
            let message = format!(
                "{address} is reachable for others without a login; set web.user and \
                 web.password, or web.token, or listen on 127.0.0.1:{PORT}"
            );
            mistakes.add(*offset, &section.dotted("listen"), message);
        }
        if let Some((offset, _)) = list.get(MAX_LISTEN) {
            mistakes.add(*offset, &section.dotted("listen"), format!("more than {MAX_LISTEN} addresses"));
        }
        web.listen = list.into_iter().map(|(_, address)| address).collect();
    }
}

fn user(text: &str) -> Result<String, BadValue> {
    // RFC 7617, 2: the colon ends the user's name.
    if text.is_empty() || text.len() > 64 || text.contains(|c: char| c.is_control() || c == ':') {
        return Err(BadValue::User);
    }
    Ok(text.to_owned())
}

/// The message never shows what was written.
fn secret(text: &str) -> Result<HiddenText, BadValue> {
    if !(MIN_SECRET..=MAX_SECRET).contains(&text.len()) || text.contains(char::is_control) {
        return Err(BadValue::Secret { least: MIN_SECRET, most: MAX_SECRET });
    }
    Ok(HiddenText(text.to_owned()))
}

#[cfg(test)]
mod tests {
    use super::super::{Config, Mistake, parse};
    use super::*;

    fn web(lines: &str) -> Result<WebConfig, Vec<Mistake>> {
        parse(&format!("[web]\n{lines}\n")).map(|config| config.web)
    }

    #[test]
    fn it_is_on_loopback_unless_told_otherwise() {
        assert_eq!(Config::default().web.listen, ["127.0.0.1:1936".parse().unwrap()]);
        assert_eq!(web("").unwrap(), WebConfig::default());
        assert!(web("listen = []").unwrap().listen.is_empty());
        let both = web("listen = [\"127.0.0.1:80\", \"[::1]:80\"]\nhaproxy-metrics = true").unwrap();
        assert!(both.listen.len() == 2 && both.haproxy_metrics && !both.by_default);
    }

    #[test]
    fn others_must_log_in() {
        let mistakes = web("listen = [\"127.0.0.1:80\", \"10.0.0.1:80\"]").unwrap_err();
        assert_eq!(mistakes.len(), 1);
        assert_eq!((mistakes[0].line, mistakes[0].column), (2, 27), "{mistakes:?}");
        assert!(mistakes[0].message.contains("set web.user"), "{mistakes:?}");
        assert!(web("listen = \"0.0.0.0:80\"").is_err());
        let login = web("listen = \"0.0.0.0:80\"\nuser = \"ops\"\npassword = \"correct horse\"").unwrap();
        assert_eq!(login.login.unwrap().0, "ops");
        assert!(web("listen = \"10.0.0.1:80\"\ntoken = \"0123456789\"").unwrap().token.is_some());
    }

    #[test]
    fn half_a_login_and_a_short_one_are_mistakes_and_secrets_are_not_shown() {
        for (lines, words) in [
            ("user = \"ops\"", "set together"),
            ("password = \"correct horse\"", "set together"),
            ("user = \"o:ps\"\npassword = \"correct horse\"", "without a colon"),
            ("token = \"kurz\"", "8 to 200"),
            ("listne = \"127.0.0.1:80\"", "did you mean listen?"),
        ] {
            let mistakes = web(lines).unwrap_err();
            assert_eq!(mistakes.len(), 1, "{mistakes:?}");
            assert!(mistakes[0].message.contains(words), "{mistakes:?}");
            assert!(!format!("{mistakes:?}").contains("kurz"));
        }
        let web = web("token = \"0123456789\"").unwrap();
        assert!(!format!("{web:?}").contains("0123"), "{web:?}");
    }
}
