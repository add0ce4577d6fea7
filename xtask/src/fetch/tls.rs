//! Certificates of servers: which authorities are trusted, and why a connection is refused.

use anyhow::{anyhow, bail};
use std::env;
use ureq::tls::{Certificate, RootCerts, TlsConfig};

/// Trust in the authorities of the environment variables `SSL_CERT_FILE` and `SSL_CERT_DIR`, or else of the system; on a
/// system without any, in those of Mozilla.
///
/// # Errors
/// When the variables name no readable certificate.
pub(crate) fn config() -> anyhow::Result<TlsConfig> {
    let loaded = rustls_native_certs::load_native_certs();
    let roots = if loaded.certs.is_empty() {
        let is_set = |name: &&str| env::var_os(name).is_some_and(|value| !value.is_empty());
        if let Some(name) = ["SSL_CERT_FILE", "SSL_CERT_DIR"].into_iter().find(is_set) {
            let errors: Vec<_> = loaded.errors.iter().map(ToString::to_string).collect();
            bail!(
                "the environment variable {name} names no certificates in PEM format: {}",
                match errors.as_slice() {
                    [] => "there are none".to_owned(),
                    errors => errors.join(", "),
                }
            );
        }
        RootCerts::WebPki
    } else {
        loaded
            .certs
            .iter()
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
        rustls::Error::InvalidCertificate(reason) => anyhow!(
            "its certificate is refused ({reason:?}); where a company's own authority signs certificates, name the \
             authority's certificate with the environment variable SSL_CERT_FILE, or download the archive by other \
             means and give it with --from-file"
        ),
        other => anyhow!("no secure connection: {other}"),
    })
}
