//! What a release has, on booted machines: the package is installed, upgraded under load, removed and purged, and
//! install.sh installs, upgrades and is undone.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::thread::JoinHandle;

use anyhow::{Context, Result, anyhow, ensure};
use tests::hold::{Held, Kind, PROXY, Watch, echo_once, hold_all, serve_echo, wait_for_more};
use tests::lab::{Lab, Node};
use tests::machine::{Machine, all_up, form, with_machines};
use tests::mesh::{GOSSIP, SOON, binary};
use tests::vip::ADDRESS;
use tests::wait::eventually;

/// The node-local address of the cluster.
const NODE_LOCAL: &str = "10.222.0.1";

/// Exit code of a service that is not available, as sysexits(3) has it.
const UNAVAILABLE: i32 = 69;

/// What deploy/package makes of the binary under test, with this version, in one format.
fn package(dir: &Path, version: &str, format: &str) -> Result<PathBuf> {
    let script = |name: &str| format!("{}/../{name}", env!("CARGO_MANIFEST_DIR"));
    let nfpm = Command::new(script("tests/nfpm")).output().context("tests/nfpm")?;
    ensure!(nfpm.status.success(), "tests/nfpm: {}", String::from_utf8_lossy(&nfpm.stderr));
    let path = format!("{}:{}", String::from_utf8(nfpm.stdout)?.trim(), std::env::var("PATH")?);
    let mut make = Command::new(script("deploy/package"));
    make.arg(binary()?).arg(dir).arg(format).env("VERSION", version).env("PATH", path);
    // Taken from the last commit unless they are given, and a copy of the sources may have none.
    make.env("SOURCE_DATE_EPOCH", "1800000000").env("MAINTAINER", "Tests <tests@agent.example.org>");
    let made = make.output().context("deploy/package")?;
    ensure!(made.status.success(), "deploy/package: {}", String::from_utf8_lossy(&made.stderr));
    let said = String::from_utf8(made.stdout)?;
    Ok(said.lines().last().context("it names no package")?.into())
}

/// Puts a package into a machine and installs it; returns what that says.
fn install(machine: &Machine<'_>, deb: &Path) -> Result<String> {
    std::fs::copy(deb, machine.file("/root/agent-ha.deb"))?;
    dpkg(machine, &["--install", "/root/agent-ha.deb"])
}

fn dpkg(machine: &Machine<'_>, arguments: &[&str]) -> Result<String> {
    let ran = machine.exec(&[&["env", "DEBIAN_FRONTEND=noninteractive", "dpkg"], arguments].concat())?;
    let said = format!("{}{}", ran.out, ran.err);
    ran.ok()?;
    Ok(said)
}

/// A client that opens a connection again and again until all is over; returns how many.
fn keeps_connecting(node: &Node, watch: &Arc<Watch>) -> Result<JoinHandle<Result<u64>>> {
    // A thread that is in the node's network stays there, and so do those that it starts.
    let over = watch.over.clone();
    node.inside(|| {
        Ok(std::thread::spawn(move || {
            let mut opened = 0;
            while !over.load(Relaxed) {
                echo_once(PROXY.into()).with_context(|| format!("connection {opened} failed"))?;
                opened += 1;
            }
            Ok(opened)
        }))
    })
}

/// What is left of the agent in a machine: files, a unit, addresses, a listener.
fn left_behind(machine: &Machine<'_>) -> Result<String> {
    let look = format!(
        "find / -xdev \\( -path /proc -o -path /sys -o -path /root -o -path /var/lib/dpkg -o -path /var/log \\) -prune \
         -o \\( -name 'agent' -o -name 'agent-ha*' -o -name 'agent.*' -o -name 'agent-*.1*' \\) -print; \
         systemctl list-unit-files --no-legend 'agent*'; \
         ip -brief address | grep -F -e {ADDRESS} -e {NODE_LOCAL}; ss -Hlntu | grep -E ':(7646|16443|1936) '; true"
    );
    machine.exec(&["sh", "-c", &look])?.ok()
}

#[test]
fn a_package_is_installed_upgraded_without_loss_removed_and_purged() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let (first, second) = (package(dir.path(), "0.1.0", "deb")?, package(dir.path(), "0.1.1", "deb")?);
    with_machines(Lab::bridge(3), |lab, machines| {
        let _masters = (0..3).map(|i| lab.nginx_master(i)).collect::<Result<Vec<_>>>()?;
        for machine in machines.iter() {
            machine.exec(&["rm", "/usr/local/bin/agent"])?.ok()?;
            let said = install(machine, &first)?;
            ensure!(said.contains("agent-ha: next, run: agent init"), "{said}");
            // Enabled, and with nothing to run it does not fail.
            ensure!(machine.property("agent", "UnitFileState")? == "enabled");
            ensure!(machine.property("agent", "ActiveState")? == "inactive");
            machine.wait_until_booted()?;
        }
        form(machines, &["--vip", &ADDRESS.to_string()])?;
        for machine in machines.iter() {
            let unit = machine.property("agent", "FragmentPath")?;
            ensure!(unit == "/lib/systemd/system/agent.service", "systemd runs {unit}");
            let own = machine.exec(&["ls", "/usr/local/bin/agent", "/etc/systemd/system/agent.service"])?;
            ensure!(own.out.is_empty(), "init or join wrote {own}");
        }
        let watch = Arc::new(Watch::default());
        serve_echo(lab, &watch.over, |set| machines[0].agent(set)?.ok(), || machines[2].status())?;
        machines[0].agent(&["set", &format!("node-local={NODE_LOCAL}")])?.ok()?;
        upgrade_under_load(lab, &machines[2], &second, &watch)?;
        removal(machines, &second)?;
        all_up(machines)?;

        // Not by dpkg: by the command that people know from machines without the package.
        let said = machines[2].agent(&["uninstall"])?.ok()?;
        ensure!(said.contains("kept the unit and the binary of the package agent-ha"), "{said}");
        machines[2].agent(&["install"])?.ok()?;
        all_up(machines)?;
        let said = dpkg(&machines[2], &["--purge", "agent-ha"])?;
        ensure!(said.contains("deleting this node's identity and state in /var/lib/agent"), "{said}");
        let left = left_behind(&machines[2])?;
        ensure!(left.is_empty(), "it leaves behind: {left}");
        machines[2].wait_until_booted()
    })
}

/// An upgrade while connections are held and opened; then the command that a package does not want.
fn upgrade_under_load(lab: &Lab, last: &Machine<'_>, second: &Path, watch: &Arc<Watch>) -> Result<()> {
    let counts = [(Kind::Silent, 40), (Kind::Active, 20), (Kind::Bulk, 2), (Kind::Stuck, 4)];
    let held = hold_all(lab, &counts, watch)?;
    let opened = keeps_connecting(last.node(), watch)?;
    wait_for_more(watch)?;
    let (began, process) = (last.status()?.node.started_unix_ms, last.property("agent", "MainPID")?);
    install(last, second)?;
    wait_for_more(watch)?;
    ensure!(last.property("agent", "MainPID")? != process, "the process of the old package goes on");
    ensure!(last.status()?.node.started_unix_ms == began, "it has started anew");
    watch.over.store(true, Relaxed);
    let bytes = held.into_iter().map(Held::end).sum::<Result<u64>>()?;
    let opened = opened.join().map_err(|_| anyhow!("the client panicked"))??;
    println!("{bytes} bytes came back, {opened} connections were opened, and none was lost or refused");
    let said = last.agent(&["upgrade", "/usr/bin/env"])?.fails_with(UNAVAILABLE)?;
    ensure!(said.contains("apt-get install ./agent-ha_"), "{said}");
    Ok(())
}

/// The owner of the virtual IP loses its package, and gets it back.
fn removal(machines: &[Machine<'_>], deb: &Path) -> Result<()> {
    let last = &machines[2];
    let address = ADDRESS.to_string();
    eventually("the virtual IP has an owner", GOSSIP, || machines[0].status()?.owner_of_vip())?;
    // It has just been replaced, and may not own it for a moment.
    eventually("its own machine owns it", GOSSIP, || {
        if last.status()?.owner_of_vip()?.0 != "n2" {
            machines[0].agent(&["vip", "move", &address, "n2"])?.ok()?;
        }
        Ok(())
    })?;
    eventually("it has the node-local address", GOSSIP, || {
        let has = last.exec(&["ip", "-brief", "address", "show", "lo"])?.ok()?;
        ensure!(has.contains(NODE_LOCAL), "{has}");
        Ok(())
    })?;
    let said = dpkg(last, &["--remove", "agent-ha"])?;
    ensure!(said.contains("kept this node's identity and state in /var/lib/agent"), "{said}");
    ensure!(said.contains("run on a master: agent remove n2\n"), "{said}");
    let left = last.exec(&["sh", "-c", "ip -brief address; ss -Hlntu"])?.ok()?;
    let marks = [address.as_str(), NODE_LOCAL, ":7646", ":16443"];
    ensure!(!marks.iter().any(|mark| left.contains(mark)), "it leaves behind: {left}");
    eventually("another owns the virtual IP", SOON, || {
        let owner = machines[0].status()?.owner_of_vip()?.0;
        ensure!(owner != "n2", "{owner} owns it");
        Ok(())
    })?;
    // Its state is there still: it starts by itself.
    let said = install(last, deb)?;
    ensure!(!said.contains("next, run"), "{said}");
    Ok(())
}

#[test]
fn install_sh_installs_what_has_the_right_checksum_and_nothing_else() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let archive = package(dir.path(), "0.1.0", "tar.gz")?;
    let name = archive.file_name().and_then(|name| name.to_str()).context("a name")?;
    with_machines(Lab::bridge(1), |_, machines| {
        let machine = &machines[0];
        machine.exec(&["rm", "/usr/local/bin/agent"])?.ok()?;
        let script = concat!(env!("CARGO_MANIFEST_DIR"), "/../deploy/install.sh");
        std::fs::copy(script, machine.file("/root/install.sh"))?;
        std::fs::create_dir(machine.file("/root/release"))?;
        std::fs::copy(&archive, machine.file("/root/release").join(name))?;
        let sums = machine.file("/root/release/SHA256SUMS");
        let run = |more: &[&str]| {
            let settings = more.iter().filter(|one| one.contains('='));
            let arguments = more.iter().filter(|one| !one.contains('='));
            let env = ["env", "INSTALL_AGENT_DIR=/root/release"];
            let script = ["sh", "/root/install.sh"];
            let all = env.iter().chain(settings).chain(&script).chain(arguments);
            machine.exec(&all.copied().collect::<Vec<&str>>())
        };
        let refused = |more: &[&str], why: &str| -> Result<()> {
            let said = run(more)?.fails_with(1)?;
            ensure!(said.contains(why), "{more:?}: {said}");
            let left = left_behind(machine)?;
            ensure!(left.is_empty(), "{more:?}: {left}");
            Ok(())
        };
        refused(&[], "SHA256SUMS is not in /root/release")?;
        std::fs::write(&sums, format!("{}  {name}\n", "0".repeat(64)))?;
        refused(&[], "has the wrong checksum")?;
        refused(&["INSTALL_AGENT_VERSION=9.9.9"], "has no agent-9.9.9-linux-")?;
        refused(&["INSTALL_AGENT_INIT=upstart"], "expected systemd, openrc, procd, runit or none")?;
        machine.exec(&["sh", "-c", "cd /root/release && sha256sum *.tar.gz >SHA256SUMS"])?.ok()?;
        refused(&["INSTALL_AGENT_MINISIGN_KEY=x"], "minisign is not installed")?;

        let said = run(&["init", "--name", "m1", "--iface", machine.node().interface])?.ok()?;
        ensure!(said.contains("has the right checksum") && said.contains("agent join agent1"), "{said}");
        let process = machine.property("agent", "MainPID")?;
        ensure!(machine.property("agent", "ActiveState")? == "active", "it does not run");
        let again = run(&[])?.ok()?;
        ensure!(again.contains("/usr/local/bin/agent is up to date"), "{again}");
        ensure!(machine.property("agent", "MainPID")? == process, "the same version restarts it");
        machine.agent(&["uninstall", "--purge"])?.ok()?;
        let left = left_behind(machine)?;
        ensure!(left.is_empty(), "it leaves behind: {left}");
        Ok(())
    })
}
