//! The end of a connection whose client still speaks: what it says is thrown away for a while, so that it gets to read its answer.
//!
//! A body that is refused is not read. Were the socket closed with bytes of it still coming, the system would answer them with a
//! reset, and a reset takes from the client what it has not read yet: the refusal (RFC 9112, section 9.6). So only this side is
//! closed at first. Bounded in bytes, in time and in silence, since it does a client a favour that may mean no good.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::{Instant, Sleep, sleep_until};

/// The most bytes that are thrown away.
const MOST: usize = 64 << 20;
/// After how long without any the client is taken to have said all. One that reads answers to their end is gone by then.
const SILENCE: Duration = Duration::from_secs(1);
/// Read at a time.
const PIECE: usize = 16 << 10;

/// A stream that lingers when it is shut down.
pub(super) struct Lingering<S> {
    stream: S,
    patience: Duration,
    left: usize,
    closing: Option<Closing>,
}

/// This side is closed; the other may speak until then.
struct Closing {
    end: Instant,
    silence: Pin<Box<Sleep>>,
}

impl<S> Lingering<S> {
    /// Over a stream; for no longer than `patience`.
    pub fn new(stream: S, patience: Duration) -> Lingering<S> {
        Lingering {
            stream,
            patience,
            left: MOST,
            closing: None,
        }
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Lingering<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        into: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(context, into)
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> AsyncWrite for Lingering<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(context, bytes)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(context, bytes)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        if this.closing.is_none() {
            ready!(Pin::new(&mut this.stream).poll_shutdown(context))?;
            let now = Instant::now();
            let end = now + this.patience;
            let silence = Box::pin(sleep_until(end.min(now + SILENCE)));
            this.closing = Some(Closing { end, silence });
        }
        let Some(closing) = &mut this.closing else {
            return Poll::Ready(Ok(()));
        };
        let mut piece = [0; PIECE];
        loop {
            let mut into = ReadBuf::new(&mut piece[..this.left.min(PIECE)]);
            match Pin::new(&mut this.stream).poll_read(context, &mut into) {
                Poll::Pending => {
                    ready!(closing.silence.as_mut().poll(context));
                    return Poll::Ready(Ok(()));
                }
                // It has said all, or is gone; or there is no room left.
                Poll::Ready(Ok(())) if into.filled().is_empty() => return Poll::Ready(Ok(())),
                Poll::Ready(Err(_)) => return Poll::Ready(Ok(())),
                Poll::Ready(Ok(())) => {}
            }
            this.left -= into.filled().len();
            let now = Instant::now();
            if now >= closing.end {
                return Poll::Ready(Ok(()));
            }
            let silence = closing.end.min(now + SILENCE);
            closing.silence.as_mut().reset(silence);
        }
    }
}
