//! `agent`: highly available Kubernetes masters without a load balancer.

mod lifecycle;
#[allow(dead_code, unused_imports)] // until the app composes it
mod proxy;

fn main() {}
