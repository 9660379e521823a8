//! Units as people write them: `10s`, `128MiB`.

use std::time::Duration;

use schemars::JsonSchema;
use serde::Deserialize;

/// A length of time: a number and `ms`, `s`, `m`, `h` or `d`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Deserialize, JsonSchema)]
#[serde(try_from = "String")]
#[schemars(with = "String", extend("format" = "duration"))]
pub struct Span(pub Duration);

/// A number of bytes: a number and `B`, `KiB`, `MiB`, `GiB`, `KB`, `MB` or `GB`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Deserialize, JsonSchema)]
#[serde(try_from = "String")]
#[schemars(with = "String", extend("format" = "byte-size"))]
pub struct ByteSize(pub u64);

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
        let wrong = || format!("`{text}` is not a length of time; write a number and a unit, such as `500ms`, `10s`, `5m`, `2h`, `1d`");
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

    #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "the value has been checked to be in range")]
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

/// Splits `12.5MiB` into its number and its unit.
fn split(text: &str) -> Option<(f64, &str)> {
    let text = text.trim();
    let unit_at = text.find(|c: char| c.is_ascii_alphabetic())?;
    let number = text[..unit_at].trim().parse::<f64>().ok()?;
    (number >= 0.0).then(|| (number, &text[unit_at..]))
}
