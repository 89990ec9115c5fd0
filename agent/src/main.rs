//! `agent`: highly available Kubernetes masters without a load balancer.

#[allow(dead_code)] // until init, join and run are written
mod cli;
#[allow(dead_code)] // until init, join and run are written
mod control;
mod lifecycle;
#[allow(dead_code)] // until init, join and run are written
mod log;

fn main() -> std::process::ExitCode {
    cli::main(std::env::args_os())
}
