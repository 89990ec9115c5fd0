//! `[[service]]`: what is proxied besides, or otherwise than, the default service.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Duration;

use toml::de::DeValue;

use super::error::{BadValue, Written};
use super::walk::{Field, Mistakes, Section, integer, kind};
use super::{Config, fields};
use crate::service::{
    Balance, Check, CheckKind, DEFAULT_MAXCONN, Expect, HttpCheck, KUBE_API, MAX_WEIGHT, Service,
    ServiceName, TlsCheck,
};

const KEYS: &[&str] = &[
    "name",
    "listen",
    "port",
    "balance",
    "weight",
    "maxconn",
    "backend-maxconn",
    "send-proxy",
    "share-port",
    "access-log",
    "check",
];

const CHECK_KEYS: &[&str] = &[
    "kind",
    "path",
    "expect",
    "address",
    "interval",
    "timeout",
    "rise",
    "fall",
    "server-name",
    "ca-file",
    "cert-file",
    "key-file",
];

/// Keys that only an HTTP check has.
const HTTP_KEYS: &[&str] = &["path", "expect"];

/// Keys that only an HTTPS check has.
const TLS_KEYS: &[&str] = &["server-name", "ca-file", "cert-file", "key-file"];

/// Most services: every node gossips a line about each, and all must stay small.
pub(crate) const MAX_SERVICES: usize = 32;

/// Shortest wait between two checks: ten a second is already felt by an apiserver. Longest: what fails
/// should be seen by someone who still sits there.
const INTERVAL: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(300));

/// An apiserver answers in milliseconds; past a minute nobody waits for it.
const TIMEOUT: (Duration, Duration) = (Duration::from_millis(50), Duration::from_secs(60));

/// Most checks in a row for a change of state.
const MAX_STREAK: u32 = 100;

/// Most connections of a listener: Linux' default bound of descriptors for one process (fs.nr_open).
const MAX_MAXCONN: u32 = 1_048_576;

/// A place that a service listens at, and where the text says so.
struct ListenField {
    address: SocketAddr,
    service: ServiceName,
    offset: Option<usize>,
}

/// Reads every `[[service]]` into `config`.
pub(super) fn read(top: &Section<'_, '_>, config: &mut Config, mistakes: &mut Mistakes<'_>) {
    let Some(field) = top.field("service") else {
        return check_listeners(&default_listeners(config), config, mistakes);
    };
    let DeValue::Array(list) = field.value.get_ref() else {
        let message = format!(
            "expected a list, found {}; write [[service]], or for all nodes run: agent set service.NAME.KEY=VALUE",
            kind(field.value.get_ref())
        );
        return mistakes.add(field.offset(), &field.key, message);
    };
    let mut listeners = Vec::new();
    let mut named: Vec<ServiceName> = Vec::new();
    for value in list.iter() {
        let offset = value.span().start;
        let Some(table) = (Field { key: field.key.clone(), value }).table(mistakes) else { continue };
        let section = Section::open("service", offset, table, KEYS, mistakes);
        let Some(name) = name(&section, &named, mistakes) else {
            // Its other mistakes are worth telling all the same.
            one(&section, ServiceName::kube_api(), mistakes);
            continue;
        };
        named.push(name.clone());
        let (service, places) = one(&section, name, mistakes);
        listeners.extend(places);
        match config.services.first_mut().filter(|_| service.name.as_str() == KUBE_API) {
            Some(default) => *default = service,
            None => config.services.push(service),
        }
        if config.services.len() == MAX_SERVICES + 1 {
            mistakes.add(offset, &field.key, format!("more than {MAX_SERVICES} services"));
        }
    }
    if !named.iter().any(|name| name.as_str() == KUBE_API) {
        listeners.extend(default_listeners(config));
    }
    config.named = named;
    check_listeners(&listeners, config, mistakes);
}

fn name(
    section: &Section<'_, '_>,
    named: &[ServiceName],
    mistakes: &mut Mistakes<'_>,
) -> Option<ServiceName> {
    let Some(field) = section.field("name") else {
        mistakes.missing(section.offset, "service.name", "missing: give the service a name, such as ingress");
        return None;
    };
    let name: ServiceName = section.text("name", mistakes, str::parse)?;
    if named.contains(&name) {
        let message = format!("duplicate service {name}; use another name");
        mistakes.add(field.offset(), &field.key, message);
        return None;
    }
    Some(name)
}

/// Reads the first `[[service]]` of a text that names it: what is not said is missing, or as by default.
pub(super) fn first(
    top: &Section<'_, '_>,
    name: ServiceName,
    mistakes: &mut Mistakes<'_>,
) -> Option<Service> {
    let field = top.field("service")?;
    let DeValue::Array(list) = field.value.get_ref() else { return None };
    let value = list.iter().next()?;
    let table = (Field { key: field.key.clone(), value }).table(mistakes)?;
    let section = Section::open("service", value.span().start, table, KEYS, mistakes);
    Some(one(&section, name, mistakes).0)
}

/// Reads one service: the default one with what stands there laid over, or a new one.
fn one(
    section: &Section<'_, '_>,
    name: ServiceName,
    mistakes: &mut Mistakes<'_>,
) -> (Service, Vec<ListenField>) {
    let is_default = name.as_str() == KUBE_API;
    let mut service = if is_default { Service::kube_api() } else { plain(name.clone()) };
    if !is_default {
        for (key, right) in [
            ("listen", "missing: where the proxy listens, such as \"127.0.0.1:8443\", or [] for nowhere"),
            ("port", "missing: the port of the backends, such as 8443"),
        ] {
            // As a setting it may be there for the nodes that offer the service.
            let needed = key != "listen" || mistakes.written == Written::InFile;
            if needed && section.field(key).is_none() {
                mistakes.missing(section.offset, &section.dotted(key), right);
            }
        }
    }
    let mut listeners = Vec::new();
    if let Some(list) = section.texts("listen", mistakes, fields::socket) {
        service.listen = list.iter().map(|(_, address)| *address).collect();
        let listen = |(offset, address)| ListenField { address, service: name.clone(), offset: Some(offset) };
        listeners = list.into_iter().map(listen).collect();
    } else if is_default {
        let listen =
            |address: &SocketAddr| ListenField { address: *address, service: name.clone(), offset: None };
        listeners = service.listen.iter().map(listen).collect();
    }
    if let Some(Ok(port)) = section.number("port", mistakes, 1..=65_535).map(u16::try_from) {
        service.port = port;
    }
    if let Some(Ok(weight)) = section.number("weight", mistakes, 0..=u32::from(MAX_WEIGHT)).map(u16::try_from)
    {
        service.weight = weight;
    }
    if let Some(maxconn) = section.number("maxconn", mistakes, 1..=MAX_MAXCONN) {
        service.maxconn = maxconn;
    }
    if let Some(maxconn) = section.number("backend-maxconn", mistakes, 0..=MAX_MAXCONN) {
        service.backend_maxconn = maxconn;
    }
    service.send_proxy = section.flag("send-proxy", mistakes).unwrap_or(service.send_proxy);
    service.share_port = section.flag("share-port", mistakes).unwrap_or(service.share_port);
    service.access_log = section.flag("access-log", mistakes).unwrap_or(service.access_log);
    let words = Balance::ALL.map(|balance| (balance.as_str(), balance));
    if let Some(balance) =
        section.text("balance", mistakes, |text| fields::one_of(text, "a way to balance", words))
    {
        service.balance = balance;
    }
    if let Some(field) = section.field("check") {
        check(&field, &mut service.check, is_default, mistakes);
    }
    (service, listeners)
}

/// A new service before anything of it was read.
fn plain(name: ServiceName) -> Service {
    Service {
        name,
        listen: Vec::new(),
        port: 0,
        check: Check::default(),
        balance: Balance::default(),
        weight: 100,
        maxconn: DEFAULT_MAXCONN,
        backend_maxconn: 0,
        send_proxy: false,
        share_port: false,
        access_log: false,
        offer: true,
    }
}

/// `check = "tcp"`, or `[service.check]`.
fn check(field: &Field<'_, '_>, check: &mut Check, is_default: bool, mistakes: &mut Mistakes<'_>) {
    if let DeValue::String(word) = field.value.get_ref() {
        match kind_of(word, is_default, &check.kind) {
            Ok(kind) => check.kind = kind,
            Err(message) => mistakes.add(field.offset(), &field.key, message),
        }
        return;
    }
    let Some(table) = field.table(mistakes) else { return };
    let section = Section::open("service.check", field.offset(), table, CHECK_KEYS, mistakes);
    let read = |word: &str| kind_of(word, is_default, &check.kind);
    let said = section.text("kind", mistakes, read);
    // With a kind that can't be read, nothing is said about which keys belong to it.
    let is_known = said.is_some() || section.field("kind").is_none();
    if let Some(kind) = said {
        check.kind = kind;
    }
    if is_known {
        misplaced(&section, &check.kind, mistakes);
    }
    let (http, tls) = match &mut check.kind {
        CheckKind::Tcp => (None, None),
        CheckKind::Http(http) => (Some(http), None),
        CheckKind::Https(http, tls) => (Some(http), Some(tls)),
    };
    read_http(&section, http, mistakes);
    read_tls(&section, tls, mistakes);
    read_pace(&section, check, mistakes);
}

/// The kind that a word means, with what is already known when it is the same.
fn kind_of(word: &str, is_default: bool, now: &CheckKind) -> Result<CheckKind, BadValue> {
    let http = match now {
        CheckKind::Http(http) | CheckKind::Https(http, _) => http.clone(),
        CheckKind::Tcp => HttpCheck { path: "/".to_owned(), expect: Expect::default() },
    };
    let tls = match now {
        CheckKind::Https(_, tls) => tls.clone(),
        _ => TlsCheck { discover: is_default, ..TlsCheck::default() },
    };
    let words = [
        ("tcp", CheckKind::Tcp),
        ("http", CheckKind::Http(http.clone())),
        ("https", CheckKind::Https(http, tls)),
    ];
    fields::one_of(word, "a kind of check", words)
}

/// Reports keys that the kind of check has no use for.
fn misplaced(section: &Section<'_, '_>, kind: &CheckKind, mistakes: &mut Mistakes<'_>) {
    let useless: &[&[&str]] = match kind {
        CheckKind::Tcp => &[HTTP_KEYS, TLS_KEYS],
        CheckKind::Http(_) => &[TLS_KEYS],
        CheckKind::Https(..) => &[],
    };
    for &key in useless.iter().copied().flatten() {
        if let Some(offset) = section.offset_of(key) {
            let right = if TLS_KEYS.contains(&key) { "\"https\"" } else { "\"http\" or \"https\"" };
            let (kind, written) = (kind.as_str(), mistakes.written);
            let why = BadValue::NotOfKind { kind, key, right, written };
            mistakes.add(offset, &section.dotted(key), why);
        }
    }
}

fn read_http(section: &Section<'_, '_>, http: Option<&mut HttpCheck>, mistakes: &mut Mistakes<'_>) {
    let path = section.text("path", mistakes, fields::http_path);
    let expect = section.field("expect").and_then(|field| expect(&field, mistakes));
    if let Some(http) = http {
        http.path = path.unwrap_or_else(|| std::mem::take(&mut http.path));
        http.expect = expect.unwrap_or_else(|| std::mem::take(&mut http.expect));
    }
}

/// Status codes: a number, a text as `200-299,401`, or a list of either.
fn expect(field: &Field<'_, '_>, mistakes: &mut Mistakes<'_>) -> Option<Expect> {
    let values = match field.value.get_ref() {
        DeValue::Array(list) if !list.is_empty() => list.iter().collect(),
        _ => vec![field.value],
    };
    let mut codes = Vec::new();
    for value in values {
        let text = match (value.get_ref(), integer(value.get_ref())) {
            (DeValue::String(text), _) => text.to_string(),
            (_, Some(Some(code))) => code.to_string(),
            (other, _) => {
                let message = format!(
                    "{} is not an HTTP status code; use 200, \"200-299,401\" or a list of them",
                    kind(other)
                );
                mistakes.add(value.span().start, &field.key, message);
                return None;
            }
        };
        match text.parse::<Expect>() {
            Ok(Expect(ranges)) => codes.extend(ranges),
            Err(message) => {
                mistakes.add(value.span().start, &field.key, message);
                return None;
            }
        }
    }
    Some(Expect(codes))
}

fn read_tls(section: &Section<'_, '_>, tls: Option<&mut TlsCheck>, mistakes: &mut Mistakes<'_>) {
    let server_name = section.text("server-name", mistakes, fields::server_name);
    let ca_file = section.text("ca-file", mistakes, fields::path);
    let cert_file = section.text("cert-file", mistakes, fields::path);
    let key_file = section.text("key-file", mistakes, fields::path);
    let Some(tls) = tls else { return };
    if let Some(offset) = section.offset_of("key-file")
        && section.field("cert-file").is_none()
    {
        let message = "a key without a certificate; set cert-file too";
        mistakes.missing(offset, "service.check.key-file", message);
    }
    tls.server_name = server_name;
    tls.ca_file = ca_file;
    tls.cert_file = cert_file;
    tls.key_file = key_file;
}

/// How often, how long, how many.
fn read_pace(section: &Section<'_, '_>, check: &mut Check, mistakes: &mut Mistakes<'_>) {
    check.address = section.text("address", mistakes, fields::dialled);
    let duration =
        |bounds: (Duration, Duration)| move |text: &str| fields::duration(text, bounds.0..=bounds.1);
    if let Some(interval) = section.text("interval", mistakes, duration(INTERVAL)) {
        check.interval = interval;
    }
    if let Some(timeout) = section.text("timeout", mistakes, duration(TIMEOUT)) {
        check.timeout = timeout;
    }
    if let Some(rise) = section.number("rise", mistakes, 1..=MAX_STREAK) {
        check.rise = rise;
    }
    if let Some(fall) = section.number("fall", mistakes, 1..=MAX_STREAK) {
        check.fall = fall;
    }
}

/// The listeners of the default service when the text does not speak of them.
fn default_listeners(config: &Config) -> Vec<ListenField> {
    let listen = |address: &SocketAddr| ListenField {
        address: *address,
        service: ServiceName::kube_api(),
        offset: None,
    };
    config.services.first().map(|service| service.listen.iter().map(listen).collect()).unwrap_or_default()
}

/// Whether two can't listen at these places at once.
pub(super) fn meet(a: SocketAddr, b: SocketAddr) -> bool {
    let any = a.is_ipv4() == b.is_ipv4() && (a.ip().is_unspecified() || b.ip().is_unspecified());
    a.port() == b.port() && (a.ip() == b.ip() || any)
}

/// Where the link listens, in the family of `like`.
pub(super) fn link_address(config: &Config, like: SocketAddr) -> SocketAddr {
    let any: IpAddr =
        if like.is_ipv4() { Ipv4Addr::UNSPECIFIED.into() } else { Ipv6Addr::UNSPECIFIED.into() };
    SocketAddr::new(config.bind.unwrap_or(any), config.port.unwrap_or(crate::transport::PORT))
}

/// Two can't listen at one place, and the link's own port is taken.
fn check_listeners(listeners: &[ListenField], config: &Config, mistakes: &mut Mistakes<'_>) {
    for (i, listen) in listeners.iter().enumerate() {
        if let Some(offset) = listen.offset
            && meet(listen.address, link_address(config, listen.address))
        {
            let message = format!("{} is the agent's own port; choose another", listen.address);
            mistakes.add(offset, "service.listen", message);
        }
        for other in &listeners[..i] {
            // Reported where it can be fixed: the later of the two that stands in the text.
            let Some(offset) = listen.offset.max(other.offset) else { continue };
            if meet(listen.address, other.address) {
                let (here, there) =
                    if listen.offset == Some(offset) { (listen, other) } else { (other, listen) };
                let message = format!(
                    "{} conflicts with {} of service {}; choose another port",
                    here.address, there.address, there.service
                );
                mistakes.add(offset, "service.listen", message);
            }
        }
    }
}
