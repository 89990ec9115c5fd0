//! What an election tells people, as events.

use std::net::IpAddr;

use proto::cluster::Document;
use proto::election::{Gain, LossReason, VipEvent};
use proto::event::{Event, EventKind, EventLevel};
use proto::node::NodeId;
use proto::time::{UnixMs, human};

/// The event of something that happened at this node; none: another has told it. `since`: when it became as it was
/// before.
pub(super) fn event(
    own: NodeId,
    address: IpAddr,
    happened: VipEvent,
    document: &Document,
    since: UnixMs,
    wall: UnixMs,
) -> Option<Event> {
    let name = |id: NodeId| document.name_of(&id).to_string();
    let named = |id: Option<NodeId>| id.map_or("nobody".to_owned(), name);
    let moved = |from: String, to: String, why: String| {
        Event::new(EventKind::VipOwner, wall, address.to_string(), to).since(from, since).reason(why)
    };
    let wrong = |what: &str, why: String| {
        let told = Event::new(EventKind::VipProblem, wall, address.to_string(), what);
        told.reason(why).level(EventLevel::Warning)
    };
    Some(match happened {
        VipEvent::Gained { from, cause, .. } => {
            let why = match cause {
                Gain::Vacant => "it had no owner".to_owned(),
                Gain::Silent { quiet } => format!("its owner has been silent for {}", human(quiet)),
                Gain::Handed(why) => format!("handed over: {why}"),
                Gain::Released(why) => format!("released: {why}"),
            };
            moved(named(from), name(own), why)
        }
        VipEvent::Lost { to, cause, .. } => {
            let why = match cause {
                LossReason::Released(why) => why.to_string(),
                LossReason::Higher => "another owner has a higher claim".to_owned(),
            };
            moved(name(own), named(to), why)
        }
        // That this node has lost it is told already.
        VipEvent::Moved { from, .. } if from == Some(own) => return None,
        VipEvent::Moved { from, to, cause, .. } => {
            let silent = if from.is_some() { "its owner fell silent" } else { "it had no owner" };
            moved(named(from), name(to), cause.map_or(silent.to_owned(), |why| why.to_string()))
        }
        VipEvent::Contested { by, .. } => {
            wrong("doubled", format!("{} owns it too, with a lower claim", name(by)))
        }
        VipEvent::PutBack => wrong("put-back", "the address had been removed by someone else".to_owned()),
        VipEvent::Cleaned => wrong("cleaned", "the address had been added by someone else".to_owned()),
        VipEvent::Stranger { mac, defended } => {
            let what = if defended { "defended" } else { "yielded" };
            wrong(what, format!("a stranger has the address: {mac}"))
        }
    })
}

#[cfg(test)]
mod tests {
    use super::super::tests::{document, id};
    use super::*;

    #[test]
    fn a_change_that_this_node_has_told_as_a_loss_is_not_told_again() {
        let told = |from| {
            let moved = VipEvent::Moved { epoch: 2, from, to: id(3), cause: None };
            let address = [10, 9, 0, 50].into();
            let told = event(id(1), address, moved, &document(), UnixMs(5), UnixMs(9))?;
            Some((told.from, told.to, told.reason.to_string()))
        };
        let expected = |from: &str, why: &str| Some((from.to_owned(), "m3".to_owned(), why.to_owned()));
        assert_eq!(told(Some(id(1))), None);
        assert_eq!(told(Some(id(2))), expected("m2", "its owner fell silent"));
        assert_eq!(told(None), expected("nobody", "it had no owner"));
    }

    #[test]
    fn an_owner_that_was_removed_keeps_its_name_and_a_stranger_has_an_id() {
        let mut document = document();
        document.remove(id(2), id(1), UnixMs(3));
        let told = |from| {
            let moved = VipEvent::Moved { epoch: 2, from: Some(from), to: id(3), cause: None };
            event(id(1), [10, 9, 0, 50].into(), moved, &document, UnixMs(5), UnixMs(9)).unwrap().from
        };
        assert_eq!(told(id(2)), "m2");
        assert_eq!(told(id(9)), id(9).to_string());
    }
}
