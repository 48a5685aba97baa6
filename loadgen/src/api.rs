//! A user of the HTTP API: one kept-alive connection, one request at a time. Knows paths and JSON, not what they mean.

use std::{net::SocketAddr, time::Duration};

use bytes::Bytes;
use http_body_util::{BodyExt as _, Full};
use hyper::{
    Method, Request, StatusCode,
    client::conn::http1::{SendRequest, handshake},
    header::{AUTHORIZATION, CONTENT_TYPE, HOST, HeaderValue},
};
use hyper_util::rt::TokioIo;
use serde_json::Value;
use tokio::{task::JoinHandle, time::timeout};

use crate::{Error, connect::open_tcp};

/// Time for a whole request.
const ANSWER_WITHIN: Duration = Duration::from_secs(60);

/// Where a server is, and as whom it is spoken to.
#[derive(Clone)]
pub struct Api {
    pub server: SocketAddr,
    pub token: String,
}

impl Api {
    /// Opens a connection.
    ///
    /// # Errors
    /// When the server does not accept it.
    pub async fn connect(&self) -> Result<Connection, Error> {
        let server = self.server;
        let bearer = HeaderValue::try_from(format!("Bearer {}", self.token));
        let mut bearer = bearer.map_err(|error| Error::Request(error.to_string()))?;
        bearer.set_sensitive(true);
        let host = HeaderValue::try_from(server.to_string()).map_err(|error| Error::Request(error.to_string()))?;
        let stream = open_tcp(server, 0).await?;
        let (sender, connection) = handshake(TokioIo::new(stream)).await.map_err(|source| Error::Http { server, source })?;
        let driver = tokio::spawn(async move {
            if let Err(error) = connection.await {
                tracing::debug!(%error, "connection to the API ended");
            }
        });
        Ok(Connection { server, sender, bearer, host, driver })
    }

    /// Reads `path`.
    ///
    /// # Errors
    /// When the server cannot be reached or refuses.
    pub async fn get(&self, path: &str) -> Result<Value, Error> {
        self.connect().await?.json(Method::GET, path, None).await
    }

    /// Sends `body` to `path`; what was answered.
    ///
    /// # Errors
    /// When the server cannot be reached or refuses.
    pub async fn post(&self, path: &str, body: &Value) -> Result<Value, Error> {
        self.connect().await?.json(Method::POST, path, Some(body)).await
    }
}

/// A kept-alive connection.
#[derive(Debug)]
pub struct Connection {
    server: SocketAddr,
    sender: SendRequest<Full<Bytes>>,
    bearer: HeaderValue,
    host: HeaderValue,
    driver: JoinHandle<()>,
}

impl Drop for Connection {
    fn drop(&mut self) {
        self.driver.abort();
    }
}

impl Connection {
    /// Sends one request and reads the whole answer, whatever its status.
    ///
    /// # Errors
    /// When the connection breaks or the answer takes longer than a minute.
    pub async fn send(&mut self, method: Method, path: &str, body: Bytes) -> Result<(StatusCode, Bytes), Error> {
        let server = self.server;
        let mut request = Request::builder().method(method).uri(path);
        if let Some(headers) = request.headers_mut() {
            headers.insert(HOST, self.host.clone());
            headers.insert(AUTHORIZATION, self.bearer.clone());
            if !body.is_empty() {
                headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
            }
        }
        let request = request.body(Full::new(body)).map_err(|error| Error::Request(error.to_string()))?;
        let broken = |source| Error::Http { server, source };
        let answered = async {
            self.sender.ready().await.map_err(broken)?;
            let answer = self.sender.send_request(request).await.map_err(broken)?;
            let status = answer.status();
            let body = answer.into_body().collect().await.map_err(broken)?.to_bytes();
            Ok((status, body))
        };
        let timed_out = |_| Error::TimedOut { doing: format!("answering {path}"), limit: ANSWER_WITHIN };
        timeout(ANSWER_WITHIN, answered).await.map_err(timed_out)?
    }

    /// Sends and reads JSON; an answer without success is an error.
    ///
    /// # Errors
    /// When the connection breaks, the server refuses, or the answer is no JSON.
    pub async fn json(&mut self, method: Method, path: &str, body: Option<&Value>) -> Result<Value, Error> {
        let body = body.map(|body| Bytes::from(body.to_string())).unwrap_or_default();
        let (status, answer) = self.send(method.clone(), path, body).await?;
        if !status.is_success() {
            let answer = String::from_utf8_lossy(&answer).into_owned();
            return Err(Error::Refused { method: method.to_string(), path: path.to_owned(), status: status.as_u16(), answer });
        }
        serde_json::from_slice(&answer).map_err(|error| Error::Message { server: self.server, what: error.to_string() })
    }
}
