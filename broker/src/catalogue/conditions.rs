//! What a scope holds calls to, besides actions and resources. Pure.

use super::ScopeFile;
use crate::statement::{Condition, Conditions, OWN_KEYS};

/// IAM user guide, "IAM JSON policy elements: Condition operators".
const OPERATORS: [&str; 27] = [
    "StringEquals",
    "StringNotEquals",
    "StringEqualsIgnoreCase",
    "StringNotEqualsIgnoreCase",
    "StringLike",
    "StringNotLike",
    "NumericEquals",
    "NumericNotEquals",
    "NumericLessThan",
    "NumericLessThanEquals",
    "NumericGreaterThan",
    "NumericGreaterThanEquals",
    "DateEquals",
    "DateNotEquals",
    "DateLessThan",
    "DateLessThanEquals",
    "DateGreaterThan",
    "DateGreaterThanEquals",
    "Bool",
    "BinaryEquals",
    "IpAddress",
    "NotIpAddress",
    "ArnEquals",
    "ArnLike",
    "ArnNotEquals",
    "ArnNotLike",
    "Null",
];

/// What the scope's conditions come to; refuses those that would not do what they seem to.
pub(super) fn build(file: &ScopeFile) -> Result<Conditions, String> {
    if file.regions.is_empty() {
        return Err("regions is empty; name at least one, like \"eu-central-1\"".into());
    }
    if let Some(wrong) = file.regions.iter().find(|it| !is_name(it)) {
        return Err(format!("region {wrong:?} is not the name of one Region"));
    }
    for network in &file.source_networks {
        check_network(network)?;
    }
    for service in &file.pass_role_to {
        if !service.split('.').all(is_name) || !service.ends_with(".amazonaws.com") {
            return Err(format!(
                "pass_role_to {service:?}: write a service's principal, like \"lambda.amazonaws.com\""
            ));
        }
    }
    let mut more = file.conditions.clone();
    more.sort();
    for condition in &more {
        check(condition)?;
    }
    // AWS takes keys in any case.
    let mut keys: Vec<_> =
        more.iter().map(|it| (it.operator.as_str(), it.key.to_ascii_lowercase())).collect();
    keys.sort_unstable();
    if keys.windows(2).any(|it| it[0] == it[1]) {
        return Err(
            "two conditions have the same operator and key; put their values together".into()
        );
    }
    Ok(Conditions {
        regions: file.regions.clone(),
        secure_transport: file.secure_transport,
        source_networks: file.source_networks.clone(),
        pass_role_to: file.pass_role_to.clone(),
        more,
    })
}

fn check(condition: &Condition) -> Result<(), String> {
    let Condition { operator, key, values } = condition;
    let plain = operator.strip_suffix("IfExists").unwrap_or(operator);
    let plain = plain.strip_prefix("ForAnyValue:").unwrap_or(plain);
    if !OPERATORS.contains(&plain) {
        return Err(format!(
            "{operator:?} is not a condition operator that we take; `ForAllValues:` is true of nothing at all, so it is not one"
        ));
    }
    let lower = key.to_ascii_lowercase();
    if let Some((_, field)) = OWN_KEYS.iter().find(|(own, _)| *own == lower) {
        return Err(format!("condition on {key}: write it as `{field}`"));
    }
    let service = key.split_once(':').filter(|(_, rest)| !rest.is_empty());
    if !service.is_some_and(|(service, _)| is_name(service)) {
        return Err(format!("{key:?} is not a condition key: write `aws:NAME` or `SERVICE:NAME`"));
    }
    let sent = |it: &String| {
        it.chars().all(|it| !it.is_control() && u32::from(it) <= 0xff) && !it.contains("${")
    };
    if values.is_empty() || !values.iter().all(sent) || !key.is_ascii() {
        return Err(format!(
            "condition on {key}: at least one value, without control characters or policy variables"
        ));
    }
    Ok(())
}

fn is_name(text: &str) -> bool {
    !text.is_empty()
        && text.bytes().all(|it| it.is_ascii_lowercase() || it.is_ascii_digit() || it == b'-')
}

fn check_network(text: &str) -> Result<(), String> {
    let bad = || format!("source network {text:?}: write a CIDR block, like \"203.0.113.0/24\"");
    let (address, prefix) = text.split_once('/').ok_or_else(bad)?;
    let address: std::net::IpAddr = address.parse().map_err(|_| bad())?;
    let prefix: u8 = prefix.parse().map_err(|_| bad())?;
    let longest = if address.is_ipv4() { 32 } else { 128 };
    if prefix == 0 || longest < prefix {
        return Err(bad());
    }
    Ok(())
}
