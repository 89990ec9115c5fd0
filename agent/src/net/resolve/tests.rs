use std::fs;
use std::sync::{Arc, Mutex};

use hickory_resolver::proto::op::{Message, MessageType};
use hickory_resolver::proto::rr::{RData, Record};
use tokio::net::UdpSocket;
use tokio::task::JoinHandle;

use super::*;

#[test]
fn what_is_typed_is_split_exactly() {
    let ok = [
        ("1.2.3.4", "1.2.3.4", 7),
        ("1.2.3.4:1", "1.2.3.4", 1),
        ("fd00::1", "fd00::1", 7),
        ("[fd00::1]", "fd00::1", 7),
        ("[fd00::1]:65535", "fd00::1", 65535),
        ("::ffff:1.2.3.4", "::ffff:1.2.3.4", 7),
    ];
    for (given, ip, port) in ok {
        assert_eq!(parse(given, 7), Ok((Host::Ip(ip.parse().unwrap()), port)), "{given}");
    }
    let names = [
        ("node1", "node1", 7),
        ("node1:80", "node1", 80),
        ("Node-1.example.com.", "node-1.example.com.", 7),
        ("a_b.example:1", "a_b.example", 1),
        ("1a.example", "1a.example", 7),
    ];
    for (given, name, port) in names {
        let expected = Name::from_str_relaxed(name).unwrap();
        assert_eq!(parse(given, 7), Ok((Host::Name(expected), port)), "{given}");
    }
    let long = format!("{}.example", "a".repeat(64));
    let refused = [
        ("", "is empty; give a name or an address"),
        ("bücher.example", "is not a name that can be written in ASCII"),
        (":80", "has no name before the port"),
        ("a..b", "has no name before the port, or two dots in a row"),
        (".", "has no name before the port, or two dots"),
        ("node1:", "has the port \"\", which is not a number from 1 to 65535"),
        ("node1:0", "has the port \"0\""),
        ("node1:65536", "has the port \"65536\""),
        ("node1:+80", "has the port \"+80\""),
        ("node1:http", "has the port \"http\""),
        ("1.2.3", "is not an IPv4 address, and no name ends in a number"),
        ("1.2.3.256:80", "is not an IPv4 address"),
        ("fd00::g", "is not an IPv6 address; one with a port is written [fd00::1]:7646"),
        ("1:2:3", "is not an IPv6 address"),
        ("[fd00::1", "has a [ without its ]"),
        ("[fd00::1]80", "has \"80\" after the ]; only :PORT can stand there"),
        ("[fd00::1]:", "has the port \"\""),
        ("[node1]:80", "has \"node1\" in brackets, which is not an IPv6 address"),
        ("fe80::1%eth0", "has a zone"),
        ("https://node1:6443/", "begins with https://; give only node1:6443"),
        ("node1 ", "contains ' ', which no name and no address has"),
        ("node1/x", "contains '/'"),
        ("no*de", "contains '*', which no name has"),
        ("-node", "has the part \"-node\", which begins or ends with a hyphen"),
        ("node1\0", "contains '\\0'"),
        (long.as_str(), "is not a name: "),
    ];
    for (given, why) in refused {
        let error = parse(given, 7).unwrap_err();
        assert!(error.starts_with(why), "{given:?}: {error}");
    }
}

proptest::proptest! {
    #[test]
    fn nothing_typed_makes_it_panic(given in ".{0,80}") {
        let _ = parse(&given, 7);
    }
}

/// A name server on a port of its own, and the names it was asked for.
struct Server {
    port: u16,
    asked: Arc<Mutex<Vec<String>>>,
    task: JoinHandle<()>,
}

impl Drop for Server {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn server() -> Server {
    let socket = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    let port = socket.local_addr().unwrap().port();
    let asked = Arc::new(Mutex::new(Vec::new()));
    let seen = Arc::clone(&asked);
    let task = tokio::spawn(async move {
        let mut buf = [0; 1500];
        loop {
            let (len, from) = socket.recv_from(&mut buf).await.unwrap();
            let question = Message::from_vec(&buf[..len]).unwrap();
            let query = question.queries[0].clone();
            seen.lock().unwrap().push(query.name().to_utf8());
            if let Some(answer) = answer(&question, &query) {
                socket.send_to(&answer.to_vec().unwrap(), from).await.unwrap();
            }
        }
    });
    Server { port, asked, task }
}

fn answer(question: &Message, query: &Query) -> Option<Message> {
    let mut answer = Message::response(question.id, question.op_code);
    answer.metadata.message_type = MessageType::Response;
    answer.add_query(query.clone());
    let a = |ip: &str| RData::A(ip.parse::<Ipv4Addr>().unwrap().into());
    let aaaa = |ip: &str| RData::AAAA(ip.parse::<Ipv6Addr>().unwrap().into());
    let records = match (query.name().to_utf8().as_str(), query.query_type()) {
        ("both.example.", RecordType::A) => vec![a("10.0.0.1"), a("10.0.0.2")],
        ("both.example.", RecordType::AAAA) => vec![aaaa("fd00::1")],
        ("six.example.", RecordType::AAAA) => vec![aaaa("fd00::6")],
        ("six.example." | "none.example.", _) => vec![],
        ("node1.lan.", RecordType::A) => vec![a("10.0.0.9")],
        ("node1.lan.", _) => vec![],
        ("silent.example.", _) => return None,
        ("broken.example.", _) => {
            answer.metadata.response_code = ResponseCode::ServFail;
            vec![]
        }
        _ => {
            answer.metadata.response_code = ResponseCode::NXDomain;
            vec![]
        }
    };
    for data in records {
        answer.add_answer(Record::from_rdata(query.name().clone(), 60, data));
    }
    Some(answer)
}

fn sources(dir: &tempfile::TempDir, port: u16) -> Sources {
    Sources {
        hosts: dir.path().join("hosts"),
        resolv_conf: dir.path().join("resolv.conf"),
        nameservers: Vec::new(),
        port,
        patience: PATIENCE,
    }
}

async fn ask(given: &str, sources: &Sources) -> Result<String, String> {
    let found = resolve_by(given, 7646, sources).await.map_err(|error| error.to_string())?;
    Ok(found.iter().map(SocketAddr::to_string).collect::<Vec<_>>().join(" "))
}

#[tokio::test]
async fn names_are_asked_of_the_name_server_in_both_families() {
    let dir = tempfile::tempdir().unwrap();
    let server = server().await;
    let mut sources = sources(&dir, server.port);
    sources.nameservers = vec!["127.0.0.1".parse().unwrap()];
    let cases = [
        ("both.example", Ok("10.0.0.1:7646 10.0.0.2:7646 [fd00::1]:7646")),
        ("both.example.:80", Ok("10.0.0.1:80 10.0.0.2:80 [fd00::1]:80")),
        ("six.example", Ok("[fd00::6]:7646")),
        ("wrong.example", Err("no such name: wrong.example (asked 127.0.0.1); check the spelling")),
        ("none.example", Err("none.example is a name without an address")),
        (
            "broken.example",
            Err("can't resolve broken.example: error response: Server Failure; give an address instead"),
        ),
    ];
    for (given, expected) in cases {
        let expected = expected.map(str::to_owned).map_err(str::to_owned);
        assert_eq!(ask(given, &sources).await, expected, "{given}");
    }
}

#[tokio::test]
async fn nobody_is_waited_for_longer_than_said() {
    let dir = tempfile::tempdir().unwrap();
    let server = server().await;
    let mut sources = sources(&dir, server.port);
    sources.patience = Duration::from_millis(100);
    let expected = "no name server answered (asked 127.0.0.1, ::1) for silent.example; give an address, or \
                    check /etc/resolv.conf";
    assert_eq!(ask("silent.example", &sources).await, Err(expected.to_owned()));
    assert!(!server.asked.lock().unwrap().is_empty(), "without a resolv.conf this host itself is asked");
}

#[tokio::test]
async fn a_name_server_that_is_not_there_is_no_answer() {
    let dir = tempfile::tempdir().unwrap();
    // Bound and never read would be silence; closed is a refusal.
    let port = UdpSocket::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap().port();
    let mut sources = sources(&dir, port);
    sources.nameservers = vec!["127.0.0.1".parse().unwrap()];
    sources.patience = Duration::from_millis(200);
    let error = ask("both.example", &sources).await.unwrap_err();
    assert!(error.starts_with("no name server answered (asked 127.0.0.1) for both.example"), "{error}");
}

#[tokio::test]
async fn hosts_and_localhost_need_no_name_server() {
    let dir = tempfile::tempdir().unwrap();
    let sources = sources(&dir, 9);
    fs::write(&sources.hosts, "10.1.1.1 master1 m1.example # here\nfd00::11 m1.example\n\nbad line\n")
        .unwrap();
    assert_eq!(ask("master1", &sources).await.unwrap(), "10.1.1.1:7646");
    assert_eq!(ask("M1.Example:1", &sources).await.unwrap(), "10.1.1.1:1 [fd00::11]:1");
    assert_eq!(ask("localhost", &sources).await.unwrap(), "127.0.0.1:7646 [::1]:7646");
    assert_eq!(ask("x.LOCALHOST.", &sources).await.unwrap(), "127.0.0.1:7646 [::1]:7646");
}

#[tokio::test]
async fn search_domains_are_tried() {
    let dir = tempfile::tempdir().unwrap();
    let server = server().await;
    let sources = sources(&dir, server.port);
    // With and without a name server in the file: the search holds either way.
    for file in ["search corp lan\nnameserver 127.0.0.1\n", "search corp lan\n", "garbage\nsearch corp lan"] {
        fs::write(&sources.resolv_conf, file).unwrap();
        assert_eq!(ask("node1", &sources).await.unwrap(), "10.0.0.9:7646", "{file}");
        let asked = server.asked.lock().unwrap().split_off(0);
        assert!(asked.contains(&"node1.corp.".to_owned()), "{asked:?}");
    }
}
