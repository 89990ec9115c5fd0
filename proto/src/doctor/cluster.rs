//! What only all members together show: versions, and how far the masters are from each other.

use super::{Examination, FindingText, Severity, Step};

/// A member, as the asked node sees it.
#[derive(Debug, Clone, Default)]
pub struct MemberFacts {
    /// Its name.
    pub name: String,
    /// Version of its agent; empty: not known.
    pub version: String,
}

/// How one master hears another.
#[derive(Debug, Clone, Default)]
pub struct MasterLink {
    /// Who hears.
    pub from: String,
    /// Whom.
    pub to: String,
    /// The address of whom.
    pub at: String,
    /// Round-trip time in milliseconds, when known.
    pub rtt_ms: Option<f64>,
    /// Share of pulses without an answer, in thousandths.
    pub loss_permille: u16,
}

/// Round trips between masters that etcd's defaults are too tight for: a heartbeat of 100 ms should be well
/// above one.
const SLOW_MS: f64 = 50.0;

/// Loss between masters that is told of, in thousandths: a good link has none.
const LOSSY: u16 = 50;

/// Judges what the members have in common, and what not.
pub fn examine(node: &str, members: &[MemberFacts], masters: &[MasterLink]) -> Examination {
    let mut out = Examination::default();
    versions(node, members, &mut out);
    for pair in masters {
        let MasterLink { from, to, at, rtt_ms, loss_permille } = pair;
        if let Some(rtt) = rtt_ms.filter(|rtt| *rtt > SLOW_MS) {
            // Both tell of the same way: once is enough.
            let twin =
                |other: &MasterLink| other.from == *to && other.to == *from && other.rtt_ms > Some(SLOW_MS);
            if from > to && masters.iter().any(twin) {
                continue;
            }
            let what = format!("{rtt:.0} ms round trip between the masters {from} and {to}");
            let why = "every write to etcd waits for it, and etcd's defaults (100 ms heartbeat, 1 s election) \
                       are meant for a local network: leaders change without need";
            let remedy = vec![
                Step::text("etcd --heartbeat-interval at about one round trip, --election-timeout at ten")
                    .on("every master"),
                Step::text(
                    "k3s and RKE2, in config.yaml: etcd-arg: [heartbeat-interval=300, election-timeout=3000]",
                ),
                Step::text("keep the masters of one cluster closer together"),
            ];
            out.found(Severity::Warning, "masters", "slow-etcd", from, FindingText { what, why, remedy });
        }
        if *loss_permille > LOSSY {
            let share = loss_permille / 10;
            let what = format!("{share} % packet loss between {from} and {to}");
            let why = "etcd and all connections on this path stall with each loss; measured over the last \
                       minutes";
            let remedy = vec![Step::run(format!("mtr -u {at}")).remark("which hop loses").on(from)];
            out.found(Severity::Warning, "masters", "loss", from, FindingText { what, why, remedy });
        }
    }
    let slowest = masters
        .iter()
        .filter_map(|pair| pair.rtt_ms)
        .fold(None, |most: Option<f64>, rtt| Some(most.map_or(rtt, |most| most.max(rtt))));
    if let Some(slowest) = slowest {
        out.checked("masters", format!("at most {slowest:.1} ms between them"));
    }
    out
}

fn versions(node: &str, members: &[MemberFacts], out: &mut Examination) {
    let mut known: Vec<&str> =
        members.iter().map(|one| one.version.as_str()).filter(|one| !one.is_empty()).collect();
    known.sort_unstable();
    known.dedup();
    if known.len() > 1 {
        let each = known.iter().map(|version| {
            let names: Vec<&str> =
                members.iter().filter(|one| one.version == *version).map(|one| one.name.as_str()).collect();
            match names.as_slice() {
                [a, b, c, _, ..] => format!("{version} on {a}, {b}, {c} and {} more", names.len() - 3),
                few => format!("{version} on {}", few.join(", ")),
            }
        });
        let what = format!("the agents have different versions: {}", each.collect::<Vec<_>>().join("; "));
        let why = "they work together, but the older ones lack the newer features";
        let remedy = vec![Step::run("./agent install").remark("with the newer binary").on("the older ones")];
        out.found(Severity::Note, "versions", "versions-differ", node, FindingText { what, why, remedy });
    }
    if let Some(first) = known.first() {
        // A node that is attached to others knows those of few members.
        let knows = members.iter().filter(|one| !one.version.is_empty()).count();
        out.checked(
            "versions",
            match knows == members.len() {
                true => format!("{first} on all members"),
                false => format!("{first} on the {knows} members whose version is known here"),
            },
        );
    }
}
