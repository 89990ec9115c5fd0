//! `join` and `start`: how soon a node serves.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use tests::lab::Lab;
use tests::mesh::{Agent, GOSSIP, LISTENER, form, with_agents};

use super::masters;

/// Timed runs.
const RUNS: usize = 10;

/// Minimum, median and maximum, in milliseconds.
fn spread(mut times: Vec<Duration>) -> Result<String> {
    ensure!(!times.is_empty(), "nothing was measured");
    times.sort_unstable();
    let ms = |time: Duration| time.as_secs_f64() * 1e3;
    let (first, middle, last) = (times[0], times[times.len() / 2], times[times.len() - 1]);
    Ok(format!("min {:.0}  median {:.0}  max {:.0} ms", ms(first), ms(middle), ms(last)))
}

/// Waits until a master answers through this node's proxy. Plain HTTP to its TLS port: the error response is
/// an answer too.
fn until_served(agent: &Agent<'_>, began: Instant) -> Result<Duration> {
    agent.node().inside(|| {
        loop {
            if answers() {
                return Ok(began.elapsed());
            }
            ensure!(began.elapsed() < GOSSIP, "nothing serves after {GOSSIP:?}");
            std::thread::sleep(Duration::from_millis(1));
        }
    })
}

fn answers() -> bool {
    let ask = || -> std::io::Result<usize> {
        let mut stream = TcpStream::connect(LISTENER)?;
        stream.set_read_timeout(Some(Duration::from_secs(1)))?;
        stream.write_all(b"GET / HTTP/1.0\r\n\r\n")?;
        stream.read(&mut [0; 12])
    };
    ask().is_ok_and(|read| read > 0)
}

/// From the start of `agent join` to the first answer through the new node's listener.
pub(crate) fn join() -> Result<()> {
    with_agents(Lab::wireguard(5), |lab, agents| {
        let _masters = masters(lab)?;
        let (last, others) = agents.split_last_mut().context("no agents")?;
        form(others)?;
        let invite = others[0].workers_invite()?;
        others[0].wait_for_backend("n2", &["ready"], GOSSIP)?;
        let mut times = Vec::new();
        for _ in 0..RUNS {
            let began = Instant::now();
            last.begin_join(&invite)?;
            times.push(until_served(last, began)?);
            last.wait_until_asked()?;
            last.cli(&["leave"])?.ok()?;
            last.process()?.ended(Duration::from_secs(15))?;
        }
        println!("join to serving, 5 nodes over WireGuard, {RUNS} runs: {}", spread(times)?);
        Ok(())
    })
}

/// From the start of `agent run` to the first answer, with every other agent off.
pub(crate) fn start() -> Result<()> {
    with_agents(Lab::wireguard(5), |lab, agents| {
        let _masters = masters(lab)?;
        form(agents)?;
        for agent in agents.iter() {
            agent.wait_for_backend("n2", &["ready"], GOSSIP)?;
        }
        for agent in agents.iter_mut() {
            agent.kill()?;
        }
        let last = agents.last_mut().context("no agents")?;
        let mut times = Vec::new();
        for _ in 0..RUNS {
            let began = Instant::now();
            last.run()?;
            times.push(until_served(last, began)?);
            last.kill()?;
        }
        println!("start to serving from state, no other agent up, {RUNS} runs: {}", spread(times)?);
        Ok(())
    })
}
