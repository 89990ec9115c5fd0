//! The status page in a real browser, the metrics in a real Prometheus, and what they may cost and show.

use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result, ensure};
use proto::event::{Event, EventKind};
use serde_json::Value;
use tests::browser::Browser;
use tests::lab::{Lab, Master, Node, Signal};
use tests::mesh::{Agent, GOSSIP, LISTENER, form, with_agents};
use tests::peers::require;
use tests::wait::eventually;

/// The page, on every node.
const PAGE: &str = "http://127.0.0.1:1936";

/// The lists of violated requirements of a page.
const AUDIT: &str = include_str!("web.js");

/// A backend's state on the page.
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

/// A node's page at a path, with its head.
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
        // The audit finds planted faults.
        for (fault, found) in [
            ("document.querySelector('tbody .q').style.color = '#bbb'", "contrast"),
            ("document.querySelector('caption').remove()", "no caption"),
            ("document.querySelector('.s svg').remove()", "colour alone"),
            ("document.querySelector('main').style.width = '2000px'", "wider than"),
            ("document.querySelector('th').removeAttribute('scope')", "no scope"),
        ] {
            browser.scripts(false)?;
            browser.look(360, 740, "light")?;
            browser.open(PAGE)?;
            browser.scripts(true)?;
            browser.eval(&format!("{fault}; 0"))?;
            let wrong = browser.eval(AUDIT)?.to_string();
            ensure!(wrong.contains(found), "{fault}: {wrong}");
        }
        // Without scripts it is the same page, and says how to update it.
        browser.scripts(false)?;
        browser.open(PAGE)?;
        browser.scripts(true)?;
        let text = browser.eval("document.body.innerText")?;
        let text = text.as_str().context("no text")?;
        ensure!(text.contains("3 of 3 masters serve") && text.contains("reload to update"), "{text}");

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
        // When the agent is gone, the page itself reports that.
        agents[3].kill()?;
        eventually("the page says that it is not live", Duration::from_secs(10), || {
            let live = browser.eval("document.getElementById('live').textContent")?;
            ensure!(live.as_str().is_some_and(|text| text.starts_with("not live")), "{live}");
            Ok(())
        })?;
        Ok(())
    })
}

/// The page has no violations as it is shown now. Screenshots go to TEST_PICTURES.
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

/// Page, CSV, metrics and status, all from one snapshot.
fn one_snapshot(node: &Node) -> Result<[String; 4]> {
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
    let [page, csv, metrics, status] = one_snapshot(worker)?;
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

/// Virtual IPs on the page, in metrics and in status, from one snapshot.
fn compare_vips(node: &Node, wanted: &[&str]) -> Result<Vec<String>> {
    let [page, csv, metrics, status] = one_snapshot(node)?;
    let status: Value = serde_json::from_str(&status)?;
    let vips = status["vips"].as_array().context("no vips")?;
    let mut owners = Vec::new();
    for vip in vips {
        let text = |key: &str| vip[key].as_str().with_context(|| format!("no {key} in {vip}"));
        let (address, state, owner) = (text("address")?, text("state")?, text("owner")?);
        let epoch = vip["epoch"].as_u64().context("no epoch")?;
        let candidates = vip["candidates"].as_array().context("no candidates")?;
        let eligible = candidates.iter().filter(|one| one["eligible"] == true).count();
        let since = vip["since_unix_ms"].as_f64().context("no since")? / 1e3;
        let of = format!("vip=\"{address}\"");
        for (name, said) in [
            ("agent_vip_owned_here", f64::from(u8::from(state == "owned-here"))),
            ("agent_vip_owned", 1.0),
            ("agent_vip_epoch", epoch as f64),
            ("agent_vip_last_change_time_seconds", since),
            ("agent_vip_candidates", eligible as f64),
        ] {
            let measured = metric(&metrics, name, &of)?;
            ensure!(measured == said, "{name} of {address}: {measured}, {said} in status");
        }
        ensure!(metric(&metrics, "agent_vip_owner", &format!("{of},owner=\"{owner}\""))? == 1.0);
        for cause in ["vacant", "silent", "handed", "released"] {
            let measured = metric(&metrics, "agent_vip_gained_total", &format!("{of},cause=\"{cause}\""))?;
            let said = vip["gains"][cause].as_f64().with_context(|| format!("no {cause} in {vip}"))?;
            ensure!(measured == said, "{cause} of {address}: {measured}, {said} in status");
        }
        let row = page.split("<th role=\"rowheader\" scope=\"row\">").find(|row| row.starts_with(address));
        let row = row.with_context(|| format!("no {address} on the page"))?;
        for cell in [format!("data-l=\"owner\">{owner}<"), format!("data-l=\"epoch\" class=\"n\">{epoch}<")] {
            ensure!(row.contains(&cell), "no {cell} in {row}");
        }
        ensure!(row.contains(state), "no {state} in {row}");
        for one in candidates {
            let name = one["node"].as_str().context("no name")?;
            ensure!(row.contains(name), "no candidate {name} in {row}");
        }
        // haproxy's columns have no place for them.
        ensure!(!csv.contains(address), "{csv}");
        owners.push(format!("{address} {owner} {epoch}"));
    }
    let all: Vec<&str> = vips.iter().filter_map(|vip| vip["address"].as_str()).collect();
    ensure!(all == wanted, "{all:?}");
    Ok(owners)
}

#[test]
fn virtual_ips_agree_on_page_metrics_and_status_of_every_node() -> Result<()> {
    with_agents(Lab::bridge(4), |lab, agents| {
        let _masters = (0..3).map(|i| lab.nginx_master(i)).collect::<Result<Vec<_>>>()?;
        for agent in agents.iter_mut() {
            agent.options = vec!["--iface".to_owned(), agent.node().interface.to_owned()];
        }
        form(agents)?;
        let wanted = ["10.91.0.240", "10.91.0.241"];
        agents[0].cli(&["set", &format!("vip={}", wanted.join(","))])?.ok()?;
        let agree = || {
            eventually("all nodes tell the same of them", GOSSIP, || {
                let all = agents.iter().map(|agent| compare_vips(agent.node(), &wanted));
                let all = all.collect::<Result<Vec<_>>>()?;
                ensure!(all.iter().all(|one| *one == all[0]), "{all:?}");
                Ok(all[0].clone())
            })
        };
        let (before, _) = agree()?;
        let owner = before[0].split(' ').nth(1).context("no owner")?;
        let next = ["n0", "n1", "n2"].into_iter().find(|name| *name != owner).context("nobody else")?;
        agents[3].cli(&["vip", "move", wanted[0], next])?.ok()?;
        eventually("the move is seen everywhere", GOSSIP, || {
            let (after, _) = agree()?;
            ensure!(after[0].contains(&format!(" {next} ")), "{after:?}");
            Ok(())
        })?;
        Ok(())
    })
}

/// The slowest of many connections through the proxy.
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
fn a_hundred_collectors_and_stalled_readers_do_not_disturb_the_agent() -> Result<()> {
    cluster(|_, agents, _masters| {
        let pid = agents[3].process()?.pid();
        let agent = &agents[3];
        agent.who_serves()?;
        let (before, alone) = (resident(pid)?, slowest(agent, 50)?);
        let connect = || agent.node().inside(|| Ok(TcpStream::connect((Ipv4Addr::LOCALHOST, 1936))?));
        let connect = &connect;
        // Twenty request the page repeatedly and read nothing; the others collect as fast as they can.
        let mut stalled = (0..20).map(|_| connect()).collect::<Result<Vec<_>>>()?;
        for one in &mut stalled {
            one.set_write_timeout(Some(Duration::from_millis(100)))?;
            for _ in 0..200 {
                if one.write_all(b"GET / HTTP/1.1\r\nhost: localhost\r\n\r\n").is_err() {
                    break;
                }
            }
        }
        let until = Instant::now() + Duration::from_secs(5);
        let paths = ["/metrics", "/", "/api/v1/status", "/stats;csv"];
        let (times, busy, peak) = std::thread::scope(|scope| {
            let collectors: Vec<_> = (0..100)
                .map(|i| scope.spawn(move || collect(connect()?, paths[i % paths.len()], until)))
                .collect();
            let busy = slowest(agent, 200);
            let peak = resident(pid);
            let times: Result<Vec<Vec<Duration>>> =
                collectors.into_iter().map(|one| one.join().map_err(|_| anyhow::anyhow!("panic"))?).collect();
            (times, busy, peak)
        });
        let (times, busy, peak) = (times?, busy?, peak?);
        for (i, path) in paths.iter().enumerate() {
            let mut own: Vec<Duration> =
                times.iter().skip(i).step_by(paths.len()).flatten().copied().collect();
            own.sort_unstable();
            let at = |share: usize| own.get(own.len() * share / 100).copied().unwrap_or_default();
            println!("{path}: {} answers, half in {:?}, 99 of 100 in {:?}", own.len(), at(50), at(99));
            ensure!(own.len() > 100, "{path}: only {} answers", own.len());
        }
        println!(
            "the proxy's slowest connect: {alone:?} alone, {busy:?} then; memory: {before} kB before, {peak} kB then"
        );
        ensure!(busy < Duration::from_millis(100), "a connect took {busy:?}");
        ensure!(peak < before + 8 * 1024, "{before} kB grew to {peak} kB");
        // Clients that do not read are disconnected; the others are not.
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

/// Sends the same request on one connection until then; returns how long each response took.
fn collect(mut stream: TcpStream, path: &str, until: Instant) -> Result<Vec<Duration>> {
    stream.set_read_timeout(Some(Duration::from_secs(10)))?;
    let mut times = Vec::new();
    let mut buffer = vec![0; 1 << 16];
    while Instant::now() < until {
        let began = Instant::now();
        // In one piece, or the kernel would hold back the rest of it.
        stream.write_all(format!("GET {path} HTTP/1.1\r\nhost: localhost\r\n\r\n").as_bytes())?;
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

/// Where the repository begins.
fn root() -> Result<&'static Path> {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().context("the root of the repository")
}

/// Runs a program on this machine to its end; returns its output on success.
fn run(program: &str, args: &[&str], dir: &Path) -> Result<String> {
    let output = std::process::Command::new(program).args(args).current_dir(dir).output()?;
    let said =
        String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "{program} {args:?}: {said}");
    Ok(said)
}

#[test]
fn promtool_accepts_the_rules_and_their_tests_pass() -> Result<()> {
    require(&[("promtool", "prometheus")])?;
    let dir = root()?.join("deploy/prometheus");
    run("promtool", &["check", "rules", "rules.yml"], &dir)?;
    run("promtool", &["test", "rules", "rules_test.yml"], &dir)?;
    let (rules, tests) = (
        std::fs::read_to_string(dir.join("rules.yml"))?,
        std::fs::read_to_string(dir.join("rules_test.yml"))?,
    );
    let alerts = rules.lines().filter_map(|line| line.trim().strip_prefix("- alert: "));
    for alert in alerts {
        let asked = tests.matches(&format!("alertname: {alert}\n        exp_alerts")).count();
        ensure!(asked > 0, "no test makes {alert} go off");
    }
    Ok(())
}

/// Every text under this key, at any depth.
fn texts<'a>(value: &'a Value, key: &str, found: &mut Vec<&'a str>) {
    match value {
        Value::Object(map) => {
            found.extend(map.get(key).and_then(Value::as_str));
            map.values().for_each(|value| texts(value, key, found));
        }
        Value::Array(list) => list.iter().for_each(|value| texts(value, key, found)),
        _ => {}
    }
}

/// The names of metrics in an expression.
fn names(expression: &str) -> Vec<&str> {
    let words = expression.split(|c: char| !(c.is_ascii_alphanumeric() || c == '_'));
    words.filter(|word| word.starts_with("agent_")).collect()
}

#[test]
fn a_real_prometheus_answers_every_query_of_the_dashboard() -> Result<()> {
    require(&[("prometheus", "prometheus"), ("promtool", "prometheus")])?;
    cluster(|_, agents, _masters| {
        let worker = agents[3].node();
        let dir = worker.dir();
        for _ in 0..20 {
            agents[3].who_serves()?;
        }
        let (_, _, metrics) = get(worker, "/metrics", &[])?;
        let file = dir.join("metrics");
        std::fs::write(&file, &metrics)?;
        let said = run("sh", &["-c", "promtool check metrics < metrics"], dir)?;
        ensure!(said.trim().is_empty(), "promtool: {said}");

        let config = format!(
            "global: {{scrape_interval: 1s, evaluation_interval: 1s}}\nrule_files: [{}]\nscrape_configs:\n- \
             job_name: agent\n  static_configs: [{{targets: ['127.0.0.1:1936']}}]\n",
            root()?.join("deploy/prometheus/rules.yml").display()
        );
        std::fs::write(dir.join("prometheus.yml"), config)?;
        let config = format!("--config.file={}", dir.join("prometheus.yml").display());
        let data = format!("--storage.tsdb.path={}", dir.join("tsdb").display());
        let flags = ["prometheus", &config, &data, "--web.listen-address=127.0.0.1:9090"];
        let _prometheus = worker.spawn("prometheus", &flags)?;
        let query = |expression: &str| -> Result<Value> {
            let query = format!("query={expression}");
            let url = "http://127.0.0.1:9090/api/v1/query";
            let answer = worker.exec(&["curl", "-sS", "-m", "5", "--data-urlencode", &query, url])?.ok()?;
            let answer: Value = serde_json::from_str(&answer)?;
            ensure!(answer["status"] == "success", "{expression}: {answer}");
            Ok(answer["data"]["result"].clone())
        };
        eventually("Prometheus has collected for a while", Duration::from_secs(60), || {
            agents[3].who_serves()?;
            let count = query("count_over_time(agent_build_info[1m])")?;
            let count = count[0]["value"][1].as_str().context("nothing yet")?.parse::<u32>()?;
            ensure!(count >= 6, "{count} times");
            Ok(())
        })?;
        let up = query("up")?;
        ensure!(up[0]["value"][1] == "1", "{up}");

        let text = std::fs::read_to_string(root()?.join("deploy/grafana/agent.json"))?;
        let dashboard: Value = serde_json::from_str(&text)?;
        let (mut queries, mut empty) = (Vec::new(), Vec::new());
        texts(&dashboard, "expr", &mut queries);
        ensure!(queries.len() > 20, "{queries:?}");
        for one in &queries {
            let expression = one.replace("$instance", ".*").replace("$__rate_interval", "5s");
            let answer = query(&expression)?;
            // There is no virtual IP here.
            if answer == serde_json::json!([]) && !one.contains("agent_vip_") {
                empty.push(*one);
            }
        }
        ensure!(empty.is_empty(), "nothing answers {empty:#?}");
        // The rules use only existing metrics.
        let rules = std::fs::read_to_string(root()?.join("deploy/prometheus/rules.yml"))?;
        let asked = rules.lines().filter(|line| line.contains("expr:")).flat_map(names);
        for name in asked.chain(queries.iter().flat_map(|one| names(one))) {
            let family = name.trim_end_matches("_bucket");
            ensure!(metrics.contains(&format!("# TYPE {family} ")), "{name} is no metric");
        }
        let rules = worker.exec(&["curl", "-sS", "http://127.0.0.1:9090/api/v1/rules"])?.ok()?;
        ensure!(rules.contains("AgentNoMaster") && !rules.contains("\"state\":\"firing\""), "{rules}");
        Ok(())
    })
}

#[test]
fn the_csv_has_haproxys_columns_and_haproxys_names_are_there_when_wanted() -> Result<()> {
    require(&[("haproxy", "haproxy")])?;
    with_agents(Lab::wireguard(1), |lab, agents| {
        let node = lab.node(0);
        let config = "defaults\n mode http\n timeout connect 1s\n timeout client 5s\n timeout server 5s\n\
                      listen stats\n bind 127.0.0.1:8404\n stats enable\n stats uri /stats\n";
        let file = node.dir().join("haproxy.cfg");
        std::fs::write(&file, config)?;
        let _haproxy = node.spawn("haproxy", &["haproxy", "-db", "-f", &file.to_string_lossy()])?;
        let (theirs, _) = eventually("haproxy answers", Duration::from_secs(10), || {
            node.exec(&["curl", "-sS", "http://127.0.0.1:8404/stats;csv"])?.ok()
        })?;
        let _master = lab.nginx_master(0)?;
        let file = node.dir().join("agent.toml");
        std::fs::write(&file, "[web]\nhaproxy-metrics = true\n")?;
        agents[0].options = vec!["--config".to_owned(), file.to_string_lossy().into_owned()];
        agents[0].init()?;
        agents[0].wait_for_backend("n0", &["ready"], GOSSIP)?;
        let (status, _, ours) = get(node, "/stats;csv", &[])?;
        ensure!(status == 200 && theirs.lines().next() == ours.lines().next(), "{theirs}\n{ours}");
        let columns = |line: &str| line.split(',').count();
        let count = columns(theirs.lines().next().unwrap_or_default());
        ensure!(ours.lines().all(|line| columns(line) == count), "{ours}");
        let rows = rows(&ours)?;
        ensure!(rows.keys().eq(["BACKEND", "FRONTEND", "n0"]), "{ours}");
        ensure!(rows["n0"]["status"] == "UP" && rows["n0"]["check_code"] == "200", "{ours}");
        let (_, _, metrics) = get(node, "/metrics", &[])?;
        let is = |state| {
            metric(
                &metrics,
                "haproxy_server_status",
                &format!("proxy=\"kube-api\",server=\"n0\",state=\"{state}\""),
            )
        };
        let states =
            ["DOWN", "UP", "MAINT", "DRAIN", "NOLB"].map(is).into_iter().collect::<Result<Vec<_>>>()?;
        ensure!(states == [0.0, 1.0, 0.0, 0.0, 0.0], "{states:?}");
        Ok(())
    })
}

#[test]
fn without_the_password_nothing_is_visible_and_actions_need_the_page_itself() -> Result<()> {
    with_agents(Lab::wireguard(2), |lab, agents| {
        let file = lab.node(0).dir().join("agent.toml");
        agents[0].options = vec!["--config".to_owned(), file.to_string_lossy().into_owned()];
        std::fs::write(&file, "[web]\nlisten = \"0.0.0.0:1936\"\n")?;
        let config = file.to_string_lossy();
        let said = agents[0].cli(&["check", &config])?.fails_with(78)?;
        ensure!(said.contains("2:10") && said.contains("set web.user and"), "{said}");
        std::fs::write(
            &file,
            "[web]\nlisten = \"0.0.0.0:1936\"\nuser = \"ops\"\npassword = \"correct horse\"\n",
        )?;
        agents[0].init()?;
        let _master = lab.nginx_master(0)?;
        agents[0].wait_for_backend("n0", &["ready"], GOSSIP)?;

        let url = format!("http://{}:1936", lab.node(0).mesh_ip());
        let ask = |more: &[&str], path: &str| -> Result<(String, String)> {
            let url = format!("{url}{path}");
            let all = [&["curl", "-sS", "-m", "5", "-w", "\n%{http_code}", &url], more].concat();
            let said = lab.node(1).exec(&all)?.ok()?;
            let (body, code) = said.rsplit_once('\n').context("no code")?;
            Ok((code.to_owned(), body.to_owned()))
        };
        let login = ["-u", "ops:correct horse"];
        for (path, code) in [
            ("/healthz", "200"),
            ("/readyz", "200"),
            ("/", "401"),
            ("/metrics", "401"),
            ("/api/v1/events", "401"),
        ] {
            let answer = ask(&[], path)?;
            ensure!(answer.0 == code, "{path}: {answer:?}");
        }
        let page = ask(&login, "/")?;
        ensure!(page.0 == "200" && page.1.contains("value=\"drain\""), "{page:?}");
        // Headers that a browser sends for a form on another site, and on ours.
        let post = |headers: &[&str]| {
            let form = ["--data", "verb=drain&node=n0"];
            ask(&[&login, &form[..], headers].concat(), "/act")
        };
        for foreign in
            ["sec-fetch-site: cross-site", "sec-fetch-site: same-site", "origin: http://evil.example"]
        {
            let answer = post(&["-H", foreign])?;
            ensure!(answer.0 == "403", "{foreign}: {answer:?}");
        }
        ensure!(agents[0].backend_state("n0")? == "ready", "drained from afar");
        let answer = post(&["-H", "sec-fetch-site: same-origin"])?;
        ensure!(answer.0 == "200" && answer.1.contains("drain"), "{answer:?}");
        agents[0].wait_for_backend("n0", &["draining"], GOSSIP)?;
        // No secrets anywhere.
        for path in ["/", "/metrics", "/api/v1/status", "/api/v1/events?list"] {
            let answer = ask(&login, path)?;
            ensure!(answer.0 == "200" && !answer.1.contains("correct horse"), "{path}: {answer:?}");
        }
        ensure!(!agents[0].log()?.contains("correct horse"), "the log has it");
        for _ in 0..10 {
            ensure!(ask(&["-u", "ops:guess"], "/")?.0 == "401", "guessed");
        }
        ensure!(ask(&login, "/")?.0 == "429", "guesses cost nothing");
        Ok(())
    })
}

#[test]
fn idle_connections_from_one_machine_do_not_block_the_page_for_others() -> Result<()> {
    with_agents(Lab::wireguard(3), |lab, agents| {
        let file = lab.node(0).dir().join("agent.toml");
        agents[0].options = vec!["--config".to_owned(), file.to_string_lossy().into_owned()];
        std::fs::write(&file, "[web]\nlisten = \"0.0.0.0:1936\"\ntoken = \"0123456789\"\n")?;
        agents[0].init()?;
        let url = format!("http://{}:1936/metrics", lab.node(0).mesh_ip());
        let ask = |from: usize, url: &str| -> Result<bool> {
            let header = "authorization: Bearer 0123456789";
            let answer = lab.node(from).exec(&["curl", "-sS", "-f", "-m", "1", "-H", header, url])?;
            Ok(answer.code == Some(0))
        };
        ensure!(ask(1, &url)? && ask(2, &url)?, "it does not answer at all");
        let address = SocketAddr::new(lab.node(0).mesh_ip(), 1936);
        let idle = lab.node(1).inside(|| {
            let connect = |_| Ok(TcpStream::connect_timeout(&address, Duration::from_secs(1))?);
            (0..140).map(connect).collect::<Result<Vec<_>>>()
        })?;
        ensure!(!ask(1, &url)?, "one machine has more than its share");
        ensure!(ask(2, &url)?, "another machine is kept out");
        ensure!(ask(0, "http://127.0.0.1:1936/healthz")?, "this machine is kept out");
        // They are closed, not kept.
        eventually("the machine itself is let in again", Duration::from_secs(7), || {
            ensure!(ask(1, &url)?, "not yet");
            Ok(())
        })?;
        drop(idle);
        Ok(())
    })
}

#[test]
fn sighup_moves_the_page_and_a_bad_address_changes_nothing() -> Result<()> {
    with_agents(Lab::wireguard(1), |lab, agents| {
        let file = lab.node(0).dir().join("agent.toml");
        agents[0].options = vec!["--config".to_owned(), file.to_string_lossy().into_owned()];
        std::fs::write(&file, "")?;
        agents[0].init()?;
        let node = lab.node(0);
        let answers = |port: u16| -> Result<bool> {
            let url = format!("http://127.0.0.1:{port}/healthz");
            Ok(node.exec(&["curl", "-sS", "-f", "-m", "5", &url])?.code == Some(0))
        };
        ensure!(answers(1936)?);
        let told = |agent: &Agent<'_>| agent.cli(&["events", "--json", "--since", "1h"])?.ok();

        std::fs::write(&file, "[web]\nlisten = \"127.0.0.1:1937\"\n")?;
        agents[0].process()?.signal(Signal::HUP)?;
        eventually("the page has moved", GOSSIP, || {
            ensure!(answers(1937)? && !answers(1936)?);
            Ok(())
        })?;

        // An address in use: the old configuration stays.
        let _taken = node.inside(|| Ok(TcpListener::bind("127.0.0.1:1938")?))?;
        std::fs::write(&file, "[web]\nlisten = \"127.0.0.1:1938\"\n")?;
        agents[0].process()?.signal(Signal::HUP)?;
        eventually("the refusal is told", GOSSIP, || {
            let events = told(&agents[0])?;
            let read = |line| serde_json::from_str::<Event>(line).ok();
            let refused = |event: &Event| event.kind == EventKind::Reload && event.to == "refused";
            ensure!(events.lines().filter_map(read).any(|event| refused(&event)), "{events}");
            Ok(())
        })?;
        ensure!(answers(1937)?, "a refused address took the page away");
        Ok(())
    })
}
