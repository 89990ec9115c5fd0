//! `agent`: highly available Kubernetes masters without a load balancer.

#[allow(dead_code)]
mod check;
mod lifecycle;

fn main() {}
