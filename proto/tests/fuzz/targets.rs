//! What is fuzzed: every decoder, and every file that people write. Each takes bytes and must return; what it
//! reads, it must read again from what it writes. Both `tests/fuzz` and cargo-fuzz, in `fuzz`, run these.

use std::sync::LazyLock;

use std::collections::BTreeMap;

use proto::arp::{ArpPacket, Mac};
use proto::client_hello::{ClientHello, inspect};
use proto::cluster::Document;
use proto::config::{self, Config};
use proto::control::{Request, Response};
use proto::election::wire;
use proto::handover::HandOver;
use proto::invite::{Invite, PREFIX, parse_pin};
use proto::migrate::{MigrateError, SourceFile, Surroundings, migrate};
use proto::node::{Name, NodeId, PublicKey};
use proto::pulse::PulseStatus;
use proto::record::NodeRecord;
use proto::rpc::{FromJoining, FromMember, Received, ToJoining, ToMember, decode, encode};
use proto::settings::{self, Settings};
use proto::signed_record::{RecordVersion, SignedRecord};
use proto::topology::{Attach, Beacon};
use proto::transport::{DatagramFrame, DatagramHeader};

/// One of them.
type Target = fn(&[u8]);

/// All, by the names of their corpora.
pub(crate) const TARGETS: [(&str, Target); 21] = [
    ("datagram", datagram),
    ("frames", frames),
    ("record", record),
    ("signed_record", signed_record),
    ("document", document),
    ("rpc", rpc),
    ("control", control),
    ("vip", vip),
    ("pulse", pulse),
    ("topology", topology),
    ("handover", handover),
    ("invite", invite),
    ("config", config),
    ("env", env),
    ("settings", settings),
    ("haproxy", haproxy),
    ("keepalived", keepalived),
    ("client_hello", client_hello),
    ("segment", segment),
    ("certificate", certificate),
    ("words", words),
];

/// Gives bytes to the target of a name.
pub(crate) fn run(name: &str, bytes: &[u8]) {
    match TARGETS.iter().find(|(of, _)| *of == name) {
        Some((_, target)) => target(bytes),
        None => panic!("no target {name}"),
    }
}

/// A datagram as it comes, sealed.
fn datagram(bytes: &[u8]) {
    if let Some((header, rest)) = DatagramHeader::parse(bytes) {
        assert_eq!([header.to_bytes().as_slice(), rest].concat(), bytes);
    }
}

/// What is in a datagram.
fn frames(bytes: &[u8]) {
    for frame in DatagramFrame::all(bytes) {
        let written = frame.to_bytes();
        assert!(written.is_empty() || DatagramFrame::all(&written).eq([frame]), "{frame:?}");
    }
}

/// What a node says of itself.
fn record(bytes: &[u8]) {
    let Ok(name) = "n".parse::<Name>() else { return };
    let (read, _) = NodeRecord::from_body(name.clone(), bytes);
    let (again, left_out) = NodeRecord::from_body(name, &read.to_body());
    assert_eq!((again, left_out), (read, Vec::new()));
}

/// The same as gossip carries it.
fn signed_record(bytes: &[u8]) {
    let (node, version) = (NodeId([1; NodeId::LEN]), RecordVersion { generation: 1, sequence: 1 });
    let Some(read) = SignedRecord::from_value(node, version, &text(bytes)) else { return };
    read.fingerprint();
    assert!(!read.verify("cluster", &PublicKey([1; 32])));
    assert!(SignedRecord::from_value(node, version, &read.to_value()) == Some(read));
}

/// The cluster's document, and the settings in it.
fn document(bytes: &[u8]) {
    let Ok(document) = Document::from_bytes(bytes) else { return };
    assert!(Document::from_bytes(&document.to_bytes()).is_ok_and(|again| again == document));
    let (settings, _) = Settings::of(&document);
    config::overlay(&Config::default(), &settings.services);
}

/// Messages of the TCP port. What is read is written and read again.
fn rpc(bytes: &[u8]) {
    again::<FromMember>(bytes);
    again::<ToMember>(bytes);
    again::<FromJoining>(bytes);
    again::<ToJoining>(bytes);
}

/// Messages of the control socket.
fn control(bytes: &[u8]) {
    again::<Request>(bytes);
    again::<Response>(bytes);
}

/// What members say of virtual IPs.
fn vip(bytes: &[u8]) {
    let Ok(messages) = wire::unpack(bytes) else { return };
    let again: Vec<_> =
        wire::pack(&messages).iter().flat_map(|one| wire::unpack(one).unwrap_or_default()).collect();
    assert_eq!(again, messages);
}

/// What a pulse carries.
fn pulse(bytes: &[u8]) {
    let _ = proto::heard::from_bytes(bytes).count();
    if let Some(pulse_status) = PulseStatus::from_bytes(bytes) {
        assert_eq!(PulseStatus::from_bytes(&pulse_status.to_bytes()), Some(pulse_status));
    }
}

/// What attached nodes and core members say to each other.
fn topology(bytes: &[u8]) {
    let (attach, beacon) = (Attach::from_bytes(bytes), Beacon::from_bytes(bytes));
    // A record that does not fit is left out, and so is the end of a list.
    let again = Attach::from_bytes(&attach.to_bytes());
    assert!(again == attach || again == Attach { carried: None, ..attach });
    let again = Beacon::from_bytes(&beacon.to_bytes());
    assert!(
        beacon.silent.as_deref().unwrap_or_default().starts_with(again.silent.as_deref().unwrap_or_default()),
        "{beacon:?} became {again:?}"
    );
    assert!(again.carried.is_none() || again.carried == beacon.carried);
    assert_eq!(again, Beacon { silent: again.silent.clone(), carried: again.carried.clone(), ..beacon });
}

/// What a process hands to the one that takes its place.
fn handover(bytes: &[u8]) {
    let Ok(read) = HandOver::from_bytes(bytes) else { return };
    let again = HandOver::from_bytes(&read.to_bytes());
    assert_eq!(again, Ok(HandOver { left_out: 0, ..read }));
}

/// A line of an invite, or the key in it, as someone typed it.
fn invite(bytes: &[u8]) {
    let text = text(bytes);
    let _ = parse_pin(&text);
    // Content under a right checksum too, or hardly anything would come to it.
    let sum = ring::digest::digest(&ring::digest::SHA256, bytes);
    let whole =
        data_encoding::BASE32_NOPAD.encode(&[bytes, &sum.as_ref()[..4]].concat()).to_ascii_lowercase();
    for line in [text, format!("{PREFIX}{whole}")] {
        if let Ok(invite) = line.parse::<Invite>() {
            assert!(invite.to_string().parse::<Invite>().is_ok_and(|again| again == invite));
        }
    }
}

/// `agent.toml`.
fn config(bytes: &[u8]) {
    if let Ok(config) = config::parse(&text(bytes)) {
        config::overlay(&config, &[]);
    }
}

/// The environment, a variable to a line.
fn env(bytes: &[u8]) {
    let text = text(bytes);
    let variables = text.lines().filter_map(|line| line.split_once('='));
    let owned = variables.map(|(key, value)| (key.to_owned(), value.to_owned()));
    let _ = config::apply_env(Config::default(), owned);
}

/// Settings as `agent set` takes them, one to a line; without a value it is unset.
fn settings(bytes: &[u8]) {
    // A document to set them in; nothing reads it from the bytes that are tried.
    static DOCUMENT: LazyLock<Option<Document>> = LazyLock::new(|| {
        let lines = include_str!("../golden/document-1.hex").lines();
        let digits: String = lines.filter(|line| !line.starts_with('#')).collect();
        let bytes = data_encoding::HEXLOWER.decode(digits.as_bytes()).ok()?;
        Document::from_bytes(&bytes).ok()
    });
    let Some(document) = &*DOCUMENT else { panic!("no document to set anything in") };
    let text = text(bytes);
    let wish = |line: &str| match line.split_once('=') {
        Some((key, value)) => (key.to_owned(), Some(value.to_owned())),
        None => (line.to_owned(), None),
    };
    let wishes: Vec<_> = text.lines().take(16).map(wish).collect();
    let _ = settings::plan(document, &wishes);
    for (key, _) in &wishes {
        let _ = settings::secrecy(key);
    }
}

/// `haproxy.cfg`. What is made of it is a configuration, or it is said that it is none.
fn haproxy(bytes: &[u8]) {
    migrated("haproxy.cfg", bytes);
}

/// `keepalived.conf`.
fn keepalived(bytes: &[u8]) {
    migrated("keepalived.conf", bytes);
}

fn migrated(name: &str, bytes: &[u8]) {
    let around = Surroundings { node: None, names: &BTreeMap::new(), variables: &|_| None };
    match migrate(&[SourceFile { name, bytes }], &around) {
        Ok(migration) => assert!(config::parse(&migration.text).is_ok(), "{}", migration.text),
        Err(error) => assert!(!matches!(error, MigrateError::Invalid { .. }), "{error}"),
    }
}

/// The first bytes of a client. A whole hello is one from its first byte on.
fn client_hello(bytes: &[u8]) {
    if inspect(bytes) == ClientHello::Hello {
        let beginnings = [0, 1, bytes.len() / 2, bytes.len() - 1];
        assert!(beginnings.iter().all(|end| inspect(&bytes[..*end]) == ClientHello::Partial));
    }
}

/// Frames of ARP and of IPv6's neighbour discovery.
fn segment(bytes: &[u8]) {
    if let Some(arp) = ArpPacket::parse(bytes) {
        arp.claim();
        assert_eq!(ArpPacket::parse(&arp.to_frame(Mac([1; 6]))), Some(arp));
    }
    let _ = proto::ndp::parse(bytes);
    // The same with a right checksum (RFC 4443, section 2.3), which stands at 56.
    if bytes.len() < 58 {
        return;
    }
    let (mut summed, length) = (bytes.to_vec(), bytes.len() - 54);
    summed[56..58].fill(0);
    let words = |part: &[u8]| -> u32 {
        part.chunks(2).map(|two| u32::from(two[0]) << 8 | two.get(1).map_or(0, |low| u32::from(*low))).sum()
    };
    let mut sum = words(&summed[22..]) + 58 + u32::try_from(length).unwrap_or(0);
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    let [.., high, low] = (!sum).to_be_bytes();
    summed[56..58].copy_from_slice(&[high, low]);
    let _ = proto::ndp::parse(&summed);
}

/// An apiserver's certificate.
fn certificate(bytes: &[u8]) {
    let _ = proto::doctor::x509::read(bytes);
}

/// All that is a word or two on a command line or in a value.
fn words(bytes: &[u8]) {
    let text = text(bytes);
    fn shown<T: std::str::FromStr<Err = E> + ToString + PartialEq, E>(text: &str) {
        if let Ok(read) = text.parse::<T>() {
            assert!(read.to_string().parse::<T>().is_ok_and(|again| again == read), "{text}");
        }
    }
    shown::<Name, _>(&text);
    shown::<NodeId, _>(&text);
    shown::<PublicKey, _>(&text);
    shown::<Mac, _>(&text);
    shown::<proto::service::ServiceName, _>(&text);
    shown::<proto::service::Expect, _>(&text);
    let _ = proto::time::parse_duration(&text);
    let _ = config::WebhookConfig::parse(&text);
    let _ = config::check_path(&text);
    let _ = config::check_interface(&text);
    let _ = config::check_address(&text);
    let _ = settings::check_vip(&text);
}

/// What is read is written and read again, with the same bytes.
fn again<T: serde::Serialize + serde::de::DeserializeOwned>(bytes: &[u8]) {
    if let Ok(Received::Known(message)) = decode::<Received<T>>(bytes) {
        let Ok(written) = encode(&message) else { panic!("what was read can't be written") };
        match decode::<Received<T>>(&written) {
            Ok(Received::Known(again)) => assert!(encode(&again).is_ok_and(|again| again == written)),
            _ => panic!("what was written is not read: {written:?}"),
        }
    }
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}
