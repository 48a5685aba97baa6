//! Numbers as a pipeline file writes them and state keeps them, both exactly. Knows nothing of what is counted.

use std::{fmt, str::FromStr};

use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

use crate::units::ByteSize;

/// A number of at least zero with three decimals: CPUs, ratios, thresholds. 1,500 is 1.5.
/// Written as a number in TOML and JSON, kept as a whole number in state.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Thousandths(pub u64);

/// The greatest: a double still tells thousandths apart there.
const THOUSANDTHS_MAX: u64 = 1_000_000_000_000_000;

impl Thousandths {
    /// So many wholes.
    pub const fn whole(number: u64) -> Self {
        Self(number * 1000)
    }

    /// The nearest floating-point number.
    pub fn as_f64(self) -> f64 {
        self.0 as f64 / 1000.0
    }

    fn from_f64(number: f64) -> Option<Self> {
        let scaled = number * 1000.0;
        let is_exact = (scaled - scaled.round()).abs() < 1e-6 * scaled.abs().max(1.0);
        let is_possible = number.is_finite() && number >= 0.0 && scaled <= THOUSANDTHS_MAX as f64 && is_exact;
        is_possible.then(|| Self(scaled.round() as u64))
    }
}

impl FromStr for Thousandths {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let number = text.parse::<f64>().ok().and_then(Self::from_f64);
        number.ok_or_else(|| format!("{text} is not a number of at least 0 with at most three decimals, such as 1.5"))
    }
}

impl fmt::Display for Thousandths {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.as_f64().fmt(f)
    }
}

impl Serialize for Thousandths {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        if serializer.is_human_readable() { serializer.serialize_f64(self.as_f64()) } else { self.0.serialize(serializer) }
    }
}

impl<'de> Deserialize<'de> for Thousandths {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        if !deserializer.is_human_readable() {
            return u64::deserialize(deserializer).map(Self);
        }
        let number = f64::deserialize(deserializer)?;
        Self::from_f64(number)
            .ok_or_else(|| de::Error::custom(format!("{number} has more than three decimals or is out of range")))
    }
}

/// Sizes as text that says exactly the same when it is read again (what [`ByteSize`] shows to people is rounded).
pub(super) mod exact_size {
    use super::*;

    const UNITS: [(&str, u64); 4] = [("TiB", 1 << 40), ("GiB", 1 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10)];

    pub fn serialize<S: Serializer>(size: &ByteSize, serializer: S) -> Result<S::Ok, S::Error> {
        if !serializer.is_human_readable() {
            return size.serialize(serializer);
        }
        match UNITS.iter().find(|(_, scale)| size.0 >= *scale && size.0.is_multiple_of(*scale)) {
            Some((unit, scale)) => serializer.collect_str(&format_args!("{}{unit}", size.0 / scale)),
            None => serializer.collect_str(&format_args!("{}B", size.0)),
        }
    }

    pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<ByteSize, D::Error> {
        ByteSize::deserialize(deserializer)
    }
}

/// As [`exact_size`], for a size that may be absent.
pub(super) mod exact_size_if_any {
    use super::*;

    #[derive(Serialize)]
    #[serde(transparent)]
    struct Exact(#[serde(with = "exact_size")] ByteSize);

    pub fn serialize<S: Serializer>(size: &Option<ByteSize>, serializer: S) -> Result<S::Ok, S::Error> {
        size.map(Exact).serialize(serializer)
    }

    pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<ByteSize>, D::Error> {
        Option::deserialize(deserializer)
    }
}
