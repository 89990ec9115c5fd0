//! A source file as its syntax, without what exists only for tests.

use std::cell::OnceCell;
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use proc_macro2::{TokenStream, TokenTree};
use syn::parse::Parser;
use syn::punctuated::Punctuated;
use syn::spanned::Spanned;
use syn::visit::{self, Visit};

use crate::{AGENT, PROTO};

/// A text file, its path from the root of the repository.
pub(crate) struct Text {
    pub(crate) path: PathBuf,
    pub(crate) text: String,
}

/// A source file, read.
pub(crate) struct Source {
    pub(crate) path: PathBuf,
    pub(crate) text: String,
    pub(crate) file: syn::File,
    /// A file that only a test build has.
    pub(crate) only_tests: bool,
    names: OnceCell<Vec<Named>>,
}

/// A rule that is broken.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Breach {
    path: PathBuf,
    line: usize,
    rule: String,
}

impl Breach {
    pub(crate) fn new(path: &Path, line: usize, rule: impl Into<String>) -> Breach {
        Breach { path: path.to_owned(), line, rule: rule.into() }
    }

    /// Another rule, broken at the same place.
    pub(crate) fn saying(&self, rule: impl Into<String>) -> Breach {
        Breach::new(&self.path, self.line, rule)
    }
}

impl fmt::Display for Breach {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}: {}", self.path.display(), self.line, self.rule)
    }
}

/// A name that the code uses, in full as far as this file's `use` tells.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Named {
    pub(crate) line: usize,
    /// `std::time::Instant::now`, or from the crate's root `crate::link::Port`.
    pub(crate) path: String,
}

impl Named {
    /// Whether it is this, or something in it.
    pub(crate) fn is_in(&self, path: &str) -> bool {
        self.path.strip_prefix(path).is_some_and(|rest| rest.is_empty() || rest.starts_with("::"))
    }
}

impl Source {
    /// # Errors
    /// It is not Rust.
    pub(crate) fn read(path: impl Into<PathBuf>, text: impl Into<String>) -> Result<Source> {
        let (path, text) = (path.into(), text.into());
        let file = syn::parse_file(&text).with_context(|| path.display().to_string())?;
        Ok(Source { path, text, file, only_tests: false, names: OnceCell::new() })
    }

    pub(crate) fn breach(&self, line: usize, rule: impl Into<String>) -> Breach {
        Breach::new(&self.path, line, rule)
    }

    /// Its module path below the crate's root: `link/tcp.rs` is in `[link, tcp]`, `main.rs` in none.
    pub(crate) fn modules(&self, root: &str) -> Option<Vec<String>> {
        let below = self.path.strip_prefix(root).ok()?.with_extension("");
        let mut parts: Vec<String> = below.iter().map(|part| part.to_string_lossy().into_owned()).collect();
        let last = parts.last()?.as_str();
        if last == "mod" || parts.len() == 1 && matches!(last, "main" | "lib") {
            parts.pop();
        }
        Some(parts)
    }

    /// The top-level module that it belongs to below `root`; `main` or `lib` for the root itself.
    pub(crate) fn module(&self, root: &str) -> Option<String> {
        match self.modules(root)?.first() {
            // `link_tests.rs` is the tests of `link`, in a file of their own.
            Some(first) => Some(first.strip_suffix("_tests").unwrap_or(first).to_owned()),
            None => Some(self.path.file_stem()?.to_string_lossy().into_owned()),
        }
    }

    /// Runs a visitor over all shipped code, which may be none.
    pub(crate) fn visit(&self, visitor: &mut impl Rule) {
        if !self.only_tests {
            Shipped(visitor).visit_file(&self.file);
        }
    }

    /// Every path in shipped code, including those within macros; macros have their `!`.
    pub(crate) fn named(&self) -> &[Named] {
        self.names.get_or_init(|| {
            let mut seen = Names::default();
            self.visit(&mut seen);
            let own = [AGENT, PROTO].iter().find_map(|root| self.modules(root));
            seen.resolve(&own.unwrap_or_default())
        })
    }
}

/// The syntax that a rule sees: never code for tests, but code within macros.
#[allow(unused_variables, reason = "most rules look at one thing")]
pub(crate) trait Rule {
    fn expr(&mut self, expr: &syn::Expr) {}
    fn local(&mut self, local: &syn::Local) {}
    fn function(&mut self, begins: bool) {}
    fn path(&mut self, path: &syn::Path) {}
    fn made_by(&mut self, path: &syn::Path) {}
    fn ty(&mut self, ty: &syn::Type) {}
    fn item(&mut self, item: &syn::Item) {}
    fn method(&mut self, method: &syn::ImplItemFn) {}
    fn constant(&mut self, constant: &syn::ImplItemConst) {}
    fn use_tree(&mut self, item: &syn::ItemUse) {}
    fn tokens(&mut self, tokens: &TokenStream) {}
}

struct Shipped<'r, R>(&'r mut R);

impl<'ast, R: Rule> Visit<'ast> for Shipped<'_, R> {
    fn visit_item(&mut self, item: &'ast syn::Item) {
        if for_tests(attributes(item)) {
            return;
        }
        self.0.item(item);
        if let syn::Item::Use(item) = item {
            self.0.use_tree(item);
        }
        visit::visit_item(self, item);
    }

    fn visit_item_fn(&mut self, item: &'ast syn::ItemFn) {
        self.0.function(true);
        visit::visit_item_fn(self, item);
        self.0.function(false);
    }

    fn visit_impl_item(&mut self, item: &'ast syn::ImplItem) {
        let attributes = match item {
            syn::ImplItem::Fn(one) => &one.attrs,
            syn::ImplItem::Const(one) => &one.attrs,
            syn::ImplItem::Type(one) => &one.attrs,
            _ => return visit::visit_impl_item(self, item),
        };
        if for_tests(attributes) {
            return;
        }
        match item {
            syn::ImplItem::Fn(method) => {
                self.0.method(method);
                self.0.function(true);
                visit::visit_impl_item(self, item);
                self.0.function(false);
            }
            syn::ImplItem::Const(constant) => {
                self.0.constant(constant);
                visit::visit_impl_item(self, item);
            }
            _ => visit::visit_impl_item(self, item),
        }
    }

    fn visit_field(&mut self, field: &'ast syn::Field) {
        if !for_tests(&field.attrs) {
            visit::visit_field(self, field);
        }
    }

    fn visit_variant(&mut self, variant: &'ast syn::Variant) {
        if !for_tests(&variant.attrs) {
            visit::visit_variant(self, variant);
        }
    }

    fn visit_local(&mut self, local: &'ast syn::Local) {
        if !for_tests(&local.attrs) {
            self.0.local(local);
            visit::visit_local(self, local);
        }
    }

    fn visit_expr(&mut self, expr: &'ast syn::Expr) {
        if let syn::Expr::Block(block) = expr
            && for_tests(&block.attrs)
        {
            return;
        }
        self.0.expr(expr);
        visit::visit_expr(self, expr);
    }

    fn visit_type(&mut self, ty: &'ast syn::Type) {
        self.0.ty(ty);
        visit::visit_type(self, ty);
    }

    fn visit_path(&mut self, path: &'ast syn::Path) {
        self.0.path(path);
        visit::visit_path(self, path);
    }

    fn visit_attribute(&mut self, _: &'ast syn::Attribute) {}

    fn visit_macro(&mut self, made: &'ast syn::Macro) {
        self.0.made_by(&made.path);
        self.0.tokens(&made.tokens);
        self.within(&made.tokens);
    }
}

impl<R: Rule> Shipped<'_, R> {
    /// A macro's input is usually code: expressions separated by commas, or statements, or some of both in
    /// braces (`select!`).
    fn within(&mut self, tokens: &TokenStream) {
        let list = Punctuated::<syn::Expr, syn::Token![,]>::parse_terminated;
        if let Ok(list) = list.parse2(tokens.clone()) {
            return list.iter().for_each(|expr| Shipped(&mut *self.0).visit_expr(expr));
        }
        if let Ok(block) = syn::Block::parse_within.parse2(tokens.clone()) {
            return block.iter().for_each(|statement| Shipped(&mut *self.0).visit_stmt(statement));
        }
        // The pieces between commas and arrows, and what is in their braces.
        let mut piece = TokenStream::new();
        let mut pieces = Vec::new();
        for token in tokens.clone() {
            match &token {
                TokenTree::Punct(mark) if matches!(mark.as_char(), ',' | ';') => {
                    pieces.push(std::mem::take(&mut piece));
                }
                TokenTree::Punct(mark) if mark.as_char() == '>' || mark.as_char() == '=' => {
                    pieces.push(std::mem::take(&mut piece));
                }
                TokenTree::Group(group) => {
                    piece.extend([token.clone()]);
                    if group.delimiter() == proc_macro2::Delimiter::Brace {
                        pieces.push(std::mem::take(&mut piece));
                    }
                }
                _ => piece.extend([token]),
            }
        }
        pieces.push(piece);
        for piece in pieces {
            if let Ok(expr) = syn::parse2::<syn::Expr>(piece.clone()) {
                Shipped(&mut *self.0).visit_expr(&expr);
                continue;
            }
            for token in piece {
                if let TokenTree::Group(group) = token {
                    self.within(&group.stream());
                }
            }
        }
    }
}

/// The names of a file, before they are combined with its imports.
#[derive(Default)]
struct Names {
    /// As written, with the number of inline modules around, which `super` counts.
    found: Vec<(usize, Vec<String>)>,
    imports: BTreeMap<String, Vec<String>>,
    globs: Vec<Vec<String>>,
}

impl Rule for Names {
    fn path(&mut self, path: &syn::Path) {
        let segments = path.segments.iter().map(|one| one.ident.to_string()).collect();
        self.found.push((path.span().start().line, segments));
    }

    fn made_by(&mut self, path: &syn::Path) {
        let mut segments: Vec<String> = path.segments.iter().map(|one| one.ident.to_string()).collect();
        segments.iter_mut().last().into_iter().for_each(|last| last.push('!'));
        self.found.push((path.span().start().line, segments));
    }

    fn use_tree(&mut self, item: &syn::ItemUse) {
        self.tree(Vec::new(), &item.tree);
    }

    fn tokens(&mut self, tokens: &TokenStream) {
        let mut path: Vec<String> = Vec::new();
        let (mut line, mut colons) = (0, 0);
        let mut tokens = tokens.clone().into_iter().peekable();
        while let Some(token) = tokens.next() {
            match token {
                TokenTree::Ident(ident) => {
                    if colons != 2 && !path.is_empty() {
                        self.found.push((line, std::mem::take(&mut path)));
                    }
                    if path.is_empty() {
                        line = ident.span().start().line;
                    }
                    path.push(ident.to_string());
                    colons = 0;
                }
                TokenTree::Punct(mark) if mark.as_char() == ':' && !path.is_empty() => colons += 1,
                other => {
                    let call = matches!(&other, TokenTree::Punct(mark) if mark.as_char() == '!')
                        && matches!(tokens.peek(), Some(TokenTree::Group(_)));
                    path.iter_mut().last().filter(|_| call).into_iter().for_each(|last| last.push('!'));
                    if !path.is_empty() {
                        self.found.push((line, std::mem::take(&mut path)));
                    }
                    colons = 0;
                    if let TokenTree::Group(group) = other {
                        self.tokens(&group.stream());
                    }
                }
            }
        }
        if !path.is_empty() {
            self.found.push((line, path));
        }
    }
}

impl Names {
    fn tree(&mut self, mut before: Vec<String>, tree: &syn::UseTree) {
        match tree {
            syn::UseTree::Path(path) => {
                before.push(path.ident.to_string());
                self.tree(before, &path.tree);
            }
            syn::UseTree::Name(name) => self.import(before, &name.ident, &name.ident),
            syn::UseTree::Rename(name) => self.import(before, &name.ident, &name.rename),
            syn::UseTree::Glob(glob) => {
                self.found.push((glob.span().start().line, before.clone()));
                self.globs.push(before);
            }
            syn::UseTree::Group(group) => {
                group.items.iter().for_each(|one| self.tree(before.clone(), one));
            }
        }
    }

    fn import(&mut self, mut path: Vec<String>, name: &syn::Ident, here: &syn::Ident) {
        // `use a::{self}` is `a` itself.
        let here = match name == "self" {
            true if here == name => path.last().cloned().unwrap_or_default(),
            _ => here.to_string(),
        };
        if name != "self" {
            path.push(name.to_string());
        }
        self.found.push((name.span().start().line, path.clone()));
        if path.len() > 1 || path.first() != Some(&here) {
            self.imports.insert(here, path);
        }
    }

    /// All names in full; one that may come from a glob, once for each glob too.
    fn resolve(&self, module: &[String]) -> Vec<Named> {
        let mut names = BTreeSet::new();
        for (line, path) in &self.found {
            let mut whole = path.clone();
            // An import may depend on another: `use tokio::sync; use sync::mpsc;`
            for _ in 0..4 {
                match whole.first().and_then(|first| self.imports.get(first)) {
                    Some(import) if !whole.starts_with(import) => {
                        whole.splice(0..1, import.iter().cloned());
                    }
                    _ => break,
                }
            }
            names.insert(Named { line: *line, path: from_root(&whole, module) });
            for glob in &self.globs {
                let within: Vec<String> = glob.iter().chain(path).cloned().collect();
                names.insert(Named { line: *line, path: from_root(&within, module) });
            }
        }
        names.into_iter().collect()
    }
}

/// `super::x` of module `a::b` is `crate::a::x`.
fn from_root(path: &[String], module: &[String]) -> String {
    let ups = path.iter().take_while(|one| *one == "super").count();
    let whole: Vec<&str> = match path.first().map(String::as_str) {
        Some("super") => {
            let stays = module.len().saturating_sub(ups);
            let own = module.iter().take(stays).map(String::as_str);
            ["crate"].into_iter().chain(own).chain(path[ups..].iter().map(String::as_str)).collect()
        }
        Some("self") => {
            let own = module.iter().map(String::as_str);
            ["crate"].into_iter().chain(own).chain(path[1..].iter().map(String::as_str)).collect()
        }
        _ => path.iter().map(String::as_str).collect(),
    };
    whole.join("::")
}

/// Whether something with these attributes exists only for tests.
pub(crate) fn for_tests(attributes: &[syn::Attribute]) -> bool {
    attributes.iter().any(|one| match &one.meta {
        syn::Meta::List(list) if list.path.is_ident("cfg") => {
            syn::parse2::<syn::Meta>(list.tokens.clone()).is_ok_and(|meta| needs_test(&meta))
        }
        meta => meta.path().segments.last().is_some_and(|last| last.ident == "test"),
    })
}

/// Whether a condition holds in a test build only.
fn needs_test(condition: &syn::Meta) -> bool {
    let parts = |list: &syn::MetaList| {
        Punctuated::<syn::Meta, syn::Token![,]>::parse_terminated.parse2(list.tokens.clone())
    };
    match condition {
        syn::Meta::Path(path) => path.is_ident("test"),
        syn::Meta::List(list) if list.path.is_ident("all") => {
            parts(list).is_ok_and(|parts| parts.iter().any(needs_test))
        }
        syn::Meta::List(list) if list.path.is_ident("any") => {
            parts(list).is_ok_and(|parts| parts.iter().all(needs_test))
        }
        _ => false,
    }
}

pub(crate) fn attributes(item: &syn::Item) -> &[syn::Attribute] {
    use syn::Item::*;
    match item {
        Const(one) => &one.attrs,
        Enum(one) => &one.attrs,
        ExternCrate(one) => &one.attrs,
        Fn(one) => &one.attrs,
        ForeignMod(one) => &one.attrs,
        Impl(one) => &one.attrs,
        Macro(one) => &one.attrs,
        Mod(one) => &one.attrs,
        Static(one) => &one.attrs,
        Struct(one) => &one.attrs,
        Trait(one) => &one.attrs,
        TraitAlias(one) => &one.attrs,
        Type(one) => &one.attrs,
        Union(one) => &one.attrs,
        Use(one) => &one.attrs,
        _ => &[],
    }
}

/// The test-only files of modules of `source`: itself, and the directory with its submodules.
fn test_modules(source: &Source) -> Vec<PathBuf> {
    let dir = source.path.parent().unwrap_or(Path::new(""));
    let stem = source.path.file_stem().unwrap_or_default();
    let is_root = ["mod", "main", "lib"].iter().any(|root| stem == *root);
    let below = if is_root { dir.to_owned() } else { dir.join(stem) };
    let mut found = Vec::new();
    for item in &source.file.items {
        let syn::Item::Mod(module) = item else { continue };
        if module.content.is_some() || !(source.only_tests || for_tests(&module.attrs)) {
            continue;
        }
        let elsewhere = module.attrs.iter().find_map(|one| match &one.meta {
            syn::Meta::NameValue(pair) if pair.path.is_ident("path") => match &pair.value {
                syn::Expr::Lit(syn::ExprLit { lit: syn::Lit::Str(path), .. }) => Some(path.value()),
                _ => None,
            },
            _ => None,
        });
        let name = module.ident.to_string();
        match elsewhere {
            Some(path) => found.push(dir.join(path)),
            None => found.extend([below.join(&name).with_extension("rs"), below.join(&name).join("mod.rs")]),
        }
    }
    found
}

/// Marks the files that only a test build has.
pub(crate) fn mark_tests(sources: &mut [Source]) {
    loop {
        let found: BTreeSet<PathBuf> = sources.iter().flat_map(test_modules).collect();
        let mut more = false;
        for source in sources.iter_mut().filter(|source| !source.only_tests) {
            if found.contains(&source.path) {
                source.only_tests = true;
                more = true;
            }
        }
        if !more {
            return;
        }
    }
}

/// Every text file of the repository below `dir`.
fn files(root: &Path, dir: &Path, found: &mut Vec<Text>) -> Result<()> {
    for entry in std::fs::read_dir(root.join(dir)).with_context(|| dir.display().to_string())? {
        let entry = entry?;
        let (name, kind) = (entry.file_name().to_string_lossy().into_owned(), entry.file_type()?);
        let path = dir.join(&name);
        if [".git", "target"].contains(&name.as_str()) {
            continue;
        }
        if kind.is_dir() {
            files(root, &path, found)?;
        } else if kind.is_file() && name != "Cargo.lock" && name != "LICENSE" {
            // Binary files have no lines.
            if let Ok(text) = String::from_utf8(std::fs::read(root.join(&path))?) {
                found.push(Text { path, text });
            }
        }
    }
    Ok(())
}

/// The files of this repository; those of Rust in the first list.
pub(crate) fn repository() -> Result<(Vec<Source>, Vec<Text>)> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().context("the root of the repository")?;
    let mut all = Vec::new();
    files(root, Path::new(""), &mut all)?;
    let (rust, other): (Vec<Text>, Vec<Text>) =
        all.into_iter().partition(|one| one.path.extension().is_some_and(|kind| kind == "rs"));
    let mut rust =
        rust.into_iter().map(|one| Source::read(one.path, one.text)).collect::<Result<Vec<_>>>()?;
    mark_tests(&mut rust);
    Ok((rust, other))
}

/// The lines that a rule finds in a planted file.
pub(crate) fn lines_found(path: &str, text: &str, rule: impl Fn(&Source) -> Vec<Breach>) -> Vec<usize> {
    let source = Source::read(path, text).unwrap_or_else(|error| panic!("{error:#}: {text}"));
    rule(&source).into_iter().map(|breach| breach.line).collect()
}

#[test]
fn code_for_tests_is_ignored_and_all_else_is_checked() {
    let named = |text: &str| -> Vec<String> {
        let source = Source::read("agent/src/link/tcp.rs", text).unwrap();
        source.named().iter().map(|one| one.path.clone()).collect()
    };
    let has = |text: &str, path: &str| named(text).iter().any(|one| one == path);
    assert!(has("#[cfg(test)] use a::b;\nfn x() { c::d(); }", "c::d"), "after the first thing for tests");
    for tests in [
        "#[cfg(test)] mod tests { fn x() { c::d(); } }",
        "#[cfg(all(test, unix))] fn x() { c::d(); }",
        "#[test] fn x() { c::d(); }",
        "#[tokio::test] async fn x() { c::d(); }",
        "struct A; impl A { #[cfg(test)] fn x() { c::d(); } }",
        "// c::d()\n/// [`c::d`]\nfn x() { y(\"c::d()\") }",
    ] {
        assert!(!has(tests, "c::d"), "{tests}");
    }
    for ships in [
        "#[cfg(any(test, unix))] fn x() { c::d(); }",
        "#[cfg(not(test))] fn x() { c::d(); }",
        "use c::d; fn x() { d(); }",
        "use c::{self as e}; fn x() { e::d(); }",
        "use c::{d as e}; fn x() { e(); }",
        "use c::*; fn x() { d(); }",
        "fn x() { tokio::select! { _ = a => {}, _ = b => { c::d(); } } }",
        "fn x() { assert!(c::d()); }",
        "macro_rules! m { () => { c::d() } }",
        "fn x() { y!(a, c::d => z) }",
        "fn x() { if let Some(c::d) = y && true {} }",
    ] {
        assert!(has(ships, "c::d"), "{ships}: {:?}", named(ships));
    }
    assert!(has("fn x() { println!() }", "println!") && has("fn x() { a!(b => println!()) }", "println!"));
    assert!(has("use super::frames::X;", "crate::link::frames::X"));
    assert!(has("use super::super::net::X;", "crate::net::X"));
}

#[test]
fn files_that_only_a_test_build_has_are_known() {
    let read = |path: &str, text: &str| Source::read(path, text).unwrap();
    let mut sources = vec![
        read("a/src/lib.rs", "#[cfg(test)] mod testing; mod b;"),
        read("a/src/testing.rs", "mod deep;"),
        read("a/src/testing/deep.rs", ""),
        read("a/src/b.rs", "#[cfg(test)] #[path = \"b_tests.rs\"] mod tests; mod c;"),
        read("a/src/b_tests.rs", ""),
        read("a/src/b/c.rs", "#[cfg(test)] mod tests;"),
        read("a/src/b/c/tests.rs", ""),
    ];
    mark_tests(&mut sources);
    let only: Vec<bool> = sources.iter().map(|source| source.only_tests).collect();
    assert_eq!(only, [false, true, true, false, true, false, true]);
}
