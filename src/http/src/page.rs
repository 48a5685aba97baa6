//! Pagination: the cursor is the key of the last item, so that items added or removed meanwhile shift nothing.
//! Knows nothing of what is listed.

use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};

use super::problem::Problem;
use swell_model::tables::{Key, ReadTables, Record, Scan, TablesError};

/// The default page size.
pub const LIMIT_DEFAULT: usize = 50;
/// The largest page size.
pub const LIMIT_MAX: usize = 500;
/// How many records one request decodes for a filter that few of them match. The page may then be short, with a cursor.
const DECODED_MAX: usize = 2000;
/// How many records are read at once.
const CHUNK: usize = 500;

/// One page of a list.
#[derive(Debug, Clone, Serialize, ToSchema)]
pub struct Page<T> {
    pub items: Vec<T>,
    /// The `cursor` of the next page; null on the last page.
    pub next: Option<String>,
    /// Log index of the state that the page was read from.
    pub as_of: u64,
}

/// Pagination of a list.
#[derive(Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub struct Listing {
    /// `next` of the previous page.
    pub cursor: Option<String>,
    /// Number of items, 1 to 500. Default: 50.
    #[param(minimum = 1, maximum = 500)]
    pub limit: Option<usize>,
}

/// The validated page size.
pub fn limit(asked: Option<usize>) -> Result<usize, Problem> {
    let limit = asked.unwrap_or(LIMIT_DEFAULT);
    if (1..=LIMIT_MAX).contains(&limit) {
        return Ok(limit);
    }
    Err(Problem::invalid(format!("`limit` is {limit}"), format!("use 1 to {LIMIT_MAX}, and `cursor` for further pages")))
}

/// The states that the filter `wanted` names: one of `all`, or `open` or `ended`. `kind` is the plural noun for messages.
pub fn states<S: Copy>(
    wanted: &str,
    kind: &str,
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
        return Err(Problem::invalid(format!("`{wanted}` is not a state of {kind}"), hint));
    }
    Ok(states)
}

/// Parses a cursor.
pub fn cursor<T: std::str::FromStr>(text: &Option<String>) -> Result<Option<T>, Problem> {
    let parsed = text.as_deref().map(str::parse).transpose();
    parsed.map_err(|_| Problem::invalid("`cursor` is not a cursor of this list", "send `next` of the previous page unchanged"))
}

/// At most `limit` records of `scan` that `keep` accepts. If more may follow, also the last decoded record.
pub fn collect<T: ReadTables, R: Record>(
    tables: &T,
    mut scan: Scan,
    limit: usize,
    mut keep: impl FnMut(&R) -> bool,
) -> Result<(Vec<R>, Option<R>), Problem> {
    let mut kept = Vec::new();
    let mut decoded = 0;
    loop {
        let records: Vec<R> = tables.scan(&scan, CHUNK)?;
        let is_last_chunk = records.len() < CHUNK;
        let count = records.len();
        for (place, record) in records.into_iter().enumerate() {
            decoded += 1;
            let more_follow = !is_last_chunk || place + 1 < count;
            scan.after = Some(record.key());
            let wanted = keep(&record);
            let full = kept.len() + usize::from(wanted) >= limit || decoded >= DECODED_MAX;
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

/// At most `limit` records that `find` returns for the records of an index. If more may follow, also the last decoded index record.
pub fn collect_indexed<T: ReadTables, I: Record, R>(
    tables: &T,
    scan: Scan,
    limit: usize,
    mut find: impl FnMut(&I) -> Result<Option<R>, TablesError>,
) -> Result<(Vec<R>, Option<I>), Problem> {
    let mut found = Vec::new();
    let mut failed = None;
    let (_, last) = collect(tables, scan, limit, |index: &I| match find(index) {
        Ok(record) => {
            let is_found = record.is_some();
            found.extend(record);
            is_found
        }
        Err(error) => {
            failed = Some(error);
            false
        }
    })?;
    match failed {
        Some(error) => Err(error.into()),
        None => Ok((found, last)),
    }
}

/// A scan of the keys with a prefix, after the key `after`.
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
    fn consecutive_pages_have_no_gap_or_repeat() {
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
    fn limit_outside_bounds_is_refused() {
        assert_eq!(limit(None).unwrap(), LIMIT_DEFAULT);
        assert!(limit(Some(0)).is_err() && limit(Some(501)).is_err() && limit(Some(500)).is_ok());
    }
}
