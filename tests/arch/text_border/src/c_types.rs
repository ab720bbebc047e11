// SPDX-License-Identifier: Apache-2.0
//! Rust types as C declares them.

use quote::ToTokens;
use syn::{GenericArgument, PathArguments, ReturnType, Type, TypeBareFn};

use crate::c_names::c_name;
use crate::Result;

/// "char const *const *name": C's declarators grow from the name outwards.
pub fn declare(ty: &Type, name: &str, is_const: bool) -> Result<String> {
    let qualifier = if is_const { "const " } else { "" };
    if let Some(reference @ Type::Reference(_)) = inside_option(ty) {
        return declare(reference, name, is_const); // None is NULL
    }
    match ty {
        Type::Ptr(to) => declare(&to.elem, &format!("*{qualifier}{name}"), to.mutability.is_none()),
        Type::Reference(to) => {
            declare(&to.elem, &format!("*{qualifier}{name}"), to.mutability.is_none())
        }
        Type::Path(path) => {
            let rust = path.path.segments.last().map(|s| s.ident.to_string()).unwrap_or_default();
            let c = c_name(&rust).ok_or_else(|| format!("type {rust}: no C name known"))?;
            Ok(format!("{c} {qualifier}{name}").trim_end().to_string())
        }
        other => Err(format!("type {}: has no place in C", other.to_token_stream())),
    }
}

pub fn declare_function(
    name: &str,
    arguments: &[&Type],
    is_variadic: bool,
    output: &ReturnType,
) -> Result<String> {
    let mut list: Vec<String> =
        arguments.iter().map(|ty| declare(ty, "", false)).collect::<Result<_>>()?;
    if is_variadic {
        list.push("...".to_string());
    }
    if list.is_empty() {
        list.push("void".to_string());
    }
    let call = format!("{name}({})", list.join(", "));
    match output {
        ReturnType::Default => Ok(format!("void {call}")),
        ReturnType::Type(_, ty) => declare(ty, &call, false),
    }
}

/// The declaration of name as a function pointer when ty is Option<extern "C" fn(…)>.
pub fn declare_function_pointer(name: &str, ty: &Type) -> Result<Option<String>> {
    let Some(function) = optional_function(ty) else {
        return Ok(None);
    };
    let arguments: Vec<_> = function.inputs.iter().map(|argument| &argument.ty).collect();
    declare_function(&format!("(*{name})"), &arguments, false, &function.output).map(Some)
}

fn optional_function(ty: &Type) -> Option<&TypeBareFn> {
    match inside_option(ty)? {
        Type::BareFn(function) => Some(function),
        _ => None,
    }
}

fn inside_option(ty: &Type) -> Option<&Type> {
    let Type::Path(path) = ty else { return None };
    let segment = path.path.segments.last().filter(|segment| segment.ident == "Option")?;
    let PathArguments::AngleBracketed(inner) = &segment.arguments else {
        return None;
    };
    match inner.args.first()? {
        GenericArgument::Type(ty) => Some(ty),
        _ => None,
    }
}
