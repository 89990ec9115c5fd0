//! Who listens at an address that this agent wants: as far as /proc tells this user.

use std::fs;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::Path;

/// Length of the name of a process that is shown: the kernel's own limit.
const NAME: usize = 15;

/// The state of a listening socket in the kernel's tables (`TCP_LISTEN`).
const LISTENING: &str = "0A";

/// The process that listens at an address, with its number: `nginx (process 123)`. None: it has ended, or this user may
/// not look at it.
pub(super) fn listener(address: SocketAddr) -> Option<String> {
    let tables = ["/proc/self/net/tcp", "/proc/self/net/tcp6"]
        .map(|path| fs::read_to_string(path).unwrap_or_default());
    let sockets: Vec<String> = tables.iter().flat_map(|table| sockets(table, address)).collect();
    let processes = fs::read_dir("/proc").ok()?.flatten();
    processes.map(|process| process.path()).find_map(|process| {
        let number: u32 = process.file_name()?.to_str()?.parse().ok()?;
        holds(&process, &sockets).then(|| {
            let name = fs::read_to_string(process.join("comm")).unwrap_or_default();
            let name: String = name.trim().chars().filter(|c| !c.is_control()).take(NAME).collect();
            format!("{name} (process {number})")
        })
    })
}

fn holds(process: &Path, sockets: &[String]) -> bool {
    let files = fs::read_dir(process.join("fd")).into_iter().flatten().flatten();
    files
        .filter_map(|file| fs::read_link(file.path()).ok())
        .any(|target| sockets.iter().any(|one| target == Path::new(one)))
}

/// The sockets of a table of the kernel that listen there, as descriptors name them: `socket:[4711]`.
fn sockets(table: &str, wanted: SocketAddr) -> Vec<String> {
    let socket = |line: &str| {
        let fields: Vec<&str> = line.split_whitespace().collect();
        let (ip, port) = fields.get(1)?.split_once(':')?;
        let there = ip_of(ip)?;
        let takes = there == wanted.ip() || there.is_unspecified() || wanted.ip().is_unspecified();
        let listens = *fields.get(3)? == LISTENING && u16::from_str_radix(port, 16) == Ok(wanted.port());
        (takes && listens).then_some(format!("socket:[{}]", fields.get(9)?))
    };
    table.lines().skip(1).filter_map(socket).collect()
}

/// An address as these tables have it: words of 32 bits in the machine's byte order.
fn ip_of(hex: &str) -> Option<IpAddr> {
    let words: Option<Vec<[u8; 4]>> = (0..hex.len() / 8)
        .map(|i| Some(u32::from_str_radix(hex.get(i * 8..i * 8 + 8)?, 16).ok()?.to_ne_bytes()))
        .collect();
    let bytes = words?.concat();
    let v4 = || <[u8; 4]>::try_from(bytes.as_slice()).ok().map(|ip| IpAddr::V4(Ipv4Addr::from(ip)));
    let v6 = || {
        <[u8; 16]>::try_from(bytes.as_slice()).ok().map(|ip| IpAddr::V6(Ipv6Addr::from(ip)).to_canonical())
    };
    v4().or_else(v6)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_process_that_listens_is_named() {
        for ip in ["127.0.0.1:0", "[::1]:0"] {
            let Ok(socket) = std::net::TcpListener::bind(ip) else { continue };
            let address = socket.local_addr().unwrap();
            let named = listener(address).unwrap();
            assert!(named.ends_with(&format!("(process {})", std::process::id())), "{named}");
            let anywhere = SocketAddr::new(IpAddr::V4(Ipv4Addr::UNSPECIFIED), address.port());
            assert!(listener(anywhere).is_some(), "the one listener keeps all others from the port");
            drop(socket);
            assert_eq!(listener(address), None);
        }
    }

    #[cfg(target_endian = "little")]
    #[test]
    fn listening_sockets_of_a_table() {
        let table = "  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode\n\
            \x20  0: 0100007F:403B 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 4711 1 0\n\
            \x20  1: 0100007F:403B 0200007F:C350 01 00000000:00000000 00:00000000 00000000     0        0 4712 1 0\n\
            \x20  2: 0200007F:403B 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 4713 1 0\n\
            garbage\n";
        let at = |text: &str| sockets(table, text.parse().unwrap());
        assert_eq!(at("127.0.0.1:16443"), ["socket:[4711]"]);
        assert_eq!(at("0.0.0.0:16443"), ["socket:[4711]", "socket:[4713]"]);
        assert!(at("127.0.0.1:16444").is_empty());
    }
}
