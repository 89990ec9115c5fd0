//! What a person asks for, by the control socket or on the page: answered here, or handed to membership.

use std::sync::Arc;

use proto::control::{RefusalCode, Request, Response};

use super::{RunningAgent, doctor, event_wiring, members, node_local, replace, seeds, status};
use crate::http::BoxFuture;
use crate::membership::members::not_a_master;

/// Does what a person asks for, by the control socket or on the page.
pub(super) fn handler(running: Arc<RunningAgent>) -> impl Fn(Request) -> BoxFuture<Response> {
    move |request: Request| {
        let running = running.clone();
        Box::pin(async move {
            match request {
                Request::Status => Response::Status(Box::new(status::of(&running))),
                Request::VipMove { address, node } => {
                    let document = running.document();
                    match document.is_master(&running.link.own()) {
                        true => running.vips.move_to(address, node).await,
                        false => Response::refused(RefusalCode::NotMaster, not_a_master(&document)),
                    }
                }
                Request::Settings => {
                    Response::Settings(running.clients.effective().now().list(&running.document()))
                }
                Request::Members => members::answer(&running).await,
                Request::Events(ask) => event_wiring::answer(&running, ask).await,
                Request::Replace => replace::replace(&running).await,
                Request::Seed(seeds) => seeds::answer(&running, &seeds).await,
                Request::Doctor(nodes) => doctor::answer(&running, &nodes).await,
                #[cfg(feature = "next-wire")]
                Request::Next => Response::Done("next".to_owned()),
                Request::Change(wishes) => match node_local::refusal(&running, &wishes) {
                    Some(refused) => refused,
                    None => running.membership.control(Request::Change(wishes)).await,
                },
                request => running.membership.control(request).await,
            }
        })
    }
}
