//! Pushing the page to a collector of OpenTelemetry; off by default.
//!
//! Every [`EVERY`] the families of the page are sent by `POST` as one `ExportMetricsServiceRequest` in OTLP's JSON
//! encoding (OpenTelemetry Protocol 1.x, sections "OTLP/HTTP" and "JSON Protobuf Encoding"). Names, labels and units
//! are those of the page, so that one dashboard fits both. Counters and histograms are cumulative from the start of
//! the process, so a push that is lost loses nothing but its own moment: none is kept, none is repeated.
//!
//! One thread, one connection at a time, opened for each push; a push takes at most [`PUSH_MAX`]. A collector that is
//! away is told once, and once when it is back.
//!
//! Absent: TLS and passwords. The collector stands on this host or on a network of one's own, as its agents do.

use std::fmt;
use std::future::Future;
use std::str::FromStr;
use std::thread::JoinHandle;
use std::time::{Duration, SystemTime};

use http_body_util::{BodyExt, Full, Limited};
use hyper::body::Bytes;
use hyper::header::{CONTENT_TYPE, HOST};
use hyper::{Request, Response, Uri};
use hyper_util::rt::TokioIo;
use prometheus::proto::{Histogram, LabelPair, Metric, MetricFamily, MetricType};
use ramjet_registry::RegistryHandle;
use serde_json::{Value, json};
use tokio::sync::watch;

use super::page::Page;
use super::{Write, node, process, registry};
use crate::node::Node;

/// Between two pushes.
pub const EVERY: Duration = Duration::from_secs(15);
/// The longest that a push may take, from its connect to the collector's answer.
const PUSH_MAX: Duration = Duration::from_secs(5);
/// Bytes of an answer that are read, for what a refusal says.
const ANSWER_LEN_MAX: usize = 4_096;
/// `AGGREGATION_TEMPORALITY_CUMULATIVE` of `metrics.proto`.
const CUMULATIVE: u32 = 2;

/// Where a collector takes metrics: `http://HOST:PORT/v1/metrics`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Collector {
    uri: Uri,
    host: String,
    port: u16,
}

impl FromStr for Collector {
    type Err = String;

    /// Port and path may be left out: they are 4318 and `/v1/metrics` then, as OTLP says.
    fn from_str(text: &str) -> Result<Self, String> {
        const FORM: &str = "it is http://HOST:PORT/v1/metrics";
        let uri: Uri = text.parse().map_err(|error| format!("{error}; {FORM}"))?;
        match uri.scheme_str() {
            Some("http") => {}
            Some(_) => {
                return Err(
                    "only http:// is spoken; let a collector on this host speak TLS".into(),
                );
            }
            None => return Err(format!("the scheme is missing; {FORM}")),
        }
        let host = uri.host().filter(|host| !host.is_empty());
        let host = host.ok_or_else(|| format!("the host is missing; {FORM}"))?;
        // An address of IPv6 stands in brackets in a URL, and without them where names are resolved.
        let host = host.trim_matches(['[', ']']).to_owned();
        let authority = uri.authority().map_or("", |authority| authority.as_str());
        if authority.contains('@') {
            return Err("names and passwords are not sent; leave out what stands before @".into());
        }
        let port = match authority.rsplit_once(':') {
            // A colon within brackets is one of IPv6.
            Some((_, port)) if !port.contains(']') => port.parse().map_err(|_| {
                format!("{port:?} is no port: a number up to 65535 is, or nothing for 4318")
            })?,
            _ => 4_318,
        };
        let uri = if matches!(uri.path(), "" | "/") && uri.query().is_none() {
            Uri::from_static("/v1/metrics")
        } else {
            let path = uri.path_and_query().expect("it is not empty").as_str();
            path.parse().expect("it was one")
        };
        Ok(Collector { uri, host, port })
    }
}

impl fmt::Display for Collector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "http://{}{}", self.authority(), self.uri)
    }
}

impl Collector {
    /// Host and port as a URL and `Host` have them: an address of IPv6 in brackets.
    fn authority(&self) -> String {
        match self.host.contains(':') {
            true => format!("[{}]:{}", self.host, self.port),
            false => format!("{}:{}", self.host, self.port),
        }
    }
}

/// The thread that pushes; dropping it ends it, after a last push.
#[derive(Debug)]
pub struct Pusher {
    stop: watch::Sender<bool>,
    thread: Option<JoinHandle<()>>,
}

impl Pusher {
    /// Pushes what `node` counts.
    ///
    /// # Errors
    /// What the system says of a new thread.
    pub fn of_node(collector: Collector, node: &Node) -> Result<Self, String> {
        let control = node.control.clone();
        let write = Box::new(move |page: &mut Page| node::write(&control, page));
        Self::start(collector, "ramjet-node", write)
    }

    /// Pushes what `registry` counts.
    ///
    /// # Errors
    /// What the system says of a new thread.
    pub fn of_registry(collector: Collector, registry: &RegistryHandle) -> Result<Self, String> {
        let counters = registry.shared_counters();
        let write = Box::new(move |page: &mut Page| registry::write(&counters, page));
        Self::start(collector, "ramjet-registry", write)
    }

    fn start(collector: Collector, service: &'static str, write: Write) -> Result<Self, String> {
        let (stop, stopped) = watch::channel(false);
        let told = collector.to_string();
        let started = || {
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()?;
            std::thread::Builder::new()
                .name("ramjet-push".to_owned())
                .spawn(move || runtime.block_on(run(&collector, service, &write, stopped)))
        };
        let thread =
            started().map_err(|error: std::io::Error| format!("metrics to {told}: {error}"))?;
        Ok(Pusher {
            stop,
            thread: Some(thread),
        })
    }
}

impl Drop for Pusher {
    fn drop(&mut self) {
        // The thread may have ended by itself.
        let _ = self.stop.send(true);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

async fn run(
    collector: &Collector,
    service: &str,
    write: &Write,
    mut stopped: watch::Receiver<bool>,
) {
    let began = SystemTime::now();
    let mut away = false;
    let mut next = tokio::time::interval(EVERY);
    next.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        let last = tokio::select! {
            _ = next.tick() => false,
            _ = stopped.changed() => true,
        };
        let mut page = Page::new();
        process::write(&mut page);
        write(&mut page);
        let body = request(page.families(), service, began, SystemTime::now()).to_string();
        match within(push(collector, body)).await {
            Ok(()) if away => {
                tracing::info!(%collector, "metrics are pushed again");
                away = false;
            }
            Err(error) if !away => {
                let every = EVERY.as_secs();
                tracing::warn!(%collector, error, "metrics are not taken; tried again every {every} s");
                away = true;
            }
            Ok(()) | Err(_) => {}
        }
        if last {
            return;
        }
    }
}

async fn within(push: impl Future<Output = Result<(), String>>) -> Result<(), String> {
    let late = |_| Err(format!("no answer within {} s", PUSH_MAX.as_secs()));
    tokio::time::timeout(PUSH_MAX, push)
        .await
        .unwrap_or_else(late)
}

/// One push over a connection of its own.
async fn push(collector: &Collector, body: String) -> Result<(), String> {
    let stream = tokio::net::TcpStream::connect((collector.host.as_str(), collector.port))
        .await
        .map_err(|error| error.to_string())?;
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream))
        .await
        .map_err(|error| error.to_string())?;
    let request = Request::post(collector.uri.clone())
        .header(HOST, collector.authority())
        .header(CONTENT_TYPE, "application/json")
        .body(Full::<Bytes>::from(body))
        .map_err(|error| error.to_string())?;
    let answered = async {
        let response = sender.send_request(request).await;
        taken(response.map_err(|error| error.to_string())?).await
    };
    tokio::select! {
        answer = answered => answer,
        // A connection that ends before the answer has none to bring.
        Err(error) = connection => Err(error.to_string()),
    }
}

/// Whether a collector took what was pushed, or what it says instead.
async fn taken(response: Response<hyper::body::Incoming>) -> Result<(), String> {
    let status = response.status();
    if status.is_success() {
        return Ok(());
    }
    let body = Limited::new(response.into_body(), ANSWER_LEN_MAX)
        .collect()
        .await;
    let said = body
        .map(http_body_util::Collected::to_bytes)
        .unwrap_or_default();
    let said: String = String::from_utf8_lossy(&said).chars().take(200).collect();
    Err(format!("HTTP {status} {}", said.trim().escape_debug()))
}

/// The families as one `ExportMetricsServiceRequest`.
///
/// 64-bit integers are strings in this encoding, and enumerations numbers.
fn request(families: &[MetricFamily], service: &str, began: SystemTime, now: SystemTime) -> Value {
    let attribute = |key: &str, value: &str| json!({"key": key, "value": {"stringValue": value}});
    let times = Times {
        began: nanos(began),
        now: nanos(now),
    };
    let metrics: Vec<Value> = families
        .iter()
        .map(|family| metric(family, &times))
        .collect();
    json!({"resourceMetrics": [{
        "resource": {"attributes": [
            attribute("service.name", service),
            attribute("service.version", env!("CARGO_PKG_VERSION")),
            attribute("service.instance.id", &format!("{}-{}", host(), std::process::id())),
            attribute("host.name", &host()),
        ]},
        "scopeMetrics": [{
            "scope": {"name": "ramjet", "version": env!("CARGO_PKG_VERSION")},
            "metrics": metrics,
        }],
    }]})
}

struct Times {
    began: String,
    now: String,
}

fn nanos(time: SystemTime) -> String {
    let since = time
        .duration_since(SystemTime::UNIX_EPOCH)
        .unwrap_or_default();
    since.as_nanos().to_string()
}

fn host() -> String {
    let name = rustix::system::uname();
    name.nodename().to_string_lossy().into_owned()
}

fn metric(family: &MetricFamily, times: &Times) -> Value {
    let name = family.name();
    let mut metric = json!({"name": name, "description": family.help(), "unit": unit(name)});
    let points = |value: fn(&Metric) -> Value| -> Vec<Value> {
        let points = family.get_metric().iter();
        points
            .map(|metric| point(metric, times, value(metric)))
            .collect()
    };
    let (kind, data) = match family.get_field_type() {
        MetricType::COUNTER => (
            "sum",
            json!({
                "aggregationTemporality": CUMULATIVE,
                "isMonotonic": true,
                "dataPoints": points(|metric| json!({"asDouble": metric.get_counter().get_value()})),
            }),
        ),
        MetricType::HISTOGRAM => (
            "histogram",
            json!({
                "aggregationTemporality": CUMULATIVE,
                "dataPoints": points(|metric| histogram(metric.get_histogram())),
            }),
        ),
        MetricType::GAUGE | MetricType::SUMMARY | MetricType::UNTYPED => (
            "gauge",
            json!({"dataPoints": points(|metric| json!({"asDouble": metric.get_gauge().get_value()}))}),
        ),
    };
    metric[kind] = data;
    metric
}

/// The unit that a name of the page ends in, as UCUM writes it.
fn unit(name: &str) -> &'static str {
    let base = name.strip_suffix("_total").unwrap_or(name);
    if base.ends_with("_seconds") {
        "s"
    } else if base.ends_with("_bytes") {
        "By"
    } else {
        "1"
    }
}

fn point(metric: &Metric, times: &Times, mut value: Value) -> Value {
    let attribute =
        |label: &LabelPair| json!({"key": label.name(), "value": {"stringValue": label.value()}});
    let attributes: Vec<Value> = metric.get_label().iter().map(attribute).collect();
    value["attributes"] = attributes.into();
    value["startTimeUnixNano"] = times.began.as_str().into();
    value["timeUnixNano"] = times.now.as_str().into();
    value
}

/// Counts of each bucket by itself, the last without a bound; the page's grow from one to the next.
fn histogram(histogram: &Histogram) -> Value {
    let mut before = 0;
    let mut counts = Vec::new();
    let mut bounds = Vec::new();
    for bucket in histogram.get_bucket() {
        counts.push((bucket.cumulative_count() - before).to_string());
        bounds.push(bucket.upper_bound());
        before = bucket.cumulative_count();
    }
    counts.push((histogram.get_sample_count() - before).to_string());
    json!({
        "count": histogram.get_sample_count().to_string(),
        "sum": histogram.get_sample_sum(),
        "bucketCounts": counts,
        "explicitBounds": bounds,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::latency::{BUCKETS, Buckets};
    use crate::metrics::page::Labels;

    #[test]
    fn a_collector_is_named_by_a_url() {
        for (text, is) in [
            (
                "http://127.0.0.1:4318/v1/metrics",
                "http://127.0.0.1:4318/v1/metrics",
            ),
            ("http://collector", "http://collector:4318/v1/metrics"),
            ("http://[::1]:9/", "http://[::1]:9/v1/metrics"),
            (
                "http://a:1/otlp/v1/metrics?k=v",
                "http://a:1/otlp/v1/metrics?k=v",
            ),
        ] {
            let collector: Collector = text.parse().expect("one");
            assert_eq!(collector.to_string(), is);
        }
        for (text, says) in [
            ("https://collector:4318", "only http:// is spoken"),
            ("127.0.0.1:4318", "http://HOST:PORT/v1/metrics"),
            ("/v1/metrics", "the scheme is missing"),
            ("http://a:99999/v1/metrics", "\"99999\" is no port"),
            ("http://me:secret@a:1/", "not sent"),
            ("", "http://HOST:PORT/v1/metrics"),
        ] {
            let refusal = text.parse::<Collector>().expect_err(text);
            assert!(refusal.contains(says), "{text}: {refusal}");
        }
    }

    #[test]
    fn a_page_becomes_what_otlp_says() {
        let mut times = Buckets::default();
        (times.counts[0], times.counts[2], times.counts[BUCKETS - 1]) = (2, 3, 1);
        times.sum_ns = 70_000_002_000;
        let mut page = Page::new();
        page.counters(
            "ramjet_things_total",
            "Things.",
            [(&[("colour", "red")] as Labels<'_>, 2.0)],
        );
        page.gauge("ramjet_room_bytes", "Room.", 8.0);
        page.times(
            "ramjet_step_seconds",
            "Steps.",
            [(&[] as Labels<'_>, times)],
        );
        let at = |seconds| SystemTime::UNIX_EPOCH + Duration::from_secs(seconds);
        let value = request(page.families(), "ramjet-node", at(1), at(2));
        let resource = &value["resourceMetrics"][0];
        assert_eq!(
            resource["resource"]["attributes"][0],
            json!({"key": "service.name", "value": {"stringValue": "ramjet-node"}})
        );
        let metrics = &resource["scopeMetrics"][0]["metrics"];
        assert_eq!(
            metrics[0],
            json!({"name": "ramjet_things_total", "description": "Things.", "unit": "1", "sum": {
                "aggregationTemporality": 2, "isMonotonic": true, "dataPoints": [{
                    "attributes": [{"key": "colour", "value": {"stringValue": "red"}}],
                    "startTimeUnixNano": "1000000000", "timeUnixNano": "2000000000", "asDouble": 2.0,
                }],
            }})
        );
        assert_eq!(
            (
                &metrics[1]["unit"],
                &metrics[1]["gauge"]["dataPoints"][0]["asDouble"]
            ),
            (&json!("By"), &json!(8.0))
        );
        let point = &metrics[2]["histogram"]["dataPoints"][0];
        assert_eq!(
            (&point["count"], &point["sum"]),
            (&json!("6"), &json!(70.000_002))
        );
        let counts = point["bucketCounts"].as_array().expect("counts");
        let bounds = point["explicitBounds"].as_array().expect("bounds");
        assert_eq!((counts.len(), bounds.len()), (BUCKETS, BUCKETS - 1));
        assert_eq!(
            (&counts[0], &counts[1], &counts[2], &counts[BUCKETS - 1]),
            (&json!("2"), &json!("0"), &json!("3"), &json!("1"))
        );
    }
}
