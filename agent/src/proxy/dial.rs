//! Carries out a [`Plan`]: who is dialled when for one client, and what each dial says about its backend.

use std::io;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::{Duration, Instant};

use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use proto::access::Cause;
use proto::dial::{Plan, Step};
use proto::node::NodeId;
use proto::path::{Evidence, Report};
use tokio::net::TcpStream;

use super::held::Ticket;
use super::pool::Pool;
use super::{Shared, socket};

/// A dial that got no answer for this long says something about its backend, also when it was not waited
/// for: longer than the first retransmission of a SYN would need on any mesh.
const VERDICT: Duration = Duration::from_secs(1);

/// A connection to a backend.
pub(super) struct Leg {
    pub(super) stream: TcpStream,
    pub(super) ticket: Ticket,
}

/// How a client's dial went.
pub(super) struct Dialled {
    /// The first backend to answer, or why none did in time.
    pub(super) leg: Result<Leg, Cause>,
    /// Dials that were begun.
    pub(super) tries: u32,
    /// The one that answered was not the first to be tried.
    pub(super) moved: bool,
}

/// Dials until the first backend answers.
pub(super) async fn dial(pool: &Arc<Pool>, shared: &Arc<Shared>) -> Dialled {
    let life = &shared.life;
    let table = Arc::clone(&shared.table.borrow());
    let backends = table.get(&pool.service).map_or(&[][..], Vec::as_slice);
    let (order, mut first) = pool.rank(backends, shared.own, life.now());
    let best = first.as_ref().map(|ticket| ticket.held.node);
    let patience = |i: &usize| proto::dial::patience(backends.get(*i).and_then(|one| one.rtt));
    let mut plan = Plan::new(order.iter().map(patience).collect(), life.now());
    let mut trials = FuturesUnordered::new();
    let (mut tries, mut cause) = (0, None);
    loop {
        match plan.next(life.now(), || pool.may_race(life.now())) {
            Step::Dial(nth) => {
                let chosen = order.get(nth).and_then(|i| Some((*i, backends.get(*i)?)));
                let mut ticket = |i| first.take().or_else(|| pool.ticket(backends, i, life.now()));
                let Some((backend, ticket)) = chosen.and_then(|(i, one)| Some((one, ticket(i)?))) else {
                    plan.failed(); // no plan goes past its candidates
                    continue;
                };
                tries += 1;
                ticket.held.counts.races.fetch_add(u64::from(!trials.is_empty()), Relaxed);
                trials.push(Trial::new(ticket, pool, shared).run(backend.address));
            }
            Step::Wait(until) => tokio::select! {
                biased;
                Some(found) = trials.next() => match found {
                    Ok(leg) => {
                        pool.served(shared);
                        see_out(trials, pool, shared);
                        let moved = Some(leg.ticket.held.node) != best;
                        return Dialled { leg: Ok(leg), tries, moved };
                    }
                    Err(why) => {
                        cause = Some(why);
                        plan.failed();
                    }
                },
                () = tokio::time::sleep_until(life.instant(until)) => {}
            },
            Step::GiveUp => {
                pool.not_served(backends.len(), shared);
                let silent = if trials.is_empty() { Cause::Server } else { Cause::ServerTimeout };
                return Dialled { leg: Err(cause.unwrap_or(silent)), tries, moved: false };
            }
        }
    }
}

/// Lets the losers of a race run until their verdict, one race at a time: a backend whose packets vanish
/// loses every race, and without its verdict each client would wait for the hedge again.
fn see_out<F>(mut trials: FuturesUnordered<F>, pool: &Arc<Pool>, shared: &Arc<Shared>)
where
    F: Future<Output = Result<Leg, Cause>> + Send + 'static,
{
    if trials.is_empty() || pool.seeing_out.swap(true, Relaxed) {
        return;
    }
    let pool = Arc::clone(pool);
    let over = shared.life.over.clone();
    shared.life.spawn(async move {
        let all = async { while trials.next().await.is_some() {} };
        let _ = over.run_until_cancelled(tokio::time::timeout(VERDICT, all)).await;
        drop(trials);
        pool.seeing_out.store(false, Relaxed);
    });
}

/// One dial. Dropped early it reports only a silence that was long enough to mean something.
pub(super) struct Trial {
    node: NodeId,
    ticket: Option<Ticket>,
    pool: Arc<Pool>,
    shared: Arc<Shared>,
    started: Instant,
    ended: bool,
}

impl Trial {
    pub(super) fn new(ticket: Ticket, pool: &Arc<Pool>, shared: &Arc<Shared>) -> Trial {
        Trial {
            node: ticket.held.node,
            ticket: Some(ticket),
            pool: Arc::clone(pool),
            shared: Arc::clone(shared),
            started: Instant::now(),
            ended: false,
        }
    }

    pub(super) async fn run(mut self, address: std::net::SocketAddr) -> Result<Leg, Cause> {
        let result = socket::connect(address).await;
        self.ended = true;
        match result {
            Ok(stream) => {
                let took = self.started.elapsed();
                let ticket = self.ticket.take();
                let now = self.shared.life.now();
                if let Some(ticket) = &ticket {
                    ticket.held.counts.dials.took(took);
                    if ticket.held.is_news(now) {
                        self.report(Evidence::Connected { took });
                    }
                }
                ticket.map(|ticket| Leg { stream, ticket }).ok_or(Cause::Server)
            }
            Err(error) => match evidence_of(&error) {
                Some(evidence) => {
                    if let Some(ticket) = &self.ticket {
                        ticket.held.counts.errors.fetch_add(1, Relaxed);
                    }
                    self.accuse(evidence);
                    let refused = evidence == Evidence::Refused;
                    Err(if refused { Cause::Server } else { Cause::ServerTimeout })
                }
                None => {
                    self.shared.failed_locally(&error);
                    Err(Cause::Resources)
                }
            },
        }
    }

    /// Reports what speaks against the backend; the next success is news then.
    fn accuse(&self, evidence: Evidence) {
        if let Some(ticket) = &self.ticket {
            ticket.held.accused();
        }
        self.report(evidence);
    }

    fn report(&self, evidence: Evidence) {
        let service = self.pool.service.clone();
        let _ = self.shared.evidence.try_send(Report { node: self.node, service, evidence });
    }
}

impl Drop for Trial {
    fn drop(&mut self) {
        if !self.ended && self.started.elapsed() >= VERDICT {
            self.accuse(Evidence::Unanswered);
        }
    }
}

/// What a failed connect says about the backend; nothing when the fault is this machine's.
fn evidence_of(error: &io::Error) -> Option<Evidence> {
    use io::ErrorKind::{
        ConnectionRefused, ConnectionReset, HostUnreachable, NetworkDown, NetworkUnreachable, TimedOut,
    };
    match error.kind() {
        ConnectionRefused | ConnectionReset => Some(Evidence::Refused),
        TimedOut | HostUnreachable | NetworkUnreachable | NetworkDown => Some(Evidence::Unanswered),
        _ => None,
    }
}

impl Shared {
    /// An accept or a dial failed through no fault of the peer.
    pub(super) fn failed_locally(&self, error: &io::Error) {
        if socket::is_starved(error) {
            if self.starved.raise(self.life.now()) {
                tracing::warn!(
                    "out of file descriptors: new connections wait or are reset, held ones go on; \
                     raise LimitNOFILE or lower maxconn"
                );
            }
        } else {
            tracing::debug!("accept or dial failed: {error}");
        }
    }
}

#[cfg(test)]
mod tests {
    use rustix::io::Errno;

    use super::*;

    #[test]
    fn a_fault_of_this_machine_is_no_evidence_about_another() {
        let table = [
            (Errno::CONNREFUSED, Some(Evidence::Refused)),
            (Errno::CONNRESET, Some(Evidence::Refused)),
            (Errno::TIMEDOUT, Some(Evidence::Unanswered)),
            (Errno::HOSTUNREACH, Some(Evidence::Unanswered)),
            (Errno::NETUNREACH, Some(Evidence::Unanswered)),
            (Errno::MFILE, None),
            (Errno::NFILE, None),
            (Errno::NOBUFS, None),
            (Errno::ADDRNOTAVAIL, None),
            (Errno::PERM, None),
        ];
        for (errno, evidence) in table {
            assert_eq!(evidence_of(&errno.into()), evidence, "{errno:?}");
        }
    }
}
