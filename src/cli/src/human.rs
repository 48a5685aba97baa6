//! Formats numbers, times and sizes for people, and finds the name that a mistyped one most likely means. Pure: the current time
//! is an argument.

use jiff::{Timestamp as Moment, tz::TimeZone};

use swell_model::units::{ByteSize, Millis};

/// The similarity from which a name is suggested for another (Jaro-Winkler, 0 to 1).
const SIMILARITY_MIN: f64 = 0.8;

/// The name most similar to `unknown`, if any is similar enough to be suggested.
pub fn closest(unknown: &str, names: impl IntoIterator<Item = String>) -> Option<String> {
    let scored = names.into_iter().map(|name| (strsim::jaro_winkler(unknown, &name), name));
    scored.filter(|(score, _)| *score >= SIMILARITY_MIN).max_by(|a, b| a.0.total_cmp(&b.0)).map(|(_, name)| name)
}

/// A duration with at most two units: `850ms`, `12s`, `3m20s`, `2h05m`, `4d3h`.
pub fn duration(ms: u64) -> String {
    let secs = ms / 1000;
    match secs {
        0 => format!("{ms}ms"),
        1..60 => format!("{secs}s"),
        60..3600 => two(secs / 60, 'm', secs % 60, 's'),
        3600..86_400 => two(secs / 3600, 'h', secs % 3600 / 60, 'm'),
        _ => two(secs / 86_400, 'd', secs % 86_400 / 3600, 'h'),
    }
}

fn two(large: u64, large_unit: char, small: u64, small_unit: char) -> String {
    if small == 0 { format!("{large}{large_unit}") } else { format!("{large}{large_unit}{small:02}{small_unit}") }
}

/// The time from `at_ms` to `now_ms`: `3m20s ago`, `now`. A time in the future, by another machine's clock, counts as now.
pub fn ago(at_ms: u64, now_ms: u64) -> String {
    let passed = now_ms.saturating_sub(at_ms);
    if passed < 1000 { "now".to_owned() } else { format!("{} ago", duration(passed)) }
}

/// The time of day in `zone`: `14:03:59`.
pub fn clock(at_ms: u64, zone: &TimeZone) -> String {
    let moment = Moment::from_millisecond(at_ms as i64).unwrap_or_default();
    moment.to_zoned(zone.clone()).strftime("%H:%M:%S").to_string()
}

/// The day and time in `zone`: `2026-05-01 14:03:59`.
pub fn date_time(at_ms: u64, zone: &TimeZone) -> String {
    let moment = Moment::from_millisecond(at_ms as i64).unwrap_or_default();
    moment.to_zoned(zone.clone()).strftime("%Y-%m-%d %H:%M:%S").to_string()
}

/// A size: `1.2MiB`.
pub fn bytes(count: u64) -> String {
    ByteSize(count).to_string()
}

/// A duration as configuration files write it: `5m`.
pub fn setting(ms: u64) -> String {
    Millis(ms).to_string()
}

/// A count with its noun: `1 target`, `3 targets`.
pub fn count(number: u64, one: &str) -> String {
    if number == 1 { format!("1 {one}") } else { format!("{number} {one}s") }
}

/// The first 12 digits of a commit or digest, without `sha256:`.
pub fn short(id: &str) -> &str {
    let bare = id.strip_prefix("sha256:").unwrap_or(id);
    bare.get(..12).unwrap_or(bare)
}

/// A text on one line of at most `chars_max` characters, without control characters.
pub fn one_line(text: &str, chars_max: usize) -> String {
    let line: String = text.split_whitespace().collect::<Vec<_>>().join(" ").chars().filter(|c| !c.is_control()).collect();
    if line.chars().count() <= chars_max { line } else { line.chars().take(chars_max.saturating_sub(1)).chain(['…']).collect() }
}

/// A program's output, made safe to print on a terminal: escape sequences, colors among them, are removed.
pub fn printable(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let mut chars = text.chars().peekable();
    while let Some(c) = chars.next() {
        match c {
            '\u{1b}' => skip_escape(&mut chars),
            '\n' | '\t' => out.push(c),
            '\r' if chars.peek() == Some(&'\n') => {}
            '\r' => out.push('\n'),
            c if c.is_control() => out.push('\u{fffd}'),
            c => out.push(c),
        }
    }
    out
}

/// Skips a control sequence (`ESC [ … letter`) or an operating system command (`ESC ] … BEL`).
fn skip_escape(chars: &mut std::iter::Peekable<std::str::Chars<'_>>) {
    match chars.next() {
        Some('[') => while chars.next().is_some_and(|c| !('\u{40}'..='\u{7e}').contains(&c)) {},
        Some(']') => while chars.next().is_some_and(|c| c != '\u{7}' && c != '\u{9c}') {},
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn duration_is_shown_with_at_most_two_units() {
        let shown: Vec<_> = [850, 12_000, 200_000, 180_000, 7_500_000, 97_200_000].into_iter().map(duration).collect();
        assert_eq!(shown, ["850ms", "12s", "3m20s", "3m", "2h05m", "1d03h"]);
        assert_eq!((ago(1_000, 61_000).as_str(), ago(5, 6).as_str(), ago(9, 5).as_str()), ("1m ago", "now", "now"));
        assert_eq!(date_time(0, &TimeZone::UTC), "1970-01-01 00:00:00");
    }

    #[test]
    fn escape_sequences_in_output_are_removed() {
        assert_eq!(printable("\u{1b}[31mred\u{1b}[0m\r\nx\u{7}\u{1b}]0;title\u{7}y\rz"), "red\nx\u{fffd}y\nz");
        assert_eq!(one_line("a\n  b\u{1b}[2J c", 6), "a b[2…");
    }

    #[test]
    fn closest_name_is_suggested_only_when_similar() {
        let names = || ["production", "staging"].map(str::to_owned);
        assert_eq!(closest("prodution", names()).as_deref(), Some("production"));
        assert_eq!(closest("zzz", names()), None);
    }
}
