//! What a hostile worker, a removed node and a stranger can do: nothing beyond README's "Trust, in plain
//! words". Each test is one row of a table in the output (`--nocapture`): the attack with its bytes, what it
//! cost its victim, and then the check of `tests::hostile::cluster`: the API is reachable from every honest
//! node, no agent was restarted, status is correct.

mod document;
mod member;
mod removed;
mod silence;
mod stranger;
mod vip;
