//! Tests of the whole: what each field takes, what it refuses and where, and that nothing makes it panic.

use std::time::Duration;

use proptest::prelude::*;

use super::*;
use crate::service::{Balance, CheckKind, KUBE_API};

/// The only mistake in a text.
fn mistake(text: &str) -> Mistake {
    let mistakes = parse(text).err().unwrap_or_else(|| panic!("nothing is found wrong in:\n{text}"));
    assert_eq!(mistakes.len(), 1, "{mistakes:#?} in:\n{text}");
    mistakes[0].clone()
}

fn good(text: &str) -> Config {
    parse(text).unwrap_or_else(|mistakes| panic!("{mistakes:#?} in:\n{text}"))
}

/// A service that is right, with more lines below it.
fn web(lines: &str) -> String {
    format!("[[service]]\nname = \"web\"\nlisten = \"127.0.0.1:8443\"\nport = 443\n{lines}")
}

#[test]
fn nothing_is_the_default() {
    assert_eq!(good(""), Config::default());
    assert_eq!(good("# only a remark\n"), Config::default());
    let named = vec![ServiceName::kube_api()];
    assert_eq!(good("[[service]]\nname = \"kube-api\"\n"), Config { named, ..Config::default() });
    assert_eq!(good("[log]\n"), Config::default());
}

#[test]
fn every_field_is_read() {
    let config = good(
        r#"
        name = "m1"
        address = "10.0.0.1"
        interface = "wg0"
        port = 7000
        bind = "0.0.0.0"
        state-dir = "/srv/agent"
        runtime-dir = "/run/other"

        [log]
        format = "json"
        level = "debug"

        [[service]]
        name = "kube-api"
        listen = ["127.0.0.1:16443", "[::1]:16443"]
        port = 6444
        balance = "round-robin"
        weight = 0
        maxconn = 5
        backend-maxconn = 250
        send-proxy = true
        share-port = true
        access-log = true
        check = { address = "10.0.0.1:6445", interval = "500ms", timeout = "2s", rise = 1, fall = 9 }

        [[service]]
        name = "web"
        listen = "127.0.0.1:8443"
        port = 443
        [service.check]
        kind = "https"
        path = "/healthz"
        expect = [200, "300-302,401"]
        server-name = "web.example"
        ca-file = "/etc/ca.pem"
        cert-file = "/etc/cert.pem"
        key-file = "/etc/key.pem"
        "#,
    );
    assert_eq!(config.name.unwrap().as_str(), "m1");
    assert_eq!(config.address, "10.0.0.1".parse().ok());
    assert_eq!(config.interface.as_deref(), Some("wg0"));
    assert_eq!(config.port, Some(7000));
    assert_eq!(config.bind, "0.0.0.0".parse().ok());
    assert_eq!((&*config.state_dir, &*config.runtime_dir), ("/srv/agent", "/run/other"));
    assert_eq!((config.log_format, config.log_level), (LogFormat::Json, LogLevel::Debug));

    let [api, web] = &config.services[..] else { panic!("{:?}", config.services) };
    assert_eq!((api.listen.len(), api.port, api.weight, api.maxconn), (2, 6444, 0, 5));
    assert_eq!(
        (api.backend_maxconn, api.send_proxy, api.share_port, api.access_log),
        (250, true, true, true)
    );
    assert_eq!(api.balance, Balance::RoundRobin);
    assert_eq!(api.check.address, "10.0.0.1:6445".parse().ok());
    assert_eq!(api.check.interval, Duration::from_millis(500));
    assert_eq!(api.check.timeout, Duration::from_secs(2));
    assert_eq!((api.check.rise, api.check.fall), (1, 9));
    assert_eq!(api.check.kind, Service::kube_api().check.kind, "what is not said stays");

    let CheckKind::Https(http, tls) = &web.check.kind else { panic!("{:?}", web.check) };
    assert_eq!((http.path.as_str(), http.expect.to_string().as_str()), ("/healthz", "200,300-302,401"));
    assert_eq!(tls.server_name.as_deref(), Some("web.example"));
    assert_eq!(tls.ca_file.as_deref(), Some("/etc/ca.pem"));
    assert_eq!(tls.cert_file.as_deref(), Some("/etc/cert.pem"));
    assert_eq!(tls.key_file.as_deref(), Some("/etc/key.pem"));
    assert!(!tls.discover, "Kubernetes' credentials are not shown to others");
}

#[test]
fn the_default_service_keeps_what_is_not_overridden() {
    let config = good(&format!("{}[[service]]\nname = \"kube-api\"\nport = 6444\n", web("")));
    let names: Vec<&str> = config.services.iter().map(|service| service.name.as_str()).collect();
    assert_eq!(names, [KUBE_API, "web"], "the default service stands first wherever it is written");
    assert_eq!(config.services[0], Service { port: 6444, ..Service::kube_api() });
    assert_eq!(config.services[1].check.kind, CheckKind::Tcp);

    let tcp = good("[[service]]\nname = \"kube-api\"\ncheck = \"tcp\"\n");
    assert_eq!(tcp.services[0].check.kind, CheckKind::Tcp);
    let named =
        good("[[service]]\nname = \"kube-api\"\n[service.check]\nkind = \"https\"\nca-file = \"/ca\"\n");
    let CheckKind::Https(http, tls) = &named.services[0].check.kind else { panic!() };
    assert_eq!(http.path, "/readyz");
    assert!(tls.discover && tls.ca_file.as_deref() == Some("/ca"));
    let nowhere = good("[[service]]\nname = \"kube-api\"\nlisten = []\n");
    assert!(nowhere.services[0].listen.is_empty());
}

/// Each wrong value: where it is reported, as which key, and words that must be in the message.
#[test]
fn every_wrong_value_is_named_with_its_place() {
    let service = web("");
    let after = |line: &str| format!("{service}{line}");
    let check = |line: &str| format!("{service}[service.check]\n{line}");
    let http = |line: &str| format!("{service}[service.check]\nkind = \"http\"\n{line}");
    let https = |line: &str| format!("{service}[service.check]\nkind = \"https\"\n{line}");
    for (text, place, key, words) in [
        ("name = \"M_1\"".to_owned(), (1, 8), "name", "is not a name"),
        ("name = 3".to_owned(), (1, 8), "name", "expected a string in quotes, found 3; write name = \"3\""),
        ("address = \"10.0.0.1:80\"".to_owned(), (1, 11), "address", "without a port"),
        ("address = \"0.0.0.0\"".to_owned(), (1, 11), "address", "not reachable for others"),
        ("address = \"ff02::1\"".to_owned(), (1, 11), "address", "not reachable for others"),
        ("interface = \"\"".to_owned(), (1, 13), "interface", "is not an interface name"),
        ("interface = \"much-too-long-name\"".to_owned(), (1, 13), "interface", "1 to 15 characters"),
        ("port = 0".to_owned(), (1, 8), "port", "from 1 to 65535"),
        ("port = 65536".to_owned(), (1, 8), "port", "from 1 to 65535"),
        ("port = -1".to_owned(), (1, 8), "port", "from 1 to 65535"),
        ("port = 99999999999999999999".to_owned(), (1, 8), "port", "from 1 to 65535"),
        ("port = 1.5".to_owned(), (1, 8), "port", "expected a number, found 1.5; use a whole number from 1"),
        ("port = \"80\"".to_owned(), (1, 8), "port", "expected a number, found \"80\"; write port = 80"),
        (
            "port = \"http\"".to_owned(),
            (1, 8),
            "port",
            "expected a number, found \"http\"; use a whole number from 1",
        ),
        (
            "port = \"70000\"".to_owned(),
            (1, 8),
            "port",
            "found \"70000\"; use a whole number from 1 to 65535",
        ),
        ("name = [\"a\"]".to_owned(), (1, 8), "name", "expected a string in quotes, found a list"),
        ("notify = true".to_owned(), (1, 10), "notify", "found true: \"true\" is not an absolute path"),
        ("interface = 5".to_owned(), (1, 13), "interface", "found 5; write interface = \"5\""),
        (
            "[web]\nlisten = 1936".to_owned(),
            (2, 10),
            "web.listen",
            "found 1936: \"1936\" is not an address with a port",
        ),
        (
            "webhook = 12345".to_owned(),
            (1, 11),
            "webhook",
            "expected a string in quotes, found a whole number",
        ),
        ("name = \"m\u{1b}[2J\"".replace("\u{1b}", "\\u001b"), (1, 8), "name", "\"m?[2J\" is not a name"),
        ("\"na\\u001bme\" = 1".to_owned(), (1, 1), "na?me", "did you mean name?"),
        ("balance = \"first\"".to_owned(), (1, 1), "balance", "see: agent help set"),
        ("weight.m1 = 5".to_owned(), (1, 1), "weight", "see: agent help set"),
        ("[drain]\nm1 = 1".to_owned(), (1, 2), "drain", "see: agent help set"),
        ("service.web.port = 443".to_owned(), (1, 1), "service", "run: agent set service.NAME.KEY=VALUE"),
        (
            "port = 1\nname = \"a\"\nport = 2".to_owned(),
            (3, 1),
            "",
            "duplicate key port: it is already on line 1; remove one of the two",
        ),
        (
            "[log]\nlevel = \"info\"\n[log]".to_owned(),
            (3, 2),
            "",
            "duplicate key log: it is already on line 1; remove",
        ),
        (after("port = 3"), (5, 1), "", "duplicate key port: it is already on line 4; remove one"),
        ("bind = \"wg0\"".to_owned(), (1, 8), "bind", "is not an IP address"),
        ("state-dir = \"state\"".to_owned(), (1, 13), "state-dir", "must begin with /"),
        ("runtime-dir = \"\"".to_owned(), (1, 15), "runtime-dir", "must begin with /"),
        (format!("runtime-dir = \"/{}\"", "x".repeat(90)), (1, 15), "runtime-dir", "at most 80"),
        ("log = \"json\"".to_owned(), (1, 7), "log", "write [log]"),
        ("[log]\nformat = \"jsn\"".to_owned(), (2, 10), "log.format", "did you mean json?"),
        ("[log]\nlevel = \"loud\"".to_owned(), (2, 9), "log.level", "error, warn, info, debug"),
        ("[log]\nlevle = \"info\"".to_owned(), (2, 1), "log.levle", "did you mean level?"),
        ("nmae = \"m1\"".to_owned(), (1, 1), "nmae", "did you mean name?"),
        ("\n\n  state_dir = \"/x\"".to_owned(), (3, 3), "state_dir", "did you mean state-dir?"),
        ("vip = \"10.0.0.9\"".to_owned(), (1, 7), "vip", "agent set vip=10.0.0.50"),
        ("service = 1".to_owned(), (1, 11), "service", "write [[service]]"),
        ("[service]\nname = \"web\"".to_owned(), (1, 1), "service", "write [[service]]"),
        ("service = [1]".to_owned(), (1, 12), "service", "expected a table, found a whole number"),
        ("[[service]]\nport = 1".to_owned(), (1, 1), "service.name", "missing"),
        ("[[service]]\nname = \"web\"\nport = 1".to_owned(), (1, 1), "service.listen", "missing"),
        ("[[service]]\nname = \"web\"\nlisten = []".to_owned(), (1, 1), "service.port", "missing"),
        ("[[service]]\nname = \"W\"".to_owned(), (2, 8), "service.name", "is not a service name"),
        (
            after("[[service]]\nname = \"web\"\nlisten = []\nport = 1"),
            (6, 8),
            "service.name",
            "duplicate service",
        ),
        (after("wieght = 3"), (5, 1), "service.wieght", "did you mean weight?"),
        (after("weight = 257"), (5, 10), "service.weight", "from 0 to 256"),
        (after("backend-maxconn = -1"), (5, 19), "service.backend-maxconn", "from 0 to"),
        (
            after("send-proxy = \"true\""),
            (5, 14),
            "service.send-proxy",
            "found \"true\"; write send-proxy = true",
        ),
        (after("access-log = 1"), (5, 14), "service.access-log", "true or false"),
        (after("maxconn = 0"), (5, 11), "service.maxconn", "from 1 to"),
        (
            after("balance = \"leastconn\""),
            (5, 11),
            "service.balance",
            "least-connections, round-robin, nearest, first",
        ),
        (after("check = \"htps\""), (5, 9), "service.check", "did you mean https?"),
        (after("check = 5"), (5, 9), "service.check", "expected a table"),
        (check("kind = \"icmp\""), (6, 8), "service.check.kind", "tcp, http, https"),
        (check("path = \"/x\""), (6, 1), "service.check.path", "write kind = \"http\" or \"https\""),
        (check("timout = \"1s\""), (6, 1), "service.check.timout", "did you mean timeout?"),
        (check("interval = \"10ms\""), (6, 12), "service.check.interval", "too short"),
        (
            check("interval = 5"),
            (6, 12),
            "service.check.interval",
            "found 5: \"5\" is not a duration; write a number",
        ),
        (check("timeout = \"2m\""), (6, 11), "service.check.timeout", "too long"),
        (check("timeout = \"soon\""), (6, 11), "service.check.timeout", "is not a duration"),
        (check("rise = 0"), (6, 8), "service.check.rise", "from 1 to 100"),
        (check("fall = 101"), (6, 8), "service.check.fall", "from 1 to 100"),
        (check("address = \"0.0.0.0:1\""), (6, 11), "service.check.address", "is not reachable"),
        (check("address = \"10.0.0.1\""), (6, 11), "service.check.address", "an address with a port"),
        (http("path = \"x\""), (7, 8), "service.check.path", "must begin with /"),
        (http("path = \"/x y\""), (7, 8), "service.check.path", "no spaces"),
        (http("expect = 99"), (7, 10), "service.check.expect", "HTTP status codes"),
        (http("expect = true"), (7, 10), "service.check.expect", "true or false is not an HTTP status code"),
        (http("expect = []"), (7, 10), "service.check.expect", "a list is not an HTTP status code"),
        (http("expect = [200, \"x\"]"), (7, 16), "service.check.expect", "HTTP status codes"),
        (http("ca-file = \"/ca\""), (7, 1), "service.check.ca-file", "write kind = \"https\""),
        (https("server-name = \"a b\""), (7, 15), "service.check.server-name", "a valid certificate name"),
        (https("ca-file = \"ca\""), (7, 11), "service.check.ca-file", "must begin with /"),
        (https("cert-file = \"c\""), (7, 13), "service.check.cert-file", "must begin with /"),
        (https("key-file = \"/k\""), (7, 1), "service.check.key-file", "set cert-file too"),
    ] {
        let found = mistake(&text);
        assert_eq!(((found.line, found.column), found.key.as_str()), (place, key), "{found} in:\n{text}");
        assert!(found.message.contains(words), "{found} lacks \"{words}\"");
    }
}

#[test]
fn all_mistakes_come_at_once_and_in_the_order_of_the_text() {
    let text = "port = 0\nnam = \"x\"\n[log]\nlevel = \"x\"\n[[service]]\nname = \"web\"\nport = 0\n";
    let found: Vec<String> =
        parse(text).unwrap_err().iter().map(|m| format!("{}:{}:{}", m.line, m.column, m.key)).collect();
    assert_eq!(found, ["1:8:port", "2:1:nam", "4:9:log.level", "5:1:service.listen", "7:8:service.port"]);
}

#[test]
fn what_is_no_toml_is_told_beside_the_rest_and_without_echoes() {
    let text = "port = 0\nname = \n[[service]]\nname = \"web\"\nlisten = [\"127.0.0.1:1\"\nport = 443\n";
    let mistakes = parse(text).unwrap_err();
    assert_eq!((mistakes[0].line, mistakes[0].key.as_str()), (1, "port"));
    assert!(mistakes[1].message.starts_with("not TOML: "), "{mistakes:#?}");
    assert!(mistakes.iter().all(|m| !m.message.starts_with("missing: ")), "{mistakes:#?}");
    assert!(mistake("name = \"a\"\nname = \"b\"").message.contains("duplicate"));
}

#[test]
fn two_listeners_can_not_share_a_place() {
    let service =
        |name: &str, listen: &str| format!("[[service]]\nname = \"{name}\"\nlisten = {listen}\nport = 1\n");
    for (text, line, words) in [
        (service("a", "\"127.0.0.1:16443\""), 3, "conflicts with 127.0.0.1:16443 of service kube-api"),
        (service("a", "\"0.0.0.0:16443\""), 3, "conflicts with 127.0.0.1:16443 of service kube-api"),
        (service("a", "[\"10.0.0.1:9\", \"10.0.0.1:9\"]"), 3, "conflicts with 10.0.0.1:9 of service a"),
        (service("a", "\"10.0.0.1:9\"") + &service("b", "\"0.0.0.0:9\""), 7, "of service a"),
        (service("a", "\"10.0.0.1:9\"") + &service("kube-api", "\"10.0.0.1:9\""), 7, "of service a"),
        (service("a", "\"10.0.0.1:7646\""), 3, "the agent's own port"),
        (format!("bind = \"10.0.0.1\"\nport = 9\n{}", service("a", "\"0.0.0.0:9\"")), 5, "own port"),
    ] {
        let found = mistake(&text);
        assert_eq!((found.line, found.key.as_str()), (line, "service.listen"), "{found} in:\n{text}");
        assert!(found.message.contains(words), "{found} lacks \"{words}\"");
    }
    good(&(service("a", "[\"10.0.0.1:9\", \"[::1]:9\"]") + &service("b", "\"10.0.0.2:9\"")));
    good(&format!("bind = \"10.0.0.1\"\n{}", service("a", "\"127.0.0.1:7646\"")));
    good(&(service("kube-api", "\"127.0.0.1:1\"") + &service("b", "\"127.0.0.1:16443\"")));
}

#[test]
fn services_have_an_end() {
    let many = |count: usize| -> String {
        (0..count).map(|i| format!("[[service]]\nname = \"s{i}\"\nlisten = []\nport = 1\n")).collect()
    };
    good(&many(31));
    assert!(mistake(&many(40)).message.contains("more than 32"));
}

#[test]
fn a_mistake_reads_as_editors_expect() {
    assert_eq!(
        mistake("\n  port = 0").to_string(),
        "2:10: port: 0 is out of range; use a whole number from 1 to 65535"
    );
    assert!(mistake("port = 70_000").message.starts_with("70000 is out of range"));
    assert!(mistake(&format!("port = 1{}", "0".repeat(90))).message.len() < 100);
    let apart = Mistake { line: 0, column: 0, key: "AGENT_PORT".to_owned(), message: "bad".to_owned() };
    assert_eq!(apart.to_string(), "AGENT_PORT: bad");
}

#[test]
fn hostile_shapes_are_only_mistakes() {
    for text in [
        "[".repeat(10_000),
        format!("a = {}", "[".repeat(10_000)),
        format!("a = {}1{}", "{b=".repeat(500), "}".repeat(500)),
        "a.".repeat(10_000) + "b = 1",
        format!("{} = 1", "k".repeat(50_000)),
        format!("name = \"{}\"", "é".repeat(30_000)),
        "\u{feff}name = \"m1\"\r\nport = 0\r\n".to_owned(),
        "name = \"\u{0}\"".to_owned(),
        "\"\" = 1".to_owned(),
    ] {
        for mistake in parse(&text).unwrap_err() {
            assert!(mistake.to_string().len() < 600, "{mistake}");
        }
    }
}

/// A line of configuration: a key, mostly ours, and a value, mostly of a kind that some key takes.
fn line() -> impl Strategy<Value = String> {
    let key = prop_oneof![
        proptest::sample::select(vec![
            "name",
            "address",
            "interface",
            "port",
            "bind",
            "state-dir",
            "runtime-dir",
            "log",
            "format",
            "level",
            "service",
            "listen",
            "balance",
            "weight",
            "maxconn",
            "check",
            "kind",
            "path",
            "expect",
            "interval",
            "timeout",
            "rise",
            "fall",
            "server-name",
            "ca-file",
            "cert-file",
            "key-file",
            "service.check",
            "log.level",
            "check.kind",
        ])
        .prop_map(str::to_owned),
        "[a-z\"._-]{0,8}",
    ];
    let value = prop_oneof![
        proptest::sample::select(vec![
            "\"kube-api\"",
            "\"web\"",
            "\"127.0.0.1:1\"",
            "[\"[::1]:2\", \"0.0.0.0:2\"]",
            "[]",
            "[[1], {}]",
            "0",
            "443",
            "-9",
            "0xff",
            "1e9",
            "nan",
            "true",
            "1979-05-27",
            "\"tcp\"",
            "\"https\"",
            "{}",
            "{ kind = \"http\", expect = [200, \"300-302\"] }",
            "\"5s\"",
            "\"200-299,401\"",
            "\"/x\"",
            "\"",
        ])
        .prop_map(str::to_owned),
        "\\PC{0,12}",
    ];
    let header = proptest::sample::select(vec!["[log]", "[[service]]", "[service.check]", "[service]", "[["]);
    prop_oneof![
        4 => (key, value).prop_map(|(key, value)| format!("{key} = {value}")),
        1 => header.prop_map(str::to_owned),
    ]
}

proptest! {
    #[test]
    fn no_text_makes_it_panic(bytes in proptest::collection::vec(any::<u8>(), 0..400)) {
        let _ = parse(&String::from_utf8_lossy(&bytes));
    }

    #[test]
    fn no_configuration_makes_it_panic(lines in proptest::collection::vec(line(), 0..24)) {
        let text = lines.join("\n");
        match parse(&text) {
            Ok(config) => prop_assert_eq!(config.services[0].name.as_str(), KUBE_API),
            Err(mistakes) => {
                prop_assert!(!mistakes.is_empty());
                let lines = text.matches('\n').count() + 1;
                for mistake in mistakes {
                    prop_assert!((1..=lines).contains(&mistake.line) && mistake.column >= 1, "{}", mistake);
                }
            }
        }
    }

    #[test]
    fn no_environment_makes_it_panic(key in "AGENT_[A-Z_]{0,12}", value in "\\PC{0,40}") {
        let _ = apply_env(Config::default(), [(key, value)].into_iter());
    }
}
