// SPDX-License-Identifier: Apache-2.0
//! Values as Python writes them: str(), repr() and json.dumps(), which templates were made for.

use minijinja::value::{from_args, Value, ValueKind};
use minijinja::{Error, ErrorKind, State};
use serde_json::Value as Json;

type Result<T> = std::result::Result<T, Error>;

/// Deeper values are refused, so that writing them cannot use up the stack.
const MAX_DEPTH: usize = 200;
const MAX_WRITTEN_BYTES: usize = 16 << 20;

pub fn from_json(json: &Json) -> Value {
    match json {
        Json::Null => Value::from(()),
        Json::Bool(flag) => Value::from(*flag),
        Json::Number(number) => match (number.as_i64(), number.as_u64()) {
            (Some(integer), _) => Value::from(integer),
            (None, Some(integer)) => Value::from(integer),
            _ => Value::from(number.as_f64().unwrap_or(f64::NAN)),
        },
        Json::String(text) => Value::from(text.as_str()),
        Json::Array(items) => items.iter().map(from_json).collect(),
        Json::Object(members) => {
            Value::from_pairs(members.iter().map(|(name, value)| (name.as_str(), from_json(value))))
        }
    }
}

/// str(value); nothing for undefined.
pub fn text(value: &Value) -> Result<String> {
    let mut out = String::new();
    match value.kind() {
        ValueKind::Undefined => {}
        ValueKind::String => out.push_str(value.as_str().unwrap_or_default()),
        _ => repr(value, 0, &mut out)?,
    }
    Ok(out)
}

/// A value that holds itself many times is small; what is written for it is not.
fn check_written(out: &str, depth: usize) -> Result<()> {
    if out.len() > MAX_WRITTEN_BYTES || depth > MAX_DEPTH {
        return Err(Error::new(ErrorKind::InvalidOperation, "a value is too large to be written"));
    }
    Ok(())
}

fn repr(value: &Value, depth: usize, out: &mut String) -> Result<()> {
    check_written(out, depth)?;
    match value.kind() {
        ValueKind::Undefined => out.push_str("Undefined"),
        ValueKind::None => out.push_str("None"),
        ValueKind::Bool => out.push_str(if value.is_true() { "True" } else { "False" }),
        ValueKind::Number => out.push_str(&number(value)),
        ValueKind::String => repr_string(value.as_str().unwrap_or_default(), out),
        ValueKind::Seq | ValueKind::Iterable => {
            out.push('[');
            for (index, item) in value.try_iter()?.enumerate() {
                out.push_str(if index > 0 { ", " } else { "" });
                repr(&item, depth + 1, out)?;
            }
            out.push(']');
        }
        ValueKind::Map => {
            out.push('{');
            for (index, name) in value.try_iter()?.enumerate() {
                out.push_str(if index > 0 { ", " } else { "" });
                repr(&name, depth + 1, out)?;
                out.push_str(": ");
                repr(&value.get_item(&name)?, depth + 1, out)?;
            }
            out.push('}');
        }
        _ => out.push_str(&value.to_string()),
    }
    Ok(())
}

fn repr_string(text: &str, out: &mut String) {
    let quote = if text.contains('\'') && !text.contains('"') { '"' } else { '\'' };
    out.push(quote);
    for character in text.chars() {
        match character {
            '\n' => out.push_str("\\n"),
            '\r' => out.push_str("\\r"),
            '\t' => out.push_str("\\t"),
            '\\' => out.push_str("\\\\"),
            c if c == quote => out.extend(['\\', c]),
            c if c.is_control() => out.push_str(&format!("\\x{:02x}", c as u32)),
            c => out.push(c),
        }
    }
    out.push(quote);
}

fn number(value: &Value) -> String {
    if value.is_integer() {
        return value.to_string();
    }
    match f64::try_from(value.clone()) {
        Ok(float) => float_text(float, "inf", "nan"),
        Err(_) => value.to_string(),
    }
}

/// repr(float): the shortest digits, with an exponent below 1e-4 and from 1e16.
fn float_text(float: f64, infinity: &str, nan: &str) -> String {
    if float.is_nan() {
        return nan.into();
    }
    if float.is_infinite() {
        return format!("{}{infinity}", if float < 0.0 { "-" } else { "" });
    }
    let scientific = format!("{float:e}");
    let (digits, exponent) = scientific.split_once('e').unwrap_or((&scientific, "0"));
    let exponent: i32 = exponent.parse().unwrap_or(0);
    if (-4..16).contains(&exponent) {
        let plain = format!("{float}");
        return if plain.contains('.') { plain } else { plain + ".0" };
    }
    let sign = if exponent < 0 { '-' } else { '+' };
    format!("{digits}e{sign}{:02}", exponent.abs())
}

pub struct JsonStyle {
    pub ensure_ascii: bool,
    pub indent: Option<String>,
    /// (between items, after names)
    pub separators: Option<Vec<String>>,
    pub sort_keys: bool,
}

/// json.dumps takes a count of spaces or the text itself.
pub fn indent_of(indent: Option<&Value>) -> Result<Option<String>> {
    match indent {
        None => Ok(None),
        Some(value) if value.is_none() || value.is_undefined() => Ok(None),
        Some(value) => match (value.as_str(), value.as_usize()) {
            (Some(text), _) if text.len() <= 64 => Ok(Some(text.to_owned())),
            (None, Some(count)) if count <= 64 => Ok(Some(" ".repeat(count))),
            _ => Err(Error::new(ErrorKind::InvalidOperation, "tojson: unusable indent")),
        },
    }
}

pub fn to_json(value: &Value, style: &JsonStyle) -> Result<String> {
    let (between, colon) = match style.separators.as_deref() {
        Some([between, colon]) => (between.as_str(), colon.as_str()),
        Some(_) => {
            return Err(Error::new(ErrorKind::InvalidOperation, "tojson: separators are a pair"))
        }
        None if style.indent.is_some() => (",", ": "),
        None => (", ", ": "),
    };
    let mut writer = JsonWriter { style, between, colon, out: String::new() };
    writer.value(value, 0)?;
    Ok(writer.out)
}

struct JsonWriter<'a> {
    style: &'a JsonStyle,
    between: &'a str,
    colon: &'a str,
    out: String,
}

impl JsonWriter<'_> {
    fn value(&mut self, value: &Value, depth: usize) -> Result<()> {
        check_written(&self.out, depth)?;
        match value.kind() {
            ValueKind::None => self.out.push_str("null"),
            ValueKind::Bool => self.out.push_str(if value.is_true() { "true" } else { "false" }),
            ValueKind::Number => self.number(value),
            ValueKind::String => self.string(value.as_str().unwrap_or_default()),
            ValueKind::Seq | ValueKind::Iterable => self.list(value, depth)?,
            ValueKind::Map => self.object(value, depth)?,
            kind => {
                let line = format!("tojson: a value of type {kind} is not JSON");
                return Err(Error::new(ErrorKind::InvalidOperation, line));
            }
        }
        Ok(())
    }

    fn number(&mut self, value: &Value) {
        match f64::try_from(value.clone()) {
            Ok(float) if !value.is_integer() => {
                self.out.push_str(&float_text(float, "Infinity", "NaN"));
            }
            _ => self.out.push_str(&value.to_string()),
        }
    }

    fn list(&mut self, value: &Value, depth: usize) -> Result<()> {
        self.out.push('[');
        let mut is_empty = true;
        for item in value.try_iter()? {
            self.next_item(&mut is_empty, depth + 1);
            self.value(&item, depth + 1)?;
        }
        self.close(']', is_empty, depth);
        Ok(())
    }

    fn object(&mut self, value: &Value, depth: usize) -> Result<()> {
        let mut names: Vec<Value> = value.try_iter()?.collect();
        if self.style.sort_keys {
            names.sort();
        }
        self.out.push('{');
        let mut is_empty = true;
        for name in names {
            self.next_item(&mut is_empty, depth + 1);
            match name.as_str() {
                Some(text) => self.string(text),
                None => self.string(&key_text(&name)),
            }
            self.out.push_str(self.colon);
            self.value(&value.get_item(&name)?, depth + 1)?;
        }
        self.close('}', is_empty, depth);
        Ok(())
    }

    fn next_item(&mut self, is_empty: &mut bool, depth: usize) {
        if !std::mem::take(is_empty) {
            self.out.push_str(self.between);
        }
        self.new_line(depth);
    }

    fn close(&mut self, bracket: char, is_empty: bool, depth: usize) {
        if !is_empty {
            self.new_line(depth);
        }
        self.out.push(bracket);
    }

    fn new_line(&mut self, depth: usize) {
        if let Some(indent) = &self.style.indent {
            self.out.push('\n');
            for _ in 0..depth {
                self.out.push_str(indent);
            }
        }
    }

    fn string(&mut self, text: &str) {
        self.out.push('"');
        for character in text.chars() {
            match character {
                '"' => self.out.push_str("\\\""),
                '\\' => self.out.push_str("\\\\"),
                '\n' => self.out.push_str("\\n"),
                '\r' => self.out.push_str("\\r"),
                '\t' => self.out.push_str("\\t"),
                '\u{8}' => self.out.push_str("\\b"),
                '\u{c}' => self.out.push_str("\\f"),
                c if (c as u32) < 0x20
                    || (self.style.ensure_ascii && !(' '..='~').contains(&c)) =>
                {
                    for unit in c.encode_utf16(&mut [0; 2]) {
                        self.out.push_str(&format!("\\u{unit:04x}"));
                    }
                }
                c => self.out.push(c),
            }
        }
        self.out.push('"');
    }
}

/// json.dumps writes other keys than strings as JSON would write the value.
fn key_text(name: &Value) -> String {
    match name.kind() {
        ValueKind::None => "null".into(),
        ValueKind::Bool => if name.is_true() { "true" } else { "false" }.into(),
        _ => number(name),
    }
}

/// Methods of Python's str that minijinja-contrib lacks or has otherwise, then those it has.
pub fn method(state: &mut State, value: &Value, name: &str, args: &[Value]) -> Result<Value> {
    if let Some(text) = value.as_str() {
        match name {
            "removeprefix" => {
                let (prefix,): (&str,) = from_args(args)?;
                return Ok(Value::from(text.strip_prefix(prefix).unwrap_or(text)));
            }
            "removesuffix" => {
                let (suffix,): (&str,) = from_args(args)?;
                return Ok(Value::from(text.strip_suffix(suffix).unwrap_or(text)));
            }
            "title" => {
                let () = from_args(args)?;
                return Ok(Value::from(title(text)));
            }
            _ => {}
        }
    }
    minijinja_contrib::pycompat::unknown_method_callback(state, value, name, args)
}

/// Every run of letters gets a capital, whatever stands between.
fn title(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let mut is_inside = false;
    for character in text.chars() {
        match is_inside {
            true => out.extend(character.to_lowercase()),
            false => out.extend(character.to_uppercase()),
        }
        is_inside = character.is_alphabetic();
    }
    out
}
