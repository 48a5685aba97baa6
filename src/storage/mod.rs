//! How state is kept: RocksDB databases, keys, codecs, checkpoints. Knows nothing of how servers agree.

mod view;

pub use view::View;
