//! `agent`: highly available Kubernetes masters without a load balancer.

#[allow(dead_code)]
mod check;
#[allow(dead_code)]
mod cli {
    pub(crate) mod demo;
}
#[allow(dead_code)]
mod demo;
mod lifecycle;

fn main() {
    demo::die_with_parent();
}
