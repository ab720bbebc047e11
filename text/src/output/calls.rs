// SPDX-License-Identifier: Apache-2.0
//! The JSON that calls are written in.

use serde::Deserialize;
use serde_json::value::RawValue;

use super::tools::Call;

#[derive(Deserialize)]
struct Written {
    name: String,
    #[serde(default, alias = "parameters")]
    arguments: Option<Box<RawValue>>,
}

/// {"name": …, "arguments" or "parameters": {…}}. Err(true): only its end is missing.
pub fn from_json(json: &str) -> Result<Call, bool> {
    let is_begun = !json.trim().is_empty();
    let written: Written = serde_json::from_str(json).map_err(|e| is_begun && e.is_eof())?;
    to_call(written).ok_or(false)
}

/// The same without a mark around it: only the arguments tell a call from an answer in JSON.
pub fn from_bare_json(json: &str) -> Option<Call> {
    let written: Written = serde_json::from_str(json).ok()?;
    written.arguments.as_ref()?;
    to_call(written)
}

fn to_call(written: Written) -> Option<Call> {
    let arguments = match &written.arguments {
        Some(raw) => object_text(raw.get())?,
        None => "{}".to_owned(),
    };
    (!written.name.is_empty()).then_some(Call { name: written.name, arguments })
}

/// Some models write the object as a string.
fn object_text(json: &str) -> Option<String> {
    let json = json.trim();
    match json.as_bytes().first()? {
        b'{' => Some(json.to_owned()),
        b'"' => serde_json::from_str::<String>(json).ok().filter(|text| is_object(text)),
        b'n' => Some("{}".to_owned()),
        _ => None,
    }
}

pub fn is_object(json: &str) -> bool {
    json.trim_start().starts_with('{') && serde_json::from_str::<&RawValue>(json).is_ok()
}

/// What the beginning of a call's object tells.
#[derive(Debug, PartialEq)]
pub enum Head {
    More,
    /// The arguments' object begins at this byte.
    Begun(usize, String),
    /// Its arguments are no object, or stand before the name: only the whole object tells.
    Whole,
}

/// The same of every longer text, unless it is More.
pub fn head(json: &str) -> Head {
    match members(json) {
        Ok((at, name)) => Head::Begun(at, name),
        Err(true) => Head::More,
        Err(false) => Head::Whole,
    }
}

/// Err(true): only its end is missing.
fn members(json: &str) -> Result<(usize, String), bool> {
    let mut rest = expect(json, "{")?;
    let mut name = None;
    loop {
        let key: String = value(&mut rest)?;
        rest = expect(rest, ":")?.trim_start();
        match (key.as_str(), name.take()) {
            ("arguments" | "parameters", found) => {
                expect(rest, "{")?;
                let name = found.filter(|name: &String| !name.is_empty()).ok_or(false)?;
                return Ok((json.len() - rest.len(), name));
            }
            ("name", None) => name = Some(value(&mut rest)?),
            ("name", Some(_)) => return Err(false),
            (_, found) => {
                value::<&RawValue>(&mut rest)?;
                name = found;
            }
        }
        rest = expect(rest, ",")?;
    }
}

/// Takes a JSON value from the beginning of the text.
fn value<'a, T: Deserialize<'a>>(rest: &mut &'a str) -> Result<T, bool> {
    let mut values = serde_json::Deserializer::from_str(rest).into_iter();
    let found = values.next().ok_or(true)?.map_err(|e| e.is_eof())?;
    *rest = &rest[values.byte_offset()..];
    Ok(found)
}

/// What follows blanks and the mark. Err(true): only the mark's end is missing.
pub fn expect<'a>(text: &'a str, mark: &str) -> Result<&'a str, bool> {
    let words = text.trim_start();
    words.strip_prefix(mark).ok_or_else(|| mark.starts_with(words))
}

/// What follows the object that text continues behind one of its values. Err as above.
pub fn behind_object(text: &str) -> Result<&str, bool> {
    let Ok(rest) = expect(text, ",") else {
        return expect(text, "}");
    };
    let mut nesting = Nesting { depth: 1, ..Nesting::default() };
    nesting.end(rest).map(|end| &rest[end..]).ok_or(true)
}

/// Follows the brackets of JSON that comes in pieces.
#[derive(Default)]
pub struct Nesting {
    depth: usize,
    is_string: bool,
    is_escaped: bool,
}

impl Nesting {
    /// Where in this piece the value ends.
    pub fn end(&mut self, text: &str) -> Option<usize> {
        for (at, byte) in text.bytes().enumerate() {
            match byte {
                _ if self.is_escaped => self.is_escaped = false,
                b'\\' if self.is_string => self.is_escaped = true,
                b'"' => self.is_string = !self.is_string,
                _ if self.is_string => {}
                b'{' | b'[' => self.depth += 1,
                b'}' | b']' => {
                    self.depth = self.depth.saturating_sub(1);
                    if self.depth == 0 {
                        return Some(at + 1);
                    }
                }
                _ => {}
            }
        }
        None
    }
}

/// Where the object or array ends that text begins with.
pub fn end_of_value(text: &str) -> Option<usize> {
    Nesting::default().end(text)
}

/// What functions are called.
pub fn is_name(text: &str) -> bool {
    (1..=256).contains(&text.len()) && text.chars().all(is_name_char)
}

pub fn is_name_char(character: char) -> bool {
    character.is_alphanumeric() || matches!(character, '_' | '-' | '.' | ':' | '/')
}
