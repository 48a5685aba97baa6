//! Projections of replicated state: each holds what one kind of reader needs, built once with `from_tables` and kept up to date with
//! `update`, whose cost follows what changed. Pure structures: they know nothing of Raft, actors or connections.
