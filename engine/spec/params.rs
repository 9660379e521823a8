//! Parameters: typed defaults, `--set name=value`, and `${name}` in every text
//! outside `params:`. `$${` writes `${` itself. Environment variables are never
//! read: what a file means follows from the file and the command line.

use std::collections::{BTreeMap, BTreeSet};

use super::codes;
use super::diagnostic::Diagnostic;
use super::source::{Extent, SourceText};
use super::suggest;
use super::yaml::{Node, Plain, Scalar, Substitution};

/// The largest text after substitution, so that a long value used often does not fill the memory.
const TEXT_BYTES_MAX: usize = 4 * 1024 * 1024;

/// How many mistakes are reported of one text: enough to see what is meant, and a bound on the work.
const MISTAKES_MAX: usize = 20;

/// The parameters with their values.
#[derive(Debug, Clone, Default)]
pub struct Params {
    values: BTreeMap<String, Value>,
    used: BTreeSet<String>,
}

#[derive(Debug, Clone)]
struct Value {
    text: String,
    overridden: bool,
    /// Where the parameter is declared.
    key: Extent,
}

/// What is wrong with a text that holds `${`.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Mistake {
    /// The code.
    code: &'static str,
    /// What is wrong.
    message: String,
    /// What to try.
    hint: Option<String>,
    /// Where in the text, in bytes.
    offset: usize,
    /// How many characters are at fault.
    width: usize,
}

impl Params {
    /// Reads `params:` of a file and puts the overrides over the defaults.
    pub fn read(
        root: &Node,
        source: &SourceText,
        overrides: &[(String, String)],
        found: &mut Vec<Diagnostic>,
    ) -> Params {
        let mut params = Params::default();
        let mut types = BTreeMap::new();
        for entry in root.get("params").map_or(&[][..], Node::entries) {
            // What is no scalar is reported by the schema.
            let Some(scalar) = entry.value.scalar() else { continue };
            let value = Value { text: scalar.text.clone(), overridden: false, key: entry.place };
            params.values.insert(entry.key.clone(), value);
            types.insert(entry.key.clone(), scalar);
        }
        for (name, text) in overrides {
            let given = format!("{name}={text}");
            let Some((value, default)) = params.values.get_mut(name).zip(types.get(name)) else {
                let error = Diagnostic::error(
                    codes::UNKNOWN_OVERRIDE,
                    source.file(),
                    format!("`--set {given}` names a parameter that the file does not have"),
                );
                let hint = suggest::hint(name, params.values.keys().map(String::as_str));
                found.push(error.with_hint(hint.unwrap_or_else(|| "declare it under `params:`".into())));
                continue;
            };
            match fits(default, text) {
                Ok(()) => (value.text, value.overridden) = (text.clone(), true),
                Err(wanted) => found.push(
                    Diagnostic::error(
                        codes::OVERRIDE_TYPE,
                        source.file(),
                        format!("`--set {given}` does not give {wanted}"),
                    )
                    .at(default.place, source.line(default.place.line))
                    .with_hint(format!("the parameter's default is {wanted}, so its value must be one")),
                ),
            }
        }
        params
    }

    /// Puts values in the place of `${name}` in every scalar outside `params:`.
    pub fn substitute(&mut self, root: &mut Node, source: &SourceText, found: &mut Vec<Diagnostic>) {
        let Node::Map { entries, .. } = root else { return };
        for entry in entries.iter_mut().filter(|e| e.key != "params") {
            self.substitute_below(&mut entry.value, source, found);
        }
    }

    fn substitute_below(&mut self, node: &mut Node, source: &SourceText, found: &mut Vec<Diagnostic>) {
        match node {
            Node::Map { entries, .. } => {
                entries.iter_mut().for_each(|e| self.substitute_below(&mut e.value, source, found));
            }
            Node::List { items, .. } => items.iter_mut().for_each(|i| self.substitute_below(i, source, found)),
            Node::Scalar(scalar) => self.substitute_scalar(scalar, source, found),
        }
    }

    /// Puts values in the place of `${name}` in one scalar.
    pub(super) fn substitute_scalar(&mut self, scalar: &mut Scalar, source: &SourceText, found: &mut Vec<Diagnostic>) {
        match self.fill(&scalar.text) {
            Ok((text, substituted)) => {
                if text != scalar.text {
                    scalar.written = Some(std::mem::replace(&mut scalar.text, text));
                }
                scalar.substituted = substituted;
            }
            Err(mistakes) => found.extend(mistakes.into_iter().map(|m| {
                let place = Extent { width: m.width, ..scalar.place_of(source, m.offset) };
                let error = Diagnostic::error(m.code, source.file(), m.message).at(place, source.line(place.line));
                Diagnostic { hint: m.hint, ..error }
            })),
        }
    }

    /// Gives a text with values in the place of `${name}`, and where they are.
    fn fill(&mut self, text: &str) -> Result<(String, Vec<Substitution>), Vec<Mistake>> {
        let mut filled = String::with_capacity(text.len());
        let mut substituted = Vec::new();
        let mut mistakes = Vec::new();
        let mut at = 0;
        while let Some(dollar) = text[at..].find('$').map(|n| at + n) {
            filled.push_str(&text[at..dollar]);
            let rest = &text[dollar..];
            if rest.starts_with("$${") {
                // The escape is noted as a substitution, so that what follows keeps its place.
                let (offset, bytes) = (filled.len(), 2);
                substituted.push(Substitution {
                    offset,
                    bytes,
                    written_offset: dollar,
                    written_bytes: 3,
                    overridden: false,
                });
                filled.push_str("${");
                at = dollar + 3;
                continue;
            }
            let Some(behind) = rest.strip_prefix("${") else {
                filled.push('$');
                at = dollar + 1;
                continue;
            };
            match self.look_up(behind) {
                Ok((name, value)) if filled.len() + value.text.len() <= TEXT_BYTES_MAX => {
                    substituted.push(Substitution {
                        offset: filled.len(),
                        bytes: value.text.len(),
                        written_offset: dollar,
                        written_bytes: name.len() + 3,
                        overridden: value.overridden,
                    });
                    filled.push_str(&value.text);
                    at = dollar + name.len() + 3;
                    let name = name.to_owned();
                    self.used.insert(name);
                }
                Ok((name, _)) => {
                    let message =
                        format!("the text is too long with `${{{name}}}` put in: at most {TEXT_BYTES_MAX} bytes");
                    let width = name.chars().count() + 3;
                    mistakes.push(Mistake { code: codes::TOO_LARGE, message, hint: None, offset: dollar, width });
                    return Err(mistakes);
                }
                Err(mistake) => {
                    mistakes.push(Mistake { offset: dollar, ..mistake });
                    if mistakes.len() == MISTAKES_MAX {
                        return Err(mistakes);
                    }
                    at = dollar + 2;
                }
            }
        }
        filled.push_str(&text[at..]);
        if mistakes.is_empty() { Ok((filled, substituted)) } else { Err(mistakes) }
    }

    /// Finds the parameter whose name and `}` stand at the start of `behind`.
    fn look_up<'a>(&self, behind: &'a str) -> Result<(&'a str, &Value), Mistake> {
        let mistake =
            |code, message: String, hint: Option<String>, width| Mistake { code, message, hint, offset: 0, width };
        let name = behind.split('}').next().unwrap_or_default();
        let is_name = |c: char| c.is_alphanumeric() || matches!(c, '_' | '-' | '.');
        if name.len() == behind.len() || name.is_empty() || !name.chars().all(is_name) {
            let hint = "write `${name}` for a parameter, and `$${` for the text `${`".to_owned();
            let message = "`${` is not followed by a name and `}`".to_owned();
            return Err(mistake(codes::BAD_SUBSTITUTION, message, Some(hint), 2));
        }
        match self.values.get(name) {
            Some(value) => Ok((name, value)),
            None => {
                let hint = suggest::hint(name, self.values.keys().map(String::as_str));
                let hint = hint.unwrap_or_else(|| format!("declare it: `params: {{ {name}: ... }}`"));
                let message = format!("there is no parameter `{name}`");
                Err(mistake(codes::UNKNOWN_PARAM, message, Some(hint), name.chars().count() + 3))
            }
        }
    }

    /// Warns of the parameters that no text has used up to now.
    pub fn unused(&self, source: &SourceText) -> Vec<Diagnostic> {
        let unused = self.values.iter().filter(|(name, _)| !self.used.contains(*name));
        unused
            .map(|(name, value)| {
                Diagnostic::error(codes::UNUSED_PARAM, source.file(), format!("the parameter `{name}` is not used"))
                    .as_warning()
                    .at(value.key, source.line(value.key.line))
                    .with_hint(format!("use it as `${{{name}}}`, or remove it"))
            })
            .collect()
    }
}

/// Tells whether `text` is of the type of `default`; if not, what it would have to be.
fn fits(default: &Scalar, text: &str) -> Result<(), &'static str> {
    let given = Scalar { text: text.to_owned(), style: saphyr_parser::ScalarStyle::Plain, ..default.clone() };
    match (default.resolve(), given.resolve()) {
        (Plain::Bool(_), Plain::Bool(_))
        | (Plain::Integer(_), Plain::Integer(_))
        | (Plain::Number(_), Plain::Number(_) | Plain::Integer(_))
        | (Plain::Text(_) | Plain::Null, _) => Ok(()),
        (Plain::Bool(_), _) => Err("true or false"),
        (Plain::Integer(_), _) => Err("a whole number"),
        (Plain::Number(_), _) => Err("a number"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn params(names: &[(&str, &str)]) -> Params {
        let value = |text: &str| Value { text: text.to_owned(), overridden: false, key: Extent::default() };
        Params { values: names.iter().map(|(n, t)| ((*n).to_owned(), value(t))).collect(), used: BTreeSet::new() }
    }

    #[test]
    fn names_are_replaced_and_escapes_stay() {
        let mut params = params(&[("lake", "./lake"), ("n", "7")]);
        let fill = |params: &mut Params, text: &str| params.fill(text).unwrap().0;
        assert_eq!(fill(&mut params, "${lake}/x/${n}"), "./lake/x/7");
        assert_eq!(fill(&mut params, "$${lake} $5 $ $$ä"), "${lake} $5 $ $$ä");
        assert_eq!(fill(&mut params, "$$${n}"), "$${n}");
        assert_eq!(fill(&mut params, "a$"), "a$");
    }

    #[test]
    fn values_are_not_substituted_again() {
        assert_eq!(params(&[("a", "${b}"), ("b", "1")]).fill("${a}").unwrap().0, "${b}");
    }

    #[test]
    fn every_mistake_of_a_text_is_found() {
        let mistakes = params(&[("lake", "")]).fill("${lak}, ${, ${}, ${a b}").unwrap_err();
        let found: Vec<_> = mistakes.iter().map(|m| (m.code, m.offset, m.width)).collect();
        assert_eq!(found, [("N0201", 0, 6), ("N0204", 8, 2), ("N0204", 12, 2), ("N0204", 17, 2)]);
        assert_eq!(mistakes[0].hint.as_deref(), Some("did you mean `lake`?"));
    }

    #[test]
    fn a_text_cannot_grow_without_bound() {
        let mut params = params(&[("big", &"x".repeat(TEXT_BYTES_MAX / 2 + 1))]);
        assert_eq!(params.fill("${big}${big}").unwrap_err()[0].code, "N0006");
    }
}
