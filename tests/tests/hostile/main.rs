//! What a hostile worker, a removed node and a stranger can do: nothing but what README's "Trust, in plain
//! words" says. Each test is one row of a table that stands in the output (`--nocapture`): the attack with its
//! bytes, what it cost the node it was made on, and then the check of `tests::hostile::cluster`: the API can
//! be reached from every honest node, no agent was started again, status is true.

mod document;
mod member;
mod removed;
mod stranger;
mod vip;
