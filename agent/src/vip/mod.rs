//! Virtual IPs.

mod caps;
mod kernel;
mod netlink;
mod packet;
mod segment;
mod sever;

pub(crate) use caps::lay_down;
