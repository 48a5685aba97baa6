//! What the databases share of RocksDB: options, reading records in order. Knows nothing of the records.

use rocksdb::{
    BlockBasedOptions, Cache, ColumnFamily, DBAccess, DBCompressionType, DBRawIteratorWithThreadMode, LogLevel,
    OptimisticTransactionDB, Options, ReadOptions,
};

use super::codec::{CodecError, decode, encode_key, end_of_prefix};
use swell_model::tables::{Key, Record, Scan, Table, TablesError};

/// Most files that one database keeps open: a process may have 20,000 descriptors, and connections need most of them.
const OPEN_FILES_MAX: i32 = 512;

/// Most bytes of the memory tables of one database together.
const WRITE_BUFFERS_BYTES: usize = 64 << 20;

const BLOCK_CACHE_BYTES: usize = 64 << 20;

pub(super) fn options() -> Options {
    let mut options = Options::default();
    options.create_if_missing(true);
    options.create_missing_column_families(true);
    options.set_max_open_files(OPEN_FILES_MAX);
    options.set_db_write_buffer_size(WRITE_BUFFERS_BYTES);
    options.set_write_buffer_size(WRITE_BUFFERS_BYTES / 4);
    // A family that is seldom written would keep old write-ahead logs alive.
    options.set_max_total_wal_size(4 * WRITE_BUFFERS_BYTES as u64);
    // An optimistic transaction looks for conflicts in what was just flushed. There is one writer: nothing to keep for that.
    options.set_max_write_buffer_size_to_maintain(1);
    options.set_compression_type(DBCompressionType::Lz4);
    options.set_max_background_jobs(2);
    // Lost or truncated files are noticed when the database is opened.
    options.set_paranoid_checks(true);
    options.set_track_and_verify_wals_in_manifest(true);
    options.set_log_level(LogLevel::Warn);
    options.set_keep_log_file_num(2);
    let mut table = BlockBasedOptions::default();
    table.set_block_cache(&Cache::new_lru_cache(BLOCK_CACHE_BYTES));
    table.set_bloom_filter(10.0, false);
    table.set_format_version(5);
    options.set_block_based_table_factory(&table);
    options
}

/// How many records are read between two questions whether to go on.
const RECORDS_AT_ONCE: u64 = 1000;

/// Reads the whole family while `go_on` says so; fails at the first damaged block.
pub(super) fn verify<D: DBAccess>(
    mut iterator: DBRawIteratorWithThreadMode<'_, D>,
    go_on: impl Fn() -> bool,
) -> Result<(), rocksdb::Error> {
    let mut records: u64 = 0;
    iterator.seek_to_first();
    while iterator.valid() && (!records.is_multiple_of(RECORDS_AT_ONCE) || go_on()) {
        records += 1;
        iterator.next();
    }
    iterator.status()
}

/// For reading everything once: checksums are compared, and the cache is left to others.
pub(super) fn once() -> ReadOptions {
    let mut options = ReadOptions::default();
    options.set_verify_checksums(true);
    options.fill_cache(false);
    options
}

/// A transaction or a snapshot, to read records from.
pub(super) trait Source {
    type Db: DBAccess;

    fn family(&self, table: Table) -> Result<&ColumnFamily, TablesError>;
    fn value(&self, family: &ColumnFamily, key: &[u8]) -> Result<Option<Vec<u8>>, rocksdb::Error>;
    fn iterate(&self, family: &ColumnFamily, options: ReadOptions) -> DBRawIteratorWithThreadMode<'_, Self::Db>;
}

pub(super) fn family(db: &OptimisticTransactionDB, table: Table) -> Result<&ColumnFamily, TablesError> {
    db.cf_handle(table.name()).ok_or_else(|| failed("read", table, "it has no column family"))
}

pub(super) fn failed(tried: &'static str, table: Table, cause: impl ToString) -> TablesError {
    TablesError::Failed { tried, table, cause: cause.to_string() }
}

fn read<R: Record, T>(result: Result<T, impl ToString>) -> Result<T, TablesError> {
    result.map_err(|cause| failed("read", R::TABLE, cause))
}

pub(super) fn get<R: Record>(source: &impl Source, key: &Key) -> Result<Option<R>, TablesError> {
    let key = read::<R, _>(encode_key(key))?;
    let value = read::<R, _>(source.value(source.family(R::TABLE)?, &key))?;
    value.map(|value| read::<R, _>(decode(&value))).transpose()
}

pub(super) fn read_first<R: Record>(source: &impl Source, scan: &Scan, limit: usize) -> Result<Vec<R>, TablesError> {
    let Bounds { first, end } = read::<R, _>(Bounds::of(scan))?;
    if limit == 0 || first >= end {
        return Ok(Vec::new());
    }
    let mut options = ReadOptions::default();
    options.set_iterate_lower_bound(first.clone());
    options.set_iterate_upper_bound(end.clone());
    let mut iterator = source.iterate(source.family(R::TABLE)?, options);
    match scan.backwards {
        false => iterator.seek(&first),
        true => iterator.seek_for_prev(&end),
    }
    let mut records = Vec::new();
    while records.len() < limit {
        // The bounds are checked here too: the iterator of a transaction keeps them for the database, not for its own writes.
        let Some((key, value)) = iterator.item() else { break };
        let (before, beyond) = (key < first.as_slice(), key >= end.as_slice());
        match (scan.backwards, before, beyond) {
            (true, true, _) | (false, _, true) => break,
            (true, _, true) | (false, true, _) => {}
            _ => records.push(read::<R, _>(decode(value))?),
        }
        match scan.backwards {
            false => iterator.next(),
            true => iterator.prev(),
        }
    }
    read::<R, _>(iterator.status())?;
    Ok(records)
}

/// The keys of a scan: from `first` on, before `end`.
struct Bounds {
    first: Vec<u8>,
    end: Vec<u8>,
}

impl Bounds {
    fn of(scan: &Scan) -> Result<Self, CodecError> {
        let prefix = encode_key(&scan.prefix)?;
        let mut bounds = Self { first: prefix.clone(), end: end_of_prefix(prefix) };
        if let Some(after) = &scan.after {
            let mut after = encode_key(after)?;
            if scan.backwards {
                bounds.end = bounds.end.min(after);
            } else {
                // No bytes stand between a key and the same key with a 0 after it.
                after.push(0);
                bounds.first = bounds.first.max(after);
            }
        }
        Ok(bounds)
    }
}
