//! Sets of targets with the names of the first ones: state has numbers, and a set may have 50,000 targets.

use roaring::RoaringBitmap;
use serde::Serialize;
use utoipa::ToSchema;

use swell_model::{
    fleet::Target,
    tables::{ReadTables, TablesError, key},
};

/// How many targets of a set are listed by name.
pub const NAMED_MAX: usize = 200;

/// Set of targets.
#[derive(Debug, Clone, Serialize, ToSchema)]
pub struct TargetSet {
    /// Number of targets.
    pub count: u64,
    /// Names of the first targets, at most 200.
    pub names: Vec<String>,
}

impl TargetSet {
    /// The set with at most `named_max` names.
    pub fn of<T: ReadTables>(tables: &T, targets: &RoaringBitmap, named_max: usize) -> Result<Self, TablesError> {
        let names: Result<Vec<String>, TablesError> =
            targets.iter().take(named_max.min(NAMED_MAX)).map(|index| name_of(tables, index)).collect();
        Ok(Self { count: targets.len(), names: names? })
    }
}

/// The name of a target, or its number if it is unknown.
pub fn name_of<T: ReadTables>(tables: &T, index: u32) -> Result<String, TablesError> {
    let target: Option<Target> = tables.get(&key(index))?;
    Ok(target.map_or_else(|| format!("target {index}"), |target| target.info.name.to_string()))
}
