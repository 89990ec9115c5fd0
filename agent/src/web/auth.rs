//! Who may view, and who may act.
//!
//! Without credentials everyone who reaches the address may view and nobody may act; the configuration then
//! accepts only loopback addresses. With them everyone has to send them. There are no cookies and no
//! sessions.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use hyper::header::{AUTHORIZATION, HOST, HeaderMap, ORIGIN};
use proto::config::WebConfig;
use proto::time::Moment;
use ring::hmac;

use crate::source::ClientSource;
use crate::transport::random;

/// Wrong credentials from one client before it has to wait, and for how long: ten guesses per minute.
const FAILURES: u32 = 10;
const WAIT: Duration = Duration::from_secs(60);

/// Most clients remembered for wrong credentials. Beyond it, those with the fewest guesses are forgotten, so
/// that evicting a client takes as many guesses from each of so many others as it would win back. Clients
/// that have to wait are never forgotten: when there are only these, new clients have to wait, too.
const MAX_CLIENTS: usize = 1024;

/// Most clients remembered as logged in, the latest: they are not new.
const MAX_KNOWN: usize = 64;

/// What a request may do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Permission {
    /// View.
    See,
    /// View, drain, set weights.
    Act,
}

/// Why a request is refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum AuthRefusal {
    /// Credentials are required.
    LogIn,
    /// Too many wrong credentials.
    Wait,
    /// Another site's page asked, by a name that is not this node's.
    Foreign,
}

/// A secret that is compared in a time that does not reveal how much was right: tags under a random key are
/// compared.
struct SealedSecret(hmac::Tag);

/// Checks credentials.
pub(super) struct WebAuth {
    key: hmac::Key,
    login: Option<SealedSecret>,
    token: Option<SealedSecret>,
    clients: Mutex<ClientAttempts>,
}

/// Login attempts by client.
#[derive(Default)]
struct ClientAttempts {
    /// Wrong credentials, and when the first of them came.
    failures: BTreeMap<ClientSource, (u32, Moment)>,
    /// When they logged in.
    known: BTreeMap<ClientSource, Moment>,
}

impl ClientAttempts {
    fn must_wait(&mut self, client: ClientSource, now: Moment) -> bool {
        match self.failures.get(&client) {
            Some((count, since)) if now.since(*since) < WAIT => *count >= FAILURES,
            _ => !self.has_place(client, now),
        }
    }

    /// Whether its failures could be remembered. This machine and clients that have logged in have entries of
    /// their own.
    fn has_place(&mut self, client: ClientSource, now: Moment) -> bool {
        if client == ClientSource::Loopback
            || self.known.contains_key(&client)
            || self.failures.contains_key(&client)
            || self.failures.len() < MAX_CLIENTS
        {
            return true;
        }
        self.failures.retain(|_, (_, since)| now.since(*since) < WAIT);
        self.failures.values().any(|(count, _)| *count < FAILURES) || self.failures.len() < MAX_CLIENTS
    }

    fn failed(&mut self, client: ClientSource, now: Moment) {
        if self.failures.len() >= MAX_CLIENTS && !self.failures.contains_key(&client) {
            let bearable = self.failures.iter().filter(|(_, (count, _))| *count < FAILURES);
            let least = bearable.min_by_key(|(_, one)| **one).map(|(least, _)| *least);
            least.map(|least| self.failures.remove(&least));
        }
        let failure = self.failures.entry(client).or_insert((0, now));
        if now.since(failure.1) >= WAIT {
            *failure = (0, now);
        }
        failure.0 += 1;
    }

    /// A login does not clear failures: other users behind the same address may be guessing.
    fn logged_in(&mut self, client: ClientSource, now: Moment) {
        self.known.insert(client, now);
        if self.known.len() > MAX_KNOWN {
            let oldest = self.known.iter().min_by_key(|(_, at)| **at).map(|(oldest, _)| *oldest);
            oldest.map(|oldest| self.known.remove(&oldest));
        }
    }
}

impl WebAuth {
    pub(super) fn new(config: &WebConfig) -> WebAuth {
        let key = hmac::Key::new(hmac::HMAC_SHA256, &random::<32>());
        let seal = |text: &str| SealedSecret(hmac::sign(&key, text.as_bytes()));
        let login = config.login.as_ref().map(|(user, password)| seal(&format!("{user}:{}", password.0)));
        let token = config.token.as_ref().map(|token| seal(&token.0));
        WebAuth { key, login, token, clients: Mutex::default() }
    }

    /// Whether anyone may act here after logging in.
    pub(super) fn has_login(&self) -> bool {
        self.login.is_some()
    }

    /// What this request may do.
    pub(super) fn check(
        &self,
        headers: &HeaderMap,
        from: IpAddr,
        now: Moment,
    ) -> Result<Permission, AuthRefusal> {
        if self.login.is_none() && self.token.is_none() {
            // A foreign host name: another site's page that resolves to this node (DNS rebinding).
            return if is_literal(text(headers, HOST)) {
                Ok(Permission::See)
            } else {
                Err(AuthRefusal::Foreign)
            };
        }
        let client = ClientSource::of(from);
        let mut clients = self.clients.lock().unwrap_or_else(PoisonError::into_inner);
        if clients.must_wait(client, now) {
            return Err(AuthRefusal::Wait);
        }
        let Some(shown) = text(headers, AUTHORIZATION) else { return Err(AuthRefusal::LogIn) };
        if let Some(leave) = self.authorize(shown) {
            clients.logged_in(client, now);
            return Ok(leave);
        }
        clients.failed(client, now);
        Err(AuthRefusal::LogIn)
    }

    fn authorize(&self, shown: &str) -> Option<Permission> {
        let (scheme, rest) = shown.split_once(' ')?;
        let holds = |kept: &Option<SealedSecret>, shown: &[u8]| {
            kept.as_ref().is_some_and(|kept| hmac::verify(&self.key, shown, kept.0.as_ref()).is_ok())
        };
        if scheme.eq_ignore_ascii_case("basic") {
            let shown = data_encoding::BASE64.decode(rest.trim().as_bytes()).ok()?;
            return holds(&self.login, &shown).then_some(Permission::Act);
        }
        let bearer = scheme.eq_ignore_ascii_case("bearer");
        (bearer && holds(&self.token, rest.trim().as_bytes())).then_some(Permission::See)
    }
}

fn text(headers: &HeaderMap, name: hyper::header::HeaderName) -> Option<&str> {
    headers.get(name)?.to_str().ok()
}

/// Whether a Host is an address or `localhost`, with or without a port. A request without one is not from a
/// browser.
fn is_literal(host: Option<&str>) -> bool {
    let Some(host) = host else { return true };
    let bare = match host.rsplit_once(':') {
        Some((bare, port)) if port.bytes().all(|b| b.is_ascii_digit()) => bare,
        _ => host,
    };
    let bare = bare.trim_start_matches('[').trim_end_matches(']');
    bare.eq_ignore_ascii_case("localhost") || bare.parse::<IpAddr>().is_ok()
}

/// Whether a request that acts comes from this site's own page, or from no page at all: browsers send that
/// (Fetch Metadata; RFC 6454, 7).
pub(super) fn is_own(headers: &HeaderMap) -> bool {
    if let Some(state) = headers.get("sec-fetch-site") {
        return state == "same-origin";
    }
    let Some(origin) = headers.get(ORIGIN) else { return true };
    let host = text(headers, HOST).unwrap_or_default();
    let origin = origin.to_str().unwrap_or_default();
    origin.split_once("://").is_some_and(|(_, at)| at.eq_ignore_ascii_case(host))
}

#[cfg(test)]
mod tests {
    use proto::config::HiddenText;

    use super::*;

    fn headers(pairs: &[(&'static str, &str)]) -> HeaderMap {
        pairs.iter().map(|(name, value)| (name.parse().unwrap(), value.parse().unwrap())).collect()
    }

    fn guard() -> WebAuth {
        let login = Some(("ops".to_owned(), HiddenText("correct horse".to_owned())));
        let token = Some(HiddenText("0123456789".to_owned()));
        WebAuth::new(&WebConfig { login, token, ..WebConfig::default() })
    }

    fn basic(text: &str) -> String {
        format!("Basic {}", data_encoding::BASE64.encode(text.as_bytes()))
    }

    const ME: IpAddr = IpAddr::V4(std::net::Ipv4Addr::LOCALHOST);

    #[test]
    fn only_the_right_credentials_are_accepted() {
        let guard = guard();
        let check = |value: &str| guard.check(&headers(&[("authorization", value)]), ME, Moment::ZERO);
        assert_eq!(check(&basic("ops:correct horse")), Ok(Permission::Act));
        assert_eq!(check("bearer 0123456789"), Ok(Permission::See));
        assert_eq!(guard.check(&headers(&[]), ME, Moment::ZERO), Err(AuthRefusal::LogIn));
        for wrong in
            ["Basic", "Basic !", "Bearer 0123456780", "Digest x", &basic("ops:"), &basic("ops:correct hors")]
        {
            assert_eq!(check(wrong), Err(AuthRefusal::LogIn), "{wrong}");
        }
    }

    #[test]
    fn a_guessing_client_has_to_wait_and_others_do_not() {
        let guard = guard();
        let at = |ms| Moment::from_millis(ms);
        let right = headers(&[("authorization", &basic("ops:correct horse"))]);
        let wrong = headers(&[("authorization", &basic("ops:guess"))]);
        for i in 0..u64::from(FAILURES) {
            assert_eq!(guard.check(&wrong, ME, at(i)), Err(AuthRefusal::LogIn));
        }
        assert_eq!(guard.check(&right, ME, at(100)), Err(AuthRefusal::Wait), "or guesses would cost nothing");
        assert_eq!(guard.check(&right, "10.0.0.1".parse().unwrap(), at(100)), Ok(Permission::Act));
        assert_eq!(guard.check(&right, ME, at(60_100)), Ok(Permission::Act));
        let wrong_again = guard.check(&wrong, ME, at(60_200));
        assert_eq!(wrong_again, Err(AuthRefusal::LogIn), "the next minute begins anew");
    }

    #[test]
    fn no_other_client_clears_a_clients_failures() {
        let guard = guard();
        let at = Moment::from_millis(1);
        let right = headers(&[("authorization", &basic("ops:correct horse"))]);
        let wrong = headers(&[("authorization", &basic("ops:guess"))]);
        let check = |headers: &HeaderMap, from: &str| guard.check(headers, from.parse().unwrap(), at);
        // For an IPv6 client, all addresses of its /64 count together.
        for i in 0..FAILURES {
            assert_eq!(check(&wrong, &format!("2001:db8:0:1::{i:x}")), Err(AuthRefusal::LogIn));
        }
        assert_eq!(check(&right, "2001:db8:0:1:ffff::"), Err(AuthRefusal::Wait));
        assert_eq!(check(&right, "2001:db8:0:2::"), Ok(Permission::Act), "logging in elsewhere");
        // One guess less, then a login from the same address.
        for _ in 1..FAILURES {
            assert_eq!(check(&wrong, "192.0.2.1"), Err(AuthRefusal::LogIn));
        }
        assert_eq!(check(&right, "192.0.2.1"), Ok(Permission::Act));
        // A flood from others.
        for i in 0..3 * MAX_CLIENTS as u32 {
            let _ = guard.check(&wrong, std::net::Ipv4Addr::from(0x0a00_0000 + i).into(), at);
        }
        assert_eq!(check(&right, "2001:db8:0:1::"), Err(AuthRefusal::Wait));
        assert_eq!(check(&wrong, "192.0.2.1"), Err(AuthRefusal::LogIn));
        assert_eq!(check(&right, "192.0.2.1"), Err(AuthRefusal::Wait), "that was the tenth");
        assert!(guard.clients.lock().unwrap().failures.len() <= MAX_CLIENTS);
    }

    #[test]
    fn with_too_many_guessing_clients_only_new_ones_wait() {
        let guard = guard();
        let at = Moment::from_millis(1);
        let right = headers(&[("authorization", &basic("ops:correct horse"))]);
        let wrong = headers(&[("authorization", &basic("ops:guess"))]);
        let known = "192.0.2.1".parse().unwrap();
        assert_eq!(guard.check(&right, known, at), Ok(Permission::Act));
        for i in 0..2 * MAX_CLIENTS as u32 {
            for _ in 0..FAILURES {
                let _ = guard.check(&wrong, std::net::Ipv4Addr::from(0x0a00_0000 + i).into(), at);
            }
        }
        let new = "198.51.100.1".parse().unwrap();
        assert_eq!(
            guard.check(&right, new, at),
            Err(AuthRefusal::Wait),
            "or each new address had ten guesses more"
        );
        assert_eq!(guard.check(&right, known, at), Ok(Permission::Act));
        assert_eq!(guard.check(&right, ME, at), Ok(Permission::Act));
        assert_eq!(guard.check(&wrong, ME, at), Err(AuthRefusal::LogIn));
        assert!(guard.clients.lock().unwrap().failures.len() <= MAX_CLIENTS + 2);
        let later = Moment::from_millis(61_000);
        assert_eq!(guard.check(&right, new, later), Ok(Permission::Act));
        for i in 0..u32::from(u16::MAX) {
            let _ = guard.check(&right, std::net::Ipv4Addr::from(0x0b00_0000 + i).into(), later);
        }
        assert!(guard.clients.lock().unwrap().known.len() <= MAX_KNOWN);
    }

    #[test]
    fn pages_of_other_sites_neither_view_nor_act() {
        let open = WebAuth::new(&WebConfig::default());
        let seen = |host| open.check(&headers(&[("host", host)]), ME, Moment::ZERO);
        for own in ["127.0.0.1:1936", "[::1]:1936", "localhost", "LOCALHOST:1936", "10.0.0.1"] {
            assert_eq!(seen(own), Ok(Permission::See), "{own}");
        }
        assert_eq!(seen("evil.example:1936"), Err(AuthRefusal::Foreign));
        assert_eq!(open.check(&headers(&[]), ME, Moment::ZERO), Ok(Permission::See));

        let own = |pairs: &[(&'static str, &str)]| is_own(&headers(pairs));
        assert!(own(&[]) && own(&[("sec-fetch-site", "same-origin")]));
        assert!(own(&[("origin", "http://m1:1936"), ("host", "m1:1936")]));
        assert!(!own(&[("origin", "http://evil.example"), ("host", "m1:1936")]));
        assert!(!own(&[("origin", "null"), ("host", "m1:1936")]));
        for foreign in ["cross-site", "same-site", "none"] {
            assert!(!own(&[("sec-fetch-site", foreign)]), "{foreign}");
        }
    }
}
