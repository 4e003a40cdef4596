//! Memory shared with an agent: one sealed memfd for each connection.
//!
//! The node makes the file, fixes its length, and seals it, so that an agent cannot take pages away
//! from under the node (which would end the node with SIGBUS). No reference into it is ever made: both
//! ends copy bytes in and out, at offsets that are asserted, so that whatever the other process writes
//! meanwhile is only ever a value that was read once. What the values mean is checked by the reader.
#![expect(
    unsafe_code,
    reason = "memory shared with another process has no safe owner; the third file"
)]

use std::ffi::c_void;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU32, Ordering, fence};

use rustix::fs::{MemfdFlags, SealFlags, fcntl_add_seals, fstat, ftruncate, memfd_create};
use rustix::mm::{MapFlags, ProtFlags, mmap, munmap};

/// The mapping of a shared file.
#[derive(Debug)]
pub struct Arena {
    file: OwnedFd,
    start: NonNull<u8>,
    len: usize,
}

// SAFETY: an Arena is plain memory with one owner in this process; nothing in it is tied to the thread
// that mapped it.
unsafe impl Send for Arena {}

impl Arena {
    /// The node's: a new file of `len` bytes that can neither grow nor shrink any more.
    ///
    /// # Errors
    /// What the kernel says: no memory, no descriptor.
    pub fn create(len: usize) -> io::Result<Self> {
        let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
        let file = memfd_create("ramjet-agent", flags)?;
        ftruncate(&file, len as u64)?;
        fcntl_add_seals(&file, SealFlags::SHRINK | SealFlags::GROW | SealFlags::SEAL)?;
        Arena::map(file, len)
    }

    /// The agent's: the file that came with WELCOME.
    ///
    /// # Errors
    /// It is shorter than `len`, or cannot be mapped.
    pub fn open(file: OwnedFd, len: usize) -> io::Result<Self> {
        let actual = usize::try_from(fstat(&file)?.st_size).unwrap_or(0);
        if actual < len || len == 0 {
            return Err(io::Error::other(format!(
                "the arena has {actual} bytes, {len} were said"
            )));
        }
        Arena::map(file, len)
    }

    fn map(file: OwnedFd, len: usize) -> io::Result<Self> {
        let protection = ProtFlags::READ | ProtFlags::WRITE;
        // SAFETY: a new mapping at an address of the kernel's choice touches no memory of ours.
        let start = unsafe {
            mmap(
                std::ptr::null_mut(),
                len,
                protection,
                MapFlags::SHARED,
                &file,
                0,
            )
        }?;
        let start = NonNull::new(start.cast()).ok_or_else(|| io::Error::other("mapped at 0"))?;
        Ok(Arena { file, start, len })
    }

    /// Its file, to be sent.
    pub fn file(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }

    /// Its bytes.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether there is nothing in it, which cannot be.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    fn at(&self, offset: usize, len: usize) -> *mut u8 {
        let end = offset.checked_add(len);
        assert!(
            end.is_some_and(|end| end <= self.len),
            "{len} bytes at {offset} of {}",
            self.len
        );
        // SAFETY: the range lies within the one mapping that `start` is the start of, as just asserted.
        unsafe { self.start.as_ptr().add(offset) }
    }

    /// Copies bytes in.
    pub fn write(&self, offset: usize, bytes: &[u8]) {
        let to = self.at(offset, bytes.len());
        // SAFETY: `to` is valid for as many bytes, and no reference in this process can overlap it, for
        // none is ever made into the mapping. The other process may write there at the same time; then
        // what lies there is whatever it is, and readers check it.
        unsafe { std::ptr::copy_nonoverlapping(bytes.as_ptr(), to, bytes.len()) }
    }

    /// Copies bytes out, in place of what `into` held.
    pub fn read_to(&self, offset: usize, len: usize, into: &mut Vec<u8>) {
        let from = self.at(offset, len);
        into.clear();
        into.reserve(len);
        // SAFETY: `from` is valid for `len` bytes, the vector has reserved as many, and the two do not
        // overlap, since a vector never lies in the mapping. Any bytes are valid bytes, so the length may
        // be set once they are copied.
        unsafe {
            std::ptr::copy_nonoverlapping(from, into.as_mut_ptr(), len);
            into.set_len(len);
        }
    }

    /// Copies an entry out: each byte is read once, so that what is checked is what is used.
    pub fn read<const N: usize>(&self, offset: usize) -> [u8; N] {
        let from: *const [u8; N] = self.at(offset, N).cast();
        // SAFETY: valid for N bytes; an array of bytes has no alignment. Volatile, so that the compiler
        // cannot read it again later.
        unsafe { from.read_volatile() }
    }

    /// Stores one word whole, which the other process may be reading.
    pub fn store(&self, offset: usize, value: u32) {
        assert!(offset.is_multiple_of(4), "a word at {offset}");
        let word = self.at(offset, 4).cast::<u32>();
        // SAFETY: valid, aligned (a mapping begins at a page, and the offset is a multiple of 4), and in
        // this process only ever accessed through copies and this.
        let word = unsafe { AtomicU32::from_ptr(word) };
        word.store(value.to_le(), Ordering::Relaxed);
    }

    /// What was written before is seen by whoever is told of it after this. The telling is a system
    /// call, which orders no less; this says so to the compiler.
    pub fn publish(&self) {
        fence(Ordering::SeqCst);
    }
}

impl Drop for Arena {
    fn drop(&mut self) {
        let start = self.start.as_ptr().cast::<c_void>();
        // SAFETY: exactly what `map` was given, given back once; no pointer into it outlives a call.
        let unmapped = unsafe { munmap(start, self.len) };
        debug_assert!(unmapped.is_ok(), "a mapping of our own");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn two_mappings_see_the_same_bytes() {
        let node = Arena::create(8_192).expect("memory");
        let file = node.file().try_clone_to_owned().expect("a descriptor");
        let agent = Arena::open(file, 8_192).expect("the same file");
        node.write(4_090, b"payload");
        let mut out = vec![1; 3];
        agent.read_to(4_090, 7, &mut out);
        assert_eq!(out, b"payload");
        agent.write(8_188, &[1, 2, 3, 4]);
        assert_eq!(node.read::<4>(8_188), [1, 2, 3, 4]);
        node.store(8, 0x0102_0304);
        assert_eq!(agent.read::<4>(8), [4, 3, 2, 1]);
    }

    #[test]
    fn an_agent_can_neither_shrink_nor_grow_it() {
        let node = Arena::create(8_192).expect("memory");
        assert!(ftruncate(node.file(), 0).is_err(), "sealed");
        assert!(ftruncate(node.file(), 16_384).is_err(), "sealed");
        assert!(
            fcntl_add_seals(node.file(), SealFlags::WRITE).is_err(),
            "no further seal"
        );
        let file = node.file().try_clone_to_owned().expect("a descriptor");
        let error = Arena::open(file, 8_193).expect_err("too short");
        assert!(error.to_string().contains("8192 bytes"), "{error}");
    }

    #[test]
    #[should_panic(expected = "8 bytes at 8185 of 8192")]
    fn a_copy_beyond_the_end_is_a_bug() {
        Arena::create(8_192).expect("memory").write(8_185, &[0; 8]);
    }
}
