//! The status page in a real browser, the metrics in a real Prometheus, and what they may cost and show.

use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::net::{Ipv4Addr, TcpStream};
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result, ensure};
use serde_json::Value;
use tests::browser::Browser;
use tests::lab::{Lab, Master, Node};
use tests::mesh::{Agent, GOSSIP, LISTENER, form, with_agents};
use tests::peers::require;
use tests::wait::eventually;

/// The page, on every node.
const PAGE: &str = "http://127.0.0.1:1936";

/// The lists of things that a page has to keep and does not.
const AUDIT: &str = include_str!("web.js");

/// How a backend stands on the page.
const STATE: &str = "(name => [...document.querySelectorAll('#service-kube-api tbody tr')]\
                     .find(row => row.querySelector('th').textContent === name)?.querySelector('.s').textContent)";

/// Three masters and a worker, whose proxy knows all of them.
fn cluster(test: impl FnOnce(&Lab, &mut [Agent<'_>], Vec<Master>) -> Result<()>) -> Result<()> {
    with_agents(Lab::wireguard(4), |lab, agents| {
        let masters = (0..3).map(|i| lab.nginx_master(i)).collect::<Result<Vec<_>>>()?;
        form(agents)?;
        for master in ["n0", "n1", "n2"] {
            agents[3].wait_for_backend(master, &["ready"], GOSSIP)?;
        }
        test(lab, agents, masters)
    })
}

fn now_ms() -> Result<f64> {
    Ok(SystemTime::now().duration_since(UNIX_EPOCH)?.as_secs_f64() * 1e3)
}

/// What a node's page says at a path, with its head.
fn get(node: &Node, path: &str, more: &[&str]) -> Result<(u16, String, String)> {
    let url = format!("{PAGE}{path}");
    let command = [&["curl", "-sS", "-m", "5", "-i", &url], more].concat();
    let answer = node.exec(&command)?.ok()?;
    let (head, body) = answer.split_once("\r\n\r\n").with_context(|| format!("no head: {answer}"))?;
    let status = head.split(' ').nth(1).context("no status")?.parse()?;
    Ok((status, head.to_owned(), body.to_owned()))
}

#[test]
fn the_page_is_for_everyone_and_changes_within_a_second_of_a_masters_death() -> Result<()> {
    require(&[("chromium", "chromium")])?;
    cluster(|lab, agents, _masters| {
        let worker = agents[3].node();
        let mut browser = Browser::start(worker)?;
        for (width, height) in [(1440, 900), (360, 740)] {
            for theme in ["light", "dark"] {
                browser.look(width, height, theme)?;
                browser.open(PAGE)?;
                looks_right(&mut browser, &format!("{width} {theme}"))?;
            }
        }
        // Without scripts it is the same page, and says how to see news.
        browser.scripts(false)?;
        browser.open(PAGE)?;
        browser.scripts(true)?;
        let text = browser.eval("document.body.innerText")?;
        let text = text.as_str().context("no text")?;
        ensure!(text.contains("3 of 3 masters serve") && text.contains("reload for news"), "{text}");

        browser.look(1440, 900, "light")?;
        browser.open(PAGE)?;
        eventually("the page is live", Duration::from_secs(5), || {
            let live = browser.eval("document.getElementById('live').className")?;
            ensure!(live == "good", "{live}");
            Ok(())
        })?;
        browser.eval(
            "window.kept = document.querySelector('#members'); document.querySelector('.wide').focus(); 0",
        )?;
        browser.eval(&format!(
            "window.seen = new Promise(done => {{ const look = () => {STATE}('n1') !== 'ready' && done(Date.now()); \
             new MutationObserver(look).observe(document.body, {{subtree: true, childList: true, \
             characterData: true}}); look(); }}); 0"
        ))?;
        let cut = now_ms()?;
        lab.node(1).power_cut()?;
        let seen = browser.eval("window.seen")?.as_f64().context("no time")?;
        println!("the page told of the death after {:.0} ms", seen - cut);
        ensure!(seen - cut < 1000.0, "the page told of it only after {:.0} ms", seen - cut);
        eventually("the verdict names who is missing", Duration::from_secs(10), || {
            let verdict = browser.eval("document.getElementById('verdict').innerText")?;
            let words = verdict.as_str().context("no text")?;
            ensure!(words.contains("2 of 3 masters serve") && words.contains("n1 down"), "{words}");
            Ok(())
        })?;
        let spoken = browser.eval("document.querySelector('[role=status]').textContent")?;
        ensure!(spoken == "degraded: 2 of 3 masters serve; n1 down", "{spoken}");
        let kept = browser
            .eval("window.kept.isConnected && document.activeElement === document.querySelector('.wide')")?;
        ensure!(kept == true, "what has focus was put in anew");
        for (width, theme) in [(1440, "light"), (360, "dark")] {
            browser.look(width, 900, theme)?;
            looks_right(&mut browser, &format!("{width} {theme} degraded"))?;
        }
        // When the agent is gone, the page says so itself.
        agents[3].kill()?;
        eventually("the page says that it is not live", Duration::from_secs(10), || {
            let live = browser.eval("document.getElementById('live').textContent")?;
            ensure!(live.as_str().is_some_and(|text| text.starts_with("not live")), "{live}");
            Ok(())
        })?;
        Ok(())
    })
}

/// Nothing is wrong with the page as it is shown now. Pictures go where TEST_PICTURES says.
fn looks_right(browser: &mut Browser, what: &str) -> Result<()> {
    let wrong = browser.eval(AUDIT)?;
    ensure!(wrong == serde_json::json!([]), "{what}: {wrong:#}");
    let errors = browser.errors()?;
    ensure!(errors.is_empty(), "{what}: {errors:#?}");
    if let Some(dir) = std::env::var_os("TEST_PICTURES") {
        browser.picture(&Path::new(&dir).join(format!("{}.png", what.replace(' ', "-"))))?;
    }
    Ok(())
}

/// A value of a metric with these labels.
fn metric(text: &str, name: &str, labels: &str) -> Result<f64> {
    let start = format!("{name}{{{labels}}} ");
    let line = text.lines().find_map(|line| line.strip_prefix(&start));
    Ok(line.with_context(|| format!("no {start}in {text}"))?.parse()?)
}

/// The rows of haproxy's CSV by server, their columns by name.
fn rows(csv: &str) -> Result<BTreeMap<String, BTreeMap<String, String>>> {
    let mut lines = csv.lines();
    let head: Vec<&str> = lines.next().context("no header")?.trim_start_matches("# ").split(',').collect();
    let row = |line: &str| -> BTreeMap<String, String> {
        head.iter().zip(line.split(',')).map(|(name, value)| ((*name).to_owned(), value.to_owned())).collect()
    };
    lines.map(row).map(|row| Ok((row.get("svname").context("no name")?.clone(), row))).collect()
}

/// Page, CSV, metrics and status, all of the same look.
fn one_look(node: &Node) -> Result<[String; 4]> {
    let (looks, _) = eventually("four answers of one look", Duration::from_secs(20), || {
        let urls = ["/", "/stats;csv", "/metrics", "/api/v1/status"];
        let mut command = vec!["curl".to_owned(), "-sS".to_owned(), "-i".to_owned()];
        command.extend(urls.iter().map(|path| format!("{PAGE}{path}")));
        let command: Vec<&str> = command.iter().map(String::as_str).collect();
        let answer = node.exec(&command)?.ok()?;
        let parts: Vec<&str> = answer.split("HTTP/1.1 200 OK\r\n").skip(1).collect();
        let mut found = Vec::new();
        for part in parts {
            let (head, body) = part.split_once("\r\n\r\n").context("no head")?;
            let number = head.lines().find(|line| line.starts_with("x-snapshot")).context("no number")?;
            found.push((number.to_owned(), body.to_owned()));
        }
        ensure!(found.len() == 4 && found.iter().all(|one| one.0 == found[0].0), "of different looks");
        let bodies: Vec<String> = found.into_iter().map(|one| one.1).collect();
        bodies.try_into().map_err(|_| anyhow::anyhow!("not four"))
    })?;
    Ok(looks)
}

#[test]
fn page_csv_metrics_and_status_agree_under_load() -> Result<()> {
    cluster(|_, agents, _masters| {
        let worker = agents[3].node();
        let done = AtomicBool::new(false);
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    while !done.load(Ordering::Relaxed) {
                        let _ = agents[3].who_serves();
                    }
                });
            }
            let compared = (0..10).try_for_each(|_| compare(worker));
            done.store(true, Ordering::Relaxed);
            compared
        })
    })
}

fn compare(worker: &Node) -> Result<()> {
    let [page, csv, metrics, status] = one_look(worker)?;
    let status: Value = serde_json::from_str(&status)?;
    let rows = rows(&csv)?;
    let service = &status["services"][0];
    for backend in service["backends"].as_array().context("no backends")? {
        let name = backend["node"].as_str().context("no name")?;
        let row = rows.get(name).with_context(|| format!("no {name} in {csv}"))?;
        let labels = format!("service=\"kube-api\",backend=\"{name}\"");
        let counted = &backend["counted"];
        for (column, label, metric_name, value) in [
            ("stot", "total", "agent_backend_connections_total", &backend["total"]),
            ("scur", "now", "agent_backend_connections", &backend["connections"]),
            ("smax", "most", "agent_backend_connections_max", &counted["most"]),
            ("wretr", "races", "agent_backend_races_total", &counted["races"]),
            ("wredis", "replays", "agent_backend_replays_total", &counted["replays"]),
            ("bin", "", "agent_backend_received_bytes_total", &counted["bytes_in"]),
            ("bout", "", "agent_backend_sent_bytes_total", &counted["bytes_out"]),
        ] {
            let said = value.as_u64().with_context(|| format!("{metric_name} of {backend}"))?;
            ensure!(row.get(column) == Some(&said.to_string()), "{name} {column}: {said}, in {csv}");
            let measured = metric(&metrics, metric_name, &labels)?;
            ensure!(measured == said as f64, "{name} {metric_name}: {measured}, {said}");
            let shown = page.split("<th role=\"rowheader\" scope=\"row\">").find(|row| row.starts_with(name));
            let cell = format!("data-l=\"{label}\" class=\"n\">{said}<");
            ensure!(
                label.is_empty() || shown.is_some_and(|row| row.contains(&cell)),
                "{name}: no {cell} in {shown:?}"
            );
        }
    }
    let total = service["counted"]["total"].as_u64().context("no total")?;
    ensure!(rows["FRONTEND"]["stot"] == total.to_string(), "{csv}");
    ensure!(metric(&metrics, "agent_service_connections_total", "service=\"kube-api\"")? == total as f64);
    Ok(())
}

/// The time of a connection through the proxy, the worst of many.
fn slowest(agent: &Agent<'_>, count: usize) -> Result<Duration> {
    let times = (0..count).map(|_| {
        let began = Instant::now();
        agent.node().inside(|| Ok(TcpStream::connect(LISTENER)?))?;
        Ok(began.elapsed())
    });
    Ok(times.collect::<Result<Vec<_>>>()?.into_iter().max().unwrap_or_default())
}

/// Memory that a process holds, in kB.
fn resident(pid: u32) -> Result<u64> {
    let text = std::fs::read_to_string(format!("/proc/{pid}/status"))?;
    let line = text.lines().find_map(|line| line.strip_prefix("VmRSS:")).context("no VmRSS")?;
    Ok(line.trim().trim_end_matches(" kB").parse()?)
}

#[test]
fn a_hundred_collectors_and_readers_that_do_not_read_change_nothing() -> Result<()> {
    cluster(|_, agents, _masters| {
        let pid = agents[3].process()?.pid();
        let agent = &agents[3];
        agent.who_serves()?;
        let (before, alone) = (resident(pid)?, slowest(agent, 50)?);
        let connect = || agent.node().inside(|| Ok(TcpStream::connect((Ipv4Addr::LOCALHOST, 1936))?));
        // Twenty ask for the page again and again and read nothing; the rest collect as fast as they can.
        let mut deaf = (0..20).map(|_| connect()).collect::<Result<Vec<_>>>()?;
        for one in &mut deaf {
            one.set_write_timeout(Some(Duration::from_millis(100)))?;
            for _ in 0..200 {
                if one.write_all(b"GET / HTTP/1.1\r\nhost: localhost\r\n\r\n").is_err() {
                    break;
                }
            }
        }
        let until = Instant::now() + Duration::from_secs(5);
        let (times, busy, peak) = std::thread::scope(|scope| {
            let collectors: Vec<_> = (0..100).map(|_| scope.spawn(|| collect(connect()?, until))).collect();
            let busy = slowest(agent, 200);
            let peak = resident(pid);
            let times: Result<Vec<Vec<Duration>>> =
                collectors.into_iter().map(|one| one.join().map_err(|_| anyhow::anyhow!("panic"))?).collect();
            (times, busy, peak)
        });
        let mut times: Vec<Duration> = times?.into_iter().flatten().collect();
        times.sort_unstable();
        let at = |share: usize| times.get(times.len() * share / 100).copied().unwrap_or_default();
        let (busy, peak) = (busy?, peak?);
        println!(
            "{} answers, half within {:?}, 99 of 100 within {:?}; the proxy's slowest connect {alone:?} alone, \
             {busy:?} then; {before} kB before, {peak} kB then",
            times.len(),
            at(50),
            at(99)
        );
        ensure!(times.len() > 500, "only {} answers", times.len());
        ensure!(busy < Duration::from_millis(100), "a connect took {busy:?}");
        ensure!(peak < before + 8 * 1024, "{before} kB grew to {peak} kB");
        // Who does not read is left; the rest goes on.
        let held = || -> Result<usize> {
            let list = ["ss", "-Htn", "state", "established", "sport", "=", ":1936"];
            Ok(agent.node().exec(&list)?.ok()?.lines().count())
        };
        eventually("they are left", Duration::from_secs(30), || {
            let held = held()?;
            ensure!(held == 0, "{held} are held");
            Ok(())
        })?;
        agent.who_serves()?;
        Ok(())
    })
}

/// Asks for metrics on one connection until it is time; how long each answer took.
fn collect(mut stream: TcpStream, until: Instant) -> Result<Vec<Duration>> {
    stream.set_read_timeout(Some(Duration::from_secs(10)))?;
    let mut times = Vec::new();
    let mut buffer = vec![0; 1 << 16];
    while Instant::now() < until {
        let began = Instant::now();
        stream.write_all(b"GET /metrics HTTP/1.1\r\nhost: localhost\r\n\r\n")?;
        let mut answer = Vec::new();
        let whole = |answer: &[u8]| {
            let text = String::from_utf8_lossy(answer);
            let (head, body) = text.split_once("\r\n\r\n")?;
            let length = head.lines().find_map(|line| line.strip_prefix("content-length: "))?;
            Some(body.len() >= length.parse::<usize>().ok()?)
        };
        while whole(&answer) != Some(true) {
            let n = stream.read(&mut buffer)?;
            ensure!(n > 0, "closed");
            answer.extend_from_slice(&buffer[..n]);
        }
        times.push(began.elapsed());
        std::thread::sleep(Duration::from_millis(50));
    }
    Ok(times)
}
