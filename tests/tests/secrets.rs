//! No secret is shown: not in status, page, metrics or events, and not in the debug log.

use std::path::Path;

use anyhow::{Context, Result, ensure};
use serde_json::Value;
use tests::lab::Lab;
use tests::mesh::{GOSSIP, SOON, with_agents};
use tests::wait::eventually;

const PASSWORD: &str = "correct-horse-battery";
const TOKEN: &str = "token-of-the-collector";
const HOOK: &str = "webhook-path-with-a-key";

/// The value of a file of the state directory, after the line with its checksum.
fn state(dir: &Path, name: &str) -> Result<Value> {
    let text = std::fs::read_to_string(dir.join(name))?;
    let file: Value = serde_json::from_str(text.split_once('\n').context("no checksum")?.1)?;
    file.get("value").cloned().with_context(|| format!("{name} has no value"))
}

/// All values named `secret`, in the forms in which a program would print bytes.
fn secrets(value: &Value, found: &mut Vec<String>) {
    match value {
        Value::Object(map) => {
            for (key, value) in map {
                match value.as_array().filter(|_| key == "secret") {
                    Some(bytes) => {
                        let bytes: Vec<u64> = bytes.iter().filter_map(Value::as_u64).collect();
                        let hex: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
                        let list: Vec<String> = bytes.iter().map(u64::to_string).collect();
                        found.extend([hex, list.join(", "), list.join(",")]);
                    }
                    None => secrets(value, found),
                }
            }
        }
        Value::Array(all) => all.iter().for_each(|one| secrets(one, found)),
        _ => {}
    }
}

#[test]
fn nothing_secret_is_shown_or_logged() -> Result<()> {
    with_agents(Lab::wireguard(2), |lab, agents| {
        let file = lab.node(0).dir().join("agent.toml");
        let text = format!(
            "webhook = \"http://127.0.0.1:9/{HOOK}\"\n[log]\nlevel = \"debug\"\n\
             [web]\nuser = \"ops\"\npassword = \"{PASSWORD}\"\ntoken = \"{TOKEN}\"\n"
        );
        std::fs::write(&file, text)?;
        agents[0].options = vec!["--config".to_owned(), file.to_string_lossy().into_owned()];
        let seed = agents[0].init()?;
        let _master = lab.nginx_master(0)?;
        agents[0].wait_for_backend("n0", &["ready"], GOSSIP)?;
        let more = agents[0].cli(&["invite", "--uses", "3"])?.ok()?;
        agents[1].join(&seed)?;
        agents[0].wait_for_up(&["n0", "n1"], GOSSIP)?;
        agents[0].cli(&["rotate"])?.ok()?;

        let mut hidden = vec![PASSWORD.to_owned(), TOKEN.to_owned(), HOOK.to_owned(), seed];
        hidden.extend(tests::mesh::invite_in(&more));
        let dir = agents[0].state();
        let identity = state(dir, "identity")?;
        hidden.push(identity["seed"].as_str().context("no seed")?.to_owned());
        for name in ["keys", "invites"] {
            let before = hidden.len();
            secrets(&state(dir, name)?, &mut hidden);
            ensure!(hidden.len() > before, "{name} has no secret: has its form changed?");
        }

        let mut shown = Vec::new();
        for command in [&["status", "--json"][..], &["status"], &["members"], &["events", "--json"], &["get"]]
        {
            shown.push((command.join(" "), agents[0].cli(command)?.ok()?));
        }
        let login = format!("ops:{PASSWORD}");
        for path in ["/", "/metrics", "/stats;csv", "/api/v1/status", "/api/v1/events?list", "/healthz"] {
            let url = format!("http://127.0.0.1:1936{path}");
            let answer =
                lab.node(0).exec(&["curl", "-sS", "-i", "-f", "-m", "5", "-u", &login, &url])?.ok()?;
            shown.push((path.to_owned(), answer));
        }
        // A stranger whose handshake is refused, of which the debug log tells.
        let address = lab.node(0).mesh_ip();
        drop(lab.node(1).exec(&["curl", "-ksS", "-m", "5", &format!("https://{address}:7646/")])?);
        eventually("the debug log tells of it", SOON, || {
            let log = agents[0].log()?;
            ensure!(log.lines().any(|line| line.contains("DEBUG")), "nothing at level debug");
            Ok(())
        })?;
        // What init prints for people is the invite itself; the log's lines start with a time.
        let log = agents[0].log()?;
        let lines: Vec<&str> = log.lines().filter(|line| line.starts_with("20")).collect();
        shown.push(("log".to_owned(), lines.join("\n")));
        for (place, text) in &shown {
            for secret in &hidden {
                let at = text.find(secret.as_str());
                let around = at.map(|at| text.get(at.saturating_sub(80)..at + secret.len()));
                ensure!(at.is_none(), "{place} shows a secret: {around:?}");
            }
        }
        Ok(())
    })
}
