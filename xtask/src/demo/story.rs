//! What happened and how long each scene took, told at the end.

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};

use super::traffic::Met;

/// The scenes so far.
#[derive(Default)]
pub struct Story {
    scenes: Vec<(&'static str, Duration)>,
}

impl Story {
    /// Plays a scene and remembers how long it took.
    pub fn scene<T>(&mut self, name: &'static str, play: impl FnOnce() -> Result<T>) -> Result<T> {
        println!("\n  {}. {name}", self.scenes.len() + 1);
        let began = Instant::now();
        let played = play().with_context(|| format!("scene {}: {name}", self.scenes.len() + 1))?;
        self.scenes.push((name, began.elapsed()));
        Ok(played)
    }

    /// Tells it.
    pub fn tell(&self, met: &Met) {
        println!("\n  What happened\n");
        for (number, (name, took)) in self.scenes.iter().enumerate() {
            println!("  {}. {:>6.1} s  {name}", number + 1, took.as_secs_f64());
        }
        println!("\n  Users asked {} times while versions changed; {} requests failed.", met.requests(), met.failures.len());
        println!();
    }
}
