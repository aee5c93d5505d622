//! Who may ask: on loopback everybody who is on this host, elsewhere who has the token or a certificate.

use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context as _, Result, bail};
use axum::http::{HeaderMap, StatusCode, header};
use subtle::ConstantTimeEq as _;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls::pki_types::pem::PemObject as _;
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tokio_rustls::rustls::server::WebPkiClientVerifier;
use tokio_rustls::rustls::{self, RootCertStore, ServerConfig};

/// Least characters of a token: what is shorter can be guessed.
const LEAST_TOKEN: usize = 16;

/// A secret that is never shown.
#[derive(Clone, PartialEq, Eq)]
pub struct Token(String);

impl fmt::Debug for Token {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("Token(hidden)")
    }
}

impl Token {
    /// A token of at least 16 characters, none of them white space.
    ///
    /// # Errors
    ///
    /// When it is shorter, or has others.
    pub fn new(text: &str) -> Result<Self> {
        let text = text.trim();
        if text.len() < LEAST_TOKEN || !text.bytes().all(|byte| byte.is_ascii_graphic()) {
            bail!(
                "a token needs {LEAST_TOKEN} characters or more, without spaces: make one with `openssl rand -hex 32`"
            );
        }
        Ok(Self(text.to_owned()))
    }

    /// Compares in a time that does not tell how much is right.
    fn is(&self, text: &[u8]) -> bool {
        self.0.as_bytes().ct_eq(text).into()
    }
}

/// Certificates by which each side knows the other.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TlsConfig {
    /// Our certificates, PEM, our own first.
    pub certificate: PathBuf,
    /// Our key, PEM.
    pub key: PathBuf,
    /// Who signs the certificates of those who may ask, PEM; without it anybody may connect, and needs the token.
    pub client_ca: Option<PathBuf>,
}

impl TlsConfig {
    /// Reads the certificates.
    pub(super) fn acceptor(&self) -> Result<TlsAcceptor> {
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let builder =
            ServerConfig::builder_with_provider(Arc::clone(&provider)).with_safe_default_protocol_versions()?;
        let builder = match &self.client_ca {
            Some(path) => {
                let mut roots = RootCertStore::empty();
                for certificate in certificates(path)? {
                    roots.add(certificate).with_context(|| format!("cannot use {}", path.display()))?;
                }
                let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider).build()?;
                builder.with_client_cert_verifier(verifier)
            }
            None => builder.with_no_client_auth(),
        };
        let key = PrivateKeyDer::from_pem_file(&self.key)
            .with_context(|| format!("cannot read the key in {}", self.key.display()))?;
        let mut config = builder
            .with_single_cert(certificates(&self.certificate)?, key)
            .with_context(|| format!("the key {} does not fit {}", self.key.display(), self.certificate.display()))?;
        config.alpn_protocols = vec![b"http/1.1".to_vec()];
        Ok(TlsAcceptor::from(Arc::new(config)))
    }
}

fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>> {
    let read = || CertificateDer::pem_file_iter(path)?.collect::<Result<Vec<_>, _>>();
    let certificates = read().with_context(|| format!("cannot read the certificates in {}", path.display()))?;
    if certificates.is_empty() {
        bail!("{} has no certificate", path.display());
    }
    Ok(certificates)
}

/// Whether it may be listened there: on an address that others reach, nobody is let in without proof.
pub(super) fn check(listen: SocketAddr, token: Option<&Token>, tls: Option<&TlsConfig>) -> Result<()> {
    let is_mutual = tls.is_some_and(|tls| tls.client_ca.is_some());
    if !listen.ip().is_loopback() && token.is_none() && !is_mutual {
        bail!(
            "cannot listen on {listen}, which other hosts reach, without a token or mutual TLS: set [http] token_file, or \
             tls_certificate, tls_key and tls_client_ca, or listen on 127.0.0.1"
        );
    }
    Ok(())
}

/// Whether a request may be answered. `mutual`: the other side has shown a certificate.
pub(super) fn admit(headers: &HeaderMap, token: Option<&Token>, mutual: bool) -> Result<(), StatusCode> {
    match token {
        Some(token) => {
            if credentials(headers).is_some_and(|found| token.is(&found)) {
                Ok(())
            } else {
                Err(StatusCode::UNAUTHORIZED)
            }
        }
        None if mutual => Ok(()),
        // On loopback: a page of somebody else that has a name of its own lead here must not read what we say.
        None if is_local(headers) => Ok(()),
        None => Err(StatusCode::MISDIRECTED_REQUEST),
    }
}

/// The token of a request: `Bearer TOKEN`, or the password of `Basic`, which programs send that know only URLs.
fn credentials(headers: &HeaderMap) -> Option<Vec<u8>> {
    let value = headers.get(header::AUTHORIZATION)?.to_str().ok()?;
    let (scheme, rest) = value.split_once(' ')?;
    if scheme.eq_ignore_ascii_case("bearer") {
        return Some(rest.trim().as_bytes().to_vec());
    }
    if !scheme.eq_ignore_ascii_case("basic") {
        return None;
    }
    let decoded = base64(rest.trim())?;
    let colon = decoded.iter().position(|&byte| byte == b':')?;
    Some(decoded[colon + 1..].to_vec())
}

/// Source: RFC 4648, section 4. No more than a header is decoded.
fn base64(text: &str) -> Option<Vec<u8>> {
    let digit = |byte: u8| match byte {
        b'A'..=b'Z' => Some(byte - b'A'),
        b'a'..=b'z' => Some(byte - b'a' + 26),
        b'0'..=b'9' => Some(byte - b'0' + 52),
        b'+' => Some(62),
        b'/' => Some(63),
        _ => None,
    };
    let (mut bytes, mut bits, mut count) = (Vec::new(), 0_u32, 0);
    for byte in text.trim_end_matches('=').bytes() {
        bits = bits << 6 | u32::from(digit(byte)?);
        count += 6;
        if count >= 8 {
            count -= 8;
            bytes.push(u8::try_from(bits >> count & 0xff).ok()?);
        }
    }
    Some(bytes)
}

/// Whether the host that is asked for is this one by a name that nobody else can give.
fn is_local(headers: &HeaderMap) -> bool {
    // HTTP/1.0 has none, and no browser speaks that.
    let Some(host) = headers.get(header::HOST) else { return true };
    let Ok(host) = host.to_str() else { return false };
    let name = match host.rsplit_once(':') {
        Some((name, port)) if !name.is_empty() && port.bytes().all(|byte| byte.is_ascii_digit()) => name,
        _ => host,
    };
    let address = name.trim_start_matches('[').trim_end_matches(']');
    name.eq_ignore_ascii_case("localhost") || address.parse::<IpAddr>().is_ok_and(|address| address.is_loopback())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(name: header::HeaderName, value: &str) -> HeaderMap {
        [(name, value.parse().unwrap())].into_iter().collect()
    }

    #[test]
    fn only_the_token_is_let_in() {
        let token = Token::new("0123456789abcdef").unwrap();
        let admitted = |value: &str| admit(&headers(header::AUTHORIZATION, value), Some(&token), true).is_ok();
        assert!(admitted("Bearer 0123456789abcdef") && admitted("bearer  0123456789abcdef"));
        // `user:0123456789abcdef`
        assert!(admitted("Basic dXNlcjowMTIzNDU2Nzg5YWJjZGVm"));
        for wrong in
            ["", "Bearer", "Bearer ", "Bearer 0123456789abcde", "Basic dXNlcjowMTIz", "Basic ????", "0123456789abcdef"]
        {
            assert!(!admitted(wrong), "{wrong}");
        }
        assert_eq!(admit(&HeaderMap::new(), Some(&token), true), Err(StatusCode::UNAUTHORIZED));
        assert!(Token::new("short").is_err() && Token::new("0123456789 abcdef").is_err());
        assert_eq!(format!("{token:?}"), "Token(hidden)");
    }

    #[test]
    fn other_names_of_this_host_are_refused() {
        let admitted = |host: &str| admit(&headers(header::HOST, host), None, false).is_ok();
        for host in ["localhost", "localhost:4040", "127.0.0.1:4040", "127.9.9.9", "[::1]:4040", "[::1]"] {
            assert!(admitted(host), "{host}");
        }
        for host in
            ["evil.example", "evil.example:4040", "localhost.evil.example", "10.0.0.1:4040", "", "127.0.0.1.evil"]
        {
            assert!(!admitted(host), "{host}");
        }
        assert!(admit(&headers(header::HOST, "evil.example"), None, true).is_ok());
    }

    #[test]
    fn nobody_listens_to_others_without_proof() {
        let address = |text: &str| text.parse::<SocketAddr>().unwrap();
        let token = Token::new("0123456789abcdef").unwrap();
        let tls = TlsConfig::default();
        let mutual = TlsConfig { client_ca: Some("ca.pem".into()), ..TlsConfig::default() };
        for loopback in ["127.0.0.1:1", "[::1]:1"] {
            assert!(check(address(loopback), None, None).is_ok());
        }
        for other in ["0.0.0.0:1", "[::]:1", "192.0.2.1:1"] {
            let error = check(address(other), None, Some(&tls)).unwrap_err().to_string();
            assert!(error.contains("token_file") && error.contains(other), "{error}");
            assert!(check(address(other), Some(&token), None).is_ok());
            assert!(check(address(other), None, Some(&mutual)).is_ok());
        }
    }
}
