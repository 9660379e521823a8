//! What passed and what failed, in the form of JUnit, which build servers show.

use std::fmt::Write;
use std::path::Path;

use super::test::Tried;
use crate::{Error, Result};

/// The cases of one pipeline file.
pub struct Suite {
    /// The file.
    pub file: String,
    /// Its cases.
    pub cases: Vec<Tried>,
}

/// Writes all suites to a file.
pub fn write(suites: &[Suite], path: &Path) -> Result<()> {
    let written = std::fs::write(path, document(suites));
    written.map_err(|e| Error::config(format!("could not write {}", path.display())).because(e))
}

fn document(suites: &[Suite]) -> String {
    let mut xml = String::from("<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n");
    let all = || suites.iter().flat_map(|suite| &suite.cases);
    line(&mut xml, &format!("<testsuites{}>", counts(all())));
    for suite in suites {
        line(&mut xml, &format!("  <testsuite name=\"{}\"{}>", escaped(&suite.file), counts(suite.cases.iter())));
        for case in &suite.cases {
            let seconds = case.took.as_secs_f64();
            let (name, file) = (escaped(&case.name), escaped(&suite.file));
            let head = format!("    <testcase name=\"{name}\" classname=\"{file}\" time=\"{seconds:.3}\"");
            let Some(wrong) = &case.wrong else {
                line(&mut xml, &format!("{head}/>"));
                continue;
            };
            let (summary, text) = (escaped(&wrong.summary()), escaped(&wrong.text(false)));
            line(&mut xml, &format!("{head}>\n      <failure message=\"{summary}\">{text}</failure>\n    </testcase>"));
        }
        line(&mut xml, "  </testsuite>");
    }
    line(&mut xml, "</testsuites>");
    xml
}

fn counts<'a>(cases: impl Iterator<Item = &'a Tried> + Clone) -> String {
    let failed = cases.clone().filter(|case| case.wrong.is_some()).count();
    let seconds: f64 = cases.clone().map(|case| case.took.as_secs_f64()).sum();
    format!(" tests=\"{}\" failures=\"{failed}\" errors=\"0\" time=\"{seconds:.3}\"", cases.count())
}

fn line(xml: &mut String, text: &str) {
    // A text takes whatever is written to it.
    let _ = writeln!(xml, "{text}");
}

/// Writes a text as XML takes it: characters that XML has no way to write become a replacement.
fn escaped(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => escaped.push_str("&amp;"),
            '<' => escaped.push_str("&lt;"),
            '>' => escaped.push_str("&gt;"),
            '"' => escaped.push_str("&quot;"),
            '\n' | '\t' => escaped.push(c),
            c if c.is_control() || matches!(c, '\u{fffe}' | '\u{ffff}') => escaped.push(char::REPLACEMENT_CHARACTER),
            c => escaped.push(c),
        }
    }
    escaped
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::cli::test::Wrong;

    #[test]
    fn a_document_counts_and_escapes() {
        let case = |name: &str, wrong| Tried { name: name.into(), took: Duration::from_millis(12), wrong };
        let stopped = Wrong::Stopped(Error::config("a < b & \"c\"\u{1b}"));
        let suites = [Suite { file: "a.yaml".into(), cases: vec![case("one", None), case("two", Some(stopped))] }];
        let wanted = "<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n\
            <testsuites tests=\"2\" failures=\"1\" errors=\"0\" time=\"0.024\">\n  \
            <testsuite name=\"a.yaml\" tests=\"2\" failures=\"1\" errors=\"0\" time=\"0.024\">\n    \
            <testcase name=\"one\" classname=\"a.yaml\" time=\"0.012\"/>\n    \
            <testcase name=\"two\" classname=\"a.yaml\" time=\"0.012\">\n      \
            <failure message=\"a &lt; b &amp; &quot;c&quot;\u{fffd}\">    the pipeline stopped: a &lt; b &amp; \
            &quot;c&quot;\u{fffd}</failure>\n    </testcase>\n  </testsuite>\n</testsuites>\n";
        assert_eq!(document(&suites), wanted);
    }
}
