//! The Ansible collection on two booted machines, with the newest version of ansible-core that it is tested with. All
//! playbooks, more machines and older versions are a matter of a quarter of an hour: see CONTRIBUTING.md.

use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, ensure};
use tests::mesh::binary;

#[test]
fn the_collection_makes_a_cluster_changes_nothing_twice_and_leaves_nothing() -> Result<()> {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy/ansible/tests/run");
    let ran = Command::new(&script)
        .arg("smoke")
        .env("AGENT_BIN", binary()?)
        .status()
        .with_context(|| script.display().to_string())?;
    ensure!(ran.success(), "{} smoke: {ran}; what failed is above", script.display());
    Ok(())
}
