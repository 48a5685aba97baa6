//! The RocksDB databases of a server (log, state, events), keys, codecs, checkpoints. Knows nothing of how servers agree.

pub mod checkpoint;
pub mod codec;
#[cfg(any(test, feature = "testing"))]
pub mod counting;
mod error;
pub mod events;
mod files;
pub mod log;
mod rocks;
pub mod state;
mod tx;
mod view;

pub use error::StorageError;
pub use events::{EventStore, EventsError};
pub use files::size_of_dir;
pub use state::StateStore;
pub use tx::StateTx;
pub use view::View;
