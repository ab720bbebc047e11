// SPDX-License-Identifier: Apache-2.0
//! text_border TEXT: prints a C file that compiles only while TEXT/text.h says what the Rust in
//! TEXT/src does. Every function is declared once more, which C allows for equal types only; structs
//! are compared field by field, enums value by value. What C's types cannot tell is compared here:
//! which functions and types there are, and the names of arguments (two ids swapped are still two ids).

mod c_names;
mod c_types;
mod header;

use std::path::{Path, PathBuf};
use std::{env, fs, io, process};

use quote::ToTokens;
use syn::{Abi, Attribute, FnArg, ForeignItem, Item, ItemEnum, ItemStruct, Pat, Signature, Type};

use c_names::{c_name, enumerators, is_whole};
use c_types::{declare, declare_function, declare_function_pointer};
use header::Header;

type Result<T> = std::result::Result<T, String>;

const PRELUDE: &str = "#include <stddef.h>\n\n#include \"text/text.h\"\n\n\
    #define TYPE(type, field) __typeof__(((type *)NULL)->field)\n\
    #define SAME_FIELD(a, b, field) __builtin_types_compatible_p(TYPE(a, field), TYPE(b, field))\n\
    #define PROVE(claim) _Static_assert(claim, \"text.h and Rust differ: \" #claim)\n\n";

struct Border {
    header: Header,
    c: String,
}

fn main() {
    let text = env::args().nth(1).unwrap_or_else(|| fail("usage: text_border TEXT"));
    match border(Path::new(&text)) {
        Ok(c) => print!("{c}"),
        Err(line) => fail(&line),
    }
}

fn fail(line: &str) -> ! {
    eprintln!("text_border: {line}");
    process::exit(1);
}

fn border(text: &Path) -> Result<String> {
    let mut border =
        Border { header: Header::new(&read(&text.join("text.h"))?), c: PRELUDE.into() };
    let mut sources = Vec::new();
    find_sources(&text.join("src"), &mut sources)
        .map_err(|e| format!("{}: {e}", text.display()))?;
    sources.sort();
    for path in sources {
        let within = |line: String| format!("{}: {line}", path.display());
        let file = syn::parse_file(&read(&path)?).map_err(|e| within(e.to_string()))?;
        file.items.iter().try_for_each(|item| border.take(item)).map_err(within)?;
    }
    border.header.all_seen()?;
    Ok(border.c)
}

fn read(path: &Path) -> Result<String> {
    fs::read_to_string(path).map_err(|e| format!("{}: {e}", path.display()))
}

fn find_sources(folder: &Path, sources: &mut Vec<PathBuf>) -> io::Result<()> {
    for entry in fs::read_dir(folder)? {
        let path = entry?.path();
        if path.is_dir() {
            find_sources(&path, sources)?;
        } else if path.extension().is_some_and(|end| end == "rs") {
            sources.push(path);
        }
    }
    Ok(())
}

fn is_c(abi: Option<&Abi>) -> bool {
    abi.and_then(|abi| abi.name.as_ref()).is_some_and(|name| name.value() == "C")
}

fn has(attributes: &[Attribute], name: &str) -> bool {
    attributes.iter().any(|attribute| attribute.path().is_ident(name))
}

fn known(rust: &str) -> Result<&'static str> {
    c_name(rust).ok_or_else(|| format!("type {rust}: no C name known"))
}

fn typed(argument: &FnArg) -> Result<(String, &Type)> {
    match argument {
        FnArg::Typed(typed) => match &*typed.pat {
            Pat::Ident(name) => Ok((name.ident.to_string(), &typed.ty)),
            other => Err(format!("argument {} has no name", other.to_token_stream())),
        },
        FnArg::Receiver(_) => Err("self is no argument of C".to_string()),
    }
}

impl Border {
    fn take(&mut self, item: &Item) -> Result<()> {
        match item {
            Item::Fn(f) if has(&f.attrs, "no_mangle") && is_c(f.sig.abi.as_ref()) => {
                let names = f.sig.inputs.iter().map(|argument| Ok(typed(argument)?.0));
                self.header.see(&f.sig.ident.to_string(), &names.collect::<Result<Vec<_>>>()?)?;
                self.function(&f.sig)
            }
            Item::ForeignMod(block) if is_c(Some(&block.abi)) => {
                block.items.iter().try_for_each(|item| match item {
                    ForeignItem::Fn(f) => self.function(&f.sig),
                    other => Err(format!("cannot compare {}", other.to_token_stream())),
                })
            }
            Item::Struct(s) if has(&s.attrs, "repr") => self.structure(s),
            Item::Enum(e) if has(&e.attrs, "repr") => self.enumeration(e),
            Item::Type(t) => match c_name(&t.ident.to_string()) {
                Some(name) => self.alias(name, &t.ty),
                None => Ok(()),
            },
            _ => Ok(()),
        }
    }

    fn function(&mut self, sig: &Signature) -> Result<()> {
        let types = sig.inputs.iter().map(|argument| Ok(typed(argument)?.1));
        let types = types.collect::<Result<Vec<_>>>()?;
        let is_variadic = sig.variadic.is_some();
        let line = declare_function(&sig.ident.to_string(), &types, is_variadic, &sig.output)?;
        self.line(&format!("{line};"));
        Ok(())
    }

    /// Field by field; an initializer with as many values as Rust has fields finds those it lacks.
    fn structure(&mut self, s: &ItemStruct) -> Result<()> {
        let fields = s.fields.iter().map(|field| match &field.ident {
            Some(name) => Ok((name.to_string(), &field.ty)),
            None => Err(format!("struct {}: a field has no name", s.ident)),
        });
        let fields = fields.collect::<Result<Vec<_>>>()?;
        if fields.iter().all(|(name, _)| name == "_opaque") {
            return Ok(()); // only ever pointed to
        }
        let (rust, c) = (format!("struct rust_{}", s.ident), known(&s.ident.to_string())?);
        self.header.see_type(c);
        let body =
            fields.iter().map(|(name, ty)| Ok(format!("    {};\n", declare(ty, name, false)?)));
        self.line(&format!("\n{rust} {{\n{}}};", body.collect::<Result<String>>()?));
        self.prove(&format!("sizeof({rust}) == sizeof({c})"));
        for (name, _) in &fields {
            self.prove(&format!("offsetof({rust}, {name}) == offsetof({c}, {name})"));
            self.prove(&format!("SAME_FIELD({rust}, {c}, {name})"));
        }
        let zeros = vec!["0"; fields.len()].join(", ");
        self.line(&format!("const {c} rust_{}_has_every_field = {{{zeros}}};", s.ident));
        Ok(())
    }

    /// Value by value; a switch finds those that Rust lacks.
    fn enumeration(&mut self, e: &ItemEnum) -> Result<()> {
        let rust = e.ident.to_string();
        let c = known(&rust)?;
        self.header.see_type(c);
        let values = enumerators(e)?;
        self.line("");
        self.prove(&format!("sizeof({c}) == sizeof(int)"));
        for (name, value) in &values {
            self.prove(&format!("{name} == {value}"));
        }
        if is_whole(&rust) {
            let cases: String = values.iter().map(|(name, _)| format!("case {name}: ")).collect();
            self.line(&format!("void rust_{rust}_has_every_value({c} value);"));
            self.line(&format!("void rust_{rust}_has_every_value({c} value)"));
            self.line(&format!("{{\n    switch (value) {{ {cases}return; }}\n}}"));
        }
        Ok(())
    }

    /// A function pointer is declared again; an integer that stands for an enum has its size.
    fn alias(&mut self, name: &str, ty: &Type) -> Result<()> {
        match declare_function_pointer(name, ty)? {
            Some(line) => self.line(&format!("typedef {line};")),
            None => {
                let integer = declare(ty, "", false)?;
                self.prove(&format!("sizeof({name}) == sizeof({integer})"));
            }
        }
        Ok(())
    }

    fn prove(&mut self, claim: &str) {
        self.line(&format!("PROVE({claim});"));
    }

    fn line(&mut self, line: &str) {
        self.c.push_str(line);
        self.c.push('\n');
    }
}
