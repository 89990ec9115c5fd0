//! `agent`: highly available Kubernetes masters without a load balancer.

mod lifecycle;
#[allow(dead_code, unused_imports)]
mod net;
#[allow(dead_code)]
mod state;
#[cfg(test)]
mod testing;
#[allow(dead_code)]
mod watchdog;

fn main() {}
