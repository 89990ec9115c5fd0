//! Certificates for the stand-ins: from a CA that exists only for this demo.

use std::net::IpAddr;

use rcgen::{BasicConstraints, CertificateParams, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, SanType};

/// The name that every apiserver's certificate carries.
pub(super) const KUBERNETES: &str = "kubernetes";

/// A CA and one serving certificate, all PEM.
pub(super) struct Pki {
    pub(super) ca: String,
    pub(super) cert: String,
    pub(super) key: String,
}

/// Makes a CA and lets it sign a certificate for `kubernetes` and `addresses`.
pub(super) fn make(addresses: &[IpAddr]) -> Result<Pki, rcgen::Error> {
    let ca_key = KeyPair::generate()?;
    let mut params = CertificateParams::new(Vec::new())?;
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let ca = params.self_signed(&ca_key)?.pem();
    let issuer = Issuer::new(params, ca_key);

    let key = KeyPair::generate()?;
    let mut params = CertificateParams::new(vec![KUBERNETES.to_owned()])?;
    params.subject_alt_names.extend(addresses.iter().map(|address| SanType::IpAddress(*address)));
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
    let cert = params.signed_by(&key, &issuer)?.pem();
    Ok(Pki { ca, cert, key: key.serialize_pem() })
}
