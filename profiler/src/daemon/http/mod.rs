//! HTTP: profiles as Go serves them, metrics, an API, a page; to read only.
//!
//! Whoever asks can be hostile, and many. Connections, their headers and the time they take are bounded; so are the requests
//! that read the history at a time, and what one may read. What waits for windows waits for a bounded time.

mod access;
mod api;
mod page;
mod pprof;
mod service;
mod stall;

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use anyhow::{Context as _, Result, anyhow, bail};
use axum::extract::{Request, State};
use axum::http::{HeaderValue, StatusCode, header};
use axum::middleware::{self, Next};
use axum::response::{IntoResponse as _, Response};
use axum::routing::get;
use axum::{Extension, Router};
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use serde::{Deserialize, Serialize};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio::time::timeout;
use tokio_rustls::TlsAcceptor;

pub use access::{TlsConfig, Token};
pub use api::OPENAPI;
pub use service::{Health, Service};
use stall::Stalling;

/// Where and to whom it is spoken.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HttpConfig {
    /// Address and port; port 0 for any that is free.
    pub listen: SocketAddr,
    /// Who has it may ask.
    pub token: Option<Token>,
    /// Certificates, for TLS.
    pub tls: Option<TlsConfig>,
}

impl Default for HttpConfig {
    fn default() -> Self {
        Self { listen: SocketAddr::from(([127, 0, 0, 1], 4041)), token: None, tls: None }
    }
}

impl HttpConfig {
    /// Reads a token from a file.
    ///
    /// # Errors
    ///
    /// When it cannot be read, or has none.
    pub fn read_token(path: &Path) -> Result<Token> {
        let text =
            std::fs::read_to_string(path).with_context(|| format!("cannot read the token in {}", path.display()))?;
        Token::new(&text).with_context(|| format!("cannot use the token in {}", path.display()))
    }
}

/// The section `[http]` of the configuration.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct HttpSettings {
    /// Address and port; empty for none.
    pub listen: String,
    /// File with the token that whoever asks must have.
    pub token_file: PathBuf,
    /// Our certificates, PEM, our own first.
    pub tls_certificate: PathBuf,
    /// Our key, PEM.
    pub tls_key: PathBuf,
    /// Who signs the certificates of those who may ask, PEM.
    pub tls_client_ca: PathBuf,
}

impl Default for HttpSettings {
    fn default() -> Self {
        Self {
            listen: HttpConfig::default().listen.to_string(),
            token_file: PathBuf::new(),
            tls_certificate: PathBuf::new(),
            tls_key: PathBuf::new(),
            tls_client_ca: PathBuf::new(),
        }
    }
}

impl HttpSettings {
    /// Where and to whom it is spoken; `None` for nowhere.
    ///
    /// # Errors
    ///
    /// When the address is none, others reach it without proof, one of the files for TLS is missing, or the token cannot be
    /// read.
    pub fn config(&self) -> Result<Option<HttpConfig>> {
        if self.listen.is_empty() {
            return Ok(None);
        }
        let listen = self.listen.parse().map_err(|_| {
            anyhow!("[http] listen = {:?} is no address: use for instance 127.0.0.1:4041 or [::1]:4041", self.listen)
        })?;
        let named = |path: &PathBuf| Some(path.clone()).filter(|path| !path.as_os_str().is_empty());
        let token = named(&self.token_file).map(|path| HttpConfig::read_token(&path)).transpose()?;
        let tls = match (named(&self.tls_certificate), named(&self.tls_key), named(&self.tls_client_ca)) {
            (None, None, None) => None,
            (Some(certificate), Some(key), client_ca) => Some(TlsConfig { certificate, key, client_ca }),
            _ => bail!("[http] TLS needs tls_certificate and tls_key, both"),
        };
        access::check(listen, token.as_ref(), tls.as_ref())?;
        Ok(Some(HttpConfig { listen, token, tls }))
    }
}

/// Most connections at a time; more wait.
const MAX_CONNECTIONS: usize = 64;
/// Longest wait for the headers of a request, from the end of the one before.
const HEADER_TIME: Duration = Duration::from_secs(15);
/// Longest wait for a handshake of TLS.
const HANDSHAKE_TIME: Duration = Duration::from_secs(10);
/// Longest wait for somebody to take a part of an answer.
const WRITE_TIME: Duration = Duration::from_secs(20);
/// Longest time of a connection, whatever is said on it: longer than any request may take.
const CONNECTION_TIME: Duration = Duration::from_secs(900);
/// Most bytes of headers, and headers.
const MAX_HEADER_BYTES: usize = 16 << 10;
const MAX_HEADERS: usize = 64;

/// What came of requests, for metrics.
#[derive(Debug, Default)]
pub struct Requests {
    /// Answered, by the hundreds of the status: 1 to 5.
    by_class: [AtomicU64; 6],
}

impl Requests {
    fn count(&self, status: StatusCode) {
        if let Some(counter) = self.by_class.get(usize::from(status.as_u16() / 100)) {
            counter.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Requests by the hundreds of their status: `2xx`.
    pub fn counts(&self) -> impl Iterator<Item = (String, u64)> {
        let counts = (1..).zip(&self.by_class[1..]);
        counts.map(|(class, counter): (u32, _)| (format!("{class}xx"), counter.load(Ordering::Relaxed)))
    }
}

/// A server that has its address and does not listen yet.
pub struct Server {
    listener: TcpListener,
    acceptor: Option<TlsAcceptor>,
    is_mutual: bool,
    config: HttpConfig,
}

impl Server {
    /// Takes the address.
    ///
    /// # Errors
    ///
    /// When others reach it and nothing keeps them out, certificates cannot be used, or the address is taken.
    pub async fn bind(config: HttpConfig) -> Result<Self> {
        access::check(config.listen, config.token.as_ref(), config.tls.as_ref())?;
        let acceptor = config.tls.as_ref().map(TlsConfig::acceptor).transpose()?;
        let is_mutual = config.tls.as_ref().is_some_and(|tls| tls.client_ca.is_some());
        let listen = config.listen;
        let listener = TcpListener::bind(listen).await.with_context(|| {
            format!("cannot listen on {listen}: choose another address with --listen, or stop who has it")
        })?;
        Ok(Self { listener, acceptor, is_mutual, config })
    }

    /// The address, with the port that was chosen.
    ///
    /// # Errors
    ///
    /// When the kernel does not tell.
    pub fn address(&self) -> std::io::Result<SocketAddr> {
        self.listener.local_addr()
    }

    /// Serves until the future is dropped.
    pub async fn serve(self, service: Arc<Service>) {
        let router = router(service, self.config.token.clone());
        let room = Arc::new(Semaphore::new(MAX_CONNECTIONS));
        // Ends with the server.
        let mut connections = tokio::task::JoinSet::new();
        loop {
            while connections.try_join_next().is_some() {}
            let Ok(permit) = Arc::clone(&room).acquire_owned().await else { return };
            let Ok((stream, _)) = self.listener.accept().await else {
                // No descriptor is free: that passes.
                tokio::time::sleep(Duration::from_millis(100)).await;
                continue;
            };
            let (router, acceptor, is_mutual) = (router.clone(), self.acceptor.clone(), self.is_mutual);
            connections.spawn(async move {
                let _permit = permit;
                let _ = timeout(CONNECTION_TIME, speak(stream, acceptor, is_mutual, router)).await;
            });
        }
    }
}

/// Whether the other side of a connection has shown a certificate.
#[derive(Clone, Copy)]
struct Mutual(bool);

async fn speak(stream: TcpStream, acceptor: Option<TlsAcceptor>, is_mutual: bool, router: Router) {
    let _ = stream.set_nodelay(true);
    let router = router.layer(Extension(Mutual(is_mutual)));
    match acceptor {
        None => answer(stream, router).await,
        Some(acceptor) => {
            if let Ok(Ok(stream)) = timeout(HANDSHAKE_TIME, acceptor.accept(stream)).await {
                answer(stream, router).await;
            }
        }
    }
}

async fn answer<T: AsyncRead + AsyncWrite + Unpin + Send + 'static>(stream: T, router: Router) {
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEADER_TIME)
        .max_buf_size(MAX_HEADER_BYTES)
        .max_headers(MAX_HEADERS)
        .half_close(false)
        .serve_connection(TokioIo::new(Stalling::new(stream, WRITE_TIME)), TowerToHyperService::new(router));
    // Whatever ends it, it has ended.
    let _ = connection.await;
}

fn router(service: Arc<Service>, token: Option<Token>) -> Router {
    Router::new()
        .route("/", get(page::page))
        .route("/metrics", get(api::metrics))
        .merge(pprof::router())
        .nest("/api/v1", api::router())
        .with_state(Arc::clone(&service))
        .layer(middleware::from_fn_with_state(Arc::new(token), admit))
        // Anybody may know whether it is well: those who look after it have no token.
        .route("/healthz", get(api::health).with_state(Arc::clone(&service)))
        .layer(middleware::from_fn_with_state(service, finish))
}

async fn admit(State(token): State<Arc<Option<Token>>>, request: Request, next: Next) -> Response {
    let is_mutual = request.extensions().get::<Mutual>().is_some_and(|mutual| mutual.0);
    match access::admit(request.headers(), token.as_ref().as_ref(), is_mutual) {
        Ok(()) => next.run(request).await,
        Err(StatusCode::UNAUTHORIZED) => {
            let ask = (header::WWW_AUTHENTICATE, HeaderValue::from_static("Basic realm=\"profiler\", Bearer"));
            let text = "a token is needed: Authorization: Bearer TOKEN, or TOKEN as the password\n";
            (StatusCode::UNAUTHORIZED, [ask], text).into_response()
        }
        Err(status) => {
            (status, "this address is asked for by its number or as localhost; others need a token\n").into_response()
        }
    }
}

/// Counts an answer, and says what no browser should make of it.
async fn finish(State(service): State<Arc<Service>>, request: Request, next: Next) -> Response {
    let mut response = next.run(request).await;
    service.requests.count(response.status());
    let headers = response.headers_mut();
    for (name, value) in [
        (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
        (header::X_FRAME_OPTIONS, "DENY"),
        (header::REFERRER_POLICY, "no-referrer"),
        (header::CACHE_CONTROL, "no-store"),
    ] {
        headers.insert(name, HeaderValue::from_static(value));
    }
    response
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn settings_say_what_is_wrong() {
        let settings = HttpSettings::default();
        assert_eq!(settings.config().unwrap(), Some(HttpConfig::default()));
        let listen = |listen: &str| HttpSettings { listen: listen.to_owned(), ..HttpSettings::default() };
        assert_eq!(listen("").config().unwrap(), None);
        for (wrong, word) in [
            (listen("here"), "no address"),
            (listen("0.0.0.0:4041"), "token_file"),
            (HttpSettings { tls_key: "key.pem".into(), ..settings.clone() }, "tls_certificate"),
            (HttpSettings { token_file: "/does/not/exist".into(), ..settings }, "/does/not/exist"),
        ] {
            let error = format!("{:#}", wrong.config().unwrap_err());
            assert!(error.contains(word), "{error}");
        }
    }
}
