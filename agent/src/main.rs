//! `agent`: highly available Kubernetes masters without a load balancer.

mod gossip;
mod lifecycle;
mod link;
mod membership;
mod proxy;
mod reach;
mod state;

fn main() {}
