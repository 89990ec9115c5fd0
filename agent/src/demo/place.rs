//! The demo's resources: free loopback addresses and ports, and a directory that is removed with it.

use std::io::{self, Write};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener, UdpSocket};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use anyhow::{Context, bail};

/// The ports of all nodes; each has addresses of its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct DemoPorts {
    /// The apiservers'.
    pub(super) api: u16,
    /// The proxies'.
    pub(super) proxy: u16,
    /// The agents' own.
    pub(super) link: u16,
    /// The status pages'.
    pub(super) web: u16,
}

/// The usual ports, and others for machines where something listens on one of them on all addresses.
const PORTS: [DemoPorts; 4] = [
    DemoPorts { api: 6443, proxy: 16443, link: 7646, web: 1936 },
    DemoPorts { api: 6543, proxy: 16543, link: 7746, web: 1937 },
    DemoPorts { api: 26443, proxy: 26444, link: 27646, web: 21936 },
    DemoPorts { api: 28443, proxy: 28444, link: 28646, web: 21937 },
];

/// The networks tried in turn; a second demo on the same machine takes the next.
const NETWORKS: [[u8; 3]; 6] =
    [[127, 0, 0], [127, 64, 1], [127, 64, 2], [127, 64, 3], [127, 64, 4], [127, 64, 5]];

/// Last byte of the first node's address.
const FIRST: u8 = 11;

/// Finds addresses for `nodes` nodes, and ports that are free on all of them.
pub(super) fn find(nodes: u8) -> anyhow::Result<(Vec<IpAddr>, DemoPorts)> {
    for ports in PORTS {
        for [a, b, c] in NETWORKS {
            let address = |i| IpAddr::V4(Ipv4Addr::new(a, b, c, FIRST + i));
            let addresses: Vec<IpAddr> = (0..nodes).map(address).collect();
            if addresses.iter().all(|address| is_free(*address, ports)) {
                return Ok((addresses, ports));
            }
        }
    }
    let tried: Vec<String> = PORTS.iter().map(|p| format!("{}/{}/{}", p.api, p.proxy, p.link)).collect();
    bail!(
        "no loopback addresses with free ports: tried 127.0.0.11 and others with {}; stop another demo",
        tried.join(", ")
    );
}

fn is_free(address: IpAddr, ports: DemoPorts) -> bool {
    let tcp = [ports.api, ports.proxy, ports.link, ports.web];
    tcp.iter().all(|port| TcpListener::bind(SocketAddr::new(address, *port)).is_ok())
        && UdpSocket::bind(SocketAddr::new(address, ports.link)).is_ok()
}

/// A directory of this demo's own, removed when dropped.
pub(super) struct DemoDirectory(PathBuf);

impl DemoDirectory {
    /// Creates it, for this user alone.
    pub(super) fn make() -> anyhow::Result<DemoDirectory> {
        let base = std::env::temp_dir();
        for attempt in 0..100 {
            // Short, since it holds sockets and their paths may have 107 bytes.
            let path = base.join(format!("agent-demo-{}-{attempt}", std::process::id()));
            match std::fs::DirBuilder::new().mode(0o700).create(&path) {
                Ok(()) => return Ok(DemoDirectory(path)),
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
                Err(error) => {
                    return Err(error).with_context(|| {
                        format!("cannot create {}; set TMPDIR to a writable directory", path.display())
                    });
                }
            }
        }
        bail!("{} is full of directories of other demos: remove agent-demo-*", base.display());
    }

    /// Where it is.
    pub(super) fn path(&self) -> &Path {
        &self.0
    }

    /// Writes a file in it.
    pub(super) fn write(&self, name: &str, text: &str) -> anyhow::Result<PathBuf> {
        let path = self.0.join(name);
        let mut options = std::fs::OpenOptions::new();
        let file = options.write(true).create_new(true).mode(0o600).open(&path);
        file.and_then(|mut file| file.write_all(text.as_bytes()))
            .with_context(|| format!("can't write {}", path.display()))?;
        Ok(path)
    }
}

impl Drop for DemoDirectory {
    fn drop(&mut self) {
        // Its processes are gone, so nothing is created in it while it is removed.
        if let Err(error) = std::fs::remove_dir_all(&self.0) {
            let _ = writeln!(io::stderr(), "agent: can't remove {}: {error}", self.0.display());
        }
    }
}

/// A text as a TOML string.
pub(super) fn quoted(text: &str) -> String {
    format!("\"{}\"", text.replace('\\', "\\\\").replace('"', "\\\""))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_in_use_are_skipped() {
        let (addresses, ports) = find(5).unwrap();
        assert_eq!(addresses.len(), 5);
        let taken = SocketAddr::new(addresses[4], ports.proxy);
        let _taken = TcpListener::bind(taken).unwrap();
        let (others, other_ports) = find(5).unwrap();
        assert!(!others.contains(&addresses[4]) || other_ports != ports, "{others:?} {other_ports:?}");
    }

    #[test]
    fn the_directory_goes_with_all_that_is_in_it() {
        let directory = DemoDirectory::make().unwrap();
        let file = directory.write("a", "text").unwrap();
        assert!(directory.write("a", "again").is_err(), "nothing is written over");
        let path = directory.path().to_owned();
        std::fs::create_dir_all(path.join("m1/state")).unwrap();
        drop(directory);
        assert!(!file.exists() && !path.exists());
    }
}
