//! The pure core of `agent`: state, decisions and wire formats.
//!
//! No socket, clock, task, file or randomness of its own. Time is an argument ([`time::Moment`]), random
//! bytes are passed in, every timed thing returns its next deadline, and a decision is a value that the shell
//! carries out. So every decision can be replayed and simulated.
//!
//! Each module uses only those above it in this list.

#![forbid(unsafe_code)]

pub mod bytes;

pub mod tlv;

pub mod msgpack;

pub mod next_wire;

pub mod time;

pub mod open_enum;

pub mod limit;

pub mod node;

pub mod node_local;

pub mod cause;

pub mod unfit;

pub mod problem;

pub mod event;

pub mod timeline;

pub mod service;

pub mod handshake;

pub mod health;

pub mod heard;

pub mod pulse;

pub mod path;

pub mod arp;

pub mod ndp;

pub mod seeds;

pub mod signed_record;

pub mod elsewhere;

pub mod record_store;

pub mod record;

pub mod view;

pub mod backends;

pub mod front;

pub mod dial;

pub mod client_hello;

pub mod access;

pub mod proxy_v2;

pub mod handover;

pub mod cluster;

pub mod invite;

pub mod admission;

pub mod transport;

pub mod topology;

pub mod seal;

pub mod session;

pub mod election;

pub mod doctor;

pub mod config;

pub mod settings;

pub mod kubernetes;

pub mod migrate;

pub mod control;

pub mod rpc;
