//! A connection of the local socket, in two halves.
//!
//! tokio's own stream is watched for reading and writing as long as it lives. Each time its peer reads, a Unix
//! socket can be written to once more, and whoever watches for that is woken: here once for every message to a
//! client, on the core where the client has just begun to run. So writing is watched only while something waits
//! to be written.

use std::future::poll_fn;
use std::io::{self, Read, Write};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use tokio::io::unix::AsyncFd;
use tokio::io::{AsyncRead, AsyncWrite, Interest, ReadBuf};

/// What the client says.
pub(crate) struct Reader {
    stream: Arc<UnixStream>,
    /// Watched, unless it is lent.
    watched: Option<AsyncFd<Arc<UnixStream>>>,
    /// What somebody else read, and did not use.
    ahead: Vec<u8>,
}

/// What the client is told; dropping it ends that direction.
pub(crate) struct Writer {
    stream: Arc<UnixStream>,
    /// Another descriptor of the same stream, watched while the client does not read fast enough.
    blocked: Option<AsyncFd<Arc<UnixStream>>>,
}

/// Both halves of an accepted stream.
///
/// # Errors
/// What the system says.
pub(crate) fn split(stream: tokio::net::UnixStream) -> io::Result<(Reader, Writer)> {
    let stream = Arc::new(stream.into_std()?);
    let reader = Reader {
        watched: Some(watch(Arc::clone(&stream), Interest::READABLE)?),
        stream: Arc::clone(&stream),
        ahead: Vec::new(),
    };
    let writer = Writer {
        stream,
        blocked: None,
    };
    Ok((reader, writer))
}

#[expect(
    deprecated,
    reason = "its successor is unsafe for types whose descriptor may change; this one's does not"
)]
fn watch(stream: Arc<UnixStream>, interest: Interest) -> io::Result<AsyncFd<Arc<UnixStream>>> {
    AsyncFd::with_interest(stream, interest)
}

impl Reader {
    /// Whether the client will say nothing more, as far as is known now: what it said before may
    /// still wait to be read.
    pub(crate) async fn is_at_end(&self) -> bool {
        let Some(watched) = &self.watched else {
            return false;
        };
        // One look: whoever asks has something else to wait for.
        poll_fn(|cx| {
            let Poll::Ready(readable) = watched.poll_read_ready(cx) else {
                return Poll::Ready(false);
            };
            Poll::Ready(readable.is_ok_and(|guard| guard.ready().is_read_closed()))
        })
        .await
    }
}

impl Reader {
    /// The stream, for somebody else to read and write. Nothing of it is watched here until
    /// [`Self::take_back`]: a word of the client's wakes whoever has it, and nobody else.
    pub(crate) fn lend(&mut self) -> Arc<UnixStream> {
        self.watched = None;
        Arc::clone(&self.stream)
    }

    /// Reads again, first of all what was read meanwhile and not used.
    ///
    /// # Errors
    /// What the system says: the stream cannot be watched any more.
    pub(crate) fn take_back(&mut self, unused: Vec<u8>) -> io::Result<()> {
        debug_assert!(self.ahead.is_empty(), "lent with words unread");
        self.ahead = unused;
        self.watched = Some(watch(Arc::clone(&self.stream), Interest::READABLE)?);
        Ok(())
    }
}

impl AsyncRead for Reader {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if !self.ahead.is_empty() {
            let len = self.ahead.len().min(buf.remaining());
            buf.put_slice(&self.ahead[..len]);
            self.ahead.drain(..len);
            return Poll::Ready(Ok(()));
        }
        let Some(watched) = &self.watched else {
            let error = io::Error::other("read while it is lent");
            return Poll::Ready(Err(error));
        };
        loop {
            let mut guard = ready!(watched.poll_read_ready(cx))?;
            let space = buf.initialize_unfilled();
            let len = space.len();
            match guard.try_io(|stream| (&**stream.get_ref()).read(space)) {
                Ok(Err(error)) if error.kind() == io::ErrorKind::Interrupted => {}
                Ok(read) => {
                    let read = read?;
                    if 0 < read && read < len {
                        // All there was: the next byte comes with an event, epoll(7), question 9. The
                        // guard keeps an event that came meanwhile, and the end of the stream.
                        guard.clear_ready();
                    }
                    buf.advance(read);
                    return Poll::Ready(Ok(()));
                }
                Err(_would_block) => {}
            }
        }
    }
}

impl Writer {
    /// The process at the other end, as the kernel names it.
    pub(crate) fn peer_pid(&self) -> Option<i32> {
        let peer = rustix::net::sockopt::socket_peercred(&*self.stream).ok()?;
        Some(peer.pid.as_raw_nonzero().get())
    }
}

impl AsyncWrite for Writer {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        loop {
            match (&*self.stream).write(buf) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                done => {
                    self.blocked = None;
                    return Poll::Ready(done);
                }
            }
            if self.blocked.is_none() {
                let stream = Arc::new(self.stream.try_clone()?);
                self.blocked = Some(watch(stream, Interest::WRITABLE)?);
            }
            if let Some(blocked) = &self.blocked {
                ready!(blocked.poll_write_ready(cx))?.clear_ready();
            }
        }
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(self.stream.shutdown(Shutdown::Write))
    }
}

impl Drop for Writer {
    fn drop(&mut self) {
        // A client that is gone needs no word of it.
        let _ = self.stream.shutdown(Shutdown::Write);
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use super::*;

    fn run<T>(what: impl Future<Output = T>) -> T {
        tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .expect("a runtime")
            .block_on(async {
                let limit = std::time::Duration::from_secs(30);
                tokio::time::timeout(limit, what).await.expect("in time")
            })
    }

    #[test]
    fn more_than_the_kernel_holds_passes_a_peer_that_reads_late() {
        run(async {
            let (ours, mut theirs) = tokio::net::UnixStream::pair().expect("a pair");
            let (mut reader, mut writer) = split(ours).expect("two halves");
            let long: Vec<u8> = (0..4_u32 << 20).map(|at| at.to_be_bytes()[2]).collect();
            let expected = long.clone();
            let writing = async {
                // Twice: the second time it begins unblocked.
                for _ in 0..2 {
                    writer.write_all(&long).await.expect("written");
                    assert_eq!(reader.read_u8().await.expect("a sign"), 7);
                }
                drop(writer);
                let mut rest = Vec::new();
                reader.read_to_end(&mut rest).await.expect("an end");
                rest
            };
            let reading = async {
                for _ in 0..2 {
                    tokio::task::yield_now().await;
                    let mut read = vec![0; expected.len()];
                    theirs.read_exact(&mut read).await.expect("all of it");
                    assert_eq!(read, expected);
                    theirs.write_all(&[7]).await.expect("written");
                }
                assert_eq!(theirs.read(&mut [0]).await.expect("an end"), 0);
                theirs.write_all(b"adieu").await.expect("written");
                drop(theirs);
            };
            let (rest, ()) = tokio::join!(writing, reading);
            assert_eq!(rest, b"adieu");
        });
    }

    #[test]
    fn a_client_that_says_nothing_is_not_waited_for() {
        run(async {
            let (ours, theirs) = tokio::net::UnixStream::pair().expect("a pair");
            let (mut reader, _writer) = split(ours).expect("two halves");
            assert!(!reader.is_at_end().await);
            theirs.try_write(b"word").expect("written");
            assert_eq!(reader.read(&mut [0; 64]).await.expect("a word"), 4);
            assert!(!reader.is_at_end().await);
        });
    }

    #[test]
    fn what_was_said_before_the_end_is_read_before_it() {
        run(async {
            let (ours, theirs) = UnixStream::pair().expect("a pair");
            ours.set_nonblocking(true).expect("a socket");
            (&theirs).write_all(b"last words").expect("written");
            drop(theirs);
            let ours = tokio::net::UnixStream::from_std(ours).expect("a stream");
            let (mut reader, mut writer) = split(ours).expect("two halves");
            while !reader.is_at_end().await {
                tokio::task::yield_now().await;
            }
            let mut read = [0; 64];
            assert_eq!(reader.read(&mut read).await.expect("words"), 10);
            assert_eq!(reader.read(&mut read).await.expect("the end"), 0);
            let told = writer.write_all(b"too late").await.expect_err("nobody");
            assert_eq!(told.kind(), io::ErrorKind::BrokenPipe);
        });
    }
}
