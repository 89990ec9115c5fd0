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
        assert_eq!(parse(given, 7), Ok((Host::Name(name.to_owned()), port)), "{given}");
    }
    let long = format!("{}.example", "a".repeat(64));
    let longer = "a.".repeat(127) + "a";
    let refused = [
        ("", "is empty; give a name or an address"),
        ("bücher.example", "is not in ASCII; give the form"),
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
        (long.as_str(), "has a part of 64 bytes; 63 is the most"),
        (longer.as_str(), "is 255 bytes long; 253 is the most"),
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
    assert!(error.starts_with("can't resolve no-such-host.invalid: "), "{error}");
    assert!(error.contains("/etc/resolv.conf"), "{error}");
}
