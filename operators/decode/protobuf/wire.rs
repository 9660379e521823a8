//! The wire format of Protocol Buffers (protobuf.dev, "Encoding").

/// Fields of one message, so that a few bytes do not become many times as much memory: a message of 10 MiB may have five
/// million of two bytes, each of which takes 32 here.
const FIELDS_MAX: usize = 1 << 20;

/// Most bytes of a variable number.
const VARINT_BYTES_MAX: usize = 10;

/// A field's value as it stands in the bytes.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) enum Wire<'a> {
    Varint(u64),
    Fixed64(u64),
    Fixed32(u32),
    Bytes(&'a [u8]),
}

/// Reads a variable number and its length; nothing if it is cut off or has more than 64 bits.
pub(super) fn varint(bytes: &[u8]) -> Option<(u64, usize)> {
    let mut value = 0_u64;
    for (at, byte) in bytes.iter().enumerate().take(VARINT_BYTES_MAX) {
        let bits = u64::from(byte & 0x7f);
        if at == VARINT_BYTES_MAX - 1 && bits > 1 {
            return None;
        }
        value |= bits << (7 * at);
        if byte & 0x80 == 0 {
            return Some((value, at + 1));
        }
    }
    None
}

/// Reads the fields of a message, ordered by their numbers; those of one number stay in their order.
pub(super) fn fields(bytes: &[u8]) -> Result<Vec<(u32, Wire<'_>)>, String> {
    let mut found = Vec::new();
    let mut left = bytes;
    while !left.is_empty() {
        if found.len() >= FIELDS_MAX {
            return Err(format!("a message has more than {FIELDS_MAX} fields"));
        }
        let key = take_varint(&mut left)?;
        let number = u32::try_from(key >> 3).ok().filter(|number| (1..1 << 29).contains(number));
        let number = number.ok_or_else(|| format!("it has a field of number {}", key >> 3))?;
        found.push((number, take(&mut left, key & 7)?));
    }
    found.sort_by_key(|(number, _)| *number);
    Ok(found)
}

/// Reads one value of a wire type.
pub(super) fn take<'a>(left: &mut &'a [u8], wire_type: u64) -> Result<Wire<'a>, String> {
    Ok(match wire_type {
        0 => Wire::Varint(take_varint(left)?),
        1 => Wire::Fixed64(u64::from_le_bytes(take_array(left)?)),
        2 => {
            let len = usize::try_from(take_varint(left)?).map_err(|_| "a length has more than 64 bits")?;
            let (value, behind) = left.split_at_checked(len).ok_or("it ends within a field")?;
            *left = behind;
            Wire::Bytes(value)
        }
        5 => Wire::Fixed32(u32::from_le_bytes(take_array(left)?)),
        3 | 4 => return Err("it has a group of proto2, which is not read".into()),
        other => return Err(format!("it has a field of wire type {other}")),
    })
}

fn take_varint(left: &mut &[u8]) -> Result<u64, String> {
    let (value, len) = varint(left).ok_or("it ends within a number")?;
    *left = left.get(len..).unwrap_or_default();
    Ok(value)
}

fn take_array<const LEN: usize>(left: &mut &[u8]) -> Result<[u8; LEN], String> {
    let (value, behind) = left.split_first_chunk().ok_or("it ends within a field")?;
    *left = behind;
    Ok(*value)
}
