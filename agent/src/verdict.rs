//! Cluster health in one line: the first line of status, and of the page.

use proto::backends::BackendState;
use proto::control::{BackendStatus, MemberState, ServiceStatus, Status, VipState, VipStatus};
use proto::problem::ProblemCode;
use proto::service::KUBE_API;
use proto::time::UnixMs;

use crate::times::{age, at};

/// Overall health, ordered from best to worst.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum HealthLevel {
    /// Everything works.
    Fine,
    /// Something is wrong, but masters serve.
    Degraded,
    /// No master serves.
    NoMaster,
}

/// The overall health of a status.
pub(crate) struct HealthVerdict {
    /// The level.
    pub(crate) level: HealthLevel,
    /// The line.
    pub(crate) text: String,
}

/// Evaluates a status.
pub(crate) fn evaluate(status: &Status, now: UnixMs) -> HealthVerdict {
    let masters = status.services.iter().find(|service| service.name.as_str() == KUBE_API);
    let backends = masters.map_or(&[] as &[BackendStatus], |service| &service.backends);
    let good = backends.iter().filter(|backend| backend.state.is_good()).count();
    let mut faults = Vec::new();
    if status.node.removed {
        faults.push("this node was removed from the cluster".to_owned());
    }
    // Before the masters, which it cannot reach because of it.
    if status.node.address.is_none() {
        let told = status.problems.iter().find(|problem| problem.code == ProblemCode::NoAddress);
        let why = told.map_or_else(
            || format!("this node's network {} is down", status.node.interface),
            |problem| problem.detail.to_string(),
        );
        faults.push(why);
    }
    faults.extend(backends.iter().filter(|backend| !backend.state.is_good()).map(|one| why(one, now)));
    let unheard = backends.iter().filter(|backend| backend.state == BackendState::Unknown).count();
    if good == 0 && unheard == 0 {
        if backends.is_empty() {
            faults.push("no apiserver is known yet".to_owned());
        }
        let text = format!("no master serves; {}", faults.join("; "));
        return HealthVerdict { level: HealthLevel::NoMaster, text };
    }
    let failed = status.services.iter().flat_map(ServiceStatus::failed_listeners);
    faults.extend(failed.map(|one| format!("this node cannot listen on {one}")));
    let ready = backends.iter().any(|backend| backend.state == BackendState::Ready);
    if let Some(alive) = backends.iter().find(|backend| backend.state.is_good()).filter(|_| !ready) {
        faults.push(format!("none reports ready: {}", alive.reason));
    }
    let others = status.services.iter().filter(|service| service.name.as_str() != KUBE_API);
    faults.extend(others.filter_map(shortage));
    faults.extend(status.vips.iter().filter_map(fault));
    // Services that nobody offers have been named.
    let more = status.problems.iter().filter(|problem| problem.code != ProblemCode::NotOffered);
    match more.count() {
        0 => {}
        1 => faults.push("1 problem, see below".to_owned()),
        many => faults.push(format!("{many} problems, see below")),
    }
    let s = |count: usize| if count == 1 { "" } else { "s" };
    let serve = if good == 0 {
        // Nobody has reported that these do not serve: clients are connected to them.
        format!("{unheard} master{} as last known", s(unheard))
    } else {
        let v = if good == 1 { "s" } else { "" };
        format!("{good} of {} master{} serve{v}", backends.len(), s(backends.len()))
    };
    if faults.is_empty() {
        return HealthVerdict {
            level: HealthLevel::Fine,
            text: format!("ok: {serve}{}{}", absent(status), owned(status, now)),
        };
    }
    let text = format!("degraded: {serve}; {}{}", faults.join("; "), owned(status, now));
    HealthVerdict { level: HealthLevel::Degraded, text }
}

/// Why a master does not serve, and since when.
fn why(backend: &BackendStatus, now: UnixMs) -> String {
    let (node, state) = (&backend.node, backend.state.as_str());
    let reason = if backend.reason.is_empty() { String::new() } else { format!(": {}", backend.reason) };
    if backend.since_unix_ms == UnixMs(0) {
        return format!("{node} {state}{reason}");
    }
    let since = at(backend.since_unix_ms, now);
    format!("{node} {state}{reason} since {since} ({})", age(backend.since_unix_ms, now))
}

/// What is missing for another service.
fn shortage(service: &ServiceStatus) -> Option<String> {
    let total = service.backends.len();
    let good = service.backends.iter().filter(|backend| backend.state.is_good()).count();
    match (good, total) {
        (_, 0) => Some(format!("no node offers {}", service.name)),
        (good, total) if good == total => None,
        (good, total) => Some(format!("{}: {good} of {total} serve", service.name)),
    }
}

/// Members that are away without any effect: worth mentioning, no alarm.
fn absent(status: &Status) -> String {
    let down = |state| matches!(state, MemberState::Suspect | MemberState::Down);
    let away: Vec<&str> =
        status.members.iter().filter(|one| down(one.state)).map(|one| one.name.as_str()).collect();
    match (&away[..], status.unnamed()) {
        ([], 0) => String::new(),
        ([one], 0) => format!("; {one} does not answer"),
        (_, more) => format!("; {} of {} members do not answer", away.len() + more, status.members.len()),
    }
}

/// What is wrong with a virtual IP; `None`: nothing.
fn fault(vip: &VipStatus) -> Option<String> {
    let reason = if vip.reason.is_empty() { String::new() } else { format!(": {}", vip.reason) };
    match vip.state {
        VipState::OwnedHere | VipState::Owned => None,
        VipState::Unowned => Some(format!("VIP {} has no owner{reason}", vip.address)),
        VipState::Unavailable => Some(format!("VIP {} is unavailable{reason}", vip.address)),
        VipState::Other(state) => Some(format!("VIP {} is {}{reason}", vip.address, state.as_str())),
    }
}

/// The owners of the virtual IPs, and since when.
fn owned(status: &Status, now: UnixMs) -> String {
    let owned = status.vips.iter().filter(|vip| fault(vip).is_none());
    let on = |vip: &VipStatus| {
        let owner = vip.owner.as_ref().map_or("an unknown node", |owner| owner.as_str());
        format!("; VIP {} is on {owner} since {}", vip.address, at(vip.since_unix_ms, now))
    };
    owned.map(on).collect()
}
