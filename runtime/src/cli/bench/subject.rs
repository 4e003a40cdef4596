//! The subject: an in-memory registry, a worker and a requester, each node with one worker thread
//! pinned to a core of its own, and one engagement for `echo` whose job compares every result with
//! its payload; or a requester alone, which asks a worker of another market.

use std::collections::BTreeMap;
use std::time::Duration;

use crossbeam::channel::bounded;
use ramjet_bench::arms;
use ramjet_proto::market::AcceptFrom;
use ramjet_registry::RegistryHandle;

use super::super::bench_args::{BenchFairnessArgs, BenchRunArgs, BenchSoakArgs};
use super::super::demo::{on_two_cores, wait_advertised};
use super::super::engage::{self, Followed, Interrupts, Timeline};
use super::super::exit::{Exit, Failure};
use super::super::host::{self, Threads};
use super::super::identity_file::throw_away;
use super::super::jobs::{Load, Loaded};
use super::super::market;
use super::super::output::Output;
use super::super::settings::{self as s, Settings};
use super::super::up::start_both;
use super::scrape::Scraping;
use super::target::Target;
use crate::job::Job;
use crate::node::{EngageRequest, Node, NodeConfig};
use crate::skills;
use crate::worker::Idle;

/// Uncounted time at the head of every run of the subject: tunnel, caches, windows.
pub(super) const WARM_UP: Duration = Duration::from_millis(300);
/// Bytes of payload that the default window holds.
const IN_FLIGHT_MAX: u32 = 8 << 20;
/// The default window holds at least so many tasks.
const WINDOW_LONG_MIN: u32 = 2;
/// How long a run may take beyond its own time.
const DURATION_S: u32 = 900;
/// Tasks of one engagement: more than any run sends.
const TASKS_MAX: u64 = 1 << 40;

/// What a subject runs.
#[derive(Clone)]
pub(super) struct Spec {
    pub(super) payload: usize,
    pub(super) window: u32,
    pub(super) run: Duration,
    pub(super) pairs: usize,
    pub(super) worker: Threads,
    pub(super) requester: Threads,
    /// Most tasks in a datagram.
    pub(super) frames_per_datagram_max: u16,
    /// Longest datagram to try.
    pub(super) datagram_len_max: usize,
    /// Whether both nodes serve metrics, which are read meanwhile.
    pub(super) scraped: bool,
    pub(super) target: Target,
}

impl Spec {
    pub(super) fn tasks(args: &BenchRunArgs, settings: &Settings) -> Result<Self, Failure> {
        Spec::of(args, settings, 64, 1_024)
    }

    pub(super) fn latency(args: &BenchRunArgs, settings: &Settings) -> Result<Self, Failure> {
        Spec::of(args, settings, 256, 1)
    }

    pub(super) fn of(
        args: &BenchRunArgs,
        settings: &Settings,
        payload: u32,
        window: u32,
    ) -> Result<Self, Failure> {
        let [worker, requester] = two_threads(settings)?;
        let payload = args.payload.unwrap_or(payload);
        // Long payloads fill memory before they fill slots.
        let fits = (IN_FLIGHT_MAX / payload).max(WINDOW_LONG_MIN);
        Ok(Spec {
            payload: payload as usize,
            window: args.window.unwrap_or(window.min(fits)),
            run: Duration::from_secs_f64(args.seconds),
            pairs: args.pairs as usize,
            worker,
            requester,
            frames_per_datagram_max: u16::MAX,
            datagram_len_max: usize::MAX,
            scraped: false,
            target: Target::own_echo(),
        })
    }

    pub(super) fn soak(args: &BenchSoakArgs, settings: &Settings) -> Result<Self, Failure> {
        let [worker, requester] = two_threads(settings)?;
        Ok(Spec {
            payload: args.payload as usize,
            window: args.window,
            run: args.length,
            pairs: 0,
            worker,
            requester,
            frames_per_datagram_max: u16::MAX,
            datagram_len_max: usize::MAX,
            scraped: false,
            target: Target::own_echo(),
        })
    }

    pub(super) fn fairness(args: &BenchFairnessArgs, settings: &Settings) -> Result<Self, Failure> {
        let [worker, requester] = two_threads(settings)?;
        Ok(Spec {
            payload: args.payload as usize,
            window: args.window,
            run: Duration::from_secs_f64(args.seconds),
            pairs: args.pairs as usize,
            worker,
            requester,
            frames_per_datagram_max: u16::MAX,
            datagram_len_max: usize::MAX,
            scraped: false,
            target: Target::own_echo(),
        })
    }

    /// With another target.
    pub(super) fn aimed(self, target: Target) -> Self {
        let payload = target.data.as_ref().map_or(self.payload, Vec::len);
        Spec {
            payload,
            target,
            ..self
        }
    }

    /// What a task carries.
    pub(super) fn payload(&self) -> Vec<u8> {
        let made_up = || (0_u8..=255).cycle().take(self.payload).collect();
        self.target.data.clone().unwrap_or_else(made_up)
    }

    /// A task in words.
    pub(super) fn what(&self) -> String {
        format!("{} B {}", self.payload, self.target.skill)
    }

    pub(super) fn method(&self, loop_words: &str) -> String {
        format!(
            "{loop_words}, {}, encrypted, {}; {} interleaved pairs of {:.1} s each after {} ms \
             warm-up, medians",
            self.what(),
            self.placement(),
            self.pairs,
            self.run.as_secs_f64(),
            WARM_UP.as_millis(),
        )
    }

    /// Which threads run where, and how.
    pub(super) fn placement(&self) -> String {
        let worker = match &self.target.remote {
            None => format!("on core {}", core_of(&self.worker)),
            Some(node) => format!("of the market at {}", node.registry),
        };
        format!(
            "worker {worker}, requester on core {}, {:?} idle, {:?}",
            core_of(&self.requester),
            self.requester.idle,
            self.requester.io,
        )
    }

    pub(super) fn cores(&self) -> Option<arms::Cores> {
        match (self.worker.cores.first(), self.requester.cores.first()) {
            (Some(&server), Some(&client)) => Some(arms::Cores { server, client }),
            _ => None,
        }
    }
}

/// Worker and requester, spinning unless something else is set, each on a core of its own.
fn two_threads(settings: &Settings) -> Result<[Threads; 2], Failure> {
    let mut threads = host::threads(settings)?;
    if !settings.is_set(s::IDLE) {
        threads.idle = Idle::Spin;
    }
    Ok(on_two_cores(settings, threads))
}

fn core_of(threads: &Threads) -> String {
    threads
        .cores
        .first()
        .map_or_else(|| "any".to_owned(), usize::to_string)
}

/// A requester, and the worker and the market of this process if it asks no other.
pub(super) struct Subject {
    own: Option<(RegistryHandle, Node)>,
    requester: Node,
    skill: String,
}

impl Subject {
    /// Starts it; a worker of its own grants up to `credits` slots.
    pub(super) fn start(spec: &Spec, credits: u32) -> Result<Self, Failure> {
        if let Some(node) = &spec.target.remote {
            // Whether anybody offers the skill is told with its reasons by the offer itself.
            return Subject::remote(spec, node);
        }
        let subject = Subject::own(spec, credits)?;
        match wait_advertised(&subject.requester, &subject.skill) {
            Ok(_) => Ok(subject),
            Err(failure) => {
                // Why it could not start matters; how it stopped adds nothing to it.
                let _ = subject.stop();
                Err(failure)
            }
        }
    }

    fn own(spec: &Spec, credits: u32) -> Result<Self, Failure> {
        let registry = market::start_in_memory()?;
        let skill = skills::built_in(&spec.target.skill, AcceptFrom::Trusted)
            .map_err(|error| Failure::environment(error.to_string()))?;
        let worker = NodeConfig {
            skills: vec![skill],
            task_ready: true,
            credits,
            frames_per_datagram_max: spec.frames_per_datagram_max,
            datagram_len_max: spec.datagram_len_max,
            ..host::bare_node(registry.tcp_addr(), throw_away()?, spec.worker.clone())
        };
        let requester = NodeConfig {
            frames_per_datagram_max: spec.frames_per_datagram_max,
            datagram_len_max: spec.datagram_len_max,
            ..host::bare_node(registry.tcp_addr(), throw_away()?, spec.requester.clone())
        };
        match start_both(worker, requester) {
            Ok((worker, requester)) => Ok(Subject {
                own: Some((registry, worker)),
                requester,
                skill: spec.target.skill.clone(),
            }),
            Err(failure) => {
                registry.shutdown();
                Err(failure)
            }
        }
    }

    fn remote(spec: &Spec, node: &NodeConfig) -> Result<Self, Failure> {
        let threads = spec.requester.clone();
        let node = NodeConfig {
            workers: threads.workers,
            cores: threads.cores,
            io: threads.io,
            io_options: threads.io_options,
            idle: threads.idle,
            frames_per_datagram_max: spec.frames_per_datagram_max,
            datagram_len_max: spec.datagram_len_max,
            ..node.clone()
        };
        Ok(Subject {
            own: None,
            requester: Node::start(node)?,
            skill: spec.target.skill.clone(),
        })
    }

    /// Another requester for the same worker; `None` if the worker is not of this process.
    pub(super) fn add_requester(&self, threads: Threads) -> Result<Option<Node>, Failure> {
        let Some((registry, worker)) = &self.own else {
            return Ok(None);
        };
        let node = Node::start(host::bare_node(registry.tcp_addr(), throw_away()?, threads))?;
        let met = worker
            .trust(node.node_id())
            .and_then(|()| node.trust(worker.node_id()));
        match met {
            Ok(()) => Ok(Some(node)),
            Err(error) => {
                // Why it cannot be used matters; how it stopped adds nothing to it.
                let _ = node.shutdown();
                Err(error.into())
            }
        }
    }

    /// One engagement with up to `window` tasks outstanding, to its good end. The job is dropped,
    /// so that it tells what it measured. `look` is called ten times a second.
    pub(super) fn engage(
        &self,
        job: Box<dyn Job>,
        window: u32,
        duration_s: u32,
        look: &mut dyn FnMut(),
    ) -> Result<Followed, Failure> {
        self.engage_from(&self.requester, job, window, duration_s, look)
    }

    /// The node whose engagements [`Self::engage`] makes.
    pub(super) fn requester(&self) -> &Node {
        &self.requester
    }

    /// The nodes of this process.
    fn nodes(&self) -> impl Iterator<Item = &Node> {
        let worker = self.own.iter().map(|(_, worker)| worker);
        worker.chain([&self.requester])
    }

    /// As [`Self::engage`], by another node.
    pub(super) fn engage_from(
        &self,
        node: &Node,
        job: Box<dyn Job>,
        window: u32,
        duration_s: u32,
        look: &mut dyn FnMut(),
    ) -> Result<Followed, Failure> {
        let events = node.engage(EngageRequest {
            skill: self.skill.clone(),
            filters: Vec::new(),
            min_polo: i64::MIN,
            tasks: TASKS_MAX,
            concurrency: window,
            duration_s,
            accept_deadline_ms: 10_000,
            job,
        })?;
        // The timeline of a benchmark's engagement is of no interest, and signals end the process.
        let mut quiet = Output::quiet();
        let interrupts = Interrupts::signals(crossbeam::channel::never());
        let mut followed = engage::follow(
            &events,
            &mut quiet,
            &mut Timeline::start(),
            &interrupts,
            &mut |_| look(),
        )?;
        drop(followed.end.job.take());
        match engage::failure_of(&followed.end.outcome, &self.skill) {
            Some(failure) => Err(failure),
            None => Ok(followed),
        }
    }

    /// What the nodes of this process have dropped so far, by reason.
    pub(super) fn drops(&self) -> Result<BTreeMap<String, u64>, Failure> {
        let mut drops: BTreeMap<String, u64> = BTreeMap::new();
        for node in self.nodes() {
            let counters = node.status()?.counters;
            for (name, count) in counters.into_iter().filter(|(name, _)| is_drop(name)) {
                *drops.entry(name).or_default() += count;
            }
        }
        Ok(drops)
    }

    pub(super) fn stop(self) -> Result<(), Failure> {
        let requester = self.requester.shutdown();
        if let Some((registry, worker)) = self.own {
            let worker = worker.shutdown();
            registry.shutdown();
            worker?;
        }
        Ok(requester?)
    }
}

/// Whether a counter counts something that was dropped for one reason.
fn is_drop(counter: &str) -> bool {
    counter.starts_with("dropped_") || counter == "out_of_buffers"
}

/// One run of the subject, from nothing to nothing.
pub(super) fn measure(spec: &Spec) -> Result<Loaded, Failure> {
    let subject = Subject::start(spec, spec.window)?;
    let scraping = match spec.scraped {
        true => Some(Scraping::start(subject.nodes())),
        false => None,
    };
    let loaded = load(spec, &subject);
    let scraped = scraping.map_or(Ok(()), |scraping| scraping?.stop());
    let counted = subject.own.as_ref().map(|(_, worker)| worker.status());
    let stopped = subject.stop();
    let mut loaded = loaded?;
    if let Some(counted) = counted {
        loaded.worker = counted?.counters;
    }
    stopped?;
    scraped?;
    Ok(loaded)
}

fn load(spec: &Spec, subject: &Subject) -> Result<Loaded, Failure> {
    let nanos = |time: Duration| u64::try_from(time.as_nanos()).unwrap_or(u64::MAX);
    let (report, reported) = bounded(1);
    let job = Load::new(spec.payload(), nanos(WARM_UP), nanos(spec.run), report);
    subject.engage(Box::new(job), spec.window, DURATION_S, &mut || {})?;
    let loaded = reported
        .recv()
        .map_err(|_| Failure::environment("the job was lost"))?;
    match &loaded.measured.first_fault {
        Some(fault) => Err(Failure::new(
            Exit::Failed,
            format!("the echo was wrong: {fault}"),
        )),
        None => Ok(loaded),
    }
}
