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

/// A JSON array of calls.
pub fn from_array(json: &str) -> Option<Vec<Call>> {
    let written: Vec<Written> = serde_json::from_str(json).ok()?;
    written.into_iter().map(to_call).collect()
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

/// Where the object or array ends that text begins with.
pub fn end_of_value(text: &str) -> Option<usize> {
    let mut depth = 0usize;
    let mut is_string = false;
    let mut is_escaped = false;
    for (at, byte) in text.bytes().enumerate() {
        match byte {
            _ if is_escaped => is_escaped = false,
            b'\\' if is_string => is_escaped = true,
            b'"' => is_string = !is_string,
            _ if is_string => {}
            b'{' | b'[' => depth += 1,
            b'}' | b']' => {
                depth = depth.saturating_sub(1);
                if depth == 0 {
                    return Some(at + 1);
                }
            }
            _ => {}
        }
    }
    None
}

/// What functions are called.
pub fn is_name(text: &str) -> bool {
    (1..=256).contains(&text.len()) && text.chars().all(is_name_char)
}

pub fn is_name_char(character: char) -> bool {
    character.is_alphanumeric() || matches!(character, '_' | '-' | '.' | ':' | '/')
}
