//! Metrics that are served and read while nodes are measured.
//!
//! Each node serves its page as with `--metrics`, and one thread fetches all of them every
//! [`PAUSE`], sixty times as often as Prometheus does by default. A page that does not come, or
//! that lacks the workers, fails the run: it would not show what metrics cost.

use std::io::{self, Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::thread::JoinHandle;
use std::time::Duration;

use crossbeam::channel::{Receiver, RecvTimeoutError, Sender, bounded};

use super::super::exit::Failure;
use crate::metrics::server::{Bound, PATH, Server};
use crate::node::Node;

/// Between two fetches.
const PAUSE: Duration = Duration::from_secs(1);
/// How long one fetch may take.
const PATIENCE: Duration = Duration::from_secs(5);
/// What is on the page of a node whose workers run.
const ON_EVERY_PAGE: [&str; 2] = [
    "ramjet_worker_tasks_run_total{",
    "ramjet_task_stage_seconds_bucket{",
];

/// Pages that are read until it is stopped.
pub(super) struct Scraping {
    servers: Vec<Server>,
    stop: Sender<()>,
    thread: JoinHandle<Result<(), String>>,
}

impl Scraping {
    pub(super) fn start<'a>(nodes: impl Iterator<Item = &'a Node>) -> Result<Self, Failure> {
        let serve = |node| Bound::new((Ipv4Addr::LOCALHOST, 0).into())?.serve_node(node);
        let servers: Result<Vec<Server>, String> = nodes.map(serve).collect();
        let servers = servers.map_err(Failure::environment)?;
        let addresses: Vec<SocketAddr> = servers.iter().map(Server::address).collect();
        let (stop, stopped) = bounded(0);
        let thread = std::thread::Builder::new()
            .name("scraper".to_owned())
            .spawn(move || scrape(&addresses, &stopped))
            .map_err(|error| Failure::environment(format!("a thread: {error}")))?;
        Ok(Scraping {
            servers,
            stop,
            thread,
        })
    }

    /// # Errors
    /// If a page was not what it must be.
    pub(super) fn stop(self) -> Result<(), Failure> {
        drop(self.stop);
        let scraped = self.thread.join();
        drop(self.servers);
        let scraped = scraped.unwrap_or_else(|_| Err("the scraper panicked".to_owned()));
        scraped.map_err(|error| Failure::environment(format!("metrics: {error}")))
    }
}

fn scrape(addresses: &[SocketAddr], stopped: &Receiver<()>) -> Result<(), String> {
    loop {
        for address in addresses {
            let page = fetch(*address).map_err(|error| format!("{address}: {error}"))?;
            let missing = ON_EVERY_PAGE.iter().find(|series| !page.contains(**series));
            if !page.starts_with("HTTP/1.1 200 ") || missing.is_some() {
                return Err(format!("{address} has no page with {ON_EVERY_PAGE:?}"));
            }
        }
        match stopped.recv_timeout(PAUSE) {
            Err(RecvTimeoutError::Timeout) => {}
            Ok(()) | Err(RecvTimeoutError::Disconnected) => return Ok(()),
        }
    }
}

fn fetch(address: SocketAddr) -> io::Result<String> {
    let mut stream = TcpStream::connect_timeout(&address, PATIENCE)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.write_all(format!("GET {PATH} HTTP/1.1\r\nHost: {address}\r\n\r\n").as_bytes())?;
    let mut page = String::new();
    stream.read_to_string(&mut page)?;
    Ok(page)
}
