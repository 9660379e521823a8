//! The source on real files.

use std::io::Write;

use tempfile::TempDir;

use super::*;
use crate::testing::clock::ManualClock;
use crate::testing::source::{conforms, read};

const CSV: Framing = Framing::Csv { header: true, quote: b'"', delimiter: b',' };
const RECORD_BYTES_MAX: usize = 2 * 1024 * 1024;

fn source(folder: &TempDir, framing: Framing, follow: bool) -> FileSource {
    let glob = folder.path().join("*").display().to_string();
    FileSource::new(settings(glob, framing, follow), ManualClock::at(1_700_000_000_000_000))
}

fn settings(glob: String, framing: Framing, follow: bool) -> FileSettings {
    let (name, relative_to, record_bytes_max) = ("files".into(), None, RECORD_BYTES_MAX);
    FileSettings { name, glob, relative_to, follow, framing, record_bytes_max }
}

fn folder(files: &[(&str, Vec<u8>)]) -> TempDir {
    let folder = TempDir::new().unwrap();
    for (name, content) in files {
        std::fs::write(folder.path().join(name), content).unwrap();
    }
    folder
}

fn partition(folder: &TempDir, name: &str) -> String {
    folder.path().join(name).display().to_string()
}

fn gzip(content: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    encoder.write_all(content).unwrap();
    encoder.finish().unwrap()
}

/// Packs content as two members or frames, cut at an odd place.
fn in_two(content: &[u8], pack: impl Fn(&[u8]) -> Vec<u8>) -> Vec<u8> {
    let (first, second) = content.split_at(content.len() / 3);
    [pack(first), pack(second)].concat()
}

fn zstd(content: &[u8]) -> Vec<u8> {
    zstd::encode_all(content, 1).unwrap()
}

fn lines(bytes: usize) -> Vec<u8> {
    let mut lines = Vec::new();
    for n in 0.. {
        if lines.len() >= bytes {
            return lines;
        }
        writeln!(lines, "{{\"n\":{n},\"text\":\"a \\\"quoted\\\" {{ brace\",\"list\":[1,[2]]}}").unwrap();
    }
    lines
}

fn spaced(content: &[u8]) -> String {
    String::from_utf8_lossy(content).replace(|c: char| c.is_ascii_whitespace(), " ")
}

#[tokio::test]
async fn lines_conform_however_they_are_packed() {
    let content = lines(1400 * 1024);
    let files = folder(&[
        ("a.json", content.clone()),
        ("b.json.gz", in_two(&content, gzip)),
        ("c.without-suffix", in_two(&content, zstd)),
        ("d.json", content.strip_suffix(b"\n").unwrap().to_vec()),
        ("e.json", Vec::new()),
        (".hidden", b"half written".to_vec()),
    ]);
    let seen = conforms(|_| async { Box::new(source(&files, Framing::Json, false)) as _ }).await;
    for name in ["a.json", "b.json.gz", "c.without-suffix"] {
        assert!(seen.text(&partition(&files, name)) == spaced(&content), "{name} differs");
    }
    assert_eq!(seen.text(&partition(&files, "d.json")), spaced(&content).trim_end());
    assert_eq!(seen.partitions().len(), 4);
}

#[tokio::test]
async fn documents_over_several_lines_and_arrays_conform() {
    let content = lines(1200 * 1024);
    let documents = String::from_utf8(content.clone()).unwrap().replace(",\"list\"", ",\n  \"list\"");
    let back_to_back = documents.replace("}\n{", "}{").into_bytes();
    let elements = documents.trim_end().replace("}\n{", "} ,\n{");
    let array = format!("\u{feff}[\n{elements}\n]\n");
    let files = folder(&[
        ("array.json", array.clone().into_bytes()),
        ("array.json.gz", gzip(array.as_bytes())),
        ("back-to-back.json", back_to_back.clone()),
        ("documents.json", documents.clone().into_bytes()),
    ]);
    let seen = conforms(|_| async { Box::new(source(&files, Framing::Json, false)) as _ }).await;
    assert!(seen.text(&partition(&files, "documents.json")) == spaced(documents.as_bytes()));
    assert!(seen.text(&partition(&files, "back-to-back.json")) == spaced(&back_to_back));
    let bare = spaced(format!("   [ {elements} ]").replace("} ,\n{", "}  \n{").as_bytes());
    let bare = bare.replacen('[', " ", 1);
    let bare = bare.strip_suffix(" ]").unwrap();
    for name in ["array.json", "array.json.gz"] {
        assert!(seen.text(&partition(&files, name)).trim_end() == bare, "{name} differs");
    }
    assert!(seen.rejects.is_empty());
}

#[tokio::test]
async fn csv_is_cut_outside_quotes_and_keeps_its_header() {
    let header = "\"na\nme\",size\n";
    let mut content = header.to_owned();
    for n in 0..40_000 {
        content.push_str(&format!("\"line {n}\nand \"\"another\"\"\",5\" pipe\r\n"));
    }
    let files = folder(&[
        ("a.csv", content.clone().into_bytes()),
        ("b.csv", in_two(content.as_bytes(), gzip)),
        ("c.csv", header.into()),
    ]);
    let seen = conforms(|_| async { Box::new(source(&files, CSV, false)) as _ }).await;
    let expected = spaced(format!("{}{}", " ".repeat(header.len()), &content[header.len()..]).as_bytes());
    for name in ["a.csv", "b.csv"] {
        assert!(seen.text(&partition(&files, name)) == expected, "{name} differs");
    }
    let mut again = source(&files, CSV, false);
    again.open(&Cut::default()).await.unwrap();
    while let SourceEvent::Chunk(chunk) = again.next().await.unwrap() {
        let crate::batch::Payload::Framed { bytes, header: given, .. } = chunk.payload else { panic!() };
        assert_eq!(given.unwrap(), header.as_bytes());
        assert!(bytes.starts_with(b"\"line ") && bytes.ends_with(b"pipe\r\n"), "a piece is cut within a record");
    }
}

#[tokio::test]
async fn an_oversized_record_costs_only_itself() {
    let good = lines(1024 * 1024);
    let long = [b"{\"x\":\"".to_vec(), vec![b'x'; 3 * RECORD_BYTES_MAX], b"\"}\n".to_vec()].concat();
    let content = [good.clone(), long, good.clone()].concat();
    let files = folder(&[("a.json", content.clone()), ("b.json", gzip(&content))]);
    let seen = conforms(|_| async { Box::new(source(&files, Framing::Json, false)) as _ }).await;
    for name in ["a.json", "b.json"] {
        let text = seen.text(&partition(&files, name));
        assert!(text.starts_with(&spaced(&good)) && text.ends_with(&spaced(&good)));
        assert_eq!(text.matches('x').count() - 2 * spaced(&good).matches('x').count(), RECORD_BYTES_MAX + 1 - 5);
    }
}

#[tokio::test]
async fn a_line_of_many_documents_is_no_oversized_record() {
    let long_line = String::from_utf8(lines(3 * RECORD_BYTES_MAX)).unwrap().replace('\n', "");
    let content = [lines(1000), long_line.into_bytes(), b"\n".to_vec(), lines(1000)].concat();
    let files = folder(&[("a.json", content.clone())]);
    let seen = conforms(|_| async { Box::new(source(&files, Framing::Json, false)) as _ }).await;
    assert!(seen.text(&partition(&files, "a.json")) == spaced(&content));
}

#[tokio::test]
async fn damage_in_one_file_is_rejected_and_the_others_are_read() {
    let content = lines(200_000);
    let packed = gzip(&content);
    let mut flipped = zstd(&content);
    let middle = flipped.len() / 2;
    flipped[middle..].iter_mut().for_each(|byte| *byte = !*byte);
    let files = folder(&[
        ("a.gz", packed[..packed.len() - 100].to_vec()),
        ("b.zst", flipped),
        ("c.json", b"[{\"n\":1},{\"n\":2},".to_vec()),
        ("d.json", content.clone()),
    ]);
    let seen = conforms(|_| async { Box::new(source(&files, Framing::Json, false)) as _ }).await;
    let reasons: Vec<_> = seen.rejects.iter().map(|(_, _, reason)| reason.as_str()).collect();
    assert_eq!(reasons.len(), 3);
    assert!(reasons[0].contains("a.gz: the gzip content ends too early"), "{}", reasons[0]);
    assert!(reasons[1].contains("b.zst: the zstd content is corrupt"), "{}", reasons[1]);
    assert!(reasons[2].contains("c.json: the JSON array is not closed"), "{}", reasons[2]);
    assert!(seen.text(&partition(&files, "a.gz")).len() > 100_000, "what was whole counts");
    assert!(seen.text(&partition(&files, "d.json")) == spaced(&content));
}

#[tokio::test]
async fn a_broken_first_line_costs_no_other() {
    let files = folder(&[("a.json", b"{\"n\": \n{\"n\":1}\n{\"n\":2}\n".to_vec())]);
    let mut source = source(&files, Framing::Json, false);
    let (seen, _) = read(&mut source, &Cut::default()).await;
    assert_eq!(seen.text(&partition(&files, "a.json")), "{\"n\":  {\"n\":1} {\"n\":2} ");
}

#[tokio::test]
async fn a_replaced_file_is_read_anew_and_a_grown_one_is_read_on() {
    let files = folder(&[("a", b"one\n".to_vec()), ("b", b"two\n".to_vec()), ("c.gz", gzip(b"three\n"))]);
    let mut first = source(&files, Framing::Whole, false);
    read(&mut first, &Cut::default()).await;
    let cut = first.cut();
    std::fs::write(files.path().join("a"), b"one\nmore\n").unwrap();
    std::fs::write(files.path().join("b"), b"new\n").unwrap();
    std::fs::write(files.path().join("c.gz"), [gzip(b"three\n"), gzip(b"four\n")].concat()).unwrap();
    let (seen, _) = read(&mut source(&files, Framing::Whole, false), &cut).await;
    assert_eq!(seen.text(&partition(&files, "a")).trim_start(), "more ");
    assert_eq!(seen.text(&partition(&files, "b")), "new ");
    let (rejected, _, reason) = seen.rejects.first().unwrap();
    assert!(rejected.ends_with("c.gz") && reason.contains("changed its size"), "{reason}");
}

#[tokio::test]
async fn follow_waits_for_the_end_of_a_line_and_for_new_files() {
    let files = folder(&[("a", b"one\ntw".to_vec())]);
    let mut follower = source(&files, Framing::Whole, true);
    let (seen, _) = read(&mut follower, &Cut::default()).await;
    assert_eq!(seen.text(&partition(&files, "a")), "one ");
    let mut cut = follower.cut();
    File::options().append(true).open(files.path().join("a")).unwrap().write_all(b"o\nthree").unwrap();
    std::fs::write(files.path().join("b"), b"b\n").unwrap();
    let SourceEvent::Chunk(chunk) = follower.next().await.unwrap() else { panic!("the file grew") };
    let crate::batch::Payload::Framed { offset, bytes, .. } = chunk.payload else { panic!() };
    assert_eq!((offset, bytes.as_ref()), (4, &b"two\n"[..]));
    let SourceEvent::Chunk(chunk) = follower.next().await.unwrap() else { panic!("there is a new file") };
    assert_eq!(&*chunk.partition, partition(&files, "b"));
    cut.fold(&follower.cut());
    let (seen, _) = read(&mut source(&files, Framing::Whole, false), &cut).await;
    assert_eq!(seen.text(&partition(&files, "a")).trim_start(), "three", "a finite run takes the last line");
}

#[tokio::test]
async fn no_match_is_an_error_that_says_the_glob() {
    let files = folder(&[]);
    let error = source(&files, CSV, false).open(&Cut::default()).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Config);
    assert!(error.to_string().contains(&partition(&files, "*")), "{error}");
}

#[tokio::test]
async fn a_folder_that_has_moved_is_not_read_again() {
    let files = folder(&[("1.json", b"{\"n\":1}\n".to_vec()), ("2.json", b"{\"n\":2}\n".to_vec())]);
    let below = |folder: &std::path::Path| {
        let settings = settings(folder.join("*.json").display().to_string(), Framing::Json, false);
        let relative_to = Some(folder.to_owned());
        FileSource::new(FileSettings { relative_to, ..settings }, ManualClock::at(1_700_000_000_000_000))
    };
    let mut source = below(files.path());
    let (seen, _) = read(&mut source, &Cut::default()).await;
    assert_eq!(seen.text("2.json"), "{\"n\":2} ", "a file is named by its path below the folder");
    let moved = TempDir::new().unwrap();
    let moved = moved.path().join("else where");
    std::fs::rename(files.path(), &moved).unwrap();
    std::fs::write(moved.join("3.json"), b"{\"n\":3}\n").unwrap();
    let mut later = below(&moved);
    let (rest, _) = read(&mut later, &source.cut()).await;
    assert_eq!(rest.text("3.json"), "{\"n\":3} ");
    assert!(later.cut().advanced.keys().eq(["3.json"]), "what was read is read again");
}
