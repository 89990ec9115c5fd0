use proptest::prelude::*;

use super::*;

fn offer() -> ServiceOffer {
    ServiceOffer {
        address: "10.0.0.1:6443".parse().unwrap(),
        weight: 100,
        health: ServiceHealth {
            readiness: Readiness::NotReady,
            cause: Cause::Http(500),
            detail: Detail::new(3, "etcd failed"),
            since: UnixMs(1_700_000_000_009),
        },
        check_ms: Some(20),
    }
}

fn worker() -> NodeRecord {
    NodeRecord {
        version: "0.1.0".into(),
        link_versions: (1, 2),
        addresses: vec!["10.0.0.1:7646".parse().unwrap()],
        interface: "wg0".into(),
        started: UnixMs(1_700_000_000_000),
        document: "abcd12345678".into(),
        links: (1..=3)
            .map(|n| (NodeId([n; 10]), PeerLink { alive: true, rtt_us: Some(420), loss_permille: 5 }))
            .collect(),
        ..NodeRecord::new("w1".parse().unwrap())
    }
}

fn master() -> NodeRecord {
    let mac = Mac([2, 0, 0, 0, 0, 1]);
    NodeRecord {
        draining: Some(UnixMs(5)),
        left: true,
        services: BTreeMap::from([(ServiceName::kube_api(), offer())]),
        l2_endpoints: vec![
            L2Endpoint { interface: "eth0".into(), mac, address: "10.91.91.1".parse().unwrap(), prefix: 24 },
            L2Endpoint { interface: "eth0".into(), mac, address: "fd91::1".parse().unwrap(), prefix: 64 },
        ],
        vips: BTreeMap::from([
            ("10.91.91.50".parse().unwrap(), VipOwnership { epoch: 3, since: UnixMs(1_700_000_000_007) }),
            ("fd91::50".parse().unwrap(), VipOwnership { epoch: 4, since: UnixMs(1_700_000_000_008) }),
        ]),
        unfit: BTreeMap::from([(
            "10.91.91.51".parse().unwrap(),
            Unfit::new(Unfit::cause_of(None), "no L2 on wg0 (point-to-point)"),
        )]),
        ..worker()
    }
}

fn with_node_local() -> NodeRecord {
    NodeRecord { node_local: ["10.91.91.50", "fd91::50"].map(|ip| ip.parse().unwrap()).into(), ..worker() }
}

fn read(body: &[u8]) -> (NodeRecord, Vec<RecordField>) {
    NodeRecord::from_body("w1".parse().unwrap(), body)
}

#[test]
fn a_record_reads_back_as_written() {
    for record in [worker(), master(), with_node_local()] {
        let (back, left_out) = read(&record.to_body());
        assert_eq!(back, record);
        assert_eq!(left_out, []);
    }
    let (back, _) = read(&master().to_body());
    assert_eq!(back.services[&ServiceName::kube_api()].health.detail.to_string(), "etcd failed");
}

#[test]
fn the_reason_for_not_owning_a_virtual_ip_has_a_cause() {
    let mut record = master();
    let vip = *record.unfit.keys().next().unwrap();
    record.unfit.insert(vip, Unfit::new(Cause::NoSegment, "no L2 on wg0 (point-to-point)"));
    let read = read(&record.to_body()).0.unfit.remove(&vip).unwrap();
    assert_eq!(read.cause, Cause::NoSegment);
    assert_eq!(read.to_string(), "no L2 on wg0 (point-to-point)");
    // What an earlier version writes; its bytes are below.
    assert_eq!(self::read(&master().to_body()).0.unfit[&vip].said_cause(), None);
}

#[test]
#[cfg_attr(feature = "next-wire", ignore = "golden bytes are those of builds without it")]
fn golden_bytes() {
    // Changing these breaks clusters that run two versions: see tests/golden.
    let golden = |record: NodeRecord| data_encoding::HEXLOWER.encode(&record.to_body());
    let lines = format!("{}\n{}\n{}\n", golden(worker()), golden(master()), golden(with_node_local()));
    assert_eq!(lines, include_str!("../tests/golden/records.hex"));
}

#[test]
#[cfg_attr(feature = "next-wire", ignore = "golden bytes are those of builds without it")]
fn typical_sizes_stay_as_measured_with_gossip() {
    let mut master = master();
    (master.draining, master.left) = (None, false);
    let size = |record: NodeRecord| record.to_body().len();
    assert_eq!((size(worker()), size(master)), (106, 315));
}

/// A body with one field after those of a worker.
fn with(tag: u8, write: impl FnOnce(&mut TlvWriter)) -> Vec<u8> {
    let mut out = TlvWriter::default();
    out.fields(tag, write);
    [worker().to_body(), out.finish()].concat()
}

#[test]
fn additions_of_a_later_version_are_skipped() {
    assert_eq!(read(&with(200, |out| out.number(1, 7))), (worker(), vec![]));
    // A field in an offer, one more byte of a link, and a readiness that is unknown here.
    let name = ServiceName::kube_api();
    let body = with(RecordField::Offer as u8, |out| {
        out.number(99, 1);
        write_offer(out, &name, &offer());
    });
    assert_eq!(read(&body).0.services[&name], offer());
    let mut longer = TlvWriter::default();
    longer.bytes(RecordField::Hears as u8, &[9, 9, 9, 9, 9, 9, 9, 9, 9, 9, 1, 0, 5, 0, 0, 1, 164, 77]);
    let peer_link = read(&longer.finish()).0.links[&NodeId([9; 10])];
    assert_eq!(peer_link, PeerLink { alive: true, rtt_us: Some(420), loss_permille: 5 });
    let body = with(RecordField::Offer as u8, |out| {
        out.bytes(NAME, b"kube-api");
        out.bytes(ADDRESS, &[10, 0, 0, 1, 25, 43]);
        out.number(WEIGHT, 100);
        out.number(READINESS, 77);
    });
    assert_eq!(read(&body).0.services[&name].health.readiness, Readiness::Other);
}

#[test]
fn only_what_is_not_understood_is_left_out() {
    let bad_offer = |weight, port: &[u8]| {
        let address = [&[10, 0, 0, 1], port].concat();
        with(RecordField::Offer as u8, |out| {
            out.bytes(NAME, b"kube-api");
            out.bytes(ADDRESS, &address);
            out.number(WEIGHT, weight);
            out.number(READINESS, 0);
        })
    };
    for (body, field) in [
        (bad_offer(300, &[1, 1]), RecordField::Offer),
        (bad_offer(100, &[1]), RecordField::Offer),
        (with(RecordField::Address as u8, |_| {}), RecordField::Address),
        (with(RecordField::Segment as u8, |out| out.number(PREFIX, 33)), RecordField::Segment),
        (with(RecordField::Vip as u8, |out| out.bytes(VIP, &[10, 0, 0])), RecordField::Vip),
        (with(RecordField::Started as u8, |out| out.bytes(255, &[255; 12])), RecordField::Unfit),
    ] {
        let (record, left_out) = read(&body);
        if field != RecordField::Unfit {
            assert_eq!((record, left_out), (worker(), vec![field]));
        }
    }
}

#[test]
fn lists_and_texts_are_bounded() {
    let mut out = TlvWriter::default();
    for n in 0..200u8 {
        out.bytes(RecordField::Address as u8, &[10, 0, 0, n, 1, 1]);
        out.fields(RecordField::Offer as u8, |out| {
            write_offer(out, &format!("service-{n}").parse().unwrap(), &offer())
        });
        out.fields(RecordField::Vip as u8, |out| {
            out.bytes(VIP, &[10, 0, 0, n]);
            out.number(EPOCH, 1);
        });
        out.bytes(RecordField::Interface as u8, &[b'x'; 5_000]);
    }
    let (record, left_out) = read(&out.finish());
    assert_eq!((record.addresses.len(), record.services.len(), record.vips.len()), (8, 64, 64));
    assert!(record.interface.len() <= 80);
    assert_eq!(left_out, [RecordField::Address, RecordField::Offer, RecordField::Vip]);
}

proptest! {
    #[test]
    fn no_body_makes_it_panic(body in proptest::collection::vec(any::<u8>(), 0..200)) {
        let _ = read(&body);
    }

    #[test]
    fn a_corrupted_record_is_read_in_part(at in 0usize..400, byte: u8) {
        let mut body = master().to_body();
        let at = at % body.len();
        body[at] = byte;
        let _ = read(&body);
    }
}
