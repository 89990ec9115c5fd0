use super::*;

#[test]
fn input_is_split_exactly() {
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
        assert_eq!(parse(given, 7), Ok((Host::Name(name.to_owned()), port)), "{given}");
    }
    let long = format!("{}.example", "a".repeat(64));
    let longer = "a.".repeat(127) + "a";
    let text = str::to_owned;
    let refused = [
        ("", BadHost::Empty),
        ("bücher.example", BadHost::NotAscii),
        (":80", BadHost::EmptyPart),
        ("a..b", BadHost::EmptyPart),
        (".", BadHost::EmptyPart),
        ("node1:", BadHost::Port(text(""))),
        ("node1:0", BadHost::Port(text("0"))),
        ("node1:65536", BadHost::Port(text("65536"))),
        ("node1:+80", BadHost::Port(text("+80"))),
        ("node1:http", BadHost::Port(text("http"))),
        ("1.2.3", BadHost::NotIpv4),
        ("1.2.3.256:80", BadHost::NotIpv4),
        ("fd00::g", BadHost::NotIpv6),
        ("1:2:3", BadHost::NotIpv6),
        ("[fd00::1", BadHost::OpenBracket),
        ("[fd00::1]80", BadHost::AfterBracket(text("80"))),
        ("[fd00::1]:", BadHost::Port(text(""))),
        ("[node1]:80", BadHost::InBrackets(text("node1"))),
        ("fe80::1%eth0", BadHost::Zone),
        ("https://node1:6443/", BadHost::Url { scheme: text("https"), host: text("node1:6443") }),
        ("node1 ", BadHost::Odd(' ')),
        ("node1/x", BadHost::Odd('/')),
        ("no*de", BadHost::OddInName('*')),
        ("-node", BadHost::Hyphen(text("-node"))),
        ("node1\0", BadHost::Odd('\0')),
        (long.as_str(), BadHost::LongPart { length: 64 }),
        (longer.as_str(), BadHost::LongName { length: 255 }),
    ];
    for (given, why) in refused {
        assert_eq!(parse(given, 7), Err(why), "{given:?}");
    }
}

proptest::proptest! {
    #[test]
    fn nothing_typed_makes_it_panic(given in ".{0,80}") {
        let _ = parse(&given, 7);
    }
}

#[tokio::test]
async fn localhost_is_this_host_and_ipv4_comes_first() {
    for given in ["localhost", "LOCALHOST.", "x.localhost"] {
        let found = resolve(given, 7646).await.unwrap();
        assert_eq!(found, ["127.0.0.1:7646".parse().unwrap(), "[::1]:7646".parse().unwrap()], "{given}");
    }
}

#[tokio::test]
async fn a_name_that_nobody_knows_is_named_with_what_to_check() {
    let error = resolve("no-such-host.invalid:80", 7646).await.unwrap_err().to_string();
    assert!(error.starts_with("cannot resolve no-such-host.invalid: "), "{error}");
    assert!(error.contains("/etc/resolv.conf"), "{error}");
}
