//! `agent`: highly available Kubernetes masters without a load balancer.

mod check;
mod gossip;
mod lifecycle;
mod link;
mod membership;
mod net;
mod proxy;
mod reach;
mod state;

fn main() {}
