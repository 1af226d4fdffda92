//! TLS: a certificate and its key, by rustls.

use std::path::Path;
use std::sync::Arc;

use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls::ServerConfig;
use tokio_rustls::rustls::crypto::ring;
use tokio_rustls::rustls::pki_types::pem::PemObject;
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer};

use crate::{Error, Result};

/// What a server shows and proves itself by. TLS 1.2 and 1.3; clients show nothing.
#[derive(Clone)]
pub struct Tls(TlsAcceptor);

impl std::fmt::Debug for Tls {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Tls")
    }
}

impl Tls {
    /// Reads PEM files: a certificate with those that it rests on behind it, and its private key.
    ///
    /// # Errors
    /// When one cannot be read or is not of the form, or the two do not belong together.
    pub fn read(certificate: &Path, key: &Path) -> Result<Tls> {
        let at = |path: &Path, said: String| Error::Setting(format!("{}: {said}", path.display()));
        let chain = CertificateDer::pem_file_iter(certificate).and_then(Iterator::collect);
        let chain: Vec<_> = chain.map_err(|error| {
            at(
                certificate,
                format!("{error}; it must be a certificate in PEM"),
            )
        })?;
        if chain.is_empty() {
            return Err(at(
                certificate,
                "there is no certificate in it; it must be one in PEM".to_owned(),
            ));
        }
        let private = PrivateKeyDer::from_pem_file(key)
            .map_err(|error| at(key, format!("{error}; it must be a private key in PEM")))?;
        let config = ServerConfig::builder_with_provider(Arc::new(ring::default_provider()))
            .with_safe_default_protocol_versions()
            .map_err(|error| Error::Start(error.to_string()))?
            .with_no_client_auth()
            .with_single_cert(chain, private);
        let mut config = config.map_err(|error| {
            let said = format!(
                "{error}; is it of the certificate in {}?",
                certificate.display()
            );
            at(key, said)
        })?;
        config.alpn_protocols = vec![b"http/1.1".to_vec()];
        Ok(Tls(TlsAcceptor::from(Arc::new(config))))
    }

    pub(crate) fn acceptor(&self) -> &TlsAcceptor {
        &self.0
    }
}
