//! A real Chromium inside a node's network, driven by its DevTools protocol: a web socket with JSON.

use std::io::{Read, Write};
use std::net::{Ipv4Addr, TcpStream};
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use serde_json::{Value, json};

use crate::lab::{Node, Proc};
use crate::wait::eventually;

/// Longest wait for an answer of the browser.
const PATIENCE: Duration = Duration::from_secs(20);

/// A browser with one tab. Dropping it ends it.
pub struct Browser {
    _process: Proc,
    _profile: tempfile::TempDir,
    socket: TcpStream,
    next: u64,
    events: Vec<Value>,
}

impl Browser {
    /// Starts one on a node.
    ///
    /// # Errors
    /// There is no Chromium, or it does not come up.
    pub fn start(node: &Node) -> Result<Browser> {
        let profile = tempfile::tempdir()?;
        let dir = format!("--user-data-dir={}", profile.path().display());
        let command = [
            "chromium",
            "--headless=new",
            "--no-sandbox",
            "--disable-gpu",
            "--hide-scrollbars",
            "--disable-background-networking",
            "--remote-debugging-port=0",
            &dir,
            "about:blank",
        ];
        let process = node.spawn("chromium", &command)?;
        let file = profile.path().join("DevToolsActivePort");
        let (port, _) = eventually("chromium listens", PATIENCE, || {
            let text = std::fs::read_to_string(&file)?;
            text.lines().next().context("no port")?.parse::<u16>().context("a port")
        })?;
        let (tab, _) = eventually("chromium shows a tab", PATIENCE, || tab(node, port))?;
        let mut socket = node.inside(|| Ok(TcpStream::connect((Ipv4Addr::LOCALHOST, port))?))?;
        socket.set_read_timeout(Some(PATIENCE))?;
        // The key's answer is not checked: it exists for proxies (RFC 6455, 1.3).
        write!(
            socket,
            "GET {tab} HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
             Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\nSec-WebSocket-Version: 13\r\n\r\n"
        )?;
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            let mut byte = [0];
            socket.read_exact(&mut byte)?;
            head.push(byte[0]);
        }
        ensure!(head.starts_with(b"HTTP/1.1 101"), "no web socket: {}", String::from_utf8_lossy(&head));
        let mut browser =
            Browser { _process: process, _profile: profile, socket, next: 0, events: Vec::new() };
        for domain in ["Page", "Runtime", "Log", "Network"] {
            browser.call(&format!("{domain}.enable"), json!({}))?;
        }
        Ok(browser)
    }

    /// Sets the window size and the preferred theme.
    ///
    /// # Errors
    /// The browser's.
    pub fn look(&mut self, width: u32, height: u32, theme: &str) -> Result<()> {
        let size = json!({"width": width, "height": height, "deviceScaleFactor": 1, "mobile": false});
        self.call("Emulation.setDeviceMetricsOverride", size)?;
        let media = json!({"features": [{"name": "prefers-color-scheme", "value": theme}]});
        self.call("Emulation.setEmulatedMedia", media)?;
        Ok(())
    }

    /// Whether pages may run scripts.
    ///
    /// # Errors
    /// The browser's.
    pub fn scripts(&mut self, run: bool) -> Result<()> {
        self.call("Emulation.setScriptExecutionDisabled", json!({"value": !run}))?;
        Ok(())
    }

    /// Opens a page and waits until it has loaded.
    ///
    /// # Errors
    /// It does not load.
    pub fn open(&mut self, url: &str) -> Result<()> {
        self.events.clear();
        let answer = self.call("Page.navigate", json!({"url": url}))?;
        ensure!(answer.get("errorText").is_none(), "{url}: {answer}");
        let began = Instant::now();
        while !self.events.iter().any(|event| event["method"] == "Page.loadEventFired") {
            ensure!(began.elapsed() < PATIENCE, "{url} does not load");
            let message = self.receive()?;
            self.events.push(message);
        }
        Ok(())
    }

    /// The value of an expression on the page; a promise is awaited.
    ///
    /// # Errors
    /// It throws, or does not resolve in time.
    pub fn eval(&mut self, expression: &str) -> Result<Value> {
        let ask = json!({"expression": expression, "awaitPromise": true, "returnByValue": true});
        let answer = self.call("Runtime.evaluate", ask)?;
        ensure!(answer.get("exceptionDetails").is_none(), "{expression}: {answer}");
        Ok(answer["result"]["value"].clone())
    }

    /// Takes a picture of the whole page.
    ///
    /// # Errors
    /// The browser's, or the file can't be written.
    pub fn picture(&mut self, file: &Path) -> Result<()> {
        let answer = self.call("Page.captureScreenshot", json!({"captureBeyondViewport": true}))?;
        let text = answer["data"].as_str().context("no picture")?;
        std::fs::write(file, base64(text))?;
        Ok(())
    }

    /// What went wrong on the page since it was opened: exceptions, console errors, policy violations.
    ///
    /// # Errors
    /// The browser's.
    pub fn errors(&mut self) -> Result<Vec<String>> {
        // Events in flight have arrived after this.
        self.eval("new Promise(done => setTimeout(done, 50))")?;
        let bad = |event: &&Value| match event["method"].as_str() {
            Some("Runtime.exceptionThrown") => true,
            Some("Runtime.consoleAPICalled") => event["params"]["type"] == "error",
            Some("Log.entryAdded") => event["params"]["entry"]["level"] == "error",
            _ => false,
        };
        Ok(self.events.iter().filter(bad).map(Value::to_string).collect())
    }

    fn call(&mut self, method: &str, params: Value) -> Result<Value> {
        self.next += 1;
        let id = self.next;
        self.send(&json!({"id": id, "method": method, "params": params}).to_string())?;
        let began = Instant::now();
        while began.elapsed() < PATIENCE {
            let message = self.receive()?;
            if message["id"] != id {
                self.events.push(message);
            } else if message.get("error").is_some() {
                bail!("{method}: {message}");
            } else {
                return Ok(message["result"].clone());
            }
        }
        bail!("{method}: no answer")
    }

    fn send(&mut self, text: &str) -> Result<()> {
        // Final, text, masked with zeros (RFC 6455, 5.2).
        let mut frame = vec![0x81, 0xff];
        frame.extend_from_slice(&(text.len() as u64).to_be_bytes());
        frame.extend_from_slice(&[0; 4]);
        frame.extend_from_slice(text.as_bytes());
        Ok(self.socket.write_all(&frame)?)
    }

    fn receive(&mut self) -> Result<Value> {
        let mut whole = Vec::new();
        loop {
            let mut head = [0; 2];
            self.socket.read_exact(&mut head).context("the browser says nothing more")?;
            let length = match head[1] & 0x7f {
                126 => u64::from(u16::from_be_bytes(self.read()?)),
                127 => u64::from_be_bytes(self.read()?),
                short => u64::from(short),
            };
            let mut part = vec![0; usize::try_from(length)?];
            self.socket.read_exact(&mut part)?;
            // Control frames are skipped.
            if head[0] & 0x08 == 0 {
                whole.append(&mut part);
                if head[0] & 0x80 != 0 {
                    return Ok(serde_json::from_slice(&whole)?);
                }
            }
        }
    }

    fn read<const N: usize>(&mut self) -> Result<[u8; N]> {
        let mut bytes = [0; N];
        self.socket.read_exact(&mut bytes)?;
        Ok(bytes)
    }
}

/// The path of the first tab's web socket.
fn tab(node: &Node, port: u16) -> Result<String> {
    let list = node.exec(&["curl", "-sS", "-m", "5", &format!("http://127.0.0.1:{port}/json/list")])?.ok()?;
    let list: Value = serde_json::from_str(&list)?;
    let tabs = list.as_array().context("no list")?;
    let tab = tabs.iter().find(|tab| tab["type"] == "page").context("no tab")?;
    Ok(format!("/devtools/page/{}", tab["id"].as_str().context("no id")?))
}

fn base64(text: &str) -> Vec<u8> {
    let value = |c: u8| match c {
        b'A'..=b'Z' => c - b'A',
        b'a'..=b'z' => c - b'a' + 26,
        b'0'..=b'9' => c - b'0' + 52,
        b'+' => 62,
        _ => 63,
    };
    let (mut bytes, mut bits, mut kept) = (Vec::new(), 0u32, 0);
    for c in text.bytes().filter(|c| *c != b'=') {
        bits = bits << 6 | u32::from(value(c));
        kept += 6;
        if kept >= 8 {
            kept -= 8;
            bytes.push((bits >> kept) as u8);
        }
    }
    bytes
}
