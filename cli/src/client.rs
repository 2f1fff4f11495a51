//! HTTP to the broker: one place for time limits, size limits, authentication and what a failure means.

use std::io::ErrorKind;
use std::time::Duration;

use broker::problem::Problem;
use secrecy::{ExposeSecret as _, SecretString};
use serde::Serialize;
use serde::de::DeserializeOwned;
use ureq::http::{HeaderValue, Response};
use ureq::tls::{RootCerts, TlsConfig};
use ureq::{Agent, Body, Error, Timeout};
use uuid::Uuid;

use crate::output::{Failure, Result};
use crate::settings::BrokerUrl;

const CONNECT: Duration = Duration::from_secs(5);
/// A long poll's 30 seconds, and time to answer.
const REQUEST: Duration = Duration::from_secs(40);
const MAX_ANSWER_BYTES: u64 = 1024 * 1024;
/// A thousand events, each of 64 KiB at most, with their approvals.
const MAX_PAGE_BYTES: u64 = 128 * 1024 * 1024;
/// How often a request is sent again when its connection failed before an answer.
const RETRIES: u32 = 2;

pub(crate) struct Client {
    agent: Agent,
    url: BrokerUrl,
    authorization: Option<HeaderValue>,
}

impl Client {
    pub(crate) fn new(url: &BrokerUrl, bearer: Option<&SecretString>) -> Result<Self> {
        let tls = TlsConfig::builder().root_certs(RootCerts::PlatformVerifier).build();
        let config = Agent::config_builder()
            .http_status_as_error(false)
            // A token goes to the broker and nowhere else.
            .max_redirects(0)
            .max_redirects_will_error(false)
            .timeout_resolve(Some(CONNECT))
            .timeout_connect(Some(CONNECT))
            .timeout_global(Some(REQUEST))
            .user_agent(concat!("broker/", env!("CARGO_PKG_VERSION")))
            .tls_config(tls);
        // Plain HTTP is for this machine; a proxy would carry the token off it.
        let config = if url.is_plain() { config.proxy(None) } else { config };
        let authorization = bearer.map(bearer_header).transpose()?;
        Ok(Self { agent: config.build().new_agent(), url: url.clone(), authorization })
    }

    /// Whether it has the same token.
    pub(crate) fn speaks_as(&self, other: &Self) -> bool {
        self.authorization == other.authorization
    }

    pub(crate) fn get<T: DeserializeOwned>(&self, path: &str, query: &[(&str, &str)]) -> Result<T> {
        let mut request = self.agent.get(self.url.join(path)).query_pairs(query.iter().copied());
        if let Some(value) = &self.authorization {
            request = request.header("authorization", value);
        }
        self.read(request.call())
    }

    /// A text as it is.
    pub(crate) fn get_text(&self, path: &str) -> Result<String> {
        let (_, body) = self.page(path, MAX_ANSWER_BYTES)?;
        String::from_utf8(body).map_err(|_| {
            Failure::unexpected("the answer is no text", "Check that BROKER_URL names the broker.")
        })
    }

    /// Pages that name the next one (RFC 8288), one after the other.
    pub(crate) fn get_pages(
        &self,
        path: &str,
        mut take: impl FnMut(&[u8]) -> Result<()>,
    ) -> Result<()> {
        let mut next = Some(path.to_owned());
        while let Some(path) = next {
            let (link, body) = self.page(&path, MAX_PAGE_BYTES)?;
            take(&body)?;
            // Only ever to the broker: a path, of the same list.
            next = link.filter(|it| it.starts_with("/v1/audit/events?"));
        }
        Ok(())
    }

    fn page(&self, path: &str, limit: u64) -> Result<(Option<String>, Vec<u8>)> {
        let mut request = self.agent.get(self.url.join(path));
        if let Some(value) = &self.authorization {
            request = request.header("authorization", value);
        }
        let mut answer = request.call().map_err(|error| self.unreached(&error))?;
        let link = answer.headers().get("link").and_then(|it| it.to_str().ok());
        let link = link.and_then(|it| it.strip_prefix('<')?.strip_suffix(">; rel=\"next\""));
        let link = link.map(str::to_owned);
        if !answer.status().is_success() {
            return Err(self
                .read::<serde_json::Value>(Ok(answer))
                .err()
                .unwrap_or_else(|| Failure::status(200)));
        }
        let body = answer.body_mut().with_config().limit(limit).read_to_vec();
        Ok((link, body.map_err(|error| self.unreached(&error))?))
    }

    pub(crate) fn post<T: DeserializeOwned>(&self, path: &str, body: &impl Serialize) -> Result<T> {
        self.read(self.send(path, body, None))
    }

    /// Posts a form, as OAuth has it.
    pub(crate) fn post_form<T: DeserializeOwned>(
        &self,
        path: &str,
        form: &[(&str, &str)],
    ) -> Result<T> {
        self.read(self.agent.post(self.url.join(path)).send_form(form.iter().copied()))
    }

    /// Posts what may be sent again as it is: with the same `Idempotency-Key` it is the same request.
    pub(crate) fn post_again<T: DeserializeOwned>(
        &self,
        path: &str,
        body: &impl Serialize,
    ) -> Result<T> {
        let key = Uuid::new_v4().to_string();
        let mut answer = self.send(path, body, Some(&key));
        for retry in 1..=RETRIES {
            match &answer {
                Err(error) if connection_failed(error) => {
                    std::thread::sleep(Duration::from_millis(300) * retry);
                    answer = self.send(path, body, Some(&key));
                }
                _ => break,
            }
        }
        self.read(answer)
    }

    fn send(
        &self,
        path: &str,
        body: &impl Serialize,
        key: Option<&str>,
    ) -> Result<Response<Body>, Error> {
        let mut request = self.agent.post(self.url.join(path));
        if let Some(value) = &self.authorization {
            request = request.header("authorization", value);
        }
        if let Some(key) = key {
            request = request.header("idempotency-key", key);
        }
        request.send_json(body)
    }

    fn read<T: DeserializeOwned>(&self, answer: Result<Response<Body>, Error>) -> Result<T> {
        let mut answer = answer.map_err(|error| self.unreached(&error))?;
        let status = answer.status();
        let retry_after = answer
            .headers()
            .get("retry-after")
            .and_then(|it| it.to_str().ok()?.trim().parse().ok())
            .map(Duration::from_secs);
        let body = answer.body_mut().with_config().limit(MAX_ANSWER_BYTES).read_to_vec();
        let body = body.map_err(|error| self.unreached(&error))?;
        if status.is_success() {
            // The parser's own words could quote the body, and the body could hold a secret.
            return serde_json::from_slice(&body).map_err(|_| {
                Failure::unexpected(
                    format!("the answer of {} is not of the shape this version knows", self.url),
                    "Check that BROKER_URL names the broker, and that `broker` is of its version.",
                )
            });
        }
        let mut failure =
            match (serde_json::from_slice::<Problem>(&body), serde_json::from_slice(&body)) {
                (Ok(problem), Ok(value)) if problem.r#type.is_some() => {
                    Failure::problem(problem, value)
                }
                _ => Failure::status(status.as_u16()),
            };
        failure.retry_after = retry_after;
        Err(failure)
    }

    fn unreached(&self, error: &Error) -> Failure {
        if let Error::BodyExceedsLimit(_) = error {
            return Failure::unexpected(
                format!("the answer of {} is larger than {MAX_ANSWER_BYTES} bytes", self.url),
                "Ask for less, for example with a smaller `--limit`.",
            );
        }
        let cause = error.to_string();
        let next = if cause.contains("certificate") {
            "Have this machine trust the authority that signed the broker's certificate, or name its file in SSL_CERT_FILE."
        } else {
            "Check that BROKER_URL is right and the broker is up, then repeat the command. \
             No other credential stands in for it."
        };
        Failure::unreachable(format!("{}: {cause}", self.url), next)
    }
}

fn bearer_header(token: &SecretString) -> Result<HeaderValue> {
    let value = HeaderValue::from_str(&format!("Bearer {}", token.expose_secret()));
    let mut value = value.map_err(|_| {
        Failure::unauthenticated(
            "the token holds characters that no token holds",
            "Set BROKER_TOKEN, or the file BROKER_TOKEN_FILE names, to the token alone.",
        )
    })?;
    value.set_sensitive(true);
    Ok(value)
}

/// Whether no answer can have come, and one may come next time. A request that took its whole time is not sent again, nor one to
/// whoever is not trusted: that is how TLS says it.
fn connection_failed(error: &Error) -> bool {
    match error {
        Error::Io(error) => error.kind() != ErrorKind::InvalidData,
        Error::HostNotFound | Error::ConnectionFailed => true,
        Error::Timeout(which) => matches!(which, Timeout::Resolve | Timeout::Connect),
        _ => false,
    }
}
