//! The users of the demonstration: they ask for a page through the gateway, again and again, and remember what did not come.

use std::{
    collections::BTreeMap,
    net::SocketAddr,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
    thread::JoinHandle,
    time::Duration,
};

use super::cluster::ask;

/// What the users met so far.
#[derive(Debug, Default, Clone)]
pub struct Met {
    /// Pages by what they say before ` from `: the version.
    pub pages: BTreeMap<String, u64>,
    /// What went wrong, in words.
    pub failures: Vec<String>,
}

impl Met {
    /// How many requests there were.
    pub fn requests(&self) -> u64 {
        self.pages.values().sum::<u64>() + self.failures.len() as u64
    }
}

/// Users at work.
pub struct Traffic {
    met: Arc<Mutex<Met>>,
    stop: Arc<AtomicBool>,
    users: Vec<JoinHandle<()>>,
}

impl Traffic {
    /// `users` ask `gateway` for `/` of `host`.
    pub fn start(gateway: SocketAddr, host: &'static str, users: usize) -> Self {
        let (met, stop) = (Arc::new(Mutex::new(Met::default())), Arc::new(AtomicBool::new(false)));
        let users = (0..users).map(|_| {
            let (met, stop) = (Arc::clone(&met), Arc::clone(&stop));
            std::thread::spawn(move || {
                while !stop.load(Ordering::Relaxed) {
                    let asked = ask(gateway, host, "/", "");
                    let mut met = met.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
                    match asked {
                        Ok((200, page)) => *met.pages.entry(version(&page)).or_default() += 1,
                        Ok((status, page)) => met.failures.push(format!("{status} {}", page.trim())),
                        Err(error) => met.failures.push(error.to_string()),
                    }
                    drop(met);
                    std::thread::sleep(Duration::from_millis(20));
                }
            })
        });
        Self { users: users.collect(), met, stop }
    }

    /// Sends them home.
    pub fn stop(self) -> Met {
        self.stop.store(true, Ordering::Relaxed);
        for user in self.users {
            // A user that panicked counts what it met until then.
            user.join().ok();
        }
        self.met.lock().unwrap_or_else(|poisoned| poisoned.into_inner()).clone()
    }
}

/// `hello 2 from vm/17387` is version `hello 2`, whoever served it.
fn version(page: &str) -> String {
    let line = page.lines().next().unwrap_or_default();
    line.split(" from ").next().unwrap_or(line).to_owned()
}
