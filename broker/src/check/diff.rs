//! What a change of the configuration loosens. Pure.

use std::collections::BTreeMap;

use crate::catalogue::{Catalogue, Scope};
use crate::config::{Config, Settings, Span};
use crate::statement::Conditions;
use crate::workload::issuer::Issuer;

/// Everything that `new` allows and `old` did not, or demands less for; a line each. What cannot be compared counts.
pub fn loosened(old: &Config, new: &Config) -> Vec<String> {
    let mut lines = Vec::new();
    for scope in new.catalogue.scopes() {
        let mut say = |what: String| lines.push(format!("{}: {what}", scope.name));
        match old.catalogue.scope(&scope.name) {
            None => say(format!("is new, {}: {}", scope.tier, scope.tier_because)),
            Some(before) => compare_scopes(before, scope, &mut say),
        }
    }
    compare_home(&old.catalogue, &new.catalogue, &mut lines);
    compare_rules(&old.rules, &new.rules, &mut lines);
    compare_settings(old, new, &mut lines);
    lines
}

fn compare_scopes(old: &Scope, new: &Scope, say: &mut impl FnMut(String)) {
    for (what, before, after) in
        [("account", &old.account, &new.account), ("role", &old.role_arn, &new.role_arn)]
    {
        if before != after {
            say(format!("{what} is {after}, was {before}"));
        }
    }
    if old.external_id != new.external_id {
        say("the external id is another".to_owned());
    }
    // Rules and freezes name environments: another one may be out of their reach, and so may another tier.
    if new.environment != old.environment {
        say(format!("environment is {}, was {}", new.environment, old.environment));
    }
    if old.account_alias != new.account_alias {
        let (before, after) = (&old.account_alias, &new.account_alias);
        say(format!("signers are shown account {after}, was {before}"));
    }
    if new.tier < old.tier {
        say(format!("tier is {}, was {} ({})", new.tier, old.tier, new.tier_because));
    }
    let known: BTreeMap<_, _> = old.actions.iter().map(|it| (it.name(), it.class)).collect();
    for action in &new.actions {
        match known.get(action.name()) {
            None => say(format!("may {} ({})", action.name(), action.class)),
            // Rules name classes.
            Some(class) if *class != action.class => {
                say(format!("{} is {}, was {class}", action.name(), action.class));
            }
            Some(_) => {}
        }
    }
    for arn in new.resources.iter().filter(|it| !old.resources.iter().any(|was| was.contains(it))) {
        say(format!("reaches {arn}"));
    }
    if old.max_ttl < new.max_ttl {
        say(format!("max_ttl is {}, was {}", Span(new.max_ttl), Span(old.max_ttl)));
    }
    for (what, before, after) in [
        ("max_actions", old.max_actions, new.max_actions),
        ("max_resources", old.max_resources, new.max_resources),
    ] {
        if before < after {
            say(format!("{what} is {after}, was {before}"));
        }
    }
    for field in old.require.iter().filter(|it| !new.require.contains(it)) {
        say(format!("no longer requires {field}"));
    }
    compare_conditions(&old.conditions, &new.conditions, say);
    compare_signers(old, new, say);
}

fn compare_conditions(old: &Conditions, new: &Conditions, say: &mut impl FnMut(String)) {
    for (what, before, after) in [
        ("region", &old.regions, &new.regions),
        ("iam:PassRole to", &old.pass_role_to, &new.pass_role_to),
    ] {
        for it in after.iter().filter(|it| !before.contains(it)) {
            say(format!("{what} {it}"));
        }
    }
    if old.secure_transport && !new.secure_transport {
        say("no longer requires TLS".to_owned());
    }
    if !old.source_networks.is_empty() && new.source_networks.is_empty() {
        say("may be used from any network".to_owned());
    }
    if !old.source_networks.is_empty() {
        for it in new.source_networks.iter().filter(|it| !old.source_networks.contains(it)) {
            say(format!("may be used from {it}"));
        }
    }
    for it in old.more.iter().filter(|it| !new.more.contains(it)) {
        say(format!(
            "no longer has the condition {} {} {}",
            it.operator,
            it.key,
            it.values.join(", ")
        ));
    }
}

fn compare_signers(old: &Scope, new: &Scope, say: &mut impl FnMut(String)) {
    match (&old.signers, &new.signers) {
        (Some(before), Some(after)) => {
            if after.count < before.count {
                say(format!("needs {} signatures, was {}", after.count, before.count));
            }
            if after.assurance < before.assurance {
                say(format!("takes {} keys, was {}", after.assurance, before.assurance));
            }
            for group in after.groups.iter().filter(|it| !before.groups.contains(it)) {
                say(format!("{group} may sign"));
            }
        }
        (Some(_), None) => say("needs no signature any more".to_owned()),
        (None, _) => {}
    }
}

fn compare_home(old: &Catalogue, new: &Catalogue, lines: &mut Vec<String>) {
    let (old, new) = (old.home(), new.home());
    for account in old.accounts().iter().filter(|it| !new.owns_account(it)) {
        lines.push(format!("[home]: account {account} is no longer the broker's own"));
    }
    let kept = |arn| new.resources().iter().any(|it| it.contains(arn));
    for arn in old.resources().iter().filter(|it| !kept(it)) {
        lines.push(format!("[home]: {arn} is no longer the broker's own"));
    }
}

/// Whether another text allows more is for `--cases` to show.
fn compare_rules(
    old: &BTreeMap<String, String>,
    new: &BTreeMap<String, String>,
    lines: &mut Vec<String>,
) {
    for (name, text) in new {
        match old.get(name) {
            None => lines.push(format!("policies/{name} is new; see with --cases what it decides")),
            Some(before) if before != text => {
                lines
                    .push(format!("policies/{name} has changed; see with --cases what it decides"));
            }
            Some(_) => {}
        }
    }
    for name in old.keys().filter(|it| !new.contains_key(*it)) {
        lines.push(format!("policies/{name} is gone; it may have forbidden something"));
    }
}

fn compare_settings(old: &Config, new: &Config, lines: &mut Vec<String>) {
    let (before, after) = (&old.settings, &new.settings);
    let software = |it: &Settings| it.dev.is_some_and(|it| it.software_keys);
    if software(after) && !software(before) {
        lines.push("[dev]: keys that a program can use by itself count".to_owned());
    }
    if !after.listen.ip().is_loopback() && before.listen != after.listen {
        lines.push(format!("listens on {}, was {}: plain HTTP", after.listen, before.listen));
    }
    if after.behind_tls_proxy && !before.behind_tls_proxy {
        lines.push("behind_tls_proxy: plain HTTP beyond loopback is allowed".to_owned());
    }
    // Whoever has that key, or answers at that origin, makes tokens.
    let key = |it: &Settings| it.instance_key.file_name().unwrap_or_default().to_owned();
    for (what, before, after) in [
        ("origin", before.origin.clone(), after.origin.clone()),
        ("instance_key", key(before).display().to_string(), key(after).display().to_string()),
    ] {
        if before != after {
            lines.push(format!("{what} is {after}, was {before}"));
        }
    }
    let workloads = |it: &Settings| -> Vec<(String, String)> {
        let of = |issuer: &Issuer| {
            let all = issuer.workloads.iter().map(|it| {
                let who = format!("{} is agent {} of {}", it.subject, it.agent, it.sponsor);
                // All that decides about it: its issuer's keys and algorithms, its own claims, who sets it off.
                let alone = Issuer { workloads: vec![it.clone()], ..issuer.clone() };
                (format!("issuers: {}: {who}", issuer.issuer), format!("{alone:?}"))
            });
            all.collect::<Vec<_>>()
        };
        it.issuers.iter().flat_map(of).collect()
    };
    let former = |it: &Settings| {
        let names = it.former_instance_keys.iter().filter_map(|it| it.file_name());
        names.map(|it| it.display().to_string()).collect::<Vec<_>>()
    };
    let (was, is) = (former(before), former(after));
    for name in is.iter().filter(|it| !was.contains(it)) {
        lines.push(format!("former_instance_keys: whoever has {name} makes tokens"));
    }
    let was = workloads(before);
    for (line, whole) in workloads(after) {
        match was.iter().find(|it| it.0 == line) {
            Some(it) if it.1 == whole => {}
            Some(_) => lines.push(format!("{line}, under other conditions")),
            None => lines.push(line),
        }
    }
    let authority = |it: &Settings| {
        let it = &it.authority;
        [("start_task", it.start_task), ("thaw", it.thaw), ("change_people", it.change_people)]
    };
    for ((what, was), (_, is)) in authority(before).into_iter().zip(authority(after)) {
        if is < was {
            lines.push(format!("[authority]: {what} is {is}, was {was}"));
        }
    }
    let (was, is) = (&before.authority, &after.authority);
    if is.cool_down < was.cool_down {
        lines.push(format!("[authority]: cool_down is {}, was {}", is.cool_down, was.cool_down));
    }
    if was.longest_task < is.longest_task {
        let (was, is) = (was.longest_task, is.longest_task);
        lines.push(format!("[authority]: longest_task is {is}, was {was}"));
    }
    let was: BTreeMap<_, _> = before.limits.numbers().into_iter().collect();
    for (what, limit) in after.limits.numbers() {
        if let Some(was) = was.get(&what).filter(|it| **it < limit) {
            lines.push(format!("[limits]: {what} is {limit}, was {was}"));
        }
    }
}
