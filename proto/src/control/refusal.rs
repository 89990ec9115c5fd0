//! Refusals of the running agent: a code decides how a command ends, the reason is for people.

use std::fmt;

use serde::{Deserialize, Serialize};

use super::Response;

/// Why nothing was done.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Refusal {
    /// The reason.
    pub code: RefusalCode,
    /// The same as a sentence, with what would be right.
    pub reason: String,
}

/// Why a request was refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(from = "u16", into = "u16")]
pub enum RefusalCode {
    /// What was given is wrong, or there is nothing of this name.
    BadInput,
    /// Only a master could do it, and this node is none.
    NotMaster,
    /// No master would be left.
    LastMaster,
    /// A code of a later version.
    Other(u16),
}

impl From<u16> for RefusalCode {
    fn from(code: u16) -> RefusalCode {
        match code {
            1 => RefusalCode::BadInput,
            2 => RefusalCode::NotMaster,
            3 => RefusalCode::LastMaster,
            code => RefusalCode::Other(code),
        }
    }
}

impl From<RefusalCode> for u16 {
    fn from(code: RefusalCode) -> u16 {
        match code {
            RefusalCode::BadInput => 1,
            RefusalCode::NotMaster => 2,
            RefusalCode::LastMaster => 3,
            RefusalCode::Other(code) => code,
        }
    }
}

impl Response {
    /// A refusal.
    pub fn refused(code: RefusalCode, reason: impl fmt::Display) -> Response {
        Response::Refused(Refusal { code, reason: reason.to_string() })
    }
}
