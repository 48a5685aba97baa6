//! etcd, started for a benchmark, and the one call of its API that is measured: `Put` over gRPC.
//!
//! Source of the formats: etcd's `rpc.proto` (`PutRequest`: key is field 1, value field 2), Protocol Buffers' encoding, and "gRPC over
//! HTTP2" (a message is a byte for compression, four for its length, and its bytes; the status comes in the trailers).

use std::{net::SocketAddr, path::Path, time::Duration};

use anyhow::{Context as _, Result, ensure};
use bytes::{BufMut as _, Bytes, BytesMut};
use http_body_util::{BodyExt as _, Full};
use hyper::{
    HeaderMap, Request, Uri,
    client::conn::http2::{SendRequest, handshake},
    header::{CONTENT_TYPE, TE},
};
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::{net::TcpStream, process::Command, task::JoinHandle, time::timeout};

use crate::process::{Process, free_address};

/// Time for a whole call.
const ANSWER_WITHIN: Duration = Duration::from_secs(60);

/// One etcd server.
#[derive(Debug)]
pub struct Etcd {
    pub address: SocketAddr,
    process: Process,
}

impl Etcd {
    /// Starts etcd with its data in `folder`, as it comes: it syncs every write.
    pub async fn start(program: &Path, folder: &Path) -> Result<Self> {
        let (address, peer) = (free_address()?, format!("http://{}", free_address()?));
        let client = format!("http://{address}");
        let mut command = Command::new(program);
        command.env_clear().arg("--data-dir").arg(folder.join("etcd"));
        command.args(["--listen-client-urls", &client, "--advertise-client-urls", &client]);
        command.args(["--listen-peer-urls", &peer, "--initial-advertise-peer-urls", &peer]);
        command.args(["--initial-cluster", &format!("default={peer}"), "--log-level", "error", "--logger", "zap"]);
        let mut process = Process::start("etcd", command, &folder.join("etcd.log"))?;
        process.listens(address).await?;
        Ok(Self { address, process })
    }

    /// Ends it.
    pub async fn stop(self) -> Result<()> {
        self.process.stop().await
    }
}

/// A connection to etcd.
#[derive(Debug)]
pub struct EtcdClient {
    sender: SendRequest<Full<Bytes>>,
    uri: Uri,
    driver: JoinHandle<()>,
}

impl Drop for EtcdClient {
    fn drop(&mut self) {
        self.driver.abort();
    }
}

impl EtcdClient {
    /// Connects.
    pub async fn connect(address: SocketAddr) -> Result<Self> {
        let stream = TcpStream::connect(address).await.context("failed to connect to etcd")?;
        stream.set_nodelay(true)?;
        let (sender, connection) = handshake(TokioExecutor::new(), TokioIo::new(stream)).await.context("failed to greet etcd")?;
        let driver = tokio::spawn(async move {
            if let Err(error) = connection.await {
                eprintln!("connection to etcd broke: {error}");
            }
        });
        Ok(Self { sender, uri: format!("http://{address}/etcdserverpb.KV/Put").parse()?, driver })
    }

    /// Writes `message`, as [`put`] made it; returns once it is on disk.
    pub async fn send(&mut self, message: Bytes) -> Result<()> {
        let request = Request::post(self.uri.clone())
            .header(CONTENT_TYPE, "application/grpc")
            .header(TE, "trailers")
            .body(Full::new(message))?;
        let answered = async {
            self.sender.ready().await?;
            let answer = self.sender.send_request(request).await?;
            let head = answer.headers().clone();
            let body = answer.into_body().collect().await?;
            Ok::<_, hyper::Error>((head, body.trailers().cloned()))
        };
        let (head, trailers) = timeout(ANSWER_WITHIN, answered).await.context("etcd does not answer")?.context("a call broke")?;
        let status = |headers: &HeaderMap| headers.get("grpc-status").cloned();
        // A call that fails at once has its status in the head.
        let status = trailers.as_ref().and_then(status).or_else(|| status(&head)).context("an answer without gRPC status")?;
        ensure!(status == "0", "etcd refused a write with gRPC status {status:?}");
        Ok(())
    }
}

/// A `PutRequest` in its gRPC frame.
pub fn put(key: &[u8], value: &[u8]) -> Bytes {
    let mut message = BytesMut::new();
    for (field, bytes) in [(1u8, key), (2, value)] {
        // Wire type 2: a length and so many bytes.
        message.put_u8((field << 3) | 2);
        varint(&mut message, bytes.len());
        message.put_slice(bytes);
    }
    let mut frame = BytesMut::new();
    frame.put_u8(0);
    frame.put_u32(message.len() as u32);
    frame.put_slice(&message);
    frame.freeze()
}

fn varint(out: &mut BytesMut, mut number: usize) {
    while number >= 0x80 {
        out.put_u8(number as u8 | 0x80);
        number >>= 7;
    }
    out.put_u8(number as u8);
}

#[cfg(test)]
mod tests {
    use super::put;

    #[test]
    fn put_is_encoded_as_protocol_buffers_in_a_grpc_frame() {
        let frame = put(b"k", &[7; 300]);
        assert_eq!(&frame[..11], [0, 0, 0, 1, 50, 0x0a, 1, b'k', 0x12, 0xac, 0x02]);
        assert_eq!(frame.len(), 5 + 3 + 3 + 300);
    }
}
