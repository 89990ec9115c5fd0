//! Agents in a lab.
