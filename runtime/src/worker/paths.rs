//! The congestion controllers of this worker's tunnels, by tunnel index.
//!
//! A controller is made when the first channel of a tunnel sends and begins anew when the index has
//! another tenant. Absent: controllers of tunnels that never carried a task.

use ramjet_proto::engagement::congestion::Congestion;
use ramjet_proto::time::Time;
use ramjet_proto::tunnel::TunnelHandle;

struct Path {
    tunnel: TunnelHandle,
    congestion: Congestion,
}

impl Path {
    fn new(tunnel: TunnelHandle, now: Time) -> Self {
        Path {
            tunnel,
            congestion: Congestion::new(now),
        }
    }
}

/// The controllers.
pub struct Paths {
    by_index: Box<[Option<Box<Path>>]>,
}

impl Paths {
    /// None yet, for so many tunnels.
    pub fn new(tunnels_max: usize) -> Self {
        Paths {
            by_index: (0..tunnels_max).map(|_| None).collect(),
        }
    }

    /// The controller of a tunnel.
    #[inline]
    pub fn of(&mut self, tunnel: TunnelHandle, now: Time) -> &mut Congestion {
        let place = &mut self.by_index[tunnel.index()];
        let path = place.get_or_insert_with(|| Box::new(Path::new(tunnel, now)));
        if path.tunnel != tunnel {
            **path = Path::new(tunnel, now);
        }
        &mut path.congestion
    }
}
