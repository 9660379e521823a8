//! Numbers from text: exact, or a misfit.

use super::column::Misfit;

/// Digits that fit a 128-bit integer whatever they are.
const DIGITS_MAX: u32 = 38;

/// Digits that fit a float of 64 bits whatever they are.
const EXACT_DIGITS_MAX: usize = 15;

/// Exact as floats of 64 bits.
const POWERS_OF_TEN: [f64; EXACT_DIGITS_MAX + 1] =
    [1e0, 1e1, 1e2, 1e3, 1e4, 1e5, 1e6, 1e7, 1e8, 1e9, 1e10, 1e11, 1e12, 1e13, 1e14, 1e15];

/// Bound of exponents: far outside every type, far inside what can be added up.
const EXPONENT_MAX: i64 = 1_000_000;

/// Parses a whole number; `1.0` and `1e3` are whole.
#[inline]
pub(super) fn integer<T: atoi_simd::Parse + TryFrom<i128>>(text: &[u8]) -> Result<T, Misfit> {
    match atoi_simd::parse::<T, false, false>(text) {
        Ok(value) => Ok(value),
        Err(_) => integer_slowly(text),
    }
}

#[cold]
fn integer_slowly<T: TryFrom<i128>>(text: &[u8]) -> Result<T, Misfit> {
    let value = scaled(text, 0).map_err(|misfit| match misfit {
        Misfit::TooPrecise => Misfit::NotA,
        other => other,
    })?;
    T::try_from(value).map_err(|_| Misfit::OutOfRange)
}

/// Parses a number of at most `precision` digits, `scale` of them behind the point, as its unscaled value.
pub(super) fn decimal(text: &[u8], precision: u8, scale: i8) -> Result<i128, Misfit> {
    let value = scaled(text, i64::from(scale))?;
    let bound = 10_i128.checked_pow(u32::from(precision)).unwrap_or(i128::MAX);
    if value.abs() < bound { Ok(value) } else { Err(Misfit::OutOfRange) }
}

/// Parses a 64-bit float; a finite text whose value is none is out of range.
#[inline]
pub(super) fn float64(text: &[u8]) -> Result<f64, Misfit> {
    if let Some(value) = short_decimal(text) {
        return Ok(value);
    }
    let value: f64 = fast_float2::parse(text).map_err(|_| Misfit::NotA)?;
    if value.is_infinite() && text.iter().any(u8::is_ascii_digit) { Err(Misfit::OutOfRange) } else { Ok(value) }
}

/// Parses what most numbers look like: few digits, some behind a point, no exponent.
///
/// Digits below 2^53 and a power of ten below 10^23 are both exact as floats, so their quotient is the nearest float to
/// the number: W. D. Clinger, "How to Read Floating Point Numbers Accurately", 1990.
#[inline]
fn short_decimal(text: &[u8]) -> Option<f64> {
    let (negative, digits) = match text {
        [b'-', rest @ ..] => (true, rest),
        rest => (false, rest),
    };
    if digits.len() > EXACT_DIGITS_MAX + 1 {
        return None;
    }
    let (mut mantissa, mut point) = (0_u64, None);
    for (at, &byte) in digits.iter().enumerate() {
        match byte {
            b'0'..=b'9' => mantissa = mantissa * 10 + u64::from(byte - b'0'),
            b'.' if point.is_none() && at > 0 => point = Some(at),
            _ => return None,
        }
    }
    let behind_point = match point {
        None if digits.is_empty() => return None,
        None => 0,
        Some(at) => digits.len() - at - 1,
    };
    // A point at the end is left to the parser that knows all forms.
    if point.is_some() && behind_point == 0 || digits.len() - usize::from(point.is_some()) > EXACT_DIGITS_MAX {
        return None;
    }
    // Exact, as said.
    let value = mantissa as f64 / POWERS_OF_TEN.get(behind_point)?;
    Some(if negative { -value } else { value })
}

/// Parses a 32-bit float; a finite text whose value is none is out of range.
pub(super) fn float32(text: &[u8]) -> Result<f32, Misfit> {
    let value: f32 = fast_float2::parse(text).map_err(|_| Misfit::NotA)?;
    if value.is_infinite() && text.iter().any(u8::is_ascii_digit) { Err(Misfit::OutOfRange) } else { Ok(value) }
}

/// Parses a number and multiplies it by ten to the power of `scale`, without loss.
fn scaled(text: &[u8], scale: i64) -> Result<i128, Misfit> {
    let (mantissa, exponent) = mantissa_and_exponent(text)?;
    if mantissa == 0 {
        return Ok(0);
    }
    // The mantissa ends in no zero, so a negative shift would always cut off digits.
    let shift = u32::try_from(exponent + scale).map_err(|_| Misfit::TooPrecise)?;
    if shift > DIGITS_MAX {
        return Err(Misfit::OutOfRange);
    }
    10_i128.checked_pow(shift).and_then(|power| mantissa.checked_mul(power)).ok_or(Misfit::OutOfRange)
}

/// Takes a number apart; the mantissa ends in no zero.
fn mantissa_and_exponent(text: &[u8]) -> Result<(i128, i64), Misfit> {
    let (negative, digits) = match text {
        [b'-', rest @ ..] => (true, rest),
        [b'+', rest @ ..] => (false, rest),
        all => (false, all),
    };
    let mut mantissa = 0_i128;
    let mut zeros = 0_u32;
    let mut behind_point = 0_i64;
    let (mut any, mut point, mut exponent) = (false, false, 0_i64);
    for (at, &byte) in digits.iter().enumerate() {
        match byte {
            b'0'..=b'9' => {
                any = true;
                behind_point += i64::from(point);
                zeros += 1;
                if byte != b'0' {
                    let power = 10_i128.checked_pow(zeros).ok_or(Misfit::OutOfRange);
                    let shifted = if mantissa == 0 { Some(0) } else { mantissa.checked_mul(power?) };
                    let digit = i128::from(byte - b'0');
                    mantissa = shifted.and_then(|m| m.checked_add(digit)).ok_or(Misfit::OutOfRange)?;
                    zeros = 0;
                }
            }
            b'.' if !point => point = true,
            b'e' | b'E' if any => {
                exponent = parse_exponent(digits.get(at + 1..).unwrap_or_default())?;
                break;
            }
            _ => return Err(Misfit::NotA),
        }
    }
    if !any {
        return Err(Misfit::NotA);
    }
    let signed = if negative { -mantissa } else { mantissa };
    Ok((signed, exponent + i64::from(zeros) - behind_point))
}

fn parse_exponent(text: &[u8]) -> Result<i64, Misfit> {
    let (negative, digits) = match text {
        [b'-', rest @ ..] => (true, rest),
        [b'+', rest @ ..] => (false, rest),
        all => (false, all),
    };
    if digits.is_empty() || !digits.iter().all(u8::is_ascii_digit) {
        return Err(Misfit::NotA);
    }
    let value = digits.iter().fold(0_i64, |sum, digit| (sum * 10 + i64::from(digit - b'0')).min(EXPONENT_MAX));
    Ok(if negative { -value } else { value })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn floats_are_the_nearest(text in "-?[0-9]{0,18}\\.?[0-9]{0,18}") {
            let expected = text.parse::<f64>();
            match float64(text.as_bytes()) {
                Ok(value) => prop_assert_eq!(Ok(value.to_bits()), expected.map(f64::to_bits)),
                Err(_) => prop_assert!(expected.is_err(), "{text} is {expected:?}"),
            }
        }
    }

    #[test]
    fn integers_are_exact_up_to_their_limits() {
        assert_eq!(integer::<i64>(b"9223372036854775807"), Ok(i64::MAX));
        assert_eq!(integer::<i64>(b"-9223372036854775808"), Ok(i64::MIN));
        assert_eq!(integer::<i64>(b"9223372036854775808"), Err(Misfit::OutOfRange));
        assert_eq!(integer::<u64>(b"18446744073709551615"), Ok(u64::MAX));
        assert_eq!(integer::<u64>(b"-1"), Err(Misfit::OutOfRange));
        assert_eq!(integer::<i8>(b"-128"), Ok(-128));
        assert_eq!(integer::<i8>(b"128"), Err(Misfit::OutOfRange));
        assert_eq!(integer::<i64>(b"1.0"), Ok(1));
        assert_eq!(integer::<i64>(b"1.5e1"), Ok(15));
        assert_eq!(integer::<i64>(b"9.223372036854775807e18"), Ok(i64::MAX));
        assert_eq!(integer::<i64>(b"1.5"), Err(Misfit::NotA));
        assert_eq!(integer::<i64>(b"1e99999999999999999999"), Err(Misfit::OutOfRange));
        assert_eq!(integer::<i64>(b"0e99999999999999999999"), Ok(0));
        for text in ["", "-", "+", ".", "e1", "1e", "1e+", "abc", "1 ", "0x1", "1.2.3", "--1"] {
            assert_eq!(integer::<i64>(text.as_bytes()), Err(Misfit::NotA), "{text}");
        }
    }

    #[test]
    fn decimals_lose_no_digit() {
        assert_eq!(decimal(b"12.34", 10, 2), Ok(1234));
        assert_eq!(decimal(b"-12.3400", 10, 2), Ok(-1234));
        assert_eq!(decimal(b"12.345", 10, 2), Err(Misfit::TooPrecise));
        assert_eq!(decimal(b"99999999.99", 10, 2), Ok(9_999_999_999));
        assert_eq!(decimal(b"100000000", 10, 2), Err(Misfit::OutOfRange));
        assert_eq!(decimal(b"1e2", 10, 2), Ok(10000));
        assert_eq!(decimal("9".repeat(38).as_bytes(), 38, 0), Ok(10_i128.pow(38) - 1));
        assert_eq!(decimal("9".repeat(39).as_bytes(), 38, 0), Err(Misfit::OutOfRange));
        assert_eq!(decimal(format!("1.{}", "0".repeat(60)).as_bytes(), 5, 2), Ok(100));
        assert_eq!(decimal(format!("0.{}1", "0".repeat(60)).as_bytes(), 5, 2), Err(Misfit::TooPrecise));
    }

    #[test]
    fn floats_keep_their_edges() {
        assert_eq!(float64(b"1e308"), Ok(1e308));
        assert_eq!(float64(b"1e309"), Err(Misfit::OutOfRange));
        assert_eq!(float64(b"-0.0").map(f64::to_bits), Ok((-0.0_f64).to_bits()));
        assert_eq!(float64(b"5e-324"), Ok(5e-324));
        assert!(float64(b"NaN").is_ok_and(f64::is_nan));
        assert_eq!(float64(b"inf"), Ok(f64::INFINITY));
        assert_eq!(float64(b"1.5x"), Err(Misfit::NotA));
        assert_eq!(float32(b"1e39"), Err(Misfit::OutOfRange));
    }
}
