//! Public items that nobody uses.

use std::collections::{BTreeMap, BTreeSet};

use proc_macro2::{TokenStream, TokenTree};
use syn::spanned::Spanned;

use crate::source::{Breach, Rule, Source, attributes, for_tests};
use crate::{AGENT, PROTO};

/// Public items of proto, and items of the agent that its other files may use, which no other file and no
/// test names. By name alone: two items of one name keep each other alive, so that every report is certain.
pub(crate) fn items(sources: &[Source]) -> Vec<Breach> {
    // Which files name what, tests as files of their own.
    let mut names: BTreeMap<String, BTreeSet<(usize, bool)>> = BTreeMap::new();
    for (i, source) in sources.iter().enumerate() {
        let Ok(tokens) = source.text.parse::<TokenStream>() else { continue };
        let mut own = Vec::new();
        identifiers(tokens, &mut own);
        let mut shipped = Shipped::default();
        source.visit(&mut shipped);
        for name in own {
            let only_tests = !shipped.names.contains(&name);
            names.entry(name).or_default().insert((i, only_tests));
        }
        for name in in_tests(source) {
            names.entry(name).or_default().insert((i, true));
        }
    }
    let mut breaches = Vec::new();
    for (i, source) in sources.iter().enumerate() {
        if source.only_tests || source.module(PROTO).or_else(|| source.module(AGENT)).is_none() {
            continue;
        }
        let mut public = Public::default();
        source.visit(&mut public);
        for (line, name, kind) in public.found {
            let used = names.get(&name).is_some_and(|files| files.iter().any(|(at, test)| *at != i || *test));
            // A type may be public for a public function that gives it, without being named elsewhere.
            let given = kind == Kind::Type && public.in_signatures.contains(&name);
            if !used && !given {
                breaches.push(
                    source.breach(line, format!("nobody else uses {name}: make it private, or delete it")),
                );
            }
        }
    }
    breaches
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Type,
    Other,
}

/// The names in what ships.
#[derive(Default)]
struct Shipped {
    names: BTreeSet<String>,
}

impl Rule for Shipped {
    fn item(&mut self, item: &syn::Item) {
        let nested = matches!(item, syn::Item::Mod(_));
        if !nested {
            let mut names = Vec::new();
            identifiers(quote::quote!(#item), &mut names);
            self.names.extend(names);
        }
    }
}

/// The names in what a file has for tests.
fn in_tests(source: &Source) -> Vec<String> {
    let mut names = Vec::new();
    for item in &source.file.items {
        if source.only_tests || for_tests(attributes(item)) {
            identifiers(quote::quote!(#item), &mut names);
        }
    }
    names
}

/// All identifiers, and those that format strings name, as in `"{name}"`.
fn identifiers(tokens: TokenStream, found: &mut Vec<String>) {
    for token in tokens {
        match token {
            TokenTree::Ident(ident) => found.push(ident.to_string().trim_start_matches("r#").to_owned()),
            TokenTree::Group(group) => identifiers(group.stream(), found),
            TokenTree::Literal(literal) => {
                let text = literal.to_string();
                let pieces = text.split(|c: char| !c.is_alphanumeric() && c != '_');
                let after_brace = text.split('{').skip(1).map(|rest| {
                    rest.split(|c: char| !c.is_alphanumeric() && c != '_').next().unwrap_or_default()
                });
                // serde's `with = "path"` and the like name items in texts that are nothing else.
                let path = text.trim_matches('"').chars().all(|c| c.is_alphanumeric() || "_:".contains(c));
                if path {
                    found.extend(pieces.filter(|one| !one.is_empty()).map(str::to_owned));
                } else {
                    found.extend(after_brace.filter(|one| !one.is_empty()).map(str::to_owned));
                }
            }
            TokenTree::Punct(_) => {}
        }
    }
}

/// What a file offers to others.
#[derive(Default)]
struct Public {
    found: Vec<(usize, String, Kind)>,
    in_signatures: BTreeSet<String>,
    /// Lines of private modules within the file: what is public in them is so for the file.
    within: BTreeSet<usize>,
}

impl Public {
    fn offer(&mut self, visibility: &syn::Visibility, name: &syn::Ident, kind: Kind) {
        let line = name.span().start().line;
        if !matches!(visibility, syn::Visibility::Inherited) && !self.within.contains(&line) {
            self.found.push((line, name.to_string(), kind));
        }
    }

    fn signature(&mut self, visibility: &syn::Visibility, tokens: TokenStream) {
        if !matches!(visibility, syn::Visibility::Inherited) {
            let mut names = Vec::new();
            identifiers(tokens, &mut names);
            self.in_signatures.extend(names);
        }
    }
}

impl Rule for Public {
    fn item(&mut self, item: &syn::Item) {
        match item {
            syn::Item::Mod(one) if one.content.is_some() && matches!(one.vis, syn::Visibility::Inherited) => {
                let span = one.span();
                self.within.extend(span.start().line..=span.end().line);
            }
            syn::Item::Fn(one) => {
                let signature = &one.sig;
                self.offer(&one.vis, &one.sig.ident, Kind::Other);
                self.signature(&one.vis, quote::quote!(#signature));
            }
            syn::Item::Const(one) => self.offer(&one.vis, &one.ident, Kind::Other),
            syn::Item::Static(one) => self.offer(&one.vis, &one.ident, Kind::Other),
            syn::Item::Struct(one) => {
                let fields = &one.fields;
                self.offer(&one.vis, &one.ident, Kind::Type);
                self.signature(&one.vis, quote::quote!(#fields));
            }
            syn::Item::Enum(one) => {
                let variants = &one.variants;
                self.offer(&one.vis, &one.ident, Kind::Type);
                self.signature(&one.vis, quote::quote!(#variants));
            }
            syn::Item::Trait(one) => {
                self.offer(&one.vis, &one.ident, Kind::Type);
                self.signature(&one.vis, quote::quote!(#one));
            }
            syn::Item::Type(one) => {
                let ty = &one.ty;
                self.offer(&one.vis, &one.ident, Kind::Type);
                self.signature(&one.vis, quote::quote!(#ty));
            }
            // What a trait's implementation is made with is as public as the trait.
            syn::Item::Impl(one) if one.trait_.is_some() => {
                let mut names = Vec::new();
                let of = one.trait_.as_ref().map(|(_, path, _)| path);
                identifiers(quote::quote!(#of), &mut names);
                for one in &one.items {
                    match one {
                        syn::ImplItem::Type(one) => identifiers(quote::quote!(#one), &mut names),
                        syn::ImplItem::Fn(one) => {
                            let signature = &one.sig;
                            identifiers(quote::quote!(#signature), &mut names);
                        }
                        _ => {}
                    }
                }
                self.in_signatures.extend(names);
            }
            _ => {}
        }
    }

    fn method(&mut self, method: &syn::ImplItemFn) {
        let signature = &method.sig;
        self.offer(&method.vis, &method.sig.ident, Kind::Other);
        self.signature(&method.vis, quote::quote!(#signature));
    }

    fn constant(&mut self, constant: &syn::ImplItemConst) {
        self.offer(&constant.vis, &constant.ident, Kind::Other);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(files: &[(&str, &str)]) -> Vec<String> {
        let mut sources: Vec<Source> = files
            .iter()
            .map(|(path, text)| Source::read(format!("{PROTO}/{path}"), *text).unwrap())
            .collect();
        crate::source::mark_tests(&mut sources);
        let lines = items(&sources);
        lines.iter().map(|one| one.to_string().split(": ").nth(1).unwrap_or_default().to_owned()).collect()
    }

    #[test]
    fn public_items_named_nowhere_else_are_reported() {
        let dead = "pub struct A; impl A { pub fn is_proven(&self) { other() } } fn other() {}";
        let uses = ("b.rs", "use crate::a::A;");
        assert_eq!(of(&[("a.rs", dead), uses]), ["nobody else uses is_proven"]);
        let nested = "mod field {\n pub(super) const AT: u8 = 1; }\nfn y() { field::AT }";
        assert_eq!(of(&[("a.rs", nested)]), [""; 0], "public for its own file");
        let own = "pub fn x() {} fn y() { x() }";
        assert_eq!(of(&[("a.rs", own)]), ["nobody else uses x"], "its own file does not count");
        for (alive, why) in [
            ([("a.rs", dead), ("b.rs", "fn z(a: crate::a::A) { a.is_proven() }")], "another file"),
            ([("a.rs", dead), ("b.rs", "fn z() { assert!(a::A.is_proven()) }")], "within a macro"),
            ([("a.rs", "pub fn x() {} #[cfg(test)] mod tests { fn t() { super::x() } }"), uses], "a test"),
            ([("a.rs", "#[cfg(test)] pub fn x() {}"), uses], "for tests alone"),
            ([("a.rs", "pub const AT: u8 = 1;"), ("b.rs", "fn z() { y(\"{AT}\") }")], "shown by name"),
            ([("a.rs", "pub fn read() {}"), ("b.rs", "#[serde(with = \"a::read\")] struct Z;")], "by serde"),
            ([("a.rs", "pub struct G; pub fn g() -> G { G }"), ("b.rs", "fn z() { g() }")], "given"),
        ] {
            assert_eq!(of(&alive), [""; 0], "{why}");
        }
        assert_eq!(of(&[("a.rs", "pub fn x() {}"), ("b.rs", "/// [`x`]\nstruct B;")]).len(), 1, "a comment");
    }
}
