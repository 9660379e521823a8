//! Base64 (RFC 4648) into bytes: the standard and the URL-safe alphabet, with or without padding.

/// Appends what `text` encodes; `None`, with `out` as it was, if it is no base64.
pub(super) fn decode(text: &[u8], out: &mut Vec<u8>) -> Option<()> {
    let before = out.len();
    let decoded = decode_into(text, out);
    if decoded.is_none() {
        out.truncate(before);
    }
    decoded
}

/// Gives `bytes` in the standard alphabet, with padding.
pub(crate) fn encoded(bytes: &[u8]) -> String {
    let mut out = Vec::with_capacity(bytes.len().div_ceil(3) * 4);
    encode(bytes, &mut out);
    // All digits are ASCII.
    String::from_utf8(out).unwrap_or_default()
}

/// Appends `bytes` in the standard alphabet, with padding.
pub(super) fn encode(bytes: &[u8], out: &mut Vec<u8>) {
    const DIGITS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    for group in bytes.chunks(3) {
        let bits = group.iter().chain(&[0, 0]).take(3).fold(0, |bits, byte| bits << 8 | usize::from(*byte));
        for (at, shift) in [18, 12, 6, 0].into_iter().enumerate() {
            let digit = DIGITS.get(bits >> shift & 0x3f).filter(|_| at <= group.len());
            out.push(digit.copied().unwrap_or(b'='));
        }
    }
}

fn decode_into(text: &[u8], out: &mut Vec<u8>) -> Option<()> {
    let digits = match text {
        [rest @ .., b'=', b'='] if text.len().is_multiple_of(4) => rest,
        [rest @ .., b'='] if text.len().is_multiple_of(4) => rest,
        all => all,
    };
    out.reserve(digits.len() / 4 * 3 + 2);
    let mut groups = digits.chunks_exact(4);
    for group in &mut groups {
        let [_, high, middle, low] = bits(group)?.to_be_bytes();
        out.extend_from_slice(&[high, middle, low]);
    }
    // Bits behind the last whole byte must be zero: otherwise two texts would mean the same bytes.
    match groups.remainder() {
        [] => {}
        two @ [_, _] => {
            let bits = bits(two)?;
            out.push(u8::try_from(bits >> 4).ok().filter(|_| bits & 0xF == 0)?);
        }
        three @ [_, _, _] => {
            let bits = bits(three)?;
            let [.., high, low] = (bits >> 2).to_be_bytes();
            out.extend_from_slice(Some(&[high, low]).filter(|_| bits & 0x3 == 0)?);
        }
        _ => return None,
    }
    Some(())
}

fn bits(digits: &[u8]) -> Option<u32> {
    let mut bits = 0;
    for digit in digits {
        let value = match digit {
            b'A'..=b'Z' => digit - b'A',
            b'a'..=b'z' => digit - b'a' + 26,
            b'0'..=b'9' => digit - b'0' + 52,
            b'+' | b'-' => 62,
            b'/' | b'_' => 63,
            _ => return None,
        };
        bits = bits << 6 | u32::from(value);
    }
    Some(bits)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn decoded(text: &str) -> Option<Vec<u8>> {
        let mut out = Vec::new();
        decode(text.as_bytes(), &mut out).map(|()| out)
    }

    #[test]
    fn the_vectors_of_rfc_4648_are_read() {
        for (text, bytes) in
            [("", ""), ("Zg==", "f"), ("Zm8=", "fo"), ("Zm9v", "foo"), ("Zm9vYg==", "foob"), ("Zm9vYmFy", "foobar")]
        {
            assert_eq!(decoded(text).as_deref(), Some(bytes.as_bytes()), "{text}");
            assert_eq!(decoded(text.trim_end_matches('=')).as_deref(), Some(bytes.as_bytes()), "{text} unpadded");
        }
        assert_eq!(decoded("-_-_"), Some(vec![0xFB, 0xFF, 0xBF]));
    }

    #[test]
    fn what_is_no_base64_is_refused() {
        for text in ["Z", "Zg=", "Zm9v=", "Zh==", "Zm9=", "Z===", "Zm 9v", "ä"] {
            assert_eq!(decoded(text), None, "{text}");
        }
    }
}
