//! A line of the access log, in the field order of haproxy's tcplog (its configuration manual, 8.2.2), so
//! that existing parsers read it.

use std::fmt;
use std::net::SocketAddr;
use std::time::Duration;

use crate::time::UnixMs;

/// What ended a connection: the first of the two letters of haproxy's termination state.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Termination {
    /// Both sides closed.
    #[default]
    Normal,
    /// The client aborted it.
    Client,
    /// The backend aborted or refused it.
    Server,
    /// The client was silent for too long.
    ClientTimeout,
    /// The backend was silent for too long.
    ServerTimeout,
    /// The backend is down, gone or draining, and its connections were ended.
    Down,
    /// This agent is shutting down.
    Killed,
    /// Out of descriptors or similar.
    Resources,
}

/// When it ended: the second letter.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Phase {
    /// While a backend was being selected.
    Connect,
    /// While bytes were copied.
    #[default]
    Data,
}

/// One connection, after its end.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Access<'a> {
    /// The client's address.
    pub client: SocketAddr,
    /// When it was accepted.
    pub came: UnixMs,
    /// The service: haproxy's frontend and backend.
    pub service: &'a str,
    /// The backend's name: haproxy's server; `None` when none answered.
    pub server: Option<&'a str>,
    /// Time until the backend had connected; `None` when none did.
    pub connect: Option<Duration>,
    /// Time from accept to end.
    pub total: Duration,
    /// Bytes from the backend to the client.
    pub bytes: u64,
    /// What ended it.
    pub cause: Termination,
    /// The phase in which it ended.
    pub phase: Phase,
    /// Connections of this agent, of the service's listener, to all backends of the service, and to this
    /// one, without the one that has ended.
    pub held: [u64; 4],
    /// Further connection attempts.
    pub retries: u32,
    /// The connection went to another backend than the first that was tried.
    pub redispatched: bool,
}

impl fmt::Display for Access<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Access { client, came, service, connect, total, bytes, held: [all, front, back, server], .. } =
            self;
        write!(f, "{}:{} [{}] {service} ", client.ip(), client.port(), came.log_date())?;
        write!(f, "{service}/{} ", self.server.unwrap_or("<NOSRV>"))?;
        // There is no queue here.
        match connect {
            Some(connect) => write!(f, "0/{}/{} ", connect.as_millis(), total.as_millis())?,
            None => write!(f, "0/-1/{} ", total.as_millis())?,
        }
        let plus = if self.redispatched { "+" } else { "" };
        write!(f, "{bytes} {} {all}/{front}/{back}/{server}/{plus}{} 0/0", self.code(), self.retries)
    }
}

impl Access<'_> {
    /// The two letters.
    fn code(&self) -> &'static str {
        use Termination::{Client, ClientTimeout, Down, Killed, Normal, Resources, Server, ServerTimeout};
        match (self.cause, self.phase) {
            (Normal, _) => "--",
            (Client, Phase::Connect) => "CC",
            (Client, Phase::Data) => "CD",
            (Server, Phase::Connect) => "SC",
            (Server, Phase::Data) => "SD",
            (ClientTimeout, Phase::Connect) => "cC",
            (ClientTimeout, Phase::Data) => "cD",
            (ServerTimeout, Phase::Connect) => "sC",
            (ServerTimeout, Phase::Data) => "sD",
            (Down, Phase::Connect) => "DC",
            (Down, Phase::Data) => "DD",
            (Killed, Phase::Connect) => "KC",
            (Killed, Phase::Data) => "KD",
            (Resources, Phase::Connect) => "RC",
            (Resources, Phase::Data) => "RD",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Of 06/Feb/2009:12:12:51.443, as in the samples.
    const CAME: UnixMs = UnixMs(1_233_922_371_443);

    fn sample() -> Access<'static> {
        Access {
            client: "10.0.1.2:33313".parse().unwrap(),
            came: CAME,
            service: "fnt",
            server: Some("srv1"),
            connect: Some(Duration::ZERO),
            total: Duration::from_millis(5007),
            bytes: 212,
            cause: Termination::Normal,
            phase: Phase::Data,
            held: [0; 4],
            retries: 3,
            redispatched: false,
        }
    }

    /// The manual's sample with the backend named like the frontend, since a service is both.
    #[test]
    fn a_line_is_as_in_the_manual() {
        let line = "10.0.1.2:33313 [06/Feb/2009:12:12:51.443] fnt fnt/srv1 0/0/5007 212 -- 0/0/0/0/3 0/0";
        assert_eq!(sample().to_string(), line);
        let moved =
            Access { held: [7, 3, 2, 1], redispatched: true, cause: Termination::ServerTimeout, ..sample() };
        let line = "10.0.1.2:33313 [06/Feb/2009:12:12:51.443] fnt fnt/srv1 0/0/5007 212 sD 7/3/2/1/+3 0/0";
        assert_eq!(moved.to_string(), line);
        let none = Access {
            client: "[::1]:5".parse().unwrap(),
            server: None,
            connect: None,
            cause: Termination::Server,
            phase: Phase::Connect,
            bytes: 0,
            retries: 0,
            ..sample()
        };
        let line = "::1:5 [06/Feb/2009:12:12:51.443] fnt fnt/<NOSRV> 0/-1/5007 0 SC 0/0/0/0/0 0/0";
        assert_eq!(none.to_string(), line);
    }

    /// What haproxy's own parsers expect: fields separated by blanks.
    #[test]
    fn the_fields_can_be_split() {
        let line = sample().to_string();
        let fields: Vec<&str> = line.split(' ').collect();
        assert_eq!(fields.len(), 9);
        assert_eq!(fields[4].split('/').count(), 3);
        assert_eq!(fields[7].split('/').count(), 5);
    }

    #[test]
    fn every_cause_has_its_letters() {
        use Termination::{Client, ClientTimeout, Down, Killed, Normal, Resources, Server, ServerTimeout};
        let table = [
            (Normal, Phase::Data, "--"),
            (Client, Phase::Data, "CD"),
            (Server, Phase::Data, "SD"),
            (Server, Phase::Connect, "SC"),
            (ServerTimeout, Phase::Connect, "sC"),
            (ClientTimeout, Phase::Data, "cD"),
            (Down, Phase::Data, "DD"),
            (Killed, Phase::Data, "KD"),
            (Resources, Phase::Connect, "RC"),
        ];
        for (cause, phase, letters) in table {
            assert_eq!(Access { cause, phase, ..sample() }.code(), letters);
        }
    }
}
