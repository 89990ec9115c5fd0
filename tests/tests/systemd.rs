//! Booted machines with a systemd of their own: what `agent init`, `systemctl` and a power cut do there.

use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use tests::hold::{Held, Kind, PROXY, Watch, hold, hold_all, serve_echo, wait_for_more};
use tests::lab::Lab;
use tests::machine::{Machine, all_up, form, with_machines};
use tests::mesh::{GOSSIP, SOON};
use tests::vip::ADDRESS;
use tests::wait::{always, eventually};

/// The events that a machine has told, each as a line.
fn events(machine: &Machine<'_>) -> Result<Vec<String>> {
    Ok(machine.agent(&["events", "--json", "--since", "1d"])?.ok()?.lines().map(str::to_owned).collect())
}

/// The main process of the agent's service.
fn main_pid(machine: &Machine<'_>) -> Result<String> {
    machine.property("agent", "MainPID")
}

/// The virtual IP's owner and epoch, as soon as all agree on them.
fn agreed_owner(machines: &[Machine<'_>]) -> Result<(String, u64)> {
    let (owner, _) = eventually("all agree on the virtual IP's owner", GOSSIP, || {
        let all = machines.iter().map(|one| one.status()?.owner_of_vip()).collect::<Result<Vec<_>>>()?;
        ensure!(all.iter().all(|one| *one == all[0]), "{all:?}");
        Ok(all[0].clone())
    })?;
    Ok(owner)
}

/// For a while all say that it is still this one.
fn keeps_owner(machines: &[Machine<'_>], before: &(String, u64), during: Duration) -> Result<()> {
    always("it stays where it is", during, || {
        for machine in machines {
            let now = machine.status()?.owner_of_vip()?;
            ensure!(now == *before, "{} says {now:?}, and it was {before:?}", machine.name());
        }
        Ok(())
    })
}

#[test]
fn a_restart_loses_no_connection_no_byte_and_no_virtual_ip() -> Result<()> {
    with_machines(Lab::bridge(3), |lab, machines| {
        let _masters = (0..3).map(|i| lab.nginx_master(i)).collect::<Result<Vec<_>>>()?;
        let watch = Arc::new(Watch::default());
        form(machines, &["--vip", &ADDRESS.to_string()])?;
        serve_echo(lab, &watch.over, |set| machines[0].agent(set)?.ok(), || machines[2].status())?;
        let before = agreed_owner(machines)?;
        let last = &machines[2];
        let counts = [
            (Kind::Silent, 40),
            (Kind::Active, 20),
            (Kind::Bulk, 2),
            (Kind::HalfClosed, 4),
            (Kind::Stuck, 4),
        ];
        let held = hold_all(lab, &counts, &watch)?;
        wait_for_more(&watch)?;
        let began = last.status()?.node.started_unix_ms;

        // A restart, an upgrade, and a package that has put another binary in its place.
        let program = last.file("/usr/local/bin/agent");
        std::fs::copy(&program, last.file("/root").join("agent-new"))?;
        let steps: [&[&str]; 3] = [
            &["systemctl", "restart", "agent"],
            &["agent", "upgrade", "/root/agent-new"],
            &["systemctl", "try-restart", "agent"],
        ];
        for step in steps {
            let process = main_pid(last)?;
            let others = &machines[..2];
            let told = others.iter().map(events).collect::<Result<Vec<_>>>()?;
            last.exec(step)?.ok()?;
            wait_for_more(&watch)?;
            for (other, told) in others.iter().zip(told) {
                let new: Vec<String> = events(other)?.into_iter().skip(told.len()).collect();
                let noticed = |line: &String| line.contains("n2") && !line.contains("\"level\":\"info\"");
                ensure!(!new.iter().any(noticed), "{step:?}: {} has noticed: {new:?}", other.name());
            }
            let is_same = main_pid(last)? == process;
            ensure!(is_same == (step[0] == "agent"), "{step:?}: process {process} goes on: {is_same}");
            ensure!(last.property("agent", "NFileDescriptorStore")? == "0", "systemd keeps something still");
        }
        // The owner of the virtual IP, too.
        let owner = machines.iter().find(|one| one.name() == before.0).context("a stranger owns it")?;
        owner.exec(&["systemctl", "restart", "agent"])?.ok()?;
        keeps_owner(machines, &before, Duration::from_secs(7))?;
        ensure!(last.status()?.node.started_unix_ms == began, "it has started anew");
        watch.over.store(true, Relaxed);
        let bytes = held.into_iter().map(Held::end).sum::<Result<u64>>()?;
        println!(
            "{bytes} bytes came back; of {} messages the slowest took {} ms",
            watch.messages.load(Relaxed),
            watch.longest_us.load(Relaxed) / 1000
        );
        Ok(())
    })
}

/// A mistake in the file fails the reload, is named in the journal, and changes nothing; a right file is followed.
fn reload(machine: &Machine<'_>) -> Result<()> {
    let file = machine.file("/etc/agent/agent.toml");
    std::fs::create_dir_all(file.parent().context("a directory")?)?;
    std::fs::write(&file, "foo = 1\n")?;
    let process = main_pid(machine)?;
    ensure!(machine.exec(&["systemctl", "reload", "agent"])?.ok().is_err(), "a wrong file is reloaded");
    let journal = machine.exec(&["journalctl", "-u", "agent", "-o", "cat", "--no-pager"])?.ok()?;
    let line = "/etc/agent/agent.toml:1:1: foo: unknown key";
    ensure!(journal.contains(line), "the journal does not say {line}: {journal}");
    ensure!(main_pid(machine)? == process && machine.property("agent", "ActiveState")? == "active");
    std::fs::write(&file, "[log]\nlevel = \"info\"\n")?;
    machine.exec(&["systemctl", "reload", "agent"])?.ok()?;
    std::fs::remove_file(&file)?;
    ensure!(main_pid(machine)? == process, "a reload has started another process");
    Ok(())
}

#[test]
fn a_stop_is_a_stop() -> Result<()> {
    with_machines(Lab::bridge(2), |lab, machines| {
        let watch = Arc::new(Watch::default());
        form(machines, &[])?;
        serve_echo(lab, &watch.over, |set| machines[0].agent(set)?.ok(), || machines[1].status())?;
        let held = hold(machines[1].node(), PROXY.into(), Kind::Active, 1, &watch)?;
        reload(&machines[1])?;
        machines[1].exec(&["systemctl", "stop", "agent"])?.ok()?;
        ensure!(held.end().is_err(), "a connection outlives the agent");
        eventually("the other sees that it stopped", GOSSIP, || {
            let state = machines[0].status()?.member("n1")?.state.clone();
            ensure!(state == "left", "it is {state}");
            Ok(())
        })?;
        machines[1].exec(&["systemctl", "start", "agent"])?.ok()?;
        all_up(machines)
    })
}

#[test]
fn a_machine_serves_again_whatever_happens_to_it() -> Result<()> {
    with_machines(Lab::bridge(3), |lab, machines| {
        let _masters = (0..3).map(|i| lab.nginx_master(i)).collect::<Result<Vec<_>>>()?;
        form(machines, &[])?;
        // Units that need an apiserver start after the proxy listens, and the unit is what systemd runs.
        for machine in machines.iter() {
            let before = machine.property("agent", "Before")?;
            ensure!(before.contains("kubelet.service") && before.contains("k3s.service"), "{before}");
            for (property, value) in
                [("Type", "notify"), ("NoNewPrivileges", "yes"), ("ProtectSystem", "strict")]
            {
                ensure!(machine.property("agent", property)? == value, "{property}");
            }
        }
        let journal = machines[0].exec(&["journalctl", "-u", "agent", "-o", "json", "--no-pager"])?.ok()?;
        ensure!(journal.contains("\"AGENT_EVENT\":\"member\""), "the journal has no fields: {journal}");

        // A crash, and a process that hangs: systemd starts it again.
        for signal in ["KILL", "STOP"] {
            let process = main_pid(&machines[1])?;
            machines[1].exec(&["kill", &format!("-{signal}"), &process])?.ok()?;
            eventually(&format!("it serves after SIG{signal}"), Duration::from_secs(40), || {
                ensure!(main_pid(&machines[1])? != process, "systemd has not noticed");
                ensure!(machines[1].property("agent", "ActiveState")? == "active", "it is not active");
                Ok(())
            })?;
            all_up(machines)?;
        }
        machines[1].reboot()?;
        all_up(machines)?;
        machines[2].power_cut()?;
        eventually("the others see the power cut", SOON, || {
            let state = machines[0].status()?.member("n2")?.state.clone();
            ensure!(state == "down", "it is {state}");
            Ok(())
        })?;
        machines[2].power_on()?;
        machines[2].wait_until_booted()?;
        all_up(machines)?;
        // All at once.
        machines.iter_mut().try_for_each(Machine::begin_reboot)?;
        machines.iter_mut().try_for_each(Machine::end_reboot)?;
        all_up(machines)?;
        for machine in machines.iter() {
            eventually("its clients are served", GOSSIP, || {
                let status = machine.status()?;
                let ready = status.services[0].backends.iter().filter(|one| one.state == "ready").count();
                ensure!(ready == 3, "{:?}", status.services[0].backends);
                Ok(())
            })?;
        }
        Ok(())
    })
}

/// systemd-networkd, for which Ubuntu's netplan writes, takes all addresses off an interface and sets its own again
/// when it configures it anew: the owner keeps the virtual IP.
#[test]
fn a_virtual_ip_stays_where_systemd_networkd_configures_its_interface_anew() -> Result<()> {
    with_machines(Lab::bridge(3), |lab, machines| {
        let _masters = (0..2).map(|i| lab.nginx_master(i)).collect::<Result<Vec<_>>>()?;
        for machine in machines.iter() {
            let (interface, address) = (machine.node().interface, machine.node().mesh_ip().to_string());
            let file = format!(
                "[Match]\nName={interface}\n[Network]\nAddress={address}/24\nLinkLocalAddressing=no\n"
            );
            std::fs::create_dir_all(machine.file("/etc/systemd/network"))?;
            std::fs::write(machine.file("/etc/systemd/network/10-lab.network"), file)?;
            machine.exec(&["ip", "address", "flush", "dev", interface])?.ok()?;
            machine.exec(&["systemctl", "start", "systemd-networkd"])?.ok()?;
            eventually("networkd gives the node its address", GOSSIP, || {
                let found = machine.exec(&["networkctl", "status", "--no-pager", interface])?.ok()?;
                ensure!(found.contains("routable (configured)") && found.contains(&address), "{found}");
                Ok(())
            })?;
        }
        form(machines, &["--vip", &ADDRESS.to_string()])?;
        let before = agreed_owner(machines)?;
        let owner = machines.iter().find(|one| one.name() == before.0).context("a stranger owns it")?;
        let interface = owner.node().interface;
        let address = format!("{ADDRESS}/32");
        for step in [
            &["systemctl", "restart", "systemd-networkd"][..],
            &["networkctl", "reload"],
            &["networkctl", "reconfigure", interface],
            &["networkctl", "reconfigure", interface],
            &["sh", "-c", "touch /etc/systemd/network/10-lab.network && networkctl reload"],
        ] {
            owner.exec(step)?.ok()?;
            eventually(&format!("the address is there after {step:?}"), SOON, || {
                let found = owner.exec(&["ip", "address", "show", interface])?.ok()?;
                ensure!(found.contains(&address), "{found}");
                Ok(())
            })?;
            keeps_owner(machines, &before, Duration::from_secs(2)).with_context(|| format!("{step:?}"))?;
        }
        let told = events(owner)?;
        ensure!(told.iter().any(|line| line.contains("put-back")), "it was never taken away: {told:?}");
        Ok(())
    })
}
