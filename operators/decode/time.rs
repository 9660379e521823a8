//! Dates and times from text.
//!
//! A timestamp is RFC 3339, with `T` or a space between date and time, or a
//! date alone. Without an offset it is taken as UTC. Digits of a second behind
//! the sixth are cut off, since timestamps count microseconds.

const MICROS: i64 = 1_000_000;
const SECONDS_PER_DAY: i64 = 86_400;

/// Parses `YYYY-MM-DD` as days since the Unix epoch.
pub(super) fn date(text: &[u8]) -> Option<i32> {
    let [y1, y2, y3, y4, b'-', m1, m2, b'-', d1, d2] = text else { return None };
    i32::try_from(days([*y1, *y2, *y3, *y4], [*m1, *m2], [*d1, *d2])?).ok()
}

/// Parses `HH:MM[:SS[.ffffff]]` as microseconds since midnight.
pub(super) fn time_us(text: &[u8]) -> Option<i64> {
    let (us, rest) = clock_us(text)?;
    (rest.is_empty() && us < SECONDS_PER_DAY * MICROS).then_some(us)
}

/// Parses a timestamp as microseconds since the Unix epoch.
#[inline]
pub(super) fn timestamp_us(text: &[u8]) -> Option<i64> {
    let [y1, y2, y3, y4, b'-', m1, m2, b'-', d1, d2, rest @ ..] = text else { return None };
    let midnight_us = days([*y1, *y2, *y3, *y4], [*m1, *m2], [*d1, *d2])? * SECONDS_PER_DAY * MICROS;
    let [b'T' | b't' | b' ', clock @ ..] = rest else {
        return rest.is_empty().then_some(midnight_us);
    };
    let (us, zone) = clock_us(clock)?;
    let offset_us = match zone {
        [] | [b'Z' | b'z'] => 0,
        // Some writers put a space before the zone, as Postgres and Go do.
        [b' ', zone @ ..] => zone_us(zone)?,
        zone => zone_us(zone)?,
    };
    Some(midnight_us + us - offset_us)
}

/// Parses a time of day; gives its microseconds and what stands behind it.
#[inline]
fn clock_us(text: &[u8]) -> Option<(i64, &[u8])> {
    let [h1, h2, b':', m1, m2, rest @ ..] = text else { return None };
    let minutes = two(*h1, *h2, 23)? * 60 + two(*m1, *m2, 59)?;
    let [b':', s1, s2, rest @ ..] = rest else { return Some((minutes * 60 * MICROS, rest)) };
    // RFC 3339 allows the leap second 60; it is the next minute's first.
    let seconds = minutes * 60 + two(*s1, *s2, 60)?;
    let [b'.' | b',', fraction @ ..] = rest else { return Some((seconds * MICROS, rest)) };
    let digits = fraction.iter().take_while(|byte| byte.is_ascii_digit()).count();
    if digits == 0 {
        return None;
    }
    let mut us = 0;
    for place in 0..6 {
        let digit = fraction.get(place).filter(|_| place < digits).map_or(0, |byte| byte - b'0');
        us = us * 10 + i64::from(digit);
    }
    Some((seconds * MICROS + us, fraction.get(digits..).unwrap_or_default()))
}

/// Parses `+HH:MM`, `+HHMM`, `+HH`, `Z` or `UTC` as microseconds east of UTC.
fn zone_us(text: &[u8]) -> Option<i64> {
    let (sign, digits) = match text {
        [b'+', rest @ ..] => (1, rest),
        [b'-', rest @ ..] => (-1, rest),
        b"Z" | b"z" | b"UTC" => return Some(0),
        _ => return None,
    };
    let minutes = match digits {
        [h1, h2, b':', m1, m2] | [h1, h2, m1, m2] => two(*h1, *h2, 23)? * 60 + two(*m1, *m2, 59)?,
        [h1, h2] => two(*h1, *h2, 23)? * 60,
        _ => return None,
    };
    Some(sign * minutes * 60 * MICROS)
}

/// Gives the days since the Unix epoch of a date in the proleptic Gregorian calendar.
///
/// The algorithm is `days_from_civil` of Howard Hinnant's "chrono-Compatible Low-Level Date Algorithms".
#[inline]
fn days(year: [u8; 4], month: [u8; 2], day: [u8; 2]) -> Option<i64> {
    let [y1, y2, y3, y4] = year;
    let year = two(y1, y2, 99)? * 100 + two(y3, y4, 99)?;
    let month = two(month[0], month[1], 12)?;
    let leap = year % 4 == 0 && (year % 100 != 0 || year % 400 == 0);
    let days_in_month = match month {
        4 | 6 | 9 | 11 => 30,
        2 => 28 + i64::from(leap),
        1..=12 => 31,
        _ => return None,
    };
    let day = two(day[0], day[1], days_in_month)?;
    if day == 0 {
        return None;
    }
    let shifted_year = if month <= 2 { year - 1 } else { year };
    let era = shifted_year.div_euclid(400);
    let year_of_era = shifted_year.rem_euclid(400);
    let day_of_year = (153 * ((month + 9) % 12) + 2) / 5 + day - 1;
    let day_of_era = year_of_era * 365 + year_of_era / 4 - year_of_era / 100 + day_of_year;
    Some(era * 146_097 + day_of_era - 719_468)
}

/// Reads two digits of a value that is at most `max`.
#[inline]
fn two(tens: u8, ones: u8, max: i64) -> Option<i64> {
    let (tens, ones) = (tens.wrapping_sub(b'0'), ones.wrapping_sub(b'0'));
    if tens > 9 || ones > 9 {
        return None;
    }
    let value = i64::from(tens) * 10 + i64::from(ones);
    (value <= max).then_some(value)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn every_form_of_a_timestamp_is_read() {
        let noon_us = 1_357_041_600 * MICROS;
        for text in [
            "2013-01-01T12:00:00Z",
            "2013-01-01t12:00:00z",
            "2013-01-01 12:00:00",
            "2013-01-01T12:00",
            "2013-01-01T14:00:00+02:00",
            "2013-01-01T06:30:00-0530",
            "2013-01-01 10:00:00-02",
            "2013-01-01 12:00:00 UTC",
            "2013-01-01 12:00:00.000000000 +00:00",
        ] {
            assert_eq!(timestamp_us(text.as_bytes()), Some(noon_us), "{text}");
        }
        assert_eq!(timestamp_us(b"2013-01-01"), Some(noon_us - 43_200 * MICROS));
        assert_eq!(timestamp_us(b"2013-01-01T12:00:00.5Z"), Some(noon_us + 500_000));
        assert_eq!(timestamp_us(b"2013-01-01T12:00:00.123456789Z"), Some(noon_us + 123_456));
    }

    #[test]
    fn what_is_no_time_is_refused() {
        for text in [
            "",
            "2013",
            "2013-13-01",
            "2013-02-29",
            "1900-02-29",
            "2013-00-10",
            "2013-01-00",
            "2013-01-01T",
            "2013-01-01T24:00:00Z",
            "2013-01-01T12:60:00Z",
            "2013-01-01T12:00:00.Z",
            "2013-01-01T12:00:00X",
            "2013-01-01T12:00:00+2",
            "2013-01-01T12:00:00Zx",
            "20130101T120000Z",
            "2013-01-01x12:00:00",
        ] {
            assert_eq!(timestamp_us(text.as_bytes()), None, "{text}");
        }
        assert_eq!(time_us(b"24:00:00"), None);
        assert_eq!(time_us(b"23:59:60"), None);
        assert_eq!(time_us(b"12:34:56.5"), Some(45_296_500_000));
        assert_eq!(date(b"2013-01-01T00:00:00"), None);
    }

    proptest! {
        #[test]
        fn times_agree_with_chrono(us in -62_167_219_200_000_000_i64..253_402_300_800_000_000, offset_min in -1439_i32..1440) {
            let utc = chrono::DateTime::from_timestamp_micros(us).unwrap();
            prop_assert_eq!(timestamp_us(utc.format("%Y-%m-%dT%H:%M:%S%.6fZ").to_string().as_bytes()), Some(us));
            prop_assert_eq!(date(utc.format("%Y-%m-%d").to_string().as_bytes()).map(i64::from), Some(us.div_euclid(86_400_000_000)));
            prop_assert_eq!(time_us(utc.format("%H:%M:%S%.6f").to_string().as_bytes()), Some(us.rem_euclid(86_400_000_000)));
            let zone = chrono::FixedOffset::east_opt(offset_min * 60).unwrap();
            let local = utc.with_timezone(&zone).format("%Y-%m-%d %H:%M:%S%.6f%:z").to_string();
            prop_assume!(local.len() == 32 && !local.starts_with(['-', '+']));
            prop_assert_eq!(timestamp_us(local.as_bytes()), Some(us));
        }
    }
}
