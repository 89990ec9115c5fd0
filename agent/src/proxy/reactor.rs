//! The proxy's own view of epoll, one for each thread that serves clients.
//!
//! ```text
//!   a socket is read or written until it would block ──► registered, once, edge-triggered ──► its task sleeps
//!          ▲                                                                                       │
//!          └──────────────── event: the bits of its readiness are set, its task is woken ◄─────────┘
//! ```
//!
//! Tokio registers a socket when it is made and takes it out before it is closed, which for a connection that lives
//! for a millisecond is a fifth of all system calls. Here a socket is registered when a task first has to wait for it,
//! and the kernel takes it out when it is closed.
//!
//! Everything may be called from every thread; a thread without a reactor of its own, as in tests, uses one that all
//! such threads share. Stopping anywhere is safe: an event for a socket that is gone is ignored.

use std::cell::RefCell;
use std::collections::{BTreeMap, VecDeque};
use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::sync::{Arc, Mutex, Weak};
use std::task::{Context, Poll, Wake, Waker};
use std::time::{Duration, Instant};

use rustix::event::epoll::{self, EventData, EventFlags};
use rustix::event::{EventfdFlags, Timespec, eventfd};

use super::lock;

/// Events taken at a time: enough for a burst, and 3 kB of stack.
const EVENTS: usize = 256;

/// What the bell's events carry; sockets have lower keys.
const BELL: u64 = u64::MAX;

/// How old a connection to a backend is when it gets the options that only matter to one that lives; up to twice as
/// old, as the connections of half that time get theirs together.
const YOUNG: Duration = Duration::from_millis(200);

/// Pause after a wait that failed.
pub(super) const AFTER_ERROR: Duration = Duration::from_millis(100);

thread_local! {
    static OWN: RefCell<Option<Arc<Reactor>>> = const { RefCell::new(None) };
}

/// What a reactor tells of events.
pub(super) trait Watched: Send + Sync {
    /// An event has come.
    fn happened(&self, flags: EventFlags);

    /// It has lived for a while.
    fn has_grown(&self);

    /// Its socket.
    fn descriptor(&self) -> BorrowedFd<'_>;
}

/// An epoll set, and what its thread waits for besides.
pub(super) struct Reactor {
    epoll: OwnedFd,
    /// Ends a wait from another thread.
    bell: OwnedFd,
    /// Something is to be done before the next wait.
    rung: AtomicBool,
    /// The thread waits, or is about to.
    waits: AtomicBool,
    sources: Mutex<Sources>,
    timers: Mutex<Timers>,
    young: Mutex<VecDeque<(Instant, Weak<dyn Watched>)>>,
}

/// The registered sockets by key. A key is a place and how often the place was used: an event that comes late never
/// means another socket.
#[derive(Default)]
struct Sources {
    places: Vec<(u32, Option<Arc<dyn Watched>>)>,
    free: Vec<u32>,
}

#[derive(Default)]
struct Timers {
    next: u64,
    by_time: BTreeMap<(Instant, u64), Waker>,
}

impl Sources {
    fn insert(&mut self, source: Arc<dyn Watched>) -> u64 {
        let place = self.free.pop().unwrap_or_else(|| {
            self.places.push((0, None));
            u32::try_from(self.places.len() - 1).unwrap_or(u32::MAX)
        });
        let Some((used, entry)) = self.places.get_mut(place as usize) else { return BELL };
        *used = used.wrapping_add(1) & (u32::MAX >> 1); // every key stays below the bell's
        *entry = Some(source);
        u64::from(*used) << 32 | u64::from(place)
    }

    fn get(&self, key: u64) -> Option<&Arc<dyn Watched>> {
        let (used, entry) = self.places.get(key as u32 as usize)?;
        entry.as_ref().filter(|_| u64::from(*used) == key >> 32)
    }

    fn remove(&mut self, key: u64) -> Option<Arc<dyn Watched>> {
        let place = key as u32;
        let (used, entry) = self.places.get_mut(place as usize)?;
        let source = if u64::from(*used) == key >> 32 { entry.take() } else { None };
        if source.is_some() {
            self.free.push(place);
        }
        source
    }
}

impl Reactor {
    pub(super) fn new() -> io::Result<Arc<Reactor>> {
        let reactor = Reactor {
            epoll: epoll::create(epoll::CreateFlags::CLOEXEC)?,
            bell: eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?,
            rung: AtomicBool::new(false),
            waits: AtomicBool::new(false),
            sources: Mutex::default(),
            timers: Mutex::default(),
            young: Mutex::default(),
        };
        // Each ring is an edge: it need not be read.
        let flags = EventFlags::IN | EventFlags::ET;
        epoll::add(&reactor.epoll, &reactor.bell, EventData::new_u64(BELL), flags)?;
        Ok(Arc::new(reactor))
    }

    /// Makes this the calling thread's.
    pub(super) fn enter(self: &Arc<Reactor>) {
        OWN.set(Some(Arc::clone(self)));
    }

    /// Makes it nobody's again: tests may share a thread.
    #[cfg(test)]
    pub(super) fn leave() {
        OWN.set(None);
    }

    /// The calling thread's own.
    pub(super) fn own() -> Option<Arc<Reactor>> {
        OWN.with_borrow(Option::clone)
    }

    fn is_own(&self) -> bool {
        OWN.with_borrow(|own| own.as_ref().is_some_and(|own| std::ptr::eq(Arc::as_ptr(own), self)))
    }

    /// Registers a socket; its events are those of `flags` from now on, first those that are there already.
    pub(super) fn add(&self, source: Arc<dyn Watched>, flags: EventFlags) -> io::Result<u64> {
        let key = lock(&self.sources).insert(Arc::clone(&source));
        if let Err(error) = epoll::add(&self.epoll, source.descriptor(), EventData::new_u64(key), flags) {
            self.remove(key);
            return Err(error.into());
        }
        Ok(key)
    }

    /// Changes the events of a registered socket.
    pub(super) fn change(&self, source: &dyn Watched, key: u64, flags: EventFlags) -> io::Result<()> {
        Ok(epoll::modify(&self.epoll, source.descriptor(), EventData::new_u64(key), flags)?)
    }

    /// Forgets a socket; the kernel does when it is closed.
    pub(super) fn remove(&self, key: u64) {
        let removed = lock(&self.sources).remove(key);
        drop(removed); // not under the lock: it may be the last handle
    }

    /// Takes a socket out of the kernel's set: one whose events repeat until they are served.
    pub(super) fn silence(&self, source: &dyn Watched) {
        let _ = epoll::delete(&self.epoll, source.descriptor());
    }

    /// Has the source's late options set when it has lived for a while.
    pub(super) fn has_young(&self, source: Weak<dyn Watched>) {
        let mut young = lock(&self.young);
        let is_first = young.is_empty();
        young.push_back((Instant::now() + YOUNG, source));
        drop(young);
        if is_first && !self.is_own() {
            self.ring();
        }
    }

    /// Something was woken, or a timer was set.
    fn ring(&self) {
        if !self.rung.swap(true, SeqCst) && self.waits.load(SeqCst) {
            // Full only after 2^64 rings.
            let _ = rustix::io::write(&self.bell, &1_u64.to_ne_bytes());
        }
    }

    /// What happens from here on ends the next wait.
    pub(super) fn begin(&self) {
        self.rung.store(false, SeqCst);
    }

    /// Waits for events, unless something has been woken since [`Reactor::begin`], and wakes who waits for them.
    pub(super) fn turn(&self) -> io::Result<()> {
        let next = self.next();
        self.waits.store(true, SeqCst);
        let wait = match (self.rung.load(SeqCst), next) {
            (true, _) => Some(Duration::ZERO),
            (false, next) => next.map(|next| next.saturating_duration_since(Instant::now())),
        };
        // In whole milliseconds, rounded up: a shorter one would end before its timer.
        let wait =
            wait.map(|wait| wait.as_micros().div_ceil(1_000).try_into().unwrap_or(i64::MAX / 1_000_000));
        let wait = wait.map(|ms: i64| Timespec { tv_sec: ms / 1_000, tv_nsec: ms % 1_000 * 1_000_000 });
        let mut events = [MaybeUninit::uninit(); EVENTS];
        let found = epoll::wait(&self.epoll, &mut events, wait.as_ref());
        self.waits.store(false, SeqCst);
        match found {
            Ok((events, _)) => events.iter().for_each(|event| self.happened(event.data.u64(), event.flags)),
            Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
        if next.is_some() {
            self.due(Instant::now());
        }
        Ok(())
    }

    fn happened(&self, key: u64, flags: EventFlags) {
        if key == BELL {
            return;
        }
        // Not under the lock: waking may end a task, and that close sockets.
        let source = lock(&self.sources).get(key).cloned();
        if let Some(source) = source {
            source.happened(flags);
        }
    }

    /// When something is due by time.
    fn next(&self) -> Option<Instant> {
        let timer = lock(&self.timers).by_time.first_key_value().map(|((at, _), _)| *at);
        let young = lock(&self.young).front().map(|(at, _)| *at);
        [timer, young].into_iter().flatten().min()
    }

    fn due(&self, now: Instant) {
        loop {
            let mut timers = lock(&self.timers);
            let Some(first) = timers.by_time.first_entry().filter(|first| first.key().0 <= now) else {
                break;
            };
            let waker = first.remove();
            drop(timers);
            waker.wake();
        }
        let mut young = lock(&self.young);
        if young.front().is_none_or(|(at, _)| *at > now) {
            return;
        }
        // And those that will be soon: one turn for many.
        let grown = young.partition_point(|(at, _)| *at <= now + YOUNG / 2);
        let grown: Vec<_> = young.drain(..grown).collect();
        drop(young);
        grown.iter().filter_map(|(_, source)| source.upgrade()).for_each(|source| source.has_grown());
    }
}

impl Wake for Reactor {
    fn wake(self: Arc<Reactor>) {
        self.ring();
    }

    fn wake_by_ref(self: &Arc<Reactor>) {
        self.ring();
    }
}

/// A timer: of the thread's reactor, or else of tokio's runtime.
pub(super) enum Timer {
    Own(OwnTimer),
    Tokio(Pin<Box<tokio::time::Sleep>>),
}

impl Timer {
    pub(super) fn new(within: Duration) -> Timer {
        Timer::at(Instant::now() + within)
    }

    pub(super) fn at(at: Instant) -> Timer {
        match Reactor::own() {
            Some(reactor) => Timer::Own(OwnTimer { reactor, at, key: None }),
            None => Timer::Tokio(Box::pin(tokio::time::sleep_until(at.into()))),
        }
    }

    /// Sets it anew.
    pub(super) fn reset(&mut self, within: Duration) {
        let at = Instant::now() + within;
        match self {
            Timer::Own(timer) => {
                timer.forget();
                timer.at = at;
            }
            Timer::Tokio(sleep) => sleep.as_mut().reset(at.into()),
        }
    }
}

impl Future for Timer {
    type Output = ();

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        match self.get_mut() {
            Timer::Own(timer) => timer.poll(cx),
            Timer::Tokio(sleep) => sleep.as_mut().poll(cx),
        }
    }
}

/// A timer of a reactor, which knows it while it is waited for.
pub(super) struct OwnTimer {
    reactor: Arc<Reactor>,
    at: Instant,
    key: Option<u64>,
}

impl OwnTimer {
    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        if Instant::now() >= self.at {
            self.forget();
            return Poll::Ready(());
        }
        let mut timers = lock(&self.reactor.timers);
        let key = *self.key.get_or_insert_with(|| {
            timers.next += 1;
            timers.next
        });
        timers.by_time.insert((self.at, key), cx.waker().clone());
        let is_first = timers.by_time.first_key_value().is_some_and(|((_, first), _)| *first == key);
        drop(timers);
        if is_first && !self.reactor.is_own() {
            self.reactor.ring();
        }
        Poll::Pending
    }

    fn forget(&mut self) {
        if let Some(key) = self.key.take() {
            lock(&self.reactor.timers).by_time.remove(&(self.at, key));
        }
    }
}

impl Drop for OwnTimer {
    fn drop(&mut self) {
        self.forget();
    }
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsFd;
    use std::os::unix::net::UnixStream;

    use futures_util::poll;

    use super::super::stream::Stream;
    use super::*;

    #[test]
    fn an_event_that_comes_late_means_no_other_socket() {
        let reactor = Reactor::new().unwrap();
        struct Silent(OwnedFd);
        impl Watched for Silent {
            fn happened(&self, _: EventFlags) {
                panic!("its event");
            }
            fn has_grown(&self) {}
            fn descriptor(&self) -> BorrowedFd<'_> {
                self.0.as_fd()
            }
        }
        let (first, second) = UnixStream::pair().unwrap();
        let [first, second] = [first, second].map(|one| Arc::new(Silent(one.into())));
        let late = reactor.add(first, EventFlags::IN).unwrap();
        reactor.remove(late);
        let key = reactor.add(Arc::clone(&second) as Arc<dyn Watched>, EventFlags::IN).unwrap();
        assert_eq!(late as u32, key as u32, "the place is used again");
        reactor.happened(late, EventFlags::IN);
        assert!(lock(&reactor.sources).get(late).is_none() && lock(&reactor.sources).get(key).is_some());
        reactor.remove(late);
        assert!(lock(&reactor.sources).get(key).is_some(), "nor does a late removal");
        reactor.remove(key);
        assert_eq!(Arc::strong_count(&second), 1);
    }

    #[tokio::test]
    async fn timers_are_due_in_their_order_and_forgotten_when_dropped() {
        let reactor = Reactor::new().unwrap();
        reactor.enter();
        let ms = Duration::from_millis;
        let (mut soon, mut later) = (Timer::new(ms(20)), Timer::new(ms(40)));
        let mut dropped = Timer::new(ms(1));
        assert!(
            poll!(&mut later).is_pending()
                && poll!(&mut soon).is_pending()
                && poll!(&mut dropped).is_pending()
        );
        drop(dropped);
        let begin = Instant::now();
        reactor.begin();
        reactor.turn().unwrap();
        assert!(begin.elapsed() >= ms(15), "the dropped one ended the wait");
        assert!(poll!(&mut soon).is_ready() && poll!(&mut later).is_pending());
        later.reset(ms(1_000_000));
        assert!(poll!(&mut later).is_pending());
        assert_eq!(lock(&reactor.timers).by_time.len(), 1);
        drop(later);
        assert!(reactor.next().is_none());
        Reactor::leave();
    }

    #[test]
    fn a_wait_ends_when_another_thread_wakes_it_or_a_socket_has_something() {
        let reactor = Reactor::new().unwrap();
        let waits = |then: &(dyn Fn() + Sync)| {
            reactor.begin();
            std::thread::scope(|scope| {
                scope.spawn(|| {
                    while !reactor.waits.load(SeqCst) {
                        std::thread::yield_now();
                    }
                    then();
                });
                reactor.turn().unwrap();
            });
        };
        waits(&|| Waker::from(Arc::clone(&reactor)).wake());
        waits(&|| Waker::from(Arc::clone(&reactor)).wake());
        reactor.enter();
        let (one, other) = UnixStream::pair().unwrap();
        one.set_nonblocking(true).unwrap();
        let stream = Stream::open(one);
        assert_eq!(stream.read_now(&mut [0; 8]).unwrap(), None);
        let waker = Waker::from(Arc::clone(&reactor));
        assert!(stream.poll_read_ready(&mut Context::from_waker(&waker)).is_pending());
        waits(&|| assert_eq!(rustix::io::write(&other, b"x").unwrap(), 1));
        assert!(stream.poll_read_ready(&mut Context::from_waker(&waker)).is_ready());
        Reactor::leave();
    }
}
