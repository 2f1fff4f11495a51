//! Shows a statement to the person who signs it. Made only from the signed bytes. Pure.

pub mod act;

use std::fmt::Write;

use crate::lease::{ActionClass, Tier};
use crate::statement::{Conditions, LeaseStatement};

/// So many lines of the agent's words are shown: they must not push the rest off the screen.
const MAX_LINES: usize = 12;

/// The statement in words, without colour: what a terminal shows before the key asks for its touch.
pub fn statement(sealed: &LeaseStatement) -> String {
    let terms = sealed.terms();
    let role = &terms.assume_role;
    let minutes = role.duration_seconds / 60;
    let mut out = String::new();
    let mut line = |label: &str, value: &str| {
        let _ = writeln!(out, "  {label:<12} {value}");
    };
    line("code", &sealed.short_code());
    line("lease", &terms.lease_id.to_string());
    line("broker", &name(&terms.broker.origin));
    line(
        "who asks",
        &format!("agent {}, vouched for by {}", name(&terms.agent.name), name(&terms.agent.issuer)),
    );
    line(
        "sponsor",
        &format!("{}, who started task {}", name(&terms.sponsor), name(&terms.sponsor_task)),
    );
    if let Some(actor) = &terms.actor {
        line("set off by", &name(actor));
    }
    line("account", &format!("{} ({})", name(&terms.account.alias), name(&terms.account.id)));
    line(
        "where",
        &format!("{}, {}", terms.environment, name(&terms.conditions.regions.join(", "))),
    );
    line(
        "tier",
        &format!(
            "{}, as its scope: {}",
            terms.tier.as_str().to_uppercase(),
            words(&terms.tier_because)
        ),
    );
    line("scope", &name(&terms.scope));
    line("role", &name(&role.role_arn));
    for (at, action) in terms.actions.iter().enumerate() {
        let label = if at == 0 { "may do" } else { "" };
        let on = if action.any_resource { ", on ANYTHING in the account" } else { "" };
        let region = if action.any_region { ", in ANY Region" } else { "" };
        let account = if action.any_account { ", WHOSEVER account it is in" } else { "" };
        line(
            label,
            &format!("{:<28} {}{on}{region}{account}", name(&action.action), action.class.plain()),
        );
    }
    let arns = terms.resources.iter().filter(|it| it.as_str() != "*");
    for (at, resource) in arns.enumerate() {
        line(if at == 0 { "on" } else { "" }, &name(resource));
    }
    for held in held_to(&terms.conditions) {
        line("only", &held);
    }
    line("how often", &format!("any parameters, any number of times, for {minutes} minutes"));
    line("needs", &format!("{} of {}", terms.signers.needed, terms.signers.eligible.join(", ")));
    line(
        "sign by",
        &terms.sign_by.format(&time::format_description::well_known::Rfc3339).unwrap_or_default(),
    );
    out.push('\n');
    for (label, text) in [
        ("task", &terms.agent_says.task),
        ("reason", &terms.agent_says.reason),
        ("rollback", &terms.agent_says.rollback),
    ] {
        boxed(&mut out, label, text);
    }
    if terms.tier == Tier::Destructive
        || terms.actions.iter().any(|it| it.class == ActionClass::Destructive)
    {
        out.push_str("\n  This DESTROYS something. There may be no way back.\n");
    }
    out
}

/// What the calls are held to, a line each.
fn held_to(conditions: &Conditions) -> Vec<String> {
    let list = |it: &[String]| it.iter().map(|it| name(it)).collect::<Vec<_>>().join(", ");
    let mut lines = Vec::new();
    if conditions.secure_transport {
        lines.push("over TLS".to_owned());
    }
    if !conditions.source_networks.is_empty() {
        lines.push(format!("from {}, or by AWS services", list(&conditions.source_networks)));
    }
    if !conditions.pass_role_to.is_empty() {
        lines.push(format!("iam:PassRole to {}", list(&conditions.pass_role_to)));
    }
    for it in &conditions.more {
        lines.push(format!("{} {}: {}", name(&it.operator), name(&it.key), list(&it.values)));
    }
    lines
}

/// The agent's words, line by line, in a box that says whose they are.
fn boxed(out: &mut String, label: &str, text: &str) {
    let _ = writeln!(out, "  | the agent's words, {label}:");
    let lines = text.split('\n').count();
    for line in text.split('\n').take(MAX_LINES) {
        let _ = writeln!(out, "  |   {}", words(line));
    }
    if MAX_LINES < lines {
        let _ = writeln!(out, "  |   ({} more lines)", lines - MAX_LINES);
    }
    let odd = odd_letters(text);
    if !odd.is_empty() {
        let _ = writeln!(out, "  |   (not plain ASCII, may imitate other letters: {odd})");
    }
}

/// An identifier: everything outside printable ASCII is shown by its code point.
pub fn name(text: &str) -> String {
    // Names have no reason for runs of blanks, which could draw a column of their own.
    escape(text, |it| it.is_ascii_graphic() || it == ' ').replace("  ", " \\u{20}")
}

/// Free text: letters of any script stay; controls, bidi marks, joiners and blanks that hide are shown by code point.
pub fn words(text: &str) -> String {
    escape(text, |it| {
        it.is_ascii_graphic() || it == ' ' || (!it.is_ascii() && it.is_alphanumeric())
    })
}

fn escape(text: &str, plain: impl Fn(char) -> bool) -> String {
    let mut out = String::with_capacity(text.len());
    for character in text.chars() {
        if plain(character) {
            out.push(character);
        } else {
            let _ = write!(out, "\\u{{{:x}}}", u32::from(character));
        }
    }
    out
}

fn odd_letters(text: &str) -> String {
    let mut seen = Vec::new();
    for character in text.chars().filter(|it| !it.is_ascii() && it.is_alphanumeric()) {
        if !seen.contains(&character) && seen.len() < 8 {
            seen.push(character);
        }
    }
    seen.iter().map(|it| format!("{it} U+{:04X}", u32::from(*it))).collect::<Vec<_>>().join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::statement::lease::tests::terms;

    #[test]
    fn the_agents_words_cannot_draw_on_the_screen() {
        let mut terms = terms();
        terms.agent_says.reason =
            "ok\u{1b}[2K\r\nsponsor      carol\u{202e}gpj\u{200b} \u{430}dmin".into();
        let shown = statement(&LeaseStatement::new(terms).unwrap());
        assert!(shown.chars().all(|it| it == '\n' || !it.is_control()), "{shown}");
        assert!(!shown.contains('\u{202e}') && !shown.contains('\u{200b}'));
        assert!(
            shown.contains("ok\\u{1b}[2K\\u{d}\n  |   sponsor      carol\\u{202e}gpj\\u{200b}")
        );
        assert!(shown.contains("U+0430"));
    }

    #[test]
    fn many_lines_of_the_agents_words_do_not_hide_the_rest() {
        let mut terms = terms();
        terms.agent_says.reason = "x\n".repeat(400);
        let shown = statement(&LeaseStatement::new(terms).unwrap());
        assert!(shown.lines().count() < 60, "{shown}");
        assert!(shown.contains("(389 more lines)"));
    }

    #[test]
    fn account_tier_actions_and_arns_are_always_shown() {
        let shown = statement(&LeaseStatement::new(terms()).unwrap());
        for part in [
            "demo (000000000000)",
            "PRODUCTION-WRITE",
            "s3:PutObject",
            "can overwrite",
            "arn:aws:s3:::prod-app-data/config.json",
            "any parameters, any number of times, for 15 minutes",
        ] {
            assert!(shown.contains(part), "{part} is missing from\n{shown}");
        }
    }

    #[test]
    fn what_no_condition_binds_is_said_beside_the_action() {
        let mut terms = terms();
        (terms.actions[0].any_region, terms.actions[0].any_account) = (true, true);
        let crate::statement::LeaseTerms { actions, resources, account, conditions, .. } = &terms;
        let policy =
            crate::statement::session_policy(actions, resources, &account.id, conditions, None);
        terms.assume_role.policy_sha256 = crate::statement::sha256_hex(policy.as_bytes());
        terms.assume_role.policy = policy;
        let shown = statement(&LeaseStatement::new(terms).unwrap());
        assert!(shown.contains("lose data, in ANY Region, WHOSEVER account it is in"), "{shown}");
    }

    #[test]
    fn a_look_alike_in_an_identifier_is_shown_by_its_code_point() {
        assert_eq!(name("pr\u{43e}d-\u{1f600}"), "pr\\u{43e}d-\\u{1f600}");
        assert_eq!(name("x    how often"), "x \\u{20} \\u{20}how often");
    }
}
