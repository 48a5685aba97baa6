//! The ports that a target keeps for its services: a pair for each `auto` port, so that a new instance can start beside the old.

use std::collections::BTreeSet;

use crate::{
    fleet::{PortLease, PortRange, Target},
    ids::{PortName, ServiceName},
    pipeline_file::Port,
    rejection::{Rejection, RuleError},
    release::Release,
    tables::{ReadTables, SCAN_RECORDS_MAX, Scan, Tables, key},
};

/// Gives `target` a pair for each `auto` port of `release` that has none yet: the lowest free one of its range.
pub fn lease<T: Tables>(tables: &mut T, target: &Target, release: &Release) -> Result<(), RuleError> {
    for lease in missing(tables, target, release)? {
        tables.put(&lease)?;
    }
    Ok(())
}

/// The ports of `release` that its targets choose.
pub fn auto_ports(release: &Release) -> BTreeSet<(ServiceName, PortName)> {
    let ports =
        release.file.service.iter().flat_map(|(service, settings)| settings.ports.iter().map(move |port| (service, port)));
    ports.filter(|(_, (_, kind))| **kind == Port::Auto).map(|(service, (port, _))| (service.clone(), port.clone())).collect()
}

/// The pairs that `target` still needs for `release`. Changes nothing. Refuses a release with a port of its own choice in the range that
/// the target gives `auto` ports from: one day another service would have it.
pub fn missing<T: ReadTables>(tables: &T, target: &Target, release: &Release) -> Result<Vec<PortLease>, RuleError> {
    let range = target.info.ports;
    for (service, settings) in &release.file.service {
        for (port, kind) in &settings.ports {
            if let Port::Fixed(number) = kind
                && (range.first..=range.last).contains(number)
            {
                let what = format!("port `{port}` of service {service}");
                let PortRange { first, last } = range;
                let target = &target.info.name;
                let why = format!(
                    "{number} is of the range {first}-{last} that target {target} keeps for `auto`: choose another, or `auto`"
                );
                return Err(Rejection::Invalid { what, why }.into());
            }
        }
    }
    let held: Vec<PortLease> = tables.scan(&Scan::prefix(key(target.index)), SCAN_RECORDS_MAX)?;
    let mut taken: BTreeSet<u16> = held.iter().flat_map(|lease| lease.pair).collect();
    let mut missing = Vec::new();
    for (service, settings) in &release.file.service {
        for (port, kind) in &settings.ports {
            let is_this =
                |lease: &&PortLease| lease.pipeline == release.id.pipeline && lease.service == *service && lease.port == *port;
            if *kind != Port::Auto || held.iter().any(|lease| is_this(&lease)) {
                continue;
            }
            let free = (0..range.pairs()).map(|pair| range.first + 2 * pair).find(|first| {
                // A pair of an earlier range of the target may overlap at either place.
                !taken.contains(first) && !taken.contains(&(first + 1))
            });
            let first = free.ok_or_else(|| Rejection::Invalid {
                what: format!("ports of target {}", target.info.name),
                why: format!("its range {}-{} is used up: give its agent a wider one", range.first, range.last),
            })?;
            taken.extend([first, first + 1]);
            missing.push(PortLease {
                target: target.index,
                pipeline: release.id.pipeline.clone(),
                service: service.clone(),
                port: port.clone(),
                pair: [first, first + 1],
            });
        }
    }
    Ok(missing)
}
