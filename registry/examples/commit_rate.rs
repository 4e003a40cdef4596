//! How many engagements a second a registry on this disk matches: every offer and every accept is
//! signed, verified, and durable before it is answered.
//!
//! `cargo run --release -p ramjet-registry --example commit_rate [directory] [offers] [in flight]`

use std::collections::BTreeMap;
use std::error::Error;
use std::io::{BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::PathBuf;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::thread;
use std::time::Instant;

use base64::Engine;
use base64::engine::general_purpose::STANDARD as BASE64;
use ramjet_proto::identity::Identity;
use ramjet_proto::ids::{NodeId, OfferId};
use ramjet_proto::market::message::{
    Base64Bytes, FromRegistry, Push, ReplyBody, Request, RequestBody, prove_bytes,
};
use ramjet_proto::market::{AcceptFrom, AcceptTerms, Advertisement, Offer};
use ramjet_registry::{Config, Registry};

type Fallible<T> = Result<T, Box<dyn Error + Send + Sync>>;

fn send(stream: &mut TcpStream, json: &[u8]) -> Fallible<()> {
    let mut frame = u32::try_from(json.len())?.to_be_bytes().to_vec();
    frame.extend_from_slice(json);
    Ok(stream.write_all(&frame)?)
}

fn receive(stream: &mut impl Read) -> Fallible<Vec<u8>> {
    let mut length = [0; 4];
    stream.read_exact(&mut length)?;
    let mut json = vec![0; usize::try_from(u32::from_be_bytes(length))?];
    stream.read_exact(&mut json)?;
    Ok(json)
}

fn ask(stream: &mut TcpStream, body: RequestBody) -> Fallible<ReplyBody> {
    send(stream, &serde_json::to_vec(&Request { id: 0, body })?)?;
    match FromRegistry::parse(&receive(stream)?)? {
        FromRegistry::Reply(reply) => Ok(reply.body),
        FromRegistry::Push(push) => Err(format!("{push:?}").into()),
    }
}

fn sign(identity: &Identity, bytes: &[u8]) -> Base64Bytes {
    Base64Bytes(identity.sign(bytes).to_vec())
}

fn join(address: SocketAddr, identity: &Identity) -> Fallible<(NodeId, TcpStream)> {
    let mut stream = TcpStream::connect(address)?;
    stream.set_nodelay(true)?;
    let key = identity.public().to_base64();
    let listen = "127.0.0.1:4000";
    let signature = BASE64.encode(identity.sign(format!("register:{listen}:{key}").as_bytes()));
    let register = serde_json::json!({"type": "register", "listen_addr": listen,
        "public_key": key, "signature": signature});
    send(&mut stream, register.to_string().as_bytes())?;
    let reply: serde_json::Value = serde_json::from_slice(&receive(&mut stream)?)?;
    let node = NodeId(reply["node_id"].as_u64().ok_or("no node id")?.try_into()?);
    let ReplyBody::Hello { nonce, .. } = ask(&mut stream, RequestBody::Hello { node })? else {
        return Err("no nonce".into());
    };
    let signature = sign(identity, &prove_bytes(node, &nonce.0));
    ask(&mut stream, RequestBody::Prove { signature })?;
    Ok((node, stream))
}

/// Accepts every offer it is told of.
fn work(address: SocketAddr, ready: &SyncSender<()>) -> Fallible<()> {
    let identity = Identity::from_seed([2; 32]);
    let (worker, mut stream) = join(address, &identity)?;
    let advertisement = Advertisement {
        node: worker,
        sequence: 1,
        task_ready: true,
        capabilities: BTreeMap::from([("skills".to_owned(), "echo".to_owned())]),
        accept_from: BTreeMap::from([("echo".to_owned(), AcceptFrom::Anyone)]),
        lease_s: 3_600,
    };
    let signature = sign(&identity, &advertisement.signed_bytes());
    ask(
        &mut stream,
        RequestBody::Advertise {
            advertisement,
            signature,
        },
    )?;
    ready.send(())?;
    let mut reader = BufReader::new(stream.try_clone()?);
    while let Ok(json) = receive(&mut reader) {
        if let FromRegistry::Push(Push::Notify { offer, .. }) = FromRegistry::parse(&json)? {
            let terms = AcceptTerms {
                offer: offer.offer,
                worker,
                credits: 1,
            };
            let signature = sign(&identity, &terms.signed_bytes());
            let request = Request {
                id: 1,
                body: RequestBody::Accept { terms, signature },
            };
            send(&mut stream, &serde_json::to_vec(&request)?)?;
        }
    }
    Ok(())
}

/// Sends `offers` offers, one whenever a place is free.
fn offer(
    mut stream: TcpStream,
    requester: NodeId,
    offers: u64,
    places: &Receiver<()>,
) -> Fallible<()> {
    let identity = Identity::from_seed([1; 32]);
    for id in 1..=offers {
        places.recv()?;
        let offer = Offer {
            offer: OfferId(id),
            requester,
            skill: "echo".to_owned(),
            filters: Vec::new(),
            min_polo: i64::MIN,
            tasks: 1,
            concurrency: 1,
            duration_s: 1,
            accept_deadline_ms: 300_000,
        };
        let signature = sign(&identity, &offer.signed_bytes());
        let request = Request {
            id,
            body: RequestBody::Offer { offer, signature },
        };
        send(&mut stream, &serde_json::to_vec(&request)?)?;
    }
    Ok(())
}

fn main() -> Fallible<()> {
    let mut arguments = std::env::args().skip(1);
    let directory = arguments.next().map_or_else(
        || std::env::temp_dir().join(format!("commit-rate-{}", std::process::id())),
        PathBuf::from,
    );
    let offers: u64 = arguments.next().map_or(Ok(10_000), |text| text.parse())?;
    let in_flight: usize = arguments.next().map_or(Ok(512), |text| text.parse())?;
    let registry = Registry::start(Config {
        listen: SocketAddr::from(([127, 0, 0, 1], 0)),
        beacon: None,
        state_dir: Some(directory.clone()),
        ..Config::default()
    })?;
    let address = registry.tcp_addr();
    let (ready, is_ready) = sync_channel(1);
    let worker = thread::spawn(move || work(address, &ready));
    is_ready.recv()?;
    let (requester, stream) = join(address, &Identity::from_seed([1; 32]))?;
    let (free, places) = sync_channel(in_flight);
    for _ in 0..in_flight {
        free.send(())?;
    }
    let mut reader = BufReader::new(stream.try_clone()?);
    let start = Instant::now();
    let sender = thread::spawn(move || offer(stream, requester, offers, &places));
    let mut grants = 0;
    while grants < offers {
        match FromRegistry::parse(&receive(&mut reader)?)? {
            FromRegistry::Push(Push::Grant { .. }) => {
                grants += 1;
                // The sender has all its places once it is done.
                let _ = free.try_send(());
            }
            FromRegistry::Reply(reply) if matches!(reply.body, ReplyBody::Offered { .. }) => {}
            other => return Err(format!("{other:?}").into()),
        }
    }
    let elapsed = start.elapsed();
    sender.join().map_err(|_| "the sender panicked")??;
    let counters = registry.counters();
    let (commands, batches) = (counters["commands_logged"], counters["batches_committed"]);
    #[expect(clippy::cast_precision_loss, reason = "figures for people")]
    let rate = |many: u64| many as f64 / elapsed.as_secs_f64();
    println!(
        "{grants} engagements in {elapsed:.2?}: {:.0} engagements/s, {:.0} durable commands/s, \
         {:.0} commits/s, {:.1} commands a commit, {in_flight} offers in flight",
        rate(grants),
        rate(commands),
        rate(batches),
        rate(commands) / rate(batches),
    );
    registry.shutdown();
    worker.join().map_err(|_| "the worker panicked")??;
    std::fs::remove_dir_all(directory)?;
    Ok(())
}
