//! What can go wrong between the generator and a server.

use std::{io, net::SocketAddr, time::Duration};

/// Why a simulated client could not do its work.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The server could not be reached.
    #[error("failed to connect to {server}: {source}; is the server running?")]
    Connect {
        /// The server.
        server: SocketAddr,
        /// What the system said.
        source: io::Error,
    },
    /// The WebSocket could not be opened or broke.
    #[error("session with {server} broke: {source}")]
    WebSocket {
        /// The server.
        server: SocketAddr,
        /// What the library said.
        source: Box<tokio_tungstenite::tungstenite::Error>,
    },
    /// The server closed the session.
    #[error("{server} closed the session")]
    Closed {
        /// The server.
        server: SocketAddr,
    },
    /// The server said nothing, or took nothing, for too long.
    #[error("{doing} took longer than {limit:?}")]
    TimedOut {
        /// What was waited for.
        doing: String,
        /// How long.
        limit: Duration,
    },
    /// A message of another protocol, or an answer that is no JSON.
    #[error("failed to read a message of {server}: {what}; build generator and server from the same commit")]
    Message {
        /// The server.
        server: SocketAddr,
        /// What is wrong.
        what: String,
    },
    /// An HTTP request failed on the way.
    #[error("request to {server} broke: {source}")]
    Http {
        /// The server.
        server: SocketAddr,
        /// What the library said.
        source: hyper::Error,
    },
    /// The server refused a request.
    #[error("{method} {path} was refused with {status}: {answer}")]
    Refused {
        /// Method of the request.
        method: String,
        /// Path of the request.
        path: String,
        /// Status of the answer.
        status: u16,
        /// Body of the answer.
        answer: String,
    },
    /// A token or path that no HTTP header or request can hold.
    #[error("failed to make a request: {0}; correct the token or the path")]
    Request(String),
    /// This process may not have as many connections.
    #[error("{wanted} open files are needed and {hard} are allowed; raise the hard limit with `ulimit -Hn {wanted}`")]
    OpenFiles {
        /// Descriptors needed.
        wanted: u64,
        /// The hard limit of this process.
        hard: u64,
    },
    /// A limit of this process could not be read or set.
    #[error("failed to raise the limit of open files: {0}")]
    Limit(#[source] nix::Error),
}
