//! The reference, from the same sources as the command: the JSON Schema, the help of the verbs, the catalogue of codes.

use std::collections::{BTreeSet, VecDeque};
use std::fmt::Write;

use serde_json::Value;

use crate::world::World;

/// What stands above each generated page.
const GENERATED: &str = "<!-- Generated; `UPDATE_SNAPSHOTS=1 cargo test --test nexus book` writes it anew. -->\n\n";

/// Describes the pipeline file, one section a type, in the order in which they are first met.
pub fn file(world: &World) -> String {
    let schema = world.nexus(&["schema"]).expect_code(0).stdout;
    let schema: Value = serde_json::from_str(&schema).expect("the schema is JSON");
    let mut page = format!(
        "# The pipeline file\n\n{GENERATED}Every key, with its type and its default. Keys that are not here are refused. An \
         editor that knows JSON Schema shows the same: `nexus schema > nexus.schema.json`, and in the first line of a \
         pipeline file `# yaml-language-server: $schema=nexus.schema.json`.\n\n## The file as a whole\n\n"
    );
    let mut waiting = VecDeque::new();
    let mut met = BTreeSet::new();
    describe(&schema, &mut page, &mut waiting, &mut met);
    while let Some(name) = waiting.pop_front() {
        let _ = writeln!(page, "## {name}\n");
        describe(&schema["$defs"][&name], &mut page, &mut waiting, &mut met);
    }
    page.truncate(page.trim_end().len());
    page + "\n"
}

fn describe(schema: &Value, page: &mut String, waiting: &mut VecDeque<String>, met: &mut BTreeSet<String>) {
    if let Some(text) = schema["description"].as_str() {
        let _ = writeln!(page, "{}\n", sentence(text));
    }
    let mut meet = |value: &Value| {
        for name in references(value) {
            if met.insert(name.clone()) {
                waiting.push_back(name);
            }
        }
    };
    if let Some(properties) = schema["properties"].as_object() {
        let required: BTreeSet<&str> =
            schema["required"].as_array().into_iter().flatten().filter_map(Value::as_str).collect();
        page.push_str("| key | type | default | |\n|---|---|---|---|\n");
        for (key, value) in properties {
            meet(value);
            let default = match (required.contains(key.as_str()), value.get("default")) {
                (true, _) => "required".to_owned(),
                (false, None | Some(Value::Null)) => String::new(),
                (false, Some(default)) => match default {
                    Value::Object(_) => String::new(),
                    default => format!("`{default}`"),
                },
            };
            let text = cell(value["description"].as_str().unwrap_or_default());
            let _ = writeln!(page, "| `{key}` | {} | {default} | {text} |", type_of(value));
        }
        page.push('\n');
    } else if let Some(choices) = schema["oneOf"].as_array().or(schema["anyOf"].as_array()) {
        page.push_str("| one of | |\n|---|---|\n");
        for choice in choices {
            meet(choice);
            let text = cell(choice["description"].as_str().unwrap_or_default());
            let _ = writeln!(page, "| {} | {text} |", type_of(choice));
        }
        page.push('\n');
    } else {
        meet(schema);
        let _ = writeln!(page, "{}\n", type_of(schema));
    }
}

/// Names the definitions that a part of the schema refers to, in order.
fn references(value: &Value) -> Vec<String> {
    match value {
        Value::Object(map) => map
            .iter()
            .flat_map(|(key, value)| match (key.as_str(), value.as_str()) {
                ("$ref", Some(target)) => target.rsplit('/').next().map(str::to_owned).into_iter().collect(),
                _ => references(value),
            })
            .collect(),
        Value::Array(items) => items.iter().flat_map(references).collect(),
        _ => Vec::new(),
    }
}

fn type_of(value: &Value) -> String {
    if let Some(target) = value["$ref"].as_str() {
        let name = target.rsplit('/').next().unwrap_or_default();
        return format!("[{name}](#{})", name.to_lowercase());
    }
    if let Some(word) = value["const"].as_str() {
        return format!("`{word}`");
    }
    for several in ["oneOf", "anyOf"] {
        if let Some(choices) = value[several].as_array() {
            let named = choices.iter().filter(|choice| choice["type"] != "null").map(type_of);
            return named.collect::<Vec<_>>().join(" or ");
        }
    }
    if let Some(listed) = value["enum"].as_array() {
        return listed
            .iter()
            .map(|word| format!("`{}`", word.as_str().unwrap_or_default()))
            .collect::<Vec<_>>()
            .join(", ");
    }
    let kinds = match &value["type"] {
        Value::Array(kinds) => kinds.iter().filter_map(Value::as_str).find(|kind| *kind != "null").unwrap_or("any"),
        kind => kind.as_str().unwrap_or("any"),
    };
    match kinds {
        "object" => match (value["properties"].as_object(), value.get("additionalProperties")) {
            (Some(properties), _) => {
                let keys = properties.iter().map(|(key, value)| format!("`{key}`: {}", type_of(value)));
                keys.collect::<Vec<_>>().join(", ")
            }
            (None, Some(items @ Value::Object(_))) => format!("mapping of names to {}", type_of(items)),
            (None, _) => "mapping".to_owned(),
        },
        "array" => format!("list of {}", type_of(&value["items"])),
        "string" => match value["format"].as_str() {
            Some("time-span") => "length of time".to_owned(),
            Some("byte-size") => "size".to_owned(),
            Some("share") => "share".to_owned(),
            _ => "text".to_owned(),
        },
        "integer" => "whole number".to_owned(),
        "boolean" => "`true` or `false`".to_owned(),
        other => other.to_owned(),
    }
}

fn sentence(text: &str) -> String {
    text.replace('\n', " ").replace("<", "&lt;")
}

fn cell(text: &str) -> String {
    sentence(text).replace('|', "\\|")
}

/// Describes the command: the help of each verb.
pub fn command(world: &World) -> String {
    let help = |args: &[&str]| world.nexus(args).expect_code(0).stdout;
    let all = help(&["--help"]);
    let verbs =
        all.lines().skip_while(|line| !line.starts_with("Commands:")).skip(1).take_while(|line| !line.is_empty());
    let verbs: Vec<&str> =
        verbs.filter_map(|line| line.split_whitespace().next()).filter(|verb| *verb != "help").collect();
    let mut page = format!("# The command\n\n{GENERATED}```text\n{}\n```\n", all.trim());
    for verb in verbs {
        let _ = write!(page, "\n## nexus {verb}\n\n```text\n{}\n```\n", help(&[verb, "--help"]).trim());
    }
    page
}

/// Describes every code of a mistake, with what is shown for it.
pub fn codes(world: &World) -> String {
    let all = world.nexus(&["explain"]).expect_code(0).stdout;
    let mut page = format!(
        "# Error codes\n\n{GENERATED}What `nexus check` says of a file has one of these codes; `nexus explain CODE` prints \
         the same text. A code never changes its meaning.\n"
    );
    for code in all.lines().filter_map(|line| line.split_whitespace().next()) {
        let text = world.nexus(&["explain", code]).expect_code(0).stdout;
        let (title, explanation) = text.split_once("\n\n").expect("an explanation has a title");
        let shown = crate::world::repository(&format!("engine/spec/tests/cases/{code}.txt"));
        let shown = std::fs::read_to_string(shown).expect("every code has an example");
        let first = shown.split("\n\n").next().unwrap_or_default().trim();
        let _ = write!(page, "\n## {title}\n\n{}\n\n```text\n{first}\n```\n", sentence(explanation.trim()));
    }
    page
}
