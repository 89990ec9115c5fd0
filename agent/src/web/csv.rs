//! `/stats;csv`: haproxy's columns, in haproxy 2.6's order, for existing readers. What haproxy has and the
//! agent does not is empty, as haproxy leaves what does not apply.

use proto::backends::BackendState;
use proto::cause::Cause;
use proto::control::{BackendStatus, ServiceStatus, Status};

/// The first line, exactly as haproxy writes it.
const HEADER: &str = include_str!("stats.csv");

/// The columns of a line that are filled; the rest is empty.
struct CsvLine(Vec<(&'static str, String)>);

impl CsvLine {
    fn new(service: &ServiceStatus, name: &str, kind: u8, number: u64, server: u64) -> CsvLine {
        let line = CsvLine(Vec::new());
        let line = line.text("pxname", service.name.as_str()).text("svname", name).text("mode", "tcp");
        line.number("type", kind.into()).number("pid", 1).number("iid", number).number("sid", server)
    }

    fn text(mut self, column: &'static str, text: &str) -> CsvLine {
        // As RFC 4180 requires; control characters would break the line.
        let clean: String = text.chars().filter(|c| !c.is_control()).collect();
        let quoted = clean.contains([',', '"']);
        self.0.push((column, if quoted { format!("\"{}\"", clean.replace('"', "\"\"")) } else { clean }));
        self
    }

    fn number(mut self, column: &'static str, number: u64) -> CsvLine {
        self.0.push((column, number.to_string()));
        self
    }

    fn numbers<const N: usize>(self, all: [(&'static str, u64); N]) -> CsvLine {
        all.into_iter().fold(self, |line, (column, number)| line.number(column, number))
    }

    fn end(self, text: &mut String) {
        // haproxy ends each line with a comma, its header too.
        for column in HEADER.trim_start_matches("# ").trim_end().trim_end_matches(',').split(',') {
            if let Some((_, value)) = self.0.iter().find(|(name, _)| *name == column) {
                text.push_str(value);
            }
            text.push(',');
        }
        text.push('\n');
    }
}

/// The whole text.
pub(super) fn write(status: &Status) -> Vec<u8> {
    let mut text = HEADER.to_owned();
    // haproxy numbers its proxies from 2.
    for (number, service) in (2u64..).zip(&status.services) {
        frontend(&mut text, service, number);
        for (place, one) in (1u64..).zip(&service.backends) {
            server(&mut text, status, service, one, number, place);
        }
        backend(&mut text, status, service, number);
    }
    text.into_bytes()
}

fn sum(service: &ServiceStatus, of: impl Fn(&BackendStatus) -> u64) -> u64 {
    service.backends.iter().map(of).sum()
}

fn frontend(text: &mut String, service: &ServiceStatus, number: u64) {
    let open = service.is_listening();
    let line =
        CsvLine::new(service, "FRONTEND", 0, number, 0).text("status", if open { "OPEN" } else { "STOP" });
    let line = line.numbers([
        ("scur", service.connections),
        ("smax", service.counted.most),
        ("slim", service.maxconn.into()),
        ("stot", service.counted.total),
        ("conn_tot", service.counted.total),
        ("bin", sum(service, |b| b.counted.bytes_in)),
        ("bout", sum(service, |b| b.counted.bytes_out)),
        ("dcon", service.refused),
    ]);
    line.end(text);
}

fn server(
    text: &mut String,
    status: &Status,
    service: &ServiceStatus,
    one: &BackendStatus,
    number: u64,
    place: u64,
) {
    let (word, check) = match (one.state, one.check_code()) {
        (BackendState::Ready | BackendState::Alive, Some(_)) => ("UP", "L7OK"),
        (BackendState::Ready | BackendState::Alive | BackendState::Unknown, None) => ("UP", "L4OK"),
        (BackendState::Unknown, Some(_)) | (BackendState::Other(_), _) => ("UP", "UNK"),
        (BackendState::Draining, _) => ("DRAIN", "L4OK"),
        (BackendState::NotReady, _) => ("NOLB", failed_check(one.cause).unwrap_or("L7STS")),
        (BackendState::Suspect | BackendState::Down, _) => {
            ("DOWN", failed_check(one.cause).unwrap_or("L4TOUT"))
        }
    };
    let counted = &one.counted;
    let line = CsvLine::new(service, one.node.as_str(), 2, number, place).numbers([
        ("qcur", 0),
        ("scur", one.connections),
        ("smax", counted.most),
        ("stot", one.total),
        ("lbtot", one.total),
        ("bin", counted.bytes_in),
        ("bout", counted.bytes_out),
        ("econ", counted.connect_errors),
        ("eresp", counted.silences),
        ("wretr", counted.races),
        ("wredis", counted.replays),
        ("srv_abrt", counted.resets_down + counted.resets_leave),
        ("weight", one.weight.into()),
        ("uweight", one.weight.into()),
        ("act", u64::from(one.state.is_good())),
        ("bck", 0),
        ("chkdown", counted.changes),
        ("downtime", counted.downtime_ms / 1000),
    ]);
    let mut line =
        line.text("status", word).text("check_status", check).text("last_chk", &one.reason.to_string());
    line = line.text("check_desc", one.state.as_str()).text("addr", &one.address);
    if one.since_unix_ms.0 > 0 {
        line = line.number("lastchg", status.taken_unix_ms.0.saturating_sub(one.since_unix_ms.0) / 1000);
    }
    if let Some(code) = one.check_code() {
        line = line.number("check_code", code.into());
    }
    if let Some(ms) = one.check_ms {
        line = line.number("check_duration", ms.into());
    }
    line.end(text);
}

/// haproxy's name of a failed check; `None`: it has none for this cause.
fn failed_check(cause: Option<Cause>) -> Option<&'static str> {
    Some(match cause? {
        Cause::PortClosed | Cause::LoopbackOnly | Cause::Unreachable => "L4CON",
        Cause::ConnectUnanswered | Cause::NodeUnreachable | Cause::NotHeard | Cause::PathCut => "L4TOUT",
        Cause::Tls(_) | Cause::NoCredentials => "L6RSP",
        Cause::HelloUnanswered => "L6TOUT",
        Cause::Http(_) => "L7STS",
        Cause::TimedOut => "L7TOUT",
        Cause::NotHttp | Cause::ClosedEarly | Cause::ConnectionBroken => "L7RSP",
        Cause::NoDescriptors => "SOCKERR",
        _ => return None,
    })
}

fn backend(text: &mut String, status: &Status, service: &ServiceStatus, number: u64) {
    let up = || service.backends.iter().filter(|one| one.state.is_good());
    let word = if up().next().is_some() { "UP" } else { "DOWN" };
    let newest = service.backends.iter().map(|one| one.since_unix_ms.0).max().unwrap_or(0);
    let line = CsvLine::new(service, "BACKEND", 1, number, 0).text("status", word).numbers([
        ("qcur", 0),
        ("scur", sum(service, |b| b.connections)),
        ("smax", service.counted.most),
        ("slim", service.maxconn.into()),
        ("stot", sum(service, |b| b.total)),
        ("lbtot", sum(service, |b| b.total)),
        ("bin", sum(service, |b| b.counted.bytes_in)),
        ("bout", sum(service, |b| b.counted.bytes_out)),
        ("econ", service.counted.unserved),
        ("eresp", sum(service, |b| b.counted.silences)),
        ("wretr", sum(service, |b| b.counted.races)),
        ("wredis", sum(service, |b| b.counted.replays)),
        ("weight", up().map(|one| u64::from(one.weight)).sum()),
        ("act", up().count() as u64),
        ("bck", 0),
        ("lastchg", status.taken_unix_ms.0.saturating_sub(newest) / 1000),
    ]);
    line.text("algo", balance(service)).end(text);
}

/// haproxy's name of the balancing algorithm.
fn balance(service: &ServiceStatus) -> &'static str {
    use proto::open_enum::OpenEnum;
    use proto::service::Balance;
    match service.balance {
        OpenEnum::Known(Balance::LeastConnections) => "leastconn",
        OpenEnum::Known(Balance::RoundRobin) => "roundrobin",
        OpenEnum::Known(Balance::First) => "first",
        OpenEnum::Known(Balance::Source) => "source",
        OpenEnum::Known(Balance::Nearest) => "nearest",
        OpenEnum::Other(_) => "unknown",
    }
}
