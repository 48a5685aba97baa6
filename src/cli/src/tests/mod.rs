//! The client as a whole: the tree of commands, and every command against a scripted server.

mod fake;
mod follow;
mod leaves;
mod output;
mod tree;
mod units;
