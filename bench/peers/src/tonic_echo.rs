//! The peer `tonic`: a gRPC unary call that echoes its message, over plaintext HTTP/2.
//!
//! The service is what tonic's own generator makes of a description in Rust, with prost's codec;
//! the messages are derived with prost, so that no protocol compiler is needed.

use std::net::SocketAddr;

use bytes::Bytes;
use tokio::net::TcpListener;
use tonic::transport::server::TcpIncoming;
use tonic::transport::{Channel, Endpoint, Server};
use tonic::{Request, Response, Status};

use crate::failure::Failure;
use crate::helper::{Helper, input_ended};
use crate::lanes::{self, Echo};
use crate::load::{Load, Measured, WINDOW_MAX};
use crate::peer::{Peer, Setting};

#[allow(
    missing_docs,
    unreachable_pub,
    unused_qualifications,
    reason = "written by tonic's generator"
)]
mod generated {
    include!(concat!(env!("OUT_DIR"), "/peers.Echo.rs"));
}

use generated::echo_client::EchoClient;
use generated::echo_server::{Echo as EchoService, EchoServer};

/// Request and reply.
#[derive(Clone, PartialEq, prost::Message)]
pub(crate) struct Message {
    /// The bytes to echo.
    #[prost(bytes = "bytes", tag = "1")]
    pub(crate) payload: Bytes,
}

struct Service;

#[tonic::async_trait]
impl EchoService for Service {
    async fn echo(&self, request: Request<Message>) -> Result<Response<Message>, Status> {
        Ok(Response::new(request.into_inner()))
    }
}

/// Serves until standard input ends.
pub(crate) async fn serve() -> Result<(), Failure> {
    let at = |error: &dyn std::fmt::Display| Failure::at("tonic server", error);
    let listener = TcpListener::bind("127.0.0.1:0")
        .await
        .map_err(|error| at(&error))?;
    println!("{}", listener.local_addr().map_err(|error| at(&error))?);
    Server::builder()
        .max_concurrent_streams(u32::try_from(WINDOW_MAX).ok())
        .add_service(EchoServer::new(Service))
        .serve_with_incoming_shutdown(
            TcpIncoming::from(listener).with_nodelay(Some(true)),
            input_ended(),
        )
        .await
        .map_err(|error| at(&error))
}

/// Measures the echo with `setting`.
pub(crate) async fn measure(setting: &Setting, load: &Load) -> Result<Measured, Failure> {
    let (server, line) = Helper::serve(&setting.serve_arguments(Peer::Tonic)).await?;
    let address: SocketAddr = line
        .parse()
        .map_err(|_| Failure::at("tonic server", format!("no address: {line}")))?;
    let endpoint = Endpoint::from_shared(format!("http://{address}"))
        .map_err(|error| Failure::at("tonic client", error))?
        .tcp_nodelay(true);
    let mut clients = Vec::new();
    for _ in 0..setting.connections {
        let channel = endpoint
            .connect()
            .await
            .map_err(|error| Failure::at("tonic client", error))?;
        clients.push(Lane(EchoClient::new(channel)));
    }
    let lanes = clients.iter().cycle().take(load.window).cloned().collect();
    let measured = lanes::drive(lanes, load).await;
    drop(clients);
    server.end().await;
    measured
}

#[derive(Clone)]
struct Lane(EchoClient<Channel>);

impl Echo for Lane {
    async fn echo(&mut self, payload: Bytes) -> Result<Bytes, Failure> {
        self.0
            .echo(Message { payload })
            .await
            .map(|reply| reply.into_inner().payload)
            .map_err(|status| Failure::at("tonic call", status))
    }
}
