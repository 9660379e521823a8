//! The beginning of a file, decompressed: what columns are inferred from.

use std::fs::File;
use std::io::{BufRead, BufReader, ErrorKind, Read};
use std::path::PathBuf;

use bytes::Bytes;

use super::framed::Input;
use crate::error::{Error, Result};
use crate::framing::Framing;

/// Reads up to `bytes_max` bytes of the first file that an absolute glob matches, decompressed; a Parquet file is
/// read whole, since its columns stand at its end.
pub fn sample(pattern: &str, framing: Framing, bytes_max: usize) -> Result<Bytes> {
    let first = first(pattern)?;
    let reading = || format!("could not read {}", first.display());
    let failed = |e: std::io::Error| Error::from(e).while_doing(reading());
    unpacked(BufReader::new(File::open(&first).map_err(failed)?), framing, bytes_max).map_err(failed)
}

/// The same of what has been opened.
pub async fn sample_of(input: &Input, framing: Framing, bytes_max: usize) -> Result<Bytes> {
    let size = usize::try_from(input.size()?).unwrap_or(usize::MAX);
    let raw = input.read_at(0, if framing == Framing::Parquet { size } else { size.min(bytes_max) }).await?;
    Ok(unpacked(raw.as_ref(), framing, bytes_max)?)
}

/// Reads content, decompressed, as far as it goes: packed content may have been cut short.
fn unpacked(mut packed: impl BufRead, framing: Framing, bytes_max: usize) -> std::io::Result<Bytes> {
    let mut content = Vec::new();
    if framing == Framing::Parquet {
        packed.read_to_end(&mut content)?;
        return Ok(content.into());
    }
    let mut magic = Vec::new();
    packed.by_ref().take(4).read_to_end(&mut magic)?;
    let whole = std::io::Cursor::new(magic.clone()).chain(packed);
    let limit = bytes_max as u64;
    let read = match magic.as_slice() {
        [0x1f, 0x8b, ..] => flate2::bufread::MultiGzDecoder::new(whole).take(limit).read_to_end(&mut content),
        [0x28, 0xb5, 0x2f, 0xfd] => {
            zstd::stream::read::Decoder::with_buffer(whole)?.take(limit).read_to_end(&mut content)
        }
        _ => whole.take(limit).read_to_end(&mut content),
    };
    match read {
        Err(e) if e.kind() == ErrorKind::UnexpectedEof && !content.is_empty() => Ok(content.into()),
        Err(e) => Err(e),
        Ok(_) => Ok(content.into()),
    }
}

fn first(pattern: &str) -> Result<PathBuf> {
    let paths = glob::glob(pattern).map_err(|e| Error::config(format!("`{pattern}` is not a glob")).because(e))?;
    let mut files: Vec<_> = paths.filter_map(std::result::Result::ok).filter(|path| path.is_file()).collect();
    files.sort();
    files.into_iter().next().ok_or_else(|| Error::config(format!("no file matches {pattern}")))
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    #[test]
    fn the_first_file_is_sampled_decompressed() {
        let folder = tempfile::tempdir().unwrap();
        let mut gz = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        gz.write_all(b"a,b\n1,2\n").unwrap();
        std::fs::write(folder.path().join("1.csv.gz"), gz.finish().unwrap()).unwrap();
        std::fs::write(folder.path().join("2.csv"), b"other").unwrap();
        let pattern = format!("{}/*", folder.path().display());
        let framing = Framing::Csv { header: true, delimiter: b',', quote: b'"' };
        assert_eq!(sample(&pattern, framing, 1000).unwrap(), "a,b\n1,2\n");
        assert_eq!(sample(&pattern, framing, 3).unwrap(), "a,b");
    }

    #[test]
    fn a_glob_without_files_says_so() {
        let error = sample("/nowhere/*.csv", Framing::Json, 10).unwrap_err();
        assert_eq!(error.to_string(), "no file matches /nowhere/*.csv");
    }
}
