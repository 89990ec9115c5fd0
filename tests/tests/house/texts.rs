//! Texts are for people: nothing branches on their content, and an error is a type.

use std::collections::BTreeSet;

use syn::spanned::Spanned;

use crate::source::{Breach, Rule, Source};
use crate::{AGENT, COMPARED_TEXTS, ONLY_SHOWN, PROTO};

/// Methods that inspect a text.
const LOOKS: [&str; 14] = [
    "contains",
    "starts_with",
    "ends_with",
    "find",
    "rfind",
    "split",
    "split_once",
    "strip_prefix",
    "strip_suffix",
    "eq",
    "eq_ignore_ascii_case",
    "matches",
    "parse",
    "cmp",
];

/// Methods and macros that make a text from a value, and those that forward one.
const MAKES: [&str; 1] = ["to_string"];
const HANDS_ON: [&str; 7] =
    ["as_str", "as_ref", "trim", "to_lowercase", "to_ascii_lowercase", "to_uppercase", "clone"];

fn ships(source: &Source) -> bool {
    source.module(AGENT).or_else(|| source.module(PROTO)).is_some()
}

/// A failing act reports why by a type of its own: a text can only be shown, or parsed.
pub(crate) fn errors_are_types(source: &Source) -> Vec<Breach> {
    if !ships(source) {
        return Vec::new();
    }
    struct Errors<'a>(&'a Source, Vec<Breach>);
    impl Rule for Errors<'_> {
        fn ty(&mut self, ty: &syn::Type) {
            let syn::Type::Path(path) = ty else { return };
            let Some(last) = path.path.segments.last().filter(|last| last.ident == "Result") else { return };
            let syn::PathArguments::AngleBracketed(arguments) = &last.arguments else { return };
            if arguments.args.len() < 2 {
                return;
            }
            let Some(syn::GenericArgument::Type(error)) = arguments.args.last() else { return };
            if is_text(error) {
                let line = last.span().start().line;
                self.1.push(self.0.breach(line, "an error is a type of its act, and not a text"));
            }
        }
    }
    fn is_text(ty: &syn::Type) -> bool {
        match ty {
            syn::Type::Reference(reference) => is_text(&reference.elem),
            syn::Type::Paren(paren) => is_text(&paren.elem),
            syn::Type::Path(path) => path.path.segments.last().is_some_and(|last| match &last.arguments {
                // `Box<str>`, `Cow<'_, str>`.
                syn::PathArguments::AngleBracketed(arguments) => arguments.args.iter().any(
                    |one| matches!(one, syn::GenericArgument::Type(ty) if last.ident != "Vec" && is_text(ty)),
                ),
                _ => last.ident == "String" || last.ident == "str",
            }),
            _ => false,
        }
    }
    let mut found = Errors(source, Vec::new());
    source.visit(&mut found);
    found.1
}

/// Where a text made from a value is inspected or compared.
fn texts_decide(source: &Source) -> Vec<Breach> {
    struct Texts<'a> {
        source: &'a Source,
        /// Names in the functions around that hold such a text.
        made: Vec<BTreeSet<String>>,
        found: Vec<Breach>,
    }
    impl Texts<'_> {
        fn is_made(&self, expr: &syn::Expr) -> bool {
            match expr {
                syn::Expr::MethodCall(call) => {
                    let method = call.method.to_string();
                    MAKES.contains(&method.as_str()) && !is_literal(&call.receiver)
                        || HANDS_ON.contains(&method.as_str()) && self.is_made(&call.receiver)
                }
                syn::Expr::Macro(made) => {
                    made.mac.path.segments.last().is_some_and(|last| last.ident == "format")
                }
                syn::Expr::Reference(one) => self.is_made(&one.expr),
                syn::Expr::Paren(one) => self.is_made(&one.expr),
                syn::Expr::Group(one) => self.is_made(&one.expr),
                syn::Expr::Unary(one) => self.is_made(&one.expr),
                syn::Expr::Index(one) => self.is_made(&one.expr),
                syn::Expr::Path(path) => path
                    .path
                    .get_ident()
                    .is_some_and(|name| self.made.iter().any(|names| names.contains(&name.to_string()))),
                _ => false,
            }
        }
        fn report(&mut self, place: impl Spanned) {
            let line = place.span().start().line;
            let why = "a text is only shown: decide by the type it was made of";
            self.found.push(self.source.breach(line, why));
        }
    }
    impl Rule for Texts<'_> {
        fn function(&mut self, begins: bool) {
            match begins {
                true => self.made.push(BTreeSet::new()),
                false => drop(self.made.pop()),
            }
        }
        fn local(&mut self, local: &syn::Local) {
            let mut pattern = &local.pat;
            if let syn::Pat::Type(typed) = pattern {
                pattern = &typed.pat;
            }
            let syn::Pat::Ident(name) = pattern else { return };
            let made = local.init.as_ref().is_some_and(|init| self.is_made(&init.expr));
            let Some(names) = self.made.last_mut() else { return };
            match made {
                true => names.insert(name.ident.to_string()),
                false => names.remove(&name.ident.to_string()),
            };
        }
        fn expr(&mut self, expr: &syn::Expr) {
            match expr {
                syn::Expr::MethodCall(call)
                    if LOOKS.contains(&call.method.to_string().as_str()) && self.is_made(&call.receiver) =>
                {
                    self.report(&call.method);
                }
                syn::Expr::Binary(binary)
                    if matches!(binary.op, syn::BinOp::Eq(_) | syn::BinOp::Ne(_))
                        && (self.is_made(&binary.left) || self.is_made(&binary.right)) =>
                {
                    self.report(binary.op);
                }
                syn::Expr::Match(matched) if self.is_made(&matched.expr) => self.report(matched.match_token),
                syn::Expr::Let(matched) if self.is_made(&matched.expr) => self.report(matched.let_token),
                _ => {}
            }
        }
    }
    let mut found = Texts { source, made: Vec::new(), found: Vec::new() };
    source.visit(&mut found);
    found.found
}

fn is_literal(expr: &syn::Expr) -> bool {
    matches!(expr, syn::Expr::Lit(_))
}

/// The same, without the listed files.
pub(crate) fn texts_decide_nothing(source: &Source) -> Vec<Breach> {
    let listed = COMPARED_TEXTS.iter().any(|(file, _)| source.path.ends_with(file));
    if ships(source) && !listed { texts_decide(source) } else { Vec::new() }
}

/// Listed files that no longer break the rule.
pub(crate) fn stale(sources: &[Source]) -> Vec<String> {
    let breaks = |file: &str| {
        sources.iter().any(|source| source.path.ends_with(file) && !texts_decide(source).is_empty())
    };
    let gone = COMPARED_TEXTS.iter().filter(|(file, _)| !breaks(file));
    gone.map(|(file, _)| format!("a text in {file}")).collect()
}

/// Display-only types have no comparison and no access: these would undo that.
pub(crate) fn shown_texts_stay_closed(source: &Source) -> Vec<Breach> {
    const TRAITS: [&str; 8] = ["PartialEq", "Eq", "PartialOrd", "Ord", "Hash", "AsRef", "Deref", "Borrow"];
    let name_of = |ty: &syn::Type| match ty {
        syn::Type::Path(path) => path.path.segments.last().map(|last| last.ident.to_string()),
        _ => None,
    };
    let is_closed = |name: &str| ONLY_SHOWN.contains(&name);
    if source.module(PROTO).is_none() {
        return Vec::new();
    }
    let mut breaches = Vec::new();
    for item in &source.file.items {
        match item {
            syn::Item::Struct(item) if is_closed(&item.ident.to_string()) => {
                let derives = item.attrs.iter().filter(|one| one.path().is_ident("derive"));
                let tokens = derives.filter_map(|one| one.meta.require_list().ok());
                let names: Vec<String> = tokens
                    .flat_map(|list| list.tokens.clone())
                    .map(|token| token.to_string())
                    .filter(|name| TRAITS.contains(&name.as_str()))
                    .collect();
                let line = item.ident.span().start().line;
                breaches.extend(names.iter().map(|name| {
                    source.breach(line, format!("{} derives {name}: it can only be shown", item.ident))
                }));
            }
            syn::Item::Impl(item) => {
                let Some(name) = name_of(&item.self_ty).filter(|name| is_closed(name)) else { continue };
                let line = item.impl_token.span().start().line;
                if let Some((_, of, _)) = &item.trait_
                    && let Some(of) = of.segments.last().map(|last| last.ident.to_string())
                    && TRAITS.contains(&of.as_str())
                {
                    breaches.push(source.breach(line, format!("{name} has {of}: it can only be shown")));
                }
                for one in &item.items {
                    let syn::ImplItem::Fn(method) = one else { continue };
                    let gives = match &method.sig.output {
                        syn::ReturnType::Type(_, ty) => matches!(&**ty, syn::Type::Reference(_)),
                        syn::ReturnType::Default => false,
                    };
                    if gives && item.trait_.is_none() {
                        let line = method.sig.span().start().line;
                        breaches.push(
                            source.breach(line, format!("{name} lends its text: it can only be shown")),
                        );
                    }
                }
            }
            _ => {}
        }
    }
    breaches
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::source::lines_found;

    fn file() -> String {
        format!("{AGENT}/part.rs")
    }

    #[test]
    fn branching_on_a_text_is_reported() {
        let of = |text: &str| lines_found(&file(), text, texts_decide_nothing);
        for bad in [
            "if one.reason.to_string() == \"refused\" {}",
            "let x = error.to_string().contains(\"refused\");",
            "let x = health\n.reason()\n.to_string()\n.starts_with('5');",
            "match one.reason.to_string().as_str() { _ => {} }",
            "let (a, b) = problem.detail.to_string().split_once(\"; \").unwrap();",
            "let x = error.to_string(); if x.contains(\"refused\") {}",
            "if format!(\"{error:#}\").contains(\"refused\") {}",
            "ensure!(!error.to_string().contains(\"refused\"), \"x\");",
            "tokio::select! { _ = a => { if error.to_string() == \"x\" {} } }",
            "if let \"refused\" = error.to_string().as_str() {}",
        ] {
            assert_eq!(of(&format!("fn x() {{ {bad} }}")).len(), 1, "{bad}");
        }
        for fine in [
            "html.text(&one.reason.to_string());",
            "let x = one.cause == Some(Cause::PortClosed);",
            "let x = name == \"a\".to_string();",
            "let x = error.to_string(); show(&x);",
            "let x = line.contains(\"a\");",
            "let x = y.to_string(); let x = lines; x.contains(\"a\");",
        ] {
            assert_eq!(of(&format!("fn x() {{ {fine} }}")), [0; 0], "{fine}");
        }
        let two = "fn x() { let a = y.to_string(); }\nfn z(a: &str) { a.contains(\"b\"); }";
        assert_eq!(of(two), [0; 0], "a name of another function");
        let test = "#[test] fn x() { assert!(error.to_string().contains(\"refused\")); }";
        assert_eq!(of(test), [0; 0]);
    }

    #[test]
    fn errors_that_are_texts_are_reported() {
        let of = |text| lines_found(&file(), text, errors_are_types);
        assert_eq!(of("fn a() {}\nfn x() -> Result<(), String> {}"), [2]);
        for bad in [
            "struct A<'a> { by: Result<Vec<(NodeId, &'a Admitted)>, String> }",
            "fn x() { let all: BTreeMap<Fact, Result<(), String>>; }",
            "fn x(\n) -> Result<\n    Map<String, fn() -> u8>,\n    String,\n> {}",
            "fn l2() -> Result<Mac, &'static str> {}",
            "fn l2() -> std::result::Result<Mac, Box<str>> {}",
            "fn l2() -> Result<Mac, Cow<'static, str>> {}",
            "#[cfg(test)] use a::b; fn x() -> Result<(), String> {}",
        ] {
            assert_eq!(of(bad).len(), 1, "{bad}");
        }
        for fine in [
            "fn x() -> Result<String, BadFrame> {}",
            "fn x() -> Result<String> {}",
            "fn x() -> Result<(String, String), Vec<String>> {}",
            "// Result<(), String>\nfn x() {}",
            "#[cfg(test)]\nfn x() -> Result<(), String> {}",
        ] {
            assert_eq!(of(fine), [0; 0], "{fine}");
        }
    }

    #[test]
    fn a_comparable_or_lent_text_is_reported() {
        let name = ONLY_SHOWN[0];
        let of = |text: &str| lines_found(&format!("{PROTO}/cause.rs"), text, shown_texts_stay_closed);
        assert_eq!(of(&format!("\nimpl PartialEq for {name} {{}}")), [2]);
        assert_eq!(of(&format!("impl AsRef<str> for {name} {{}}")), [1]);
        assert_eq!(of(&format!("impl {name} {{ pub fn as_str(&self) -> &str {{ &self.0 }} }}")), [1]);
        assert_eq!(of(&format!("#[derive(Clone, PartialEq)]\npub struct {name}(Box<str>);")), [2]);
        for fine in [
            format!("#[derive(Clone, Default)]\npub struct {name}(Box<str>);"),
            format!("impl Display for {name} {{}}"),
            "#[derive(PartialEq)] struct Another;".to_owned(),
        ] {
            assert_eq!(of(&fine), [0; 0], "{fine}");
        }
    }
}
