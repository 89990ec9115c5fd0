//! `agent`: highly available Kubernetes masters without a load balancer.

mod lifecycle;
#[allow(dead_code)]
mod state;

fn main() {}
