//! Lists a page at a time: the cursor is the key of the last item, so that what is added or removed meanwhile shifts nothing.
//! Knows nothing of what is listed.

use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};

use super::problem::Problem;
use swell_model::tables::{Key, ReadTables, Record, Scan};

/// How many items a page has unless asked otherwise.
pub const LIMIT_DEFAULT: usize = 50;
/// How many items a page has at the most.
pub const LIMIT_MAX: usize = 500;
/// How many records one request looks at, for a filter that few of them pass. The page then has fewer items, and a cursor.
const LOOKED_AT_MAX: usize = 10_000;
/// How many records are read at once.
const CHUNK: usize = 500;

/// One page of a list.
#[derive(Debug, Clone, Serialize, ToSchema)]
pub struct Page<T> {
    /// The items, in the list's order.
    pub items: Vec<T>,
    /// Where the next page begins (`?cursor=`); none: this is the last.
    pub next: Option<String>,
    /// The log index of the state that was read.
    pub as_of: u64,
}

/// The query of a list without filters.
#[derive(Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub struct Listing {
    /// Where the page begins: `next` of the one before.
    pub cursor: Option<String>,
    /// How many items, 1 to 500; 50 unless given.
    pub limit: Option<usize>,
}

/// The number of items of a page.
pub fn limit(asked: Option<usize>) -> Result<usize, Problem> {
    let limit = asked.unwrap_or(LIMIT_DEFAULT);
    if (1..=LIMIT_MAX).contains(&limit) {
        return Ok(limit);
    }
    Err(Problem::invalid(format!("`limit` is {limit}"), format!("ask for 1 to {LIMIT_MAX} and follow `next`")))
}

/// The states that a filter of `things` names: one of `all`, or `open` or `ended`.
pub fn states<S: Copy>(
    wanted: &str,
    things: &str,
    all: &[S],
    name: fn(S) -> &'static str,
    is_end: fn(S) -> bool,
) -> Result<Vec<S>, Problem> {
    let is_wanted = |state: &S| match wanted {
        "open" => !is_end(*state),
        "ended" => is_end(*state),
        wanted => name(*state) == wanted,
    };
    let states: Vec<S> = all.iter().copied().filter(is_wanted).collect();
    if states.is_empty() {
        let names: Vec<&str> = all.iter().map(|state| name(*state)).collect();
        let hint = format!("write open, ended, {}", names.join(", "));
        return Err(Problem::invalid(format!("`{wanted}` is not a state of {things}"), hint));
    }
    Ok(states)
}

/// A cursor of this list, or the problem that it is none.
pub fn cursor<T: std::str::FromStr>(text: &Option<String>) -> Result<Option<T>, Problem> {
    let parsed = text.as_deref().map(str::parse).transpose();
    parsed.map_err(|_| Problem::invalid("`cursor` is not one of this list", "send `next` of the page before, unchanged"))
}

/// At most `limit` records of `scan` that `keep` wants, and whether more may follow (then, the last that was looked at).
pub fn collect<T: ReadTables, R: Record>(
    tables: &T,
    mut scan: Scan,
    limit: usize,
    mut keep: impl FnMut(&R) -> bool,
) -> Result<(Vec<R>, Option<R>), Problem> {
    let mut kept = Vec::new();
    let mut looked_at = 0;
    loop {
        let records: Vec<R> = tables.scan(&scan, CHUNK)?;
        let is_last_chunk = records.len() < CHUNK;
        let count = records.len();
        for (place, record) in records.into_iter().enumerate() {
            looked_at += 1;
            let more_follow = !is_last_chunk || place + 1 < count;
            scan.after = Some(record.key());
            let wanted = keep(&record);
            let full = kept.len() + usize::from(wanted) >= limit || looked_at >= LOOKED_AT_MAX;
            let last = (full && more_follow).then(|| record.clone());
            if wanted {
                kept.push(record);
            }
            if full {
                return Ok((kept, last));
            }
        }
        if is_last_chunk {
            return Ok((kept, None));
        }
    }
}

/// The scan of a list: what begins with `prefix`, after `after`.
pub fn scan(prefix: Key, after: Option<Key>) -> Scan {
    Scan { prefix, after, backwards: false }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use swell_model::{
        build::OpenBuild,
        ids::BuildId,
        tables::{MemoryTables, Tables},
    };

    fn tables(count: u64) -> MemoryTables {
        let mut tables = MemoryTables::new();
        for number in 0..count {
            tables.put(&OpenBuild { build: BuildId(number), pipeline: "shop".parse().unwrap() }).unwrap();
        }
        tables
    }

    #[test]
    fn pages_meet_without_gap_or_repeat_and_the_last_says_so() {
        for count in [0, 1, 7, 8, 1201] {
            let tables = tables(count);
            let (mut seen, mut after) = (Vec::new(), None);
            loop {
                let (page, last) = collect::<_, OpenBuild>(&tables, scan(Key::all(), after), 8, |b| b.build.0 % 2 == 1).unwrap();
                assert!(page.len() <= 8);
                seen.extend(page.into_iter().map(|open| open.build.0));
                match last {
                    Some(last) => after = Some(last.key()),
                    None => break,
                }
            }
            assert_eq!(seen, (0..count).filter(|n| n % 2 == 1).collect::<Vec<_>>());
        }
    }

    #[test]
    fn limits_are_bounded() {
        assert_eq!(limit(None).unwrap(), LIMIT_DEFAULT);
        assert!(limit(Some(0)).is_err() && limit(Some(501)).is_err() && limit(Some(500)).is_ok());
    }
}
