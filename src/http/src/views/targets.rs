//! Sets of targets as names: state keeps numbers, people read names. Bounded, since a set may have 50,000.

use roaring::RoaringBitmap;
use serde::Serialize;
use utoipa::ToSchema;

use swell_model::{
    fleet::Target,
    tables::{ReadTables, TablesError, key},
};

/// How many targets of a set are named.
pub const NAMED_MAX: usize = 200;

/// A set of targets: how many, and the first of them by name.
#[derive(Debug, Clone, Serialize, ToSchema)]
pub struct TargetSet {
    /// How many.
    pub count: u64,
    /// The names of the first, at most 200.
    pub names: Vec<String>,
}

impl TargetSet {
    /// With at most `named_max` names.
    pub fn of<T: ReadTables>(tables: &T, targets: &RoaringBitmap, named_max: usize) -> Result<Self, TablesError> {
        let names: Result<Vec<String>, TablesError> =
            targets.iter().take(named_max.min(NAMED_MAX)).map(|index| name_of(tables, index)).collect();
        Ok(Self { count: targets.len(), names: names? })
    }
}

/// The name of a target, or its number where it is unknown.
pub fn name_of<T: ReadTables>(tables: &T, index: u32) -> Result<String, TablesError> {
    let target: Option<Target> = tables.get(&key(index))?;
    Ok(target.map_or_else(|| format!("target {index}"), |target| target.info.name.to_string()))
}
