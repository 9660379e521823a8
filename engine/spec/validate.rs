//! Holds a file against the JSON Schema that is made from the model, and makes
//! the value that serde turns into the model.
//!
//! Every mistake is reported at its place. What is wrong is left out of the
//! value, so that the rest can be checked further in the same run.

use std::collections::HashSet;

use serde_json::{Map, Number, Value};

use super::codes;
use super::diagnostic::Diagnostic;
use super::schema::{shared, tag};
use super::source::{Extent, SourceText};
use super::suggest;
use super::units::{ByteSize, Share, Span};
use super::yaml::{Entry, Node, Plain, Scalar};

/// What became of a file.
pub struct Validated {
    /// The value, without what is wrong; nothing if what is wrong cannot be left out.
    pub value: Option<Value>,
    /// What is wrong, with its path.
    pub wrong: Vec<(Vec<String>, Diagnostic)>,
}

/// Validates a pipeline file.
pub fn validate(root: &Node, source: &SourceText) -> Validated {
    let mut validator = Validator { source, path: Vec::new(), wrong: Vec::new() };
    let value = validator.value(root, shared(), &Spot { noun: "the pipeline file".into(), place: root.place() });
    Validated { value, wrong: validator.wrong }
}

/// What a value is to its parent, for messages.
struct Spot {
    /// How it is called: `` `file` ``, `a table`.
    noun: String,
    /// Where it is pointed at when something is missing: its key.
    place: Extent,
}

struct Validator<'a> {
    source: &'a SourceText,
    path: Vec<String>,
    wrong: Vec<(Vec<String>, Diagnostic)>,
}

impl Validator<'_> {
    fn value(&mut self, node: &Node, schema: &Value, spot: &Spot) -> Option<Value> {
        let schema = resolve(schema);
        if let Some(choices) = schema.get("oneOf").and_then(Value::as_array) {
            return self.tagged(node, choices, spot);
        }
        if let Some(shapes) = schema.get("anyOf").and_then(Value::as_array) {
            return self.shape(node, shapes, spot);
        }
        match schema.get("type").and_then(Value::as_str) {
            Some("object") => self.map(node, schema, spot),
            Some("array") => self.list(node, schema, spot),
            Some("string") => self.text(node, schema, spot),
            Some("boolean") => match node.scalar().map(Scalar::resolve) {
                Some(Plain::Bool(bool)) => Some(Value::Bool(bool)),
                _ => self.wrong_type(node, spot, "`true` or `false`", None),
            },
            Some("integer") => self.integer(node, schema, spot),
            Some("number") => match node.scalar().map(Scalar::resolve) {
                Some(Plain::Number(number)) => Number::from_f64(number).map(Value::Number),
                Some(Plain::Integer(integer)) => Number::from_i128(integer).map(Value::Number),
                _ => self.wrong_type(node, spot, "a number", None),
            },
            _ => Some(untyped(node)),
        }
    }

    fn map(&mut self, node: &Node, schema: &Value, spot: &Spot) -> Option<Value> {
        // A key with nothing behind it, such as `bronze:` above commented lines, is an empty mapping.
        let entries = match node {
            Node::Map { entries, .. } => entries.as_slice(),
            _ if node.is_null() => &[],
            _ => return self.wrong_type(node, spot, "a mapping", None),
        };
        let no_properties = Map::new();
        let properties = schema.get("properties").and_then(Value::as_object).unwrap_or(&no_properties);
        let others = schema.get("additionalProperties");
        let closed = others == Some(&Value::Bool(false));
        let mut value = Map::new();
        let given: HashSet<&str> = entries.iter().map(|e| e.key.as_str()).collect();
        for entry in entries {
            let named = properties.get_key_value(&entry.key);
            let named = if named.is_none() && closed { self.misspelt(entry, &given, properties, spot) } else { named };
            let (key, schema, noun) = match (named, others) {
                (Some((key, schema)), _) => (key, schema, format!("`{key}`")),
                (None, Some(schema)) if !closed => (&entry.key, schema, noun_of(schema, &entry.key)),
                _ => continue,
            };
            self.path.push(entry.key.clone());
            let inner = self.value(&entry.value, schema, &Spot { noun, place: entry.place });
            self.path.pop();
            if let Some(inner) = inner {
                value.insert(key.clone(), inner);
            }
        }
        let whole = self.nothing_missing(entries, schema, &value, spot);
        whole.then_some(Value::Object(value))
    }

    /// Reports an unknown key. If another was probably meant, gives that one, so that what it holds is checked too.
    fn misspelt<'s>(
        &mut self,
        entry: &Entry,
        given: &HashSet<&str>,
        properties: &'s Map<String, Value>,
        spot: &Spot,
    ) -> Option<(&'s String, &'s Value)> {
        let free = || properties.keys().map(String::as_str).filter(|p| !given.contains(p));
        let meant = suggest::nearest(&entry.key, free());
        let hint = match meant {
            Some(name) => Some(format!("did you mean `{name}`?")),
            None => suggest::available(properties.keys().map(String::as_str)),
        };
        self.path.push(entry.key.clone());
        self.report(codes::UNKNOWN_KEY, entry.place, format!("unknown key `{}` in {}", entry.key, spot.noun), hint);
        self.path.pop();
        meant.and_then(|name| properties.get_key_value(name))
    }

    /// Reports required keys that are not given; tells whether the value has all of them.
    fn nothing_missing(&mut self, entries: &[Entry], schema: &Value, value: &Map<String, Value>, spot: &Spot) -> bool {
        let required = schema.get("required").and_then(Value::as_array).into_iter().flatten();
        let mut whole = true;
        for key in required.filter_map(Value::as_str).filter(|key| !value.contains_key(*key)) {
            whole = false;
            // A key that is there, or was meant, has been reported with its value.
            let reported = entries.iter().any(|e| e.key == key || suggest::nearest(&e.key, [key]).is_some());
            if !reported {
                let about = schema.pointer(&format!("/properties/{key}")).and_then(description);
                let message = format!("the key `{key}` is missing in {}", spot.noun);
                self.report(codes::MISSING_KEY, spot.place, message, about.map(|about| format!("`{key}`: {about}")));
            }
        }
        whole
    }

    fn list(&mut self, node: &Node, schema: &Value, spot: &Spot) -> Option<Value> {
        let Node::List { items, .. } = node else {
            let hint = node.scalar().filter(|_| !node.is_null()).map(|s| format!("write `[{}]`", first_line(&s.text)));
            return self.wrong_type(node, spot, "a list", hint);
        };
        let item_schema = schema.get("items").unwrap_or(&Value::Bool(true));
        let mut values = Vec::with_capacity(items.len());
        for (index, item) in items.iter().enumerate() {
            self.path.push(index.to_string());
            let noun = noun_of(item_schema, &format!("an item of {}", spot.noun));
            values.extend(self.value(item, item_schema, &Spot { noun, place: item.place() }));
            self.path.pop();
        }
        Some(Value::Array(values))
    }

    /// A text; a number, true or false that was written without quotes is taken by its letters.
    fn text(&mut self, node: &Node, schema: &Value, spot: &Spot) -> Option<Value> {
        let scalar = match node.scalar() {
            Some(scalar) if scalar.style != saphyr_parser::ScalarStyle::Plain || !node.is_null() => scalar,
            _ => return self.wrong_type(node, spot, "a text", None),
        };
        if let Some(only) = schema.get("const").and_then(Value::as_str) {
            return if scalar.text == only { Some(only.into()) } else { self.unknown_choice(scalar, &[only], spot) };
        }
        if let Some(listed) = schema.get("enum").and_then(Value::as_array) {
            let names: Vec<&str> = listed.iter().filter_map(Value::as_str).collect();
            let there = names.contains(&scalar.text.as_str());
            return if there { Some(scalar.text.clone().into()) } else { self.unknown_choice(scalar, &names, spot) };
        }
        let unit = match schema.get("format").and_then(Value::as_str) {
            Some("time-span") => Span::try_from(scalar.text.clone()).map(drop),
            Some("byte-size") => ByteSize::try_from(scalar.text.clone()).map(drop),
            Some("share") => Share::try_from(scalar.text.clone()).map(drop),
            _ => Ok(()),
        };
        if let Err(wrong) = unit {
            let (message, hint) = wrong.split_once("; ").unwrap_or((&wrong, ""));
            self.report(codes::BAD_UNIT, scalar.place, message.to_owned(), Some(hint.to_owned()));
            return None;
        }
        let chars = scalar.text.chars().count() as u64;
        let bound = |name| schema.get(name).and_then(Value::as_u64);
        if bound("minLength").is_some_and(|min| chars < min) || bound("maxLength").is_some_and(|max| chars > max) {
            let message = format!("{} is one character, not {chars}", spot.noun);
            self.report(codes::OUT_OF_RANGE, scalar.place, message, None);
            return None;
        }
        Some(scalar.text.clone().into())
    }

    fn integer(&mut self, node: &Node, schema: &Value, spot: &Spot) -> Option<Value> {
        let Some(Plain::Integer(integer)) = node.scalar().map(Scalar::resolve) else {
            return self.wrong_type(node, spot, "a whole number", None);
        };
        let bound = |name| schema.get(name).and_then(Value::as_i64).map(i128::from);
        let unsigned = schema.get("format").and_then(Value::as_str).is_some_and(|f| f.starts_with("uint"));
        let (least, most) = if unsigned { (0, u64::MAX.into()) } else { (i64::MIN.into(), i64::MAX.into()) };
        let (least, most) = (bound("minimum").unwrap_or(least), bound("maximum").unwrap_or(most));
        if !(least..=most).contains(&integer) {
            let bounds = match bound("maximum") {
                None if integer < least => format!("of at least {least}"),
                _ => format!("from {least} to {most}"),
            };
            let message = format!("{} is a whole number {bounds}, not {integer}", spot.noun);
            self.report(codes::OUT_OF_RANGE, node.place(), message, None);
            return None;
        }
        Number::from_i128(integer).map(Value::Number)
    }

    /// One of several shapes, at most one of each type: serde's untagged enums.
    fn shape(&mut self, node: &Node, shapes: &[Value], spot: &Spot) -> Option<Value> {
        let resolved: Vec<&Value> = shapes.iter().map(resolve).collect();
        let of_type = |wanted: &str| resolved.iter().find(|c| c.get("type").is_some_and(|t| t == wanted)).copied();
        let fitting = match node {
            Node::Map { .. } => of_type("object"),
            Node::List { .. } => of_type("array"),
            Node::Scalar(scalar) => match scalar.resolve() {
                Plain::Bool(_) => of_type("boolean"),
                Plain::Integer(_) => of_type("integer").or_else(|| of_type("number")),
                Plain::Number(_) => of_type("number"),
                Plain::Text(_) | Plain::Null => None,
            }
            .or_else(|| of_type("string")),
        };
        match fitting {
            Some(schema) => self.value(node, schema, spot),
            None => {
                let wanted: Vec<&str> =
                    resolved.iter().filter_map(|c| c.get("type")?.as_str()).map(type_noun).collect();
                self.wrong_type(node, spot, &wanted.join(" or "), None)
            }
        }
    }

    /// One of several words (`json`) or mappings with one key (`{ csv: ... }`): serde's other enums.
    fn tagged(&mut self, node: &Node, choices: &[Value], spot: &Spot) -> Option<Value> {
        let words: Vec<&str> = choices.iter().filter_map(|c| c.get("const")?.as_str()).collect();
        let tags: Vec<(&str, &Value)> = choices.iter().filter_map(tag).collect();
        let mut names = words.clone();
        names.extend(tags.iter().map(|(name, _)| *name).filter(|name| !words.contains(name)));
        match node {
            Node::Scalar(scalar) if !node.is_null() => {
                let word = scalar.text.as_str();
                let inner = tags.iter().find(|(name, _)| *name == word).map(|(_, inner)| *inner);
                match (words.contains(&word), inner) {
                    (true, None) => Some(word.into()),
                    // The short form of a mapping in which everything has its default.
                    (true, Some(_)) => Some(Value::Object(Map::from_iter([(word.to_owned(), Map::new().into())]))),
                    (false, Some(inner)) => {
                        let message = format!("`{word}` needs a value");
                        let about = description(inner).unwrap_or("...");
                        self.report(codes::WRONG_TYPE, scalar.place, message, Some(format!("write `{word}: {about}`")))
                    }
                    (false, None) => self.unknown_choice(scalar, &names, spot),
                }
            }
            Node::Map { entries, .. } => match entries.as_slice() {
                [entry] => self.tagged_map(entry, &words, &tags, &names, spot),
                _ => {
                    let place = entries.get(1).map_or(spot.place, |second| second.place);
                    let message = format!("{} holds exactly one key, not {}", spot.noun, entries.len());
                    self.report(codes::WRONG_TYPE, place, message, suggest::available(names.iter().copied()))
                }
            },
            _ => self.wrong_type(node, spot, "one of several choices", suggest::available(names.iter().copied())),
        }
    }

    fn tagged_map(
        &mut self,
        entry: &Entry,
        words: &[&str],
        tags: &[(&str, &Value)],
        names: &[&str],
        spot: &Spot,
    ) -> Option<Value> {
        let Some((name, inner)) = tags.iter().find(|(name, _)| *name == entry.key) else {
            let (message, hint) = match words.contains(&entry.key.as_str()) {
                true => (format!("`{}` takes no value", entry.key), Some(format!("write `{}` alone", entry.key))),
                false => {
                    let message = format!("`{}` is not a choice of {}", entry.key, spot.noun);
                    (message, choice_hint(&entry.key, names))
                }
            };
            return self.report(codes::UNKNOWN_CHOICE, entry.place, message, hint);
        };
        self.path.push(entry.key.clone());
        let value = self.value(&entry.value, inner, &Spot { noun: format!("`{name}`"), place: entry.place });
        self.path.pop();
        Some(Value::Object(Map::from_iter([((*name).to_owned(), value?)])))
    }

    fn unknown_choice(&mut self, scalar: &Scalar, names: &[&str], spot: &Spot) -> Option<Value> {
        let message = format!("`{}` is not a choice of {}", first_line(&scalar.text), spot.noun);
        self.report(codes::UNKNOWN_CHOICE, scalar.place, message, choice_hint(&scalar.text, names))
    }

    fn wrong_type(&mut self, node: &Node, spot: &Spot, wanted: &str, hint: Option<String>) -> Option<Value> {
        let found = match node {
            Node::Map { .. } => "a mapping".to_owned(),
            Node::List { .. } => "a list".to_owned(),
            Node::Scalar(scalar) => match scalar.resolve() {
                Plain::Null => "nothing".to_owned(),
                Plain::Text(text) => format!("the text `{}`", first_line(text)),
                _ => format!("`{}`", scalar.text),
            },
        };
        // Nothing has no place of its own.
        let place = if node.is_null() { spot.place } else { node.place() };
        self.report(codes::WRONG_TYPE, place, format!("{} must be {wanted}, and is {found}", spot.noun), hint)
    }

    /// Notes a mistake at the current path. It has no value.
    fn report(&mut self, code: &'static str, place: Extent, message: String, hint: Option<String>) -> Option<Value> {
        let error = Diagnostic::error(code, self.source.file(), message).at(place, self.source.line(place.line));
        self.wrong.push((self.path.clone(), Diagnostic { hint, ..error }));
        None
    }
}

fn choice_hint(word: &str, names: &[&str]) -> Option<String> {
    let available = suggest::available(names.iter().copied())?;
    Some(match suggest::nearest(word, names.iter().copied()) {
        Some(name) => format!("did you mean `{name}`? {available}"),
        None => available,
    })
}

/// Follows `$ref`.
fn resolve(schema: &Value) -> &Value {
    let mut schema = schema;
    while let Some(definition) = schema.get("$ref").and_then(Value::as_str).and_then(|r| r.strip_prefix('#')) {
        let Some(next) = shared().pointer(definition) else { break };
        schema = next;
    }
    schema
}

/// Names an item by its definition (`a table`), else as given.
fn noun_of(schema: &Value, key: &str) -> String {
    let definition = schema.get("$ref").and_then(Value::as_str).and_then(|r| r.rsplit('/').next());
    match definition {
        Some(name) => {
            let mut words = String::new();
            for c in name.chars() {
                if c.is_uppercase() && !words.is_empty() {
                    words.push(' ');
                }
                words.extend(c.to_lowercase());
            }
            format!("{} {words}", if words.starts_with(['a', 'e', 'i', 'o']) { "an" } else { "a" })
        }
        None if key.contains(' ') => key.to_owned(),
        None => format!("`{key}`"),
    }
}

fn type_noun(name: &str) -> &str {
    match name {
        "object" => "a mapping",
        "array" => "a list",
        "string" => "a text",
        "boolean" => "`true` or `false`",
        "integer" => "a whole number",
        _ => "a number",
    }
}

fn description(schema: &Value) -> Option<&str> {
    schema.get("description").and_then(Value::as_str).map(|text| first_line(text).trim_end_matches('.'))
}

fn first_line(text: &str) -> &str {
    text.lines().next().unwrap_or_default()
}

/// Gives a value of which nothing is known as YAML reads it.
fn untyped(node: &Node) -> Value {
    match node {
        Node::Map { entries, .. } => entries.iter().map(|e| (e.key.clone(), untyped(&e.value))).collect(),
        Node::List { items, .. } => items.iter().map(untyped).collect(),
        Node::Scalar(scalar) => match scalar.resolve() {
            Plain::Null => Value::Null,
            Plain::Bool(bool) => Value::Bool(bool),
            Plain::Integer(integer) => {
                Number::from_i128(integer).map_or_else(|| scalar.text.clone().into(), Value::Number)
            }
            Plain::Number(number) => Number::from_f64(number).map_or_else(|| scalar.text.clone().into(), Value::Number),
            Plain::Text(text) => text.into(),
        },
    }
}
