//! Other proxies, from Debian's packages and configured as their users do, for comparison.

use std::fmt::Write;
use std::net::{IpAddr, SocketAddr};
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};

use crate::lab::{Node, Proc};
use crate::wait::eventually;

/// Reports which of these programs or files are missing, all at once, with the packages that provide them.
///
/// # Errors
/// At least one is.
pub fn require(needs: &[(&str, &str)]) -> Result<()> {
    let dirs = ["/usr/sbin", "/usr/bin", "/sbin", "/bin", "/usr/local/sbin", "/usr/local/bin"];
    let is_there = |what: &str| dirs.iter().any(|dir| Path::new(dir).join(what).exists());
    let missing: Vec<&str> =
        needs.iter().filter(|(what, _)| !is_there(what)).map(|(_, package)| *package).collect();
    if !missing.is_empty() {
        bail!("it measures others too, which are not installed; run: apt-get install {}", missing.join(" "));
    }
    Ok(())
}

/// Settings of haproxy.
pub struct Haproxy<'a> {
    /// Its name in logs, and of its files.
    pub name: &'a str,
    /// Where it listens.
    pub listen: SocketAddr,
    /// Its servers.
    pub servers: Vec<SocketAddr>,
    /// Limit of connections; it needs twice as many descriptors, and does not start without.
    pub maxconn: u64,
    /// More lines for the section `defaults`.
    pub defaults: &'a str,
    /// How servers are checked: the rest of the line `default-server`.
    pub server: &'a str,
}

/// haproxy's check of an apiserver, as people who run one on every node write it.
pub const HTTPCHK: &str = "option httpchk GET /readyz";

/// The servers' settings that go with it.
pub const CHECKED: &str = "check check-ssl verify none inter 1000 rise 2 fall 2 slowstart 60s \
                           maxconn 250 maxqueue 256 weight 100";

impl Haproxy<'_> {
    fn config(&self) -> String {
        let mut text = format!(
            "global\n    maxconn {0}\n    maxpipes 50\n    nbthread 2\n\
             defaults\n    mode tcp\n    balance roundrobin\n    option redispatch\n    retries 3\n    \
             timeout connect 5s\n    timeout client 1h\n    timeout server 1h\n    timeout queue 5s\n    {1}\n\
             listen masters\n    bind {2}\n    maxconn {0}\n    default-server {3}\n",
            self.maxconn, self.defaults, self.listen, self.server
        );
        for (i, server) in self.servers.iter().enumerate() {
            let _ = writeln!(text, "    server n{i} {server}");
        }
        text
    }

    /// Starts it on a node, and waits until it listens.
    ///
    /// # Errors
    /// It does not.
    pub fn start(&self, node: &Node) -> Result<Proc> {
        self.start_as(node, "haproxy", "-db", &self.config())
    }

    /// The same with another binary of haproxy than Debian's.
    ///
    /// # Errors
    /// As [`Haproxy::start`].
    pub fn start_program(&self, node: &Node, program: &str) -> Result<Proc> {
        self.start_as(node, program, "-db", &self.config())
    }

    /// The same with a master process, which hands its listening sockets to the next worker at SIGUSR2.
    ///
    /// # Errors
    /// As [`Haproxy::start`].
    pub fn start_with_master(&self, node: &Node) -> Result<Proc> {
        let socket = node.dir().join(format!("{}.sock", self.name));
        let hands =
            format!("global\n    stats socket {} expose-fd listeners level admin\n", socket.display());
        self.start_as(node, "haproxy", "-Ws", &self.config().replacen("global\n", &hands, 1))
    }

    fn start_as(&self, node: &Node, program: &str, mode: &str, config: &str) -> Result<Proc> {
        let file = node.dir().join(format!("{}.cfg", self.name));
        std::fs::write(&file, config)?;
        let path = file.to_string_lossy().into_owned();
        listening(node, node.spawn(self.name, &[program, mode, "-f", &path])?, self.listen)
    }
}

/// Starts nginx' stream proxy on a node, and waits until it listens.
///
/// # Errors
/// It does not.
pub fn nginx_stream(node: &Node, listen: SocketAddr, server: SocketAddr) -> Result<Proc> {
    let dir = node.dir().join("nginx-stream");
    std::fs::create_dir_all(&dir)?;
    let file = dir.join(format!("{}.conf", listen.port()));
    std::fs::write(
        &file,
        format!(
            "load_module /usr/lib/nginx/modules/ngx_stream_module.so;\n\
             daemon off;\nuser root;\npid {}/{}.pid;\nworker_processes 2;\nworker_rlimit_nofile 65536;\n\
             events {{ worker_connections 30000; }}\n\
             stream {{ server {{ listen {listen} backlog=4096; proxy_pass {server}; \
             proxy_timeout 1h; tcp_nodelay on; }} }}\n",
            dir.display(),
            listen.port()
        ),
    )?;
    let path = file.to_string_lossy().into_owned();
    listening(node, node.spawn("nginx-stream", &["nginx", "-e", "stderr", "-c", &path])?, listen)
}

fn listening(node: &Node, mut process: Proc, address: SocketAddr) -> Result<Proc> {
    let (ended, _) = eventually("it listens", Duration::from_secs(10), || {
        if !process.is_running() {
            // Waiting for an ended process is useless.
            return Ok(true);
        }
        node.inside(|| Ok(std::net::TcpStream::connect(address)?)).context("it refuses")?;
        Ok(false)
    })?;
    ensure!(!ended, "a proxy for {address} has ended: {}", process.tail(10));
    Ok(process)
}

/// An address on a node's own loopback.
pub fn local(port: u16) -> SocketAddr {
    SocketAddr::new(IpAddr::V4(std::net::Ipv4Addr::LOCALHOST), port)
}
