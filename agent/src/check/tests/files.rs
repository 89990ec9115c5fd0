//! Where credentials are found, and that changes are noticed.

use std::os::unix::fs::symlink;

use super::*;

const K3S: &str = "var/lib/rancher/k3s";
const RKE2: &str = "var/lib/rancher/rke2";
const ADMIN: &str = "server/tls/client-admin";
const KUBELET: &str = "agent/client-kubelet";

/// A machine with Kubernetes' files on it, and the server that they are for.
struct Machine {
    dir: tempfile::TempDir,
    pki: Pki,
    server: Server,
}

impl Machine {
    async fn new() -> Machine {
        let pki = Pki::new();
        let tls = pki.server(&["kubernetes", "127.0.0.1"]).tls(Clients::Asked(&pki));
        let server = Server::start(Some(tls), 200, "ok").await;
        Machine { dir: tempfile::tempdir().unwrap(), pki, server }
    }

    fn write(&self, file: &str, text: &str) -> String {
        write(self.dir.path(), file, text)
    }

    /// A client certificate in `stem`.crt and `stem`.key; its DER.
    fn client(&self, stem: &str) -> Vec<u8> {
        let pair = self.pki.client();
        self.write(&format!("{stem}.crt"), &pair.cert);
        self.write(&format!("{stem}.key"), &pair.key);
        pair.der()
    }

    fn probe(&self) -> Probe {
        Probe::new(&https(discover()), self.dir.path())
    }

    /// The outcome of a check, and the certificate that it showed.
    async fn check(&self, probe: &mut Probe) -> (CheckOutcome, Option<Vec<u8>>) {
        self.check_later(probe, 0).await
    }

    /// The same after so many times as files can go unnoticed.
    async fn check_later(&self, probe: &mut Probe, times: u64) -> (CheckOutcome, Option<Vec<u8>>) {
        let now = Moment::from_millis(times * 10_000);
        let outcome = probe.check(now, self.server.address, Box::new(|_| ())).await;
        (outcome, self.server.last().client)
    }
}

fn ready() -> CheckOutcome {
    CheckOutcome::new(CheckAnswer::Good, Cause::Http(200))
}

#[tokio::test]
async fn without_any_file_a_check_is_anonymous() {
    let machine = Machine::new().await;
    assert_eq!(machine.check(&mut machine.probe()).await, (ready(), None));
}

#[tokio::test]
async fn every_distribution_is_found_and_a_servers_own_files_come_first() {
    for base in [K3S, RKE2] {
        let machine = Machine::new().await;
        machine.write(&format!("{base}/agent/server-ca.crt"), &machine.pki.pem);
        let kubelet = machine.client(&format!("{base}/{KUBELET}"));
        assert_eq!(machine.check(&mut machine.probe()).await, (ready(), Some(kubelet)));
        // A server has both; its own CA counts, not the agent's copy.
        machine.write(&format!("{base}/agent/server-ca.crt"), &Pki::new().pem);
        machine.write(&format!("{base}/server/tls/server-ca.crt"), &machine.pki.pem);
        let admin = machine.client(&format!("{base}/{ADMIN}"));
        assert_eq!(machine.check(&mut machine.probe()).await, (ready(), Some(admin)));
    }
    let machine = Machine::new().await;
    machine.write("etc/kubernetes/pki/ca.crt", &machine.pki.pem);
    let pair = machine.pki.client();
    machine.write("var/lib/kubelet/pki/kubelet-client-2030.pem", &(pair.cert.clone() + &pair.key));
    let current = machine.dir.path().join("var/lib/kubelet/pki/kubelet-client-current.pem");
    symlink("kubelet-client-2030.pem", current).unwrap();
    assert_eq!(machine.check(&mut machine.probe()).await, (ready(), Some(pair.der())));
    let master = machine.client("etc/kubernetes/pki/apiserver-kubelet-client");
    assert_eq!(machine.check(&mut machine.probe()).await, (ready(), Some(master)));
}

#[tokio::test]
async fn the_ca_that_is_found_verifies() {
    let machine = Machine::new().await;
    machine.write(&format!("{K3S}/server/tls/server-ca.crt"), &Pki::new().pem);
    assert_eq!(
        machine.probe().check(Moment::ZERO, machine.server.address, Box::new(|_| ())).await,
        CheckOutcome::new(CheckAnswer::NotReady, Cause::Tls(TlsFault::UnknownCa)).with("tls/server-ca.crt")
    );
    // Leftovers of a removed k3s are not mixed with the kubeadm in use.
    machine.write("etc/kubernetes/pki/ca.crt", &machine.pki.pem);
    let used = machine.client("etc/kubernetes/pki/apiserver-kubelet-client");
    assert_eq!(machine.check(&mut machine.probe()).await, (ready(), Some(used)));
}

#[tokio::test]
async fn a_garbled_file_is_skipped_for_the_next() {
    let machine = Machine::new().await;
    machine.write(&format!("{K3S}/{ADMIN}.crt"), "-----BEGIN CERTIFICATE-----\nAAAA");
    machine.write(&format!("{K3S}/{ADMIN}.key"), "");
    machine.write(&format!("{K3S}/server/tls/server-ca.crt"), "none");
    machine.write(&format!("{K3S}/agent/server-ca.crt"), &machine.pki.pem);
    let kubelet = machine.client(&format!("{K3S}/{KUBELET}"));
    assert_eq!(machine.check(&mut machine.probe()).await, (ready(), Some(kubelet)));
}

#[tokio::test]
async fn the_reason_names_the_file_and_why() {
    let machine = Machine::new().await;
    machine.server.say(401, "");
    let stem = format!("{K3S}/{ADMIN}");
    let cases = [
        ("no PEM", "", "tls/client-admin.crt: contains no certificate"),
        ("-----BEGIN CERTIFICATE-----\nAAAA", "", "tls/client-admin.crt: not a PEM file"),
        (&machine.pki.client().cert, "", "tls/client-admin.key: contains no private key"),
        (
            &machine.pki.client().cert,
            &machine.pki.client().key,
            "tls/client-admin.key is not the key of the certificate in tls/client-admin.crt",
        ),
    ];
    for (cert, key, why) in cases {
        machine.write(&format!("{stem}.crt"), cert);
        machine.write(&format!("{stem}.key"), key);
        let outcome = machine.probe().check(Moment::ZERO, machine.server.address, Box::new(|_| ())).await;
        assert_eq!(outcome, CheckOutcome::new(CheckAnswer::Alive, Cause::Http(401)).with(why));
    }
    let path = machine.dir.path().join(format!("{stem}.crt"));
    std::fs::remove_file(&path).unwrap();
    std::fs::create_dir(&path).unwrap();
    let outcome = machine.probe().check(Moment::ZERO, machine.server.address, Box::new(|_| ())).await;
    assert_eq!(
        outcome,
        CheckOutcome::new(CheckAnswer::Alive, Cause::Http(401)).with("tls/client-admin.crt: is a directory")
    );
}

#[tokio::test]
async fn a_configured_ca_is_never_skipped() {
    let machine = Machine::new().await;
    machine.write("etc/kubernetes/pki/ca.crt", &machine.pki.pem);
    let missing = machine.dir.path().join("pki/ca.crt").to_str().unwrap().to_owned();
    let garbled =
        machine.write("bad/ca.crt", "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n");
    for (file, why) in [
        (missing, "pki/ca.crt does not exist; correct the path"),
        (garbled, "bad/ca.crt contains no usable CA"),
    ] {
        let check = https(TlsCheck { ca_file: Some(file), ..discover() });
        let outcome = Probe::new(&check, machine.dir.path())
            .check(Moment::ZERO, machine.server.address, Box::new(|_| ()))
            .await;
        assert_eq!(outcome, CheckOutcome::new(CheckAnswer::NotReady, Cause::NoCredentials).with(why));
    }
}

#[tokio::test]
async fn rotated_files_are_reloaded() {
    let machine = Machine::new().await;
    let stem = format!("{K3S}/{ADMIN}");
    let ca = format!("{K3S}/server/tls/server-ca.crt");
    machine.write(&ca, &machine.pki.pem);
    let mut probe = machine.probe();
    assert_eq!(machine.check(&mut probe).await, (ready(), None), "before k3s has written its files");
    let first = machine.client(&stem);
    assert_eq!(machine.check(&mut probe).await, (ready(), None), "within ten seconds");
    assert_eq!(machine.check_later(&mut probe, 1).await, (ready(), Some(first.clone())));
    // Half of a rotation: the certificate is new, its key is not there yet. The old pair still works.
    let next = machine.pki.client();
    machine.write(&format!("{stem}.crt"), &next.cert);
    assert_eq!(machine.check_later(&mut probe, 2).await, (ready(), Some(first)));
    machine.write(&format!("{stem}.key"), &next.key);
    assert_eq!(machine.check_later(&mut probe, 3).await, (ready(), Some(next.der())));
    // The CA too.
    machine.write(&ca, &Pki::new().pem);
    assert_eq!(machine.check_later(&mut probe, 4).await.0.answer, CheckAnswer::NotReady);
    // After a failure at once.
    machine.write(&ca, &machine.pki.pem);
    assert_eq!(machine.check_later(&mut probe, 4).await.0, ready());
}

#[tokio::test]
async fn every_key_format_that_kubernetes_writes_is_read() {
    let machine = Machine::new().await;
    // kubeadm writes PKCS#1 keys, k3s SEC1; PKCS#8 is what every other test uses.
    let rsa = machine.write("rsa.pem", include_str!("rsa-pkcs1.pem"));
    let check = https(TlsCheck { cert_file: Some(rsa), ..TlsCheck::default() });
    machine.server.say(401, "");
    // Loaded and shown: this server does not know its issuer.
    let outcome = Probe::new(&check, Path::new("/nonexistent"))
        .check(Moment::ZERO, machine.server.address, Box::new(|_| ()))
        .await;
    assert_eq!(
        outcome,
        CheckOutcome::new(CheckAnswer::Alive, Cause::Tls(TlsFault::ClientCertificateRejected))
    );

    let pair = machine.pki.client();
    let cert = machine.write("sec1.crt", &pair.cert);
    let key = machine.write("sec1.key", &sec1(&pair.key));
    let check = https(TlsCheck { cert_file: Some(cert), key_file: Some(key), ..TlsCheck::default() });
    machine.server.say(200, "ok");
    let mut probe = Probe::new(&check, Path::new("/nonexistent"));
    assert_eq!(machine.check(&mut probe).await, (ready(), Some(pair.der())));
}

/// The ECPrivateKey (RFC 5915) inside a PKCS#8 key of P-256, as PEM.
fn sec1(pkcs8: &str) -> String {
    let PrivateKeyDer::Pkcs8(key) = PrivateKeyDer::from_pem_slice(pkcs8.as_bytes()).unwrap() else {
        panic!("not PKCS#8")
    };
    let der = key.secret_pkcs8_der();
    let inner = der.windows(5).position(|window| window == [2, 1, 1, 4, 32]).unwrap() - 2;
    let text = data_encoding::BASE64.encode(&der[inner..]);
    format!("-----BEGIN EC PRIVATE KEY-----\n{text}\n-----END EC PRIVATE KEY-----\n")
}
