//! Carries out a [`Plan`]: who is dialled when for one client, and what each dial says about its backend.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::{Duration, Instant};

use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use proto::access::Termination;
use proto::dial::{Plan, Step};
use proto::node::NodeId;
use proto::path::{Evidence, Report};
use tokio::net::TcpStream;

use super::Shared;
use super::held::{Counts, Ticket};
use super::pool::Pool;
use super::socket::{self, Connecting};

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
    pub(super) leg: Result<Leg, Termination>,
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
    let (order, first) = pool.rank(backends, shared.own, life.now());
    let begin =
        |(i, ticket): (usize, Ticket)| Some(Trial::begin(ticket, backends.get(i)?.address, pool, shared));
    let mut first = order.first().copied().zip(first).and_then(begin);
    if let Some(leg) = first.as_mut().and_then(Trial::at_once) {
        pool.served(shared);
        return Dialled { leg: Ok(leg), tries: 1, moved: false };
    }
    let best = first.as_ref().map(|trial| trial.node);
    let patience = |i: &usize| proto::dial::patience(backends.get(*i).and_then(|one| one.rtt));
    let mut plan = Plan::new(order.iter().map(patience).collect(), life.now());
    let mut trials = FuturesUnordered::new();
    let (mut tries, mut cause) = (0, None);
    loop {
        match plan.next(life.now(), || pool.may_race(life.now())) {
            Step::Dial(nth) => {
                let ticket = |i: usize| Some((i, pool.ticket(backends, i, life.now())?));
                let next = || order.get(nth).copied().and_then(ticket).and_then(begin);
                let Some(trial) = first.take().or_else(next) else {
                    plan.failed(); // no plan goes past its candidates
                    continue;
                };
                tries += 1;
                if !trials.is_empty() {
                    trial.count(|counts| &counts.races);
                }
                trials.push(trial.run());
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
                let silent = if trials.is_empty() { Termination::Server } else { Termination::ServerTimeout };
                return Dialled { leg: Err(cause.unwrap_or(silent)), tries, moved: false };
            }
        }
    }
}

/// Lets the losers of a race run until their verdict, one race at a time: a backend whose packets vanish
/// loses every race, and without its verdict each client would wait for the hedge again.
fn see_out<F>(mut trials: FuturesUnordered<F>, pool: &Arc<Pool>, shared: &Arc<Shared>)
where
    F: Future<Output = Result<Leg, Termination>> + Send + 'static,
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
    /// Until somebody waits for it.
    connecting: Option<io::Result<Connecting>>,
    ended: bool,
}

impl Trial {
    pub(super) fn begin(
        ticket: Ticket,
        address: SocketAddr,
        pool: &Arc<Pool>,
        shared: &Arc<Shared>,
    ) -> Trial {
        Trial {
            node: ticket.held.node,
            ticket: Some(ticket),
            pool: Arc::clone(pool),
            shared: Arc::clone(shared),
            started: Instant::now(),
            connecting: Some(Connecting::begin(address)),
            ended: false,
        }
    }

    /// The leg, when it is there without waiting: no timer has to be set then, and nobody be raced.
    fn at_once(&mut self) -> Option<Leg> {
        match self.connecting.take() {
            Some(Ok(Connecting::Done(stream))) => self.connected(stream),
            other => {
                self.connecting = other;
                None
            }
        }
    }

    pub(super) async fn run(mut self) -> Result<Leg, Termination> {
        let result = match self.connecting.take() {
            Some(Ok(connecting)) => connecting.finish().await,
            Some(Err(error)) => Err(error),
            None => return Err(Termination::Server),
        };
        match result {
            Ok(stream) => self.connected(stream).ok_or(Termination::Server),
            Err(error) => Err(self.failed(&error)),
        }
    }

    fn connected(&mut self, stream: TcpStream) -> Option<Leg> {
        self.ended = true;
        let took = self.started.elapsed();
        let ticket = self.ticket.take()?;
        ticket.held.counts.dials.took(took);
        if ticket.held.is_news(self.shared.life.now()) {
            self.report(Evidence::Connected { took });
        }
        Some(Leg { stream, ticket })
    }

    fn failed(&mut self, error: &io::Error) -> Termination {
        self.ended = true;
        match evidence_of(error) {
            Some(evidence) => {
                self.count(|counts| &counts.errors);
                self.accuse(evidence);
                let refused = evidence == Evidence::Refused;
                if refused { Termination::Server } else { Termination::ServerTimeout }
            }
            None => {
                self.shared.failed_locally(error);
                Termination::Resources
            }
        }
    }

    fn count(&self, what: impl Fn(&Counts) -> &AtomicU64) {
        if let Some(ticket) = &self.ticket {
            what(&ticket.held.counts).fetch_add(1, Relaxed);
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
                    "out of file descriptors: new connections wait or are reset, open ones continue; \
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
