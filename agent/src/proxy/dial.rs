//! Carries out a [`DialPlan`]: which backend is dialled when for a client, and what each dial says about its
//! backend.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::{Duration, Instant};

use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use proto::access::Termination;
use proto::dial::{DialPlan, DialStep};
use proto::node::NodeId;
use proto::path::{Evidence, EvidenceReport};

use super::ProxyShared;
use super::held::{ConnGuard, HeldCounts};
use super::pool::{OpenClient, ServicePool};
use super::reactor::Timer;
use super::socket::{self, PendingConnect};
use super::stream::Stream;

/// A dial without an answer for this long counts against its backend even if it was not awaited: longer than
/// the first retransmission of a SYN needs on any mesh.
const VERDICT: Duration = Duration::from_secs(1);

/// A connection to a backend.
pub(super) struct Upstream {
    pub(super) stream: Stream,
    pub(super) conn_guard: ConnGuard,
}

/// How a client's dial went.
pub(super) struct DialResult {
    /// The first backend to answer, or why none did in time.
    pub(super) upstream: Result<Upstream, Termination>,
    /// Dials started.
    pub(super) tries: u32,
    /// The one that answered was not the first tried.
    pub(super) moved: bool,
    /// So many of the client's first bytes were sent to it.
    pub(super) sent: usize,
}

/// Dials until the first backend answers. `hello`: what the client has sent, if a backend may have it at once.
pub(super) async fn dial(open: &OpenClient, hello: &[u8], shared: &Arc<ProxyShared>) -> DialResult {
    let pool = &open.pool;
    let life = &shared.life;
    let table = Arc::clone(&shared.table.borrow());
    let backends = table.get(&pool.service).map_or(&[][..], Vec::as_slice);
    let (order, first) = pool.rank(backends, open.of(shared), life.now());
    let begin = |(i, conn_guard): (usize, ConnGuard), hello| {
        Some(DialAttempt::begin(conn_guard, backends.get(i)?.address, hello, pool, shared))
    };
    let mut first = order.first().copied().zip(first).and_then(|first| begin(first, hello));
    if let Some((upstream, sent)) = first.as_mut().and_then(DialAttempt::at_once) {
        pool.served(shared);
        return DialResult { upstream: Ok(upstream), tries: 1, moved: false, sent };
    }
    let best = first.as_ref().map(|attempt| attempt.node);
    let patience = |i: &usize| proto::dial::connect_patience(backends.get(*i).and_then(|one| one.rtt));
    let mut plan = DialPlan::new(order.iter().map(patience).collect(), life.now());
    let mut attempts = FuturesUnordered::new();
    let (mut tries, mut cause) = (0, None);
    loop {
        match plan.next(life.now(), || pool.may_race(life.now())) {
            DialStep::Dial(nth) => {
                let conn_guard = |i: usize| Some((i, pool.conn_guard(backends, i, life.now())?));
                let next = || order.get(nth).copied().and_then(conn_guard).and_then(|next| begin(next, &[]));
                let Some(attempt) = first.take().or_else(next) else {
                    plan.failed(); // no plan goes past its candidates
                    continue;
                };
                tries += 1;
                if !attempts.is_empty() {
                    attempt.count(|counts| &counts.races);
                }
                attempts.push(attempt.run());
            }
            DialStep::Wait(until) => tokio::select! {
                biased;
                Some(found) = attempts.next() => match found {
                    Ok(upstream) => {
                        pool.served(shared);
                        finish_losers(attempts, pool, shared);
                        let moved = Some(upstream.conn_guard.held.node) != best;
                        return DialResult { upstream: Ok(upstream), tries, moved, sent: 0 };
                    }
                    Err(why) => {
                        cause = Some(why);
                        plan.failed();
                    }
                },
                () = Timer::at(life.instant(until).into_std()) => {}
            },
            DialStep::GiveUp => {
                pool.not_served(backends.len(), shared);
                let silent =
                    if attempts.is_empty() { Termination::Server } else { Termination::ServerTimeout };
                return DialResult { upstream: Err(cause.unwrap_or(silent)), tries, moved: false, sent: 0 };
            }
        }
    }
}

/// Lets the losers of a race run until their verdict, one race at a time: a backend whose packets vanish loses
/// every race, and without its verdict each client would wait for the hedge again.
fn finish_losers<F>(mut attempts: FuturesUnordered<F>, pool: &Arc<ServicePool>, shared: &Arc<ProxyShared>)
where
    F: Future<Output = Result<Upstream, Termination>> + Send + 'static,
{
    if attempts.is_empty() || pool.finishing_losers.swap(true, Relaxed) {
        return;
    }
    let pool = Arc::clone(pool);
    let over = shared.life.shutdown.clone();
    shared.life.spawn(async move {
        let all = async { while attempts.next().await.is_some() {} };
        let _ = over.run_until_cancelled(tokio::time::timeout(VERDICT, all)).await;
        drop(attempts);
        pool.finishing_losers.store(false, Relaxed);
    });
}

/// One dial. Dropped early, it reports silence only if that was long enough to count.
pub(super) struct DialAttempt {
    node: NodeId,
    conn_guard: Option<ConnGuard>,
    pool: Arc<ServicePool>,
    shared: Arc<ProxyShared>,
    started: Instant,
    /// Until it is awaited.
    connecting: Option<io::Result<PendingConnect>>,
    ended: bool,
}

impl DialAttempt {
    pub(super) fn begin(
        conn_guard: ConnGuard,
        address: SocketAddr,
        hello: &[u8],
        pool: &Arc<ServicePool>,
        shared: &Arc<ProxyShared>,
    ) -> DialAttempt {
        DialAttempt {
            node: conn_guard.held.node,
            conn_guard: Some(conn_guard),
            pool: Arc::clone(pool),
            shared: Arc::clone(shared),
            started: Instant::now(),
            connecting: Some(PendingConnect::begin(address, hello)),
            ended: false,
        }
    }

    /// The upstream, if it is connected already, and how much was sent to it: then no timer is set and nothing is
    /// raced.
    fn at_once(&mut self) -> Option<(Upstream, usize)> {
        match self.connecting.take() {
            Some(Ok(PendingConnect::Done(stream, sent))) => Some((self.connected(stream)?, sent)),
            other => {
                self.connecting = other;
                None
            }
        }
    }

    pub(super) async fn run(mut self) -> Result<Upstream, Termination> {
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

    fn connected(&mut self, stream: Stream) -> Option<Upstream> {
        self.ended = true;
        let took = self.started.elapsed();
        let conn_guard = self.conn_guard.take()?;
        conn_guard.held.counts.dials.record(took);
        if conn_guard.held.is_news(self.shared.life.now()) {
            self.report(Evidence::Connected { took });
        }
        Some(Upstream { stream, conn_guard })
    }

    fn failed(&mut self, error: &io::Error) -> Termination {
        self.ended = true;
        match evidence_of(error) {
            Some(evidence) => {
                self.count(|counts| &counts.errors);
                self.report_failure(evidence);
                let refused = evidence == Evidence::Refused;
                if refused { Termination::Server } else { Termination::ServerTimeout }
            }
            None => {
                self.shared.failed_locally(error);
                Termination::Resources
            }
        }
    }

    fn count(&self, what: impl Fn(&HeldCounts) -> &AtomicU64) {
        if let Some(conn_guard) = &self.conn_guard {
            what(&conn_guard.held.counts).fetch_add(1, Relaxed);
        }
    }

    /// Reports a failure of the backend; its next success is then reported too.
    fn report_failure(&self, evidence: Evidence) {
        if let Some(conn_guard) = &self.conn_guard {
            conn_guard.held.failure_reported();
        }
        self.report(evidence);
    }

    fn report(&self, evidence: Evidence) {
        let service = self.pool.service.clone();
        let _ = self.shared.evidence.try_send(EvidenceReport { node: self.node, service, evidence });
    }
}

impl Drop for DialAttempt {
    fn drop(&mut self) {
        if !self.ended && self.started.elapsed() >= VERDICT {
            self.report_failure(Evidence::Unanswered);
        }
    }
}

/// What a failed connect says about the backend; `None` when this machine is at fault.
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

impl ProxyShared {
    /// An accept or a dial failed through no fault of the peer.
    pub(super) fn failed_locally(&self, error: &io::Error) {
        if socket::is_starved(error) {
            self.out_of_descriptors();
        } else {
            tracing::debug!("accept or dial failed: {error}");
        }
    }

    /// There are none left for connections of clients.
    pub(super) fn out_of_descriptors(&self) {
        if self.starved.raise(self.life.now()) {
            tracing::warn!(
                "out of file descriptors for more than {} connections: new ones are reset, open ones continue; raise \
                 LimitNOFILE or lower maxconn",
                self.most
            );
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
