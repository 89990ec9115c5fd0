//! `agent`: highly available Kubernetes masters without a load balancer.

mod app;
mod check;
mod cli;
mod control;
mod demo;
mod events;
mod gossip;
mod lifecycle;
mod link;
mod log;
mod membership;
mod net;
mod proxy;
mod pulse;
mod reach;
mod screen;
mod state;
#[cfg(test)]
mod testing;
mod vip;
mod watchdog;

fn main() -> std::process::ExitCode {
    demo::die_with_parent();
    cli::main(std::env::args_os())
}
