//! The configuration file of AWS tools, of which one section is changed and the rest stays byte for byte.
//! <https://docs.aws.amazon.com/sdkref/latest/guide/file-format.html>

use std::ops::Range;

/// Lines with their line ends, and where each begins.
fn lines(text: &[u8], within: Range<usize>) -> impl Iterator<Item = (usize, &[u8])> {
    let mut at = within.start;
    text[within].split_inclusive(|it| *it == b'\n').map(move |line| {
        at += line.len();
        (at - line.len(), line)
    })
}

fn is_heading(line: &[u8]) -> bool {
    line.trim_ascii_start().starts_with(b"[")
}

fn is_blank(line: &[u8]) -> bool {
    line.trim_ascii().is_empty()
}

fn is_comment(line: &[u8]) -> bool {
    matches!(line.trim_ascii_start().first(), Some(b'#' | b';'))
}

/// `[default]`, `[profile NAME]`, `[profile "NAME"]`; nothing of other headings.
fn profile_of(line: &[u8]) -> Option<String> {
    let heading = String::from_utf8_lossy(line.trim_ascii_start().strip_prefix(b"[")?);
    let heading = heading.split(']').next().unwrap_or_default().trim();
    if heading == "default" {
        return Some(heading.to_owned());
    }
    let name = heading.strip_prefix("profile")?;
    if !name.starts_with([' ', '\t']) {
        return None;
    }
    Some(name.trim().trim_matches(['"', '\'']).to_owned())
}

/// The name of an option, if the line is one.
fn key_of(line: &[u8]) -> Option<String> {
    let indented = line.first().is_some_and(u8::is_ascii_whitespace);
    if indented || is_comment(line) || is_heading(line) {
        return None;
    }
    let end = line.iter().position(|it| matches!(it, b'=' | b':'))?;
    Some(String::from_utf8_lossy(&line[..end]).trim().to_ascii_lowercase())
}

/// All profiles, each from its heading to the next.
pub(super) fn profiles(text: &[u8]) -> Vec<(String, Range<usize>)> {
    let headings: Vec<_> = lines(text, 0..text.len()).filter(|(_, it)| is_heading(it)).collect();
    let ends = headings.iter().skip(1).map(|(at, _)| *at).chain([text.len()]);
    let sections = headings.iter().zip(ends);
    sections.filter_map(|((at, line), end)| Some((profile_of(line)?, *at..end))).collect()
}

pub(super) fn find(text: &[u8], name: &str) -> Vec<Range<usize>> {
    profiles(text).into_iter().filter(|(it, _)| it == name).map(|(_, at)| at).collect()
}

/// The value of an option of the profile at `at`.
pub(super) fn option(text: &[u8], at: &Range<usize>, key: &str) -> Option<String> {
    let (_, line) = lines(text, at.clone()).find(|(_, it)| key_of(it).as_deref() == Some(key))?;
    let value = line.iter().position(|it| matches!(it, b'=' | b':'))?;
    Some(String::from_utf8_lossy(&line[value + 1..]).trim().to_owned())
}

/// As the file has it.
fn line_end(text: &[u8]) -> &'static str {
    let first = text.split_inclusive(|it| *it == b'\n').next().unwrap_or_default();
    if first.ends_with(b"\r\n") { "\r\n" } else { "\n" }
}

fn options(values: &[(&str, &str)], end: &str) -> Vec<u8> {
    values.iter().flat_map(|(key, value)| format!("{key} = {value}{end}").into_bytes()).collect()
}

/// With a new profile at the end.
pub(super) fn append(text: &[u8], name: &str, values: &[(&str, &str)]) -> Vec<u8> {
    let end = line_end(text);
    let mut text = text.to_vec();
    if !text.is_empty() && !text.ends_with(b"\n") {
        text.extend_from_slice(end.as_bytes());
    }
    if lines(&text, 0..text.len()).last().is_some_and(|(_, it)| !is_blank(it)) {
        text.extend_from_slice(end.as_bytes());
    }
    let heading = if name == "default" { name.to_owned() } else { format!("profile {name}") };
    text.extend_from_slice(format!("[{heading}]{end}").as_bytes());
    text.extend_from_slice(&options(values, end));
    text
}

/// With these options of the profile at `at`; its others stay.
pub(super) fn set(text: &[u8], at: &Range<usize>, values: &[(&str, &str)]) -> Vec<u8> {
    let end = line_end(text);
    let mut changed = text[..at.start].to_vec();
    let mut replaced = false;
    for (line_at, line) in lines(text, at.clone()) {
        if line_at == at.start {
            changed.extend_from_slice(line);
            if !line.ends_with(b"\n") {
                changed.extend_from_slice(end.as_bytes());
            }
            changed.extend_from_slice(&options(values, end));
            continue;
        }
        // What is indented goes on from the option before.
        let goes_on = line.first().is_some_and(u8::is_ascii_whitespace) && !is_blank(line);
        replaced = match key_of(line) {
            Some(key) => values.iter().any(|(it, _)| *it == key),
            None => replaced && goes_on,
        };
        if !replaced {
            changed.extend_from_slice(line);
        }
    }
    changed.extend_from_slice(&text[at.end..]);
    changed
}

/// Without the profile at `at`. Comments behind it are the next one's, and stay.
pub(super) fn cut(text: &[u8], at: &Range<usize>) -> Vec<u8> {
    let mine = lines(text, at.clone()).filter(|(_, it)| !is_blank(it) && !is_comment(it));
    let end = mine.last().map_or(at.end, |(start, line)| start + line.len());
    let (mut before, after) = (&text[..at.start], &text[end..]);
    // The blank line that parted it from what is above.
    let after_is_apart = lines(after, 0..after.len()).next().is_none_or(|(_, it)| is_blank(it));
    if let Some((start, line)) = lines(before, 0..before.len()).last()
        && is_blank(line)
        && after_is_apart
    {
        before = &before[..start];
    }
    [before, after].concat()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const MINE: [(&str, &str); 2] = [("credential_process", "/b credentials"), ("region", "x")];
    const FILE: &str = "# kept\r\n[default]\r\nregion=us-east-1\r\n\r\n[ profile  \"mine\" ] ; who\r\ncredential_process : old\r\n  goes on\r\ns3 =\r\n  max = 1\r\n# of the next\r\n[sso-session x]\r\nkey=1";

    fn text(bytes: &[u8]) -> &str {
        std::str::from_utf8(bytes).unwrap()
    }

    #[test]
    fn profiles_are_found_as_tools_find_them() {
        let file = FILE.as_bytes();
        let names: Vec<_> = profiles(file).into_iter().map(|(it, _)| it).collect();
        assert_eq!(names, ["default", "mine"]);
        let at = &find(file, "mine")[0];
        assert_eq!(option(file, at, "credential_process").as_deref(), Some("old"));
        assert_eq!(option(file, at, "max"), None, "it is a part of s3");
        assert_eq!(option(file, at, "key"), None, "it is the next section's");
        assert!(find(file, "x").is_empty() && find(b"[profilemine]", "mine").is_empty());
    }

    #[test]
    fn a_profile_is_changed_and_removed_and_the_rest_stays() {
        let file = FILE.as_bytes();
        let changed = set(file, &find(file, "mine")[0], &MINE);
        let expected = FILE.replace(
            "credential_process : old\r\n  goes on\r\n",
            "credential_process = /b credentials\r\nregion = x\r\n",
        );
        assert_eq!(text(&changed), expected);
        let removed = cut(file, &find(file, "mine")[0]);
        assert_eq!(
            text(&removed),
            "# kept\r\n[default]\r\nregion=us-east-1\r\n\r\n# of the next\r\n[sso-session x]\r\nkey=1"
        );
        assert_eq!(text(&append(b"", "default", &MINE[1..])), "[default]\nregion = x\n");
        assert_eq!(text(&append(b"[a]", "m", &MINE[1..])), "[a]\n\n[profile m]\nregion = x\n");
    }

    /// Files that people and programs may have left behind.
    fn file() -> impl Strategy<Value = String> {
        let line = prop_oneof![
            Just("[default]"),
            Just("[profile other]"),
            Just("[sso-session s]"),
            Just(" [profile indented]"),
            Just("region = eu-west-1"),
            Just("credential_process=/x y # z"),
            Just("s3 ="),
            Just("  nested = 1"),
            Just("# comment"),
            Just("; [profile mine]"),
            Just(""),
            Just("\t"),
            Just("no option"),
            Just("key: \u{fc}\u{1b}"),
        ];
        let end = prop_oneof![Just("\n"), Just("\r\n")];
        let lines = proptest::collection::vec((line, end), 0..12);
        (lines, any::<bool>()).prop_map(|(lines, whole)| {
            let text: String = lines.into_iter().map(|(line, end)| line.to_owned() + end).collect();
            if whole { text } else { text.trim_end_matches('\n').to_owned() }
        })
    }

    proptest! {
        #[test]
        fn whatever_is_in_the_file_stays_as_it_is(file in file(), behind in file()) {
            let added = append(file.as_bytes(), "mine", &MINE);
            prop_assert!(added.starts_with(file.as_bytes()));
            prop_assert_eq!(find(&added, "mine").len(), 1);
            let at = &find(&added, "mine")[0];
            let process = option(&added, at, "credential_process");
            prop_assert_eq!(process.as_deref(), Some(MINE[0].1));

            // Somebody adds more; then ours is changed, and taken out.
            let more = [added.as_slice(), b"[profile last]\n", behind.as_bytes()].concat();
            let at = &find(&more, "mine")[0];
            let other = [("credential_process", "/b other")];
            let changed = set(&more, at, &other);
            prop_assert_eq!(&changed[..at.start], &more[..at.start]);
            prop_assert!(changed.ends_with(&more[at.end..]));
            let now = option(&changed, &find(&changed, "mine")[0], "credential_process");
            prop_assert_eq!(now.as_deref(), Some("/b other"));
            prop_assert_eq!(set(&changed, &find(&changed, "mine")[0], &other), &changed[..]);

            let removed = cut(&added, &find(&added, "mine")[0]);
            prop_assert_eq!(text(&removed).trim_end(), file.trim_end());
            prop_assert!(find(&removed, "mine").is_empty());
        }
    }
}
