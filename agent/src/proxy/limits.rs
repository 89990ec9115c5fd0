//! The limit of open files, which a proxy exhausts first.

use proto::limit::DescriptorBudget;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

/// Raises the soft limit of open files to the hard one and returns the limit in effect. Each connection takes
/// two, and the usual soft limit is 1024 for the sake of programs that use select(2).
pub(crate) fn raise_descriptor_limit() -> u64 {
    let Rlimit { current, maximum } = getrlimit(Resource::Nofile);
    // `None` means "no limit".
    let before = current.unwrap_or(u64::MAX);
    let most = maximum.unwrap_or(u64::MAX);
    if before >= most {
        return before;
    }
    match setrlimit(Resource::Nofile, Rlimit { current: maximum, maximum }) {
        Ok(()) => {
            tracing::info!("raised the open file limit from {before} to {most}");
            most
        }
        Err(error) => {
            tracing::warn!("cannot raise the open file limit from {before} to {most}: {error}");
            before
        }
    }
}

/// How this process divides the descriptors that it may open now.
pub(crate) fn descriptor_budget() -> DescriptorBudget {
    DescriptorBudget::of(getrlimit(Resource::Nofile).current.unwrap_or(u64::MAX))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_soft_limit_becomes_the_hard_one() {
        let limit = raise_descriptor_limit();
        let now = getrlimit(Resource::Nofile);
        assert_eq!(now.current, now.maximum);
        assert_eq!(limit, now.current.unwrap_or(u64::MAX));
    }
}
