//! `agent`: highly available Kubernetes masters without a load balancer.

mod lifecycle;

fn main() {}
