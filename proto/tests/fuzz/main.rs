//! Mutations of known bytes make no decoder panic, nor write what it does not read again. A fixed number of
//! them with a fixed seed, so that it needs no nightly compiler and says the same everywhere;
//! `FUZZ_ROUNDS=100000 cargo test -p proto --test fuzz` looks further, and `proto/fuzz/run`, by coverage, furthest.

#![allow(clippy::unwrap_used)]

mod mutate;
mod targets;

use std::path::{Path, PathBuf};

use mutate::Mutator;
use targets::TARGETS;

/// Mutations for each target.
const ROUNDS: usize = 1_500;

fn corpora() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/corpus")
}

/// The files of a target, in the order of their names.
fn corpus(target: &str) -> Vec<(PathBuf, Vec<u8>)> {
    let dir = corpora().join(target);
    let files = std::fs::read_dir(&dir).unwrap_or_else(|error| panic!("{}: {error}", dir.display()));
    let mut paths: Vec<PathBuf> = files.map(|file| file.unwrap().path()).collect();
    paths.sort();
    paths.into_iter().map(|path| (path.clone(), std::fs::read(&path).unwrap())).collect()
}

#[test]
fn every_target_has_a_corpus_and_every_corpus_a_target() {
    let named = |dir: PathBuf| -> Vec<String> {
        let files = std::fs::read_dir(dir).unwrap();
        let mut names: Vec<String> = files
            .map(|file| file.unwrap().path().file_stem().unwrap().to_string_lossy().into_owned())
            .collect();
        names.sort();
        names
    };
    let mut targets: Vec<&str> = TARGETS.iter().map(|(name, _)| *name).collect();
    targets.sort_unstable();
    assert_eq!(named(corpora()), targets);
    assert!(targets.iter().all(|name| !corpus(name).is_empty()));
}

#[test]
fn mutations_of_the_corpus_make_no_decoder_panic() {
    let rounds = std::env::var("FUZZ_ROUNDS").map_or(ROUNDS, |rounds| rounds.parse().unwrap());
    let mut broken = Vec::new();
    for (name, _) in TARGETS {
        let files = corpus(name);
        let known: Vec<Vec<u8>> = files.iter().map(|(_, bytes)| bytes.clone()).collect();
        let mut mutator = Mutator::new(7);
        let all = known.iter().cloned().chain(std::iter::repeat_with(|| mutator.of(&known)).take(rounds));
        let bad =
            all.into_iter().find(|bytes| std::panic::catch_unwind(|| targets::run(name, bytes)).is_err());
        if let Some(bytes) = bad {
            broken.push(format!(
                "{name}: {}",
                String::from_utf8_lossy(&bytes.escape_ascii().collect::<Vec<u8>>())
            ));
        }
        eprintln!("{name}: {rounds} mutations of {} files", known.len());
    }
    assert!(broken.is_empty(), "{} targets panic, with these bytes:\n{}", broken.len(), broken.join("\n"));
}
