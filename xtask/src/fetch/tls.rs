//! Certificates of servers: which authorities are trusted, and why a connection is refused.

use anyhow::{anyhow, ensure};
use rustls::CertificateError;
use std::env;
use std::path::Path;
use ureq::tls::{Certificate, RootCerts, TlsConfig};

/// Trust in the authorities of the environment variables `SSL_CERT_FILE` and `SSL_CERT_DIR`, or else of the system; on a
/// system without any, in those of Mozilla.
///
/// # Errors
/// When a variable names no readable certificates.
pub(crate) fn config() -> anyhow::Result<TlsConfig> {
    let variable = |name| env::var_os(name).filter(|value| !value.is_empty());
    if let Some(file) = variable("SSL_CERT_FILE") {
        let file = Path::new(&file);
        let named = rustls_native_certs::load_certs_from_paths(Some(file), None);
        ensure!(
            !named.certs.is_empty(),
            "the environment variable SSL_CERT_FILE names `{}`, where no certificates in PEM format can be read",
            file.display()
        );
    }
    let loaded = rustls_native_certs::load_native_certs();
    let roots = if loaded.certs.is_empty() {
        ensure!(
            variable("SSL_CERT_DIR").is_none(),
            "the environment variable SSL_CERT_DIR names no folder with certificates in PEM format"
        );
        RootCerts::WebPki
    } else {
        let certificates = loaded.certs.iter();
        certificates
            .map(|certificate| Certificate::from_der(certificate).to_owned())
            .into()
    };
    Ok(TlsConfig::builder().root_certs(roots).build())
}

/// Why the server's certificate or its TLS is refused, in words; `None` for other errors. Another attempt would fail as
/// well.
pub(crate) fn refusal(error: &ureq::Error) -> Option<anyhow::Error> {
    let tls = match error {
        ureq::Error::Rustls(tls) => tls,
        ureq::Error::Io(error) => error.get_ref()?.downcast_ref()?,
        _ => return None,
    };
    Some(match tls {
        rustls::Error::InvalidCertificate(reason @ CertificateError::UnknownIssuer) => anyhow!(
            "its certificate is refused ({reason}); where a company's own authority signs certificates, name the \
             authority's certificate with the environment variable SSL_CERT_FILE, or download the archive by other \
             means and give it with --from-file"
        ),
        rustls::Error::InvalidCertificate(reason) => {
            anyhow!("its certificate is refused ({reason})")
        }
        other => anyhow!("no secure connection: {other}"),
    })
}
