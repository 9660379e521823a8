//! Units as people write them: `10s`, `128MiB`, `0.1%`.

use std::fmt;
use std::time::Duration;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize, Serializer};

/// A length of time: a number and `ms`, `s`, `m`, `h` or `d`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Deserialize, JsonSchema)]
#[serde(try_from = "String")]
#[schemars(with = "String", extend("format" = "time-span", "pattern" = r"^\s*[0-9.]+\s*(ms|s|m|min|h|d)$"))]
pub struct Span(pub Duration);

/// A number of bytes: a number and `B`, `KiB`, `MiB`, `GiB`, `KB`, `MB` or `GB`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Deserialize, JsonSchema)]
#[serde(try_from = "String")]
#[schemars(with = "String", extend("format" = "byte-size", "pattern" = r"^\s*[0-9.]+\s*(B|[KMG]i?B)$"))]
pub struct ByteSize(pub u64);

/// A share of a whole: a number and `%`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Deserialize, JsonSchema)]
#[serde(try_from = "String")]
#[schemars(with = "String", extend("format" = "share", "pattern" = r"^\s*[0-9.]+\s*%$"))]
pub struct Share {
    /// Millionths of the whole: a share is exact, so that three of a thousand are not more than 0.3%.
    pub millionths: u32,
}

impl Span {
    /// Makes a span of whole seconds.
    pub const fn from_secs(secs: u64) -> Self {
        Self(Duration::from_secs(secs))
    }
}

impl ByteSize {
    /// Makes a size of mebibytes.
    pub const fn mib(mib: u64) -> Self {
        Self(mib * 1024 * 1024)
    }
}

impl TryFrom<String> for Span {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        let wrong = || {
            format!(
                "`{text}` is not a length of time; write a number and a unit, such as `500ms`, `10s`, `5m`, `2h`, `1d`"
            )
        };
        let (number, unit) = split(&text).ok_or_else(wrong)?;
        let ms = match unit {
            "ms" => 1.0,
            "s" => 1e3,
            "m" | "min" => 60e3,
            "h" => 3600e3,
            "d" => 86_400e3,
            _ => return Err(wrong()),
        };
        Duration::try_from_secs_f64(number * ms / 1e3).map(Span).map_err(|_| wrong())
    }
}

impl TryFrom<String> for ByteSize {
    type Error = String;

    #[allow(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "the value has been checked to be in range"
    )]
    fn try_from(text: String) -> Result<Self, String> {
        let wrong = || format!("`{text}` is not a size; write a number and a unit, such as `64KiB`, `128MiB`, `1GiB`");
        let (number, unit) = split(&text).ok_or_else(wrong)?;
        let factor = match unit {
            "B" => 1.0,
            "KB" => 1e3,
            "MB" => 1e6,
            "GB" => 1e9,
            "KiB" => 1024.0,
            "MiB" => 1024.0 * 1024.0,
            "GiB" => 1024.0 * 1024.0 * 1024.0,
            _ => return Err(wrong()),
        };
        let bytes = number * factor;
        if bytes.is_finite() && bytes < 9e15 { Ok(ByteSize(bytes as u64)) } else { Err(wrong()) }
    }
}

impl TryFrom<String> for Share {
    type Error = String;

    #[allow(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "the value has been checked to be in range"
    )]
    fn try_from(text: String) -> Result<Self, String> {
        let wrong = || format!("`{text}` is not a share; write a number from 0 to 100 and `%`, such as `0.1%`, `5%`");
        let percent = text.trim().strip_suffix('%').and_then(|number| number.trim().parse::<f64>().ok());
        let percent = percent.filter(|percent| (0.0..=100.0).contains(percent)).ok_or_else(wrong)?;
        let millionths = (percent * 1e4).round();
        // Less than what can be counted would silently be nothing at all.
        if millionths == 0.0 && percent > 0.0 { Err(wrong()) } else { Ok(Share { millionths: millionths as u32 }) }
    }
}

impl fmt::Display for Share {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}%", f64::from(self.millionths) / 1e4)
    }
}

impl fmt::Display for Span {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let ms = self.0.as_millis();
        let (number, unit) =
            largest_unit(ms, &[(86_400_000, "d"), (3_600_000, "h"), (60_000, "m"), (1000, "s"), (1, "ms")]);
        write!(f, "{number}{unit}")
    }
}

impl fmt::Display for ByteSize {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (number, unit) =
            largest_unit(self.0.into(), &[(1 << 30, "GiB"), (1 << 20, "MiB"), (1 << 10, "KiB"), (1, "B")]);
        write!(f, "{number}{unit}")
    }
}

impl Serialize for Span {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl Serialize for ByteSize {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

/// Gives the number in the largest unit of which it is a whole multiple.
fn largest_unit<'a>(number: u128, units: &[(u128, &'a str)]) -> (u128, &'a str) {
    let whole = units.iter().find(|(size, _)| number > 0 && number.is_multiple_of(*size));
    whole.or(units.last()).map_or((number, ""), |(size, unit)| (number / size, unit))
}

/// Splits `12.5MiB` into its number and its unit.
fn split(text: &str) -> Option<(f64, &str)> {
    let text = text.trim();
    let unit_at = text.find(|c: char| c.is_ascii_alphabetic())?;
    let number = text[..unit_at].trim().parse::<f64>().ok()?;
    (number >= 0.0).then(|| (number, &text[unit_at..]))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn units_are_read_and_written() {
        for text in ["0ms", "250ms", "10s", "90s", "5m", "2h", "7d"] {
            assert_eq!(Span::try_from(text.to_owned()).expect(text).to_string(), text);
        }
        for text in ["0B", "100B", "64KiB", "128MiB", "4GiB"] {
            assert_eq!(ByteSize::try_from(text.to_owned()).expect(text).to_string(), text);
        }
        assert_eq!(Span::try_from("1.5 h".to_owned()), Span::try_from("90m".to_owned()));
        assert_eq!(ByteSize::try_from("2MB".to_owned()), Ok(ByteSize(2_000_000)));
    }

    #[test]
    fn shares_are_exact() {
        for (text, millionths) in [("0%", 0), ("0.1%", 1_000), ("0.0001%", 1), ("7.5%", 75_000), ("100%", 1_000_000)] {
            let share = Share::try_from(text.to_owned()).expect(text);
            assert_eq!((share.millionths, share.to_string().as_str()), (millionths, text));
        }
        for text in ["", "0.1", "%", "-1%", "101%", "NaN%", "0.00001%"] {
            assert!(Share::try_from(text.to_owned()).is_err(), "{text}");
        }
    }

    #[test]
    fn what_has_no_unit_is_refused() {
        for text in ["", "10", "s", "-1s", "1 fortnight", "1e99d", "10MiB"] {
            assert!(Span::try_from(text.to_owned()).is_err(), "{text}");
        }
        for text in ["", "10", "MiB", "-1MiB", "1mib", "1e99GiB", "10s"] {
            assert!(ByteSize::try_from(text.to_owned()).is_err(), "{text}");
        }
    }
}
