//! A stand-in for an apiserver: nginx with TLS.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, ensure};

use super::Signal;
use super::certs::Certs;
use super::node::Node;
use super::proc::Proc;
use crate::wait::eventually;

/// The apiserver's port.
const PORT: u16 = 6443;

/// nginx's module that can delay responses; Debian's nginx-light brings it.
const ECHO: &str = "/usr/lib/nginx/modules/ngx_http_echo_module.so";

/// Which clients are served.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Clients {
    Anyone,
    WithCertificate,
}

/// A master. `/readyz` answers `ok`, everything else the node's name.
pub struct Master {
    /// Its address.
    pub address: SocketAddr,
    command: Vec<String>,
    not_ready: PathBuf,
    slow: PathBuf,
    process: Proc,
}

impl Master {
    pub(crate) fn start(node: &Node, certs: &Certs, clients: Clients) -> Result<Master> {
        let dir = node.dir().join("nginx");
        std::fs::create_dir_all(&dir)?;
        let address = SocketAddr::new(node.mesh_ip(), PORT);
        let not_ready = dir.join("not-ready");
        let slow = dir.join("slow");
        let config = dir.join("nginx.conf");
        ensure!(Path::new(ECHO).exists(), "{ECHO} is missing: apt-get install libnginx-mod-http-echo");
        let anonymous = match clients {
            Clients::Anyone => "",
            Clients::WithCertificate => {
                "if ($ssl_client_verify != SUCCESS) { return 401 'Unauthorized\\n'; }"
            }
        };
        let text = format!(
            r#"
load_module {ECHO};
daemon off;
user root;
worker_processes 1;
pid {dir}/pid;
events {{ worker_connections 12000; }}
http {{
    access_log off;
    client_body_temp_path {dir}/body;
    proxy_temp_path {dir}/proxy;
    fastcgi_temp_path {dir}/fastcgi;
    uwsgi_temp_path {dir}/uwsgi;
    scgi_temp_path {dir}/scgi;
    client_header_timeout 3600;
    keepalive_timeout 3600;
    default_type text/plain;
    server {{
        {listen}
        ssl_certificate {server};
        ssl_certificate_key {server_key};
        ssl_client_certificate {ca};
        ssl_verify_client optional;
        {anonymous}
        location = /readyz {{
            if (-f {flag}) {{ return 500 '[+]ping ok\n[-]etcd failed: reason withheld\nreadyz check failed\n'; }}
            if (-f {slow}) {{ rewrite ^ /slow last; }}
            return 200 'ok';
        }}
        location = /slow {{ echo_sleep 2; echo ok; }}
        location / {{ return 200 '{name}\n'; }}
    }}
}}
"#,
            listen = listen(node, address),
            dir = dir.display(),
            server = certs.server.display(),
            server_key = certs.server_key.display(),
            ca = certs.ca.display(),
            flag = not_ready.display(),
            slow = slow.display(),
            name = node.name,
        );
        std::fs::write(&config, text)?;
        let config = config.to_string_lossy().into_owned();
        let command = ["nginx", "-e", "stderr", "-c", &config].map(str::to_owned).to_vec();
        let process = launch(node, &command, address)?;
        Ok(Master { address, command, not_ready, slow, process })
    }

    /// Starts it again after it was killed or stopped.
    ///
    /// # Errors
    /// It did not start to listen.
    pub fn start_again(&mut self, node: &Node) -> Result<()> {
        self.process = launch(node, &self.command, self.address)?;
        Ok(())
    }

    /// Kills it, as a crash would: connections to it are refused from then on.
    ///
    /// # Errors
    /// It can't be waited for.
    pub fn kill(&mut self) -> Result<()> {
        self.process.kill()
    }

    /// Stops it as its service manager would, and waits until it has: its connections are closed.
    ///
    /// # Errors
    /// It does not stop.
    pub fn stop(&mut self) -> Result<()> {
        self.process.stop(Duration::from_secs(10)).map(drop)
    }

    /// Hangs it: the kernel still accepts connections for it, nothing is ever answered.
    ///
    /// # Errors
    /// It has ended.
    pub fn hang(&self) -> Result<()> {
        self.process.signal(Signal::STOP)
    }

    /// Resumes it.
    ///
    /// # Errors
    /// It has ended.
    pub fn go_on(&self) -> Result<()> {
        self.process.signal(Signal::CONT)
    }

    /// Makes `/readyz` answer 500, or 200 again; it keeps serving in either case.
    ///
    /// # Errors
    /// The mark can't be written.
    pub fn set_ready(&self, ready: bool) -> Result<()> {
        mark(&self.not_ready, !ready)
    }

    /// Makes `/readyz` take two seconds, as on an apiserver under load, or no time again.
    ///
    /// # Errors
    /// The mark can't be written.
    pub fn set_slow(&self, slow: bool) -> Result<()> {
        mark(&self.slow, slow)
    }
}

/// Where it listens: on the mesh address alone where the mesh is a tunnel, on all addresses where there can be a
/// virtual IP, as an apiserver does.
fn listen(node: &Node, address: SocketAddr) -> String {
    let all = [SocketAddr::from(([0, 0, 0, 0], PORT)), SocketAddr::from(([0; 8], PORT))];
    let places = if node.tunnel.is_some() { &[address][..] } else { &all[..] };
    places.iter().map(|at| format!("listen {at} ssl http2 backlog=4096;\n        ")).collect()
}

fn mark(file: &Path, set: bool) -> Result<()> {
    match set {
        true => std::fs::write(file, "")?,
        false if file.exists() => std::fs::remove_file(file)?,
        false => {}
    }
    Ok(())
}

fn launch(node: &Node, command: &[String], address: SocketAddr) -> Result<Proc> {
    let command: Vec<&str> = command.iter().map(String::as_str).collect();
    let mut process = node.spawn("nginx", &command)?;
    eventually("nginx listens", Duration::from_secs(10), || {
        ensure!(process.is_running(), "it has ended");
        node.inside(|| Ok(std::net::TcpStream::connect(address)?)).context("it refuses")
    })
    .with_context(|| process.tail(10))?;
    Ok(process)
}
