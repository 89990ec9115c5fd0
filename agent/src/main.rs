//! `agent`: highly available Kubernetes masters without a load balancer.

mod app;
mod check;
mod cli;
mod control;
mod demo;
mod doctor;
mod events;
mod faults;
mod gossip;
mod handover;
mod hardening;
mod histogram;
mod http;
mod lifecycle;
mod log;
mod log_limit;
mod membership;
mod net;
mod netlink;
mod notify;
mod program;
mod proxy;
mod pulse;
mod reachability;
mod records;
mod screen;
mod severity;
mod source;
mod state;
mod supervisor;
#[cfg(test)]
mod testing;
mod timer;
mod times;
mod transport;
mod trusted;
mod verdict;
mod vip;
mod watchdog;
mod web;

// rand's getrandom looks up getrandom(2) by dlsym, which finds nothing in a static glibc binary: without /dev
// the first random number would be a panic, on a user's machine and not here.
#[cfg(all(target_env = "gnu", target_feature = "crt-static", not(getrandom_backend = "linux_getrandom")))]
compile_error!("a static glibc binary needs `--cfg getrandom_backend=\"linux_getrandom\"`: use deploy/build");

fn main() -> std::process::ExitCode {
    handover::begin();
    hardening::no_core_dumps();
    demo::die_with_parent();
    cli::main(std::env::args_os())
}
