//! The lab itself works: otherwise the suites that use it prove nothing.

use std::net::{IpAddr, Ipv4Addr};
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use tests::lab::{Lab, Node, Signal};
use tests::wait::eventually;

/// Pings until one is answered: the first packets through a new tunnel or after a fault may be lost.
fn reaches(from: &Node, to: IpAddr) -> Result<()> {
    eventually(&format!("{} reaches {to}", from.name), Duration::from_secs(15), || {
        from.exec(&["ping", "-c", "1", "-W", "1", &to.to_string()])?.ok()
    })?;
    Ok(())
}

/// How many of these pings are answered.
fn answered(from: &Node, to: IpAddr, count: u32) -> Result<u32> {
    let count = count.to_string();
    let ran = from.exec(&["ping", "-q", "-c", &count, "-i", "0.01", "-W", "1", &to.to_string()])?;
    let text = ran.out.split("transmitted, ").nth(1).with_context(|| ran.to_string())?;
    Ok(text.split(' ').next().unwrap_or_default().parse()?)
}

fn full_mesh(lab: &Lab) -> Result<()> {
    for from in lab.nodes() {
        for to in lab.nodes() {
            reaches(from, to.mesh_ip())?;
        }
    }
    Ok(())
}

#[test]
fn a_wireguard_mesh_carries_packets_and_has_no_layer_2() -> Result<()> {
    let lab = Lab::wireguard(3)?;
    full_mesh(&lab)?;
    let link = lab.node(0).exec(&["ip", "link", "show", "wg0"])?.ok()?;
    ensure!(link.contains("POINTOPOINT") && link.contains("NOARP"), "{link}");
    ensure!(lab.node(2).exec(&["hostname"])?.ok()?.trim() == "n2");
    Ok(())
}

#[test]
fn a_wireguard_mesh_of_ipv6() -> Result<()> {
    full_mesh(&Lab::wireguard_v6(3)?)
}

#[test]
fn faults_of_the_network_begin_and_end() -> Result<()> {
    let lab = Lab::bridge(4)?;
    full_mesh(&lab)?;
    let [a, b, c, d] = [0, 1, 2, 3].map(|i| lab.node(i));

    b.power_cut()?;
    ensure!(answered(a, b.mesh_ip(), 5)? == 0, "a node without power answers");
    b.power_on()?;
    reaches(a, b.mesh_ip())?;

    // Each direction loses 3 in 10, so about half of all pings come back.
    b.loss(30)?;
    let through = answered(a, b.mesh_ip(), 300)?;
    ensure!((90..=210).contains(&through), "{through} of 300 pings at 30 % loss each way");
    ensure!(answered(a, c.mesh_ip(), 50)? == 50, "loss reaches a node that was not meant");
    b.no_loss()?;
    ensure!(answered(a, b.mesh_ip(), 50)? == 50, "loss does not end");

    // Distinguished by what arrives, since no ping survives a cut in either direction.
    a.cut_to(b)?;
    let arrives = |from: &Node, to: &Node| -> Result<bool> {
        let receiver = to.inside(|| Ok(std::net::UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 9))?))?;
        receiver.set_read_timeout(Some(Duration::from_millis(200)))?;
        let address = (to.mesh_ip(), 9);
        from.inside(|| Ok(std::net::UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0))?.send_to(b"x", address)?))?;
        Ok(receiver.recv(&mut [0]).is_ok())
    };
    ensure!(!arrives(a, b)? && arrives(b, a)?, "a one-way cut");
    a.heal()?;
    b.cut_from(a)?;
    ensure!(!arrives(a, b)? && arrives(b, a)?, "a one-way cut, asked for by the other side");
    b.heal()?;
    ensure!(arrives(a, b)?, "a cut that was healed");

    lab.partition(&[0, 1])?;
    ensure!(answered(a, b.mesh_ip(), 5)? == 5 && answered(c, d.mesh_ip(), 5)? == 5, "inside an island");
    ensure!(answered(a, c.mesh_ip(), 5)? == 0 && answered(d, b.mesh_ip(), 5)? == 0, "between islands");
    lab.heal()?;
    full_mesh(&lab)
}

#[test]
fn an_address_changes_and_the_mesh_follows() -> Result<()> {
    for lab in [Lab::wireguard(2)?, Lab::bridge(2)?] {
        let new = IpAddr::V4(Ipv4Addr::new(10, 91, 0, 77));
        let old = lab.node(1).mesh_ip();
        lab.node(1).change_address(new, lab.nodes())?;
        ensure!(lab.node(1).mesh_ip() == new);
        reaches(lab.node(0), new)?;
        reaches(lab.node(1), lab.node(0).mesh_ip())?;
        ensure!(answered(lab.node(0), old, 3)? == 0, "the old address still answers");
    }
    Ok(())
}

/// Status code and body.
fn get(node: &Node, url: &str, more: &[&str]) -> Result<(u16, String)> {
    let all = [&["curl", "-sk", "-m", "2", "-w", "\n%{http_code}", url], more].concat();
    let out = node.exec(&all)?.ok()?;
    let (body, code) = out.rsplit_once('\n').context("no status code")?;
    Ok((code.parse()?, body.trim_end().to_owned()))
}

#[test]
fn a_master_answers_stops_hangs_and_returns() -> Result<()> {
    let lab = Lab::wireguard(2)?;
    let (n0, n1) = (lab.node(0), lab.node(1));
    let mut master = lab.nginx_master(0)?;
    let url = |path: &str| format!("https://{}{path}", master.address);
    let (readyz, who) = (url("/readyz"), url("/who"));
    let ask = |url: &str| get(n1, url, &[]);
    ensure!(eventually("it is ready", Duration::from_secs(10), || ask(&readyz))?.0 == (200, "ok".into()));
    ensure!(ask(&who)? == (200, "n0".into()));

    master.set_ready(false)?;
    let (code, body) = ask(&readyz)?;
    ensure!(code == 500 && body.contains("etcd failed"), "{code} {body}");
    ensure!(ask(&who)? == (200, "n0".into()), "not ready, and still serving");
    master.set_ready(true)?;
    ensure!(ask(&readyz)? == (200, "ok".into()));

    master.hang()?;
    ensure!(n1.exec(&["curl", "-sk", "-m", "1", &who])?.code == Some(28), "a hung master answers");
    master.go_on()?;
    ensure!(ask(&who)?.0 == 200);

    master.kill()?;
    ensure!(n1.exec(&["curl", "-sk", "-m", "1", &who])?.code == Some(7), "a killed master accepts");
    master.start_again(n0)?;
    ensure!(ask(&who)?.0 == 200);

    let ca = lab.certs().ca.to_string_lossy().into_owned();
    let resolve = format!("kubernetes:6443:{}", n0.mesh_ip());
    let verified = ["curl", "-s", "--cacert", &ca, "--resolve", &resolve, "https://kubernetes:6443/who"];
    ensure!(n1.exec(&verified)?.ok()?.trim() == "n0", "verified against the lab's authority");
    Ok(())
}

#[test]
fn a_master_without_anonymous_access_wants_a_certificate() -> Result<()> {
    let lab = Lab::bridge(2)?;
    let master = lab.nginx_master_without_anonymous(0)?;
    let url = format!("https://{}/readyz", master.address);
    let [cert, key] =
        [&lab.certs().client, &lab.certs().client_key].map(|p| p.to_string_lossy().into_owned());
    ensure!(get(lab.node(1), &url, &[])?.0 == 401);
    ensure!(get(lab.node(1), &url, &["--cert", &cert, "--key", &key])? == (200, "ok".into()));
    Ok(())
}

#[test]
fn processes_are_signalled_and_their_output_kept() -> Result<()> {
    let lab = Lab::bridge(1)?;
    let node = lab.node(0);
    let mut counter =
        node.spawn("counter", &["sh", "-c", "i=0; while sleep 0.02; do i=$((i+1)); echo $i; done"])?;
    let lines = |counter: &tests::lab::Proc| -> Result<usize> { Ok(counter.log()?.lines().count()) };
    eventually("it counts", Duration::from_secs(5), || {
        ensure!(lines(&counter)? > 3);
        Ok(())
    })?;
    counter.signal(Signal::STOP)?;
    let stopped = lines(&counter)?;
    std::thread::sleep(Duration::from_millis(200));
    ensure!(lines(&counter)? <= stopped + 1, "a stopped process goes on");
    counter.signal(Signal::CONT)?;
    eventually("it goes on", Duration::from_secs(5), || {
        ensure!(lines(&counter)? > stopped + 1);
        Ok(())
    })?;
    ensure!(counter.is_running());
    counter.kill()?;
    ensure!(!counter.is_running());
    ensure!(lab.tails(2).contains("counter.log"), "{}", lab.tails(2));

    let failed = node.exec(&["sh", "-c", "echo out; echo err >&2; exit 3"])?;
    ensure!(failed.to_string().contains("ended with 3\nstdout: out\nstderr: err"), "{failed}");
    ensure!(failed.fails_with(3)? == "out\nerr\n");
    Ok(())
}

/// Processes with this text in their command line.
fn with_text(text: &str) -> Result<Vec<String>> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir("/proc")? {
        let pid = entry?.file_name().to_string_lossy().into_owned();
        let line = std::fs::read(Path::new("/proc").join(&pid).join("cmdline")).unwrap_or_default();
        if pid.bytes().all(|b| b.is_ascii_digit()) && String::from_utf8_lossy(&line).contains(text) {
            found.push(pid);
        }
    }
    Ok(found)
}

#[test]
fn nothing_is_left_behind_when_a_lab_is_dropped() -> Result<()> {
    let lab = Lab::wireguard(2)?;
    let dir = lab.dir().to_path_buf();
    let master = lab.nginx_master(0)?;
    // A grandchild in a session of its own is out of reach of any signal to a process group.
    let mark = format!("73{}", std::process::id());
    let escaped = lab.node(1).spawn("escaped", &["setsid", "-f", "sleep", &mark])?;
    eventually("it runs", Duration::from_secs(5), || {
        ensure!(with_text(&mark)?.len() == 1);
        Ok(())
    })?;
    drop(lab);
    eventually("all is gone", Duration::from_secs(2), || {
        let left = with_text(&mark)?;
        ensure!(left.is_empty(), "{left:?}");
        ensure!(!dir.exists());
        Ok(())
    })?;
    drop((master, escaped));
    Ok(())
}

#[test]
fn nothing_is_left_behind_when_the_test_process_is_killed() -> Result<()> {
    // The killed one is this test again, in a process of its own.
    if let Ok(mark) = std::env::var("LAB_VICTIM") {
        let lab = Lab::wireguard(2)?;
        std::fs::write(&mark, lab.dir().as_os_str().as_encoded_bytes())?;
        let _process = lab.node(0).spawn("sleep", &["sleep", &mark_of(&mark)])?;
        std::thread::sleep(Duration::from_secs(60));
        return Ok(());
    }
    let told = tempfile::NamedTempFile::new()?;
    let mark = mark_of(&told.path().to_string_lossy());
    let mut victim = Command::new(std::env::current_exe()?)
        .args(["--exact", "nothing_is_left_behind_when_the_test_process_is_killed"])
        .env("LAB_VICTIM", told.path())
        .stdout(std::process::Stdio::null())
        .spawn()?;
    let there = eventually("the lab is there", Duration::from_secs(20), || {
        ensure!(with_text(&mark)?.len() == 1);
        Ok(())
    });
    victim.kill()?;
    victim.wait()?;
    there?;
    let dir = std::fs::read_to_string(told.path())?;
    eventually("all is gone", Duration::from_secs(5), || {
        ensure!(with_text(&mark)?.is_empty(), "a process outlives the test");
        ensure!(!Path::new(&dir).exists(), "{dir} outlives the test");
        Ok(())
    })?;
    Ok(())
}

/// A number of seconds that no other process sleeps for, derived from a file's name.
fn mark_of(path: &str) -> String {
    let number: u64 = path.bytes().fold(7, |sum, byte| (sum * 31 + u64::from(byte)) % 1_000_003);
    format!("74{number:07}")
}
