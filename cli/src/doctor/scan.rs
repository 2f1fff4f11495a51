//! Finds secrets in text, line by line, without a grammar: by the shape that a token's maker gave it, and by what a
//! variable is called. What it finds, it tells by line, kind and name; never by value.

use std::borrow::Cow;
use std::collections::BTreeSet;

/// Names are looked for in so much of a line.
const LINE_LIMIT: usize = 64 << 10;
/// A value that is longer is cut: no token is.
const VALUE_LIMIT: usize = 1024;
/// A file with more is one finding as it is.
const HITS: usize = 1000;
/// An access key id and its secret are at most so many lines apart.
const NEAR_LINES: usize = 5;

/// How much a name says about its value.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Style {
    /// A file of settings: what is called a secret is one, unless it is a placeholder.
    Settings,
    /// Any other text, where `token = "…"` may be anything: the value has to look random too.
    Any,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Kind {
    /// With its secret; an access key id alone opens nothing.
    AwsKey,
    /// A token in the form that its maker gives it, or a value of a file of settings.
    Token,
    /// Named like a secret, and looks random.
    Random,
    /// A private key without a passphrase.
    PrivateKey,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Hit {
    pub(super) line: usize,
    pub(super) kind: Kind,
    /// A variable's name, or what kind of token.
    pub(super) what: String,
}

/// The beginning of a token, how many characters follow at least, of which kind, and what it is.
type Shape = (&'static str, usize, Body, &'static str);

/// What a token goes on with.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Body {
    /// Letters and digits: an identifier that begins alike has an underscore soon.
    Plain,
    /// Those, `_` and `-`, but no character of a path, so that a path goes on behind them.
    Name,
    /// Whatever tokens have.
    Wide,
    /// The same, with its first dot behind so many characters.
    Dotted(usize),
    /// The same, where the beginning alone says too little.
    Random,
}

/// As their makers give them out.
const SHAPES: &[Shape] = &[
    ("ghp_", 36, Body::Name, "a GitHub token"),
    ("gho_", 36, Body::Name, "a GitHub token"),
    ("ghu_", 36, Body::Name, "a GitHub token"),
    ("ghs_", 36, Body::Name, "a GitHub token"),
    ("ghr_", 36, Body::Name, "a GitHub token"),
    ("github_pat_", 50, Body::Name, "a GitHub token"),
    ("glpat-", 20, Body::Name, "a GitLab token"),
    ("xoxb-", 20, Body::Name, "a Slack token"),
    ("xoxp-", 20, Body::Name, "a Slack token"),
    ("xapp-", 20, Body::Name, "a Slack token"),
    ("sk_live_", 20, Body::Name, "a Stripe key"),
    ("rk_live_", 20, Body::Name, "a Stripe key"),
    ("npm_", 36, Body::Name, "an npm token"),
    ("pypi-AgE", 50, Body::Name, "a PyPI token"),
    ("dckr_pat_", 20, Body::Name, "a Docker token"),
    ("dop_v1_", 60, Body::Name, "a DigitalOcean token"),
    ("hvs.", 20, Body::Wide, "a Vault token"),
    ("FlyV1 fm2_", 40, Body::Wide, "a Fly token"),
    ("shpat_", 32, Body::Name, "a Shopify token"),
    ("ABSK", 80, Body::Wide, "an Amazon Bedrock key"),
    ("Bearer ", 24, Body::Random, "a bearer token"),
    ("AGE-SECRET-KEY-1", 50, Body::Plain, "an age key"),
    ("SG.", 60, Body::Dotted(22), "a SendGrid key"),
    ("AccountKey=", 40, Body::Wide, "a key of an Azure storage account"),
    ("SharedAccessKey=", 40, Body::Wide, "a shared access key of Azure"),
    ("dapi", 32, Body::Plain, "a Databricks token"),
    ("hf_", 34, Body::Plain, "a Hugging Face token"),
    ("AIza", 35, Body::Name, "a Google API key"),
    ("sbp_", 40, Body::Plain, "a Supabase token"),
    ("glsa_", 32, Body::Name, "a Grafana token"),
    ("dp.pt.", 40, Body::Plain, "a Doppler token"),
    ("tskey-", 20, Body::Name, "a Tailscale key"),
    ("ops_eyJ", 60, Body::Wide, "a 1Password token"),
    (".atlasv1.", 60, Body::Plain, "a Terraform token"),
    ("sk-ant-admin", 40, Body::Name, "an administrator's key of Anthropic"),
];

/// What stands for a value that somebody else is to fill in.
const PLACEHOLDERS: &[&str] = &[
    "${",
    "$(",
    "{{",
    "<%",
    "***",
    "...",
    "…",
    "example",
    "changeme",
    "change-me",
    "change_me",
    "placeholder",
    "your",
    "xxxx",
    "todo",
    "dummy",
    "replace",
    "redacted",
    "insert",
    "sample",
    "fixme",
    "fake",
];
/// Values that nobody keeps secret.
const WEAK: &[&str] = &[
    "test",
    "testing",
    "secret",
    "password",
    "passwd",
    "pass",
    "postgres",
    "root",
    "admin",
    "none",
    "null",
    "undefined",
    "true",
    "false",
    "default",
    "guest",
    "localhost",
    "required",
    "optional",
    "string",
    "token",
    "mysecret",
    "notset",
    "inherit",
];
/// What refers to a value that is elsewhere.
const REFERENCES: &[&str] = &[
    "$",
    "<",
    "%",
    "@",
    "!",
    "./",
    "../",
    "~/",
    "file:",
    "process.env",
    "os.environ",
    "env.",
    "var.",
    "local.",
    "data.",
    "module.",
    "secrets.",
    "vault:",
    "op://",
    "ssm:",
    "arn:",
    "ref:",
    "ref+",
    "secretref:",
    "encrypted:",
    "enc[",
];

/// Text, with marks for what is none: in UTF-8, or in UTF-16 if it says so. Nothing of what is not text.
pub(super) fn text(content: &[u8]) -> Option<Cow<'_, str>> {
    let wide = |rest: &[u8], unit: fn([u8; 2]) -> u16| {
        let units: Vec<_> = rest.as_chunks().0.iter().map(|it| unit(*it)).collect();
        Some(Cow::Owned(String::from_utf16_lossy(&units)))
    };
    match content {
        [0xff, 0xfe, rest @ ..] => wide(rest, u16::from_le_bytes),
        [0xfe, 0xff, rest @ ..] => wide(rest, u16::from_be_bytes),
        _ if content.iter().take(8192).any(|it| *it == 0) => None,
        [0xef, 0xbb, 0xbf, rest @ ..] => Some(String::from_utf8_lossy(rest)),
        _ => Some(String::from_utf8_lossy(content)),
    }
}

/// Everything of `content` that looks like a secret. Nothing of what is not text.
pub(super) fn scan(style: Style, names: &[&str], content: &[u8]) -> Vec<Hit> {
    settled(all(style, names, content))
}

/// The same, of which a line may have several of a kind.
pub(super) fn all(style: Style, names: &[&str], content: &[u8]) -> Vec<Hit> {
    let Some(content) = text(content) else { return Vec::new() };
    // Most files have none of it, and are not searched for it line by line.
    let likely = likely(&content);
    let with_ids = content.contains("AKIA") || content.contains("ASIA");
    let mut hits = Vec::new();
    let (mut ids, mut secrets) = (Vec::new(), BTreeSet::new());
    for (at, line) in content.lines().enumerate() {
        let line_number = at + 1;
        if hits.len() >= HITS {
            break;
        }
        let hit = |kind, what: &str| Hit { line: line_number, kind, what: what.to_owned() };
        hits.extend(shapes(line, &likely).into_iter().map(|(_, _, what)| hit(Kind::Token, what)));
        ids.extend(
            access_key_ids(line).map(|(start, _)| (line_number, line[start..].starts_with("AKIA"))),
        );
        if with_ids && has_secret_key(line) {
            secrets.insert(line_number);
        }
        let head = &line[..line.floor_char_boundary(LINE_LIMIT)];
        let found = |(name, value): (&str, &str)| {
            kind(style, names, name, value).map(|kind| hit(kind, &shown_name(name)))
        };
        hits.extend(assignments(head, style).filter_map(found));
        hits.extend(mentions(head).filter_map(found));
        if has_url_password(head, style) {
            hits.push(hit(Kind::Token, "a URL with a password"));
        }
    }
    for (line, long_lived) in ids {
        let near = line.saturating_sub(NEAR_LINES)..=line + NEAR_LINES;
        if secrets.range(near).next().is_some() {
            let what = if long_lived { "AKIA… (long-lived)" } else { "ASIA… (a session's)" };
            hits.push(Hit { line, kind: Kind::AwsKey, what: what.to_owned() });
        }
    }
    if let Some((at, _)) = private_keys(&content).find(|(_, it)| it.open && !it.hardware) {
        let line = 1 + content[..at].matches('\n').count();
        hits.push(Hit { line, kind: Kind::PrivateKey, what: "a private key".to_owned() });
    }
    hits
}

/// What a value is, by what it is called.
fn kind(style: Style, names: &[&str], name: &str, value: &str) -> Option<Kind> {
    // Most are neither, and this is cheap.
    if !(says_a_secret(name) || names.contains(&name)) || is_placeholder(value) {
        return None;
    }
    if is_aws_secret(name) && is_secret_key(value) {
        return Some(Kind::AwsKey);
    }
    let secret = is_secret_name(name) || names.contains(&name);
    match style {
        Style::Settings if is_random_key(name, value) => Some(Kind::Token),
        Style::Settings if secret && !is_number(value) => Some(Kind::Token),
        // A variable of the environment is called so by whoever reads it: no other name is as sure.
        Style::Any if secret && is_random(value) && is_variable(name) => Some(Kind::Token),
        Style::Any if secret && is_random(value) => Some(Kind::Random),
        _ => None,
    }
}

/// In order, once a line and kind; what is a token for certain is not a guess too.
pub(super) fn settled(mut hits: Vec<Hit>) -> Vec<Hit> {
    hits.sort_by_key(|it| (it.line, it.kind));
    hits.dedup_by_key(|it| (it.line, it.kind));
    let certain: BTreeSet<_> =
        hits.iter().filter(|it| it.kind != Kind::Random).map(|it| it.line).collect();
    hits.retain(|it| it.kind != Kind::Random || !certain.contains(&it.line));
    hits
}

/// `text`, with whatever looks like a token or an access key id cut after its first four characters.
pub(super) fn without_secrets(text: &str) -> String {
    let mut spans: Vec<_> =
        shapes(text, &likely(text)).into_iter().map(|(start, end, _)| (start, end)).collect();
    spans.extend(access_key_ids(text));
    spans.sort_unstable();
    let (mut out, mut from) = (String::new(), 0);
    for (start, end) in spans {
        if start >= from {
            out.push_str(&text[from..text.floor_char_boundary(start + 4)]);
            out.push('…');
            from = end;
        }
    }
    out.push_str(&text[from..]);
    out
}

fn is_token_char(it: char) -> bool {
    it.is_ascii_alphanumeric() || matches!(it, '_' | '-' | '.' | '+' | '/' | '=' | '~')
}

/// The shapes whose beginning is anywhere in it.
fn likely(text: &str) -> Vec<&'static Shape> {
    SHAPES.iter().filter(|it| text.contains(it.0)).collect()
}

/// Where tokens stand, by their makers' shapes.
fn shapes(line: &str, likely: &[&Shape]) -> Vec<(usize, usize, &'static str)> {
    let mut all = Vec::new();
    for (prefix, least, kind, what) in likely {
        for (start, _) in line.match_indices(prefix) {
            let body = &line[start + prefix.len()..];
            let fits = |it: char| match kind {
                Body::Plain => it.is_ascii_alphanumeric(),
                Body::Name => it.is_ascii_alphanumeric() || "_-".contains(it),
                Body::Wide | Body::Dotted(_) | Body::Random => is_token_char(it),
            };
            let length = body.find(|it| !fits(it)).unwrap_or(body.len());
            let body = &body[..length];
            let made = match kind {
                Body::Dotted(at) => body.find('.') == Some(*at),
                Body::Random => is_random(body),
                Body::Plain | Body::Name | Body::Wide => true,
            };
            // Of one maker's the number of the token comes first.
            let number = |it: char| prefix.starts_with('.') && it.is_ascii_alphanumeric();
            let before = line[..start].trim_end_matches(number);
            let begins = !before.ends_with(|it: char| it.is_ascii_alphanumeric() || it == '_');
            let mut known = body.chars().collect::<BTreeSet<_>>();
            known.retain(char::is_ascii_alphanumeric);
            if begins && length >= *least && known.len() >= 8 && !is_placeholder(body) && made {
                all.push((before.len(), start + prefix.len() + length, *what));
            }
        }
    }
    all
}

/// Where access key ids stand: `AKIA` of a user, `ASIA` of a session.
fn access_key_ids(line: &str) -> impl Iterator<Item = (usize, usize)> {
    let starts = ["AKIA", "ASIA"].into_iter().flat_map(move |it| line.match_indices(it));
    starts.filter_map(move |(start, _)| {
        let rest = &line.as_bytes()[start..];
        let length =
            rest.iter().take_while(|it| it.is_ascii_uppercase() || it.is_ascii_digit()).count();
        let begins = start == 0 || !line.as_bytes()[start - 1].is_ascii_alphanumeric();
        let ends = !rest.get(length).is_some_and(u8::is_ascii_alphanumeric);
        let real = length == 20 && begins && ends && !is_placeholder(&line[start..start + length]);
        real.then_some((start, start + length))
    })
}

/// Whether it has the form of a secret access key: 40 characters of base64, of every kind.
fn is_secret_key(value: &str) -> bool {
    value.len() == 40
        && value.bytes().all(|it| it.is_ascii_alphanumeric() || it == b'/' || it == b'+')
        && value.bytes().any(|it| it.is_ascii_uppercase())
        && value.bytes().any(|it| it.is_ascii_lowercase())
        && value.bytes().any(|it| it.is_ascii_digit())
}

fn has_secret_key(line: &str) -> bool {
    line.split(|it: char| !(it.is_ascii_alphanumeric() || it == '/' || it == '+'))
        .any(|it| is_secret_key(it) && !is_placeholder(it))
}

fn is_aws_secret(name: &str) -> bool {
    let name: String = name.chars().filter(char::is_ascii_alphanumeric).collect();
    let name = name.to_ascii_lowercase();
    name.contains("secretaccesskey") || name.contains("awssecretkey") || name.ends_with("awssecret")
}

/// `name = value`, `name: value`, and the like, wherever they stand in a line.
fn assignments(line: &str, style: Style) -> impl Iterator<Item = (&str, &str)> {
    line.match_indices(['=', ':']).filter_map(move |(at, _)| {
        let before = line[..at].trim_end().trim_end_matches(['"', '\'', '`']);
        let is_name = |it: char| it.is_ascii_alphanumeric() || matches!(it, '_' | '-' | '.');
        let name =
            &before[before.rfind(|it| !is_name(it)).map_or(0, |it| it + last_len(before, it))..];
        if name.is_empty() || name.len() > 128 {
            return None;
        }
        let after = line[at + 1..].trim_start_matches(['=', '>', ' ', '\t']);
        let after = &after[..after.floor_char_boundary(VALUE_LIMIT)];
        let value = match after.chars().next()? {
            quote @ ('"' | '\'' | '`') => after[1..].split(quote).next()?,
            _ if style == Style::Settings => {
                after.split(" #").next()?.trim_end_matches([',', ';', ' ', '\t', '\r'])
            }
            _ => after.split([' ', '\t', ',', ';', '&', ')', '"', '\'', '`', '<', '\\']).next()?,
        };
        (!value.is_empty()).then_some((name, value))
    })
}

/// So far behind a name is what it is called.
const REACH: usize = 80;

/// Random values that are not assigned as [`assignments`] knows it, and what they are called: `NAME: string = "…"`,
/// `environ["NAME"] = "…"`, `define('NAME', '…')`, `<add key="NAME" value="…"/>`, `--name …`, `ENV NAME …`.
fn mentions(line: &str) -> impl Iterator<Item = (&str, &str)> {
    let mut from = 0;
    let words = std::iter::from_fn(move || {
        let start = from + line[from..].find(is_token_char)?;
        let length = line[start..].find(|it| !is_token_char(it));
        from = length.map_or(line.len(), |it| start + it);
        Some((start, &line[start..from]))
    });
    let likely = |it: &str| (20..=VALUE_LIMIT).contains(&it.len()) && is_random(it);
    words.filter(move |(_, it)| likely(it)).filter_map(|(start, value)| {
        let before = &line[line.floor_char_boundary(start.saturating_sub(REACH))..start];
        let after = line[start + value.len()..].chars().next();
        let opening = before.chars().next_back()?;
        let name = if matches!(opening, '"' | '\'' | '`') {
            after.filter(|it| [opening, '\\'].contains(it))?;
            annotated(before).or_else(|| called(before))
        } else if opening.is_whitespace() && after.is_none_or(|it| !matches!(it, ':' | '@')) {
            argument(before)
        } else {
            None
        };
        Some((name?, value))
    })
}

/// The name at the end of it, and what is before that.
fn last_name(text: &str) -> (&str, &str) {
    let is_name = |it: char| it.is_ascii_alphanumeric() || matches!(it, '_' | '-' | '.');
    let at = text.rfind(|it| !is_name(it)).map_or(0, |it| it + last_len(text, it));
    (&text[..at], &text[at..])
}

/// `NAME: type = "`.
fn annotated(before: &str) -> Option<&str> {
    let left = before.trim_end_matches(['"', '\'', '`']).trim_end().strip_suffix('=')?;
    let is_type = |it: char| it.is_ascii_alphanumeric() || "_&'<>[]|?*: \t".contains(it);
    left.match_indices(':')
        .filter(|(at, _)| left[at + 1..].chars().all(is_type))
        .map(|(at, _)| last_name(left[..at].trim_end_matches(['?', '!', ' '])).1)
        .find(|it| is_secret_name(it))
}

/// A name with nothing but punctuation behind it, or words that say that a value follows.
fn called(mut before: &str) -> Option<&str> {
    for _ in 0..3 {
        let bare = before.trim_end_matches(|it: char| " \t\"'`=:,()[]{}<>&*!\\".contains(it));
        let (rest, name) = last_name(bare);
        if is_secret_name(name) {
            return Some(name.trim_start_matches('-'));
        }
        if !matches!(name, "value" | "Value" | "default" | "string" | "String" | "str") {
            return None;
        }
        before = rest;
    }
    None
}

/// An option, or a variable of the environment: of other words in prose a random one may follow.
fn argument(before: &str) -> Option<&str> {
    let (_, name) = last_name(before.trim_end_matches([' ', '\t', '|']));
    let option = name.strip_prefix("--");
    option.or(Some(name).filter(|it| is_variable(it))).filter(|it| is_secret_name(it))
}

/// How long the character at `at` is.
fn last_len(text: &str, at: usize) -> usize {
    text[at..].chars().next().map_or(1, char::len_utf8)
}

/// Whether any of it is in the names that [`is_secret_name`], [`is_aws_secret`] and [`is_random_key`] know.
fn says_a_secret(name: &str) -> bool {
    ["token", "secret", "pass", "pwd", "key", "pat", "auth", "session", "connection_string"]
        .iter()
        .any(|it| {
            name.as_bytes().windows(it.len()).any(|at| at.eq_ignore_ascii_case(it.as_bytes()))
        })
}

/// What tools call their secrets, and nobody would take for one by its words.
const NAMES: &[&str] = &[
    "AZURE_STORAGE_CONNECTION_STRING",
    "AZURE_STORAGE_KEY",
    "BW_SESSION",
    "DOCKER_AUTH_CONFIG",
    "NPM_CONFIG__AUTH",
    "REDISCLI_AUTH",
    "SENDGRID_KEY",
    "SOPS_AGE_KEY",
    "SSHPASS",
];

/// Whether whatever is called so is to be kept secret.
pub(super) fn is_secret_name(name: &str) -> bool {
    let exactly = NAMES.iter().any(|it| it.eq_ignore_ascii_case(name));
    if exactly || name.starts_with("OP_SESSION_") {
        return true;
    }
    let mut words = words(name);
    // `TOKEN_2` and `TOKEN_PROD` are tokens too.
    while words.last().is_some_and(|it| tells_apart(it)) {
        words.pop();
    }
    let Some(last) = words.last() else { return false };
    let before = words.len().checked_sub(2).map_or("", |it| words[it].as_str());
    match last.trim_end_matches(|it: char| it.is_ascii_digit()) {
        "apikey" | "pat" => true,
        // `PGPASSWORD` is one word.
        it if ["token", "secret", "password", "passwd", "passphrase"]
            .iter()
            .any(|end| it.ends_with(end)) =>
        {
            true
        }
        "pass" | "pwd" => !before.is_empty(),
        "key" => {
            matches!(
                before,
                "api"
                    | "access"
                    | "secret"
                    | "private"
                    | "master"
                    | "service"
                    | "signing"
                    | "encryption"
            )
        }
        // A password of something, but not what is said about one.
        "file" | "path" | "url" | "uri" | "arn" | "id" | "name" | "length" | "min" | "max"
        | "policy" | "age" | "days" | "ttl" | "reset" | "field" | "prompt" | "hash" | "version"
        | "type" | "enabled" | "required" | "error" | "store" => false,
        _ => words.iter().any(|it| it == "password" || it == "passwd"),
    }
}

/// Whether it is a key by its name, and nobody could have thought of it: of many kinds of keys most are secret.
pub(super) fn is_random_key(name: &str, value: &str) -> bool {
    const PUBLIC: &[&str] = &[
        "anon",
        "cache",
        "foreign",
        "gpg",
        "host",
        "kms",
        "partition",
        "primary",
        "pub",
        "public",
        "publishable",
        "site",
        "sort",
    ];
    let words = words(name);
    words.last().is_some_and(|it| it == "key")
        && !words.iter().any(|it| PUBLIC.contains(&it.as_str()))
        && is_random(value)
}

/// A word behind a name that says which of several it is, and not what.
fn tells_apart(word: &str) -> bool {
    let number = word.strip_prefix('v').unwrap_or(word);
    number.bytes().all(|it| it.is_ascii_digit())
        || matches!(
            word,
            "prod"
                | "production"
                | "live"
                | "stage"
                | "staging"
                | "test"
                | "qa"
                | "dev"
                | "development"
                | "local"
                | "ci"
                | "main"
                | "default"
                | "primary"
                | "secondary"
                | "backup"
                | "old"
                | "new"
                | "ro"
                | "rw"
        )
}

/// `RAILWAY_TOKEN`, as no language calls anything but constants and the environment.
fn is_variable(name: &str) -> bool {
    name.contains('_') && !name.contains(|it: char| it.is_ascii_lowercase())
}

/// `dbPassword`, `DB_PASSWORD` and `db-password` are two words.
fn words(name: &str) -> Vec<String> {
    let mut all = vec![String::new()];
    let mut was_lower = false;
    for it in name.chars() {
        let ends = !it.is_ascii_alphanumeric() || (was_lower && it.is_ascii_uppercase());
        if ends && all.last().is_some_and(|it| !it.is_empty()) {
            all.push(String::new());
        }
        if let (true, Some(word)) = (it.is_ascii_alphanumeric(), all.last_mut()) {
            word.push(it.to_ascii_lowercase());
        }
        was_lower = it.is_ascii_lowercase() || it.is_ascii_digit();
    }
    all.retain(|it| !it.is_empty());
    all
}

/// Whether somebody else is to put a value there, or keeps it elsewhere.
fn is_placeholder(value: &str) -> bool {
    let lower = value.to_lowercase();
    let distinct = lower.chars().collect::<BTreeSet<_>>().len();
    value.len() < 6
        || distinct < 4
        || is_path(value)
        || WEAK.contains(&lower.as_str())
        || PLACEHOLDERS.iter().any(|it| lower.contains(it))
        || REFERENCES.iter().any(|it| lower.starts_with(it))
}

/// Whether it is a path, by its form: a secret of AWS's, and a password, may begin with a slash too.
fn is_path(value: &str) -> bool {
    let Some(rest) = value.strip_prefix('/') else { return false };
    let plain = |it: u8| it.is_ascii_alphanumeric() || b"/_-.+~ ".contains(&it);
    let mixed = rest.bytes().any(|it| it.is_ascii_digit())
        && rest.bytes().any(|it| it.is_ascii_uppercase())
        && !rest.contains('/');
    rest.bytes().all(plain) && !mixed && !is_secret_key(value) && !is_random(value)
}

fn is_number(value: &str) -> bool {
    value.len() < 10 && value.bytes().all(|it| it.is_ascii_digit() || it == b'.')
}

/// Whether nobody would have thought of it: a UUID, or long, with digits, and of ever changing kinds of characters.
fn is_random(value: &str) -> bool {
    if uuid::Uuid::parse_str(value).is_ok() {
        return true;
    }
    let jwt = value.starts_with("eyJ");
    let fits = |it: char| is_token_char(it) && (jwt || it != '.');
    if value.len() < 20 || !value.chars().all(fits) {
        return false;
    }
    let kind = |it: u8| match it {
        b'0'..=b'9' => 0,
        b'a'..=b'z' => 1,
        b'A'..=b'Z' => 2,
        _ => 3,
    };
    let kinds: Vec<_> = value.bytes().map(kind).filter(|it| *it != 3).collect();
    let changes = kinds.windows(2).filter(|it| it[0] != it[1]).count();
    let digits = kinds.iter().filter(|it| **it == 0).count();
    let letters = kinds.len() - digits;
    digits >= 3 && letters >= 3 && changes * 5 >= kinds.len() && entropy(value) >= 3.2
}

/// Shannon's, in bits a character.
#[expect(clippy::cast_precision_loss, reason = "values are short")]
fn entropy(value: &str) -> f64 {
    let mut counts = [0_usize; 256];
    for it in value.bytes() {
        counts[usize::from(it)] += 1;
    }
    let share = |it: &usize| *it as f64 / value.len() as f64;
    counts.iter().filter(|it| **it != 0).map(share).map(|it| -it * it.log2()).sum()
}

/// `scheme://user:password@host`, where the host is another machine.
pub(super) fn has_url_password(line: &str, style: Style) -> bool {
    line.match_indices("://").any(|(at, found)| {
        let rest = &line[at + found.len()..];
        let end = rest.find(|it: char| {
            it.is_whitespace() || matches!(it, '/' | '"' | '\'' | '?' | '#' | '<' | '>' | '`')
        });
        let authority = &rest[..end.unwrap_or(rest.len())];
        let Some((userinfo, host)) = authority.rsplit_once('@') else { return false };
        let Some((_, password)) = userinfo.split_once(':') else { return false };
        let bare = host.rsplit_once(':').map_or(host, |(it, _)| it);
        let local = matches!(bare, "localhost" | "[::1]" | "0.0.0.0") || bare.starts_with("127.");
        let meant = style == Style::Settings || is_random(password);
        !host.is_empty()
            && !local
            && !bare.contains("example")
            && meant
            && !is_placeholder(password)
    })
}

/// A name as it may be shown: names only, however long a line went on.
fn shown_name(name: &str) -> String {
    if name.len() <= 64 && !is_random(name) { name.to_owned() } else { "a variable".to_owned() }
}

/// What a file with a private key in it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct PrivateKey {
    /// Without a passphrase.
    pub(super) open: bool,
    /// Its secret is in hardware: the file is a handle, and the key wants a touch.
    pub(super) hardware: bool,
}

/// The first open private key in PEM or OpenSSH's format, or else the first.
pub(super) fn private_key(content: &[u8]) -> Option<PrivateKey> {
    let text = String::from_utf8_lossy(content);
    let mut all = private_keys(&text).map(|(_, it)| it).peekable();
    let first = all.peek().copied();
    all.find(|it| it.open && !it.hardware).or(first)
}

/// All of them, and where they begin. Parameters and certificates stand before keys.
fn private_keys(text: &str) -> impl Iterator<Item = (usize, PrivateKey)> {
    let begin = "-----BEGIN ";
    text.match_indices(begin).filter_map(move |(at, _)| {
        let (label, rest) = text[at + begin.len()..].split_once("-----")?;
        // To the next dashes and no further: else many beginnings without an end would take long.
        let (body, rest) = rest.split_once("-----")?;
        let key = rest.starts_with("END ").then(|| one_private_key(label, body));
        Some((at, key??))
    })
}

fn one_private_key(label: &str, body: &str) -> Option<PrivateKey> {
    // In JSON, and in a variable, ends of lines are written so.
    let body = body.replace("\\r", "").replace("\\n", "\n").replace('\\', "");
    let soft = |open| Some(PrivateKey { open, hardware: false });
    match label {
        // Nobody's key is shorter than this, and examples are.
        _ if body.len() < 48 => None,
        "OPENSSH PRIVATE KEY" => openssh_key(&body),
        "PRIVATE KEY" => soft(true),
        "ENCRYPTED PRIVATE KEY" => soft(false),
        "RSA PRIVATE KEY" | "EC PRIVATE KEY" | "DSA PRIVATE KEY" => {
            soft(!body.contains("ENCRYPTED"))
        }
        _ => None,
    }
}

/// The header of OpenSSH's own format, which is in clear: cipher, KDF and its options, how many, public key.
fn openssh_key(body: &str) -> Option<PrivateKey> {
    use base64::Engine as _;
    let body: String = body.split_whitespace().collect();
    let bytes = base64::engine::general_purpose::STANDARD.decode(body).ok()?;
    let mut rest = bytes.strip_prefix(b"openssh-key-v1\0")?;
    let cipher = string(&mut rest)?;
    string(&mut rest)?;
    string(&mut rest)?;
    rest = rest.get(4..)?;
    let mut public = string(&mut rest)?;
    let kind = string(&mut public)?;
    Some(PrivateKey { open: cipher == b"none", hardware: kind.starts_with(b"sk-") })
}

/// The next string of SSH's encoding (RFC 4251, section 5), which `from` then begins behind.
pub(super) fn string<'a>(from: &mut &'a [u8]) -> Option<&'a [u8]> {
    let (length, rest) = from.split_first_chunk::<4>()?;
    let length = usize::try_from(u32::from_be_bytes(*length)).ok()?;
    let (value, rest) = rest.split_at_checked(length)?;
    *from = rest;
    Some(value)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn found(style: Style, text: &str) -> Vec<(usize, Kind, String)> {
        let hits = scan(style, &[], text.as_bytes());
        hits.into_iter().map(|it| (it.line, it.kind, it.what)).collect()
    }

    #[test]
    fn names_that_mean_secrets_are_told_from_names_about_them() {
        for name in [
            "TOKEN",
            "GITHUB_TOKEN",
            "apiKey",
            "api-key",
            "CLIENT_SECRET",
            "dbPassword",
            "DB_PASS",
            "PASSWORD_PROD",
            "AWS_SECRET_ACCESS_KEY_PROD",
            "SECRET_ACCESS_KEY_PROD",
            "AWS_PROD_SECRET_ACCESS_KEY",
            "GITHUB_TOKEN_2",
            "token2",
            "API_KEY_v2_old",
            "spring.datasource.password",
            "AWS_SECRET_ACCESS_KEY",
            "SECRET_KEY",
            "PGPASSWORD",
            "DBPASSWORD",
            "SSHPASS",
            "REDISCLI_AUTH",
            "DOCKER_AUTH_CONFIG",
            "NPM_CONFIG__AUTH",
            "npm_config__auth",
            "BW_SESSION",
            "OP_SESSION_my",
            "SENDGRID_KEY",
            "AZURE_STORAGE_KEY",
            "AZURE_STORAGE_CONNECTION_STRING",
            "SOPS_AGE_KEY",
            "gitlabtoken",
        ] {
            assert!(is_secret_name(name) && says_a_secret(name), "{name}");
        }
        for name in [
            "2",
            "PROD",
            "TOKEN_FILE_2",
            "TOKEN_FILE",
            "TOKEN_URL",
            "SECRET_ARN",
            "PASSWORD_MIN_LENGTH",
            "PWD",
            "OLDPWD",
            "tokenizer",
            "PRIMARY_KEY",
            "KEY",
            "AUTHOR",
            "password_hash",
            "BYPASS",
            "SSH_ASKPASS",
            "XDG_SESSION_ID",
            "SOPS_AGE_KEY_FILE",
            "MAX_TOKENS",
            "",
        ] {
            assert!(!is_secret_name(name), "{name}");
        }
    }

    #[test]
    fn a_key_of_settings_counts_if_it_is_random_and_not_for_the_public() {
        let token = concat!("3f9c1b7e-52d4-4a86", "-9e0b-7d1f6a2c8b45");
        for (name, count) in [
            ("LINEAR_KEY", 1),
            ("maps-key", 1),
            ("key", 1),
            ("STRIPE_PUBLIC_KEY", 0),
            ("STRIPE_PUBLISHABLE_KEY", 0),
            ("GPG_KEY", 0),
            ("CACHE_KEY", 0),
            ("KEYBOARD", 0),
        ] {
            let line = format!("{name}={token}");
            assert_eq!(found(Style::Settings, &line).len(), count, "{name}");
            assert_eq!(found(Style::Any, &line), [], "{name}");
        }
        assert_eq!(found(Style::Settings, "SORT_BY_KEY=alphabetical"), []);
    }

    #[test]
    fn tokens_are_known_by_the_forms_that_their_makers_give_them() {
        let mixed = "9fK2mQx7LbR4tWz8VnC3yHj6PdS1gTa5EuXo".repeat(3);
        let letters = "kQxLbRtWzVnCyHjPdSgTaEuXoMfJrNsBvD";
        let hex = "3f9c1b7e52d44a869e0b7d1f6a2c8b4571ce03da".to_owned();
        let upper = mixed.to_uppercase();
        let of = |prefix: &str, body: &str| format!("a {prefix}{body} b");
        for line in [
            of("AGE-SECRET-KEY-1", &upper[..58]),
            of("SG.", &format!("{}.{}", &mixed[..22], &mixed[22..65])),
            format!("AccountName=a;AccountKey={}==;x", &mixed[..86]),
            format!("SharedAccessKey={}=", &mixed[..43]),
            of("dapi", &hex[..32]),
            of("hf_", letters),
            of("AIza", &mixed[..35]),
            of("sbp_", &hex),
            of("glsa_", &format!("{}_{}", &mixed[..32], &hex[..8])),
            of("dp.pt.", &mixed[..43]),
            of("tskey-", &format!("auth-{}-{}", &mixed[..12], &mixed[12..44])),
            of("ops_eyJ", &mixed),
            of(&format!("{}.atlasv1.", &mixed[..14]), &mixed[14..80]),
            of("sk-ant-admin", &format!("01-{}", &mixed[..80])),
        ] {
            assert_eq!(found(Style::Any, &line).len(), 1, "{line}");
            let shown = without_secrets(&line);
            assert!(!shown.contains(&mixed[30..40]) && !shown.contains(&hex[8..30]), "{shown}");
            assert!(!shown.contains(letters) && !shown.contains(&mixed[4..14]), "{shown}");
        }
        for line in [
            "hf_configuration_of_the_tokenizer_of_a_model",
            "dapi_some_function_that_has_a_long_name",
            "AGE-SECRET-KEY-1",
            "AccountKey=${ACCOUNT_KEY}",
            "AIza",
            "SG.Linear.Algebra.Matrices.And.Their.Many.Decompositions.In.Numerics.And.More",
        ] {
            assert_eq!(found(Style::Any, line), [], "{line}");
        }
    }

    #[test]
    fn a_random_value_is_a_secret_if_the_line_calls_it_one_in_whatever_language() {
        let token = concat!("3f9c1b7e-52d4-4a86", "-9e0b-7d1f6a2c8b45");
        for line in [
            "export const RAILWAY_TOKEN: string = \"@\";",
            "RAILWAY_TOKEN: str = \"@\"",
            "const RAILWAY_TOKEN: &str = \"@\";",
            "const RAILWAY_TOKEN: &'static str = \"@\";",
            "let RAILWAY_TOKEN: Option<String> = \"@\";",
            "os.environ[\"RAILWAY_TOKEN\"] = \"@\"",
            "process.env['RAILWAY_TOKEN'] = '@'",
            "railway --token @ up",
            "bash -c 'railway --token @'",
            "railway --api-token \"@\" up",
            "ENV RAILWAY_TOKEN @",
            "set -gx RAILWAY_TOKEN @",
            "<add key=\"RailwayToken\" value=\"@\"/>",
            "define('RAILWAY_TOKEN', '@');",
            "os.Setenv(\"RAILWAY_TOKEN\", \"@\")",
            "const RailwayToken string = \"@\"",
            "char railway_token[] = \"@\";",
            "- { name: RAILWAY_TOKEN, value: \"@\" }",
            "RAILWAY_TOKEN => '@',",
        ] {
            assert_eq!(found(Style::Any, &line.replace('@', token)).len(), 1, "{line}");
        }
        for line in [
            "{\"token\": \"$X\", \"project\": \"@\"}",
            "railway --token=$X --project @",
            "railway --token $X --project \"@\"",
            "revoked the token of session @ today",
            "TOKEN_URL: str = \"@\"",
            "the password; see \"@\"",
            "token(\"a\"); id = \"@\"",
            "commit @",
            "os.Setenv(\"RAILWAY_PROJECT\", \"@\")",
            "ENV RAILWAY_TOKEN_FILE @",
            "map: { token: a }, other = \"@\"",
        ] {
            assert_eq!(found(Style::Any, &line.replace('@', token)), [], "{line}");
        }
        let far = format!("f(\"RAILWAY_TOKEN\", {}\"{token}\")", " ".repeat(100));
        assert_eq!(found(Style::Any, &far), []);
    }

    #[test]
    fn what_somebody_thought_of_is_told_from_what_a_machine_made() {
        for value in [
            concat!("3f9c1b7e-52d4-4a86", "-9e0b-7d1f6a2c8b45"),
            concat!("9fK2mQx7LbR4tWz8Vn", "C3yHj6PdS1gTa5EuXo"),
            concat!("5f4dcc3b5aa765d61d", "8327deb882cf99"),
        ] {
            assert!(is_random(value), "{value}");
        }
        for value in [
            "my-secret-name-in-the-store",
            "ACCESS_TOKEN_STORAGE_KEY_1",
            "accessTokenForUser",
            "2026-01-01T00:00:00Z",
            "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaa",
            "12345678901234567890",
            "short1A",
        ] {
            assert!(!is_random(value), "{value}");
        }
    }

    #[test]
    fn a_password_with_a_slash_before_it_is_told_from_a_path() {
        let of = |value: &str| found(Style::Settings, &format!("DB_PASSWORD={value}")).len();
        for value in [concat!("/tr0ub4dor", "-Kq82"), "/Kq82!x@wort", "/tr0/ub4$dor"] {
            assert_eq!(of(value), 1, "{value}");
        }
        for value in ["/run/secrets/db", "/data/db-Password.2", "/etc/app/Token_1", "/password"] {
            assert_eq!(of(value), 0, "{value}");
        }
    }

    #[test]
    fn an_access_key_id_counts_with_its_secret_and_not_alone_or_far_from_it() {
        let id = concat!("AKIA", "Q7M2XK4RJ5TNW3PB");
        let key = concat!("hT4k/9QmZ2xVb7Lw", "Rn+5cYpD8sJf3GaE6uKo1BiX");
        let near = format!("a: {id}\n\n\nb: {key}\n");
        let what = "AKIA… (long-lived)".to_owned();
        assert_eq!(found(Style::Any, &near), [(1, Kind::AwsKey, what)]);
        assert_eq!(found(Style::Any, id), []);
        assert_eq!(found(Style::Any, &near.replace("\n\n\n", &"\n".repeat(20))), []);
        // A commit's name has 40 characters too.
        let commit = "da39a3ee5e6b4b0d3255bfef95601890afd80709";
        assert_eq!(found(Style::Any, &near.replace(key, commit)), []);
    }

    #[test]
    fn urls_with_passwords_count_unless_they_are_of_this_machine_or_an_example() {
        let with = |it: &str| has_url_password(it, Style::Settings);
        assert!(with("DATABASE_URL=postgres://app:hunter2x@db.internal/app"));
        assert!(with("redis://:p4ssw0rd1@cache:6379"));
        for fine in [
            "postgres://app:hunter2x@localhost/app",
            "postgres://app:hunter2x@127.0.0.1:5432/app",
            "postgres://app:${PASSWORD}@db/app",
            "postgres://app@db/app",
            "https://example.com/a:b@c",
            "postgres://app:hunter2x@db.example.com/app",
            "://",
            "a://:@",
        ] {
            assert!(!with(fine), "{fine}");
        }
    }

    #[test]
    fn whatever_is_shown_holds_no_token() {
        let token = concat!("ghp", "_9fK2mQx7LbR4tWz8VnC3yHj6PdS1gTa5EuXo");
        let id = concat!("ASIA", "Q7M2XK4RJ5TNW3PB");
        let text = format!("/home/{token}/é{id}/x");
        assert_eq!(without_secrets(&text), "/home/ghp_…/éASIA…/x");
    }

    #[test]
    fn every_key_of_a_file_is_looked_at_and_an_open_one_counts() {
        let pem = |head: &str, body: &str| {
            format!("-----BEGIN {head}-----\n{body}\n-----END {head}-----\n")
        };
        let body = "A".repeat(64);
        let parameters = pem("EC PARAMETERS", "BggqhkjOPQMBBw==");
        let certificate = pem("CERTIFICATE", &body);
        let open = pem("EC PRIVATE KEY", &body);
        let closed = pem("ENCRYPTED PRIVATE KEY", &body);
        for (text, line) in [
            (format!("{parameters}{open}"), 4),
            (format!("{certificate}{open}"), 4),
            (format!("{closed}{certificate}{open}"), 7),
            (format!("-----BEGIN RUBBISH {open}"), 1),
            (format!("-----BEGIN RUBBISH-----\n{open}"), 2),
            (format!("{open}{closed}"), 1),
        ] {
            let what = "a private key".to_owned();
            assert_eq!(found(Style::Any, &text), [(line, Kind::PrivateKey, what)], "{text}");
        }
        let first = private_key(format!("{certificate}{closed}").as_bytes()).unwrap();
        assert!(!first.open);
        assert_eq!(found(Style::Any, &format!("{certificate}{closed}")), []);
        // Nothing makes it slow.
        let many = "-----BEGIN PRIVATE KEY-----".repeat(40_000);
        assert_eq!(private_key(many.as_bytes()), None);
    }

    #[test]
    fn a_handle_of_a_hardware_key_is_no_open_key() {
        use base64::Engine as _;
        let string = |it: &[u8]| [&u32::try_from(it.len()).unwrap().to_be_bytes(), it].concat();
        let file = |cipher: &[u8], kind: &[u8]| {
            let public = string(&[string(kind), vec![7; 40]].concat());
            let head = [b"openssh-key-v1\0".to_vec(), string(cipher), string(b"none"), string(b"")]
                .concat();
            let bytes = [head, vec![0, 0, 0, 1], public, vec![0; 64]].concat();
            let body = base64::engine::general_purpose::STANDARD.encode(bytes);
            format!(
                "-----BEGIN OPENSSH PRIVATE KEY-----\n{body}\n-----END OPENSSH PRIVATE KEY-----\n"
            )
        };
        let kind = |cipher: &[u8], kind: &[u8]| private_key(file(cipher, kind).as_bytes()).unwrap();
        assert_eq!(kind(b"none", b"ssh-ed25519"), PrivateKey { open: true, hardware: false });
        assert_eq!(
            kind(b"aes256-ctr", b"ssh-ed25519"),
            PrivateKey { open: false, hardware: false }
        );
        assert!(kind(b"none", b"sk-ssh-ed25519@openssh.com").hardware);
        // As JSON and a variable carry it.
        let escaped = file(b"none", b"ssh-ed25519").replace('\n', "\\n");
        let hardware = file(b"none", b"sk-ssh-ed25519@openssh.com");
        for text in [escaped.clone(), format!("{hardware}{escaped}")] {
            let open = PrivateKey { open: true, hardware: false };
            assert_eq!(private_key(text.as_bytes()), Some(open), "{text}");
        }
        assert_eq!(found(Style::Any, &hardware), []);
        let pem = |head: &str| {
            format!("-----BEGIN {head}-----\n{}\n-----END {head}-----\n", "A".repeat(64))
        };
        for (label, open) in
            [("PRIVATE KEY", true), ("RSA PRIVATE KEY", true), ("ENCRYPTED PRIVATE KEY", false)]
        {
            assert_eq!(private_key(pem(label).as_bytes()).unwrap().open, open, "{label}");
        }
        assert_eq!(private_key(pem("CERTIFICATE").as_bytes()), None);
    }

    proptest! {
        #[test]
        fn no_content_makes_a_scan_fail(
            bytes in prop::collection::vec(any::<u8>(), 0..600),
            text in "(AKIA|ghp_|://|@|=|:|é|\"|Bearer |-----BEGIN |-----|[A-Za-z0-9]{0,9}|\n){0,60}",
        ) {
            for content in [bytes.as_slice(), text.as_bytes()] {
                for style in [Style::Settings, Style::Any] {
                    scan(style, &["auth"], content);
                }
                private_key(content);
                without_secrets(&String::from_utf8_lossy(content));
                super::super::ssh::identities(content);
            }
        }

        /// Whatever stands around it, a token in its maker's form is found, and is not shown.
        #[test]
        fn a_token_is_found_and_never_told(
            body in "[A-Za-z0-9]{36}",
            before in "([ -~é]{0,20}[ =:'\"])?",
            after in "([ '\",;][ -~]{0,20})?",
        ) {
            let distinct = body.chars().collect::<BTreeSet<_>>().len();
            prop_assume!(distinct >= 10 && !is_placeholder(&body));
            let token = format!("ghp_{body}");
            let line = format!("{before}{token}{after}");
            let hits = scan(Style::Any, &[], line.as_bytes());
            prop_assert!(!hits.is_empty(), "{line}");
            for hit in hits {
                prop_assert!(!hit.what.contains(&body));
            }
            prop_assert!(!without_secrets(&line).contains(&body));
        }
    }
}
