//! Shows an act of authority to the person who signs it.

use std::fmt::Write;

use time::format_description::well_known::Rfc3339;
use time::{Duration, OffsetDateTime};

use super::{name, words};
use crate::lease::FreezeKind;
use crate::statement::act::{ADMINS, Act, ActStatement, Change, Evidence, NewKey};

/// The statement in words, without colour.
pub fn act(sealed: &ActStatement) -> String {
    let terms = sealed.terms();
    let mut lines = vec![
        ("code", sealed.short_code()),
        ("statement", terms.id.to_string()),
        ("broker", name(&terms.broker.origin)),
        (
            "asked by",
            terms.proposed_by.as_deref().map_or("an operator, on the server's host".into(), name),
        ),
    ];
    match &terms.act {
        Act::TaskStart(task) => lines.extend([
            ("starts", format!("a task of agent {}", name(&task.agent))),
            ("sponsor", format!("{}, who answers for what the agent does", name(&task.sponsor))),
            ("task", name(&task.task)),
            ("for", span(task.ttl_seconds)),
            ("gives", "a token to ask for leases with; it approves nothing".into()),
        ]),
        Act::Thaw(thaw) => {
            let what = match (thaw.freeze, thaw.target.as_deref()) {
                (FreezeKind::All, _) => "EVERYTHING".to_owned(),
                (kind, target) => format!("{kind} {}", name(target.unwrap_or_default())),
            };
            lines.extend([
                ("ends", format!("the freeze of {what}")),
                ("frozen by", format!("{} at {}", name(&thaw.frozen_by), at(thaw.frozen_at))),
                ("because", words(&thaw.frozen_because)),
            ]);
        }
        Act::AdminChange(change) => change_lines(change, &mut lines),
    }
    let eligible: Vec<_> = terms.signers.eligible.iter().map(|it| name(it)).collect();
    lines.push(("needs", format!("1 of {}", eligible.join(", "))));
    lines.push(("sign by", at(terms.sign_by)));
    if 0 < terms.cool_down_seconds {
        let wait = span(terms.cool_down_seconds);
        lines.push((
            "effective",
            format!("{wait} after the signature; until then it can be refused"),
        ));
    }
    lines.into_iter().fold(String::new(), |mut out, (label, value)| {
        let _ = writeln!(out, "  {label:<12} {value}");
        out
    })
}

fn change_lines(change: &Change, lines: &mut Vec<(&'static str, String)>) {
    let list = |it: &[String]| match it {
        [] => "none".to_owned(),
        some => some.iter().map(|it| group(it)).collect::<Vec<_>>().join(", "),
    };
    match change {
        Change::AddPerson { person } => {
            lines.extend([
                ("adds", format!("person {}", name(&person.handle))),
                ("who is", format!("{}, {}", words(&person.display_name), name(&person.email))),
                ("groups", list(&person.groups)),
            ]);
            match &person.key {
                Some(key) => key_lines(key, lines),
                None => lines.push(("key", "none yet".into())),
            }
        }
        Change::SetGroups { handle, from, to } => lines.extend([
            ("changes", format!("the groups of {}", name(handle))),
            ("from", list(from)),
            ("to", list(to)),
        ]),
        Change::DisablePerson { handle, was_admin } => {
            let who = if *was_admin { ", an ADMIN" } else { "" };
            lines.extend([
                ("disables", format!("{}{who}", name(handle))),
                ("ends", "the tasks and open leases of the agents they stand behind".into()),
            ]);
        }
        Change::EnablePerson { handle, groups } => {
            lines
                .extend([("enables", format!("{} again", name(handle))), ("groups", list(groups))]);
        }
        Change::EnrolKey { handle, key } => {
            lines.push(("enrols", format!("a key of {}", name(handle))));
            key_lines(key, lines);
        }
        Change::RevokeKey { handle, fingerprint } => lines.extend([
            ("revokes", format!("a key of {}", name(handle))),
            ("key", name(fingerprint)),
        ]),
    }
}

/// Whoever is in this one can change all of this.
fn group(text: &str) -> String {
    if text == ADMINS { "ADMINS (who change people and keys)".to_owned() } else { name(text) }
}

fn key_lines(key: &NewKey, lines: &mut Vec<(&'static str, String)>) {
    let kind = key.public_key.split(' ').next().unwrap_or_default();
    lines.extend([
        ("key", format!("{} ({})", name(&key.fingerprint), name(kind))),
        ("assurance", key.assurance.as_str().to_uppercase()),
    ]);
    lines.push(match &key.evidence {
        Evidence::Unknown => ("hardware", "nobody knows: a program may be able to use it".into()),
        Evidence::Seen => {
            ("you say", "that you SAW this hardware key in this person's hand".into())
        }
        Evidence::Attested { hardware_is, .. } => {
            ("hardware", format!("its maker says that it is {}", words(hardware_is)))
        }
    });
}

fn at(time: OffsetDateTime) -> String {
    time.format(&Rfc3339).unwrap_or_default()
}

fn span(seconds: u32) -> String {
    humantime::format_duration(Duration::seconds(seconds.into()).unsigned_abs()).to_string()
}
