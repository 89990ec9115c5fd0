//! `faults`: one of three masters fails, and what the clients of our proxy and of haproxy notice.
//!
//! On a mesh of WireGuard tunnels, since users have that, and since a bridge would reveal a powered-off
//! master to the kernel (ARP fails) where a layer 3 network does not. Each row has a lab of its own, so that
//! nothing of the previous row remains; both proxies run on the same worker, are loaded in turn from the same
//! thread, and meet the same fault at the same moment.

use std::net::SocketAddr;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use tests::faults::{Fault, Noticed, Stage};
use tests::lab::Lab;
use tests::load::Plan;
use tests::mesh::{LISTENER, with_agents};
use tests::peers::{CHECKED, HTTPCHK, Haproxy, local, require};

use super::option;

/// The proxies, in order.
const WHO: [&str; 2] = ["agent", "haproxy"];

const HAPROXY: u16 = 26443;

/// Time before the fault, as the baseline.
const BEFORE: Duration = Duration::from_secs(3);

/// New connections a second, and held ones, of each proxy.
const LOAD: (u32, usize) = (50, 6);

/// Tries to get held connections of both proxies onto one master.
const PLACED: usize = 3;

pub(crate) fn faults(arguments: &[String]) -> Result<()> {
    require(&[("haproxy", "haproxy")])?;
    let mut arguments = arguments.to_vec();
    let runs = option(&mut arguments, "--runs", 1)?;
    let after = Duration::from_secs(option(&mut arguments, "--after", 30)?);
    let rows = rows(&arguments)?;
    let (per_second, held) = LOAD;
    println!(
        "one of three TLS masters over WireGuard; {per_second} new connections a second and {held} held \
         to each proxy;\n{} s after each fault, {runs} run(s): counts are summed, times are the longest\n",
        after.as_secs()
    );
    println!("{:<19}{:<8}{}", "fault", "proxy", Noticed::HEAD);
    let mut reasons = Vec::new();
    for fault in rows {
        let mut sums: [Noticed; 2] = Default::default();
        for _ in 0..runs {
            sums.iter_mut().zip(row(fault, after)?).for_each(|(sum, one)| sum.merge(one));
        }
        for (who, sum) in WHO.iter().zip(&sums) {
            let title = if *who == WHO[0] { fault.title() } else { "" };
            println!("{title:<19}{who:<8}{sum}");
            reasons.extend(sum.why.iter().map(|why| format!("{}, {who}: {why}", fault.title())));
        }
    }
    println!(
        "\nsilence: the longest that a held connection on a faulty master was without an answer; +: until \
         the end.\nreset: those on a faulty master that ended; elsewhere: those on the others."
    );
    for reason in reasons {
        println!("first failure: {reason}");
    }
    Ok(())
}

fn rows(arguments: &[String]) -> Result<Vec<Fault>> {
    if arguments.is_empty() {
        return Ok(Fault::ALL.to_vec());
    }
    let words = || Fault::ALL.map(Fault::word).join(" ");
    let named = |word: &String| Fault::ALL.into_iter().find(|fault| fault.word() == word);
    arguments
        .iter()
        .map(|word| named(word).with_context(|| format!("no row \"{word}\"; there are: {}", words())))
        .collect()
}

/// One row in a lab of its own.
fn row(fault: Fault, after: Duration) -> Result<Vec<Noticed>> {
    let mut found = Vec::new();
    with_agents(Lab::wireguard(4), |lab, agents| {
        let mut stage = Stage::set(lab, agents)?;
        let servers: Vec<SocketAddr> = (0..3).map(|i| SocketAddr::new(lab.node(i).mesh_ip(), 6443)).collect();
        let haproxy = Haproxy {
            name: "haproxy",
            listen: local(HAPROXY),
            servers,
            maxconn: 4000,
            defaults: HTTPCHK,
            server: CHECKED,
        };
        let _haproxy = haproxy.start(stage.worker().node())?;
        let ours: SocketAddr = LISTENER.parse()?;
        let (per_second, held) = LOAD;
        let targets = vec![ours, local(HAPROXY)];
        let plan = Plan { targets, per_second, held, patience: Duration::from_secs(10) };
        for _ in 0..PLACED {
            match stage.row(fault, &plan, BEFORE, after) {
                Ok((noticed, _)) => {
                    found = noticed;
                    return Ok(());
                }
                // No fault was injected: the connections were distributed by chance.
                Err(error) if format!("{error:#}").contains("no master has held") => {}
                Err(error) => return Err(error),
            }
        }
        bail!("in {PLACED} tries no master had held connections of both proxies")
    })?;
    Ok(found)
}
