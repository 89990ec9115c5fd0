//! Which nodes are admitted, which are not, and what each of them is shown.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use proto::cluster::{Admitted, Document, KeyId, Replica};
use proto::invite::{
    EXIT_ISSUER_DEMOTED, EXIT_NOT_CONFIRMED, EXIT_WRONG_PIN, Invite, InviteSecret, JoinRefusal, code_of,
};
use proto::node::{Name, Role};
use proto::rpc::{ALPN_JOIN, Addresses, FailCode, FromJoining, MAX_JOIN_FRAME, ToJoining};
use proto::time::UnixMs;
use proto::transport::{GossipKey, PORT};
use tests::hostile::identity::read_state;
use tests::hostile::seed::welcome;
use tests::hostile::tls::Connection;
use tests::hostile::{FalseSeed, Identity};
use tests::lab::Lab;
use tests::mesh::{Agent, GOSSIP, SOON, all_up, code_in, form, form_with, invite_in, with_agents};
use tests::wait::eventually;

/// How a command ends on a worker that only a master could carry out.
const NOT_MASTER: i32 = 12;

/// How a command ends without an agent that runs.
const NOT_RUNNING: i32 = 69;

/// How a command ends that would leave no master.
const LAST_MASTER: i32 = 13;

/// How `agent approve` ends when nobody waits under the code any more, or has just gone.
const TOO_LATE: [Option<i32>; 2] = [Some(65), Some(69)];

/// What `agent invite` prints.
fn new_invite(agent: &Agent<'_>, options: &[&str]) -> Result<String> {
    let out = agent.cli(&[&["invite"], options].concat())?.ok()?;
    invite_in(&out).with_context(|| format!("no invite in: {out}"))
}

/// The same line with one change and a valid checksum.
fn forged(line: &str, change: impl FnOnce(&mut Invite)) -> Result<String> {
    let mut invite: Invite = line.parse()?;
    change(&mut invite);
    Ok(invite.to_string())
}

/// Joining with this line ends with the refusal's own exit code and message.
fn refused(agent: &mut Agent<'_>, line: &str, refusal: &JoinRefusal) -> Result<()> {
    let said = agent.join_refused(line)?.fails_with(i32::from(refusal.exit_code()))?;
    ensure!(said.contains(&refusal.to_string()), "expected \"{refusal}\" in: {said}");
    Ok(())
}

#[test]
fn every_bad_invite_is_refused_with_its_own_message() -> Result<()> {
    with_agents(Lab::wireguard(3), |_, agents| {
        let [issuer, joining, other] = agents else { anyhow::bail!("three agents") };
        let good = issuer.init()?;

        let brief = new_invite(issuer, &["--for", "1s"])?;
        std::thread::sleep(Duration::from_millis(1100)); // its time has to pass
        refused(joining, &brief, &JoinRefusal::Expired)?;
        // A node without the secret does not learn that the invite has expired.
        let guessed = forged(&brief, |invite| invite.secret = InviteSecret([7; 16]))?;
        refused(joining, &guessed, &JoinRefusal::WrongSecret)?;

        let wrong_secret = forged(&good, |invite| invite.secret.0[0] ^= 1)?;
        refused(joining, &wrong_secret, &JoinRefusal::WrongSecret)?;
        let unknown = forged(&good, |invite| invite.id[0] ^= 1)?;
        refused(joining, &unknown, &JoinRefusal::Unknown)?;

        let wrong_pin = forged(&good, |invite| invite.issuer[0] ^= 1)?;
        joining.join_refused(&wrong_pin)?.fails_with(i32::from(EXIT_WRONG_PIN))?;
        joining.join_refused(&good[..good.len() - 1])?.fails_with(65)?;

        // A refused node has left no trace, and can still join properly.
        ensure!(issuer.status()?.cluster.members == 1);
        let once = new_invite(issuer, &["--uses", "1"])?;
        joining.join(&once)?;
        refused(other, &once, &JoinRefusal::UsedUp)?;
        joining.wait_for_up(&["n0", "n1"], GOSSIP)?;
        ensure!(issuer.status()?.cluster.members == 2);

        // Masters invite, workers do not; but a worker can become one.
        ensure!(issuer.status()?.member("n1")?.role == "worker");
        let said = joining.cli(&["invite"])?.fails_with(NOT_MASTER)?;
        ensure!(said.contains("n0"), "it names no master: {said}");
        issuer.cli(&["promote", "n1"])?.ok()?;
        eventually("n1 knows that it is a master", SOON, || {
            ensure!(joining.status()?.node.role == "master");
            Ok(())
        })?;
        let second = new_invite(joining, &["--master"])?;
        other.join(&second)?;
        ensure!(other.status()?.node.role == "master");
        all_up(agents)
    })
}

#[test]
fn a_bare_address_waits_for_approval_by_its_code() -> Result<()> {
    with_agents(Lab::wireguard(4), |_, agents| {
        form(&mut agents[..2])?;
        let [seed, member, third, fourth] = agents else { anyhow::bail!("four agents") };
        let address = seed.node().mesh_ip().to_string();

        let code = request_code(third, &address)?;
        ensure!(seed.status()?.cluster.members == 2, "it was let in without approval");
        // An administrator at another member compares the code; it need not be the seed.
        eventually("the other member knows who waits", SOON, || {
            let waiting = member.cli(&["approve"])?.ok()?;
            ensure!(waiting.contains(&code) && waiting.contains("n2"), "{waiting}");
            Ok(())
        })?;
        let wrong = member.cli(&["approve", "0000-0000"])?;
        ensure!(wrong.code == Some(65), "a code that nobody shows: {wrong}");
        let said = member.cli(&["approve", &code.to_uppercase()])?.ok()?;
        let second = code_in(&said).context("no second code is printed")?;
        ensure!(second != code, "one code for both directions");
        ensure!(seed.status()?.cluster.members == 2, "it was let in before it was sure of the cluster");
        third.process()?.types("0000-0000")?;
        third.process()?.types(&second)?;
        third.wait_until_asked()?;
        ensure!(third.status()?.node.role == "worker");
        for one in [&*seed, &*member, &*third] {
            one.wait_for_up(&["n0", "n1", "n2"], GOSSIP)?;
        }

        let code = request_code(fourth, &address)?;
        seed.cli(&["reject", &code])?.ok()?;
        let ended = fourth.process()?.ended(SOON)?;
        ensure!(
            ended == Some(i32::from(JoinRefusal::Rejected.exit_code())),
            "a rejected node ends with {ended:?}"
        );
        ensure!(seed.status()?.cluster.members == 3);

        // A node that has gone is not admitted by a late approval, and that is reported.
        let code = request_code(fourth, &address)?;
        fourth.kill()?;
        eventually("the approval comes too late", SOON, || {
            let ran = seed.cli(&["approve", &code])?;
            ensure!(TOO_LATE.contains(&ran.code), "{ran}");
            Ok(())
        })?;
        ensure!(seed.status()?.cluster.members == 3);

        // An open cluster needs no approval during that time, but its key has to be known.
        let said = seed.cli(&["open", "--for", "1m"])?.ok()?;
        let key = said.split_once("--key ").and_then(|(_, rest)| rest.split_whitespace().next());
        let key = key.context("no key is printed")?.to_owned();
        let code = request_code(fourth, &address)?;
        fourth.kill()?;
        ensure!(!code.is_empty() && seed.status()?.cluster.members == 3, "it came in without the key");
        let wrong = format!("a{}", &key[1..]);
        let wrong = if wrong == key { format!("b{}", &key[1..]) } else { wrong };
        fourth.options = vec!["--key".to_owned(), wrong];
        let said = fourth.join_refused(&address)?;
        ensure!(said.code == Some(i32::from(EXIT_WRONG_PIN)), "{said}");
        fourth.options = vec!["--key".to_owned(), key];
        fourth.join(&format!("{address}:7646"))?;
        fourth.options.clear();
        ensure!(fourth.status()?.node.role == "worker");
        all_up(agents)?;
        agents[0].cli(&["open", "--for", "0"])?.ok()?;
        // A worker leaves by asking a master.
        agents[3].cli(&["leave"])?.ok()?;
        // By then it has ended, so that the next command can join.
        agents[3].cli(&["status"])?.fails_with(NOT_RUNNING)?;
        agents[0].wait_for_up(&["n0", "n1", "n2"], GOSSIP)?;
        Ok(())
    })
}

#[test]
fn a_worker_redirects_a_joining_node_and_an_old_invite_reports_its_issuers_state() -> Result<()> {
    with_agents(Lab::bridge(4), |_, agents| {
        let [first, second, joining, other] = agents else { anyhow::bail!("four agents") };
        let masters = first.init()?;
        second.join(&masters)?;
        let invite = new_invite(second, &[])?;
        first.cli(&["demote", "n1"])?.ok()?;
        eventually("n1 knows that it is a worker", SOON, || {
            ensure!(second.status()?.node.role == "worker");
            Ok(())
        })?;
        // Only its issuer redeems an invite, and that one admits nobody any more.
        let said = joining.join_refused(&invite)?.fails_with(i32::from(EXIT_ISSUER_DEMOTED))?;
        let (worker, master) = (second.node().mesh_ip(), first.node().mesh_ip());
        for address in [worker, master] {
            ensure!(said.contains(&format!("{address}:7646")), "{address} is not named: {said}");
        }
        // Without an invite, the master that the worker names admits it, by that master's codes.
        let code = request_code(joining, &worker.to_string())?;
        let said = first.cli(&["approve", &code])?.ok()?;
        joining.process()?.types(&code_in(&said).context("no second code is printed")?)?;
        joining.wait_until_asked()?;
        first.wait_for_up(&["n0", "n1", "n2"], GOSSIP)?;
        // A removed issuer reports that it was removed.
        first.cli(&["remove", "n1"])?.ok()?;
        eventually("n1 knows that it was removed", SOON, || {
            ensure!(second.status()?.node.removed);
            Ok(())
        })?;
        refused(other, &invite, &JoinRefusal::SeedRemoved)?;
        ensure!(first.status()?.cluster.members == 2);
        Ok(())
    })
}

/// Asks to be admitted, and returns the code that is shown.
fn request_code(agent: &mut Agent<'_>, seed: &str) -> Result<String> {
    let before = agent.log().unwrap_or_default().len();
    agent.begin_join(seed)?;
    let (code, _) = eventually("a code is shown", SOON, || {
        ensure!(agent.is_running(), "it has ended: {}", agent.log()?);
        code_in(&agent.log()?[before..]).context("none yet")
    })?;
    Ok(code)
}

/// A gossip key of whoever has no cluster.
fn false_key(epoch: u64) -> GossipKey {
    GossipKey { epoch, id: KeyId::of_key(&[9; 32]), secret: [9; 32], until: None }
}

/// Somebody as a master who has let himself in.
fn as_master(identity: &Identity) -> Admitted {
    Admitted::new(Name::nearest("false"), identity.key, Role::Master, identity.id, UnixMs(1))
}

#[test]
fn a_bare_join_takes_nothing_from_a_key_that_nobody_has_confirmed() -> Result<()> {
    with_agents(Lab::bridge(2), |lab, agents| {
        let joining = &mut agents[1];
        let seed = Identity::stranger()?;
        let at = lab.node(0).mesh_ip().to_string();
        // Nobody is there yet: the node makes its key.
        joining.join_refused(&at)?.fails_with(69)?;
        let own = Identity::of_state(joining.state())?;
        let mut document = Document::new([9; 16], Name::nearest("false"), as_master(&seed), false_key(1).id);
        document.admit(Admitted::new("n1".parse()?, own.key, Role::Worker, seed.id, UnixMs(1)));
        let admits = welcome(&seed, document, false_key(1), Addresses::new())?;
        let (wait, approved) = (ToJoining::Wait { seconds: 60 }, ToJoining::Approved { seconds: 60 });
        for (says, typed) in [
            (vec![admits.clone()], 0),
            (vec![approved.clone(), admits.clone()], 3),
            (vec![wait.clone(), approved, admits.clone()], 3),
            (vec![wait, admits], 0),
        ] {
            let false_seed = FalseSeed::listen(lab.node(0), &seed, says)?;
            let before = joining.log()?.len();
            joining.begin_join(&at)?;
            for _ in 0..typed {
                joining.process()?.types("0000-0000")?;
            }
            let code = joining.process()?.ended(SOON)?;
            let said = joining.log()?.split_off(before);
            ensure!(code == Some(i32::from(EXIT_NOT_CONFIRMED)), "it ended with {code:?}: {said}");
            ensure!(false_seed.visits() == (1, 1), "{:?}: {said}", false_seed.visits());
            for file in ["cluster", "keys", "peers", "serving"] {
                ensure!(!joining.state().join(file).exists(), "it keeps a file {file} after: {said}");
            }
        }
        // And so it starts as what it was.
        joining.run()?;
        let code = joining.process()?.ended(SOON)?;
        ensure!(code == Some(78), "it ended with {code:?}: {}", joining.log()?);
        Ok(())
    })
}

#[test]
fn a_rejoin_takes_nothing_from_another_key_at_the_seed_s_address() -> Result<()> {
    with_agents(Lab::bridge(2), |lab, agents| {
        form(agents)?;
        let [first, second] = agents else { anyhow::bail!("two agents") };
        let before = second.status()?.cluster;
        second.stop()?;
        first.kill()?;
        let keys = std::fs::read(second.state().join("keys"))?;
        // It knows the cluster as a node that was removed does, and who is where.
        let seed = Identity::stranger()?;
        let mut document = read_state::<Replica>(second.state(), "cluster")?.document().clone();
        document.admit(as_master(&seed));
        document.turn_key(false_key(2).id, seed.id, UnixMs(1), true)?;
        let [(of, _)] = document.find("n0")[..] else { anyhow::bail!("no n0") };
        let trap = SocketAddr::from(([10, 91, 0, 99], PORT));
        let addresses = Addresses::from([(of, vec![trap])]);
        let admits = welcome(&seed, document.clone(), false_key(2), addresses)?;
        let false_seed = FalseSeed::listen(lab.node(0), &seed, vec![admits])?;
        second.join(&lab.node(0).mesh_ip().to_string())?;
        ensure!(false_seed.visits() == (1, 0), "it is told who wants to join: {:?}", false_seed.visits());
        let after = second.status()?.cluster;
        ensure!(
            after.document == before.document && after.key_epoch == before.key_epoch && after.members == 2,
            "{after:?}, {before:?} before"
        );
        ensure!(std::fs::read(second.state().join("keys"))? == keys, "it has other gossip keys");
        let peers = std::fs::read_to_string(second.state().join("peers"))?;
        ensure!(!peers.contains(&trap.to_string()), "{peers}");
        drop(false_seed);
        first.run()?;
        all_up(agents)
    })
}

/// A raw connection of a node that waits for approval.
fn waiting(lab: &Lab, identity: &Identity, name: &str) -> Result<Connection> {
    let (node, to) = (lab.node(1), SocketAddr::new(lab.node(0).mesh_ip(), PORT));
    let mut connection = identity.connect(node, to, ALPN_JOIN)?;
    let addresses = vec![SocketAddr::new(node.mesh_ip(), PORT)];
    let name = name.parse()?;
    connection.send(&FromJoining::Join { name, proof: None, addresses, confirmed: false, cluster: None })?;
    let answer: ToJoining = connection.receive()?;
    ensure!(matches!(answer, ToJoining::Wait { .. }), "it was answered {answer:?}");
    Ok(connection)
}

/// Asks what only a later version knows, and is told so.
fn asks_later(connection: &mut Connection) -> Result<()> {
    connection.send(&BTreeMap::from([("Tomorrow", 1)]))?;
    let answer: ToJoining = connection.receive()?;
    ensure!(matches!(answer, ToJoining::Failed { code: FailCode::Unsupported, .. }), "{answer:?}");
    Ok(())
}

#[test]
fn a_waiting_node_may_ask_what_is_not_known_and_says_nothing_else() -> Result<()> {
    with_agents(Lab::bridge(2), |lab, agents| {
        let seed = &mut agents[0];
        seed.init()?;
        let identity = Identity::stranger()?;
        let mut later = waiting(lab, &identity, "later")?;
        for _ in 0..4 {
            asks_later(&mut later)?;
        }
        seed.cli(&["approve", &code_of(&later.session)])?.ok()?;
        let answer: ToJoining = later.receive()?;
        ensure!(matches!(answer, ToJoining::Approved { .. }), "{answer:?}");
        asks_later(&mut later)?;
        ensure!(seed.status()?.cluster.members == 1, "it is let in before it has confirmed");
        later.send(&FromJoining::Confirmed)?;
        let answer: ToJoining = later.receive()?;
        ensure!(matches!(answer, ToJoining::Welcome(_)), "{answer:?}");
        ensure!(seed.status()?.cluster.members == 2);

        // All else ends it, and nobody waits under its code any more.
        type Says = fn(&mut Connection) -> Result<()>;
        let bad: [(&str, Says); 5] = [
            ("asks for a fifth time", |one| {
                (0..4).try_for_each(|_| asks_later(one)).and_then(|()| one.send(&"Nap"))
            }),
            ("confirms before it is approved", |one| one.send(&FromJoining::Confirmed)),
            ("wants to be dialled", |one| one.send(&FromJoining::Listening)),
            ("sends no message", |one| one.send_frame(&[0xc1])),
            ("sends a large frame", |one| one.send_part(u32::try_from(MAX_JOIN_FRAME)? + 1, &[0x81])),
        ];
        for (i, (what, say)) in bad.into_iter().enumerate() {
            let mut one = waiting(lab, &Identity::stranger()?, &format!("bad{i}"))?;
            say(&mut one).context(what)?;
            eventually(&format!("a node that {what} is closed"), SOON, || {
                ensure!(one.is_closed(), "it is open");
                Ok(())
            })?;
            let ran = seed.cli(&["approve", &code_of(&one.session)])?;
            ensure!(TOO_LATE.contains(&ran.code), "{ran}");
        }
        ensure!(seed.status()?.cluster.members == 2);
        Ok(())
    })
}

#[test]
fn whoever_was_away_learns_a_promotion_by_its_proof() -> Result<()> {
    with_agents(Lab::bridge(4), |_, agents| {
        form_with(agents, 2)?;
        let [author, away, promoted, worker] = agents else { anyhow::bail!("four agents") };
        away.stop()?;
        worker.stop()?;
        author.cli(&["promote", "n2"])?.ok()?;
        eventually("n2 knows that it is a master", SOON, || {
            ensure!(promoted.status()?.node.role == "master");
            Ok(())
        })?;
        // From now on nobody is there whose seal on it counts for those who were away.
        author.kill()?;
        for one in [worker, away] {
            one.run()?;
            one.wait_until_asked()?;
            eventually(&format!("{} has n2 as a master", one.name()), GOSSIP, || {
                let status = one.status()?;
                let role = &status.member("n2")?.role;
                ensure!(role == "master", "it has it as a {role}; {:?}", status.problems);
                Ok(())
            })?;
        }
        // What it changes holds for both.
        promoted.cli(&["set", "balance=first"])?.ok()?;
        for one in [&agents[1], &agents[3]] {
            eventually(&format!("{} follows n2", one.name()), SOON, || {
                let balance = one.status()?.services[0].balance.clone();
                ensure!(balance == "first", "it balances by {balance}");
                Ok(())
            })?;
        }
        Ok(())
    })
}

#[test]
fn two_masters_that_demote_each_other_say_so_until_one_joins_the_other_again() -> Result<()> {
    with_agents(Lab::bridge(2), |_, agents| {
        form(agents)?;
        let [first, second] = agents else { anyhow::bail!("two agents") };
        second.stop()?;
        first.cli(&["demote", "n1"])?.ok()?;
        first.stop()?;
        second.run()?;
        second.wait_until_asked()?;
        second.cli(&["demote", "n0"])?.ok()?;
        first.run()?;
        first.wait_until_asked()?;
        for (one, other) in [(&*first, "n1"), (&*second, "n0")] {
            eventually(&format!("{} names the other master", one.name()), SOON * 2, || {
                let status = one.status()?;
                let named = status.problems.iter().find(|one| one.code == "second-master");
                let named = named.with_context(|| format!("{:?}", status.problems))?;
                ensure!(named.subject == other, "{named:?}");
                ensure!(named.fix.contains("agent join INVITE"), "{named:?}");
                ensure!(status.node.role == "master" && status.member(other)?.role == "worker");
                Ok(())
            })?;
        }
        let invite = new_invite(first, &[])?;
        second.stop()?;
        second.join(&invite)?;
        ensure!(second.status()?.node.role == "worker");
        first.cli(&["promote", "n1"])?.ok()?;
        eventually("both are masters of one cluster", SOON, || {
            let both = [first.status()?, second.status()?];
            ensure!(both[0].cluster.document == both[1].cluster.document, "{both:?}");
            for status in both {
                ensure!(status.members.iter().all(|member| member.role == "master"), "{status:?}");
                ensure!(status.problems.is_empty(), "{:?}", status.problems);
            }
            Ok(())
        })?;
        Ok(())
    })
}

#[test]
fn an_unreachable_seed_is_reported() -> Result<()> {
    with_agents(Lab::wireguard(2), |_, agents| {
        let seed = agents[0].node().mesh_ip().to_string();
        let said = agents[1].join_refused(&seed)?.fails_with(69)?;
        ensure!(said.contains(&seed), "{said}");
        agents[1].join_refused("not an address")?.fails_with(65)?;
        Ok(())
    })
}

#[test]
fn a_removed_node_stays_out() -> Result<()> {
    with_agents(Lab::wireguard(5), |lab, agents| {
        let _master = lab.nginx_master(0)?;
        form(agents)?;
        let epoch = agents[0].status()?.cluster.key_epoch;
        agents[1].cli(&["remove", "n4"])?.ok()?;
        let rest = ["n0", "n1", "n2", "n3"];
        for agent in &agents[..4] {
            agent.wait_for_up(&rest, SOON)?;
            let status = agent.status()?;
            ensure!(status.cluster.members == 4, "{} members", status.cluster.members);
            ensure!(!status.members.iter().any(|member| member.name == "n4"), "it is still listed");
        }
        eventually("the gossip key has changed everywhere", SOON, || {
            for agent in &agents[..4] {
                ensure!(agent.status()?.cluster.key_epoch > epoch, "not on {}", agent.name());
            }
            Ok(())
        })?;

        // Restarted from its old state, and with a fresh invite: it is recognized, and refused.
        if agents[4].is_running() {
            agents[4].kill()?;
        }
        agents[4].run()?;
        tests::wait::always("a removed node stays out", Duration::from_secs(6), || {
            let status = agents[0].status()?;
            ensure!(
                !status.members.iter().any(|member| member.name == "n4"),
                "{}",
                status.members_in_words()
            );
            Ok(())
        })?;
        let removed = JoinRefusal::Removed.exit_code();
        eventually("its own status says so by its exit code", SOON, || {
            agents[4].cli(&["status"])?.fails_with(removed.into()).map(|_| ())
        })?;
        if agents[4].is_running() {
            agents[4].kill()?;
        }
        let invite = new_invite(&agents[0], &[])?;
        refused(&mut agents[4], &invite, &JoinRefusal::Removed)?;

        // A new identity is a new node, also under the old name.
        agents[4].cli(&["leave", "--force"])?.ok()?;
        agents[4].join(&invite)?;
        all_up(agents)
    })
}

#[test]
fn a_node_that_was_off_for_two_key_rotations_comes_back() -> Result<()> {
    with_agents(Lab::wireguard(3), |_, agents| {
        form(agents)?;
        let epoch = agents[0].status()?.cluster.key_epoch;
        agents[2].kill()?;
        for (i, by) in [(1, 0), (2, 1)] {
            agents[by].cli(&["rotate"])?.ok()?;
            for agent in &agents[..2] {
                eventually("the new key is there", SOON, || {
                    let is = agent.status()?.cluster.key_epoch;
                    ensure!(is == epoch + i, "{} has key {is}", agent.name());
                    Ok(())
                })?;
            }
        }
        agents[0].wait_for_up(&["n0", "n1"], GOSSIP)?;
        agents[2].run()?;
        all_up(agents)?;
        ensure!(agents[2].status()?.cluster.key_epoch == epoch + 2);
        Ok(())
    })
}

#[test]
fn a_port_in_use_is_reported_before_the_invite_is_redeemed() -> Result<()> {
    with_agents(Lab::wireguard(2), |_, agents| {
        let [issuer, joining] = agents else { anyhow::bail!("two agents") };
        issuer.init()?;
        let once = new_invite(issuer, &["--uses", "1"])?;
        let other = joining.node().inside(|| Ok(std::net::UdpSocket::bind("0.0.0.0:7646")?))?;
        joining.join_refused(&once)?.fails_with(14)?;
        ensure!(issuer.status()?.cluster.members == 1, "it was let in");
        drop(other);
        joining.join(&once)?;
        all_up(agents)
    })
}

/// Every command that changes the cluster, on a worker.
#[test]
fn a_worker_changes_nothing_and_names_a_master() -> Result<()> {
    with_agents(Lab::bridge(3), |lab, agents| {
        let _apiserver = lab.nginx_master(2)?;
        let [first, second, worker] = agents else { anyhow::bail!("three agents") };
        let masters = first.init()?;
        let workers = new_invite(first, &[])?;
        second.join(&masters)?;
        // A file that others can read is refused.
        let file = lab.dir().join("invite");
        std::fs::write(&file, format!("agent join {workers}\n"))?;
        let file = file.to_string_lossy().into_owned();
        worker.cli(&["join", "--invite-file", &file])?.fails_with(65)?;
        worker.begin_join("-")?;
        worker.process()?.types(&workers)?;
        worker.wait_until_asked()?;
        for command in [
            &["set", "balance=first"][..],
            &["drain", "n0"],
            &["undrain", "n0"],
            &["remove", "n1"],
            &["rotate"],
            &["invite"],
            &["open", "--for", "1m"],
            &["approve", "0000-0000"],
            &["promote", "n2"],
            &["demote", "n0"],
            &["weight", "n0", "50"],
            &["vip", "move", "10.91.0.240", "n0"],
        ] {
            let said = worker.cli(command)?.fails_with(NOT_MASTER)?;
            ensure!(said.contains("n0") && said.contains("n1"), "{command:?}: {said}");
        }
        // Its apiserver is reported, with the command that makes it count.
        eventually("the apiserver on a worker is named", GOSSIP, || {
            let problems = first.status()?.problems;
            let named = problems.iter().find(|one| one.code == "master-not-promoted");
            let named = named.with_context(|| format!("{problems:?}"))?;
            ensure!(named.subject == "n2/kube-api" && named.fix.contains("agent promote n2"), "{named:?}");
            Ok(())
        })?;
        let ran = first.cli(&["doctor", "--json"])?;
        let report: serde_json::Value = serde_json::from_str(&ran.out).with_context(|| ran.to_string())?;
        let findings = report["findings"].as_array().with_context(|| ran.to_string())?;
        ensure!(findings.iter().any(|one| one["code"] == "master-not-promoted"), "{ran}");
        first.cli(&["demote", "n1"])?.ok()?;
        ensure!(first.status()?.member("n1")?.role == "worker");
        first.cli(&["demote", "n0"])?.fails_with(LAST_MASTER)?;
        first.cli(&["leave"])?.fails_with(LAST_MASTER)?;
        Ok(())
    })
}

#[test]
fn when_all_masters_are_lost_a_worker_starts_a_successor_and_others_move_over() -> Result<()> {
    with_agents(Lab::bridge(3), |_, agents| {
        let [first, survivor, other] = agents else { anyhow::bail!("three agents") };
        first.init_with(&["--vip", "10.91.0.200"])?;
        let workers = new_invite(first, &[])?;
        survivor.join(&workers)?;
        other.join(&workers)?;
        let old = first.status()?.cluster.id;
        first.kill()?;
        survivor.stop()?;
        let invite = survivor.init_with(&["--successor"])?;
        let now = survivor.status()?;
        ensure!(now.cluster.id != old && now.node.role == "master", "{} {}", now.cluster.id, now.node.role);
        let said = survivor.cli(&["get", "vip", "--json"])?.ok()?;
        ensure!(said.contains("\"value\":\"10.91.0.200\""), "{said}");
        other.stop()?;
        other.join(&invite)?;
        survivor.wait_for_up(&["n1", "n2"], GOSSIP)?;
        ensure!(other.status()?.cluster.id == now.cluster.id);
        Ok(())
    })
}
