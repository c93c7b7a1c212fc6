//! What is changed in bindgen's output: constants are `i32` as the fields that take them, everything has documentation,
//! zeroed structs are made without `unsafe`, and two tables at the end say what the bindings claim, for a test.

use quote::{ToTokens, format_ident, quote};
use std::error::Error;
use syn::{Fields, Item, ItemConst, ItemStruct, ItemType, Type, parse_quote};

pub(crate) fn edited(bindings: &str) -> Result<String, Box<dyn Error>> {
    let items = syn::parse_file(bindings)?.items;
    let (mut text, mut structs, mut constants) = (String::new(), Vec::new(), Vec::new());
    let mut previous_is_constant = false;
    for item in items {
        let is_constant = matches!(item, Item::Const(_));
        if !(is_constant && previous_is_constant) {
            text += "\n";
        }
        previous_is_constant = is_constant;
        match item {
            Item::Const(constant) => {
                constants.push(constant.ident.clone());
                text += &print([Item::Const(edited_constant(constant))]);
            }
            Item::Type(alias) => text += &print([Item::Type(edited_alias(alias))]),
            Item::Struct(item) => {
                let default = default_of(&item)?;
                structs.push(item.clone());
                text += &print([derived(item).into()]);
                text += "\n";
                text += &print([default]);
            }
            other => return Err(format!("the header has something unexpected: {}", other.to_token_stream()).into()),
        }
    }
    Ok(text + "\n" + &layouts(&structs)? + "\n" + &table(&constants))
}

fn print(items: impl IntoIterator<Item = Item>) -> String {
    prettyplease::unparse(&syn::File { shebang: None, attrs: Vec::new(), items: items.into_iter().collect() })
}

/// Constants of an enum keep its name as their type; `#define`s get `i32`.
fn edited_constant(mut constant: ItemConst) -> ItemConst {
    let is_macro = matches!(&*constant.ty, Type::Path(path) if path.path.is_ident("u32") || path.path.is_ident("i32"));
    if is_macro {
        *constant.ty = parse_quote!(i32);
    }
    if constant.attrs.is_empty() {
        let text = match &*constant.ty {
            _ if is_macro => format!(" `{}` of the kernels.", constant.ident),
            kind => format!(" A [`{}`].", kind.to_token_stream()),
        };
        constant.attrs.push(parse_quote!(#[doc = #text]));
    }
    constant
}

/// An enum is `unsigned int` in C, but the fields that hold one are `int32_t`.
fn edited_alias(mut alias: ItemType) -> ItemType {
    *alias.ty = parse_quote!(i32);
    alias
}

fn derived(mut item: ItemStruct) -> ItemStruct {
    item.attrs.retain(|attribute| !attribute.path().is_ident("derive"));
    item.attrs.push(parse_quote!(#[derive(Clone, Copy, Debug)]));
    item
}

/// All null and zero. Not derived, because long arrays have no default.
fn default_of(item: &ItemStruct) -> Result<Item, Box<dyn Error>> {
    let name = &item.ident;
    let (mut fields, mut values) = (Vec::new(), Vec::new());
    for (field, kind) in members(item)? {
        fields.push(field);
        values.push(zero(kind));
    }
    Ok(parse_quote! {
        impl Default for #name {
            fn default() -> Self {
                Self { #(#fields: #values),* }
            }
        }
    })
}

fn zero(kind: &Type) -> syn::Expr {
    match kind {
        Type::Ptr(pointer) if pointer.mutability.is_some() => parse_quote!(::core::ptr::null_mut()),
        Type::Ptr(_) => parse_quote!(::core::ptr::null()),
        Type::Array(array) => {
            let (element, length) = (zero(&array.elem), &array.len);
            parse_quote!([#element; #length])
        }
        Type::Path(path) if path.path.is_ident("f32") || path.path.is_ident("f64") => parse_quote!(0.0),
        Type::Path(path) if path.path.get_ident().is_some_and(is_integer) => parse_quote!(0),
        other => parse_quote!(<#other>::default()),
    }
}

fn is_integer(name: &syn::Ident) -> bool {
    ["i8", "u8", "i16", "u16", "i32", "u32", "i64", "u64"].iter().any(|integer| name == integer)
}

fn members(item: &ItemStruct) -> Result<Vec<(&syn::Ident, &Type)>, Box<dyn Error>> {
    let Fields::Named(fields) = &item.fields else {
        return Err(format!("`{}` has no named fields", item.ident).into());
    };
    Ok(fields.named.iter().filter_map(|field| Some((field.ident.as_ref()?, &field.ty))).collect())
}

/// The table of every struct's size, alignment and fields, as Rust lays them out.
fn layouts(structs: &[ItemStruct]) -> Result<String, Box<dyn Error>> {
    let mut entries = Vec::new();
    for item in structs {
        let (name, text) = (&item.ident, item.ident.to_string());
        let fields = members(item)?.into_iter().map(|(field, kind)| {
            let text = field.to_string();
            quote!(Field { name: #text, offset: offset_of!(#name, #field), size: size_of::<#kind>() })
        });
        entries.push(quote!(Layout {
            name: #text,
            size: size_of::<#name>(),
            align: align_of::<#name>(),
            fields: &[#(#fields),*],
        }));
    }
    let doc = " Every struct as Rust lays it out.";
    Ok(print([parse_quote! {
        #[doc = #doc]
        pub const LAYOUTS: &[Layout] = &[#(#entries),*];
    }]))
}

/// The table of every constant.
fn table(constants: &[syn::Ident]) -> String {
    let entries = constants.iter().map(|name| {
        let (text, name) = (name.to_string(), format_ident!("{name}"));
        quote!((#text, #name))
    });
    let doc = " Every constant by its name.";
    print([parse_quote! {
        #[doc = #doc]
        pub const CONSTANTS: &[(&str, i32)] = &[#(#entries),*];
    }])
}
