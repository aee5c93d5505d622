//! One request to one server, by HTTP/1.1 or, as gRPC asks for, HTTP/2; with TLS where the address says so.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, Result, anyhow, bail};
use axum::body::{Body, Bytes};
use axum::http::{Request, Uri, header};
use hyper::client::conn::{http1, http2};
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_rustls::TlsConnector;
use tokio_rustls::rustls::pki_types::pem::PemObject as _;
use tokio_rustls::rustls::pki_types::{CertificateDer, ServerName};
use tokio_rustls::rustls::{self, ClientConfig, RootCertStore};

/// Longest time of a request, the connection included.
const REQUEST_TIME: Duration = Duration::from_secs(30);
/// Most bytes of an answer that are looked at.
const MAX_ANSWER: usize = 64 << 10;
/// Where distributions keep the certificates that they trust.
const SYSTEM_ROOTS: [&str; 3] =
    ["/etc/ssl/certs/ca-certificates.crt", "/etc/pki/tls/certs/ca-bundle.crt", "/etc/ssl/cert.pem"];

/// What a server made of a request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(in crate::daemon) enum Outcome {
    /// It has it.
    Accepted,
    /// It may take it later.
    Later(String),
    /// It will never take it.
    Refused(String),
}

/// How a request is sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::daemon) enum Protocol {
    /// The body as it is, of this type.
    Http(&'static str),
    /// A call of gRPC.
    Grpc,
}

/// Where requests go.
#[derive(Clone)]
pub(in crate::daemon) struct Client {
    uri: Uri,
    protocol: Protocol,
    authorization: Option<String>,
    tls: Option<TlsConnector>,
}

impl Client {
    /// `address`: of the server, `http://` or `https://`; `path`: of the call. `authorization`: the value of that header.
    /// `ca`: who signs the server's certificate; the system's where none is named.
    pub(in crate::daemon) fn new(
        address: &str,
        path: &str,
        protocol: Protocol,
        authorization: Option<String>,
        ca: Option<&Path>,
    ) -> Result<Self> {
        let whole = format!("{}{path}", address.trim_end_matches('/'));
        let uri: Uri = whole
            .parse()
            .with_context(|| format!("{address:?} is no address: use http://HOST:PORT or https://HOST:PORT"))?;
        if uri.host().is_none() {
            bail!("{address:?} names no host: use http://HOST:PORT or https://HOST:PORT");
        }
        let tls = match uri.scheme_str() {
            Some("http") => None,
            Some("https") => Some(connector(ca, protocol)?),
            _ => bail!("{address:?} must begin with http:// or https://"),
        };
        Ok(Self { uri, protocol, authorization, tls })
    }

    /// Sends a request; what cannot be sent may be later.
    pub(in crate::daemon) async fn send(&self, body: Vec<u8>) -> Outcome {
        match timeout(REQUEST_TIME, self.try_send(body)).await {
            Ok(Ok(outcome)) => outcome,
            Ok(Err(error)) => Outcome::Later(format!("{error:#}")),
            Err(_) => Outcome::Later("no answer within 30 s".to_owned()),
        }
    }

    async fn try_send(&self, body: Vec<u8>) -> Result<Outcome> {
        let host = self.uri.host().unwrap_or_default().trim_matches(['[', ']']);
        let port = self.uri.port_u16().unwrap_or(if self.tls.is_some() { 443 } else { 80 });
        let stream =
            TcpStream::connect((host, port)).await.with_context(|| format!("cannot connect to {host}:{port}"))?;
        match &self.tls {
            None => self.speak(stream, body).await,
            Some(connector) => {
                let name = ServerName::try_from(host.to_owned()).context("no name of a server")?;
                let stream = connector.connect(name, stream).await.context("no TLS with it")?;
                self.speak(stream, body).await
            }
        }
    }

    async fn speak(
        &self,
        stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
        body: Vec<u8>,
    ) -> Result<Outcome> {
        let mut request = Request::post(self.uri.path_and_query().map_or("/", |path| path.as_str()))
            .header(header::USER_AGENT, concat!("profiler/", env!("CARGO_PKG_VERSION")));
        if let Some(authorization) = &self.authorization {
            request = request.header(header::AUTHORIZATION, authorization);
        }
        let authority = self.uri.authority().map_or("", |authority| authority.as_str());
        match self.protocol {
            Protocol::Http(kind) => {
                let request = request.header(header::HOST, authority).header(header::CONTENT_TYPE, kind);
                let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await?;
                let _connection = Running(tokio::spawn(connection).abort_handle());
                let response = sender.send_request(request.body(Body::from(body))?).await?;
                let status = response.status();
                let text = answer(Body::new(response.into_body())).await;
                Ok(match status.as_u16() {
                    200..=299 => Outcome::Accepted,
                    429 | 500..=599 => Outcome::Later(format!("{status}: {text}")),
                    _ => Outcome::Refused(format!("{status}: {text}")),
                })
            }
            Protocol::Grpc => {
                let mut parts = self.uri.clone().into_parts();
                parts.scheme = Some(if self.tls.is_some() { "https" } else { "http" }.parse()?);
                let request = request
                    .uri(Uri::from_parts(parts)?)
                    .header(header::CONTENT_TYPE, "application/grpc+proto")
                    .header(header::TE, "trailers");
                let (mut sender, connection) = http2::handshake(TokioExecutor::new(), TokioIo::new(stream)).await?;
                let _connection = Running(tokio::spawn(connection).abort_handle());
                let response = sender.send_request(request.body(Body::from(framed(&body)?))?).await?;
                grpc_outcome(response).await
            }
        }
    }
}

/// A connection that goes on in the background, as long as this lives.
struct Running(tokio::task::AbortHandle);

impl Drop for Running {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// A message with its prefix. Source: gRPC over HTTP2, "Length-Prefixed-Message".
fn framed(message: &[u8]) -> Result<Bytes> {
    let length = u32::try_from(message.len()).map_err(|_| anyhow!("a request of 4 GiB"))?;
    let mut framed = Vec::with_capacity(5 + message.len());
    framed.push(0);
    framed.extend(length.to_be_bytes());
    framed.extend(message);
    Ok(framed.into())
}

/// The status of a call is behind its answer, or with its head where there is none.
async fn grpc_outcome(response: hyper::Response<hyper::body::Incoming>) -> Result<Outcome> {
    use hyper::body::Body as _;
    let mut head = response.headers().clone();
    let http = response.status();
    let mut body = std::pin::pin!(response.into_body());
    let mut seen = 0;
    while let Some(frame) = std::future::poll_fn(|context| body.as_mut().poll_frame(context)).await {
        let frame = frame?;
        if let Some(data) = frame.data_ref() {
            seen += data.len();
            if seen > MAX_ANSWER {
                bail!("its answer does not end");
            }
        }
        if let Ok(trailers) = frame.into_trailers() {
            head.extend(trailers);
        }
    }
    let text = |name: &str| head.get(name).and_then(|value| value.to_str().ok()).unwrap_or_default().to_owned();
    let status = text("grpc-status");
    let told = format!("status {status}, HTTP {http}: {}", text("grpc-message"));
    // Source: gRPC, "Status codes": DEADLINE_EXCEEDED, RESOURCE_EXHAUSTED, ABORTED, INTERNAL, UNAVAILABLE may pass.
    Ok(match status.as_str() {
        "0" => Outcome::Accepted,
        "4" | "8" | "10" | "13" | "14" => Outcome::Later(told),
        "" if http.is_server_error() || http.as_u16() == 429 => Outcome::Later(told),
        _ => Outcome::Refused(told),
    })
}

/// The beginning of an answer, on one line.
async fn answer(body: Body) -> String {
    let bytes = axum::body::to_bytes(body, MAX_ANSWER).await.unwrap_or_default();
    let text = String::from_utf8_lossy(&bytes);
    text.chars().take(200).map(|c| if c.is_control() { ' ' } else { c }).collect()
}

fn connector(ca: Option<&Path>, protocol: Protocol) -> Result<TlsConnector> {
    let path =
        match ca {
            Some(path) => path.to_owned(),
            None => SYSTEM_ROOTS.iter().map(PathBuf::from).find(|path| path.exists()).context(
                "no certificates of the system were found: install ca-certificates, or name a file with `ca`",
            )?,
        };
    let mut roots = RootCertStore::empty();
    let certificates = CertificateDer::pem_file_iter(&path)
        .with_context(|| format!("cannot read the certificates in {}", path.display()))?;
    // Systems have certificates that are not understood: the others do.
    let (added, _) = roots.add_parsable_certificates(certificates.filter_map(Result::ok));
    if added == 0 {
        bail!("{} has no certificate", path.display());
    }
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let mut config = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()?
        .with_root_certificates(roots)
        .with_no_client_auth();
    config.alpn_protocols = match protocol {
        Protocol::Http(_) => vec![b"http/1.1".to_vec()],
        Protocol::Grpc => vec![b"h2".to_vec()],
    };
    Ok(TlsConnector::from(Arc::new(config)))
}
