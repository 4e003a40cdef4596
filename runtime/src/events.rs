//! What an operator wants to know of, each with an id that stays.
//!
//! An event that is logged with one of these as its field `message_id` is found in the journal by it
//! (`journalctl MESSAGE_ID=…`), whatever its words are, and explained by the catalog
//! (`journalctl -x`, `systemd/ramjet.catalog`). Invariants: an id is never given to another event, and
//! none of these is logged for a single task.

macro_rules! events {
    ($($(#[$doc:meta])* $name:ident $id:literal;)*) => {
        $($(#[$doc])* pub const $name: &str = $id;)*

        /// Every event: its name and its id.
        pub const EVENTS: &[(&str, &str)] = &[$((stringify!($name), $id),)*];
    };
}

events! {
    /// A node is registered and its workers serve.
    NODE_READY "31c7824ea2f44e8586fb543282327f21";
    /// A node takes no more work and finishes what runs.
    NODE_DRAINING "3fd7c71793314be6a48650f10ee9b391";
    /// A node has registered, or has found its registry again.
    REGISTRY_REACHED "8453e1d872364493bff1b55e06011c53";
    /// A node has lost its registry; tasks go on, receipts wait.
    REGISTRY_LOST "560af8b0848548a48fd7a5bc5e30a6b3";
    /// A worker thread has ended; the process ends too.
    WORKER_ENDED "2ef856ac7fa74efabcfb8f44a2bdc14c";
    /// Somebody gave no sign of life; the watchdog of systemd is not fed.
    SILENCE "0cd265a3a71d45f68a0c038053c35b08";
    /// Settings were read again and hold.
    RELOADED "454f441dd9ab4e8496b4d37ef7ffa696";
    /// Settings were read again and are wrong; those from before hold.
    RELOAD_REFUSED "5f923d253a3d47d78c7176010e9a26cd";
    /// A setting was changed that holds from the next start only.
    RESTART_NEEDED "e39be607a4bb45bfa0f99912c7c9b9c4";
    /// Receipts cannot be written to disk and wait.
    RECEIPTS_WAIT "03d1b1acbf114d8f9d6e7fc400858145";
    /// A registry listens.
    MARKET_READY "3b0b781b4c2b4e8385db67d5dff3f751";
    /// A registry ends.
    MARKET_STOPPING "7c0a0526225f4ed1bf6e8cc384a3cdf0";
    /// A service ends with an error.
    FAILED "e33745e6fb1e454094044dd8d6cdd5c8";
    /// Sockets that an earlier process left are used on.
    SOCKETS_KEPT "c54b68817b674c508272686fbd7cfb9e";
}

#[cfg(test)]
mod tests {
    use super::EVENTS;

    #[test]
    fn ids_are_distinct_and_each_is_explained_in_the_catalog() {
        let catalog = include_str!("../../systemd/ramjet.catalog");
        let mut ids: Vec<&str> = EVENTS.iter().map(|(_, id)| *id).collect();
        for (name, id) in EVENTS {
            assert_eq!(id.len(), 32, "{name}");
            assert!(
                id.bytes()
                    .all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f')),
                "{name}"
            );
            assert!(catalog.contains(&format!("-- {id}\n")), "{name}");
        }
        ids.sort_unstable();
        ids.dedup();
        assert_eq!(ids.len(), EVENTS.len());
        let explained = catalog.lines().filter(|line| line.starts_with("-- "));
        assert_eq!(explained.count(), EVENTS.len(), "no entry without an event");
    }
}
