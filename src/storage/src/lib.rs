//! How state is kept: RocksDB databases, keys, codecs, checkpoints. Knows nothing of how servers agree.

pub mod checkpoint;
pub mod codec;
mod error;
mod files;
pub mod log;
mod rocks;
pub mod state;
mod tx;
mod view;

pub use error::StorageError;
pub use files::size_of_dir;
pub use state::StateStore;
pub use tx::StateTx;
pub use view::View;
