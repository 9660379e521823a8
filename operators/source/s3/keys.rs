//! Keys that `object_store` cannot name.
//!
//! A [`Path`] has no empty parts: it drops slashes at both ends, and refuses two in a row. To S3 such keys are others
//! than those without, and people have them. Within this process a character that no text has stands for an empty part;
//! requests and listings are rewritten on their way.

use std::borrow::Cow;

use object_store::path::Path;

/// Stands for an empty part: a code point that Unicode keeps out of all texts.
const EMPTY: &str = "\u{fdd0}";

/// The same in a URI.
const EMPTY_IN_URI: &str = "%EF%B7%90";

/// Gives the path of a key; nothing if it has parts that no HTTP client sends as they are (`.` and `..`), or control
/// characters.
pub fn path_of(key: &str) -> Option<Path> {
    Path::parse(filled(key)).ok().filter(|_| !key.contains(EMPTY))
}

/// Gives the key of a path.
pub fn key_of(path: &Path) -> String {
    path.as_ref().replace(EMPTY, "")
}

/// Gives the URI that S3 is to see; nothing if it is this one.
pub fn in_uri(uri: &str) -> Option<String> {
    uri.contains(EMPTY_IN_URI).then(|| uri.replace(EMPTY_IN_URI, ""))
}

/// Makes keys of a listing (`ListObjectsV2`) such that paths can name them, and leaves those out that none can.
pub fn in_listing(xml: &str) -> String {
    let mut out = String::with_capacity(xml.len());
    let mut rest = xml;
    while let Some((before, (object, behind))) =
        rest.split_once("<Contents>").and_then(|(before, rest)| Some((before, rest.split_once("</Contents>")?)))
    {
        out.push_str(before);
        rest = behind;
        let key = object.split_once("<Key>").and_then(|(head, tail)| Some((head, tail.split_once("</Key>")?)));
        let Some((head, (key, tail))) = key else { continue };
        let filled = filled(key);
        // S3 writes a control character as its number.
        if key.contains("&#") || Path::parse(&*filled).is_err() {
            tracing::warn!(
                key,
                "left out a key of a listing: keys with `.` and `..` parts or control characters cannot be read"
            );
            continue;
        }
        out.extend(["<Contents>", head, "<Key>", &filled, "</Key>", tail, "</Contents>"]);
    }
    out.push_str(rest);
    out
}

/// Fills the empty parts of a key.
fn filled(key: &str) -> Cow<'_, str> {
    if !(key.contains("//") || key.starts_with('/') || key.ends_with('/')) {
        return key.into();
    }
    let parts: Vec<_> = key.split('/').map(|part| if part.is_empty() { EMPTY } else { part }).collect();
    parts.join("/").into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_stands_for_one_key() {
        for key in ["a", "a/b", "a//b", "a///b", "/a", "//a", "a/", "a//", "/", "ü ö/+%20", "a.b/..c"] {
            let path = path_of(key).expect(key);
            assert_eq!(key_of(&path), key);
            let uri = format!(
                "http://s/b/{}?list-type=2&prefix=x",
                percent_encoding::utf8_percent_encode(path.as_ref(), percent_encoding::NON_ALPHANUMERIC)
            );
            let sent = in_uri(&uri).unwrap_or(uri);
            let sent = sent.trim_start_matches("http://s/b/").split('?').next().unwrap();
            assert_eq!(percent_encoding::percent_decode_str(sent).decode_utf8().unwrap(), key);
        }
        for key in ["a/./b", "..", "a\u{1}", "a/\u{fdd0}/b"] {
            assert_eq!(path_of(key), None, "{key}");
        }
    }

    #[test]
    fn a_listing_names_its_keys_by_paths() {
        let object = |key: &str| format!("<Contents><Key>{key}</Key><Size>1</Size></Contents>");
        let keys = ["a", "a//b", "a/../b", "a/", "/&amp;", "&#x1;", "z"];
        let xml = format!("<R><Name>n//n</Name>{}<Next>a//b</Next></R>", keys.map(object).concat());
        let kept = ["a", "a/\u{fdd0}/b", "a/\u{fdd0}", "\u{fdd0}/&amp;", "z"];
        let expected = format!("<R><Name>n//n</Name>{}<Next>a//b</Next></R>", kept.map(object).concat());
        assert_eq!(in_listing(&xml), expected);
        for broken in ["", "<Contents>", "<Contents><Key>a</Contents>", "<Contents></Contents><Key>"] {
            in_listing(broken);
        }
    }
}
