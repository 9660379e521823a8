//! The JSON Schema of the pipeline file, made from the model: what editors
//! complete by, and what every file is validated against.

use std::collections::BTreeSet;
use std::sync::LazyLock;

use schemars::generate::SchemaSettings;
use serde_json::{Map, Value};

use super::model::Spec;

static SCHEMA: LazyLock<Value> = LazyLock::new(make);

/// Gives the JSON Schema (draft 2020-12) of a pipeline file.
pub fn json_schema() -> Value {
    SCHEMA.clone()
}

/// Gives the schema without a copy.
pub(super) fn shared() -> &'static Value {
    &SCHEMA
}

fn make() -> Value {
    let schema = SchemaSettings::draft2020_12().into_generator().into_root_schema_for::<Spec>();
    let mut schema = schema.to_value();
    let needs_nothing = needs_nothing(&schema);
    tidy(&mut schema, &needs_nothing);
    if let Some(root) = schema.as_object_mut() {
        root.insert("title".into(), "Nexus pipeline file".into());
    }
    schema
}

/// Names, as `$ref` does, the definitions of mappings in which no key is required.
fn needs_nothing(schema: &Value) -> BTreeSet<String> {
    let definitions = schema.get("$defs").and_then(Value::as_object).into_iter().flatten();
    definitions.filter(|(_, s)| may_be_empty(s)).map(|(name, _)| format!("#/$defs/{name}")).collect()
}

fn may_be_empty(schema: &Value) -> bool {
    schema.get("type").is_some_and(|t| t == "object") && schema.get("required").is_none()
}

/// Takes `null` out (a key is left out or has a value), and adds the short forms of tagged choices.
fn tidy(schema: &mut Value, needs_nothing: &BTreeSet<String>) {
    match schema {
        Value::Object(object) => {
            without_null(object);
            add_short_forms(object, needs_nothing);
            object.values_mut().for_each(|s| tidy(s, needs_nothing));
        }
        Value::Array(items) => items.iter_mut().for_each(|s| tidy(s, needs_nothing)),
        _ => {}
    }
}

fn without_null(schema: &mut Map<String, Value>) {
    if schema.get("default").is_some_and(Value::is_null) {
        schema.remove("default");
    }
    if let Some(Value::Object(default)) = schema.get_mut("default") {
        default.retain(|_, value| !value.is_null());
    }
    let rest = match schema.get("type") {
        Some(Value::Array(types)) => types.iter().find(|t| *t != "null").cloned(),
        _ => None,
    };
    if let Some(only) = rest {
        schema.insert("type".into(), only);
    }
    let is_null = |s: &Value| s.get("type").is_some_and(|t| t == "null");
    let Some(Value::Array(choices)) = schema.get_mut("anyOf") else { return };
    choices.retain(|c| !is_null(c));
    if let [Value::Object(only)] = choices.as_slice() {
        let only = only.clone();
        schema.remove("anyOf");
        for (key, value) in only {
            schema.entry(key).or_insert(value);
        }
    }
}

/// Where a choice is `{ csv: { ... } }`, and nothing in the braces is required, `csv` alone is a choice too.
fn add_short_forms(schema: &mut Map<String, Value>, needs_nothing: &BTreeSet<String>) {
    let Some(Value::Array(choices)) = schema.get_mut("oneOf") else { return };
    let mut short = Vec::new();
    for choice in choices.iter() {
        let Some((name, inner)) = tag(choice) else { continue };
        let empty = match inner.get("$ref").and_then(Value::as_str) {
            Some(definition) => needs_nothing.contains(definition),
            None => may_be_empty(inner),
        };
        if empty {
            short.push(short_form(name, choice));
        }
    }
    choices.extend(short);
}

fn short_form(name: &str, choice: &Value) -> Value {
    let mut form = Map::from_iter([("type".into(), "string".into()), ("const".into(), name.into())]);
    if let Some(description) = choice.get("description") {
        form.insert("description".into(), description.clone());
    }
    Value::Object(form)
}

/// Takes a choice that is a mapping with one key, `{ csv: { ... } }`, apart into the key and its schema.
pub(super) fn tag(choice: &Value) -> Option<(&str, &Value)> {
    let mut properties = choice.get("properties")?.as_object()?.iter();
    let (name, inner) = properties.next()?;
    let closed = choice.get("additionalProperties") == Some(&Value::Bool(false));
    let required = choice.get("required")?.as_array()?.iter().any(|r| r == name);
    (closed && required && properties.next().is_none()).then_some((name, inner))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_have_descriptions_and_defaults() {
        let schema = json_schema();
        let at = |pointer: &str| schema.pointer(pointer).unwrap_or_else(|| panic!("{pointer}")).clone();
        assert_eq!(at("/$schema"), "https://json-schema.org/draft/2020-12/schema");
        assert_eq!(at("/title"), "Nexus pipeline file");
        assert_eq!(at("/properties/commit/default/every"), "10s");
        assert_eq!(at("/$defs/Limits/properties/memory/default"), "512MiB");
        assert_eq!(at("/$defs/KinesisSource/properties/on_data_loss/default"), "fail");
        let definitions = at("/$defs");
        for (name, definition) in definitions.as_object().unwrap() {
            assert!(definition.get("description").is_some(), "{name}");
            let properties = definition.get("properties").and_then(Value::as_object).into_iter().flatten();
            properties.for_each(|(key, p)| assert!(p.get("description").is_some(), "{name}.{key}"));
        }
    }

    #[test]
    fn nothing_may_be_null() {
        assert!(!json_schema().to_string().contains("null\"]"));
        assert!(!json_schema().to_string().contains(":null"));
    }

    #[test]
    fn a_choice_whose_keys_have_defaults_has_a_short_form() {
        let schema = json_schema();
        let words = |pointer: &str| -> Vec<Value> {
            let choices = schema.pointer(pointer).and_then(Value::as_array).unwrap();
            choices.iter().filter_map(|c| c.get("const").cloned()).collect()
        };
        assert_eq!(words("/$defs/Format/oneOf"), ["json", "parquet", "cloudwatch_logs", "raw", "csv", "avro"]);
        assert_eq!(words("/$defs/Generator/oneOf"), ["sequence"]);
        assert!(words("/$defs/Secret/oneOf").is_empty());
    }
}
