//! The binary on the command line, with no agent running.

use std::net::UdpSocket;
use std::path::Path;
use std::process::{Command, Output};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use tests::lab::{Lab, VARIABLES};
use tests::mesh::{binary, with_agents};

fn agent(args: &[&str]) -> Result<(i32, String, String)> {
    let mut command = Command::new(binary()?);
    for name in VARIABLES {
        command.env_remove(name);
    }
    let Output { status, stdout, stderr } = command.args(args).output()?;
    let code = status.code().with_context(|| format!("{args:?} ended by a signal"))?;
    Ok((code, String::from_utf8(stdout)?, String::from_utf8(stderr)?))
}

#[test]
fn check_tells_every_mistake_of_a_file_with_its_place() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let file = dir.path().join("agent.toml");
    let path = file.to_string_lossy().into_owned();
    std::fs::write(
        &file,
        "nmae = \"m1\"\nport = 70000\naddress = \"wg0\"\n\n[[service]]\nname = \"kube-api\"\nlisten = [\"x\"]\n\
         balance = \"leastconn\"\nweight = \"much\"\n[service.check]\nkind = \"icmp\"\n",
    )?;
    let (code, out, _) = agent(&["check", &path])?;
    ensure!(code == 78, "code {code}: {out}");
    for (place, word) in [
        ("1:1", "name"),
        ("2:8", "65535"),
        ("3:11", "wg0"),
        ("7:11", "\"x\""),
        ("8:11", "least-connections"),
        ("9:10", "weight"),
        ("11:8", "https"),
    ] {
        let told = out.lines().any(|line| line.contains(&format!(":{place}")) && line.contains(word));
        ensure!(told, "no line with {place} and {word}:\n{out}");
    }
    ensure!(out.lines().count() == 7, "one line for each mistake:\n{out}");

    std::fs::write(&file, "name = \"m1\"\nport = 7646\n")?;
    let (code, out, err) = agent(&["check", &path])?;
    ensure!(code == 0 && out.contains("16443"), "{code} {out} {err}");

    for bytes in [&b"\xff\xfe\x00"[..], b"= = =", b"[[[[[[", &[b'['; 5000], &[0; 100]] {
        std::fs::write(&file, bytes)?;
        let (code, out, err) = agent(&["check", &path])?;
        ensure!(code == 78 && !format!("{out}{err}").contains("panicked"), "{code} {out} {err}");
    }
    let (code, _, err) = agent(&["check", "/nowhere/agent.toml"])?;
    ensure!(code == 66 && err.contains("/nowhere/agent.toml"), "{code} {err}");
    Ok(())
}

#[test]
fn what_migrate_writes_is_a_configuration_and_problems_go_to_stderr() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let path = |name: &str| dir.path().join(name).to_string_lossy().into_owned();
    std::fs::write(
        dir.path().join("haproxy.cfg"),
        "listen api\n bind *:8443\n frobnicate\n server m1 10.0.0.1:6443 check\n",
    )?;
    std::fs::write(
        dir.path().join("keepalived.conf"),
        "vrrp_instance V {\n priority 101\n authentication {\n auth_pass geheim\n }\n \
         virtual_ipaddress {\n 10.0.0.50\n }\n}\n",
    )?;
    let (haproxy, keepalived) = (path("haproxy.cfg"), path("keepalived.conf"));
    let (code, out, err) = agent(&["migrate", &haproxy, &keepalived, "--node", "m1"])?;
    ensure!(code == 10 && err.lines().count() == 1 && err.contains("frobnicate"), "{code} {err}");
    ensure!(out.contains(" vip.10.0.0.50.priority.m1=101 ") && !out.contains("geheim"), "{out}");
    let (code, explained, err) = agent(&["migrate", "--explain", &haproxy])?;
    ensure!(
        code == 10 && err.is_empty() && explained.contains("    3  unknown    frobnicate"),
        "{code} {explained}"
    );
    let (code, out, err) = agent(&["migrate", "--notify-script", &keepalived])?;
    ensure!(code == 65 && out.is_empty() && err.contains("no notify scripts"), "{code} {out} {err}");
    let (_, out, _) = agent(&["migrate", &haproxy, &keepalived, "--node", "m1"])?;
    std::fs::write(dir.path().join("agent.toml"), &out)?;
    let (code, out, err) = agent(&["check", &path("agent.toml")])?;
    ensure!(code == 0 && out.contains("0.0.0.0:8443"), "{code} {out} {err}");
    for (bytes, expected) in [(None, 66), (Some(&b"\xff\x00{{{"[..]), 65), (Some(b""), 65)] {
        if let Some(bytes) = bytes {
            std::fs::write(dir.path().join("other"), bytes)?;
        }
        let (code, out, err) = agent(&["migrate", &path("other")])?;
        ensure!(code == expected && out.is_empty() && err.contains("other"), "{code} {out} {err}");
    }
    Ok(())
}

#[test]
fn what_is_wrong_on_the_command_line_is_named() -> Result<()> {
    for (args, word) in [
        (&["frobnicate"][..], "frobnicate"),
        (&["join"], "SEED"),
        (&["init", "--name", "Not_A_Name", "--foreground"], "Not_A_Name"),
        (&["invite", "--for", "soon"], "soon"),
        (&["init", "--adr", "10.0.0.1"], "--addr"),
    ] {
        let (code, out, err) = agent(args)?;
        ensure!(code == 64 && err.contains(word), "{args:?}: {code} {out} {err}");
    }
    let dir = tempfile::tempdir()?;
    let runtime = dir.path().to_string_lossy().into_owned();
    for command in ["status", "members", "invite", "rotate", "leave"] {
        let (code, out, err) = agent(&[command, "--runtime-dir", &runtime])?;
        ensure!(code == 69 && err.contains("agent"), "{command} with no agent: {code} {out} {err}");
    }
    Ok(())
}

#[test]
fn completions_and_manual_come_from_the_binary() -> Result<()> {
    for shell in ["bash", "zsh", "fish"] {
        let (code, out, err) = agent(&["completions", shell])?;
        ensure!(code == 0 && out.contains("join"), "{shell}: {code} {err}");
    }
    let (code, out, err) = agent(&["man"])?;
    ensure!(code == 0 && out.contains(".TH"), "{code} {err}");
    Ok(())
}

#[test]
fn the_binary_needs_nothing_around_it() -> Result<()> {
    // In an empty directory but for itself: no /proc, no /dev, no /etc, no libc.
    with_agents(Lab::wireguard(2), |lab, agents| {
        let _master = lab.nginx_master(0)?;
        let invite = agents[0].init()?;
        let root = lab.dir().join("root");
        for dir in ["state", "run"] {
            std::fs::create_dir_all(root.join(dir))?;
        }
        std::fs::copy(binary()?, root.join("agent")).context("copy the binary")?;
        let inside = root.to_string_lossy().into_owned();
        let command = ["chroot", &inside, "/agent", "join", &invite, "--foreground"];
        let dirs = ["--state-dir", "/state", "--runtime-dir", "/run"];
        let mut process = lab.node(1).spawn("chroot", &[&command[..], &dirs].concat())?;
        agents[0]
            .wait_for_up(&["n0", "n1"], tests::mesh::GOSSIP)
            .with_context(|| format!("it needs a static binary (deploy/build): {}", process.tail(10)))?;
        ensure!(process.is_running());
        ensure!(Path::new(&root).join("state").read_dir()?.next().is_some(), "it has no state");
        let (who, _) = tests::wait::eventually("its proxy serves", tests::mesh::GOSSIP, || {
            lab.node(1).exec(&["curl", "-sSk", "-m", "5", "https://127.0.0.1:16443/who"])?.ok()
        })?;
        ensure!(who.trim() == "n0", "{who}");
        Ok(())
    })
}

#[test]
fn the_unit_is_hardened_and_holds_nothing_else_up() -> Result<()> {
    let unit = concat!(env!("CARGO_MANIFEST_DIR"), "/../deploy/systemd/agent.service");
    // The threshold is in tenths: an exposure above 2.5 fails.
    let ran = Command::new("systemd-analyze")
        .args(["security", "--offline=true", "--threshold=25", "--no-pager", unit])
        .output()
        .context("systemd-analyze: apt-get install systemd")?;
    let said = String::from_utf8_lossy(&ran.stdout);
    ensure!(ran.status.success(), "exposure above 2.5: {}", said.lines().last().unwrap_or_default());
    let text = std::fs::read_to_string(unit)?;
    let before = text.lines().find(|line| line.starts_with("Before=")).context("no Before=")?;
    for service in
        ["k3s.service", "k3s-agent.service", "rke2-server.service", "rke2-agent.service", "kubelet.service"]
    {
        ensure!(before.contains(service), "not ordered before {service}: {before}");
    }
    // Whatever ties units together would stop Kubernetes with the agent.
    for tie in ["Requires=", "BindsTo=", "PartOf=", "PropagatesStopTo=", "RequiredBy="] {
        ensure!(!text.lines().any(|line| line.starts_with(tie)), "the unit has {tie}");
    }
    Ok(())
}

/// The answer of a small name server: every name is 127.0.0.9, and has no IPv6 address.
fn answer(query: &[u8]) -> Option<Vec<u8>> {
    // Header of 12 bytes, then the question: labels up to a zero, type and class (RFC 1035, 4.1).
    let end = 12 + query.get(12..)?.iter().position(|byte| *byte == 0)? + 5;
    let is_a = query.get(end - 4..end - 2)? == [0, 1];
    let mut reply = query.get(..2)?.to_vec();
    reply.extend_from_slice(&[0x81, 0x80, 0, 1, 0, u8::from(is_a), 0, 0, 0, 0]);
    reply.extend_from_slice(query.get(12..end)?);
    if is_a {
        reply.extend_from_slice(&[0xc0, 12, 0, 1, 0, 1, 0, 0, 0, 60, 0, 4, 127, 0, 0, 9]);
    }
    Some(reply)
}

#[test]
fn names_resolve_by_dns_and_by_hosts_in_an_empty_directory_too() -> Result<()> {
    with_agents(Lab::bridge(1), |lab, agents| {
        let node = agents[0].node();
        // Without /etc/resolv.conf names are asked for here, as libc does.
        let server = node.inside(|| Ok(UdpSocket::bind("127.0.0.1:53")?))?;
        server.set_read_timeout(Some(Duration::from_secs(3)))?;
        let serve = std::thread::spawn(move || {
            let mut buffer = [0; 512];
            while let Ok((length, from)) = server.recv_from(&mut buffer) {
                if let Some(reply) = answer(&buffer[..length]) {
                    let _ = server.send_to(&reply, from);
                }
            }
        });
        let root = lab.dir().join("root");
        for dir in ["state", "run"] {
            std::fs::create_dir_all(root.join(dir))?;
        }
        std::fs::copy(binary()?, root.join("agent")).context("copy the binary")?;
        let inside = root.to_string_lossy().into_owned();
        let dirs = ["--state-dir", "/state", "--runtime-dir", "/run"];
        // Nobody listens at the address that the name stands for: that it is named shows that it was found.
        let finds = |name: &str, address: &str| -> Result<()> {
            let command = ["chroot", &inside, "/agent", "join", name, "--foreground"];
            let said = node.exec(&[&command[..], &dirs].concat())?.fails_with(69)?;
            ensure!(said.contains(address), "{name}: {said}");
            Ok(())
        };
        finds("seed.example", "127.0.0.9:7646")?;
        // The name server would give the other address.
        std::fs::create_dir_all(root.join("etc"))?;
        std::fs::write(root.join("etc/hosts"), "127.0.0.8 seed.hosts\n")?;
        finds("seed.hosts", "127.0.0.8:7646")?;
        serve.join().map_err(|_| anyhow::anyhow!("the name server panicked"))
    })
}
