//! Quantities as people write them (`30m`, `4GiB`, `10%`) and as state keeps them (whole numbers).
//! Knows nothing of the entities that use them.

use std::{fmt, str::FromStr};

use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

/// Why a quantity could not be read.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{text}` is not {expected}")]
pub struct UnitError {
    /// What was given.
    pub text: String,
    /// What would have been understood, with an example.
    pub expected: &'static str,
}

/// A length of time in milliseconds. Written `250ms`, `10s`, `5m`, `2h`, `7d`, or joined: `1m30s`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Millis(pub u64);

impl Millis {
    /// So many seconds.
    pub const fn from_secs(secs: u64) -> Self {
        Self(secs * 1000)
    }

    /// The same length as the standard library's type.
    pub const fn as_duration(self) -> std::time::Duration {
        std::time::Duration::from_millis(self.0)
    }
}

const MILLIS_UNITS: [(&str, u64); 5] = [("d", 86_400_000), ("h", 3_600_000), ("m", 60_000), ("s", 1000), ("ms", 1)];

impl FromStr for Millis {
    type Err = UnitError;

    fn from_str(text: &str) -> Result<Self, UnitError> {
        let error = || UnitError { text: text.to_owned(), expected: "a length of time such as `250ms`, `10s`, `5m` or `1h30m`" };
        let mut rest = text.trim();
        let mut total: u64 = 0;
        if rest.is_empty() {
            return Err(error());
        }
        while !rest.is_empty() {
            let digits = rest.find(|c: char| !c.is_ascii_digit()).ok_or_else(error)?;
            let number: u64 = rest[..digits].parse().map_err(|_| error())?;
            rest = &rest[digits..];
            let unit_len = rest.find(|c: char| !c.is_ascii_alphabetic()).unwrap_or(rest.len());
            let (_, scale) = MILLIS_UNITS.iter().find(|(unit, _)| *unit == &rest[..unit_len]).ok_or_else(error)?;
            total = number.checked_mul(*scale).and_then(|part| total.checked_add(part)).ok_or_else(error)?;
            rest = &rest[unit_len..];
        }
        Ok(Self(total))
    }
}

impl fmt::Display for Millis {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.0 == 0 {
            return f.write_str("0s");
        }
        let mut rest = self.0;
        for (unit, scale) in MILLIS_UNITS {
            if rest >= scale {
                write!(f, "{}{unit}", rest / scale)?;
                rest %= scale;
            }
        }
        Ok(())
    }
}

/// A moment: milliseconds since 1970-01-01T00:00:00Z, as the leader's clock gave it when it proposed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Timestamp(pub u64);

impl Timestamp {
    /// The time that passed since `earlier`; zero when `earlier` is later.
    pub fn since(self, earlier: Timestamp) -> Millis {
        Millis(self.0.saturating_sub(earlier.0))
    }

    /// This time and `duration` more; the last time there is, where it would be beyond.
    pub fn plus(self, duration: Millis) -> Self {
        Self(self.0.saturating_add(duration.0))
    }
}

/// A number of bytes. Written `512`, `64KiB`, `4GiB`, or with decimal units: `200MB`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct ByteSize(pub u64);

const BYTE_UNITS: [(&str, u64); 10] = [
    ("TiB", 1 << 40),
    ("GiB", 1 << 30),
    ("MiB", 1 << 20),
    ("KiB", 1 << 10),
    ("TB", 1_000_000_000_000),
    ("GB", 1_000_000_000),
    ("MB", 1_000_000),
    ("KB", 1000),
    ("kB", 1000),
    ("B", 1),
];

impl ByteSize {
    /// The size to the byte, in the largest unit that needs no fraction: `1500MB`. What [`FromStr`] reads again; [`fmt::Display`]
    /// rounds for people's eyes.
    pub fn exactly(self) -> String {
        let fits = |(_, scale): &&(&str, u64)| self.0 >= *scale && self.0.is_multiple_of(*scale);
        BYTE_UNITS.iter().find(fits).map_or_else(|| "0B".to_owned(), |(unit, scale)| format!("{}{unit}", self.0 / scale))
    }
}

impl FromStr for ByteSize {
    type Err = UnitError;

    fn from_str(text: &str) -> Result<Self, UnitError> {
        let error = || UnitError { text: text.to_owned(), expected: "a size such as `512MiB`, `4GiB` or `200MB`" };
        let text_trimmed = text.trim();
        let digits = text_trimmed.find(|c: char| !c.is_ascii_digit()).unwrap_or(text_trimmed.len());
        let number: u64 = text_trimmed[..digits].parse().map_err(|_| error())?;
        let unit = text_trimmed[digits..].trim_start();
        if unit.is_empty() {
            return Ok(Self(number));
        }
        let (_, scale) = BYTE_UNITS.iter().find(|(name, _)| *name == unit).ok_or_else(error)?;
        Ok(Self(number.checked_mul(*scale).ok_or_else(error)?))
    }
}

impl fmt::Display for ByteSize {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (unit, scale) in &BYTE_UNITS[..4] {
            if self.0 >= *scale {
                let tenths = (self.0 as u128 * 10 / u128::from(*scale)) as u64;
                return match tenths % 10 {
                    0 => write!(f, "{}{unit}", tenths / 10),
                    tenth => write!(f, "{}.{tenth}{unit}", tenths / 10),
                };
            }
        }
        write!(f, "{}B", self.0)
    }
}

/// A share in hundredths of a percent: 10,000 is all. Written `1%`, `99.5%`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct BasisPoints(pub u32);

impl BasisPoints {
    /// The whole: 100 %.
    pub const ALL: BasisPoints = BasisPoints(10_000);

    /// This share of `count`, rounded up.
    pub fn of_rounded_up(self, count: u32) -> u32 {
        (u64::from(count) * u64::from(self.0)).div_ceil(10_000) as u32
    }

    /// This share of `count`, rounded down.
    pub fn of_rounded_down(self, count: u32) -> u32 {
        (u64::from(count) * u64::from(self.0) / 10_000) as u32
    }
}

impl FromStr for BasisPoints {
    type Err = UnitError;

    fn from_str(text: &str) -> Result<Self, UnitError> {
        let error =
            || UnitError { text: text.to_owned(), expected: "a share between `0%` and `100%`, with at most two decimals" };
        let number = text.trim().strip_suffix('%').ok_or_else(error)?.trim_end();
        let (whole, decimals) = number.split_once('.').unwrap_or((number, ""));
        if whole.is_empty() || decimals.len() > 2 || !decimals.chars().all(|c| c.is_ascii_digit()) {
            return Err(error());
        }
        let whole: u32 = whole.parse().map_err(|_| error())?;
        let hundredths: u32 = format!("{decimals:0<2}").parse().map_err(|_| error())?;
        match whole.checked_mul(100).and_then(|points| points.checked_add(hundredths)) {
            Some(points) if points <= Self::ALL.0 => Ok(Self(points)),
            _ => Err(error()),
        }
    }
}

impl fmt::Display for BasisPoints {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (self.0 / 100, self.0 % 100) {
            (whole, 0) => write!(f, "{whole}%"),
            (whole, part) if part % 10 == 0 => write!(f, "{whole}.{}%", part / 10),
            (whole, part) => write!(f, "{whole}.{part:02}%"),
        }
    }
}

/// So many targets: a count (`3`) or a share of them (`10%`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Amount {
    /// Exactly so many.
    Count(u32),
    /// A share of all.
    Share(BasisPoints),
}

impl Amount {
    /// As a number of targets out of `total`, shares rounded up, at most `total`.
    pub fn rounded_up(self, total: u32) -> u32 {
        match self {
            Amount::Count(count) => count.min(total),
            Amount::Share(share) => share.of_rounded_up(total),
        }
    }

    /// As a number of targets out of `total`, shares rounded down, at most `total`.
    pub fn rounded_down(self, total: u32) -> u32 {
        match self {
            Amount::Count(count) => count.min(total),
            Amount::Share(share) => share.of_rounded_down(total),
        }
    }
}

impl FromStr for Amount {
    type Err = UnitError;

    fn from_str(text: &str) -> Result<Self, UnitError> {
        match text.trim().parse() {
            Ok(count) => Ok(Self::Count(count)),
            Err(_) => text
                .parse()
                .map(Self::Share)
                .map_err(|_| UnitError { text: text.to_owned(), expected: "a count such as `3` or a share such as `10%`" }),
        }
    }
}

impl fmt::Display for Amount {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Amount::Count(count) => count.fmt(f),
            Amount::Share(share) => share.fmt(f),
        }
    }
}

/// Text for people (TOML, JSON), whole numbers for state (MessagePack).
macro_rules! serde_as_text_or_number {
    ($name:ident, $number:ty, $text:path) => {
        impl Serialize for $name {
            fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                if serializer.is_human_readable() { $text(*self).serialize(serializer) } else { self.0.serialize(serializer) }
            }
        }

        impl<'de> Deserialize<'de> for $name {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                if !deserializer.is_human_readable() {
                    return <$number>::deserialize(deserializer).map(Self);
                }
                String::deserialize(deserializer)?.parse().map_err(de::Error::custom)
            }
        }
    };
}

fn shown<T: fmt::Display>(value: T) -> String {
    value.to_string()
}

serde_as_text_or_number!(Millis, u64, shown);
serde_as_text_or_number!(ByteSize, u64, ByteSize::exactly);
serde_as_text_or_number!(BasisPoints, u32, shown);

#[derive(Serialize, Deserialize)]
enum AmountInState {
    Count(u32),
    Share(BasisPoints),
}

#[derive(Deserialize)]
#[serde(untagged)]
enum AmountAsWritten {
    Count(u32),
    Text(String),
}

impl Serialize for Amount {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match (*self, serializer.is_human_readable()) {
            (Amount::Count(count), true) => count.serialize(serializer),
            (Amount::Share(share), true) => share.serialize(serializer),
            (Amount::Count(count), false) => AmountInState::Count(count).serialize(serializer),
            (Amount::Share(share), false) => AmountInState::Share(share).serialize(serializer),
        }
    }
}

impl<'de> Deserialize<'de> for Amount {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        if !deserializer.is_human_readable() {
            return Ok(match AmountInState::deserialize(deserializer)? {
                AmountInState::Count(count) => Amount::Count(count),
                AmountInState::Share(share) => Amount::Share(share),
            });
        }
        match AmountAsWritten::deserialize(deserializer)? {
            AmountAsWritten::Count(count) => Ok(Amount::Count(count)),
            AmountAsWritten::Text(text) => text.parse().map_err(de::Error::custom),
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn reads_what_people_write() {
        assert_eq!("1m30s".parse(), Ok(Millis(90_000)));
        assert_eq!("250ms".parse(), Ok(Millis(250)));
        assert_eq!("4GiB".parse(), Ok(ByteSize(4 << 30)));
        assert_eq!("99.5%".parse(), Ok(BasisPoints(9950)));
        assert_eq!("0.25%".parse(), Ok(BasisPoints(25)));
        assert_eq!("10%".parse(), Ok(Amount::Share(BasisPoints(1000))));
        assert_eq!("3".parse(), Ok(Amount::Count(3)));
    }

    #[test]
    fn refuses_what_it_cannot_mean() {
        for text in ["", "5", "m", "5x", "-3s", "99999999999999999999s"] {
            assert!(text.parse::<Millis>().is_err(), "{text}");
        }
        for text in ["", "4Gb", "GiB", "99999999999TiB"] {
            assert!(text.parse::<ByteSize>().is_err(), "{text}");
        }
        for text in ["", "%", "101%", "1.234%", "-1%", "ten%"] {
            assert!(text.parse::<BasisPoints>().is_err(), "{text}");
        }
    }

    #[test]
    fn shares_round_as_the_planner_needs() {
        let tenth = Amount::Share(BasisPoints(1000));
        assert_eq!((tenth.rounded_up(6), tenth.rounded_down(6)), (1, 0));
        assert_eq!((tenth.rounded_up(50_000), tenth.rounded_down(50_000)), (5000, 5000));
        assert_eq!(Amount::Count(9).rounded_up(6), 6);
    }

    proptest! {
        #[test]
        fn what_is_printed_is_read_back(millis in 0u64..1 << 50, points in 0u32..=10_000) {
            prop_assert_eq!(Millis(millis).to_string().parse(), Ok(Millis(millis)));
            prop_assert_eq!(BasisPoints(points).to_string().parse(), Ok(BasisPoints(points)));
        }

        #[test]
        fn a_size_survives_text_to_the_byte(number in any::<u64>(), scale in 0..BYTE_UNITS.len(), small in 0u64..2000) {
            for size in [ByteSize(number), ByteSize(small * BYTE_UNITS[scale].1)] {
                let text = serde_json::to_string(&size).unwrap();
                prop_assert_eq!(serde_json::from_str::<ByteSize>(&text).unwrap(), size, "{}", text);
            }
        }

        #[test]
        fn state_and_text_carry_the_same(count in 0u32..1000, points in 0u32..=10_000, share: bool) {
            let amount = if share { Amount::Share(BasisPoints(points)) } else { Amount::Count(count) };
            let state = rmp_serde::to_vec(&amount).unwrap();
            prop_assert_eq!(rmp_serde::from_slice::<Amount>(&state).unwrap(), amount);
            let text = serde_json::to_string(&amount).unwrap();
            prop_assert_eq!(serde_json::from_str::<Amount>(&text).unwrap(), amount);
        }
    }
}
