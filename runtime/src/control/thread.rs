//! The control thread itself: a runtime, one loop, and the carrying-out of what the plane decides.
//!
//! Each turn takes what callers, workers and the registry have sent, lets the plane decide, and
//! then acts in the order that keeps its promise: receipts to disk, commands to workers, orders to
//! the connections, answers to callers. It is the only part of control that reads a clock.

use std::collections::{BTreeMap, VecDeque};
use std::net::UdpSocket;
use std::path::Path;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use ramjet_proto::ids::NodeId;
use ramjet_proto::market::message::MESSAGE_LEN_MAX;
use ramjet_proto::market::terms::is_skill_name;
use ramjet_proto::wire::limits::SLOTS_PER_CHANNEL_MAX;
use tokio::sync::mpsc;

use super::ControlTimings;
use super::advertise::Advertiser;
use super::agent::{self, AgentSetup, NodeHost, Opened, Pace};
use super::agent_port::{check_agents, start_port};
use super::driver::external::{self, Places};
use super::driver::{self, Driver};
use super::engagements::Moment;
use super::handle::{ASKS_MAX, Ask, Card, ControlHandle, Shared};
use super::link::{Link, LinkConfig};
use super::local::{self, LocalListener};
use super::observe::{Look, Surroundings};
use super::pin::Pin;
use super::plane::{Plane, PlaneConfig};
use super::ports::Ports;
use super::spool::{ENTRIES_MAX, Spool};
use super::transport::{Arrival, Backend, Dial, Order, QUEUE_MAX, Wire, dial};
use super::vocabulary::{Command, Report};
use crate::events;
use crate::handler::{Placement, Skill};
use crate::node::{NodeConfig, NodeError};
use crate::port::{self, AgentPlaces, Port};
use crate::worker::{
    self, Idle, IoKind, Pool, ReportReceiver, ReportSender, Segmentation, Trains, WorkerHandle,
    WorkerPlan,
};

/// The longest that the plane goes without being told the time while something is under way.
const TICK: Duration = Duration::from_millis(50);
/// The same while everything merely runs: each waking may take a core from a worker for some 50 us.
const TICK_STEADY: Duration = Duration::from_millis(250);
/// Arrivals, questions and reports of each kind that one turn takes.
const TURN_MAX: usize = 4_096;
/// How often a worker whose queue is full is told to stop.
const STOP_TRIES: usize = 1_000;
/// Worker threads of one node.
const WORKERS_MAX: usize = 256;

/// Binds everything that can be refused at once, then starts the thread.
pub(crate) fn start(
    mut config: NodeConfig,
    timings: ControlTimings,
) -> Result<ControlHandle, NodeError> {
    check(&config).map_err(NodeError)?;
    let trains = try_trains(&config);
    let sockets = match config.sockets.take() {
        Some(left) => worker::adopt_group(&left, config.workers, trains),
        None => worker::bind_group(config.listen, config.workers, trains),
    };
    let sockets =
        sockets.map_err(|error| NodeError(format!("listen {}: {error}", config.listen)))?;
    if let Some(show) = config.on_bound {
        show(&sockets);
    }
    let listen = sockets
        .first()
        .ok_or_else(|| std::io::Error::other("no socket was bound"))
        .and_then(UdpSocket::local_addr)
        .map_err(|error| NodeError(format!("listen {}: {error}", config.listen)))?;
    let plane = plane(&config, listen, timings).map_err(NodeError)?;
    let places = AgentPlaces::new();
    let services = services(&config, &places).map_err(NodeError)?;
    let socket = match &config.socket {
        Some(path) => Some(local::bind(path).map_err(NodeError)?),
        None => None,
    };
    let agents = port::bind(&config.agents).map_err(NodeError)?;
    let (asks, asks_inbox) = mpsc::channel(ASKS_MAX);
    let shared = Arc::new(Shared::new(config.registry, listen, timings));
    let handle = ControlHandle {
        asks,
        shared: Arc::clone(&shared),
    };
    let seed = Seed {
        config,
        plane,
        trains,
        services,
        sockets,
        socket,
        agents: (agents, places),
        asks: asks_inbox,
        handle: handle.clone(),
    };
    let thread = std::thread::Builder::new()
        .name("ramjet-control".to_owned())
        .spawn(move || run(seed))
        .map_err(|error| NodeError(format!("the control thread cannot start: {error}")))?;
    shared.keep_thread(thread);
    Ok(handle)
}

/// What is wrong with a configuration: the field, its value and the bound.
fn check(config: &NodeConfig) -> Result<(), String> {
    let range = |name: &str, value: u64, max: u64| {
        if value == 0 || value > max {
            return Err(format!("{name}: {value}, must be 1 to {max}"));
        }
        Ok(())
    };
    range("workers", config.workers as u64, WORKERS_MAX as u64)?;
    range(
        "credits",
        u64::from(config.credits),
        SLOTS_PER_CHANNEL_MAX as u64,
    )?;
    range("engagements_max", config.engagements_max as u64, 1 << 20)?;
    range("unsigned_max", config.unsigned_max, u64::MAX)?;
    range("tunnels_max", config.tunnels_max as u64, 1 << 24)?;
    range(
        "frames_per_datagram_max",
        u64::from(config.frames_per_datagram_max),
        u64::from(u16::MAX),
    )?;
    for (index, skill) in config.skills.iter().enumerate() {
        if !is_skill_name(&skill.name) {
            return Err(format!(
                "skill {:?} must be 1 to 64 bytes of [a-z0-9._-]",
                skill.name
            ));
        }
        if config.skills[..index]
            .iter()
            .any(|earlier| earlier.name == skill.name)
        {
            return Err(format!("skill {:?} is configured twice", skill.name));
        }
    }
    check_agents(config)?;
    if uses_pool(&config.skills) {
        range(
            "pool_threads",
            config.pool_threads as u64,
            WORKERS_MAX as u64,
        )?;
    }
    Ok(())
}

fn uses_pool(skills: &[Skill]) -> bool {
    skills
        .iter()
        .any(|skill| skill.handler.placement() == Placement::Pool)
}

/// The plane of a node: its state directory, its link, what it says of itself.
fn plane(
    config: &NodeConfig,
    listen: std::net::SocketAddr,
    timings: ControlTimings,
) -> Result<Plane, String> {
    if let Some(state) = &config.state {
        std::fs::create_dir_all(state)
            .map_err(|error| format!("state directory {}: {error}", state.display()))?;
    }
    let advertiser = Advertiser::new(&config.skills, &config.capabilities, timings.lease_s);
    if let Some(refusal) = advertiser.refusal() {
        return Err(refusal);
    }
    let pin = Pin::load(config.registry_key, config.state.as_ref())?;
    let spool = Spool::open(config.state.as_deref().map(Path::new), ENTRIES_MAX)
        .map_err(|fault| fault.to_string())?;
    let link = Link::new(
        LinkConfig {
            registry: config.registry,
            identity: Arc::clone(&config.identity),
            listen: config.endpoint.unwrap_or(listen),
            owner: config.owner.clone(),
            hostname: config.hostname.clone(),
            public: config.public,
            tags: None,
            task_exec: None,
            timings,
        },
        pin,
    );
    let skills = config
        .skills
        .iter()
        .map(|skill| (skill.name.clone(), skill.accept_from))
        .collect();
    let plane_config = PlaneConfig {
        identity: Arc::clone(&config.identity),
        skills,
        task_ready: config.task_ready,
        credits: config.credits,
        engagements_max: config.engagements_max,
        unsigned_max: config.unsigned_max,
        workers: config.workers,
        timings,
        entropy,
    };
    Ok(Plane::new(plane_config, link, spool, advertiser))
}

/// What the node may use of trains; a kernel that fails the trial is named, since it costs throughput.
fn try_trains(config: &NodeConfig) -> Trains {
    let segmentation = config.io_options.segmentation;
    let trains = Trains::of(segmentation);
    if segmentation == Segmentation::Auto && trains != Trains::ALL {
        tracing::warn!(
            sent = trains.sent,
            gathered = trains.gathered,
            "this kernel does not pass the trial of UDP segmentation; datagrams go one by one"
        );
    }
    trains
}

/// The services of a node for plain agents, with their state directory.
fn services(config: &NodeConfig, places: &AgentPlaces) -> Result<Opened, String> {
    let mut skills = config.skills.clone();
    skills.extend(places.named(config.agents.owned_skills()));
    Opened::open(AgentSetup {
        services: config.services,
        state: config.state.clone(),
        public: config.public,
        skills: skills.into(),
        threads: config.pool_threads,
        pace: Pace::default(),
    })
}

/// Entropy for offer ids and for the spread of pauses.
fn entropy() -> u64 {
    let mut bytes = [0; 8];
    aws_lc_rs::rand::fill(&mut bytes).expect("the kernel's generator is always seeded by now");
    u64::from_be_bytes(bytes)
}

struct Seed {
    config: NodeConfig,
    plane: Plane,
    trains: Trains,
    services: Opened,
    sockets: Vec<UdpSocket>,
    socket: Option<LocalListener>,
    agents: (port::Bound, AgentPlaces),
    asks: mpsc::Receiver<Ask>,
    handle: ControlHandle,
}

fn run(seed: Seed) -> Result<(), String> {
    // Who asked for no io_uring gets none, here as on the data path.
    let backend = match seed.config.io {
        IoKind::Mmsg => Backend::Plain,
        IoKind::Uring => Backend::probe(),
    };
    match backend {
        Backend::Uring => tokio_uring::start(control(seed, backend)),
        Backend::Plain => {
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()
                .map_err(|error| format!("the control runtime cannot start: {error}"))?;
            tokio::task::LocalSet::new().block_on(&runtime, control(seed, backend))
        }
    }
}

async fn control(seed: Seed, backend: Backend) -> Result<(), String> {
    let (arrivals_sender, arrivals) = mpsc::channel(QUEUE_MAX);
    let orders = [Wire::Pilot, Wire::Market].map(|wire| {
        dial(Dial {
            wire,
            address: seed.config.registry,
            backend,
            timings: seed.handle.shared.timings,
            limit: MESSAGE_LEN_MAX,
            entropy,
            arrivals: arrivals_sender.clone(),
        })
    });
    let (senders, reports) = worker::reports(seed.config.workers);
    let ports = Ports::new(seed.config.workers);
    let host = NodeHost {
        ports: ports.clone(),
        handle: seed.handle.clone(),
        identity: Arc::clone(&seed.config.identity),
    };
    let services = agent::start(host.clone(), seed.services)?;
    let places = Places::new();
    let (mut config, mut plane) = (seed.config, seed.plane);
    let (programs, agents) = (config.socket.is_some(), config.agents.is_used());
    if programs {
        config.skills.extend(places.skills());
    }
    plane.reserve_externals(programs, agents);
    let port = if agents {
        Some(start_port(
            &mut config,
            &mut plane,
            seed.agents,
            &seed.handle,
        )?)
    } else {
        None
    };
    let driver = Driver::new(host, Rc::clone(&services.agent), places);
    let driver_counters = driver.counters();
    let local = match seed.socket {
        Some(listener) => Some(local::serve(listener, seed.handle.clone(), driver)?),
        None => None,
    };
    let mut shell = Shell {
        ports,
        services,
        driver_counters,
        backlog: (0..config.workers).map(|_| VecDeque::new()).collect(),
        config,
        plane,
        shared: seed.handle.shared,
        trains: seed.trains,
        unstarted: Some((seed.sockets, senders)),
        workers: Vec::new(),
        pool: None,
        port,
        reports,
        asks: seed.asks,
        arrivals,
        orders,
        unsent: VecDeque::new(),
        started: Instant::now(),
        published: (NodeId(0), None),
        spool_fault: None,
    };
    let outcome = shell.run().await;
    drop(local);
    shell.end(outcome)
}

/// The thread's own: everything that touches the world.
struct Shell {
    config: NodeConfig,
    plane: Plane,
    ports: Ports,
    services: agent::Running<NodeHost>,
    driver_counters: driver::Counters,
    shared: Arc<Shared>,
    trains: Trains,
    /// Sockets and queues of the workers until the node has its number.
    unstarted: Option<(Vec<UdpSocket>, Vec<ReportSender>)>,
    workers: Vec<WorkerHandle>,
    pool: Option<Pool>,
    port: Option<Port>,
    /// Commands that found a worker's queue full, in order.
    backlog: Vec<VecDeque<Command>>,
    reports: ReportReceiver,
    asks: mpsc::Receiver<Ask>,
    arrivals: mpsc::Receiver<(Wire, Arrival)>,
    orders: [mpsc::Sender<Order>; 2],
    /// Orders that found a connection's queue full, in order.
    unsent: VecDeque<(Wire, Order)>,
    started: Instant,
    /// What callers were last told of the registration.
    published: (NodeId, Option<String>),
    /// The last thing that went wrong with the spool, logged once.
    spool_fault: Option<String>,
}

fn moment() -> Moment {
    Moment {
        now: worker::clock::now(),
        unix_ms: worker::clock::unix_ms(),
    }
}

impl Shell {
    async fn run(&mut self) -> Result<(), String> {
        let mut last_tick = None;
        loop {
            let mut more = self.take_waiting();
            let now = tokio::time::Instant::now();
            if last_tick.is_none_or(|last| now >= last + self.tick()) {
                self.plane.tick(moment());
                last_tick = Some(now);
            }
            self.start_workers()?;
            self.carry_out();
            if self.plane.stopping && self.backlog.iter().all(VecDeque::is_empty) {
                return Ok(());
            }
            // A caller's answer may have made more work in this very turn.
            more |= !self.unsent.is_empty() || !self.ports.flush();
            if more {
                tokio::task::yield_now().await;
                continue;
            }
            let next_tick = last_tick.unwrap_or(now) + self.tick();
            tokio::select! {
                Some(ask) = self.asks.recv() => self.ask(ask, moment()),
                Some((wire, arrival)) = self.arrivals.recv() => {
                    self.plane.arrival(wire, arrival, moment());
                }
                () = self.reports.ready() => {}
                () = self.ports.waits() => {}
                () = tokio::time::sleep_until(next_tick) => {}
            }
        }
    }

    fn tick(&self) -> Duration {
        if self.plane.is_steady() {
            TICK_STEADY
        } else {
            TICK
        }
    }

    /// Gives the plane what waits, up to the turn's bound; true if more may wait.
    fn take_waiting(&mut self) -> bool {
        let at = moment();
        for _ in 0..TURN_MAX {
            let mut idle = true;
            if let Some(report) = self.reports.pop() {
                self.report(report, at);
                idle = false;
            }
            if let Ok((wire, arrival)) = self.arrivals.try_recv() {
                self.plane.arrival(wire, arrival, at);
                idle = false;
            }
            if let Ok(ask) = self.asks.try_recv() {
                self.ask(ask, at);
                idle = false;
            }
            if idle {
                return false;
            }
        }
        true
    }

    /// What a worker reports, to whom it concerns.
    fn report(&mut self, report: Report, at: Moment) {
        match report {
            Report::Stream(report) => self.ports.report(report),
            Report::Stopped { worker, error } => {
                self.ports.worker_ended(worker);
                self.plane.report(Report::Stopped { worker, error }, at);
            }
            report => self.plane.report(report, at),
        }
    }

    /// A caller's question, to whom it concerns.
    fn ask(&mut self, ask: Ask, at: Moment) {
        match ask {
            #[cfg(test)]
            Ask::Ports(work) => work(self.ports.clone()),
            Ask::Agent(ask) => self.services.agent.ask(*ask),
            Ask::Trust(peer, respond) => {
                self.services.agent.trust_named(peer);
                self.plane.ask(Ask::Trust(peer, respond), at);
            }
            Ask::Card(respond) => respond(Ok(self.card())),
            Ask::Vitals(respond) => {
                let mut vitals = self.plane.vitals();
                vitals.events.extend(self.own_events());
                vitals.agents = self.port.as_ref().map(Port::readings).unwrap_or_default();
                respond(Ok(vitals));
            }
            ask => self.plane.ask(ask, at),
        }
    }

    /// Starts the workers once the node has its number, which every datagram of theirs carries.
    fn start_workers(&mut self) -> Result<(), String> {
        if self.plane.node == NodeId(0) {
            return Ok(());
        }
        let Some((sockets, senders)) = self.unstarted.take() else {
            return Ok(());
        };
        let skills: Arc<[Skill]> = self.config.skills.clone().into();
        let cores = &self.config.cores;
        let plans = sockets
            .into_iter()
            .enumerate()
            .map(|(index, socket)| WorkerPlan {
                index,
                workers: self.config.workers,
                core: (!cores.is_empty()).then(|| cores[index % cores.len()]),
                socket,
                io: self.config.io,
                trains: self.trains,
                pages: self.config.io_options.pages,
                idle: self.config.idle,
                node: self.plane.node,
                identity: Arc::clone(&self.config.identity),
                skills: Arc::clone(&skills),
                agent_tasks_max: match &self.port {
                    Some(_) => self.config.agents.tasks_max,
                    None => 0,
                },
                beacon: self.config.beacon,
                tunnels_max: self.config.tunnels_max,
                frames_per_datagram_max: self.config.frames_per_datagram_max,
                datagram_len_max: self.config.datagram_len_max,
                echo: self.config.echo,
                public: self.config.public,
            });
        if uses_pool(&self.config.skills) {
            let mut threads = self.config.pool_threads;
            if self.config.socket.is_some() {
                threads = threads.max(external::THREADS_MIN);
            }
            let pool = Pool::start(threads, self.config.workers)
                .map_err(|error| format!("pool of {threads}: {error}"))?;
            self.pool = Some(pool);
        }
        self.workers = worker::spawn_group(plans.collect(), senders, self.pool.as_ref())?;
        if let Some(port) = &self.port {
            port.node(self.plane.node);
        }
        let counters = self.workers.iter().map(WorkerHandle::shared_counters);
        self.shared.keep_counters(counters.collect());
        self.ports
            .start(self.workers.iter().map(WorkerHandle::mailbox));
        Ok(())
    }

    /// Does what the plane has decided.
    fn carry_out(&mut self) {
        match self.plane.commit(moment()) {
            Ok(()) => self.spool_fault = None,
            Err(fault) => {
                if self.spool_fault.as_ref() != Some(&fault) {
                    let message_id = events::RECEIPTS_WAIT;
                    tracing::error!(message_id, %fault, "receipts cannot be made durable and wait");
                }
                self.spool_fault = Some(fault);
            }
        }
        self.send_commands();
        self.send_orders();
        self.answer_looks();
        self.publish();
    }

    fn send_commands(&mut self) {
        for (worker, command) in self.plane.take_commands() {
            if let Some(backlog) = self.backlog.get_mut(worker) {
                backlog.push_back(command);
            }
        }
        for (index, (worker, backlog)) in self.workers.iter().zip(&mut self.backlog).enumerate() {
            if self.plane.ended.contains(&index) {
                // Nobody will read them.
                backlog.clear();
            }
            while let Some(command) = backlog.pop_front() {
                if let Err(command) = worker.send(command) {
                    self.plane.count("commands_delayed");
                    backlog.push_front(command);
                    break;
                }
            }
        }
    }

    fn send_orders(&mut self) {
        self.unsent.extend(self.plane.take_orders());
        while let Some((wire, order)) = self.unsent.pop_front() {
            let sender = match wire {
                Wire::Pilot => &self.orders[0],
                Wire::Market => &self.orders[1],
            };
            match sender.try_send(order) {
                Ok(()) | Err(mpsc::error::TrySendError::Closed(_)) => {}
                Err(mpsc::error::TrySendError::Full(order)) => {
                    self.unsent.push_front((wire, order));
                    break;
                }
            }
        }
    }

    fn answer_looks(&mut self) {
        for look in self.plane.observer.take_looks() {
            match look {
                Look::Histograms(respond) => respond(Ok(self.plane.observer.total().clone())),
                Look::Latencies(respond) => respond(Ok(self.plane.observer.buckets())),
                Look::Status(respond) => {
                    let around = self.surroundings();
                    respond(Ok(self.plane.status(around)));
                }
            }
        }
    }

    /// The workers' counters, summed.
    fn worker_counters(&self) -> BTreeMap<String, u64> {
        let mut counters = BTreeMap::new();
        for worker in &self.workers {
            for (name, count) in worker.counters() {
                *counters.entry(name).or_default() += count;
            }
        }
        counters
    }

    /// What the thread counts beside the plane.
    fn own_events(&self) -> Vec<(&'static str, u64)> {
        let driver = self.driver_counters.borrow();
        let mut events: Vec<_> = driver.iter().map(|(name, count)| (*name, *count)).collect();
        events.push(("pilot_datagrams_dropped", self.ports.datagrams_dropped()));
        events
    }

    fn card(&self) -> Card {
        Card {
            node: self.plane.node,
            address: self.plane.address.clone(),
            hostname: self.plane.link.hostname().map(str::to_owned),
            owner: self.config.owner.clone(),
            key: self.config.identity.public(),
            endpoint: self.config.endpoint.unwrap_or(self.shared.listen),
            beacon: self.config.beacon,
            echo: self.config.echo,
            uptime_s: self.started.elapsed().as_secs(),
            counters: self.worker_counters(),
        }
    }

    fn surroundings(&self) -> Surroundings {
        let mut worker_counters = self.worker_counters();
        for (name, count) in self.own_events() {
            worker_counters.insert(format!("control_{name}"), count);
        }
        Surroundings {
            registry: self.config.registry,
            listen: self.shared.listen,
            hostname: self.plane.link.hostname().map(str::to_owned),
            io: match self.config.io {
                IoKind::Uring => "uring",
                IoKind::Mmsg => "mmsg",
            },
            idle: match self.config.idle {
                Idle::Spin => "spin",
                Idle::Adaptive => "adaptive",
                Idle::Park => "park",
            },
            uptime_s: self.started.elapsed().as_secs(),
            worker_counters,
            agents: self.port.as_ref().map(Port::statuses).unwrap_or_default(),
        }
    }

    /// Tells whoever waits for the registration how it stands: registered means proven, and with
    /// its workers running.
    fn publish(&mut self) {
        let (node, error) = if self.published.0 != NodeId(0) || self.plane.link.is_ready() {
            (self.plane.node, None)
        } else {
            let fault = self.plane.registry_fault.clone();
            (NodeId(0), fault.or_else(|| self.plane.link.last_error()))
        };
        if let Some(failure) = &self.plane.fatal
            && self.shared.failure().is_none()
        {
            let failure = Some(failure.clone());
            self.shared
                .publish(|registration| registration.failure = failure);
        }
        if self.published == (node, error.clone()) {
            return;
        }
        self.published = (node, error.clone());
        let address = self.plane.address.clone();
        let fatal = self.plane.registry_fault.is_some();
        self.shared.publish(|registration| {
            registration.node = node;
            registration.address = address;
            registration.last_error = error;
            registration.fatal = fatal;
        });
    }

    /// Joins the workers and answers whoever waits for the end.
    fn end(mut self, outcome: Result<(), String>) -> Result<(), String> {
        if let Err(error) = &outcome {
            tracing::error!(%error, "the node cannot go on");
            self.shared.publish(|registration| {
                registration.last_error = Some(error.clone());
                registration.fatal = true;
            });
            // Not reached by the plane's own stop: the workers that did start still run.
            for worker in &self.workers {
                let stopped = (0..STOP_TRIES).any(|_| {
                    worker.send(Command::Stop).is_ok() || {
                        // Its queue is full of older commands; it takes microseconds to read them.
                        std::thread::sleep(Duration::from_millis(1));
                        false
                    }
                });
                if !stopped {
                    tracing::error!("a worker takes no commands");
                }
            }
        }
        let respond = self.plane.take_shutdown_respond();
        for worker in self.workers.drain(..) {
            worker.join();
        }
        if let Some(pool) = self.pool.take() {
            pool.join();
        }
        if let Some(port) = self.port.take() {
            port.stop();
        }
        if let Err(error) = self.plane.commit(moment()) {
            tracing::error!(%error, "the last receipts are not durable");
        }
        if let Some(respond) = respond {
            respond(Ok(()));
        }
        outcome
    }
}
