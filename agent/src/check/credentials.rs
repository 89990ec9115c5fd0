//! Where Kubernetes keeps what a check needs: the cluster's CA and a client certificate that may GET /readyz.
//! Found automatically or configured, and reloaded whenever a file changes, since Kubernetes rotates them.

use std::fs;
use std::io::Read;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use proto::service::TlsCheck;
use rustls::RootCertStore;
use rustls::pki_types::pem::{self, PemObject};
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::sign::CertifiedKey;

/// Where a distribution keeps its files, best first. On a server its own directory comes before the agent's,
/// because the agent's appear only after the kubelet has joined.
struct Layout {
    /// Certificate and key; the same file twice where one file holds both.
    clients: [(&'static str, &'static str); 2],
    cas: &'static [&'static str],
}

const LAYOUTS: [Layout; 3] = [
    Layout {
        clients: [
            (
                "var/lib/rancher/k3s/server/tls/client-admin.crt",
                "var/lib/rancher/k3s/server/tls/client-admin.key",
            ),
            ("var/lib/rancher/k3s/agent/client-kubelet.crt", "var/lib/rancher/k3s/agent/client-kubelet.key"),
        ],
        cas: &["var/lib/rancher/k3s/server/tls/server-ca.crt", "var/lib/rancher/k3s/agent/server-ca.crt"],
    },
    Layout {
        clients: [
            (
                "var/lib/rancher/rke2/server/tls/client-admin.crt",
                "var/lib/rancher/rke2/server/tls/client-admin.key",
            ),
            (
                "var/lib/rancher/rke2/agent/client-kubelet.crt",
                "var/lib/rancher/rke2/agent/client-kubelet.key",
            ),
        ],
        cas: &["var/lib/rancher/rke2/server/tls/server-ca.crt", "var/lib/rancher/rke2/agent/server-ca.crt"],
    },
    Layout {
        clients: [
            (
                "etc/kubernetes/pki/apiserver-kubelet-client.crt",
                "etc/kubernetes/pki/apiserver-kubelet-client.key",
            ),
            (
                "var/lib/kubelet/pki/kubelet-client-current.pem",
                "var/lib/kubelet/pki/kubelet-client-current.pem",
            ),
        ],
        cas: &["etc/kubernetes/pki/ca.crt"],
    },
];

/// Larger than any CA bundle in use; a larger file is not one of ours.
const MAX_FILE: u64 = 1024 * 1024;

/// The certificates of a CA file.
pub(super) struct Ca {
    pub(super) file: PathBuf,
    pub(super) roots: Arc<RootCertStore>,
}

/// What was found. `problems` are files that exist and could not be used, each with the reason.
#[derive(Default)]
pub(super) struct FoundCredentials {
    pub(super) ca: Option<Ca>,
    /// A client certificate with its chain and key.
    pub(super) client: Option<Arc<CertifiedKey>>,
    pub(super) problems: Vec<String>,
}

/// The files that a check looks at.
pub(super) struct CredentialPaths {
    /// Configured files; these have to exist.
    named: CandidatePaths,
    /// Files looked for when none is configured, in the order of each distribution.
    layouts: Vec<CandidatePaths>,
}

/// Whole paths, best first.
#[derive(Default)]
struct CandidatePaths {
    clients: Vec<(PathBuf, PathBuf)>,
    cas: Vec<PathBuf>,
}

/// Identifies a version of a file.
#[derive(PartialEq, Eq)]
pub(super) struct FileStamp {
    device: u64,
    inode: u64,
    len: u64,
    modified: (i64, i64),
    /// Changes also when only the permissions change.
    changed: (i64, i64),
}

impl CredentialPaths {
    /// The files that `tls` names, and those of the distributions below `root`.
    pub(super) fn new(tls: &TlsCheck, root: &Path) -> CredentialPaths {
        let mut named =
            CandidatePaths { clients: Vec::new(), cas: tls.ca_file.iter().map(PathBuf::from).collect() };
        if let Some(cert) = &tls.cert_file {
            named.clients.push((cert.into(), tls.key_file.as_ref().unwrap_or(cert).into()));
        }
        let mut layouts = Vec::new();
        for layout in LAYOUTS.iter().filter(|_| tls.discover) {
            let mut candidates = CandidatePaths::default();
            if named.clients.is_empty() {
                candidates.clients =
                    layout.clients.map(|(cert, key)| (root.join(cert), root.join(key))).into();
            }
            if named.cas.is_empty() {
                candidates.cas = layout.cas.iter().map(|ca| root.join(ca)).collect();
            }
            layouts.push(candidates);
        }
        CredentialPaths { named, layouts }
    }

    /// The stamps of all files; when they differ, the files have to be read again.
    pub(super) fn stamps(&self) -> Vec<Option<FileStamp>> {
        let all = std::iter::once(&self.named).chain(&self.layouts);
        let files = all.flat_map(|c| c.clients.iter().flat_map(|(cert, key)| [cert, key]).chain(&c.cas));
        files.map(|file| stamp(file)).collect()
    }

    /// Reads the files. CA and client certificate are taken from one distribution, so that leftovers of an
    /// earlier one are not mixed with what is in use; one with a client certificate takes precedence over one
    /// with only a CA.
    pub(super) fn read(&self) -> FoundCredentials {
        let mut found = FoundCredentials::default();
        found.client = first(&self.named.clients, true, &mut found.problems, read_client);
        found.ca = first(&self.named.cas, true, &mut found.problems, |file| read_ca(file));
        let mut best = (None, None);
        for layout in &self.layouts {
            let client = first(&layout.clients, false, &mut found.problems, read_client);
            let ca = first(&layout.cas, false, &mut found.problems, |file| read_ca(file));
            if client.is_some() {
                best = (client, ca);
                break;
            }
            best.1 = best.1.or(ca);
        }
        found.client = found.client.or(best.0);
        found.ca = found.ca.or(best.1);
        found
    }

    /// Whether a CA is configured, so that continuing without one would be wrong.
    pub(super) fn names_a_ca(&self) -> bool {
        !self.named.cas.is_empty()
    }
}

fn read_client((cert, key): &(PathBuf, PathBuf)) -> Result<Arc<CertifiedKey>, CredentialError> {
    let chain = certificates(cert)?;
    let provider = rustls::crypto::ring::default_provider();
    let certified = CertifiedKey::from_der(chain, private_key(key)?, &provider).map_err(|error| {
        CredentialError::Bad(match error {
            rustls::Error::InconsistentKeys(_) => {
                format!("{} is not the key of the certificate in {}", tail(key), tail(cert))
            }
            _ => format!("{} is not a usable certificate and key", tail(cert)),
        })
    })?;
    Ok(Arc::new(certified))
}

fn read_ca(file: &Path) -> Result<Ca, CredentialError> {
    let mut roots = RootCertStore::empty();
    if roots.add_parsable_certificates(certificates(file)?).0 == 0 {
        return Err(CredentialError::Bad(format!("{} contains no usable CA", tail(file))));
    }
    Ok(Ca { file: file.to_owned(), roots: Arc::new(roots) })
}

/// The first candidate that can be read. A missing file is a problem only if `required`.
fn first<C, T>(
    candidates: &[C],
    required: bool,
    problems: &mut Vec<String>,
    read: impl Fn(&C) -> Result<T, CredentialError>,
) -> Option<T> {
    for candidate in candidates {
        match read(candidate) {
            Ok(value) => return Some(value),
            Err(CredentialError::Absent(_)) if !required => {}
            Err(CredentialError::Absent(text) | CredentialError::Bad(text)) => problems.push(text),
        }
    }
    None
}

enum CredentialError {
    Absent(String),
    Bad(String),
}

/// The end of a path, short enough for a reason: the whole path is in the log.
pub(super) fn tail(file: &Path) -> String {
    let parts: Vec<_> = file.iter().map(|part| part.to_string_lossy()).collect();
    parts[parts.len().saturating_sub(2)..].join("/").replace("//", "/")
}

fn bytes(file: &Path) -> Result<Vec<u8>, CredentialError> {
    let failed = |error: std::io::Error| {
        let file = tail(file);
        match error.kind() {
            std::io::ErrorKind::NotFound => {
                CredentialError::Absent(format!("{file} does not exist; correct the path"))
            }
            std::io::ErrorKind::PermissionDenied => {
                CredentialError::Bad(format!("cannot read {file}; make it readable for the agent's user"))
            }
            kind => CredentialError::Bad(format!("{file}: {kind}")),
        }
    };
    let mut text = Vec::new();
    fs::File::open(file).map_err(failed)?.take(MAX_FILE).read_to_end(&mut text).map_err(failed)?;
    Ok(text)
}

fn certificates(file: &Path) -> Result<Vec<CertificateDer<'static>>, CredentialError> {
    let bad = |why: &str| CredentialError::Bad(format!("{}: {why}", tail(file)));
    let found: Vec<_> = CertificateDer::pem_slice_iter(&bytes(file)?)
        .collect::<Result<_, _>>()
        .map_err(|_| bad("not a PEM file"))?;
    if found.is_empty() { Err(bad("contains no certificate")) } else { Ok(found) }
}

fn private_key(file: &Path) -> Result<PrivateKeyDer<'static>, CredentialError> {
    PrivateKeyDer::from_pem_slice(&bytes(file)?).map_err(|error| {
        let why = match error {
            pem::Error::NoItemsFound => "contains no private key",
            _ => "not a PEM file",
        };
        CredentialError::Bad(format!("{}: {why}", tail(file)))
    })
}

fn stamp(file: &Path) -> Option<FileStamp> {
    let meta = fs::metadata(file).ok()?;
    Some(FileStamp {
        device: meta.dev(),
        inode: meta.ino(),
        len: meta.len(),
        modified: (meta.mtime(), meta.mtime_nsec()),
        changed: (meta.ctime(), meta.ctime_nsec()),
    })
}
