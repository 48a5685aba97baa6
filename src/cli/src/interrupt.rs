//! Ctrl-C, heard by one listener for the whole process: none falls between two waits. Knows nothing of what is left.

use std::sync::{Arc, Once};

use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;

/// Whether the user wants to leave. Until somebody first asks, Ctrl-C ends the process by itself.
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
    /// Waits until the user wants to leave. Whoever asks afterwards hears of it too.
    pub async fn pressed(&self) {
        self.listening.call_once(|| {
            // Without a handler the system goes on ending the process on Ctrl-C.
            let Ok(mut ctrl_c) = signal(SignalKind::interrupt()) else { return };
            let pressed = self.pressed.clone();
            tokio::spawn(async move {
                ctrl_c.recv().await;
                pressed.cancel();
            });
        });
        self.pressed.cancelled().await;
    }

    /// Stands for Ctrl-C in tests.
    #[cfg(test)]
    pub fn press(&self) {
        self.pressed.cancel();
    }
}
