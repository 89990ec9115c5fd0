//! Who is told of events: programs, and one web address.

use super::error::BadValue;
use super::fields;
use super::walk::{Mistakes, Section};

/// Most paths that may be named: each has a task and a queue.
const MAX_HOOKS: usize = 8;

/// Longest address: no service has a longer one.
const MAX_URL: usize = 2000;

/// Where events are sent by HTTP POST.
#[derive(Clone, PartialEq, Eq)]
pub struct WebhookConfig {
    /// Over TLS.
    pub tls: bool,
    /// Name or address of the server, an IPv6 address in brackets.
    pub host: String,
    /// Its port.
    pub port: u16,
    /// What is asked for; often holds a secret, so it is never shown.
    pub path: String,
    /// The CA that the server's certificate is checked against; none: those of the system.
    pub ca_file: Option<String>,
}

impl std::fmt::Debug for WebhookConfig {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Webhook({})", self.shown())
    }
}

impl WebhookConfig {
    /// The server, for messages.
    pub fn shown(&self) -> String {
        let scheme = if self.tls { "https" } else { "http" };
        format!("{scheme}://{}:{}", self.host, self.port)
    }

    /// Reads `http://host:port/path`. What is wrong is not repeated: it may hold a secret.
    ///
    /// # Errors
    /// What is wrong and what would be right.
    pub fn parse(text: &str) -> Result<WebhookConfig, BadValue> {
        let bad = |why| Err(BadValue::Webhook(why));
        let (tls, rest) = match text.split_once("://") {
            Some(("http", rest)) => (false, rest),
            Some(("https", rest)) => (true, rest),
            _ => return bad("it does not begin with http:// or https://"),
        };
        let (server, path) = rest.split_at(rest.find(['/', '?']).unwrap_or(rest.len()));
        if server.contains('@') {
            return bad("it has a user or password, which is not supported");
        }
        let graphic = |text: &str| text.bytes().all(|b| b.is_ascii_graphic() && b != b'#');
        if text.len() > MAX_URL || !graphic(path) {
            return bad("it is too long, or has spaces, # or non-ASCII characters");
        }
        let usual = if tls { 443 } else { 80 };
        let (host, port) = match server.rsplit_once(':') {
            Some((host, port)) if !port.ends_with(']') => (host, fields::port(port)?),
            _ => (server, usual),
        };
        let bare = host.strip_prefix('[').and_then(|host| host.strip_suffix(']'));
        let good = match bare {
            Some(ip) => ip.parse::<std::net::Ipv6Addr>().is_ok(),
            None => fields::server_name(host).is_ok() && !host.contains(':'),
        };
        if !good {
            return bad("its host is neither a name nor an address");
        }
        let path = if path.starts_with('/') { path.to_owned() } else { format!("/{path}") };
        Ok(WebhookConfig { tls, host: host.to_owned(), port, path, ca_file: None })
    }
}

/// Reads `notify`, `webhook` and `webhook-ca-file`.
pub(super) fn read(top: &Section<'_, '_>, config: &mut super::Config, mistakes: &mut Mistakes<'_>) {
    if let Some(paths) = top.texts("notify", mistakes, fields::path) {
        if let Some((offset, _)) = paths.get(MAX_HOOKS) {
            mistakes.add(*offset, "notify", format!("more than {MAX_HOOKS} paths; use a directory"));
        }
        config.notify = paths.into_iter().map(|(_, path)| path).collect();
    }
    config.webhook = top.text("webhook", mistakes, WebhookConfig::parse);
    let ca_file = top.text("webhook-ca-file", mistakes, fields::path);
    match (&mut config.webhook, ca_file) {
        (Some(webhook), Some(_)) if !webhook.tls => {
            let at = top.offset_of("webhook-ca-file").unwrap_or(0);
            mistakes.add(at, "webhook-ca-file", "the webhook is not https; use https:// or remove this");
        }
        (Some(webhook), ca_file) => webhook.ca_file = ca_file,
        (None, Some(_)) if top.field("webhook").is_none() => {
            let at = top.offset_of("webhook-ca-file").unwrap_or(0);
            mistakes.add(at, "webhook-ca-file", "there is no webhook; set webhook = \"https://…\" too");
        }
        (None, _) => {}
    }
}

#[cfg(test)]
mod tests {
    use super::super::parse;
    use super::*;

    #[test]
    fn addresses_are_taken_apart() {
        for (text, tls, host, port, path) in [
            ("http://127.0.0.1:8080/x?y=1", false, "127.0.0.1", 8080, "/x?y=1"),
            ("https://hooks.example.net/T0/B1", true, "hooks.example.net", 443, "/T0/B1"),
            ("http://[fd00::1]:81", false, "[fd00::1]", 81, "/"),
            ("http://[fd00::1]/x", false, "[fd00::1]", 80, "/x"),
            ("http://host?q", false, "host", 80, "/?q"),
        ] {
            let found = WebhookConfig::parse(text).unwrap();
            assert_eq!((found.tls, &*found.host, found.port, &*found.path), (tls, host, port, path));
        }
        for text in [
            "",
            "host",
            "ftp://h/",
            "http://",
            "http://a b/",
            "http://h/a b",
            "http://h:0/",
            "http://h:x/",
            "http://u:p@h/",
            "http://[fd00::1/",
            "http://fd00::1/",
            "http://h/ü",
            "http://h/#x",
        ] {
            assert!(WebhookConfig::parse(text).is_err(), "{text}");
        }
    }

    #[test]
    fn what_is_secret_in_an_address_is_never_repeated() {
        let webhook = WebhookConfig::parse("https://h/SECRET").unwrap();
        assert!(!format!("{webhook:?}").contains("SECRET"));
        let mistakes = parse("webhook = \"https//h/SECRET\"").unwrap_err();
        assert!(!mistakes[0].to_string().contains("SECRET"), "{}", mistakes[0]);
    }

    #[test]
    fn the_file_names_who_is_told() {
        let text =
            "notify = [\"/etc/agent/notify.d\"]\nwebhook = \"https://h/x\"\nwebhook-ca-file = \"/ca\"\n";
        let config = parse(text).unwrap();
        assert_eq!(config.notify, ["/etc/agent/notify.d"]);
        assert_eq!(config.webhook.unwrap().ca_file.as_deref(), Some("/ca"));
        for (text, words) in [
            ("notify = \"hook\"", "must begin with /"),
            ("notify = [\"/1\",\"/2\",\"/3\",\"/4\",\"/5\",\"/6\",\"/7\",\"/8\",\"/9\"]", "use a directory"),
            ("webhook-ca-file = \"/ca\"", "there is no webhook"),
            ("webhook = \"http://h/\"\nwebhook-ca-file = \"/ca\"", "not https"),
        ] {
            let mistakes = parse(text).unwrap_err();
            assert_eq!(mistakes.len(), 1);
            assert!(mistakes[0].message.contains(words), "{} lacks {words}", mistakes[0]);
        }
    }
}
