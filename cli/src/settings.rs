//! Where the broker is and who we are to it: flags and environment, then the configuration file, then defaults.
//! Also keeps people's reading sessions between commands.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::ffi::OsString;
use std::fmt;
use std::fs::{self, DirBuilder, Permissions};
use std::io::{ErrorKind, IsTerminal as _, Write as _};
use std::net::IpAddr;
use std::os::unix::fs::{DirBuilderExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::str::FromStr;

use broker::wire::LoginSession;
use clap::{Args, Parser};
use secrecy::{ExposeSecret as _, SecretString};
use serde::{Deserialize, Serialize};
use time::{Duration, OffsetDateTime};
use ureq::http::Uri;

use crate::output::{Failure, Format, Result};
use crate::sign::AGENT_KEY;

const DEFAULT_URL: &str = "http://localhost:8750";
/// A session that ends sooner than this is as good as over.
const LEEWAY: Duration = Duration::seconds(10);

/// Flags of every command; those with a variable may come from the environment.
#[derive(Args)]
#[command(next_help_heading = "Options of every command")]
pub(crate) struct Global {
    /// Where the broker is: https, or http on this machine
    #[arg(long, global = true, env = "BROKER_URL", value_name = "URL", hide_env_values = true)]
    url: Option<String>,
    /// File with the agent's token; `BROKER_TOKEN`, if set, comes first
    #[arg(
        long,
        global = true,
        env = "BROKER_TOKEN_FILE",
        value_name = "FILE",
        hide_env_values = true
    )]
    token_file: Option<OsString>,
    /// What is written on stdout [default: text on a terminal, json elsewhere, unless the command says otherwise]
    #[arg(short, long, global = true, value_name = "FORMAT", value_enum)]
    pub(crate) output: Option<Format>,
    /// No colour; `NO_COLOR` says the same
    #[arg(long, global = true)]
    no_color: bool,
}

/// What comes from the environment alone, and so has no flag: an argument is for everybody on the machine to see.
/// Parsed without any argument.
#[derive(Parser)]
struct Surroundings {
    #[arg(long, env = "BROKER_TOKEN", value_parser = secret)]
    token: Option<SecretString>,
    /// What GitHub Actions sets for a job that may ask for tokens.
    #[arg(long, env = "ACTIONS_ID_TOKEN_REQUEST_URL")]
    github_url: Option<String>,
    #[arg(long, env = "ACTIONS_ID_TOKEN_REQUEST_TOKEN", value_parser = secret)]
    github_token: Option<SecretString>,
    #[arg(long, env = "TERM")]
    term: Option<OsString>,
    #[arg(long, env = "NO_COLOR")]
    no_color: Option<OsString>,
    #[arg(long, env = "XDG_CONFIG_HOME")]
    config_home: Option<OsString>,
    #[arg(long, env = "XDG_STATE_HOME")]
    state_home: Option<OsString>,
    #[arg(long, env = "HOME")]
    home: Option<OsString>,
}

#[expect(clippy::unnecessary_wraps, reason = "clap wants a Result")]
fn secret(text: &str) -> Result<SecretString, Infallible> {
    Ok(SecretString::from(text))
}

impl Surroundings {
    fn read() -> Result<Self> {
        Self::try_parse_from(["broker"])
            .map_err(|_| Failure::invalid("BROKER_TOKEN is not text", "Set it to the token alone."))
    }

    /// An absolute XDG base directory, or its default below the home directory.
    fn base(&self, xdg: Option<&OsString>, below_home: &str) -> Option<PathBuf> {
        let xdg = set(xdg).map(PathBuf::from).filter(|it| it.is_absolute());
        xdg.or_else(|| Some(Path::new(set(self.home.as_ref())?).join(below_home)))
    }
}

/// Set to the empty string is not set.
fn set(value: Option<&OsString>) -> Option<&OsString> {
    value.filter(|it| !it.is_empty())
}

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct ConfigFile {
    url: Option<String>,
    token_file: Option<PathBuf>,
    key: Option<PathBuf>,
}

/// Everything a command needs to know before it talks to the broker.
pub(crate) struct Settings {
    pub(crate) url: BrokerUrl,
    /// The key that signs when the command names none.
    pub(crate) key: Option<PathBuf>,
    /// Whether words on stderr are coloured.
    pub(crate) color: bool,
    /// Whether what is written on stderr can be written over.
    pub(crate) spinner: bool,
    token: Option<SecretString>,
    token_file: Option<PathBuf>,
    logins: Option<PathBuf>,
    github: Option<(String, SecretString)>,
}

impl Settings {
    pub(crate) fn load(global: &Global) -> Result<Self> {
        let around = Surroundings::read()?;
        let home = set(around.home.as_ref()).map(PathBuf::from);
        let config_dir =
            around.base(around.config_home.as_ref(), ".config").map(|it| it.join("broker"));
        let file = config_dir.as_deref().map_or_else(|| Ok(ConfigFile::default()), read_config)?;
        let written = |path: PathBuf| match (path.strip_prefix("~"), &home, &config_dir) {
            (Ok(rest), Some(home), _) => home.join(rest),
            (_, _, Some(dir)) => dir.join(path),
            _ => path,
        };
        let url = global.url.clone().filter(|it| !it.is_empty()).or(file.url);
        let token_file = set(global.token_file.as_ref()).map(PathBuf::from);
        let no_color = global.no_color || set(around.no_color.as_ref()).is_some();
        let logins = around.base(around.state_home.as_ref(), ".local/state");
        Ok(Self {
            url: url.as_deref().unwrap_or(DEFAULT_URL).parse()?,
            key: file.key.map(|it| if it == Path::new(AGENT_KEY) { it } else { written(it) }),
            color: !no_color && std::io::stderr().is_terminal(),
            spinner: std::io::stderr().is_terminal()
                && set(around.term.as_ref()).is_some_and(|it| it != "dumb"),
            token: around.token.filter(|it| !it.expose_secret().is_empty()),
            token_file: token_file.or_else(|| file.token_file.map(written)),
            logins: logins.map(|it| it.join("broker/login.json")),
            github: around.github_url.zip(around.github_token),
        })
    }

    /// The agent's token, if there is one.
    pub(crate) fn token(&self) -> Result<Option<SecretString>> {
        if let Some(token) = &self.token {
            return Ok(Some(token.clone()));
        }
        let Some(path) = &self.token_file else { return Ok(None) };
        let text = fs::read_to_string(path).map_err(|error| {
            Failure::unauthenticated(
                format!("the token file {} cannot be read: {error}", path.display()),
                "Correct BROKER_TOKEN_FILE, or set BROKER_TOKEN.",
            )
        })?;
        match text.trim() {
            "" => Err(Failure::unauthenticated(
                format!("the token file {} is empty", path.display()),
                "Ask your sponsor for a token, and put it there.",
            )),
            token => Ok(Some(SecretString::from(token))),
        }
    }

    /// Where a job of GitHub Actions asks for its token, and with what.
    pub(crate) fn github_job(&self) -> Option<(&str, &SecretString)> {
        self.github.as_ref().map(|(url, token)| (url.as_str(), token))
    }

    /// This person's session at this broker, unless it is over.
    pub(crate) fn login(&self, now: OffsetDateTime) -> Option<LoginSession> {
        let mut logins = read_logins(self.logins.as_deref()?);
        logins.brokers.remove(&self.url.0).filter(|it| now + LEEWAY < it.expires_at)
    }

    /// Keeps `session` for later commands; sessions that are over are dropped.
    pub(crate) fn keep_login(&self, session: &LoginSession, now: OffsetDateTime) -> Result<()> {
        let Some(path) = &self.logins else {
            return Err(Failure::invalid(
                "there is no place to keep the session: neither XDG_STATE_HOME nor HOME is set",
                "Set one of them, then repeat the command.",
            ));
        };
        let mut logins = read_logins(path);
        logins.brokers.retain(|_, it| now < it.expires_at);
        logins.brokers.insert(self.url.0.clone(), session.clone());
        write_private(path, &serde_json::to_vec(&logins).expect("sessions are JSON")).map_err(
            |error| {
                Failure::unexpected(
                    format!("the session cannot be kept in {}: {error}", path.display()),
                    "Correct the permissions there, then repeat the command.",
                )
            },
        )
    }
}

fn read_config(dir: &Path) -> Result<ConfigFile> {
    let path = dir.join("config.toml");
    let wrong = |what: String| {
        let next = "Correct the file; it may hold `url`, `token_file` and `key`.";
        Failure::invalid(format!("{}: {what}", path.display()), next)
    };
    let text = match fs::read_to_string(&path) {
        Ok(text) => text,
        Err(error) if matches!(error.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory) => {
            return Ok(ConfigFile::default());
        }
        Err(error) => return Err(wrong(error.to_string())),
    };
    toml::from_str(&text).map_err(|error| {
        // The error's own rendering quotes the line, and somebody may have put a token there.
        let line = error.span().map_or(1, |span| 1 + text[..span.start].matches('\n').count());
        wrong(format!("line {line}: {}", error.message()))
    })
}

/// Sessions by the broker's URL.
#[derive(Default, Serialize, Deserialize)]
struct Logins {
    brokers: BTreeMap<String, LoginSession>,
}

/// What cannot be read is as good as not there: logging in makes it new.
fn read_logins(path: &Path) -> Logins {
    let text = fs::read(path).unwrap_or_default();
    serde_json::from_slice(&text).unwrap_or_default()
}

/// Replaces `path` in one step by a file that only its owner can read, in a directory that only its owner can.
fn write_private(path: &Path, content: &[u8]) -> std::io::Result<()> {
    let dir = path.parent().ok_or(ErrorKind::InvalidInput)?;
    DirBuilder::new().recursive(true).mode(0o700).create(dir)?;
    fs::set_permissions(dir, Permissions::from_mode(0o700))?;
    let mut file =
        tempfile::Builder::new().permissions(Permissions::from_mode(0o600)).tempfile_in(dir)?;
    file.write_all(content)?;
    file.as_file().sync_all()?;
    file.persist(path)?;
    Ok(())
}

/// An address that a token may travel to: https, or http to this machine. Without a slash at its end.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct BrokerUrl(String);

impl BrokerUrl {
    pub(crate) fn join(&self, path: &str) -> String {
        format!("{}{path}", self.0)
    }

    /// Whether it is http, and so on this machine.
    pub(crate) fn is_plain(&self) -> bool {
        self.0.starts_with("http:")
    }
}

impl fmt::Display for BrokerUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl FromStr for BrokerUrl {
    type Err = Failure;

    fn from_str(text: &str) -> Result<Self> {
        let wrong = |what: &str| {
            Failure::invalid(
                format!("the broker's URL {what}"),
                "Set BROKER_URL (or --url) to https://HOST, or to http://localhost:PORT on this machine.",
            )
        };
        let uri: Uri = text.parse().map_err(|_| wrong("is not a URL"))?;
        let (Some(scheme), Some(authority)) = (uri.scheme_str(), uri.authority()) else {
            return Err(wrong("needs a scheme and a host"));
        };
        if authority.as_str().contains('@') || text.contains(['?', '#']) {
            return Err(wrong("must not hold a user name, a query or a fragment"));
        }
        match scheme {
            "https" => {}
            "http" if is_loopback(authority.host()) => {}
            "http" => {
                return Err(wrong("is http to another machine: the token would travel in clear"));
            }
            _ => return Err(wrong("is neither https nor http")),
        }
        let authority = authority.as_str().to_ascii_lowercase();
        Ok(Self(format!("{scheme}://{authority}{}", uri.path().trim_end_matches('/'))))
    }
}

fn is_loopback(host: &str) -> bool {
    let bare = host.trim_start_matches('[').trim_end_matches(']');
    host.eq_ignore_ascii_case("localhost")
        || bare.parse::<IpAddr>().is_ok_and(|it| it.is_loopback())
}

#[cfg(test)]
mod tests {
    use time::macros::datetime;

    use super::*;

    #[test]
    fn a_token_travels_only_by_https_or_to_this_machine() {
        for good in [
            "https://broker.example.com",
            "https://broker.example.com:8443/base",
            "http://localhost:8750",
            "http://127.0.0.1:1",
            "http://[::1]:8750",
        ] {
            assert_eq!(good.parse::<BrokerUrl>().unwrap().0, good);
        }
        for bad in [
            "http://broker.example.com",
            "http://localhost.example.com",
            "http://127.0.0.1.example.com",
            "http://10.0.0.1",
            "http://0.0.0.0:8750",
            "http://127.0.0.1@example.com",
            "https://user:secret@example.com",
            "https://example.com/?x=1",
            "https://example.com/#x",
            "ftp://localhost",
            "localhost:8750",
            "/v1",
            "",
        ] {
            assert_eq!(bad.parse::<BrokerUrl>().unwrap_err().exit, 2, "{bad}");
        }
        assert_eq!(
            "HTTPS://Broker.Example.com/".parse::<BrokerUrl>().unwrap().0,
            "https://broker.example.com"
        );
    }

    #[test]
    fn a_configuration_error_names_the_line_and_quotes_no_token() {
        let dir = tempfile::tempdir().unwrap();
        assert!(read_config(dir.path()).unwrap().url.is_none());
        fs::write(dir.path().join("config.toml"), "url = \"https://b\"\ntoken = \"s3cr3t\"\n")
            .unwrap();
        let words = read_config(dir.path()).err().unwrap().words();
        assert!(words.contains("config.toml: line 2: unknown field `token`"), "{words}");
        assert!(!words.contains("s3cr3t"), "{words}");
    }

    #[test]
    fn a_session_is_kept_privately_for_its_broker_until_it_ends() {
        let now = datetime!(2026-01-01 12:00 UTC);
        let dir = tempfile::tempdir().unwrap();
        let settings = |url: &str| Settings {
            url: url.parse().unwrap(),
            key: None,
            color: false,
            spinner: false,
            token: None,
            token_file: None,
            logins: Some(dir.path().join("state/broker/login.json")),
            github: None,
        };
        let here = settings("https://a.example");
        let session = LoginSession {
            person: "bob".into(),
            token: "t".into(),
            expires_at: now + Duration::HOUR,
        };
        assert!(here.login(now).is_none());
        here.keep_login(&session, now).unwrap();
        assert_eq!(here.login(now).unwrap().person, "bob");
        assert!(here.login(now + Duration::HOUR).is_none());
        assert!(settings("https://b.example").login(now).is_none());

        let mode =
            |path: &str| fs::metadata(dir.path().join(path)).unwrap().permissions().mode() & 0o777;
        assert_eq!(mode("state/broker/login.json"), 0o600);
        assert_eq!(mode("state/broker"), 0o700);
    }
}
