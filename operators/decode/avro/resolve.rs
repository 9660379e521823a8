//! Records of an older schema, read as the newer one wants them (Avro 1.12, "Schema Resolution").
//!
//! The older schema is made into one whose values are written with the newer one's names: fields that the newer one knows
//! by an alias are renamed, and those that only it has get their defaults. What else differs is fitted as JSON is.

use std::collections::HashSet;

use serde_json::Value;

use super::datum::Datums;
use super::schema::{AvroSchema, Note, Type};
use crate::avro::push_number;
use crate::decode::base64;
use crate::error::{Error, Result};

impl AvroSchema {
    /// Makes the schema of older records into one that reads them as `newer` wants them; says (kind `Config`) why not.
    pub fn read_as(self, newer: &AvroSchema) -> Result<Self> {
        let mut resolver = Resolver { older: self, newer, seen: HashSet::new() };
        let wrong = |why| Error::config(format!("records of the older avro schema cannot be read as the newer: {why}"));
        resolver.pair(0, 0).map_err(wrong)?;
        Ok(resolver.older)
    }
}

struct Resolver<'n> {
    older: AvroSchema,
    newer: &'n AvroSchema,
    /// Pairs that have been gone through: a type may hold itself.
    seen: HashSet<(usize, usize)>,
}

impl Resolver<'_> {
    fn pair(&mut self, older: usize, newer: usize) -> Result<(), String> {
        if !self.seen.insert((older, newer)) {
            return Ok(());
        }
        match (self.older.get(older).clone(), self.newer.get(newer).clone()) {
            (Type::Record(fields), Type::Record(wanted)) => self.record(older, fields, newer, &wanted),
            (Type::Array(older), Type::Array(newer)) | (Type::Map(older), Type::Map(newer)) => self.pair(older, newer),
            (Type::Union(branches), other) | (other, Type::Union(branches)) => {
                let is_union = matches!(self.older.get(older), Type::Union(_));
                let others = match other {
                    Type::Union(others) => others,
                    _ => vec![if is_union { newer } else { older }],
                };
                let (olders, newers) = if is_union { (branches, others) } else { (others, branches) };
                self.unions(&olders, &newers)
            }
            _ => Ok(()),
        }
    }

    /// Pairs the branches of unions, of each nested kind the only one: of several, none is known by a name here.
    fn unions(&mut self, olders: &[usize], newers: &[usize]) -> Result<(), String> {
        let kinds: [fn(&Type) -> bool; 3] =
            [|of| matches!(of, Type::Record(_)), |of| matches!(of, Type::Array(_)), |of| matches!(of, Type::Map(_))];
        for kind in kinds {
            let older: Vec<_> = olders.iter().filter(|at| kind(self.older.get(**at))).copied().collect();
            let newer: Vec<_> = newers.iter().filter(|at| kind(self.newer.get(**at))).copied().collect();
            if let ([older], [newer]) = (older.as_slice(), newer.as_slice()) {
                self.pair(*older, *newer)?;
            }
        }
        Ok(())
    }

    fn record(
        &mut self,
        at: usize,
        mut fields: Vec<(String, usize)>,
        newer: usize,
        wanted: &[(String, usize)],
    ) -> Result<(), String> {
        for (name, of) in wanted {
            let unnoted = Note::default();
            let note = self.newer.notes.get(&(newer, name.clone())).unwrap_or(&unnoted);
            let names = [name].into_iter().chain(&note.aliases);
            let found = names.filter_map(|name| fields.iter().position(|(field, _)| field == name)).next();
            match (found.and_then(|found| fields.get_mut(found)), &note.default) {
                (Some((field, older)), _) => {
                    field.clone_from(name);
                    let older = *older;
                    self.pair(older, *of)?;
                }
                (None, Some(default)) => {
                    let json =
                        self.default(default, *of).map_err(|why| format!("the default of field {name}: {why}"))?;
                    fields.push((name.clone(), self.older.types.len()));
                    self.older.types.push(Type::Constant(json));
                    self.older.empty.push(true);
                }
                (None, None) => {}
            }
        }
        if let Some(record) = self.older.types.get_mut(at) {
            *record = Type::Record(fields);
        }
        Ok(())
    }

    /// Gives a default, which the schema has in its own form, as values are written.
    fn default(&self, value: &Value, at: usize) -> Result<String, String> {
        match (self.newer.get(at), value) {
            (Type::Union(_) | Type::Null, Value::Null) => Ok("null".to_owned()),
            (Type::Union(branches), value) => {
                let mut others = branches.iter().filter(|branch| *self.newer.get(**branch) != Type::Null);
                others
                    .next()
                    .map_or_else(|| Err("it is of no branch".to_owned()), |branch| self.default(value, *branch))
            }
            (Type::Bytes | Type::Fixed(_), Value::String(text)) => {
                let bytes = text.chars().map(u8::try_from).collect::<Result<Vec<_>, _>>();
                let bytes = bytes.map_err(|_| "it has characters that stand for no byte".to_owned())?;
                let mut json = vec![b'"'];
                base64::encode(&bytes, &mut json);
                json.push(b'"');
                String::from_utf8(json).map_err(|e| e.to_string())
            }
            (Type::Date | Type::Time(_) | Type::Timestamp { .. }, value) => {
                let (mut bytes, mut json) = (Vec::new(), Vec::new());
                push_number(&mut bytes, value.as_i64().ok_or_else(|| format!("{value} is no whole number"))?);
                Datums::new(self.newer, &bytes, usize::MAX).value(at, &mut json, 0)?;
                String::from_utf8(json).map_err(|e| e.to_string())
            }
            (Type::Decimal { .. } | Type::Uuid | Type::Duration, _) => {
                Err("defaults of decimals, durations and UUIDs in bytes are not known; leave it out".to_owned())
            }
            (_, value) => Ok(value.to_string()),
        }
    }
}
