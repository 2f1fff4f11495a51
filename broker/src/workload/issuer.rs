//! Whose word counts for what a workload is, and which workload is which agent.

use std::collections::BTreeMap;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};
use time::Duration;

use super::pattern::Pattern;
use crate::span::Span;
use crate::statement::act::{is_line, is_name};

/// What GitHub calls who set a run off, at whatever address: its own, an enterprise's, or a server of one's own.
const GITHUB_ACTOR: [&str; 2] = ["actor", "actor_id"];

/// An issuer of workloads' tokens: Kubernetes, GitHub Actions, GitLab, SPIFFE.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Issuer {
    /// As the tokens' `iss` has it, to the letter.
    pub issuer: String,
    /// The tokens' only `aud`; the broker's origin when left out.
    #[serde(default)]
    pub audience: Option<String>,
    /// What tokens may be signed with. Only algorithms with public keys.
    pub algorithms: Vec<PublicAlgorithm>,
    /// Where the issuer's keys are (RFC 7517). Tokens never say.
    #[serde(default)]
    pub jwks_uri: Option<String>,
    /// Or a file that has them, relative to the configuration directory.
    #[serde(default)]
    pub jwks_file: Option<PathBuf>,
    /// Certificates (PEM) that `jwks_uri`'s host is trusted by, relative to the configuration directory; those of this machine
    /// when left out.
    #[serde(default)]
    pub ca_file: Option<PathBuf>,
    /// Whether a token is taken once. Otherwise it may come again as long as it is good, and stands for the same task.
    #[serde(default = "Issuer::default_once")]
    pub once: bool,
    /// The claim that names who set a workload off.
    #[serde(default)]
    pub actor_claim: Option<String>,
    /// When that claim is true: what other claims must be. GitHub names who set the first run off, whoever runs it again.
    #[serde(default)]
    pub actor_where: BTreeMap<String, Pattern>,
    /// Who that is: its value, and the person.
    #[serde(default)]
    pub actors: BTreeMap<String, String>,
    pub workloads: Vec<Workload>,
}

/// Which of an issuer's workloads are which agent.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Workload {
    /// What its `sub` is.
    pub subject: Pattern,
    /// What other claims must be, each by its name, or by a JSON Pointer (RFC 6901) if it begins with `/`.
    #[serde(default, rename = "where")]
    pub conditions: BTreeMap<String, Pattern>,
    pub agent: String,
    pub sponsor: String,
    /// The claim that names what it works on; its `sub` when left out.
    #[serde(default)]
    pub task_claim: Option<String>,
    /// Claims that rules may ask for, and that the record keeps.
    #[serde(default)]
    pub claims: Vec<String>,
    /// Who sets it off.
    #[serde(default)]
    pub set_off_by: SetsOff,
    /// How long its task lasts.
    #[serde(default = "Workload::default_ttl")]
    pub ttl: Span,
}

/// Who is taken for having set a workload off.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum SetsOff {
    /// Whom `actor_claim` names. Nobody that is known, if it names nobody: then no signed scope.
    #[default]
    Actor,
    /// The sponsor: what runs by itself, because the sponsor has it run.
    Sponsor,
}

/// Signature algorithms with a public key (RFC 7518, RFC 8037). Those with a shared secret and `none` have no name here.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum PublicAlgorithm {
    RS256,
    RS384,
    RS512,
    PS256,
    PS384,
    PS512,
    ES256,
    ES384,
    EdDSA,
}

impl PublicAlgorithm {
    /// As a token's header has it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::RS256 => "RS256",
            Self::RS384 => "RS384",
            Self::RS512 => "RS512",
            Self::PS256 => "PS256",
            Self::PS384 => "PS384",
            Self::PS512 => "PS512",
            Self::ES256 => "ES256",
            Self::ES384 => "ES384",
            Self::EdDSA => "EdDSA",
        }
    }
}

impl Issuer {
    fn default_once() -> bool {
        true
    }

    pub fn validate(&self, longest_task: Span) -> Result<(), String> {
        let name = &self.issuer;
        let at = |what: String| format!("issuers: {name}: {what}");
        if !is_line(name) || name.is_empty() {
            return Err(format!("issuers: issuer = {name:?}: write the `iss` of its tokens"));
        }
        if self.algorithms.is_empty() {
            return Err(at(
                "algorithms = []: write what its tokens are signed with, like [\"RS256\"]".into(),
            ));
        }
        match (&self.jwks_uri, &self.jwks_file) {
            (Some(uri), None) if is_trusted_url(uri) => {}
            (Some(uri), None) => {
                return Err(at(format!(
                    "jwks_uri = {uri:?}: write an https URL (plain http is for this machine only)"
                )));
            }
            (None, Some(_)) if self.ca_file.is_none() => {}
            (None, Some(_)) => return Err(at("ca_file goes with jwks_uri".into())),
            _ => return Err(at("write either `jwks_uri` or `jwks_file`".into())),
        }
        if self.actor_claim.is_none() && !self.actors.is_empty() {
            return Err(at("`actors` needs `actor_claim`, the claim that names them".into()));
        }
        let by_github = self.actor_claim.as_ref().is_some_and(|it| GITHUB_ACTOR.contains(&&**it));
        let first = self.actor_where.get("run_attempt").is_some_and(|it| it.as_str() == "1");
        if by_github && !first {
            return Err(at("the actor of a run that somebody else runs again is still who set off the first one, who then could sign for it: write `actor_where = { run_attempt = \"1\" }`".into()));
        }
        if self.workloads.is_empty() {
            return Err(at("no [[issuers.workloads]]: nobody could come with its tokens".into()));
        }
        for workload in &self.workloads {
            workload.validate(longest_task).map_err(at)?;
        }
        Ok(())
    }
}

impl Workload {
    fn default_ttl() -> Span {
        Span(Duration::HOUR)
    }

    fn validate(&self, longest_task: Span) -> Result<(), String> {
        let Self { subject, agent, sponsor, ttl, .. } = self;
        if !is_name(agent) {
            return Err(format!(
                "{subject}: agent = {agent:?}: write a lower-case letter, then letters, digits, `.`, `_` or `-`"
            ));
        }
        if sponsor.is_empty() {
            return Err(format!(
                "{subject}: sponsor = \"\": write the handle of the person who stands behind it"
            ));
        }
        if longest_task < *ttl {
            return Err(format!(
                "{subject}: ttl = \"{ttl}\" is more than authority.longest_task, {longest_task}"
            ));
        }
        Ok(())
    }
}

/// Whether what comes from there comes from who it says it is: by TLS, or from this machine.
fn is_trusted_url(url: &str) -> bool {
    let Some((scheme, rest)) = url.split_once("://") else { return false };
    let authority = rest.split(['/', '?', '#']).next().unwrap_or_default();
    if authority.is_empty() || authority.contains('@') {
        return false;
    }
    let host = authority.rsplit_once(':').map_or(authority, |(host, _)| host);
    scheme == "https" || scheme == "http" && matches!(host, "localhost" | "127.0.0.1" | "[::1]")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whoever_names_an_actor_as_github_does_wants_the_first_attempt_alone() {
        let valid = |issuer: &str, claim: &str, first: &str| {
            let text = format!(
                r#"
issuer = "{issuer}"
algorithms = ["RS256"]
jwks_uri = "{issuer}/jwks"
actor_claim = "{claim}"
actors = {{ 1 = "bob" }}
{first}
[[workloads]]
subject = "repo:acme/shop:ref:refs/heads/main"
agent = "ci"
sponsor = "alice"
"#
            );
            let issuer: Issuer = toml::from_str(&text).unwrap();
            issuer.validate(Span(Duration::hours(8))).is_ok()
        };
        for issuer in [
            "https://token.actions.githubusercontent.com",
            "https://token.actions.githubusercontent.com/acme",
            "https://github.acme.example/_services/token",
        ] {
            for claim in ["actor", "actor_id"] {
                assert!(valid(issuer, claim, "actor_where = { run_attempt = \"1\" }"), "{issuer}");
                for no in [
                    "",
                    "actor_where = { run_attempt = \"*\" }",
                    "actor_where = { run_attempt = \"1*\" }",
                ] {
                    assert!(!valid(issuer, claim, no), "{issuer}, {claim}: {no}");
                }
            }
        }
        assert!(valid("https://gitlab.com", "user_id", ""));
    }
}
