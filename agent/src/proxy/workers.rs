//! The threads that serve clients.
//!
//! A connection stays on the thread that accepted it: its two sockets are in one epoll set, and nothing that
//! happens to it wakes another thread. Each thread has its own listening socket for each address, and the
//! kernel spreads new clients over them; so no thread hands connections to others.
//!
//! A thread runs its tasks until all wait, and then its [`Reactor`]. It is inside tokio's runtime as far as that has
//! timers for what is not on the path of a client, and channels work everywhere.

use std::cell::RefCell;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::Relaxed};
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll, Waker};
use std::{io, mem, thread};

use futures_util::future::BoxFuture;
use futures_util::stream::{FuturesUnordered, StreamExt};
use tokio::runtime::Handle;
use tokio::sync::oneshot;
use tokio_util::task::TaskTracker;

use super::lock;
use super::reactor::Reactor;
use crate::lifecycle::Lifecycle;

/// Most threads: each handles some ten thousand connections per second, or more bytes than a network card.
const MOST: usize = 4;

/// Number of threads that serve clients, and of sockets that listen at one address.
pub(super) fn count() -> usize {
    thread::available_parallelism().map_or(1, usize::from).min(MOST)
}

type Task = BoxFuture<'static, ()>;

thread_local! {
    static OWN: RefCell<Option<Arc<Worker>>> = const { RefCell::new(None) };
}

/// A thread that serves clients.
struct Worker {
    reactor: Arc<Reactor>,
    /// Tasks that it has not begun yet.
    new: Mutex<Vec<Task>>,
    over: AtomicBool,
}

impl Worker {
    fn start(over: Task, runtime: Handle) -> io::Result<Arc<Worker>> {
        let worker = Arc::new(Worker {
            reactor: Reactor::new()?,
            new: Mutex::default(),
            over: AtomicBool::new(false),
        });
        let own = Arc::clone(&worker);
        worker.spawn(Box::pin(async move {
            over.await;
            own.over.store(true, Relaxed);
        }));
        let own = Arc::clone(&worker);
        let run = move || {
            let _in = runtime.enter();
            own.reactor.enter();
            OWN.set(Some(Arc::clone(&own)));
            own.run();
        };
        thread::Builder::new().name("proxy".to_owned()).spawn(run)?;
        Ok(worker)
    }

    fn spawn(&self, task: Task) {
        lock(&self.new).push(task);
        Waker::from(Arc::clone(&self.reactor)).wake();
    }

    fn run(&self) {
        let mut tasks = FuturesUnordered::new();
        let waker = Waker::from(Arc::clone(&self.reactor));
        let mut cx = Context::from_waker(&waker);
        while !self.over.load(Relaxed) {
            self.reactor.begin();
            loop {
                tasks.extend(mem::take(&mut *lock(&self.new)));
                // A task that panics ends alone.
                let turn = catch_unwind(AssertUnwindSafe(|| tasks.poll_next_unpin(&mut cx)));
                if !matches!(turn, Ok(Poll::Ready(Some(()))) | Err(_)) && lock(&self.new).is_empty() {
                    break;
                }
            }
            if let Err(error) = self.reactor.turn() {
                // Nothing else is known to make it fail than a kernel without memory.
                tracing::warn!("cannot wait for events of connections: {error}");
                thread::sleep(super::reactor::AFTER_ERROR);
            }
        }
    }
}

/// The calling thread's reactor, or the one that all threads without have in common, which has a thread to itself.
pub(super) fn current_reactor() -> io::Result<Arc<Reactor>> {
    static COMMON: Mutex<Option<Arc<Reactor>>> = Mutex::new(None);
    if let Some(own) = Reactor::own() {
        return Ok(own);
    }
    let mut common = lock(&COMMON);
    if let Some(reactor) = &*common {
        return Ok(Arc::clone(reactor));
    }
    let reactor = Reactor::new()?;
    turn_for_ever(Arc::clone(&reactor))?;
    *common = Some(Arc::clone(&reactor));
    Ok(reactor)
}

fn turn_for_ever(reactor: Arc<Reactor>) -> io::Result<()> {
    let turn = move || {
        loop {
            reactor.begin();
            if reactor.turn().is_err() {
                thread::sleep(super::reactor::AFTER_ERROR);
            }
        }
    };
    thread::Builder::new().name("proxy-events".to_owned()).spawn(turn).map(drop)
}

/// Runs a task on the calling thread, if that serves clients, or else on tokio's runtime.
pub(super) fn spawn_here(life: &Lifecycle, task: impl Future<Output = ()> + Send + 'static) {
    match OWN.with_borrow(Option::clone) {
        Some(worker) => worker.spawn(Box::pin(life.tracked(task))),
        None => life.spawn(task),
    }
}

/// What serves clients: threads, or the caller's runtime.
#[derive(Clone)]
pub(super) struct WorkerHandle(Option<Arc<Worker>>);

impl WorkerHandle {
    /// Runs a task there; what is returned ends when the task does.
    pub(super) fn spawn(
        &self,
        life: &Lifecycle,
        task: impl Future<Output = ()> + Send + 'static,
    ) -> oneshot::Receiver<()> {
        let (ended, wait) = oneshot::channel();
        let task = async move {
            task.await;
            drop(ended);
        };
        match &self.0 {
            Some(worker) => worker.spawn(Box::pin(life.tracked(task))),
            None => life.spawn(task),
        }
        wait
    }
}

/// The threads that serve; never empty.
pub(super) struct Workers {
    handles: Vec<WorkerHandle>,
    next: AtomicUsize,
}

impl Workers {
    /// Starts the threads. They end on shutdown once nothing is left in `open`. If none can be started, the
    /// caller's runtime serves.
    pub(super) fn start(life: &Lifecycle, open: &TaskTracker) -> Workers {
        let start = || {
            let (shutdown, open) = (life.shutdown.clone(), open.clone());
            let over = async move {
                shutdown.cancelled().await;
                open.close(); // not every order of events has had it closed
                open.wait().await;
            };
            Worker::start(Box::pin(over), Handle::current())
        };
        let mut handles = Vec::new();
        for _ in 0..count() {
            match start() {
                Ok(worker) => handles.push(WorkerHandle(Some(worker))),
                Err(error) => tracing::warn!("cannot start a proxy thread: {error}"),
            }
        }
        if handles.is_empty() {
            return Workers::here();
        }
        Workers { handles, next: AtomicUsize::new(0) }
    }

    /// No threads: the caller's runtime serves.
    pub(super) fn here() -> Workers {
        Workers { handles: vec![WorkerHandle(None)], next: AtomicUsize::new(0) }
    }

    /// The thread for the next listening socket.
    pub(super) fn next(&self) -> &WorkerHandle {
        let next = self.next.fetch_add(1, Relaxed) % self.handles.len();
        &self.handles[next]
    }
}
