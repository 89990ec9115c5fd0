//! How the command line is answered.

use std::fmt::Display;

use proto::control::{RefusalCode, Response};

use crate::http::BoxFuture;

/// The answer to a request of the command line.
pub(super) enum Answer {
    /// Known at once.
    Now(Response),
    /// Known when others have been asked or told.
    Later(BoxFuture<Response>),
}

impl Answer {
    /// It was done, and this is what.
    pub(super) fn done(what: impl Into<String>) -> Answer {
        Answer::Now(Response::Done(what.into()))
    }

    /// Nothing was done, and this is why.
    pub(super) fn failed(why: impl Display) -> Answer {
        Answer::Now(Response::Failed(why.to_string()))
    }

    /// Nothing was done, for a reason that scripts tell apart.
    pub(super) fn refused(code: RefusalCode, why: impl Display) -> Answer {
        Answer::Now(Response::refused(code, why))
    }

    /// What this comes to.
    pub(super) fn later(response: impl Future<Output = Response> + Send + 'static) -> Answer {
        Answer::Later(Box::pin(response))
    }
}
