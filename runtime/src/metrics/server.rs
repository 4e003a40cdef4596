//! The thread that serves the page.
//!
//! One thread, one request for each connection. A page is made on that thread when it is asked for,
//! at most every [`FRESH`], so many scrapers cost no more than a few. Limits on everything: as many
//! connections as [`CONNECTIONS_MAX`], each for at most [`CONNECTION_MAX`].

use std::convert::Infallible;
use std::net::{SocketAddr, TcpListener};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use http_body_util::Full;
use hyper::body::{Bytes, Incoming};
use hyper::header::{ALLOW, CONTENT_TYPE};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use ramjet_registry::RegistryHandle;
use tokio::sync::{Semaphore, watch};

use super::page::Page;
use super::{Write, node, process, registry};
use crate::node::Node;

/// The path of the page.
pub const PATH: &str = "/metrics";
/// A page so young is served again.
const FRESH: Duration = Duration::from_millis(100);
/// Connections at a time; others wait to be accepted.
const CONNECTIONS_MAX: usize = 16;
/// How long one may take, from its accept to its end.
const CONNECTION_MAX: Duration = Duration::from_secs(10);
/// Bytes of a request's head.
const HEAD_LEN_MAX: usize = 16_384;
/// Pause after an accept that failed: usually no descriptor is free.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// An address that is listened on, and not yet served: it can be refused before anything starts.
#[derive(Debug)]
pub struct Bound {
    listener: TcpListener,
    address: SocketAddr,
}

/// The server; dropping it ends it.
#[derive(Debug)]
pub struct Server {
    address: SocketAddr,
    stop: watch::Sender<bool>,
    thread: Option<JoinHandle<()>>,
}

impl Bound {
    /// Listens on `address`; port 0 lets the kernel choose.
    ///
    /// # Errors
    /// What the system says, with the address.
    pub fn new(address: SocketAddr) -> Result<Self, String> {
        let bind = || {
            let listener = TcpListener::bind(address)?;
            listener.set_nonblocking(true)?;
            let address = listener.local_addr()?;
            Ok(Bound { listener, address })
        };
        bind().map_err(|error: std::io::Error| format!("metrics {address}: {error}"))
    }

    /// Serves what `node` counts.
    ///
    /// # Errors
    /// What the system says of a new thread.
    pub fn serve_node(self, node: &Node) -> Result<Server, String> {
        let control = node.control.clone();
        self.serve(Box::new(move |page| node::write(&control, page)))
    }

    /// Serves what `registry` counts.
    ///
    /// # Errors
    /// What the system says of a new thread.
    pub fn serve_registry(self, registry: &RegistryHandle) -> Result<Server, String> {
        let counters = registry.shared_counters();
        self.serve(Box::new(move |page| registry::write(&counters, page)))
    }

    fn serve(self, write: Write) -> Result<Server, String> {
        let (stop, stopped) = watch::channel(false);
        let Bound { listener, address } = self;
        let started = || {
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()?;
            let guard = runtime.enter();
            let listener = tokio::net::TcpListener::from_std(listener)?;
            drop(guard);
            std::thread::Builder::new()
                .name("ramjet-metrics".to_owned())
                .spawn(move || runtime.block_on(accept(listener, write, stopped)))
        };
        let thread = started().map_err(|error| format!("metrics {address}: {error}"))?;
        Ok(Server {
            address,
            stop,
            thread: Some(thread),
        })
    }
}

impl Server {
    /// Where it listens, with the port that the kernel chose.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Where the page is.
    pub fn url(&self) -> String {
        format!("http://{}{PATH}", self.address)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // The thread may have ended by itself.
        let _ = self.stop.send(true);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// The page, and how old it is.
struct Pages {
    write: Write,
    last: Option<(Instant, Bytes)>,
}

impl Pages {
    fn page(&mut self) -> Result<Bytes, String> {
        if let Some((made, page)) = &self.last
            && made.elapsed() < FRESH
        {
            return Ok(page.clone());
        }
        let mut page = Page::new();
        process::write(&mut page);
        (self.write)(&mut page);
        let text = page.text().map_err(|error| error.to_string())?;
        let text = Bytes::from(text);
        self.last = Some((Instant::now(), text.clone()));
        Ok(text)
    }
}

async fn accept(
    listener: tokio::net::TcpListener,
    write: Write,
    mut stopped: watch::Receiver<bool>,
) {
    let pages = Arc::new(Mutex::new(Pages { write, last: None }));
    let places = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    loop {
        let next = async {
            let place = Arc::clone(&places).acquire_owned().await;
            (place, listener.accept().await)
        };
        let (place, accepted) = tokio::select! {
            next = next => next,
            _ = stopped.changed() => return,
        };
        let stream = match accepted {
            Ok((stream, _)) => stream,
            Err(error) => {
                tracing::warn!(%error, "a scraper could not be accepted");
                tokio::time::sleep(ACCEPT_PAUSE).await;
                continue;
            }
        };
        let pages = Arc::clone(&pages);
        tokio::spawn(async move {
            let service = service_fn(move |request| {
                let response = answer(&request, &pages);
                async move { Ok::<_, Infallible>(response) }
            });
            let connection = http1::Builder::new()
                .timer(TokioTimer::new())
                .header_read_timeout(CONNECTION_MAX)
                .max_buf_size(HEAD_LEN_MAX)
                .keep_alive(false)
                .serve_connection(TokioIo::new(stream), service);
            // A scraper that left or was too slow is its own loss.
            let _ = tokio::time::timeout(CONNECTION_MAX, connection).await;
            drop(place);
        });
    }
}

fn answer(request: &Request<Incoming>, pages: &Mutex<Pages>) -> Response<Full<Bytes>> {
    let text = |status, text: &str| {
        let mut response = Response::new(Full::from(Bytes::from(text.to_owned())));
        *response.status_mut() = status;
        response
    };
    if request.uri().path() != PATH {
        return text(StatusCode::NOT_FOUND, "the metrics are at /metrics\n");
    }
    if request.method() != Method::GET && request.method() != Method::HEAD {
        let mut response = text(StatusCode::METHOD_NOT_ALLOWED, "GET it\n");
        let allow = hyper::header::HeaderValue::from_static("GET, HEAD");
        response.headers_mut().insert(ALLOW, allow);
        return response;
    }
    // A page that was being made when its thread panicked is made again.
    let mut pages = pages.lock().unwrap_or_else(PoisonError::into_inner);
    match pages.page() {
        Ok(page) => {
            let mut response = Response::new(Full::from(page));
            let format = hyper::header::HeaderValue::from_static(prometheus::TEXT_FORMAT);
            response.headers_mut().insert(CONTENT_TYPE, format);
            response
        }
        Err(error) => text(StatusCode::INTERNAL_SERVER_ERROR, &error),
    }
}
