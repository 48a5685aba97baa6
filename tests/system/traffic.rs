//! A user who asks for a page again and again, through the gateway, and counts what does not come.

use std::{
    collections::BTreeMap,
    io::{BufRead as _, BufReader, Read as _, Write as _},
    net::{SocketAddr, TcpStream},
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
    thread::JoinHandle,
    time::Duration,
};

/// What the user met.
#[derive(Debug, Default, Clone)]
pub struct Met {
    /// Pages by their content.
    pub pages: BTreeMap<String, u64>,
    /// What went wrong, in words.
    pub failures: Vec<String>,
}

impl Met {
    pub fn requests(&self) -> u64 {
        self.pages.values().sum::<u64>() + self.failures.len() as u64
    }
}

/// Asks until it is stopped.
pub struct Traffic {
    met: Arc<Mutex<Met>>,
    stop: Arc<AtomicBool>,
    threads: Vec<JoinHandle<()>>,
}

impl Traffic {
    /// `users` ask `gateway` for `/` of `host`, each every few milliseconds.
    pub fn start(gateway: SocketAddr, host: &str, users: usize) -> Self {
        let (met, stop) = (Arc::new(Mutex::new(Met::default())), Arc::new(AtomicBool::new(false)));
        let threads = (0..users).map(|_| {
            let (met, stop, host) = (Arc::clone(&met), Arc::clone(&stop), host.to_owned());
            std::thread::spawn(move || {
                while !stop.load(Ordering::Relaxed) {
                    let asked = ask(gateway, &host, "/");
                    let mut met = met.lock().unwrap();
                    match asked {
                        Ok((200, page)) => *met.pages.entry(page.lines().next().unwrap_or_default().to_owned()).or_default() += 1,
                        Ok((status, page)) => met.failures.push(format!("{status} {page}")),
                        Err(error) => met.failures.push(error.to_string()),
                    }
                    drop(met);
                    std::thread::sleep(Duration::from_millis(10));
                }
            })
        });
        Self { threads: threads.collect(), met, stop }
    }

    pub fn stop(self) -> Met {
        self.stop.store(true, Ordering::Relaxed);
        for thread in self.threads {
            thread.join().unwrap();
        }
        Arc::try_unwrap(self.met).unwrap().into_inner().unwrap()
    }
}

/// One request: its status and its body.
pub fn ask(address: SocketAddr, host: &str, path: &str) -> std::io::Result<(u16, String)> {
    let mut stream = TcpStream::connect_timeout(&address, Duration::from_secs(5))?;
    stream.set_read_timeout(Some(Duration::from_secs(10)))?;
    stream.set_write_timeout(Some(Duration::from_secs(10)))?;
    write!(stream, "GET {path} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n")?;
    let mut reader = BufReader::new(stream);
    let mut line = String::new();
    reader.read_line(&mut line)?;
    let status = line.split(' ').nth(1).and_then(|status| status.parse().ok()).unwrap_or(0);
    loop {
        let mut field = String::new();
        if reader.read_line(&mut field)? == 0 || field == "\r\n" {
            break;
        }
    }
    let mut body = Vec::new();
    reader.read_to_end(&mut body)?;
    if status == 0 {
        return Err(std::io::Error::other(format!("no answer: `{}`", line.trim())));
    }
    Ok((status, String::from_utf8_lossy(&body).into_owned()))
}
