//! Ctrl-C, received by one listener for the whole process, so that none is lost between two waits.

use std::sync::{Arc, Once};

use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;

/// Ctrl-C. Until the first call of [`Interrupt::pressed`], it ends the process as usual.
#[derive(Debug, Clone)]
pub struct Interrupt {
    pressed: CancellationToken,
    listening: Arc<Once>,
}

impl Default for Interrupt {
    fn default() -> Self {
        Self { pressed: CancellationToken::new(), listening: Arc::new(Once::new()) }
    }
}

impl Interrupt {
    /// Waits for Ctrl-C; returns at once when it was pressed before.
    pub async fn pressed(&self) {
        self.listening.call_once(|| {
            // Without a handler, Ctrl-C still ends the process.
            let Ok(mut ctrl_c) = signal(SignalKind::interrupt()) else { return };
            let pressed = self.pressed.clone();
            tokio::spawn(async move {
                ctrl_c.recv().await;
                pressed.cancel();
            });
        });
        self.pressed.cancelled().await;
    }

    /// Acts as if the user had pressed Ctrl-C.
    #[cfg(test)]
    pub fn press(&self) {
        self.pressed.cancel();
    }
}
