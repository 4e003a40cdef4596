//! The peers `quinn-stream` and `quinn-datagram`: an echo over QUIC, encrypted with TLS 1.3.
//!
//! `quinn-stream` opens a bidirectional stream for each request, which is delivered whatever
//! happens. `quinn-datagram` sends the request as a QUIC datagram, which is encrypted and paced but
//! not sent again: a reply that does not come is counted as lost and its place given to another.

use std::collections::HashMap;
use std::fmt::Display;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use quinn::rustls::RootCertStore;
use quinn::rustls::pki_types::{CertificateDer, PrivatePkcs8KeyDer};
use quinn::{ClientConfig, Connection, Endpoint, Incoming, ServerConfig, TransportConfig, VarInt};
use tokio::time::{Instant, timeout};

use crate::failure::Failure;
use crate::helper::{Helper, input_ended};
use crate::lanes::{self, Echo};
use crate::load::{Load, Measured, PAYLOAD_LEN_MAX, Phase, WINDOW_MAX, number_of, payload};
use crate::peer::{Peer, Setting};

/// Name in the certificate, which both sides know.
const SERVER_NAME: &str = "localhost";
/// Room for datagrams that wait for the network or for the program: a full window of the largest.
const DATAGRAM_ROOM: usize = 2 * WINDOW_MAX * PAYLOAD_LEN_MAX;
/// A datagram without a reply after so long is lost: a thousand round trips of a loopback path.
const LOST_AFTER: Duration = Duration::from_millis(500);

/// How a request travels.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Carrier {
    /// A stream of its own.
    Stream,
    /// A datagram.
    Datagram,
}

fn at(error: impl Display) -> Failure {
    Failure::at("QUIC", error)
}

/// What both ends set: streams for a full window, sent in the order they were written, and room for
/// a full window of datagrams.
fn transport() -> Arc<TransportConfig> {
    let mut transport = TransportConfig::default();
    transport
        .max_concurrent_bidi_streams(u32::try_from(WINDOW_MAX).unwrap_or(u32::MAX).into())
        .send_fairness(false)
        .datagram_receive_buffer_size(Some(DATAGRAM_ROOM))
        .datagram_send_buffer_size(DATAGRAM_ROOM);
    Arc::new(transport)
}

fn any_port() -> SocketAddr {
    SocketAddr::from((Ipv4Addr::LOCALHOST, 0))
}

/// Serves both carriers until standard input ends.
pub(crate) async fn serve() -> Result<(), Failure> {
    let own = rcgen::generate_simple_self_signed([SERVER_NAME.to_owned()]).map_err(at)?;
    let certificate = own.cert.der().clone();
    let key = PrivatePkcs8KeyDer::from(own.signing_key.serialize_der());
    let mut config =
        ServerConfig::with_single_cert(vec![certificate.clone()], key.into()).map_err(at)?;
    config.transport_config(transport());
    let endpoint = Endpoint::server(config, any_port()).map_err(at)?;
    let address = endpoint.local_addr().map_err(at)?;
    println!("{address} {}", to_hex(&certificate));
    let accept = async {
        while let Some(incoming) = endpoint.accept().await {
            tokio::spawn(serve_connection(incoming));
        }
    };
    tokio::select! {
        () = accept => {}
        () = input_ended() => {}
    }
    Ok(())
}

/// Echoes streams and datagrams until the connection ends, which is no fault of ours: the other
/// side sees every reply that is missing.
async fn serve_connection(incoming: Incoming) {
    let Ok(connection) = incoming.await else {
        return;
    };
    let datagrams = async {
        while let Ok(datagram) = connection.read_datagram().await {
            if connection.send_datagram_wait(datagram).await.is_err() {
                return;
            }
        }
    };
    let streams = async {
        while let Ok((mut sending, mut receiving)) = connection.accept_bi().await {
            tokio::spawn(async move {
                if let Ok(request) = receiving.read_to_end(PAYLOAD_LEN_MAX).await
                    && sending.write_chunk(request.into()).await.is_ok()
                {
                    let _ = sending.finish();
                }
            });
        }
    };
    tokio::join!(datagrams, streams);
}

/// Measures the echo over `carrier` with `setting`.
pub(crate) async fn measure(
    carrier: Carrier,
    setting: &Setting,
    load: &Load,
) -> Result<Measured, Failure> {
    let peer = match carrier {
        Carrier::Stream => Peer::QuinnStream,
        Carrier::Datagram => Peer::QuinnDatagram,
    };
    let (server, line) = Helper::serve(&setting.serve_arguments(peer)).await?;
    let (address, certificate) =
        parse_greeting(&line).ok_or_else(|| at(format!("the server said {line:?}")))?;
    let config = client_config(certificate)?;
    let mut endpoints = Vec::new();
    let mut connections = Vec::new();
    for _ in 0..setting.connections {
        let endpoint = Endpoint::client(any_port()).map_err(at)?;
        let connecting = endpoint
            .connect_with(config.clone(), address, SERVER_NAME)
            .map_err(at)?;
        connections.push(connecting.await.map_err(at)?);
        endpoints.push(endpoint);
    }
    let measured = match carrier {
        Carrier::Stream => {
            let lanes = connections.iter().cycle().take(load.window);
            lanes::drive(lanes.cloned().map(Lane).collect(), load).await
        }
        Carrier::Datagram => match &connections[..] {
            [connection] => drive_datagrams(connection, load).await,
            _ => Err(Failure::Usage(
                "the datagrams of a window share one connection".to_owned(),
            )),
        },
    };
    for connection in &connections {
        connection.close(VarInt::from_u32(0), b"");
    }
    server.end().await;
    measured
}

fn client_config(certificate: Vec<u8>) -> Result<ClientConfig, Failure> {
    let mut roots = RootCertStore::empty();
    roots.add(CertificateDer::from(certificate)).map_err(at)?;
    let mut config = ClientConfig::with_root_certificates(Arc::new(roots)).map_err(at)?;
    config.transport_config(transport());
    Ok(config)
}

struct Lane(Connection);

impl Echo for Lane {
    async fn echo(&mut self, payload: Bytes) -> Result<Bytes, Failure> {
        let (mut sending, mut receiving) = self.0.open_bi().await.map_err(at)?;
        sending.write_chunk(payload).await.map_err(at)?;
        sending.finish().map_err(at)?;
        let reply = receiving.read_to_end(PAYLOAD_LEN_MAX).await.map_err(at)?;
        Ok(reply.into())
    }
}

/// Keeps a window of datagrams outstanding on one connection.
async fn drive_datagrams(connection: &Connection, load: &Load) -> Result<Measured, Failure> {
    let phase = Phase::begin(load);
    let mut measured = Measured::new(phase)?;
    let mut outstanding: HashMap<u64, Instant> = HashMap::with_capacity(load.window);
    let mut next = 0_u64;
    let mut swept = Instant::now();
    phase
        .bound(async {
            loop {
                let now = Instant::now();
                let over = phase.is_over(now);
                while !over && outstanding.len() < load.window {
                    outstanding.insert(next, Instant::now());
                    let request = payload(next, load.payload_len);
                    connection.send_datagram_wait(request).await.map_err(at)?;
                    next += 1;
                }
                if now - swept >= LOST_AFTER {
                    let before = outstanding.len();
                    outstanding.retain(|_, sent| now - *sent < LOST_AFTER);
                    measured.lost += (before - outstanding.len()) as u64;
                    swept = now;
                }
                if outstanding.is_empty() {
                    if over {
                        return Ok(());
                    }
                    continue;
                }
                if let Ok(reply) = timeout(LOST_AFTER, connection.read_datagram()).await {
                    let number = number_of(&reply.map_err(at)?, load.payload_len)?;
                    // A reply that was given up as lost may still come; it counts for nothing.
                    if let Some(sent) = outstanding.remove(&number) {
                        measured.record(sent, Instant::now());
                    }
                }
            }
        })
        .await?;
    Ok(measured)
}

/// Address and certificate of the server's first line.
fn parse_greeting(line: &str) -> Option<(SocketAddr, Vec<u8>)> {
    let (address, certificate) = line.split_once(' ')?;
    Some((address.parse().ok()?, from_hex(certificate)?))
}

fn to_hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn from_hex(text: &str) -> Option<Vec<u8>> {
    let digits: Vec<u32> = text
        .chars()
        .map(|digit| digit.to_digit(16))
        .collect::<Option<_>>()?;
    if digits.is_empty() || !digits.len().is_multiple_of(2) {
        return None;
    }
    digits
        .chunks(2)
        .map(|pair| u8::try_from(pair[0] * 16 + pair[1]).ok())
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_greeting_is_read_and_a_broken_one_is_refused() {
        let line = format!("127.0.0.1:4433 {}", to_hex(&[0, 1, 0xAB, 0xFF]));
        assert_eq!(line, "127.0.0.1:4433 0001abff");
        let (address, certificate) = parse_greeting(&line).expect("a greeting");
        assert_eq!(
            (address.port(), &certificate[..]),
            (4433, &[0, 1, 0xAB, 0xFF][..])
        );
        for broken in [
            "",
            "127.0.0.1:1",
            "127.0.0.1:1 ",
            "127.0.0.1:1 abc",
            "x ab",
            "[::1]:1 é0",
        ] {
            assert!(parse_greeting(broken).is_none(), "{broken}");
        }
    }
}
