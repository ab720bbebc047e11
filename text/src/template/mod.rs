// SPDX-License-Identifier: Apache-2.0
//! Chat templates: Jinja as transformers sets it up (utils/chat_template_utils.py), on minijinja.

mod python;
mod tags;
mod time;

use minijinja::syntax::SyntaxConfig;
use minijinja::value::{Kwargs, Value};
use minijinja::{Environment, Error as JinjaError, ErrorKind, State};
use serde_json::Value as Json;

use crate::error::{fail, Error, Result, Status};

/// One unit is an instruction or 64 bytes of text made. Long requests get more.
const FUEL: u64 = 500_000;
const FUEL_PER_REQUEST_BYTE: u64 = 16;
const MAX_FUEL: u64 = 20_000_000;
const MAX_DEPTH: usize = 100;
const MAX_SOURCE_BYTES: usize = 1 << 20;
const MAX_OUTPUT_BYTES: usize = 64 << 20;
const NAME: &str = "chat template";

pub struct Template {
    environment: Environment<'static>,
    bos: String,
    eos: String,
}

impl Template {
    pub fn new(source: &str, bos: &str, eos: &str) -> Result<Self> {
        if source.len() > MAX_SOURCE_BYTES {
            return fail!(
                TooLarge,
                "{NAME}: {} bytes, at most {MAX_SOURCE_BYTES} are taken",
                source.len()
            );
        }
        let mut environment = environment()?;
        match environment.add_template_owned(NAME, tags::without_generation(source)) {
            Ok(()) => Ok(Template { environment, bos: bos.into(), eos: eos.into() }),
            Err(e) => Err(line_of(&e, Status::Malformed)),
        }
    }

    /// request: the template's variables, a JSON object.
    pub fn render(&self, request: &[u8]) -> Result<String> {
        let mut variables = match serde_json::from_slice(request) {
            Ok(Json::Object(variables)) => variables,
            Ok(_) => return fail!(Invalid, "{NAME}: the request is not a JSON object"),
            Err(e) => return fail!(Invalid, "{NAME}: the request is not JSON: {e}"),
        };
        let continued = final_message(&variables)?;
        for (name, value) in [
            ("add_generation_prompt", Json::Bool(false)),
            ("tools", Json::Null),
            ("documents", Json::Null),
            ("bos_token", Json::from(self.bos.as_str())),
            ("eos_token", Json::from(self.eos.as_str())),
        ] {
            variables.entry(name).or_insert(value);
        }
        let fuel = (FUEL + FUEL_PER_REQUEST_BYTE * request.len() as u64).min(MAX_FUEL);
        let text = self.run(python::from_json(&Json::Object(variables)), fuel)?;
        match continued {
            Some(message) => cut_after(text, &message),
            None => Ok(text),
        }
    }

    fn run(&self, variables: Value, fuel: u64) -> Result<String> {
        let mut text = Vec::new();
        let mut environment = self.environment.clone();
        environment.set_fuel(Some(fuel));
        environment
            .get_template(NAME)
            .and_then(|template| {
                let out = Bounded { text: &mut text };
                template.render_captured_to(variables, out).map(drop)
            })
            .map_err(|e| line_of(&e, Status::Invalid))?;
        match String::from_utf8(text) {
            Ok(text) => Ok(text),
            Err(_) => fail!(Internal, "{NAME}: rendered invalid UTF-8"),
        }
    }
}

struct Bounded<'a> {
    text: &'a mut Vec<u8>,
}

impl std::io::Write for Bounded<'_> {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        if self.text.len() + bytes.len() > MAX_OUTPUT_BYTES {
            return Err(std::io::Error::other("the rendered text is too long"));
        }
        self.text.extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

fn environment() -> Result<Environment<'static>> {
    let mut environment = Environment::new();
    match SyntaxConfig::builder().trim_blocks(true).lstrip_blocks(true).build() {
        Ok(syntax) => environment.set_syntax(syntax),
        Err(e) => return Err(line_of(&e, Status::Internal)),
    }
    environment.set_recursion_limit(MAX_DEPTH);
    environment.set_formatter(|out, _, value| {
        out.write_str(&python::text(value)?).map_err(JinjaError::from)
    });
    environment.set_unknown_method_callback(python::method);
    environment.add_filter("tojson", to_json);
    environment.add_filter("string", |value: &Value| python::text(value));
    environment.add_function("raise_exception", raise_exception);
    environment.add_function("strftime_now", |format: &str| time::strftime_now(format));
    Ok(environment)
}

fn raise_exception(message: &str) -> std::result::Result<Value, JinjaError> {
    Err(JinjaError::new(ErrorKind::InvalidOperation, message.to_owned()).with_source(Raised))
}

/// Marks the error as the template's own words.
#[derive(Debug)]
struct Raised;

impl std::fmt::Display for Raised {
    fn fmt(&self, f: &mut std::fmt::Formatter) -> std::fmt::Result {
        f.write_str("raised by the template")
    }
}

impl std::error::Error for Raised {}

fn to_json(
    state: &State,
    value: &Value,
    options: Kwargs,
) -> std::result::Result<Value, JinjaError> {
    let style = python::JsonStyle {
        ensure_ascii: options.get::<Option<bool>>("ensure_ascii")?.unwrap_or(false),
        indent: python::indent_of(options.get::<Option<Value>>("indent")?.as_ref())?,
        separators: options.get::<Option<Vec<String>>>("separators")?,
        sort_keys: options.get::<Option<bool>>("sort_keys")?.unwrap_or(false),
    };
    options.assert_all_used()?;
    let json = python::to_json(value, &style)?;
    state.consume_fuel(json.len() as u64 / 64)?;
    Ok(Value::from_safe_string(json))
}

fn line_of(error: &JinjaError, status: Status) -> Error {
    let detail = error.detail().unwrap_or_default();
    let source = std::error::Error::source(error);
    if source.is_some_and(|source| source.is::<Raised>()) {
        return Error::new(Status::Invalid, format!("{NAME}: {detail}"));
    }
    if error.kind() == ErrorKind::OutOfFuel {
        return Error::new(Status::Invalid, format!("{NAME}: ran for too long"));
    }
    let place = error.line().map(|line| format!(" (line {line})")).unwrap_or_default();
    let reason = if detail.is_empty() { String::new() } else { format!(": {detail}") };
    Error::new(status, format!("{NAME}: {}{reason}{place}", error.kind()))
}

/// The text of the last message, when the answer is to go on from it.
fn final_message(variables: &serde_json::Map<String, Json>) -> Result<Option<String>> {
    let is_set = |name: &str| variables.get(name).and_then(Json::as_bool).unwrap_or(false);
    if !is_set("continue_final_message") {
        return Ok(None);
    }
    if is_set("add_generation_prompt") {
        return fail!(
            Invalid,
            "continue_final_message and add_generation_prompt exclude each other"
        );
    }
    let content = variables
        .get("messages")
        .and_then(Json::as_array)
        .and_then(|messages| messages.last())
        .and_then(|message| message.get("content"));
    let text = match content {
        Some(Json::String(text)) => Some(text.as_str()),
        Some(Json::Array(parts)) => {
            parts.iter().rev().find_map(|part| part.get("text").and_then(Json::as_str))
        }
        _ => None,
    };
    match text {
        Some(text) => Ok(Some(text.to_owned())),
        None => fail!(Invalid, "continue_final_message: the last message has no text"),
    }
}

/// The rule of transformers' apply_chat_template: nothing after the final message remains, and of
/// its trailing blanks only what the template kept.
fn cut_after(mut text: String, message: &str) -> Result<String> {
    let Some(begin) = text.rfind(message.trim()) else {
        return fail!(
            Invalid,
            "continue_final_message: the template changes the final message, so it cannot be \
             continued"
        );
    };
    let kept = message.trim_start();
    let length = if text[begin..].starts_with(kept) { kept.len() } else { message.trim().len() };
    text.truncate(begin + length);
    Ok(text)
}
