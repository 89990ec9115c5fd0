//! Rules about imports.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::{Context, Result};

use crate::source::{Breach, Named, Source, Text};
use crate::{AGENT, FEATURES, LAYERS, PROTO};

/// Which module uses which, and where.
pub(crate) type Graph = BTreeMap<(String, String), Vec<Breach>>;

/// Uses between the top-level modules of the agent, in shipped code.
pub(crate) fn graph(sources: &[Source]) -> Graph {
    let mut graph = Graph::new();
    for source in sources {
        let Some(own) = source.module(AGENT) else { continue };
        for (line, name) in of_crate(source.named()) {
            if name != own {
                let breach = source.breach(line, format!("{own} uses {name}, which is not below it"));
                graph.entry((own.clone(), name)).or_default().push(breach);
            }
        }
    }
    graph
}

/// The top-level modules that these paths begin with.
fn of_crate(names: &[Named]) -> BTreeSet<(usize, String)> {
    let first = |one: &Named| {
        let name = one.path.strip_prefix("crate::")?.split("::").next()?;
        // Types and macros of the root are no modules.
        let module = name.starts_with(|c: char| c.is_lowercase());
        (module && name != "self").then(|| (one.line, name.to_owned()))
    };
    names.iter().filter_map(first).collect()
}

/// The layer of a module: it may use lower ones.
fn layer(module: &str) -> Option<usize> {
    LAYERS.iter().position(|layer| layer.contains(&module))
}

/// Each module of the agent uses only those of lower layers.
pub(crate) fn layers(sources: &[Source]) -> Vec<Breach> {
    let mut breaches = Vec::new();
    let graph = graph(sources);
    for source in sources {
        if let Some(own) = source.module(AGENT)
            && layer(&own).is_none()
            && !source.only_tests
        {
            breaches.push(source.breach(1, format!("{own} has no place in LAYERS")));
        }
    }
    for ((own, name), places) in &graph {
        let below = layer(name) < layer(own);
        if !below && layer(own).is_some() && layer(name).is_some() {
            breaches.extend(places.clone());
        }
    }
    breaches
}

/// No files of one directory import each other in a circle: none could be read without the others.
pub(crate) fn circles(sources: &[Source]) -> Vec<Breach> {
    let mut circles = Vec::new();
    for root in [AGENT, PROTO] {
        let known: BTreeSet<Vec<String>> = sources.iter().filter_map(|source| source.modules(root)).collect();
        // The uses between the files of each directory.
        let mut directories: BTreeMap<Vec<String>, BTreeMap<(String, String), Breach>> = BTreeMap::new();
        for source in sources {
            let Some(own) = source.modules(root) else { continue };
            let Some((name, parent)) = own.split_last().filter(|(_, parent)| !parent.is_empty()) else {
                continue;
            };
            let above = format!("crate::{}::", parent.join("::"));
            for one in source.named() {
                let sibling = one.path.strip_prefix(&above).and_then(|rest| rest.split("::").next());
                let Some(sibling) = sibling.filter(|sibling| sibling != name) else { continue };
                if known.contains(&[parent, &[sibling.to_owned()]].concat()) {
                    let uses = directories.entry(parent.to_vec()).or_default();
                    uses.entry((name.clone(), sibling.to_owned()))
                        .or_insert_with(|| source.breach(one.line, String::new()));
                }
            }
        }
        for (directory, uses) in directories {
            for circle in circles_of(&uses.keys().cloned().collect()) {
                let begins =
                    uses.iter().find(|((one, other), _)| circle.contains(one) && circle.contains(other));
                let names: Vec<String> = circle.into_iter().collect();
                let title = format!("{root}/{}: {}", directory.join("/"), names.join(" "));
                if let Some((_, place)) = begins {
                    circles.push(place.saying(format!("a circle, {title}")));
                }
            }
        }
    }
    circles
}

/// The sets of files that reach each other.
fn circles_of(uses: &BTreeSet<(String, String)>) -> BTreeSet<BTreeSet<String>> {
    let mut reached = uses.clone();
    loop {
        let further: Vec<(String, String)> = reached
            .iter()
            .flat_map(|(from, by)| {
                uses.iter().filter(move |(one, _)| one == by).map(move |(_, to)| (from, to))
            })
            .map(|(from, to)| (from.clone(), to.clone()))
            .collect();
        let before = reached.len();
        reached.extend(further);
        if reached.len() == before {
            break;
        }
    }
    let both = |one: &String, other: &String| {
        reached.contains(&(one.clone(), other.clone())) && reached.contains(&(other.clone(), one.clone()))
    };
    let within = uses.iter().filter(|(one, other)| both(one, other));
    within
        .map(|(one, _)| {
            uses.iter().map(|(other, _)| other).filter(|other| both(one, other)).cloned().collect()
        })
        .collect()
}

/// The modules of proto, in the order of lib.rs.
pub(crate) fn order(sources: &[Source]) -> Result<Vec<String>> {
    let lib = sources.iter().find(|source| source.path.ends_with(format!("{PROTO}/lib.rs")));
    let items = &lib.context("proto's lib.rs")?.file.items;
    let names = items.iter().filter_map(|item| match item {
        syn::Item::Mod(module) => Some(module.ident.to_string()),
        _ => None,
    });
    Ok(names.collect())
}

/// Each module of proto uses only those above it.
pub(crate) fn order_of_proto(source: &Source, order: &[String]) -> Vec<Breach> {
    let Some(own) = source.module(PROTO).filter(|own| own != "lib" && !source.only_tests) else {
        return Vec::new();
    };
    let place = |name: &str| order.iter().position(|one| one == name);
    let Some(mine) = place(&own) else {
        return vec![source.breach(1, format!("{own} has no place in the list of lib.rs"))];
    };
    let used = of_crate(source.named()).into_iter();
    let below = used.filter(|(_, name)| place(name).is_some_and(|at| at > mine));
    below
        .map(|(line, name)| {
            source.breach(line, format!("{own} uses {name}, which stands below it in lib.rs"))
        })
        .collect()
}

/// proto depends on nothing that does I/O.
pub(crate) fn dependencies_of_proto(manifest: &Text) -> Vec<Breach> {
    let forbidden = ["tokio", "chitchat", "rustls", "mio", "socket2", "rand", "getrandom"];
    let mut breaches = Vec::new();
    let mut dev = false;
    for (i, line) in manifest.text.lines().enumerate() {
        if line.starts_with('[') {
            dev = line.starts_with("[dev-dependencies");
        }
        let name = line.split(['=', '.', ' ']).next().unwrap_or_default();
        let table = line.strip_prefix("[dependencies.").and_then(|rest| rest.strip_suffix(']'));
        for one in [Some(name), table].into_iter().flatten() {
            if !dev && forbidden.contains(&one) {
                breaches.push(Breach::new(&manifest.path, i + 1, format!("proto must not depend on {one}")));
            }
        }
    }
    breaches
}

/// Features do not depend on each other, not in their tests either: a test that needs two belongs to `app`.
pub(crate) fn features_in_tests(source: &Source) -> Vec<Breach> {
    let Some(own) = source.module(AGENT).filter(|own| FEATURES.contains(&own.as_str())) else {
        return Vec::new();
    };
    // All of the file, what is for tests too, so text does: nothing but code names `crate::` without a link.
    let mut breaches = Vec::new();
    for (i, line) in source.text.lines().enumerate() {
        let code = line.split("//").next().unwrap_or_default();
        for name in FEATURES.iter().filter(|name| **name != own) {
            let path = format!("crate::{name}::");
            let whole =
                |(at, _): (usize, &str)| !code[..at].ends_with(|c: char| c.is_alphanumeric() || c == '_');
            if code.match_indices(&path).any(whole) {
                breaches.push(
                    source.breach(i + 1, format!("{own} must not know {name}: put them together in app")),
                );
            }
        }
    }
    breaches
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::source::lines_found;

    fn of(files: &[(&str, &str)]) -> Vec<String> {
        let sources: Vec<Source> =
            files.iter().map(|(path, text)| Source::read(*path, *text).unwrap()).collect();
        layers(&sources).iter().chain(&circles(&sources)).map(Breach::to_string).collect()
    }

    /// A file of a top-level module of the agent.
    fn file(module: &str) -> String {
        format!("{AGENT}/{module}.rs")
    }

    #[test]
    fn a_module_that_uses_one_not_below_it_is_reported() {
        let (low, feature, other, top) = (LAYERS[0][0], FEATURES[0], FEATURES[1], "app");
        for (own, text) in [
            (feature, format!("use crate::{other}::X;")),
            (feature, format!("use crate::{{{low}::X, {other}::Y}};")),
            (feature, format!("use super::{other}::X;")),
            (feature, format!("use crate::{other} as {low};")),
            (feature, format!("#[cfg(test)] use crate::{low}::X;\nfn x() {{ crate::{other}::x(); }}")),
            (feature, format!("fn x() {{ tokio::select! {{ _ = a => {{ crate::{other}::x() }} }} }}")),
            (low, format!("use crate::{top}::X;")),
        ] {
            assert_eq!(of(&[(&file(own), &text)]).len(), 1, "{own}: {text}");
        }
        for (own, text) in [
            (feature, format!("use crate::{low}::X;")),
            (top, format!("use crate::{feature}::X;")),
            (feature, format!("use crate::{feature}::X; // crate::{other}")),
            (feature, format!("/// As [`crate::{other}`].\nfn x() {{}}")),
        ] {
            assert_eq!(of(&[(&file(own), &text)]), [""; 0], "{own}: {text}");
        }
        let deep = format!("{AGENT}/{feature}/part/tcp.rs");
        assert_eq!(of(&[(&deep, &format!("use super::super::super::{other}::X;"))]).len(), 1);
        assert_eq!(of(&[(&file("unheard_of"), "")]).len(), 1, "a new module has a place");
    }

    #[test]
    fn files_that_use_each_other_are_reported() {
        let path = |name: &str| format!("{AGENT}/{}/{name}.rs", FEATURES[0]);
        let (one, other) = (path("one"), path("other"));
        assert_eq!(of(&[(&one, "use super::other::X;"), (&other, "use super::one::Y;")]).len(), 1);
        let third = path("third");
        let (first, second) = ("use super::other::X;", "use super::third::Y;");
        assert_eq!(of(&[(&one, first), (&other, second), (&third, "use super::one::Z;")]).len(), 1);
        assert_eq!(of(&[(&one, first), (&other, second), (&third, "")]), [""; 0]);
        assert_eq!(of(&[(&one, "use super::other::X;"), (&other, "use super::Y;")]), [""; 0]);
        let tests = "#[cfg(test)] mod tests { use super::one::Y; }";
        assert_eq!(of(&[(&one, "use super::other::X;"), (&other, tests)]), [""; 0]);
    }

    #[test]
    fn a_feature_whose_tests_use_another_is_reported() {
        let (own, other) = (FEATURES[0], FEATURES[1]);
        let of = |text: &str| lines_found(&file(own), text, features_in_tests);
        assert_eq!(of(&format!("#[cfg(test)]\nuse crate::{other}::X;")), [2]);
        assert_eq!(of(&format!("// crate::{other}::X\nuse crate::{own}::X;")), [0; 0]);
    }

    #[test]
    fn a_module_of_proto_that_uses_one_below_it_is_reported() {
        let order = ["time", "node", "view"].map(str::to_owned);
        let of = |name: &str, text| {
            lines_found(&format!("{PROTO}/{name}.rs"), text, |source| order_of_proto(source, &order))
        };
        assert_eq!(of("node", "use crate::time::X;\nuse crate::view::Y;"), [2]);
        assert_eq!(of("node", "#[cfg(test)]\nuse crate::time::X;\nuse super::view::Y;"), [3]);
        assert_eq!(of("new", "fn x() {}"), [1]);
        assert_eq!(of("view", "use crate::{node::X, time};\n/// See [`crate::view`].\nfn x() {}"), [0; 0]);
        assert_eq!(of("node", "#[cfg(test)] mod tests { use crate::view::Y; }"), [0; 0]);
    }

    #[test]
    fn a_dependency_of_proto_with_io_is_reported() {
        let of = |text: &str| {
            let manifest = Text { path: "proto/Cargo.toml".into(), text: text.to_owned() };
            dependencies_of_proto(&manifest).len()
        };
        assert_eq!(of("[dependencies]\nring = \"1\"\ntokio = { version = \"1\" }"), 1);
        assert_eq!(of("[dependencies.rustls]\nversion = \"1\""), 1);
        assert_eq!(of("[dependencies]\nring = \"1\" # not tokio\n[dev-dependencies]\ntokio = \"1\""), 0);
    }
}
