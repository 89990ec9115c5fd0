//! A few requests to an apiserver with the credentials of this node's check: to see where pods are led, and to lead
//! them right.

use std::net::SocketAddr;
use std::path::Path;
use std::time::Duration;

use http_body_util::Full;
use hyper::body::Bytes;
use hyper::{Method, Request, header};
use proto::service::TlsCheck;
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

use super::tls::TlsFiles;
use crate::http;

/// Longest time for one answer: as long as a check of a loaded apiserver takes.
const WITHIN: Duration = Duration::from_millis(2_500);

/// Most bytes of an answer: five thousand nodes, whose objects have a few kilobytes each.
const MOST: usize = 64 * 1024 * 1024;

/// Who owns the fields of what is applied.
const MANAGER: &str = "agent";

/// Why an apiserver did not do it.
#[derive(Debug, thiserror::Error)]
pub(crate) enum KubeError {
    /// No client certificate was found.
    #[error("no client certificate was found here")]
    NoCredentials,
    /// It can't be known who would be told.
    #[error("no CA was found here to verify the apiserver with")]
    NoCa,
    /// It can't be reached.
    #[error("{at} does not answer: {why}")]
    Unreachable {
        /// Where.
        at: SocketAddr,
        /// What was seen.
        why: String,
    },
    /// It does not allow it.
    #[error("the apiserver does not allow it ({0})")]
    Forbidden(u16),
    /// It answered something else.
    #[error("the apiserver answered {0}")]
    Answered(u16),
    /// Its answer is not understood.
    #[error("the apiserver's answer is not understood: {0}")]
    NotUnderstood(#[from] serde_json::Error),
}

/// Asks apiservers.
pub(crate) struct KubeClient {
    tls: TlsFiles,
}

impl KubeClient {
    /// With the credentials that `check` names or finds below `root`.
    pub(crate) fn new(check: &TlsCheck, root: &Path) -> KubeClient {
        KubeClient { tls: TlsFiles::new(check, root) }
    }

    /// Reads an object; `None`: there is none.
    ///
    /// # Errors
    /// It was not read.
    pub(crate) async fn get<T: serde::de::DeserializeOwned>(
        &mut self,
        at: SocketAddr,
        path: &str,
    ) -> Result<Option<T>, KubeError> {
        let (status, body) = self.ask(at, Method::GET, path, None).await?;
        match status {
            200 => Ok(Some(serde_json::from_slice(&body)?)),
            404 => Ok(None),
            401 | 403 => Err(KubeError::Forbidden(status)),
            _ => Err(KubeError::Answered(status)),
        }
    }

    /// Applies an object, whoever owns its fields.
    ///
    /// # Errors
    /// It was not applied.
    pub(crate) async fn apply(
        &mut self,
        at: SocketAddr,
        path: &str,
        object: String,
    ) -> Result<(), KubeError> {
        let path = format!("{path}?fieldManager={MANAGER}&force=true");
        let (status, _) = self.ask(at, Method::PATCH, &path, Some(object)).await?;
        match status {
            200 | 201 => Ok(()),
            401 | 403 => Err(KubeError::Forbidden(status)),
            _ => Err(KubeError::Answered(status)),
        }
    }

    async fn ask(
        &mut self,
        at: SocketAddr,
        method: Method,
        path: &str,
        object: Option<String>,
    ) -> Result<(u16, Bytes), KubeError> {
        let unreachable = |why: String| KubeError::Unreachable { at, why };
        let asked = async {
            let (ready, name) = match (self.tls.current().await, self.tls.server_name(at.ip())) {
                (Ok(ready), Ok(name)) => (ready, name),
                (Err(unusable), _) | (_, Err(unusable)) => return Err(unreachable(unusable.to_string())),
            };
            if !ready.client {
                return Err(KubeError::NoCredentials);
            }
            if object.is_some() && ready.ca.is_none() {
                return Err(KubeError::NoCa);
            }
            let stream = TcpStream::connect(at).await.map_err(|error| unreachable(error.to_string()))?;
            let stream = TlsConnector::from(ready.whole(&name)).connect(name, stream).await;
            let stream = stream.map_err(|error| unreachable(error.to_string()))?;
            let host = self.tls.configured_name().map_or_else(|| at.to_string(), str::to_owned);
            let mut request = Request::builder()
                .method(method)
                .uri(path)
                .header(header::HOST, host)
                .header(header::USER_AGENT, concat!("agent/", env!("CARGO_PKG_VERSION")))
                .header(header::ACCEPT, "application/json")
                .header(header::CONNECTION, "close");
            if object.is_some() {
                request = request.header(header::CONTENT_TYPE, "application/apply-patch+yaml");
            }
            let body = object.map(Full::from).unwrap_or_default();
            let request = request.body(body).map_err(|error| unreachable(error.to_string()))?;
            http::ask(Box::new(stream), request, MOST).await.map_err(|error| unreachable(error.to_string()))
        };
        match tokio::time::timeout(WITHIN, asked).await {
            Ok(answer) => answer,
            Err(_) => Err(unreachable("no answer in time".to_owned())),
        }
    }
}
