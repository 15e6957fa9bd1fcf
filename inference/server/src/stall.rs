//! A connection that gives up on a client which takes nothing of its answer.

use crate::metrics::{Metrics, Slow};
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::{Instant, Sleep, sleep};

/// Reads and writes `stream`; a write that waits longer than the bound fails.
///
/// hyper has no such bound, and a few megabytes of an annotated picture do not fit into the kernel's buffer: without it,
/// a client that stops reading keeps its connection and its answer for ever.
#[derive(Debug)]
pub struct Stalling<S> {
    stream: S,
    bound: Duration,
    timer: Pin<Box<Sleep>>,
    /// Whether a write waits, so that the timer counts.
    waits: bool,
    metrics: Arc<Metrics>,
}

impl<S> Stalling<S> {
    /// Wraps a stream.
    pub fn new(stream: S, bound: Duration, metrics: Arc<Metrics>) -> Self {
        Self {
            stream,
            bound,
            timer: Box::pin(sleep(bound)),
            waits: false,
            metrics,
        }
    }

    /// Passes on what a write came to, or the time-out of one that has not come to anything for too long.
    fn watch<T>(&mut self, context: &mut Context<'_>, write: Poll<io::Result<T>>) -> Poll<io::Result<T>> {
        if write.is_ready() {
            self.waits = false;
            return write;
        }
        if !self.waits {
            self.waits = true;
            self.timer.as_mut().reset(Instant::now() + self.bound);
        }
        ready!(self.timer.as_mut().poll(context));
        self.waits = false;
        self.metrics.cut(Slow::Answer);
        Poll::Ready(Err(io::ErrorKind::TimedOut.into()))
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Stalling<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(context, buffer)
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Stalling<S> {
    fn poll_write(mut self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let write = Pin::new(&mut self.stream).poll_write(context, bytes);
        self.watch(context, write)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffers: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let write = Pin::new(&mut self.stream).poll_write_vectored(context, buffers);
        self.watch(context, write)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let flush = Pin::new(&mut self.stream).poll_flush(context);
        self.watch(context, flush)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::{AsyncReadExt, AsyncWriteExt, duplex};

    #[tokio::test(start_paused = true)]
    async fn only_a_client_that_takes_nothing_is_cut() {
        let bound = Duration::from_secs(10);
        let metrics = Arc::new(Metrics::new());
        let (ours, mut theirs) = duplex(8);
        let mut ours = Stalling::new(ours, bound, Arc::clone(&metrics));
        // Slow, but going on: eight bytes every nine seconds.
        let reader = tokio::spawn(async move {
            let mut buffer = [0; 8];
            for _ in 0..4 {
                sleep(Duration::from_secs(9)).await;
                theirs.read_exact(&mut buffer).await.expect("comes");
            }
            theirs
        });
        ours.write_all(&[1; 32]).await.expect("is taken bit by bit");
        let _theirs = reader.await.expect("ends");
        let started = Instant::now();
        let error = ours.write_all(&[1; 32]).await.expect_err("nobody reads");
        assert_eq!(error.kind(), io::ErrorKind::TimedOut);
        assert_eq!(started.elapsed().as_secs(), 10);
        let text = metrics.render().expect("renders");
        assert!(
            text.contains("hawkeye_slow_clients_cut_total{at=\"Answer\"} 1"),
            "{text}"
        );
    }
}
