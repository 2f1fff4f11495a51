//! Shows a statement to the person who signs it. Made only from the signed bytes. Pure.
//!
//! A terminal of 80 columns is expected: what is not ours is broken into rows that fit it, so that the terminal breaks
//! none and every row keeps the mark that says whose it is.

pub mod act;

use std::fmt::Write;

use time::format_description::well_known::Rfc3339;
use unicode_width::UnicodeWidthChar;

use crate::lease::{ActionClass, Tier};
use crate::statement::{ActionTerms, ComparedTo, Conditions, LeaseStatement, LeaseTerms};

/// So many rows of each of the agent's texts are shown: they must not push the rest off the screen.
const MAX_ROWS: usize = 12;
/// Columns of one such row, beside the box's mark.
const ROW_COLUMNS: usize = 72;
/// Every row of the agent's words begins with it, and nothing else does.
const BOX: &str = "  |";

/// The statement in words, without colour: what a terminal shows before the key asks for its touch.
///
/// The short code of a destructive one is not among them. Whoever signs it has to be told by whoever asked.
pub fn statement(sealed: &LeaseStatement) -> String {
    let terms = sealed.terms();
    let mut form = Form(String::new());
    if terms.tier == Tier::Destructive {
        form.line("code", "not shown: whoever asked for this has to tell it to you");
    } else {
        form.line("code", &sealed.short_code());
    }
    form.who_and_where(terms);
    form.actions(terms);
    form.resources(terms);
    for held in held_to(&terms.conditions) {
        form.line("only", &held);
    }
    let minutes = terms.assume_role.duration_seconds / 60;
    let how_often = format!("any parameters, any number of times, for {minutes} minutes");
    form.line("how often", &how_often);
    let eligible: Vec<_> = terms.signers.eligible.iter().map(|it| id(it)).collect();
    form.line("needs", &format!("{} of {}", terms.signers.needed, eligible.join(", ")));
    form.line("sign by", &terms.sign_by.format(&Rfc3339).unwrap_or_default());
    form.0.push('\n');
    if vouched_for_elsewhere(terms) {
        boxed(&mut form.0, "what it runs for", &terms.sponsor_task);
    }
    for (label, text) in [
        ("task", &terms.agent_says.task),
        ("reason", &terms.agent_says.reason),
        ("rollback", &terms.agent_says.rollback),
    ] {
        boxed(&mut form.0, label, text);
    }
    if terms.tier == Tier::Destructive
        || terms.actions.iter().any(|it| it.class == ActionClass::Destructive)
    {
        form.0.push_str("\n  This DESTROYS something. There may be no way back.\n");
    }
    form.0
}

/// Labelled lines: a label has at most ten letters, so that two blanks follow it, which no value can hold.
struct Form(String);

impl Form {
    fn line(&mut self, label: &str, value: &str) {
        debug_assert!(label.len() <= 10, "{label}");
        let _ = writeln!(self.0, "  {label:<12} {value}");
    }

    fn who_and_where(&mut self, terms: &LeaseTerms) {
        self.line("lease", &terms.lease_id.to_string());
        self.line("broker", &id(&terms.broker.origin));
        let LeaseTerms { agent, sponsor, sponsor_task, account, .. } = terms;
        let asks = format!("agent {}, vouched for by {}", id(&agent.name), id(&agent.issuer));
        self.line("who asks", &asks);
        // Nobody signed for a workload's task; what it is called is its own words, below.
        let how = if vouched_for_elsewhere(terms) {
            "by the broker's configuration".to_owned()
        } else {
            format!("who started task {}", id(sponsor_task))
        };
        self.line("sponsor", &format!("{}, {how}", id(sponsor)));
        if let Some(actor) = &terms.actor {
            self.line("set off by", &id(actor));
        }
        self.line("account", &format!("{} ({})", id(&account.alias), id(&account.id)));
        let regions = id(&terms.conditions.regions.join(", "));
        self.line("where", &format!("{}, {regions}", terms.environment));
        let tier = terms.tier.as_str().to_uppercase();
        self.line("tier", &format!("{tier}, as its scope: {}", id(&terms.tier_because)));
        self.line("scope", &id(&terms.scope));
        self.line("role", &id(&terms.assume_role.role_arn));
        match &terms.compared_to {
            None => self.line("compared", "the first signed lease of this agent on this scope"),
            Some(last) => {
                let at = last.at.format(&Rfc3339).unwrap_or_default();
                let (label, how) = if is_wider(last) {
                    ("wider than", ", by what is marked NEW")
                } else {
                    ("as wide as", ", or less: nothing is new")
                };
                let last = format!("lease {}, which people approved at {at}", last.lease_id);
                self.line(label, &(last + how));
            }
        }
    }

    fn actions(&mut self, terms: &LeaseTerms) {
        let last = terms.compared_to.as_ref();
        for (at, it) in terms.actions.iter().enumerate() {
            let ActionTerms { action, class, any_resource, any_region, any_account } = it;
            let label = if at == 0 { "may do" } else { "" };
            let new = mark(last, |it| it.new_actions.contains(action));
            let on = if *any_resource { ", on ANYTHING in the account" } else { "" };
            let region = if *any_region { ", in ANY Region" } else { "" };
            let account = if *any_account { ", WHOSEVER account it is in" } else { "" };
            let does = class.plain();
            self.line(label, &format!("{new}{:<28} {does}{on}{region}{account}", id(action)));
        }
    }

    /// Each ARN on a line of its own; below one that names another account, which.
    fn resources(&mut self, terms: &LeaseTerms) {
        let own = &terms.account.id;
        for (at, arn) in terms.resources.iter().filter(|it| it.as_str() != "*").enumerate() {
            let new = mark(terms.compared_to.as_ref(), |it| it.new_resources.contains(arn));
            self.line(if at == 0 { "on" } else { "" }, &format!("{new}{}", id(arn)));
            if let Some(other) = arn.split(':').nth(4).filter(|it| !it.is_empty() && it != own) {
                let warning = format!("is in ANOTHER ACCOUNT: {}, not {}", id(other), id(own));
                self.line("^", &warning);
            }
        }
    }
}

fn is_wider(last: &ComparedTo) -> bool {
    !last.new_actions.is_empty() || !last.new_resources.is_empty()
}

/// What stands before an action or ARN, where anything is new.
fn mark(last: Option<&ComparedTo>, is_new: impl Fn(&ComparedTo) -> bool) -> &'static str {
    match last.filter(|it| is_wider(it)) {
        None => "",
        Some(last) if is_new(last) => "NEW ",
        Some(_) => "    ",
    }
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

/// Whether somebody else than the broker says who the agent is.
fn vouched_for_elsewhere(terms: &LeaseTerms) -> bool {
    terms.agent.issuer != terms.broker.origin
}

/// The agent's words, row by row, in a box that says whose they are.
fn boxed(out: &mut String, label: &str, text: &str) {
    let _ = writeln!(out, "{BOX} the agent's words, {label}:");
    let rows: Vec<_> = text.split('\n').flat_map(rows).collect();
    if text.is_empty() {
        let _ = writeln!(out, "{BOX}   (nothing)");
    } else {
        for row in rows.iter().take(MAX_ROWS) {
            let _ = writeln!(out, "{BOX}   {row}");
        }
    }
    if MAX_ROWS < rows.len() {
        let _ = writeln!(out, "{BOX}   ({} more lines)", rows.len() - MAX_ROWS);
    }
    let odd = odd_letters(text);
    if !odd.is_empty() {
        let _ = writeln!(out, "{BOX}   (not plain ASCII, may imitate other letters:");
        let _ = writeln!(out, "{BOX}   {odd})");
    }
}

/// One line of the agent's words, in rows that no terminal breaks.
fn rows(line: &str) -> Vec<String> {
    let (mut rows, mut row) = (Vec::new(), String::new());
    for character in line.chars() {
        let shown = words(character.encode_utf8(&mut [0; 4]));
        if ROW_COLUMNS < columns(&row) + columns(&shown) {
            // The word that does not fit moves on, unless it is none.
            let word = row.rfind(' ').map(|it| it + 1).filter(|it| row.len() < it + 24);
            let carried = row.split_off(word.unwrap_or(row.len()));
            rows.push(std::mem::replace(&mut row, carried));
        }
        row.push_str(&shown);
    }
    rows.push(row);
    rows
}

fn columns(text: &str) -> usize {
    text.chars().filter_map(UnicodeWidthChar::width).sum()
}

/// An identifier of a form: one that is empty says so.
fn id(text: &str) -> String {
    if text.is_empty() { "(empty)".to_owned() } else { name(text) }
}

/// An identifier: everything outside printable ASCII is shown by its code point, and so is a backslash, which could
/// imitate that.
pub fn name(text: &str) -> String {
    let shown = escape(text, |it| it != '\\' && (it.is_ascii_graphic() || it == ' '));
    // Names have no reason for runs of blanks, which could draw a column of their own, or for blanks at an end.
    let mut shown = shown.replace("  ", " \\u{20}");
    if shown.starts_with(' ') {
        shown.replace_range(..1, "\\u{20}");
    }
    if shown.ends_with(' ') {
        shown.replace_range(shown.len() - 1.., "\\u{20}");
    }
    shown
}

/// Free text. Letters that stand in a place of their own, in reading order, stay; everything else is shown by its code
/// point: controls, bidi marks, joiners, blanks that hide, marks that draw over other letters, and right-to-left
/// scripts, which would rearrange what stands beside them.
pub fn words(text: &str) -> String {
    escape(text, |it| it.is_ascii_graphic() || it == ' ' || is_letter_in_line(it))
}

fn is_letter_in_line(it: char) -> bool {
    // Letters by name, and nothing to see: the fillers of Hangul.
    let blank = matches!(it, '\u{115f}' | '\u{1160}' | '\u{3164}' | '\u{ffa0}');
    !it.is_ascii()
        && it.is_alphanumeric()
        && it.width().is_some_and(|it| it != 0)
        && !blank
        && !is_right_to_left(it)
}

/// The blocks that Unicode keeps for scripts written from the right (UAX #9, `DerivedBidiClass.txt`).
fn is_right_to_left(it: char) -> bool {
    matches!(
        u32::from(it),
        0x0590..=0x08ff | 0xfb1d..=0xfdff | 0xfe70..=0xfeff | 0x1_0800..=0x1_0fff | 0x1_e800..=0x1_efff
    )
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
    const AT_MOST: usize = 5;
    let mut seen = Vec::new();
    for character in text.chars().filter(|it| is_letter_in_line(*it)) {
        if seen.contains(&character) {
            continue;
        }
        if seen.len() == AT_MOST {
            return spelled(&seen) + ", and more";
        }
        seen.push(character);
    }
    spelled(&seen)
}

fn spelled(letters: &[char]) -> String {
    letters.iter().map(|it| format!("{it} U+{:04X}", u32::from(*it))).collect::<Vec<_>>().join(", ")
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::statement::lease::tests::{comparison, terms};
    use crate::statement::{session_policy, sha256_hex};

    /// The rendering of changed terms. Their policy is made to fit.
    fn shown(change: impl FnOnce(&mut LeaseTerms)) -> String {
        let mut terms = terms();
        change(&mut terms);
        let LeaseTerms { actions, resources, account, conditions, .. } = &terms;
        let policy = session_policy(actions, resources, &account.id, conditions, None);
        terms.assume_role.role_arn = format!("arn:aws:iam::{}:role/broker", account.id);
        terms.assume_role.policy_sha256 = sha256_hex(policy.as_bytes());
        terms.assume_role.policy = policy;
        let (actions, resources) = (terms.actions.clone(), terms.resources.clone());
        let shown = statement(&LeaseStatement::new(terms).unwrap());
        assert_holds(&shown, &actions, &resources);
        shown
    }

    /// What is true of every rendering.
    fn assert_holds(shown: &str, actions: &[ActionTerms], resources: &[String]) {
        assert!(shown.chars().all(|it| it == '\n' || !it.is_control()), "{shown}");
        let hides = |it: char| {
            matches!(it, '\u{ad}' | '\u{61c}' | '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{206f}' | '\u{feff}')
                || it.width() == Some(0)
                || is_right_to_left(it)
        };
        assert!(!shown.contains(hides), "{shown}");
        let ours: Vec<_> = shown.lines().filter(|it| !it.starts_with(BOX)).collect();
        let last = ours.iter().position(|it| it.is_empty()).unwrap();
        for line in &ours[..last] {
            // The label's column, and nothing of a value in it.
            let (label, value) = line.split_at(14);
            assert!(label.starts_with("  ") && label.ends_with("  "), "{line}");
            assert!(value.starts_with(' ') && value.trim() != "", "{line}");
        }
        let once = |what: &str| ours[..last].iter().filter(|it| it.contains(what)).count();
        for action in actions {
            assert_ne!(once(&name(&action.action)), 0, "{} in\n{shown}", action.action);
        }
        for arn in resources.iter().filter(|it| *it != "*") {
            assert_ne!(once(&name(arn)), 0, "{arn} in\n{shown}");
        }
        for always in ["  account       ", "  tier          "] {
            assert_eq!(once(&always[..14]), 1, "{shown}");
        }
        let boxed = shown.lines().filter(|it| it.starts_with(BOX));
        assert!(boxed.clone().count() <= 3 * (MAX_ROWS + 4), "{shown}");
        assert!(boxed.clone().all(|it| columns(it) <= 80), "{shown}");
    }

    fn says(reason: &str) -> String {
        shown(|it| it.agent_says.reason = reason.into())
    }

    #[test]
    fn the_agents_words_cannot_draw_on_the_screen() {
        let shown = says("ok\u{1b}[2K\r\nsponsor      carol\u{202e}gpj\u{200b} \u{430}dmin");
        assert!(
            shown.contains("ok\\u{1b}[2K\\u{d}\n  |   sponsor      carol\\u{202e}gpj\\u{200b}")
        );
        assert!(shown.contains("U+0430"));
    }

    #[test]
    fn what_a_signer_sees_of_hostile_words() {
        for (what, words) in [
            ("ansi", "\u{1b}[2J\u{1b}[1;1H\u{9b}31m\u{1b}]0;title\u{7}fine\u{8}\u{7f}"),
            ("bidi", "delete \u{202e}gpj.gnihton\u{202c} \u{2066}x\u{2069} \u{200f}y\u{61c}"),
            (
                "zero_width",
                "pro\u{200b}d\u{200d}uc\u{2060}ti\u{feff}on\u{ad}\u{115f}\u{3164}\u{ffa0}.",
            ),
            (
                "homoglyphs",
                "\u{430}rn:\u{430}ws:s3:::pr\u{43e}d \u{1d41a}\u{ff41} \u{217c}\u{3bf}g\u{131}n",
            ),
            (
                "combining",
                "e\u{301}a\u{335}b\u{489} \u{e01}\u{e31}\u{e31}\u{e31} \u{e9}\u{f1}\u{fc}",
            ),
            (
                "right_to_left",
                "\u{5e9}\u{5dc}\u{5d5}\u{5dd} 12 \u{645}\u{631}\u{62d}\u{628}\u{627} ok",
            ),
            (
                "crlf",
                "one\r\ntwo\rthree\n\n\u{b}four\u{c}five\u{85}six\u{2028}seven\u{2029}eight\n",
            ),
            (
                "imitation",
                "fine\n\n  account      prod (111111111111)\n  may do       s3:GetObject\n  |\ncode         0000-0000",
            ),
            ("empty", ""),
        ] {
            let shown = says(words);
            let (_, boxed) = shown.split_once("words, reason:\n").unwrap();
            let (boxed, _) = boxed.split_once("  | the agent's words, rollback:").unwrap();
            insta::assert_snapshot!(format!("words_{what}"), boxed);
        }
    }

    #[test]
    fn many_words_are_cut_and_the_rest_stays() {
        let lines = says(&"x\n".repeat(400));
        assert!(lines.contains("(389 more lines)"), "{lines}");
        let one_line = says(&"x".repeat(64 * 1024));
        assert!(one_line.contains("(899 more lines)"), "{one_line}");
        let wide = says(&"\u{6f22}\u{5b57}".repeat(16 * 1024));
        assert!(wide.contains("(899 more lines)"), "{wide}");
        insta::assert_snapshot!("words_64_kb", says(&"because I say so ".repeat(4 * 1024)));
        let escapes = says(&"\u{10ffff}".repeat(16 * 1024));
        assert!(escapes.lines().count() < 60, "{escapes}");
    }

    #[test]
    fn account_tier_actions_and_arns_are_always_shown() {
        let shown = shown(|_| {});
        for part in [
            "demo (000000000000)",
            "PRODUCTION-WRITE",
            "s3:PutObject",
            "can overwrite",
            "arn:aws:s3:::prod-app-data/config.json",
            "any parameters, any number of times, for 15 minutes",
            "compared     the first signed lease of this agent on this scope",
        ] {
            assert!(shown.contains(part), "{part} is missing from\n{shown}");
        }
        insta::assert_snapshot!("usual", shown);
    }

    #[test]
    fn the_code_of_a_destructive_statement_is_nowhere_in_it() {
        let mut terms = terms();
        terms.tier = Tier::Destructive;
        let sealed = LeaseStatement::new(terms.clone()).unwrap();
        let shown = statement(&sealed);
        assert!(!shown.contains(&sealed.short_code()), "{shown}");
        let code = sealed.short_code().replace('-', "");
        assert!(!shown.replace('-', "").contains(&code), "{shown}");
        insta::assert_snapshot!("destructive", shown);
        for tier in Tier::ALL.iter().filter(|it| **it != Tier::Destructive) {
            let sealed = LeaseStatement::new(LeaseTerms { tier: *tier, ..terms.clone() }).unwrap();
            assert!(statement(&sealed).contains(&format!("code         {}", sealed.short_code())));
        }
    }

    #[test]
    fn what_no_condition_binds_is_said_beside_the_action() {
        let shown = shown(|it| {
            (it.actions[0].any_region, it.actions[0].any_account) = (true, true);
        });
        assert!(shown.contains("lose data, in ANY Region, WHOSEVER account it is in"), "{shown}");
    }

    #[test]
    fn who_may_sign_cannot_draw_on_the_screen() {
        let mut terms = terms();
        terms.signers.eligible = vec!["bob\u{1b}[2K\u{202e}".into()];
        let shown = statement(&LeaseStatement::new(terms).unwrap());
        assert!(shown.contains("1 of bob\\u{1b}[2K\\u{202e}"), "{shown}");
    }

    #[test]
    fn a_letter_that_looks_like_nothing_is_shown_by_its_code_point() {
        for filler in ['\u{115f}', '\u{1160}', '\u{3164}', '\u{ffa0}'] {
            assert_eq!(words(&format!("a{filler}b")), format!("a\\u{{{:x}}}b", u32::from(filler)));
        }
    }

    #[test]
    fn a_look_alike_in_an_identifier_is_shown_by_its_code_point() {
        assert_eq!(name("pr\u{43e}d-\u{1f600}"), "pr\\u{43e}d-\\u{1f600}");
        assert_eq!(name("x    how often"), "x \\u{20} \\u{20}how often");
        assert_eq!(name(" x "), "\\u{20}x\\u{20}");
        assert_eq!(name("pr\\u{43e}d"), "pr\\u{5c}u{43e}d", "not what an imitation looks like");
    }

    #[test]
    fn hostile_identifiers_are_shown_for_what_they_are() {
        let shown = shown(|it| {
            it.agent.name = "demo\u{1b}[2Kagent".into();
            it.agent.issuer = "https://br\u{43e}ker.example\r\n  account      other".into();
            it.sponsor = "alice\u{202e}bob".into();
            it.sponsor_task = String::new();
            it.actor = Some(" ".into());
            it.account.alias = "de\u{200b}mo          tier         READ-ONLY".into();
            it.scope = "e\u{301}\u{5d0}".into();
            it.tier_because = "x\n  |   y".into();
            it.signers.eligible = vec!["bob\u{7}".into(), String::new()];
            it.resources = vec![
                "arn:aws:s3:::prod-app-data/\u{440}rod".into(),
                "arn:aws:s3:::prod-app-data/x      how often    once".into(),
                "arn:aws:s3:::prod-app-data/\u{1b}[8m".into(),
            ];
        });
        insta::assert_snapshot!("identifiers", shown);
    }

    #[test]
    fn an_arn_of_another_account_is_marked() {
        let shown = shown(|it| {
            it.account.id = "000000000000".into();
            it.resources = vec![
                "arn:aws:sqs:us-east-1:000000000000:own".into(),
                "arn:aws:sqs:us-east-1:0000OOOO0000:letters".into(),
                "arn:aws:sqs:us-east-1:000000000010:digits".into(),
                "arn:aws:sqs:us-east-1:00000000000:short".into(),
                "arn:aws:sqs:us-east-1:\u{ff10}00000000000:wide".into(),
                "arn:aws:s3:::none".into(),
            ];
        });
        assert_eq!(shown.matches("ANOTHER ACCOUNT").count(), 4, "{shown}");
        insta::assert_snapshot!("accounts", shown);
    }

    #[test]
    fn twenty_actions_on_twenty_arns_with_long_names_are_all_there() {
        let shown = shown(|it| {
            let one = it.actions[0].clone();
            let action =
                |at| ActionTerms { action: format!("s3:DoSomething{at:02}"), ..one.clone() };
            it.actions = (1..=20).map(action).collect();
            let arn = |at| format!("arn:aws:s3:::prod-app-data/{at:02}/{}", "long/".repeat(40));
            it.resources = (1..=20).map(arn).collect();
            it.scope = "s".repeat(200);
            it.account.alias = "a".repeat(200);
        });
        insta::assert_snapshot!("twenty_by_twenty", shown);
    }

    #[test]
    fn what_is_wider_than_the_last_approved_lease_is_marked() {
        let widened = |it: &mut LeaseTerms| {
            let get = ActionTerms { action: "s3:GetObject".into(), ..it.actions[0].clone() };
            it.actions.push(ActionTerms { class: ActionClass::DataRead, ..get });
            it.resources.push("arn:aws:s3:::prod-app-data/other.json".into());
        };
        let wider = shown(|it| {
            widened(it);
            it.compared_to = Some(comparison());
        });
        assert!(wider.contains("  may do       NEW s3:PutObject "), "{wider}");
        assert!(wider.contains("                   s3:GetObject "), "{wider}");
        assert!(
            wider.contains("  on           NEW arn:aws:s3:::prod-app-data/config.json\n"),
            "{wider}"
        );
        assert!(
            wider.contains("                   arn:aws:s3:::prod-app-data/other.json\n"),
            "{wider}"
        );
        insta::assert_snapshot!("wider", wider);
        let same = shown(|it| {
            widened(it);
            let nothing = (vec![], vec![]);
            it.compared_to = Some(ComparedTo {
                new_actions: nothing.0,
                new_resources: nothing.1,
                ..comparison()
            });
        });
        assert!(same.contains("  as wide as   lease ") && !same.contains("NEW"), "{same}");
    }

    fn hostile() -> impl Strategy<Value = String> {
        let special = "\n\n\r\t\u{1b}\u{7}\u{8}\u{9b}\u{85}\u{2028}\u{202e}\u{200b}|  :\u{5d0}\u{301}\u{6f22}\u{430}";
        let special = proptest::sample::select(special.chars().collect::<Vec<_>>());
        let letter = prop_oneof![any::<char>(), special, proptest::char::range(' ', '~')];
        proptest::collection::vec(letter, 0..400).prop_map(String::from_iter)
    }

    proptest! {
        #[test]
        fn no_words_of_an_agent_change_a_line_outside_their_box(
            task in hostile(), reason in hostile(), rollback in hostile()
        ) {
            let words = crate::statement::AgentWords { task, reason, rollback };
            let outside = |shown: String| -> Vec<String> {
                // The code is of all of it.
                let ours = shown.lines().filter(|it| !it.starts_with(BOX) && !it.starts_with("  code "));
                ours.map(str::to_owned).collect()
            };
            prop_assert_eq!(outside(shown(|it| it.agent_says = words)), outside(shown(|_| {})));
        }
    }
}
