//! Changes of state are reported: on every node, to programs and a webhook, merged, and after a restart.

use std::io::{Read, Write};
use std::net::TcpListener;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};

use anyhow::{Context, Result, ensure};
use proto::event::{Event, EventKind};
use tests::lab::Lab;
use tests::mesh::{Agent, GOSSIP, SOON, binary, form, with_agents};
use tests::wait::eventually;

/// What `agent events --json` prints.
fn events(agent: &Agent<'_>, more: &[&str]) -> Result<Vec<Event>> {
    let text = agent.cli(&[&["events", "--json", "--since", "1d"], more].concat())?.ok()?;
    read(&text)
}

fn read(lines: &str) -> Result<Vec<Event>> {
    lines.lines().map(|line| serde_json::from_str(line).with_context(|| line.to_owned())).collect()
}

fn find(events: &[Event], what: impl Fn(&Event) -> bool) -> Result<Event> {
    let all =
        || events.iter().map(|event| format!("{}: {}\n", event.node, event.sentence())).collect::<String>();
    events.iter().find(|event| what(event)).cloned().with_context(|| format!("not among\n{}", all()))
}

fn is_down(event: &Event) -> bool {
    event.kind == EventKind::Backend && event.subject == "kube-api/n0" && event.to == "down"
}

/// A directory with one program, which records its events. Not below /tmp, where everyone may write, so that
/// it would not be run.
fn hook(dir: &Path) -> Result<tempfile::TempDir> {
    let (programs, told) = (tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR"))?, dir.join("told"));
    let path = programs.path().join("10-write");
    std::fs::write(&path, format!("#!/bin/sh\n{{ cat; echo; }} >> {}\n", told.display()))?;
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755))?;
    Ok(programs)
}

/// Accepts requests and keeps their bodies. The first is refused, so that it has to be retried.
fn webhook(listener: TcpListener) -> Arc<Mutex<Vec<String>>> {
    let bodies = Arc::new(Mutex::new(Vec::new()));
    let kept = bodies.clone();
    std::thread::spawn(move || {
        for (i, stream) in listener.incoming().enumerate() {
            let Ok(mut stream) = stream else { return };
            let (mut request, mut some) = (Vec::new(), [0; 4096]);
            while !request.ends_with(b"}") {
                match stream.read(&mut some) {
                    Ok(read) if read > 0 => request.extend_from_slice(&some[..read]),
                    _ => break,
                }
            }
            let text = String::from_utf8_lossy(&request).into_owned();
            let answer = if i == 0 { "HTTP/1.1 503 Later\r\n\r\n" } else { "HTTP/1.1 200 OK\r\n\r\n" };
            if let Some((_, body)) = text.split_once("\r\n\r\n").filter(|_| i > 0) {
                kept.lock().unwrap_or_else(PoisonError::into_inner).push(body.to_owned());
            }
            let _ = stream.write_all(answer.as_bytes());
        }
    });
    bodies
}

#[test]
fn a_workers_event_of_a_dead_master_reaches_hook_and_webhook_is_merged_and_survives_a_restart() -> Result<()>
{
    with_agents(Lab::wireguard(3), |lab, agents| {
        let mut masters = (0..2).map(|i| lab.nginx_master(i)).collect::<Result<Vec<_>>>()?;
        let dir = lab.node(2).dir();
        let listener = lab.node(2).inside(|| Ok(TcpListener::bind("127.0.0.1:0")?))?;
        let (hook, port) = (hook(dir)?, listener.local_addr()?.port());
        let bodies = webhook(listener);
        let config = dir.join("agent.toml");
        std::fs::write(
            &config,
            format!(
                "notify = [\"{}\"]\nwebhook = \"http://127.0.0.1:{port}/SECRET\"\n",
                hook.path().display()
            ),
        )?;
        agents[2].options = vec!["--config".to_owned(), config.display().to_string()];
        form(agents)?;
        for master in ["n0", "n1"] {
            agents[2].wait_for_backend(master, &["ready"], GOSSIP)?;
        }
        let follower = follow(&agents[2])?;

        masters[0].kill()?;
        let (down, took) =
            eventually("the worker tells of it", SOON, || find(&events(&agents[2], &[])?, is_down))?;
        println!("told after {took:?}: {}", down.sentence());
        ensure!(down.from == "ready" || down.from == "suspect", "{down:?}");
        ensure!(
            !down.cause.is_empty() && !down.reason.is_empty() && down.duration_ms.is_some_and(|ms| ms > 0),
            "{down:?}"
        );
        ensure!(down.node == "n2" && down.seq > 0, "{down:?}");

        let text = |event: &Event| serde_json::to_string(event).ok();
        let same = |event: &Event| text(event) == text(&down);
        eventually("the hook is told", SOON, || {
            find(&read(&std::fs::read_to_string(dir.join("told"))?)?, same)
        })?;
        eventually("the webhook is told", SOON, || {
            let bodies = bodies.lock().unwrap_or_else(PoisonError::into_inner).clone();
            let events: Vec<Event> = read(&bodies.join("\n"))?;
            ensure!(events.iter().is_sorted_by_key(|event| event.seq), "in another order");
            ensure!(
                events.first().is_some_and(|event| event.kind == EventKind::AgentStarted),
                "the first is lost"
            );
            find(&events, same)
        })?;
        eventually("who follows sees it", SOON, || find(&read(&follower.log()?)?, same))?;
        lines_fit(&agents[2])?;
        merged(agents)?;

        drop(follower);
        agents[2].kill()?;
        agents[2].run()?;
        agents[2].wait_until_asked()?;
        let kept = events(&agents[2], &[])?;
        find(&kept, same)?;
        let lost = |event: &Event| event.kind == EventKind::AgentStarted && event.from == "lost";
        let again = find(&kept, lost)?;
        ensure!(again.seq > down.seq && kept.is_sorted_by_key(|event| event.seq), "numbers go on: {again:?}");

        agents[0].kill()?;
        let said = agents[1].cli(&["events", "--cluster"])?.fails_with(10)?;
        ensure!(said.contains("n0"), "{said}");
        Ok(())
    })
}

/// `agent events -f --json`, in the background.
fn follow(agent: &Agent<'_>) -> Result<tests::lab::Proc> {
    let (binary, run) = (binary()?, agent.node().dir().join("run"));
    let [binary, run, state] =
        [&binary, &run, agent.state()].map(|path: &Path| path.to_string_lossy().into_owned());
    let follow = ["events", "-f", "--json", "--runtime-dir", &run, "--state-dir", &state];
    agent.node().spawn("follow", &[&[binary.as_str()], follow.as_slice()].concat())
}

fn lines_fit(agent: &Agent<'_>) -> Result<()> {
    let text = agent.cli(&["events"])?.ok()?;
    ensure!(text.lines().all(|line| line.chars().count() <= 80), "wider than 80 columns:\n{text}");
    ensure!(text.contains("backend kube-api/n0: ") && text.contains("-> down after "), "{text}");
    Ok(())
}

/// From any node: the events that each of the three saw, in the order of time.
fn merged(agents: &mut [Agent<'_>]) -> Result<()> {
    agents[0].cli(&["drain"])?.ok()?;
    eventually("the cluster's events are merged", GOSSIP, || {
        let all = events(&agents[1], &["--cluster"])?;
        ensure!(all.is_sorted_by_key(|event| event.time_unix_ms), "not in the order of time");
        for node in ["n0", "n1", "n2"] {
            find(&all, |event| event.node == node && event.kind == EventKind::AgentStarted)?;
            let draining = |event: &Event| event.kind == EventKind::Drain && event.to == "draining";
            find(&all, |event| event.node == node && event.subject == "n0" && draining(event))?;
        }
        let check =
            |event: &Event| event.kind == EventKind::Check && event.node == "n0" && event.to == "down";
        find(&all, check)?;
        find(&all, |event| event.node == "n2" && is_down(event))?;
        find(&all, |event| event.node == "n1" && is_down(event))
    })?;
    Ok(())
}

#[test]
fn the_handbook_names_every_kind_with_its_message_id() -> Result<()> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().context("the root of the repository")?;
    let text = std::fs::read_to_string(root.join("agent/REFERENCE.md"))?;
    for kind in EventKind::ALL {
        let row = format!("| `{}` | {} | `{}` |", kind.name(), kind.subject(), kind.message_id());
        ensure!(text.contains(&row), "agent/REFERENCE.md lacks: {row}");
    }
    Ok(())
}
