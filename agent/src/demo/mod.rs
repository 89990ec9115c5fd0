//! `agent demo`: a whole cluster on one machine, to watch and to break.
//!
//! Five agents and three stand-ins for apiservers run in real processes of their own. This process starts
//! them, is their client, shows what happens and carries out commands. One loop owns all of that; requests,
//! the held connection, the query of the worker's agent and the reading of keys are tasks that only report to
//! it. Dropping the loop's future anywhere kills the processes, removes their directory and restores the
//! terminal.

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
use client::{Client, ClientReport};
use cluster::{DemoCluster, THROUGH};
pub(crate) use command::Script;
use command::{BadCommand, DemoCommand, DemoKey, MASTERS};
use process::ProcessState;
pub(crate) use process::die_with_parent;
use render::{DemoScreen, MasterRow};

use crate::screen::{self, Screen};

/// Options of the demo.
#[derive(Debug, Default)]
pub(crate) struct Options {
    /// End after this long; `None`: run until stopped.
    pub(crate) time: Option<Duration>,
    /// Commands with their times.
    pub(crate) script: Script,
}

/// Time between two frames.
const FRAME: Duration = Duration::from_millis(250);

/// Longest wait until the worker sees all masters ready.
const READY_WITHIN: Duration = Duration::from_secs(30);

/// Concurrent requests: one every 100 ms, each for 2 s at most, and room for a stall.
const MAX_REQUESTS: usize = 40;

/// Reports queued for the loop: as many as all requests together can send.
const TOLD: usize = 64;

/// Keys or lines typed ahead.
const INPUT: usize = 16;

/// Runs the demo until it is stopped, its time is over or a signal arrives. For a runtime of one thread: its
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
    let summary = run_demo(options, ended).await?;
    line(&summary);
    Ok(())
}

/// The whole demo; returns its summary.
async fn run_demo(options: Options, ended: impl Future<Output = ()>) -> anyhow::Result<String> {
    tokio::pin!(ended);
    let program = std::env::current_exe().context("can't find this program's own file")?;
    let mut cluster = DemoCluster::prepare(&program)?;
    let (seen_in, mut seen) = tokio::sync::watch::channel(None);
    let mut tasks = JoinSet::new();
    tasks.spawn(watch::watch_masters(cluster.nodes[THROUGH].runtime_dir.clone(), seen_in));
    tokio::select! {
        () = &mut ended => return Ok("ended before it served".to_owned()),
        up = wait_until_ready(&mut cluster, &mut seen) => up?,
    }
    let (told_in, told) = mpsc::channel(TOLD);
    let client = Client::new(cluster.proxy(), &cluster.ca, told_in)?;
    tasks.spawn(client.clone().hold());
    let screen = Screen::take()?;
    let input = read_input(screen.is_some());
    let scene = DemoLoop {
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
async fn wait_until_ready(
    cluster: &mut DemoCluster,
    seen: &mut tokio::sync::watch::Receiver<Option<Vec<watch::WatchedMaster>>>,
) -> anyhow::Result<()> {
    let begun = Instant::now();
    cluster.start(|text| line(&text)).await?;
    let all_ready = seen.wait_for(|seen| {
        let ready =
            |seen: &Vec<watch::WatchedMaster>| seen.iter().filter(|seen| seen.state.is_good()).count();
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
            let trouble = cluster
                .startup_failure()
                .unwrap_or_else(|| "every process is running; this is a bug".to_owned());
            bail!("{worker} did not see {MASTERS} masters within {} s\n{trouble}", READY_WITHIN.as_secs());
        }
    }
}

/// User input.
enum UserInput {
    Key(DemoKey),
    Line(Result<DemoCommand, BadCommand>),
}

/// Reads keys or lines on a thread of its own, which nothing waits for: a read can't be cancelled.
fn read_input(keys: bool) -> mpsc::Receiver<UserInput> {
    let (typed, input) = mpsc::channel(INPUT);
    std::thread::spawn(move || {
        if !keys {
            for line in
                std::io::stdin().lock().lines().map_while(Result::ok).filter(|line| !line.trim().is_empty())
            {
                if typed.blocking_send(UserInput::Line(command::parse(&line))).is_err() {
                    return;
                }
            }
            return;
        }
        screen::read_keys(|byte| {
            DemoKey::from_byte(byte).is_none_or(|key| typed.blocking_send(UserInput::Key(key)).is_ok())
        });
    });
    input
}

/// The loop and all that it owns. The screen is declared before the cluster, so that the terminal is restored
/// first.
struct DemoLoop {
    screen: Option<Screen>,
    tasks: JoinSet<()>,
    cluster: DemoCluster,
    client: Client,
    board: Board,
    seen: tokio::sync::watch::Receiver<Option<Vec<watch::WatchedMaster>>>,
    rows: Vec<MasterRow>,
    chosen: usize,
    number: u64,
}

impl DemoLoop {
    async fn run(
        mut self,
        options: Options,
        mut told: mpsc::Receiver<ClientReport>,
        mut input: mpsc::Receiver<UserInput>,
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
                () = at(step_at) => steps.next().is_some_and(|(_, command)| self.run_command(command)),
                _ = requests.tick() => { self.request(); false }
                Some(told) = told.recv() => { self.board.client_reported(Instant::now(), told); false }
                Ok(()) = self.seen.changed() => { self.look(); false }
                Some(input) = input.recv() => self.take(input),
                // Finished requests are reaped; their reports came by the queue.
                Some(_) = self.tasks.join_next() => false,
                _ = frames.tick() => { self.frame(); false }
            };
            self.print_news();
            if quit {
                return self.board.summary();
            }
        }
    }

    fn request(&mut self) {
        if self.tasks.len() >= MAX_REQUESTS {
            return;
        }
        self.board.request_started(Instant::now(), self.number);
        self.tasks.spawn(self.client.clone().request(self.number));
        self.number += 1;
    }

    fn look(&mut self) {
        let seen = self.seen.borrow_and_update().clone();
        let who = self.cluster.nodes[THROUGH].name;
        self.board.agent_reported(Instant::now(), who, seen);
    }

    /// Handles a key or a line; true when the demo ends.
    fn take(&mut self, input: UserInput) -> bool {
        let quit = match input {
            UserInput::Key(DemoKey::Choose(master)) => {
                self.chosen = master;
                false
            }
            UserInput::Key(DemoKey::Do(act)) => self.run_command(DemoCommand::Do(act, self.chosen)),
            UserInput::Key(DemoKey::Quit) => true,
            UserInput::Line(Ok(command)) => self.run_command(command),
            UserInput::Line(Err(error)) => {
                line(&error.to_string());
                false
            }
        };
        self.frame();
        quit
    }

    fn run_command(&mut self, command: DemoCommand) -> bool {
        match command {
            DemoCommand::Do(act, master) => {
                let done = self.cluster.act(act, master);
                self.board.record(Instant::now(), done);
            }
            DemoCommand::Status => {
                self.reap();
                // At full height, without its events: those were printed as they came.
                let mut lines = self.picture().lines(80, usize::MAX);
                lines.truncate(lines.len().saturating_sub(self.board.events.len()));
                line(render::plain(&lines).trim_end());
            }
            DemoCommand::Quit => return true,
        }
        false
    }

    /// Checks the processes, and draws.
    fn frame(&mut self) {
        self.reap();
        let Some(screen) = &self.screen else { return };
        let (columns, rows) = screen.size();
        // A terminal that has gone ends the demo by SIGHUP.
        let lines = self.picture().lines(columns, rows);
        let lines: Vec<String> = lines.iter().map(|line| render::painted(line, screen.colours())).collect();
        let _ = screen.draw(lines.iter().map(String::as_str));
    }

    /// Finds processes that have ended; an unexpected exit is an event.
    fn reap(&mut self) {
        let mut rows = Vec::new();
        for node in &mut self.cluster.nodes {
            let (agent, apiserver) = node.states();
            let failed = [agent, apiserver].contains(&Some(ProcessState::Failed));
            if failed && !std::mem::replace(&mut node.failure_reported, true) {
                let words = node.last_output();
                let last = words.lines().last().unwrap_or_default();
                self.board
                    .record(Instant::now(), format!("{}: a process exited unexpectedly{last}", node.name));
            }
            if let (Some(agent), Some(apiserver)) = (agent, apiserver) {
                rows.push(MasterRow { name: node.name, apiserver, agent });
            }
        }
        self.rows = rows;
    }

    fn picture(&self) -> DemoScreen<'_> {
        DemoScreen {
            rows: &self.rows,
            chosen: self.screen.as_ref().map(|_| self.chosen),
            board: &self.board,
            through: self.cluster.nodes[THROUGH].name,
            proxy: self.cluster.proxy(),
            now: Instant::now(),
        }
    }

    /// Prints new events when there is no screen.
    fn print_news(&mut self) {
        if self.screen.is_none() {
            for event in self.board.new_events() {
                line(&event.to_string());
            }
        }
    }
}

/// Waits until then; forever if `None`.
async fn at(then: Option<tokio::time::Instant>) {
    match then {
        Some(then) => sleep_until(then).await,
        None => std::future::pending().await,
    }
}

/// One line on stdout. When nobody reads it any more, the demo runs until it is stopped.
fn line(text: &str) {
    let _ = writeln!(std::io::stdout().lock(), "{text}");
}
