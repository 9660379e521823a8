//! What DataFusion says of SQL, in the words of a pipeline file.

use std::borrow::Cow;

use datafusion::common::utils::quote_identifier;
use datafusion::common::{Column, SchemaError};
use datafusion::error::DataFusionError;
use nexus_operators::transform::functions::Function;

use crate::spec::{is_part, offset_of, suggest};

/// What the words of a query are held against where a parser did not expect them; of those that are equally near, the
/// first is meant.
const KEYWORDS: [&str; 18] = [
    "SELECT", "FROM", "WHERE", "GROUP", "JOIN", "HAVING", "UNION", "WITH", "LEFT", "ORDER", "AND", "CASE", "WHEN",
    "NULL", "BETWEEN", "DISTINCT", "INTERVAL", "VALUES",
];

/// Ways to call a function that are named: what fits a line or two of a terminal.
const CALLS_MAX: usize = 6;

/// What is wrong with SQL.
#[derive(Debug)]
pub struct Told {
    /// What is wrong.
    pub message: String,
    /// What to try.
    pub hint: Option<String>,
    /// Line and column, from 1.
    pub at: Option<(usize, usize)>,
}

impl Told {
    /// Says what is wrong.
    pub fn new(message: impl Into<String>) -> Self {
        Self { message: message.into(), hint: None, at: None }
    }

    fn with_hint(self, hint: Option<String>) -> Self {
        Self { hint, ..self }
    }

    /// Gives what DataFusion says.
    pub fn of(error: &DataFusionError) -> Self {
        let told = match error.find_root() {
            DataFusionError::Collection(all) => return all.first().map_or_else(|| Self::of_text(error), Self::of),
            DataFusionError::SchemaError(wrong, _) => of_schema(wrong),
            _ => Self::of_text(error),
        };
        Self { at: place(error), ..told }
    }

    fn of_text(error: &DataFusionError) -> Self {
        let text = match error.find_root() {
            DataFusionError::SQL(parser, _) => parser.to_string(),
            root => root.strip_backtrace(),
        };
        let text = plain(&text);
        let told = unexpected(text).or_else(|| function(text)).or_else(|| no_key(text));
        let told = told.or_else(|| no_condition(text)).or_else(|| same_name(text));
        told.unwrap_or_else(|| Self::new(uncapital(text)))
    }

    /// Looks in the SQL for what is still open: where it is wrong, and which keyword was meant.
    #[must_use]
    pub fn within(mut self, sql: &str) -> Self {
        self.at = self.at.or_else(|| named(&self.message).find_map(|word| only_place(sql, word)));
        if let (None, Some(at)) = (&self.hint, self.at)
            && self.message.starts_with("expected ")
        {
            // A keyword that is misspelt is often taken for a name, and what follows it is not expected.
            let met = offset_of(sql, at.0, at.1);
            let words = words(sql).into_iter().rev().skip_while(|(start, _)| *start > met).map(|(_, word)| word);
            let misspelt = words.take(2).find_map(|word| {
                let meant = suggest::nearest(word, KEYWORDS)?;
                (!meant.eq_ignore_ascii_case(word)).then_some(meant)
            });
            self.hint = misspelt.map(|meant| format!("did you mean `{meant}`?"));
        }
        self
    }

    /// Gives it as one text.
    pub fn text(self) -> String {
        match self.hint {
            Some(hint) => format!("{}; {hint}", self.message),
            None => self.message,
        }
    }
}

/// Finds a word that stands in SQL once, apart from its texts and comments; gives its line and column, from 1.
pub fn only_place(sql: &str, word: &str) -> Option<(usize, usize)> {
    let is_it = |part: &str| part.trim_matches('"').eq_ignore_ascii_case(word);
    let stands = |there: &str| is_it(there) || there.rsplit('.').next().is_some_and(is_it);
    let mut found = words(sql).into_iter().filter(|(_, there)| stands(there));
    let (start, _) = found.next()?;
    let before = sql.get(..start).filter(|_| found.next().is_none())?;
    let line_start = before.rfind('\n').map_or(0, |end| end + 1);
    Some((1 + before.matches('\n').count(), 1 + before.get(line_start..)?.chars().count()))
}

/// Gives what a text puts between backticks, each name whole and then its last part.
pub fn named(text: &str) -> impl Iterator<Item = &str> {
    let quoted = text.split('`').skip(1).step_by(2);
    quoted.flat_map(|name| [name, name.rsplit('.').next().unwrap_or(name)])
}

/// Gives the keywords of SQL in a sentence: they are in capitals.
pub fn keywords(text: &str) -> impl Iterator<Item = &str> {
    let is_capital = |word: &&str| word.len() > 1 && word.bytes().all(|byte| byte.is_ascii_uppercase());
    text.split(|c: char| !c.is_alphanumeric()).filter(is_capital)
}

/// Cuts off the layers that mean nothing to the user.
fn plain(text: &str) -> &str {
    let prefixes = [
        "SQL error: ",
        "sql parser error: ",
        "Error during planning: ",
        "Schema error: ",
        "Internal error: ",
        "Arrow error: ",
        "Parser error: ",
    ];
    let mut text = text;
    while let Some(rest) = prefixes.iter().find_map(|prefix| text.strip_prefix(prefix)) {
        text = rest;
    }
    text.split(" at Line: ").next().unwrap_or(text).trim_end_matches(['.', '\n', ' '])
}

fn of_schema(wrong: &SchemaError) -> Told {
    match wrong {
        SchemaError::FieldNotFound { field, valid_fields } => {
            let message = format!("there is no column `{}`", field.flat_name());
            Told::new(message).with_hint(nearest_column(field, valid_fields))
        }
        SchemaError::AmbiguousReference { field } => {
            let told = Told::new(format!("more than one input has a column `{}`", field.name()));
            told.with_hint(Some("say whose is meant, such as `a.name`".to_owned()))
        }
        SchemaError::DuplicateQualifiedField { name, .. } | SchemaError::DuplicateUnqualifiedField { name } => {
            Told::new(format!("two columns are named `{name}`")).with_hint(Some("give one another name with AS".into()))
        }
    }
}

/// Says which column is probably meant, or which there are. What Nexus adds is left out.
fn nearest_column(field: &Column, valid: &[Column]) -> Option<String> {
    let of_table: Vec<&Column> = valid.iter().filter(|column| column.relation == field.relation).collect();
    let whole = field.relation.is_some() && of_table.is_empty();
    let among: Vec<&Column> = if of_table.is_empty() { valid.iter().collect() } else { of_table };
    let name_of = |column: &&Column| if whole { column.flat_name() } else { column.name().to_owned() };
    let wanted = if whole { field.flat_name() } else { field.name().to_owned() };
    let mut names: Vec<String> = among.iter().map(name_of).collect();
    if let Some(meant) = suggest::nearest(&wanted, names.iter().map(String::as_str)) {
        let quoted = if whole { Cow::Borrowed(meant) } else { quote_identifier(meant) };
        return Some(format!("did you mean `{quoted}`?"));
    }
    let is_added = |name: &String| name.rsplit('.').next().is_some_and(|name| name.starts_with('_'));
    names.retain(|name| !is_added(name));
    suggest::available(names.iter().map(String::as_str))
}

/// Says what the parser has met in place of what can stand there.
fn unexpected(text: &str) -> Option<Told> {
    let (expected, found) = text.strip_prefix("Expected: ")?.split_once(", found: ")?;
    let found = if found == "EOF" { "the end".to_owned() } else { format!("`{found}`") };
    Some(Told::new(format!("expected {expected}, found {found}")))
}

/// Says what is wrong with a call.
fn function(text: &str) -> Option<Told> {
    if let Some(name) = text.strip_prefix("Invalid function '").and_then(|rest| rest.split('\'').next()) {
        let nearest = text.split("Did you mean '").nth(1).and_then(|rest| rest.split('\'').next());
        let nearest = nearest.and_then(|meant| suggest::nearest(name, [meant]));
        let hint = nearest.map(|meant| format!("did you mean `{meant}`?"));
        return Some(Told::new(format!("there is no function `{name}`")).with_hint(hint));
    }
    let (said, rest) = text.split_once("No function matches the given name and argument types '")?;
    if let Some(usage) = own_usage(said) {
        return Some(Told::new(usage));
    }
    let (call, rest) = rest.split_once("'. ")?;
    let (name, arguments) = call.split_once('(')?;
    let takes = rest.split_once("Candidate functions:").map_or("", |(_, takes)| takes).split('\n').map(str::trim);
    let takes = takes.filter(|takes| !takes.is_empty()).map(types).collect::<Vec<_>>();
    let more = if takes.len() > CALLS_MAX { ", ..." } else { "" };
    let listed = takes.get(..CALLS_MAX).unwrap_or(&takes).join(", ");
    let hint = (!takes.is_empty()).then(|| format!("cast its arguments; there are {listed}{more}"));
    Some(Told::new(format!("`{name}` does not take ({}", types(arguments))).with_hint(hint))
}

/// Gives what a function of Nexus says of its arguments.
fn own_usage(said: &str) -> Option<&str> {
    let (call, usage) = said.split_once(" user-defined coercion failed with: ")?;
    let name = call.rsplit('\'').nth(1)?;
    let is_own = Function::ALL.into_iter().any(|function| function.name() == name);
    is_own.then(|| plain(usage.trim()))
}

/// Writes types as a pipeline file does.
fn types(text: &str) -> String {
    ["LargeUtf8", "Utf8View", "Utf8"]
        .iter()
        .fold(text.to_owned(), |text, name| text.replace(name, "string"))
        .to_lowercase()
}

/// Says which column is neither grouped by nor aggregated.
fn no_key(text: &str) -> Option<Told> {
    let (_, rest) = text.split_once("column \"")?;
    let (name, _) = rest.split_once("\" must appear in the GROUP BY clause")?;
    let told = Told::new(format!("the column `{name}` is neither in GROUP BY nor in an aggregate"));
    let bare = name.rsplit('.').next().unwrap_or(name);
    Some(told.with_hint(Some(format!("add it to GROUP BY, or aggregate it, such as `max({bare})`"))))
}

/// Says what stands in the place of a condition.
fn no_condition(text: &str) -> Option<Told> {
    let (_, rest) = text.split_once("non-boolean predicate '")?;
    let (what, data_type) = rest.split_once("' returning ")?;
    Some(Told::new(format!("a condition is true or false, and `{what}` is of type {}", types(data_type))))
}

/// Says which name two columns have.
fn same_name(text: &str) -> Option<Told> {
    let (first, _) = text.strip_suffix("one of them")?.split_once("\" at position ")?;
    let column = first.rsplit_once("expression \"")?.1;
    let name = column.rsplit(" AS ").next().unwrap_or(column).rsplit('.').next()?;
    Some(Told::new(format!("two columns are named `{name}`")).with_hint(Some("give one another name with AS".into())))
}

/// Writes a sentence in one line, as Nexus writes them.
fn uncapital(text: &str) -> String {
    let text = text.split("This issue was likely caused by a bug").next().unwrap_or(text);
    let mut line = text.split_whitespace().collect::<Vec<_>>().join(" ");
    // Of an abbreviation, the second letter is large too.
    if !line.chars().nth(1).is_some_and(char::is_uppercase)
        && let Some(first) = line.get_mut(..1)
    {
        first.make_ascii_lowercase();
    }
    line.trim_end_matches(['.', ' ']).to_owned()
}

/// Finds the line and column that an error names.
fn place(error: &DataFusionError) -> Option<(usize, usize)> {
    if let Some(span) = error.diagnostic().and_then(|diagnostic| diagnostic.span) {
        let at = |number: u64| usize::try_from(number).ok();
        return Some((at(span.start.line)?, at(span.start.column)?));
    }
    let text = error.to_string();
    let (_, rest) = text.split_once(" at Line: ")?;
    let (line, rest) = rest.split_once(", Column: ")?;
    let column: String = rest.chars().take_while(char::is_ascii_digit).collect();
    Some((line.parse().ok()?, column.parse().ok()?))
}

/// Gives the words of SQL with their offsets in bytes, apart from its texts and comments.
fn words(sql: &str) -> Vec<(usize, &str)> {
    let mut found = Vec::new();
    let mut rest = sql;
    while let Some(c) = rest.chars().next() {
        let upto = |end: Option<usize>, more: usize| end.map_or(rest.len(), |end| end + more);
        let taken = match c {
            '\'' => upto(rest.strip_prefix('\'').and_then(|text| text.find('\'')), 2),
            '-' if rest.starts_with("--") => upto(rest.find('\n'), 1),
            '/' if rest.starts_with("/*") => upto(rest.find("*/"), 2),
            c if is_part(c) => {
                let width = upto(rest.find(|c| !is_part(c)), 0);
                found.push((sql.len() - rest.len(), rest.get(..width).unwrap_or_default()));
                width
            }
            c => c.len_utf8(),
        };
        rest = rest.get(taken..).unwrap_or_default();
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_word_is_found_where_it_stands_alone() {
        let sql = "SELECT o.id, -- amount\n  'amount' AS x, \"amount\" FROM o";
        assert_eq!(only_place(sql, "amount"), Some((2, 18)));
        assert_eq!(only_place(sql, "id"), Some((1, 8)));
        assert_eq!(only_place(sql, "FROM"), Some((2, 27)));
        assert_eq!(only_place("SELECT a, a", "a"), None);
        assert_eq!(only_place("SELECT 'not ended", "ended"), None);
        assert_eq!(only_place("SELECT /* not ended", "ended"), None);
    }

    #[test]
    fn a_misspelt_keyword_is_seen_at_what_follows_it() {
        let told = |message: &str, sql: &str, at| Told { at: Some(at), ..Told::new(message) }.within(sql).hint;
        let hint = told("expected end of statement, found `x`", "SELECT id FROM o WHER x", (1, 23));
        assert_eq!(hint.as_deref(), Some("did you mean `WHERE`?"));
        assert_eq!(told("expected end of statement, found `x`", "SELECT id FROM o WHERE x", (1, 24)), None);
    }

    #[test]
    fn sentences_are_those_of_nexus() {
        assert_eq!(uncapital("Cannot  do\n\tthis. This issue was likely caused by a bug in it."), "cannot do this");
        assert_eq!(uncapital("UNION needs two"), "UNION needs two");
        assert_eq!(uncapital("É"), "É");
    }
}
