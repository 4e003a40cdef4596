//! Two groups of workers on loopback, with the test in the place of both control threads: the data
//! path alone, without a registry.
#![allow(dead_code, reason = "each test file uses its own part of the harness")]

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use ramjet::control::vocabulary::{ChannelTerms, CloseReason, Command, Report, Side, Totals};
use ramjet::handler::{Handler, Outcome, Placement, Skill};
use ramjet::job::{Answer, Job, Next, Timing, Verdict};
use ramjet::worker::{
    Idle, IoKind, Pages, Pool, ReportReceiver, Segmentation, Trains, WorkerHandle, WorkerPlan,
    bind_group, owner_of, reports, spawn_group,
};
use ramjet_proto::identity::Identity;
use ramjet_proto::ids::{EngagementId, NodeId, OfferId};
use ramjet_proto::market::{AcceptFrom, Gate, Grant};
use ramjet_proto::time::Time;

/// The longest that anything here may take.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);

/// Sends a task back as it came, inline or through the pool.
pub(crate) struct Echo(pub(crate) Placement);

impl Handler for Echo {
    fn placement(&self) -> Placement {
        self.0
    }

    fn result_len_max(&self, payload_len: usize) -> usize {
        payload_len
    }

    fn run(&self, payload: &[u8], result: &mut [u8]) -> Outcome {
        result[..payload.len()].copy_from_slice(payload);
        Outcome::Done(payload.len())
    }

    /// Tells each eighth of a long payload's length as it "gets" there.
    fn run_reporting(
        &self,
        payload: &[u8],
        result: &mut [u8],
        progress: &mut dyn FnMut(&[u8]) -> bool,
    ) -> Outcome {
        if payload.len() > 2_000 {
            for eighth in 1..=8_u8 {
                assert!(progress(&[eighth]), "eight pieces fit the queue");
            }
        }
        self.run(payload, result)
    }
}

/// Sends payloads of the given lengths and wants each back, byte for byte, with its progress.
pub(crate) struct Long {
    pub(crate) lens: Vec<usize>,
    pub(crate) pieces_each: usize,
    pub(crate) sent: usize,
    pub(crate) right: usize,
    pub(crate) pieces: Vec<Vec<u8>>,
}

impl Long {
    pub(crate) fn new(lens: &[usize], pieces_each: usize) -> Box<Self> {
        Box::new(Long {
            lens: lens.to_vec(),
            pieces_each,
            sent: 0,
            right: 0,
            pieces: vec![Vec::new(); lens.len()],
        })
    }

    fn payload(&self, index: usize) -> Vec<u8> {
        (0..self.lens[index])
            .map(|at| u8::try_from((at * 31 + index) % 256).expect("a remainder"))
            .collect()
    }
}

impl Job for Long {
    fn next(&mut self, _space: &mut [u8], _now: Time) -> Next {
        if self.sent == self.lens.len() {
            return Next::End;
        }
        self.sent += 1;
        let payload = self.payload(self.sent - 1).into();
        Next::Large {
            payload,
            token: self.sent as u64 - 1,
        }
    }

    fn answer(&mut self, token: u64, answer: Answer<'_>, _timing: Timing) -> Verdict {
        let index = usize::try_from(token).expect("small");
        assert!(
            answer == Answer::Done(&self.payload(index)),
            "{} bytes",
            self.lens[index]
        );
        assert_eq!(
            self.pieces[index].len(),
            self.pieces_each,
            "all its progress came before it"
        );
        self.right += 1;
        Verdict::Accept
    }

    fn progress(&mut self, token: u64, piece: &[u8]) {
        self.pieces[usize::try_from(token).expect("small")].extend_from_slice(piece);
        assert!(
            self.pieces.iter().all(|pieces| pieces.is_sorted()),
            "in order: {:?}",
            self.pieces
        );
    }
}

/// Sends `count` numbered payloads of `len` bytes and checks every answer.
pub(crate) struct Numbers {
    pub(crate) len: usize,
    pub(crate) count: u64,
    pub(crate) sent: u64,
    pub(crate) right: u64,
    pub(crate) wrong: u64,
}

impl Numbers {
    pub(crate) fn new(len: usize, count: u64) -> Box<Self> {
        assert!(len >= 8, "a number takes eight bytes");
        Box::new(Numbers {
            len,
            count,
            sent: 0,
            right: 0,
            wrong: 0,
        })
    }
}

impl Job for Numbers {
    fn next(&mut self, space: &mut [u8], _now: Time) -> Next {
        if self.sent == self.count {
            return Next::End;
        }
        space[..self.len].fill(0x5A);
        space[..8].copy_from_slice(&self.sent.to_be_bytes());
        self.sent += 1;
        Next::Task {
            len: self.len,
            token: self.sent - 1,
        }
    }

    fn answer(&mut self, token: u64, answer: Answer<'_>, _timing: Timing) -> Verdict {
        let right = match answer {
            Answer::Done(bytes) => {
                bytes.len() == self.len
                    && bytes[..8] == token.to_be_bytes()
                    && bytes[8..].iter().all(|byte| *byte == 0x5A)
            }
            _ => false,
        };
        if right {
            self.right += 1
        } else {
            self.wrong += 1
        }
        if right {
            Verdict::Accept
        } else {
            Verdict::Reject
        }
    }
}

/// One node without its control thread.
pub(crate) struct Bare {
    pub(crate) node: NodeId,
    pub(crate) identity: Arc<Identity>,
    pub(crate) address: SocketAddr,
    pub(crate) workers: Vec<WorkerHandle>,
    pub(crate) reports: ReportReceiver,
    pub(crate) pool: Option<Pool>,
}

impl Bare {
    pub(crate) fn start(
        node: u32,
        workers: usize,
        io: IoKind,
        idle: Idle,
        placement: Placement,
    ) -> Self {
        let any = SocketAddr::from(([127, 0, 0, 1], 0));
        let trains = Trains::of(Segmentation::Auto);
        let sockets = bind_group(any, workers, trains).expect("loopback sockets");
        let address = sockets[0].local_addr().expect("bound");
        let identity = Arc::new(Identity::from_seed(
            [u8::try_from(node).expect("small"); 32],
        ));
        let (senders, receiver) = reports(workers);
        let skills: Arc<[Skill]> = Arc::new([Skill {
            name: "echo".to_owned(),
            accept_from: AcceptFrom::Gate,
            handler: Arc::new(Echo(placement)),
        }]);
        let plans = sockets
            .into_iter()
            .enumerate()
            .map(|(index, socket)| WorkerPlan {
                index,
                workers,
                core: None,
                socket,
                io,
                trains,
                pages: Pages::Normal,
                idle,
                node: NodeId(node),
                identity: Arc::clone(&identity),
                skills: Arc::clone(&skills),
                agent_tasks_max: 0,
                beacon: None,
                tunnels_max: 64,
                frames_per_datagram_max: u16::MAX,
                datagram_len_max: usize::MAX,
                echo: true,
                public: true,
            })
            .collect();
        let pool = (placement == Placement::Pool).then(|| Pool::start(2, workers).expect("a pool"));
        let workers = spawn_group(plans, senders, pool.as_ref()).expect("workers");
        Bare {
            node: NodeId(node),
            identity,
            address,
            workers,
            reports: receiver,
            pool,
        }
    }

    /// Tells the worker in charge of a peer.
    pub(crate) fn send(&self, peer: NodeId, command: Command) {
        let owner = owner_of(peer, self.workers.len());
        self.workers[owner]
            .send(command)
            .expect("room for a command");
    }

    /// Tells the worker in charge of `other` who that is.
    pub(crate) fn introduce(&self, other: &Bare) {
        let key = Some(other.identity.public());
        let endpoint = Some(other.address);
        self.send(
            other.node,
            Command::Peer {
                node: other.node,
                key,
                endpoint,
            },
        );
    }

    pub(crate) fn counter(&self, name: &str) -> u64 {
        self.workers
            .iter()
            .map(|worker| worker.counters()[name])
            .sum()
    }

    /// The counters that are not zero, for a failure's message.
    pub(crate) fn counted(&self) -> Vec<(String, u64)> {
        let all = self.workers.iter().flat_map(|worker| worker.counters());
        all.filter(|(_, count)| *count > 0).collect()
    }

    pub(crate) fn stop(self) {
        for worker in &self.workers {
            worker.send(Command::Stop).expect("room for a command");
        }
        for worker in self.workers {
            worker.join();
        }
        if let Some(pool) = self.pool {
            pool.join();
        }
    }
}

/// A requester and a worker that know each other.
pub(crate) struct Pair {
    pub(crate) worker: Bare,
    pub(crate) requester: Bare,
    pub(crate) credits: u32,
    next_engagement: u64,
}

impl Pair {
    pub(crate) fn start(io: IoKind, idle: Idle, placement: Placement) -> Self {
        Self::with(
            Bare::start(1, 1, io, idle, placement),
            Bare::start(2, 1, io, idle, placement),
        )
    }

    pub(crate) fn with(worker: Bare, requester: Bare) -> Self {
        Pair {
            worker,
            requester,
            credits: 256,
            next_engagement: 1,
        }
    }

    pub(crate) fn terms(&self, tasks: u64) -> ChannelTerms {
        ChannelTerms {
            engagement: EngagementId(self.next_engagement),
            skill: 0,
            credits: self.credits,
            tasks,
            expires_at: Time::NEVER,
            unsigned_max: u64::MAX / 2,
        }
    }

    fn grant(&self, tasks: u64) -> Box<[u8]> {
        let registry = Identity::from_seed([99; 32]);
        let grant = Grant {
            engagement: EngagementId(self.next_engagement),
            offer: OfferId(1),
            requester: self.requester.node,
            worker: self.worker.node,
            requester_key: self.requester.identity.public(),
            worker_key: self.worker.identity.public(),
            requester_polo: 0,
            worker_polo: 0,
            gate: Gate::Met,
            tasks,
            concurrency: self.credits,
            offered_at_ms: 0,
            granted_at_ms: 0,
            expires_at_ms: u64::MAX,
            skill: "echo".to_owned(),
        };
        grant.sign(&registry).encode().into_boxed_slice()
    }

    /// Opens a channel for a job of `tasks` tasks.
    pub(crate) fn engage(&mut self, tasks: u64, job: Box<dyn Job>) -> EngagementId {
        let terms = self.terms(tasks);
        let grant = self.grant(tasks);
        let peer = self.worker.node;
        self.requester.send(
            peer,
            Command::Engage {
                peer,
                terms,
                grant,
                job,
            },
        );
        self.next_engagement += 1;
        terms.engagement
    }

    /// Plays both control threads until `until` says so of a report of the requester, or patience
    /// ends.
    pub(crate) fn play<T>(
        &self,
        tasks: u64,
        mut until: impl FnMut(&Pair, Report) -> Option<T>,
    ) -> T {
        let started = Instant::now();
        loop {
            while let Some(report) = self.worker.reports.pop() {
                if let Report::PeerWanted { .. } = report {
                    self.worker.introduce(&self.requester);
                } else if let Report::OpenWanted {
                    peer,
                    channel,
                    grant,
                } = report
                {
                    let engagement = u64::from_be_bytes(grant[..8].try_into().expect("a grant"));
                    let terms = ChannelTerms {
                        engagement: EngagementId(engagement),
                        ..self.terms(tasks)
                    };
                    self.worker.send(
                        peer,
                        Command::Admit {
                            peer,
                            channel,
                            terms,
                        },
                    );
                }
            }
            while let Some(report) = self.requester.reports.pop() {
                if let Report::PeerWanted { .. } = report {
                    self.requester.introduce(&self.worker);
                } else if let Some(value) = until(self, report) {
                    return value;
                }
            }
            assert!(
                started.elapsed() < PATIENCE,
                "the pair did not finish in {PATIENCE:?}"
            );
            std::thread::yield_now();
        }
    }

    /// Runs a job to its end and closes its channel.
    pub(crate) fn run(&mut self, tasks: u64, job: Box<dyn Job>) -> (Totals, Box<dyn Job>) {
        let engagement = self.engage(tasks, job);
        let done = self.play(tasks, |pair, report| match report {
            Report::JobDone { totals, job, .. } => Some((totals, job)),
            Report::Closed { reason, .. } => panic!(
                "closed early: {reason:?}\nworker {:?}\nrequester {:?}",
                pair.worker.counted(),
                pair.requester.counted()
            ),
            _ => None,
        });
        let reason = CloseReason::Finished;
        self.requester
            .send(self.worker.node, Command::Close { engagement, reason });
        self.play(tasks, |_, report| match report {
            Report::Closed {
                engagement: closed,
                side: Side::Requester,
                ..
            } if closed == engagement => Some(()),
            _ => None,
        });
        done
    }

    pub(crate) fn stop(self) {
        self.requester.stop();
        self.worker.stop();
    }
}
