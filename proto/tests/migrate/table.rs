//! Small files, each of a kind that once became something else than it was, with what is right.

use super::*;

/// A migration of one file on the node lb1, where `10.0.0.1` and `.2` are m1 and m2 if the cluster is known.
fn one(text: &str, cluster: bool) -> Result<Migration, MigrateError> {
    let known = [("10.0.0.1", "m1"), ("10.0.0.2", "m2"), ("10.0.0.8", "lb2")];
    let known = known.map(|(address, name)| (address.parse().unwrap(), name.parse().unwrap()));
    let names = if cluster { BTreeMap::from(known) } else { BTreeMap::new() };
    let node = "lb1".parse().unwrap();
    let value = |name: &str| (name == "VIP").then(|| "10.0.0.50".to_owned());
    let around = Surroundings { node: Some(&node), names: &names, variables: &value };
    proto::migrate::migrate(&[SourceFile { name: "x", bytes: text.as_bytes() }], &around)
}

/// haproxy's file with these sections, in `mode tcp`.
fn haproxy(sections: &str) -> Migration {
    one(&format!("defaults\n mode tcp\n{sections}"), false).unwrap()
}

/// The same with what is known of a cluster.
fn keepalived(lines: &str) -> Migration {
    one(&format!("vrrp_instance A {{\n interface eth0\n{lines}\n}}\n"), true).unwrap()
}

/// What the services of a file are: `NAME PORT on ADDRESS,ADDRESS`.
fn services(made: &Migration) -> Vec<String> {
    let shown = |service: &proto::service::Service| {
        let listen: Vec<String> = service.listen.iter().map(ToString::to_string).collect();
        format!("{} {} on {}", service.name, service.port, listen.join(","))
    };
    parsed(made).services.iter().map(shown).collect()
}

fn commands(made: &Migration) -> Vec<&str> {
    let all = made.text.lines().filter_map(|line| line.strip_prefix("#   "));
    all.filter(|line| line.starts_with("agent set") || line.starts_with("agent drain")).collect()
}

#[test]
fn listeners_are_where_haproxy_listened_and_never_two_at_one_place() {
    for (text, expected, problem) in [
        // Both families unless it says otherwise.
        ("listen a\n bind :::16555\n server m 10.0.0.1:1\n", "a 1 on 0.0.0.0:16555,[::]:16555", ""),
        ("listen a\n bind [::]:1 v6only\n server m 10.0.0.1:1\n", "a 1 on [::]:1", ""),
        ("listen a\n bind *:1,:::1\n server m 10.0.0.1:1\n", "a 1 on 0.0.0.0:1,[::]:1", ""),
        ("listen a\n bind ipv6@:1\n server m 10.0.0.1:1\n", "a 1 on 0.0.0.0:1,[::]:1", ""),
        ("listen a\n bind :::1 v4v6\n server m 10.0.0.1:1\n", "a 1 on 0.0.0.0:1,[::]:1", ""),
        ("listen a\n bind [::1]:1\n server m 10.0.0.1:1\n", "a 1 on [::1]:1", ""),
        // One covers the other.
        ("listen a\n bind 127.0.0.1:1\n bind *:1\n server m 10.0.0.1:1\n", "a 1 on 0.0.0.0:1", ""),
        // Two services at one place: the first keeps it.
        (
            "listen a\n bind *:1\n server m 10.0.0.1:1\nlisten b\n bind 10.0.0.9:1,10.0.0.9:2\n server m 10.0.0.1:2\n",
            "a 1 on 0.0.0.0:1;b 2 on 10.0.0.9:2",
            "x:7: not done: bind 10.0.0.9:1: two can't listen at one place, and service a has 0.0.0.0:1",
        ),
        // kube-api keeps its place, wherever it stands.
        (
            "listen b\n bind *:6443\n server m 10.0.0.1:9\nlisten k\n bind *:6443\n server m 10.0.0.1:6443\n",
            "kube-api 6443 on 0.0.0.0:6443",
            "x:4: not done: bind 0.0.0.0:6443: two can't listen at one place",
        ),
        // The agent's own port.
        ("listen a\n bind *:7646\n server m 10.0.0.1:1\n", "", "the agent itself has 0.0.0.0:7646"),
        // The place of the default service.
        (
            "listen rke2\n bind 127.0.0.1:16443\n server m 10.0.0.1:9345\n",
            "kube-api 6443 on ;rke2 9345 on 127.0.0.1:16443",
            "",
        ),
        (
            "listen rke2\n bind *:16443\n server m 10.0.0.1:9345\n",
            "kube-api 6443 on ;rke2 9345 on 0.0.0.0:16443",
            "",
        ),
        // The same service before both.
        (
            "listen k\n bind *:16443\n bind 127.0.0.1:16443\n server m 10.0.0.1:6443\n",
            "kube-api 6443 on 0.0.0.0:16443",
            "",
        ),
    ] {
        let made = haproxy(text);
        let mut expected: Vec<&str> = expected.split(';').filter(|one| !one.is_empty()).collect();
        if !expected.iter().any(|one| one.starts_with("kube-api")) {
            expected.insert(0, "kube-api 6443 on 127.0.0.1:16443");
        }
        assert_eq!(services(&made), expected, "{text}");
        let all = made.problems.join("\n");
        assert_eq!(all.is_empty(), problem.is_empty(), "{text}{all}");
        assert!(all.contains(problem), "{text}{all}");
    }
}

#[test]
fn two_virtual_ips_on_one_port_before_two_services_are_no_two_listeners() {
    let haproxy = "defaults\n mode tcp\nlisten c1\n bind 10.0.0.50:6443\n server a1 10.0.0.1:6443\n\
                   listen c2\n bind 10.0.0.51:6443\n server b1 10.0.0.11:6443\n";
    let keepalived = "vrrp_instance A {\n virtual_ipaddress {\n 10.0.0.50\n 10.0.0.51\n }\n}\n";
    let sources =
        [("h", haproxy), ("k", keepalived)].map(|(name, text)| SourceFile { name, bytes: text.as_bytes() });
    let made = migrate(&sources, Some("lb1")).unwrap();
    assert_eq!(services(&made), ["kube-api 6443 on 0.0.0.0:6443"]);
    assert!(made.problems.iter().any(|one| one.starts_with("h:7: not done: bind 0.0.0.0:6443: two can't")));
}

#[test]
fn a_listener_that_let_only_some_in_is_not_opened_for_all() {
    for line in [
        "bind *:6443 accept-proxy",
        "bind *:6443 accept-netscaler-cip 1",
        "bind *:6443 interface eth1",
        "bind *:6443\n tcp-request connection reject if !{ src 10.0.0.0/8 }",
        "bind *:6443\n acl in src 10.0.0.0/8\n tcp-request content reject unless in",
        "bind *:6443\n tcp-request connection silent-drop if { src 192.0.2.0/24 }",
        "bind *:6443\n tcp-request connection expect-proxy layer4",
        "bind *:6443\n tcp-request session reject",
    ] {
        let made = haproxy(&format!("listen api\n {line}\n server a1 10.0.0.1:6443 check\n"));
        assert_eq!(services(&made), ["kube-api 6443 on 127.0.0.1:16443"], "{line}");
        assert!(!made.problems.is_empty(), "{line}");
        assert!(
            made.text.contains("No listener is carried over") && !made.text.contains("left out"),
            "{line}"
        );
    }
    // In a template, and beside a listener that everyone may use.
    let made = one(
        "defaults x\n mode tcp\n tcp-request connection reject if { src 192.0.2.1 }\nlisten api from x\n bind *:1\n \
         server a 10.0.0.1:1\n",
        false,
    )
    .unwrap();
    assert_eq!(services(&made).len(), 1);
    let made = haproxy("listen a\n bind 10.0.0.9:1 accept-proxy\n bind 127.0.0.1:1\n server a 10.0.0.1:1\n");
    assert_eq!(services(&made)[1], "a 1 on 127.0.0.1:1");
    let made = haproxy(
        "listen a\n bind :1\n tcp-request inspect-delay 5s\n tcp-request content accept if TRUE\n server a 10.0.0.1:1\n",
    );
    assert!(made.problems.is_empty(), "{:?}", made.problems);
}

#[test]
fn ports_are_those_of_haproxy_and_no_others() {
    for (text, expected, problems) in [
        ("bind :80\n server a 10.0.0.1:<NodePort>\n server b 10.0.0.2:81\n", "a 81 on 0.0.0.0:80", 1),
        ("bind :80\n server a 10.0.0.1:99999\n server b 10.0.0.2:81\n", "a 81 on 0.0.0.0:80", 1),
        ("bind :80\n server a 10.0.0.1:http\n server b 10.0.0.2:81\n", "a 81 on 0.0.0.0:80", 1),
        ("bind :80\n server a 10.0.0.1:http\n", "", 2),
        ("bind :80\n server a 10.0.0.1:+1000\n", "a 1080 on 0.0.0.0:80", 0),
        ("bind :1080\n server a 10.0.0.1:-1000\n", "a 80 on 0.0.0.0:1080", 0),
        ("bind :80\n server a 10.0.0.1\n", "a 80 on 0.0.0.0:80", 0),
        ("bind :80\n server a [fd00::1]\n", "a 80 on 0.0.0.0:80", 0),
        ("bind :80\n server a fd00::1:81\n", "a 81 on 0.0.0.0:80", 0),
        ("bind :80\n bind :443\n server a 10.0.0.1\n", "a-80 80 on 0.0.0.0:80;a-443 443 on 0.0.0.0:443", 0),
        (
            "bind :80\n bind :443\n server a 10.0.0.1:+1\n",
            "a-81 81 on 0.0.0.0:80;a-444 444 on 0.0.0.0:443",
            0,
        ),
        ("bind :80\n bind :443\n server a 10.0.0.1:8080\n", "a 8080 on 0.0.0.0:80,0.0.0.0:443", 0),
        ("bind :+80\n server a 10.0.0.1:8080\n", "", 2),
        ("bind :99999\n server a 10.0.0.1:8080\n", "", 2),
    ] {
        let made = haproxy(&format!("listen a\n {text}"));
        let found = services(&made).into_iter().skip(1).collect::<Vec<_>>().join(";");
        assert_eq!((found.as_str(), made.problems.len()), (expected, problems), "{text}{:?}", made.problems);
    }
    let made = haproxy("frontend f\n bind :6443\n default_backend m\nbackend m\n server m1 10.0.0.1 check\n");
    assert_eq!(services(&made), ["kube-api 6443 on 0.0.0.0:6443"], "it is known by the listener's port");
}

#[test]
fn checks_ask_what_haproxy_asked_and_take_what_it_took() {
    let of = |text: &str| {
        let made = one(
            &format!("defaults\n mode tcp\n option httpchk GET /d\nlisten a\n bind :9\n server w 10.0.0.1:1 check\n {text}\n"),
            false,
        )
        .unwrap();
        let found = commands(&made)[0].split(' ').filter_map(|word| word.strip_prefix("service.a.check"));
        (found.collect::<Vec<_>>().join(" "), made.problems.join("\n"))
    };
    for (text, expected, problem) in [
        ("", "=http .expect=200-399 .path=/d", ""),
        ("option tcp-check", "", ""),
        ("option ssl-hello-chk", "", ""),
        ("no option httpchk", "", ""),
        ("option mysql-check", "", "a check is tcp, http or https"),
        ("option httpchk HEAD /h HTTP/1.1", "=http .expect=200-399 .path=/h", ""),
        (
            "option httpchk HEAD / HTTP/1.1\\r\\nHost:\\ x",
            "=http .expect=200-399 .path=/",
            "only GET and Host",
        ),
        ("http-check send meth GET uri /s ver HTTP/1.1", "=http .expect=200-399 .path=/s", ""),
        ("http-check send meth GET uri /s hdr Host x", "=http .expect=200-399 .path=/s", "only GET and Host"),
        ("http-check expect rstatus ^2", "=http .expect=200-299 .path=/d", ""),
        ("http-check expect ! status 500-599", "=http .expect=100-499 .path=/d", ""),
        ("http-check expect string ok", "=http .expect=200-399 .path=/d", "the status code alone"),
        ("timeout check 10s", "=http .expect=200-399 .path=/d", ""),
        ("timeout check 1s", "=http .expect=200-399 .path=/d .timeout=1s", ""),
        ("timeout check soon", "=http .expect=200-399 .path=/d", "not a duration"),
        ("default-server check-ssl verify none", "=https .expect=200-399 .path=/d", ""),
        ("http-check connect port 1 ssl", "=https .expect=200-399 .path=/d", ""),
        (
            "http-check connect port 81",
            "=http .expect=200-399 .path=/d",
            "write check.address = \"10.0.0.1:81\"",
        ),
        ("http-check connect port src_port()", "=http .expect=200-399 .path=/d", "not an expression"),
    ] {
        let (found, problems) = of(text);
        assert_eq!(found, expected, "{text}");
        assert_eq!(problems.is_empty(), problem.is_empty(), "{text}: {problems}");
        assert!(problems.contains(problem), "{text}: {problems}");
    }
    let made = haproxy("listen a\n bind :80\n server w 10.0.0.1 check port 80\n");
    assert!(made.problems.is_empty(), "the port of the service itself: {:?}", made.problems);
    let made = haproxy("listen a\n bind :80\n server w 10.0.0.1:80 check port 81\n");
    assert!(made.problems[0].contains("in agent.toml of w write check.address = \"10.0.0.1:81\""));
}

#[test]
fn what_haproxy_refuses_is_wrong() {
    for line in [
        "server \"node three\" 10.0.0.3:6443",
        "server m1 10.0.0.3:6443",
        "server m3",
        "server m3 10.0.0.3:6443 weight 300",
        "server m3 10.0.0.3:6443 inter soon",
        "server m3 10.0.0.3:6443 slowstart soon",
        "server m3 10.0.0.3:6443 port http",
        "server m3 10.0.0.3:6443 rise none",
        "timeout client soon",
        "timeout connect 5x",
        "timeout queue",
        "maxconn many",
        "bind 10.0.0:6443",
        "bind :0",
        "mode udp",
        "retries often",
        "timeout client 5s more",
        "option tcplog clf",
        "option httpchk GET / HTTP/1.1 more",
        "id none",
        "log local0",
        "acl x",
        "http-check send path /x",
        "http-check expect rstatus",
        "server-template m none 10.0.0.3:1",
        "tcp-request inspect-delay soon",
        "server m3 10.0.0.256:6443",
        "server m3 10.0.0.3:6443 on-marked-down close",
        "server m3 10.0.0.3:6443 observe all",
        "server m3 10.0.0.3:6443 check verify maybe",
        "server m3 10.0.0.3:6443 resolvers",
        "bind :2 name",
        "http-check send uri",
        "http-check connect /x",
        "stats often",
        "server m3 10.0.0.3:6443 error-limit none",
        "server m3 10.0.0.3:6443 tcp-ut soon",
        "server m3 10.0.0.3:6443 agent-check agent-port none",
        "server m3 10.0.0.3:6443 check-ssl",
        "server m3 10.0.0.3:6443 track none",
        "server m3 10.0.0.3:6443 track none/m1",
        "server m3 10.0.0.3:6443 track a/none",
        "server m3 m3:6443 resolvers none",
        "tcp-check connect port x",
        "tcp-check connect port 70000",
        "tcp-check connect prt 1",
        "tcp-check connect port",
        "http-check connect port 0",
        "http-check connect sni",
        "server m3 10.0.0.3:6443 check downinter 0",
        "server m3 10.0.0.3:6443 id 0",
        "server m3 10.0.0.3:6443 init-addr dns",
        "server m3 10.0.0.3:6443 resolve-prefer none",
        "server m3 10.0.0.3:6443 check check-sni",
        "bind :2 mss x",
        "bind :2 tcp-ut x",
        "bind :2 process x",
        "bind :2 thread x",
        "bind :2 id x",
        "bind :2 level x",
        "option mysql-check x",
        "option pgsql-check user",
        "option redis-check x",
        "option ldap-check x",
        "option forwardfor x",
        "option httplog x",
        "http-check",
        "http-check path /x",
        "http-check expect",
        "http-check expect path x",
        "http-check expect status x",
        "http-check expect ! x",
        "http-check send hdr x",
        "http-check set-var x",
        "http-check disable-on-404 x",
        "tcp-check",
        "tcp-check path",
        "tcp-check expect",
        "tcp-check expect path x",
        "tcp-check expect binary xyz",
        "tcp-check send",
        "tcp-check send-binary 1",
        "tcp-check comment",
        "acl 1@2 src 10.0.0.1",
        "log 127.0.0.1 x",
        "log 127.0.0.1 local0 x",
        "stats uri",
        "stats refresh x",
        "stats admin",
        "monitor fail",
        "server-template m 1-2",
        "enabled x",
        "errorfile 200",
        "errorloc 503",
        "max-keep-alive-queue x",
        "load-server-state-from-file x",
    ] {
        let made = haproxy(&format!("listen a\n bind :1\n server m1 10.0.0.1:1\n {line}\n"));
        let told = made
            .problems
            .iter()
            .any(|one| one.starts_with("x:6: wrong: ") || one.ends_with("write mode tcp"));
        assert!(told, "{line}: {:?}", made.problems);
    }
    // What goes with the rest of the file.
    for (before, line) in [
        ("global\n ssl-server-verify none\n", "server m2 10.0.0.2:1 check-ssl"),
        ("", "server m2 10.0.0.2:1 check-ssl ca-file /ca verify required"),
        ("", "default-server check-ssl verify none\n server m2 10.0.0.2:1"),
        ("defaults\n default-server verify none\n", "server m2 10.0.0.2:1 check-ssl"),
        ("", "server m2 10.0.0.2:1 track m1"),
        ("", "server m2 10.0.0.2:1 track a/m1"),
        ("resolvers r\n nameserver n 10.0.0.9:53\n", "server m2 10.0.0.2:1 resolvers r"),
        ("", "tcp-check connect default linger port 1 comment see below"),
        ("", "http-check expect min-recv 4 ! status 500-599"),
        ("", "http-check send meth GET uri /x hdr Host a body b"),
        ("", "http-check set-var(check.port) int(1)"),
        ("", "tcp-check expect comment \"what redis says\" string +PONG"),
        ("", "tcp-check send-binary 0a0B"),
        ("", "bind :2 process 1 thread odd mss 1400 id 7 level admin"),
        ("", "log 127.0.0.1 len 1024 format rfc5424 local0 notice err"),
        ("", "stats admin if TRUE"),
        ("", "server m2 10.0.0.2:1 init-addr last,libc,none,10.0.0.2 resolve-prefer ipv4 id 3"),
    ] {
        let made = haproxy(&format!(
            "{before}listen a\n mode tcp\n bind :1\n server m1 10.0.0.1:1 check\n {line}\n"
        ));
        assert!(!made.problems.join("\n").contains("wrong"), "{line}: {:?}", made.problems);
    }
}

#[test]
fn services_are_offered_by_the_nodes_that_are_their_servers() {
    let api = "listen k\n bind :6443\n server m1 10.0.0.1:6443\n server m2 10.0.0.2:6443\n";
    for (text, expected) in [
        (
            "server m1 10.0.0.1:9345\n server m2 10.0.0.2:9345\n",
            "service.j.port=9345 service.j.offer=masters",
        ),
        ("server m1 10.0.0.1:9345\n", "service.j.port=9345 service.j.offer=m1"),
        ("server w1 10.0.0.3:443\n server w_2 10.0.0.4:443\n", "service.j.port=443 service.j.offer=NODE,w1"),
        (
            "server bootstrap 10.0.0.9:22623\n server m1 10.0.0.1:22623\n server m2 10.0.0.2:22623\n",
            "service.j.port=22623 service.j.offer=masters",
        ),
        (
            "balance roundrobin\n server m1 10.0.0.1:9345 send-proxy-v2\n server m2 10.0.0.2:9345\n",
            "service.j.port=9345 service.j.offer=masters service.j.balance=round-robin service.j.send-proxy=true",
        ),
    ] {
        let made = haproxy(&format!("{api}listen j\n bind :9345\n {text}"));
        assert_eq!(commands(&made), [format!("agent set {expected}")], "{text}");
        assert!(!made.text.contains("bootstrap"), "it is no member");
    }
    let made = haproxy("listen rke2\n bind :9345\n server m1 10.0.0.1:9345\n");
    assert_eq!(commands(&made), ["agent set service.rke2.port=9345 service.rke2.offer=masters"]);
    let made = one("defaults\n mode tcp\nlisten w\n bind :443\n server web-1 10.0.0.2:443\n", true).unwrap();
    assert_eq!(
        commands(&made),
        ["agent set service.w.port=443 service.w.offer=m2"],
        "as the cluster calls it"
    );
    let made = haproxy(&format!(
        "{api}listen j\n bind :1\n option httpchk GET /a?b='c'&d\n server m1 10.0.0.1:9345\n"
    ));
    assert!(commands(&made)[0].contains(" 'service.j.check.path=/a?b=c&d'"), "{:?}", commands(&made));
}

#[test]
fn virtual_ips_are_set_in_one_command_with_the_nodes_that_may_own_them() {
    let pair = |haproxy: &str, keepalived: &str| {
        let haproxy = format!("defaults\n mode tcp\n{haproxy}");
        let sources = [("h", haproxy.as_str()), ("k", keepalived)]
            .map(|(name, text)| SourceFile { name, bytes: text.as_bytes() });
        let made = migrate(&sources, Some("lb1")).unwrap();
        commands(&made)
            .into_iter()
            .filter(|one| one.starts_with("agent set vip"))
            .map(str::to_owned)
            .collect::<Vec<_>>()
    };
    let api = "listen k\n bind 10.0.0.50:6443\n server m1 10.0.0.1:6443\n";
    let vip = |lines: &str| {
        format!("vrrp_instance A {{\n interface eth0\n{lines}\n virtual_ipaddress {{\n 10.0.0.50\n }}\n}}\n")
    };
    let peers = " unicast_src_ip 10.0.0.7\n unicast_peer {\n 10.0.0.8\n 10.0.0.9\n }\n";
    for (haproxy, keepalived, expected) in [
        // Balancers, by name.
        (api, vip(""), "candidates=lb1,NODE2"),
        (api, vip(peers), "candidates=lb1,NODE2,NODE3"),
        (api, vip(" priority 150\n nopreempt\n"), "candidates=lb1,NODE2 priority.lb1=150"),
        // Masters with haproxy beside the apiserver.
        ("listen k\n bind :8443\n server m1 10.0.0.1:6443\n", vip(""), ""),
        ("listen k\n bind :8443\n server m1 10.0.0.1:6443\n", vip(" unicast_src_ip 10.0.0.1\n"), ""),
        // A balancer that has another port.
        ("listen k\n bind :8443\n server m1 10.0.0.1:6443\n", vip(peers), "candidates=lb1,NODE2,NODE3"),
        // It fronts something else.
        (
            "listen web\n bind 10.0.0.50:443\n server w1 10.0.0.3:443\n",
            vip(""),
            "service=web candidates=lb1,NODE2",
        ),
        // Outside of the nodes' network.
        (
            "listen k\n bind :8443\n server m1 10.9.0.1:6443\n",
            vip(" unicast_src_ip 10.9.0.1\n"),
            "interface=eth0",
        ),
    ] {
        let expected: String = expected
            .split(' ')
            .filter(|one| !one.is_empty())
            .map(|one| format!(" vip.10.0.0.50.{one}"))
            .collect();
        assert_eq!(
            pair(haproxy, &keepalived),
            [format!("agent set vip=10.0.0.50{expected}")],
            "{haproxy}{keepalived}"
        );
    }
}

#[test]
fn keepalived_s_lines_mean_what_they_mean_there() {
    let vip = " virtual_ipaddress {\n 10.0.0.50/24\n }\n";
    for (lines, expected, problem) in [
        // `!` and `#` begin comments anywhere, and what stands in them opens no block.
        (
            " priority 110 ! keep {this}\n state MASTER # main { one\n",
            "vip.10.0.0.50.priority.lb1=110 vip.10.0.0.50.preempt=0s",
            "",
        ),
        // Each node reads its own lines, and the last one counts.
        (
            " @m1 priority 110\n @m2 priority 100\n",
            "vip.10.0.0.50.priority.m1=110 vip.10.0.0.50.priority.m2=100",
            "",
        ),
        (
            " @m1 priority 110\n @^m3 priority 90\n",
            "vip.10.0.0.50.priority.lb1=90 vip.10.0.0.50.priority.m1=90 vip.10.0.0.50.preempt=0s",
            "",
        ),
        (" @lb1 priority 200\n", "vip.10.0.0.50.priority.lb1=200 vip.10.0.0.50.preempt=0s", ""),
        // Interfaces.
        (" track_interface {\n eth0\n }\n", "", ""),
        (
            " track_interface {\n eth0 weight -5\n eth1\n }\n",
            "",
            "only the interface of the address counts; eth1 may fail",
        ),
        (" priority 0\n", "", "keepalived takes 100"),
        (" priority $PRIO\n", "", "run it again as: PRIO=VALUE agent migrate"),
        (" virtual_ipaddress_excluded {\n $VIP\n }\n", "", ""),
    ] {
        let made = keepalived(&format!("{vip}{lines}"));
        let space = if expected.is_empty() { "" } else { " " };
        assert_eq!(commands(&made), [format!("agent set vip=10.0.0.50{space}{expected}")], "{lines}");
        let all = made.problems.join("\n");
        assert_eq!(all.is_empty(), problem.is_empty(), "{lines}: {all}");
        assert!(all.contains(problem), "{lines}: {all}");
    }
    let made = one(
        "$P=150\n$V=10.0.0.60/24 dev eth1\nvrrp_instance A {\n priority ${P}\n virtual_ipaddress {\n $V\n }\n}\n",
        false,
    );
    let expected = "agent set vip=10.0.0.60 vip.10.0.0.60.interface=eth1 vip.10.0.0.60.priority.lb1=150 vip.10.0.0.60.preempt=0s";
    assert_eq!(commands(&made.unwrap()), [expected]);
}

#[test]
fn addresses_of_keepalived_are_taken_or_told() {
    for (line, set, problem) in [
        ("10.0.0.50/24 brd 10.0.0.255 scope global", true, ""),
        ("10.0.0.52 no_track preferred_lft 0", true, ""),
        ("10.0.0.53 peer 10.0.0.54", true, "addresses have no peer"),
        ("10.0.0.55/33", false, "no prefix length"),
        ("10.0.0.300", false, "not an IP address"),
        ("127.0.0.9", false, "cannot be shared"),
        ("10.0.0.51 label vip0", true, "labels are for IPv4"),
    ] {
        let made = keepalived(&format!(" virtual_ipaddress {{\n 10.0.0.9\n {line}\n }}"));
        assert_eq!(commands(&made)[0].contains("10.0.0.9,"), set, "{line}");
        assert_eq!(made.problems.is_empty(), problem.is_empty(), "{line}: {:?}", made.problems);
        assert!(made.problems.concat().contains(problem), "{line}: {:?}", made.problems);
    }
    let made = keepalived(" virtual_ipaddress {\n fe80::1/64\n 10.0.0.9\n 10.0.0.9\n }");
    assert!(made.problems.is_empty() && commands(&made) == ["agent set vip=10.0.0.9"], "{:?}", made.problems);
    let many: String = (1..=18).map(|last| format!(" 10.0.0.{last}\n")).collect();
    let made = keepalived(&format!(" virtual_ipaddress {{\n{many} }}"));
    assert_eq!(made.problems.len(), 2);
    assert!(made.problems[0].contains("10.0.0.17: a cluster has at most 16 virtual IPs"));
    assert_eq!(commands(&made)[0].matches(',').count(), 15);
}

#[test]
fn notify_scripts_are_called_as_keepalived_did() {
    let made = one(
        "vrrp_instance VI_1 {\n virtual_ipaddress {\n 10.0.0.50\n fd00::50\n }\n notify \"/usr/bin/any one\"\n \
         notify_master \"/usr/bin/it's master\"\n notify_fault /usr/bin/fault\n}\n\
         vrrp_instance VI_2 {\n virtual_ipaddress {\n 10.0.0.51\n }\n notify /usr/bin/two\n}\n",
        false,
    )
    .unwrap();
    assert_eq!(parsed(&made).notify, ["/usr/local/sbin/agent-vip-notify"]);
    assert!(made.text.contains("#   agent migrate --notify-script x > /usr/local/sbin/agent-vip-notify\n"));
    let script = made.notify_script.unwrap();
    let dir = Path::new(env!("CARGO_TARGET_TMPDIR")).join("notify");
    std::fs::create_dir_all(&dir).unwrap();
    // The programs say how they were called.
    for name in ["any", "it's", "fault", "two"] {
        let path = dir.join(name);
        std::fs::write(&path, format!("#!/bin/sh\necho \"{name} $*\"\n")).unwrap();
        std::fs::set_permissions(&path, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    }
    let file = dir.join("notify");
    std::fs::write(&file, script.replace("/usr/bin", &dir.display().to_string())).unwrap();
    for (arguments, called) in [
        ("INSTANCE 10.0.0.50 MASTER 150", "any one INSTANCE VI_1 MASTER 150\nit's master\n"),
        ("INSTANCE fd00::50 BACKUP 150", "any one INSTANCE VI_1 BACKUP 150\n"),
        ("INSTANCE 10.0.0.50 FAULT 0", "any one INSTANCE VI_1 FAULT 0\nfault \n"),
        ("INSTANCE 10.0.0.51 MASTER 100", "two INSTANCE VI_2 MASTER 100\n"),
        ("INSTANCE 10.0.0.99 MASTER 100", ""),
        // Every other event has none.
        ("", ""),
    ] {
        let run =
            std::process::Command::new("sh").arg(&file).args(arguments.split_whitespace()).output().unwrap();
        assert_eq!(String::from_utf8_lossy(&run.stdout), called, "{arguments}");
        assert!(run.stderr.is_empty() && run.status.success(), "{arguments}: {run:?}");
    }
}

#[test]
fn variables_come_from_the_environment_and_from_the_file() {
    let made = haproxy("listen a\n bind \"${VIP}:6443\"\n server m1 10.0.0.1:6443\n");
    assert_eq!(services(&made), ["kube-api 6443 on 10.0.0.50:6443"]);
    let made = one(
        "global\n setenv M1 10.0.0.1\ndefaults\n mode tcp\nlisten a\n bind :1\n server m1 $M1:2\n",
        false,
    )
    .unwrap();
    assert!(made.problems.is_empty() && services(&made)[1] == "a 2 on 0.0.0.0:1", "{:?}", made.problems);
    let made = haproxy("listen a\n bind \"${A}:${B}\"\n server m1 10.0.0.1:6443\n");
    assert!(
        made.problems[1].ends_with("run it again as: A=VALUE B=VALUE agent migrate ..."),
        "{:?}",
        made.problems
    );
    assert!(made.text.contains("No listener is carried over"), "{}", made.text);
}

#[test]
fn a_listener_for_load_balancers_is_one_here_too() {
    let api = "listen k\n bind :6443\n server m1 10.0.0.1:6443\n";
    for (text, expected, problem) in [
        ("bind :33305\n mode http\n monitor-uri /\n", "0.0.0.0:33305", ""),
        (
            "bind :33305\n mode http\n monitor-uri /healthz\n option dontlognull\n",
            "0.0.0.0:33305",
            "its path is / here",
        ),
        (
            "bind :::33305\n mode http\n monitor-uri /\n monitor fail if TRUE\n",
            "0.0.0.0:33305,[::]:33305",
            "",
        ),
        (
            "bind :6443\n mode http\n monitor-uri /\n",
            "",
            "service kube-api has it; give load balancers another",
        ),
        ("bind :80 ssl crt /x\n mode http\n monitor-uri /\n", "", "plain HTTP alone"),
    ] {
        let made = haproxy(&format!("{api}frontend h\n {text}"));
        let found: Vec<String> = parsed(&made).health.iter().map(ToString::to_string).collect();
        assert_eq!(found.join(","), expected, "{text}");
        assert_eq!(made.problems.is_empty(), problem.is_empty(), "{text}{:?}", made.problems);
        assert!(made.problems.concat().contains(problem), "{text}{:?}", made.problems);
    }
    let made = haproxy("listen a\n bind :1\n balance source\n server m 10.0.0.1:2\n");
    assert_eq!(parsed(&made).services[1].balance.as_str(), "source");
    assert!(made.problems.is_empty(), "{:?}", made.problems);
}

#[test]
fn what_is_otherwise_here_is_said_and_loses_nothing() {
    let made =
        haproxy("listen a\n bind :6443\n timeout client 1h\n timeout queue 5s\n server m1 10.0.0.1:6443\n");
    assert!(made.problems.is_empty(), "{:?}", made.problems);
    assert!(
        made.text.contains("# Different: there are no idle timeouts: a connection ends"),
        "{}",
        made.text
    );
    let made = haproxy(
        "frontend f\n bind :443\n use_backend g if { req.ssl_sni -i git.example.net }\n default_backend i\nbackend i\n server w 10.0.0.1:443\nbackend g\n server g 10.0.0.2:443\n",
    );
    assert!(
        made.problems[0].contains("nothing is routed by the name in TLS; clients that it led to g"),
        "{:?}",
        made.problems
    );
}

#[test]
fn a_file_of_ours_is_small_enough_for_an_agent() {
    let servers: String =
        (0..3000).map(|at| format!(" server s{at} 10.0.{}.{}:1\n", at / 250, at % 250)).collect();
    let made = haproxy(&format!("listen a\n bind :1\n timeout client 1h\n{servers}"));
    assert!(made.text.len() > 1024 && made.text.len() <= config::MAX_FILE, "{}", made.text.len());
    let listen: String = (0..6000).map(|at| format!(" bind 10.1.{}.{}:1\n", at / 250, at % 250)).collect();
    let result = one(&format!("defaults\n mode tcp\nlisten a\n{listen} server m 10.0.0.1:1\n"), false);
    let Err(MigrateError::Invalid { mistakes, .. }) = result else { panic!("no error") };
    assert!(mistakes[0].ends_with("kB; the limit is 64"), "{mistakes:?}");
    let services: String =
        (0..40).map(|at| format!("listen s{at}\n bind :{}\n server m 10.0.0.1:1\n", 100 + at)).collect();
    let made = haproxy(&services);
    assert!(
        made.problems.iter().all(|one| one.ends_with("a node has at most 32 services, kube-api among them")),
        "{:?}",
        made.problems
    );
    assert_eq!((made.problems.len(), parsed(&made).services.len()), (9, 32));
}

#[test]
fn a_script_of_its_own_is_the_check_of_the_addresses_that_track_it() {
    let of = |scripts: &str, tracked: &str| {
        let text = format!(
            "{scripts}\nvrrp_instance A {{\n interface eth0\n track_script {{ {tracked} }}\n virtual_ipaddress {{ \
             10.0.0.50 }}\n}}\nvrrp_instance B {{\n virtual_ipaddress {{ 10.0.0.51 }}\n}}\n"
        );
        let made = one(&text, true).unwrap();
        let config = parsed(&made);
        let checks = config.vip_checks.iter().map(|(address, path)| format!("{address} {path}"));
        (checks.collect::<Vec<_>>().join(","), made.problems.join("\n"))
    };
    let script = |name: &str, command: &str| format!("vrrp_script {name} {{\n script \"{command}\"\n}}\n");
    let (uplink, disk) = (script("uplink", "/etc/up"), script("disk", "/etc/disk -q"));
    for (scripts, tracked, expected, problem) in [
        (uplink.clone(), "uplink", "10.0.0.50 /etc/up", ""),
        (uplink.replace("}", " weight -20\n}"), "uplink weight 5", "10.0.0.50 /etc/up", ""),
        (script("api", "/etc/keepalived/check_apiserver.sh"), "api", "", ""),
        (uplink.clone(), "other", "", ""),
        (disk.clone(), "disk", "", "only a program without arguments"),
        (disk + &uplink, "disk\n uplink", "10.0.0.50 /etc/up", "only a program without arguments"),
        (script("c", "/etc/c") + &uplink, "c\n uplink", "10.0.0.50 /etc/c", "an address has one check"),
        (script("relative", "check.sh"), "relative", "", "only a program without arguments"),
        (script("odd", "/etc/up\u{1b}[31m"), "odd", "", "only a program without arguments"),
    ] {
        let (checks, problems) = of(&scripts, tracked);
        assert_eq!(checks, expected, "{scripts}{problems}");
        assert_eq!(problems.is_empty(), problem.is_empty(), "{scripts}{problems}");
        assert!(problems.contains(problem), "{scripts}{problems}");
    }
}
