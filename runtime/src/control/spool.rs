//! Receipts on disk, until the registry has them.
//!
//! One entry an engagement: its grant, the newest receipt signed by the requester, the newest with
//! both signatures, and how far the registry has settled it. Changes are staged and become durable
//! together in [`Spool::commit`]; a receipt must be committed before it leaves the process.
//!
//! Invariants: an entry's receipts only move to a greater `k`; at most `limit` entries; what is
//! durable after a crash is what the last commit that returned has written. Only the control thread
//! calls it. Absent: signatures and counters are checked by `receipts`, before they come here.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use ramjet_proto::ids::EngagementId;
use ramjet_proto::market::{GRANT_LEN_MAX, RECEIPT_LEN, SignedReceipt};
use redb::{Database, Durability, ReadableDatabase, ReadableTable, TableDefinition};

use super::vocabulary::Side;

/// Entries that the spool holds; beyond, no new engagement is made. 100,000 take about 100 MB.
pub(crate) const ENTRIES_MAX: usize = 100_000;

const FILE: &str = "spool.redb";
const RECEIPTS: TableDefinition<'_, u64, &[u8]> = TableDefinition::new("receipts");
/// First byte of an entry.
const VERSION: u8 = 1;

/// Why the spool cannot be used: the file and what went wrong with it.
#[derive(Debug)]
pub(crate) struct SpoolFault(pub(crate) String);

impl std::fmt::Display for SpoolFault {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

/// One engagement in the spool.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Entry {
    pub(crate) side: Side,
    /// The signed grant, as evidence and for whoever reads the spool later.
    pub(crate) grant: Vec<u8>,
    /// The newest receipt with the requester's signature alone.
    pub(crate) half: Option<SignedReceipt>,
    /// The newest with both.
    pub(crate) whole: Option<SignedReceipt>,
    /// The `k` that the registry stands at, 0 if none.
    pub(crate) settled_k: u32,
}

impl Entry {
    pub(crate) fn new(side: Side, grant: Vec<u8>) -> Self {
        Entry {
            side,
            grant,
            half: None,
            whole: None,
            settled_k: 0,
        }
    }

    /// The receipt that the registry still lacks.
    pub(crate) fn unsettled(&self) -> Option<&SignedReceipt> {
        self.whole
            .as_ref()
            .filter(|whole| whole.receipt.k > self.settled_k)
    }

    /// `version u8 | side u8 | settled k u32 | grant length u16 | grant | half? u8 and 228 |
    /// whole? u8 and 228`, big-endian.
    fn encode(&self) -> Vec<u8> {
        let grant_len = u16::try_from(self.grant.len()).expect("a grant is at most 315 bytes");
        let mut bytes = Vec::with_capacity(10 + self.grant.len() + 2 * RECEIPT_LEN);
        bytes.extend([VERSION, u8::from(self.side == Side::Worker)]);
        bytes.extend(self.settled_k.to_be_bytes());
        bytes.extend(grant_len.to_be_bytes());
        bytes.extend(&self.grant);
        for receipt in [&self.half, &self.whole] {
            bytes.push(u8::from(receipt.is_some()));
            if let Some(receipt) = receipt {
                bytes.extend(receipt.encode());
            }
        }
        bytes
    }

    fn decode(bytes: &[u8]) -> Option<Entry> {
        let (&[version, side], rest) = bytes.split_first_chunk::<2>()?;
        let (settled_k, rest) = rest.split_first_chunk::<4>()?;
        let (grant_len, rest) = rest.split_first_chunk::<2>()?;
        let grant_len = usize::from(u16::from_be_bytes(*grant_len));
        let (grant, rest) = rest.split_at_checked(grant_len)?;
        let (half, rest) = decode_receipt(rest)?;
        let (whole, rest) = decode_receipt(rest)?;
        let sound = version == VERSION && side <= 1 && grant_len <= GRANT_LEN_MAX;
        (sound && rest.is_empty()).then(|| Entry {
            side: if side == 1 {
                Side::Worker
            } else {
                Side::Requester
            },
            grant: grant.to_vec(),
            half,
            whole,
            settled_k: u32::from_be_bytes(*settled_k),
        })
    }
}

fn decode_receipt(bytes: &[u8]) -> Option<(Option<SignedReceipt>, &[u8])> {
    match bytes.split_first()? {
        (0, rest) => Some((None, rest)),
        (1, rest) => {
            let (receipt, rest) = rest.split_at_checked(RECEIPT_LEN)?;
            Some((Some(SignedReceipt::decode(receipt).ok()?), rest))
        }
        _ => None,
    }
}

/// The spool: what is in it, what is staged, and where it lies.
pub(crate) struct Spool {
    database: Database,
    place: String,
    entries: BTreeMap<EngagementId, Entry>,
    /// Entries that differ from what is on disk; a missing one is to be removed.
    staged: BTreeSet<EngagementId>,
    /// Whether a receipt is among them, which a crash must not take.
    staged_receipt: bool,
    limit: usize,
}

impl Spool {
    /// Opens the spool in `state`, or one in memory that ends with the process.
    ///
    /// # Errors
    /// The file and why it cannot be used; another node may hold it.
    pub(crate) fn open(state: Option<&Path>, limit: usize) -> Result<Spool, SpoolFault> {
        let place = state.map_or_else(
            || "the spool in memory".to_owned(),
            |state| state.join(FILE).display().to_string(),
        );
        let fault = |error: redb::Error| SpoolFault(format!("{place}: {error}"));
        let database = match state {
            Some(state) => Database::create(state.join(FILE)),
            None => Database::builder().create_with_backend(redb::backends::InMemoryBackend::new()),
        }
        .map_err(|error| fault(error.into()))?;
        let mut entries = BTreeMap::new();
        let mut unreadable = Vec::new();
        read_all(&database, |engagement, bytes| match Entry::decode(bytes) {
            Some(entry) => {
                entries.insert(engagement, entry);
            }
            None => unreadable.push(engagement),
        })
        .map_err(fault)?;
        if let Some(engagement) = unreadable.first() {
            // Evidence is not thrown away because one version of this program cannot read it.
            return Err(SpoolFault(format!(
                "{place}: the entry of engagement {engagement} ({} in all) is of another version \
                 or damaged; move the file aside to start without it",
                unreadable.len()
            )));
        }
        Ok(Spool {
            database,
            place,
            entries,
            staged: BTreeSet::new(),
            staged_receipt: false,
            limit,
        })
    }

    /// All entries, by engagement.
    pub(crate) fn entries(&self) -> impl Iterator<Item = (EngagementId, &Entry)> {
        self.entries
            .iter()
            .map(|(engagement, entry)| (*engagement, entry))
    }

    /// One entry.
    pub(crate) fn entry(&self, engagement: EngagementId) -> Option<&Entry> {
        self.entries.get(&engagement)
    }

    /// Why no further engagement may be made, if so.
    pub(crate) fn refusal(&self) -> Option<String> {
        (self.entries.len() >= self.limit).then(|| {
            format!(
                "{} holds {} engagements, its limit; they leave it when the registry settles them",
                self.place,
                self.entries.len()
            )
        })
    }

    /// Receipts that the registry still lacks.
    pub(crate) fn waiting(&self) -> usize {
        self.entries
            .values()
            .filter(|entry| entry.unsettled().is_some())
            .count()
    }

    /// Stages a receipt; `grant` opens the entry if it is the first. One with an older `k` than
    /// the entry's is not kept.
    pub(crate) fn put(&mut self, side: Side, grant: &[u8], receipt: SignedReceipt, is_whole: bool) {
        let engagement = receipt.receipt.engagement;
        let entry = self
            .entries
            .entry(engagement)
            .or_insert_with(|| Entry::new(side, grant.to_vec()));
        let place = if is_whole {
            &mut entry.whole
        } else {
            &mut entry.half
        };
        if place.is_none_or(|earlier| earlier.receipt.k < receipt.receipt.k) {
            *place = Some(receipt);
            self.staged.insert(engagement);
            self.staged_receipt = true;
        }
    }

    /// Stages that the registry stands at `k`.
    pub(crate) fn settled(&mut self, engagement: EngagementId, k: u32) {
        if let Some(entry) = self.entries.get_mut(&engagement)
            && entry.settled_k < k
        {
            entry.settled_k = k;
            self.staged.insert(engagement);
        }
    }

    /// Stages the end of an entry.
    pub(crate) fn remove(&mut self, engagement: EngagementId) {
        if self.entries.remove(&engagement).is_some() {
            self.staged.insert(engagement);
        }
    }

    /// Whether [`Self::commit`] has anything to do.
    pub(crate) fn is_staged(&self) -> bool {
        !self.staged.is_empty()
    }

    /// Makes everything staged durable. Marks of settlement alone are not synced: a crash that
    /// loses them costs a repeated settlement, which changes nothing.
    ///
    /// # Errors
    /// The file and what went wrong; everything stays staged for the next attempt.
    pub(crate) fn commit(&mut self) -> Result<(), SpoolFault> {
        if self.staged.is_empty() {
            return Ok(());
        }
        self.write()
            .map_err(|error| SpoolFault(format!("{}: {error}", self.place)))?;
        self.staged.clear();
        self.staged_receipt = false;
        Ok(())
    }

    fn write(&self) -> Result<(), redb::Error> {
        let mut transaction = self.database.begin_write()?;
        if !self.staged_receipt {
            transaction.set_durability(Durability::None)?;
        }
        {
            let mut table = transaction.open_table(RECEIPTS)?;
            for engagement in &self.staged {
                match self.entries.get(engagement) {
                    Some(entry) => {
                        table.insert(engagement.0, entry.encode().as_slice())?;
                    }
                    None => {
                        table.remove(engagement.0)?;
                    }
                }
            }
        }
        transaction.commit()?;
        Ok(())
    }
}

fn read_all(
    database: &Database,
    mut take: impl FnMut(EngagementId, &[u8]),
) -> Result<(), redb::Error> {
    let transaction = database.begin_read()?;
    let table = match transaction.open_table(RECEIPTS) {
        Ok(table) => table,
        // A new file has no table yet.
        Err(redb::TableError::TableDoesNotExist(_)) => return Ok(()),
        Err(error) => return Err(error.into()),
    };
    for row in table.iter()? {
        let (engagement, bytes) = row?;
        take(EngagementId(engagement.value()), bytes.value());
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use ramjet_proto::identity::Identity;
    use ramjet_proto::market::Receipt;

    fn receipt(engagement: u64, k: u32) -> SignedReceipt {
        Receipt {
            engagement: EngagementId(engagement),
            k,
            accepted: u64::from(k) * 10,
            ..Receipt::default()
        }
        .sign(&Identity::from_seed([1; 32]))
    }

    #[test]
    fn a_crash_keeps_what_was_committed_and_nothing_else() {
        let state = tempfile::tempdir().expect("a directory");
        let crashed = tempfile::tempdir().expect("a directory");
        let mut spool = Spool::open(Some(state.path()), 10).expect("a new spool");
        spool.put(Side::Requester, &[7; 40], receipt(1, 1), false);
        spool.put(Side::Worker, &[8; 50], receipt(2, 1), true);
        spool.commit().expect("durable");
        spool.put(Side::Worker, &[8; 50], receipt(2, 2), true);
        // The file as it lies on disk while the process still runs: what a crash leaves.
        std::fs::copy(state.path().join(FILE), crashed.path().join(FILE)).expect("a copy");
        let after = Spool::open(Some(crashed.path()), 10).expect("recovers");
        let entry = after.entry(EngagementId(2)).expect("was committed");
        assert_eq!(entry.whole, Some(receipt(2, 1)));
        assert_eq!(entry.side, Side::Worker);
        assert_eq!(entry.grant, [8; 50]);
        let entry = after.entry(EngagementId(1)).expect("was committed");
        assert_eq!((entry.half, entry.whole), (Some(receipt(1, 1)), None));
        assert_eq!(after.waiting(), 1);
        spool.commit().expect("durable");
        drop(spool);
        let reopened = Spool::open(Some(state.path()), 10).expect("opens");
        let entry = reopened.entry(EngagementId(2)).expect("was committed");
        assert_eq!(entry.whole, Some(receipt(2, 2)));
    }

    #[test]
    fn settled_entries_leave_and_older_receipts_do_not_replace_newer() {
        let mut spool = Spool::open(None, 2).expect("in memory");
        spool.put(Side::Worker, &[], receipt(1, 2), true);
        spool.put(Side::Worker, &[], receipt(1, 1), true);
        assert_eq!(
            spool.entry(EngagementId(1)).expect("kept").whole,
            Some(receipt(1, 2))
        );
        spool.settled(EngagementId(1), 1);
        assert_eq!(spool.waiting(), 1);
        spool.settled(EngagementId(1), 2);
        assert_eq!(spool.waiting(), 0);
        assert!(spool.refusal().is_none());
        spool.put(Side::Worker, &[], receipt(2, 1), true);
        let refusal = spool.refusal().expect("two of two");
        assert!(refusal.contains("2 engagements"), "{refusal}");
        spool.remove(EngagementId(1));
        assert!(spool.refusal().is_none());
        spool.commit().expect("in memory");
        assert!(!spool.is_staged());
    }

    #[test]
    fn a_second_node_on_the_same_state_is_refused_by_name() {
        let state = tempfile::tempdir().expect("a directory");
        let _first = Spool::open(Some(state.path()), 10).expect("a new spool");
        let fault = Spool::open(Some(state.path()), 10)
            .err()
            .expect("held by the first");
        assert!(fault.to_string().contains(FILE), "{fault}");
    }

    #[test]
    fn a_damaged_entry_is_named_and_not_thrown_away() {
        for length in 0..Entry::new(Side::Worker, vec![1; 30]).encode().len() {
            let whole = Entry::new(Side::Worker, vec![1; 30]).encode();
            assert_eq!(Entry::decode(&whole[..length]), None);
        }
        let entry = Entry {
            half: Some(receipt(1, 2)),
            ..Entry::new(Side::Requester, vec![])
        };
        assert_eq!(Entry::decode(&entry.encode()), Some(entry));
    }
}
