//! A full mesh of WireGuard tunnels, by `wireguard-go`: the same protocol and the same kind of interface
//! (point-to-point, no ARP) as the kernel's, without its module.

use std::fmt::Write;
use std::time::Duration;

use anyhow::{Context, Result};

use super::node::Node;
use super::proc::Proc;
use crate::wait::eventually;

const INTERFACE: &str = "wg0";
const PORT: u16 = 51820;

/// One node's end of all its tunnels.
pub(crate) struct Tunnel {
    /// The key that the others know it by.
    pub(crate) public: String,
    private: String,
}

/// Puts all nodes on a mesh; it works for as long as the returned processes live.
pub(crate) fn mesh(nodes: &mut [Node]) -> Result<Vec<Proc>> {
    let mut processes = Vec::new();
    for node in nodes.iter_mut() {
        let env = [("WG_PROCESS_FOREGROUND", "1"), ("LOG_LEVEL", "error")];
        node.exec(&["mkdir", "-p", "/run/wireguard"])?.ok()?;
        processes.push(node.spawn_with("wireguard", &["wireguard-go", "-f", INTERFACE], &env)?);
        let private = node.exec(&["wg", "genkey"])?.ok()?.trim().to_owned();
        let key = format!("echo {private} | wg pubkey");
        let public = node.exec(&["sh", "-c", &key])?.ok()?.trim().to_owned();
        node.tunnel = Some(Tunnel { public, private });
        node.interface = INTERFACE;
    }
    for node in nodes.iter() {
        let socket = format!("/proc/{}/root/run/wireguard/{INTERFACE}.sock", node.space().pid());
        eventually("wireguard-go has made its interface", Duration::from_secs(10), || {
            std::fs::metadata(&socket).context("its control socket is not there")
        })?;
        let config = node.dir().join("wg.conf");
        std::fs::write(&config, settings(node, nodes)?)?;
        node.exec(&["wg", "setconf", INTERFACE, &config.to_string_lossy()])?.ok()?;
        let bits = if node.mesh_ip().is_ipv4() { "24" } else { "64 nodad" };
        let address = node.mesh_ip();
        node.space()
            .ip(&format!("addr add {address}/{bits} dev {INTERFACE}\nlink set {INTERFACE} up mtu 1420\n"))?;
    }
    Ok(processes)
}

fn settings(node: &Node, all: &[Node]) -> Result<String> {
    let own = node.tunnel.as_ref().context("a node without keys")?;
    let mut text = format!("[Interface]\nPrivateKey = {}\nListenPort = {PORT}\n", own.private);
    for other in all.iter().filter(|other| other.index != node.index) {
        let key = &other.tunnel.as_ref().context("a node without keys")?.public;
        let host = if other.mesh_ip().is_ipv4() { 32 } else { 128 };
        let (inner, outer) = (other.mesh_ip(), other.underlay_ip);
        write!(text, "[Peer]\nPublicKey = {key}\nAllowedIPs = {inner}/{host}\nEndpoint = {outer}:{PORT}\n")?;
    }
    Ok(text)
}
