//! The certificates that a cluster would have: an authority, the masters' serving certificate for the name
//! `kubernetes`, and a client's.

use std::path::{Path, PathBuf};

use anyhow::Result;
use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair};

/// Files in PEM.
#[derive(Debug, Clone)]
pub struct Certs {
    /// The authority.
    pub ca: PathBuf,
    /// The masters' serving certificate: for `kubernetes` and `localhost`, without addresses.
    pub server: PathBuf,
    /// The same for 127.0.0.1 too, as required for clients behind the proxy.
    pub server_proxied: PathBuf,
    /// The key of both.
    pub server_key: PathBuf,
    /// A kubelet's client certificate.
    pub client: PathBuf,
    /// Its key.
    pub client_key: PathBuf,
    /// An administrator's client certificate, as in kubeadm's admin.conf.
    pub admin: PathBuf,
    /// Its key.
    pub admin_key: PathBuf,
    /// What apiservers sign tokens of service accounts with.
    pub service_account_key: PathBuf,
    /// Its public half.
    pub service_account_public_key: PathBuf,
    /// Another authority, which has signed nothing here.
    pub stranger_ca: PathBuf,
}

impl Certs {
    pub(crate) fn make(dir: &Path) -> Result<Certs> {
        std::fs::create_dir_all(dir)?;
        let file = |name: &str, text: String| -> Result<PathBuf> {
            let path = dir.join(name);
            std::fs::write(&path, text)?;
            Ok(path)
        };
        let authority = |name: &str| -> Result<(CertificateParams, KeyPair)> {
            let mut params = named(name, &[])?;
            params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
            Ok((params, KeyPair::generate()?))
        };
        let (params, key) = authority("lab-ca")?;
        let ca = params.self_signed(&key)?;
        let issuer = Issuer::new(params, key);
        let (stranger, stranger_key) = authority("stranger-ca")?;
        let server_key = KeyPair::generate()?;
        let server =
            named("kube-apiserver", &["kubernetes", "localhost"])?.signed_by(&server_key, &issuer)?;
        let proxied = named("kube-apiserver", &["kubernetes", "localhost", "127.0.0.1"])?
            .signed_by(&server_key, &issuer)?;
        let client_key = KeyPair::generate()?;
        let client = named("system:node:lab", &[])?.signed_by(&client_key, &issuer)?;
        let (admin_key, service_account) = (KeyPair::generate()?, KeyPair::generate()?);
        let mut admin = named("kubernetes-admin", &[])?;
        admin.distinguished_name.push(DnType::OrganizationName, "system:masters");
        let admin = admin.signed_by(&admin_key, &issuer)?;
        Ok(Certs {
            ca: file("ca.crt", ca.pem())?,
            server: file("server.crt", server.pem())?,
            server_proxied: file("server-proxied.crt", proxied.pem())?,
            server_key: file("server.key", server_key.serialize_pem())?,
            client: file("client.crt", client.pem())?,
            client_key: file("client.key", client_key.serialize_pem())?,
            admin: file("admin.crt", admin.pem())?,
            admin_key: file("admin.key", admin_key.serialize_pem())?,
            service_account_key: file("sa.key", service_account.serialize_pem())?,
            service_account_public_key: file("sa.pub", service_account.public_key_pem())?,
            stranger_ca: file("stranger-ca.crt", stranger.self_signed(&stranger_key)?.pem())?,
        })
    }
}

fn named(name: &str, hosts: &[&str]) -> Result<CertificateParams> {
    let hosts: Vec<String> = hosts.iter().map(|host| (*host).to_owned()).collect();
    let mut params = CertificateParams::new(hosts)?;
    params.distinguished_name.push(DnType::CommonName, name);
    Ok(params)
}
