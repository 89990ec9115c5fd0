//! `agent demo`: a whole cluster on one machine, to look at and to break.
//!
//! Everything real runs in processes of its own: five agents, and three stand-ins for apiservers. This
//! process starts them, is their client, shows what happens and does what it is told. One loop owns all of
//! that; requests, the held connection, the question to the worker's agent and the reading of keys are tasks
//! that only tell it things. Dropping the loop's future anywhere kills the processes, removes their
//! directory and gives the terminal back.

mod board;
mod client;
mod cluster;
mod command;
mod pki;
mod place;
mod process;
mod render;
pub(crate) mod standin;
mod watch;

use std::io::{BufRead, Write};
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio::time::{MissedTickBehavior, interval, sleep_until};

use board::Board;
use client::{Client, Told};
use cluster::{Cluster, THROUGH};
pub(crate) use command::Script;
use command::{BadCommand, Command, Key, MASTERS};
use process::State;
pub(crate) use process::die_with_parent;
use render::{Picture, Row};

use crate::screen::{self, Screen};

/// What the user wants.
#[derive(Debug, Default)]
pub(crate) struct Options {
    /// End by itself after this long; none: when told to.
    pub(crate) time: Option<Duration>,
    /// What to do when.
    pub(crate) script: Script,
}

/// Time between two pictures.
const FRAME: Duration = Duration::from_millis(250);

/// Longest wait until the worker sees all masters ready.
const READY_WITHIN: Duration = Duration::from_secs(30);

/// Requests under way at once: one every 100 ms, each for 2 s at most, and room for a stall.
const MAX_REQUESTS: usize = 40;

/// What tasks have told and the loop has not heard yet: as much as all requests together can tell.
const TOLD: usize = 64;

/// Keys or lines typed ahead.
const INPUT: usize = 16;

/// Runs the demo until it is told to end, its time is over or a signal comes. For a runtime of one thread: its
/// children die with the thread that has started them.
pub(crate) async fn run(options: Options) -> anyhow::Result<()> {
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut terminate = signal(SignalKind::terminate())?;
    let mut hangup = signal(SignalKind::hangup())?;
    let ended = async {
        tokio::select! {
            _ = interrupt.recv() => {}
            _ = terminate.recv() => {}
            _ = hangup.recv() => {}
        }
    };
    let summary = play(options, ended).await?;
    line(&summary);
    Ok(())
}

/// The whole demo; returns its summary.
async fn play(options: Options, ended: impl Future<Output = ()>) -> anyhow::Result<String> {
    tokio::pin!(ended);
    let program = std::env::current_exe().context("can't find this program's own file")?;
    let mut cluster = Cluster::prepare(&program)?;
    let (seen_in, mut seen) = tokio::sync::watch::channel(None);
    let mut tasks = JoinSet::new();
    tasks.spawn(watch::follow(cluster.nodes[THROUGH].runtime_dir.clone(), seen_in));
    tokio::select! {
        () = &mut ended => return Ok("ended before it served".to_owned()),
        up = come_up(&mut cluster, &mut seen) => up?,
    }
    let (told_in, told) = mpsc::channel(TOLD);
    let client = Client::new(cluster.proxy(), &cluster.ca, told_in)?;
    tasks.spawn(client.clone().hold());
    let screen = Screen::take()?;
    let input = read_input(screen.is_some());
    let scene = Scene {
        rows: Vec::new(),
        board: Board::new(Instant::now()),
        chosen: 0,
        cluster,
        client,
        tasks,
        seen,
        screen,
        number: 0,
    };
    Ok(scene.run(options, told, input, ended).await)
}

/// Starts the cluster and waits until the worker sees all its masters ready.
async fn come_up(
    cluster: &mut Cluster,
    seen: &mut tokio::sync::watch::Receiver<Option<Vec<watch::Seen>>>,
) -> anyhow::Result<()> {
    let begun = Instant::now();
    cluster.start(|text| line(&text)).await?;
    let all_ready = seen.wait_for(|seen| {
        let ready = |seen: &Vec<watch::Seen>| seen.iter().filter(|seen| seen.state.is_good()).count();
        seen.as_ref().map(ready) == Some(MASTERS)
    });
    let worker = cluster.nodes[THROUGH].name;
    match tokio::time::timeout(READY_WITHIN, all_ready).await {
        Ok(Ok(_)) => {
            line(&format!(
                "{worker} serves {MASTERS} masters, {:.1} s after the start",
                begun.elapsed().as_secs_f64()
            ));
            Ok(())
        }
        _ => {
            let trouble = cluster.trouble().unwrap_or_else(|| "every process is running; this is a bug".to_owned());
            bail!("{worker} did not see {MASTERS} masters within {} s\n{trouble}", READY_WITHIN.as_secs());
        }
    }
}

/// Something that the user typed.
enum Input {
    Key(Key),
    Line(Result<Command, BadCommand>),
}

/// Reads keys or lines on a thread of its own, which nothing waits for: a read can't be called off.
fn read_input(keys: bool) -> mpsc::Receiver<Input> {
    let (typed, input) = mpsc::channel(INPUT);
    std::thread::spawn(move || {
        if !keys {
            for line in
                std::io::stdin().lock().lines().map_while(Result::ok).filter(|line| !line.trim().is_empty())
            {
                if typed.blocking_send(Input::Line(command::parse(&line))).is_err() {
                    return;
                }
            }
            return;
        }
        screen::read_keys(|byte| {
            Key::from_byte(byte).is_none_or(|key| typed.blocking_send(Input::Key(key)).is_ok())
        });
    });
    input
}

/// The loop and all that it owns. The screen stands before the cluster, so that the terminal is given back
/// first.
struct Scene {
    screen: Option<Screen>,
    tasks: JoinSet<()>,
    cluster: Cluster,
    client: Client,
    board: Board,
    seen: tokio::sync::watch::Receiver<Option<Vec<watch::Seen>>>,
    rows: Vec<Row>,
    chosen: usize,
    number: u64,
}

impl Scene {
    async fn run(
        mut self,
        options: Options,
        mut told: mpsc::Receiver<Told>,
        mut input: mpsc::Receiver<Input>,
        mut ended: std::pin::Pin<&mut impl Future<Output = ()>>,
    ) -> String {
        let begun = tokio::time::Instant::now();
        let mut steps = options.script.0.into_iter().peekable();
        let mut requests = interval(client::EVERY);
        requests.set_missed_tick_behavior(MissedTickBehavior::Skip);
        let mut frames = interval(FRAME);
        frames.set_missed_tick_behavior(MissedTickBehavior::Skip);
        if self.screen.is_none() {
            line(&format!("commands, one per line: {}", command::LINES));
        }
        self.board.seen = self.seen.borrow_and_update().clone();
        loop {
            let step_at = steps.peek().map(|(at, _)| begun + *at);
            let over_at = options.time.map(|time| begun + time);
            let quit = tokio::select! {
                () = &mut ended => true,
                () = at(over_at) => true,
                () = at(step_at) => steps.next().is_some_and(|(_, command)| self.obey(command)),
                _ = requests.tick() => { self.request(); false }
                Some(told) = told.recv() => { self.board.told(Instant::now(), told); false }
                Ok(()) = self.seen.changed() => { self.look(); false }
                Some(input) = input.recv() => self.take(input),
                // Finished requests are let go of; their word came by the queue.
                Some(_) = self.tasks.join_next() => false,
                _ = frames.tick() => { self.frame(); false }
            };
            self.tell();
            if quit {
                return self.board.summary();
            }
        }
    }

    fn request(&mut self) {
        if self.tasks.len() >= MAX_REQUESTS {
            return;
        }
        self.board.asked(Instant::now(), self.number);
        self.tasks.spawn(self.client.clone().request(self.number));
        self.number += 1;
    }

    fn look(&mut self) {
        let seen = self.seen.borrow_and_update().clone();
        let who = self.cluster.nodes[THROUGH].name;
        self.board.sees(Instant::now(), who, seen);
    }

    /// Takes a key or a line; true when it says that the demo ends.
    fn take(&mut self, input: Input) -> bool {
        let quit = match input {
            Input::Key(Key::Choose(master)) => {
                self.chosen = master;
                false
            }
            Input::Key(Key::Do(act)) => self.obey(Command::Do(act, self.chosen)),
            Input::Key(Key::Quit) => true,
            Input::Line(Ok(command)) => self.obey(command),
            Input::Line(Err(error)) => {
                line(&error.to_string());
                false
            }
        };
        self.frame();
        quit
    }

    fn obey(&mut self, command: Command) -> bool {
        match command {
            Command::Do(act, master) => {
                let done = self.cluster.act(act, master);
                self.board.say(Instant::now(), done);
            }
            Command::Status => {
                self.reap();
                // As high as it is, without its events: those were printed as they came.
                let mut lines = self.picture().lines(80, usize::MAX);
                lines.truncate(lines.len().saturating_sub(self.board.events.len()));
                line(render::plain(&lines).trim_end());
            }
            Command::Quit => return true,
        }
        false
    }

    /// Looks after the processes, and draws.
    fn frame(&mut self) {
        self.reap();
        let Some(screen) = &self.screen else { return };
        let (columns, rows) = screen.size();
        // A terminal that has gone ends the demo by SIGHUP.
        let lines = self.picture().lines(columns, rows);
        let lines: Vec<String> = lines.iter().map(|line| render::painted(line, screen.colours())).collect();
        let _ = screen.draw(lines.iter().map(String::as_str));
    }

    /// Sees which processes have ended; one that nobody ended is an event.
    fn reap(&mut self) {
        let mut rows = Vec::new();
        for node in &mut self.cluster.nodes {
            let (agent, apiserver) = node.states();
            let failed = [agent, apiserver].contains(&Some(State::Failed));
            if failed && !std::mem::replace(&mut node.failure_told, true) {
                let words = node.last_words();
                let last = words.lines().last().unwrap_or_default();
                self.board.say(Instant::now(), format!("{}: a process exited unexpectedly{last}", node.name));
            }
            if let (Some(agent), Some(apiserver)) = (agent, apiserver) {
                rows.push(Row { name: node.name, apiserver, agent });
            }
        }
        self.rows = rows;
    }

    fn picture(&self) -> Picture<'_> {
        Picture {
            rows: &self.rows,
            chosen: self.screen.as_ref().map(|_| self.chosen),
            board: &self.board,
            through: self.cluster.nodes[THROUGH].name,
            proxy: self.cluster.proxy(),
            now: Instant::now(),
        }
    }

    /// Prints what is new where there is no screen.
    fn tell(&mut self) {
        if self.screen.is_none() {
            for event in self.board.news() {
                line(&event.to_string());
            }
        }
    }
}

/// Waits until then; for ever where there is no then.
async fn at(then: Option<tokio::time::Instant>) {
    match then {
        Some(then) => sleep_until(then).await,
        None => std::future::pending().await,
    }
}

/// One line on stdout. When nobody reads it any more, the demo goes on until it is told to end.
fn line(text: &str) {
    let _ = writeln!(std::io::stdout().lock(), "{text}");
}
