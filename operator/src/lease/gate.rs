//! The last thing before the wire: no write without a current claim.

use std::{
    future::poll_fn,
    pin::{Pin, pin},
    task::{Context, Poll},
};

use http::{Method, Request};
use tokio::time::timeout;
use tower::{BoxError, Layer, Service};

use super::{Claim, Moment};

/// A write was not sent, or its answer not waited for, because this replica does not hold the Lease.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("this replica does not hold the Lease, so it writes nothing")]
pub struct NotLeading;

/// A layer that refuses writes without a current claim.
#[derive(Clone, Debug)]
pub struct Gate(Claim);

impl Gate {
    /// Lets writes through while the claim is current.
    pub const fn new(claim: Claim) -> Self {
        Self(claim)
    }
}

impl<S> Layer<S> for Gate {
    type Service = Gated<S>;

    fn layer(&self, inner: S) -> Self::Service {
        Gated {
            inner,
            claim: self.0.clone(),
        }
    }
}

/// A client's service behind a [`Gate`].
#[derive(Clone, Debug)]
pub struct Gated<S> {
    inner: S,
    claim: Claim,
}

impl<S, B> Service<Request<B>> for Gated<S>
where
    S: Service<Request<B>>,
    S::Future: Send + 'static,
    S::Error: Into<BoxError>,
{
    type Response = S::Response;
    type Error = BoxError;
    type Future = Pin<Box<dyn Future<Output = Result<S::Response, BoxError>> + Send>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        self.inner.poll_ready(cx).map_err(Into::into)
    }

    fn call(&mut self, request: Request<B>) -> Self::Future {
        if matches!(*request.method(), Method::GET | Method::HEAD | Method::OPTIONS) {
            let answer = self.inner.call(request);
            return Box::pin(async move { answer.await.map_err(Into::into) });
        }
        if !self.claim.is_current(Moment::now()) {
            return Box::pin(async { Err(NotLeading.into()) });
        }
        let claim = self.claim.clone();
        let answer = self.inner.call(request);
        Box::pin(async move { guarded(&claim, answer).await })
    }
}

/// A request may wait for a token or a connection before it is sent, so it goes on only while the claim is current.
async fn guarded<T, E: Into<BoxError>>(
    claim: &Claim,
    answer: impl Future<Output = Result<T, E>>,
) -> Result<T, BoxError> {
    let mut answer = pin!(answer);
    loop {
        let left = claim.left(Moment::now());
        if left.is_zero() {
            return Err(NotLeading.into());
        }
        // Looked at before each step as well: after a suspension the timer is late.
        let step = poll_fn(|cx| {
            if claim.is_current(Moment::now()) {
                answer.as_mut().poll(cx).map_err(Into::into)
            } else {
                Poll::Ready(Err(NotLeading.into()))
            }
        });
        // When the time is over, the claim may have been renewed meanwhile.
        if let Ok(result) = timeout(left, step).await {
            return result;
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{
        convert::Infallible,
        sync::{
            Arc,
            atomic::{AtomicU32, Ordering},
        },
        time::Duration,
    };

    use tower::{ServiceBuilder, ServiceExt, service_fn};

    use super::*;

    async fn send(claim: &Claim, method: Method, takes: Duration, sent: &Arc<AtomicU32>) -> Result<(), BoxError> {
        let sent = Arc::clone(sent);
        let wire = service_fn(move |_: Request<()>| {
            let sent = Arc::clone(&sent);
            async move {
                tokio::time::sleep(takes).await;
                sent.fetch_add(1, Ordering::SeqCst);
                Ok::<_, Infallible>(())
            }
        });
        let request = Request::builder().method(method).body(()).unwrap();
        ServiceBuilder::new()
            .layer(Gate::new(claim.clone()))
            .service(wire)
            .oneshot(request)
            .await
    }

    #[tokio::test]
    async fn without_a_claim_only_reads_pass() {
        let sent = Arc::default();
        let none = Claim::none();
        assert!(send(&none, Method::GET, Duration::ZERO, &sent).await.is_ok());
        for method in [Method::POST, Method::PUT, Method::PATCH, Method::DELETE] {
            let error = send(&none, method, Duration::ZERO, &sent).await.unwrap_err();
            assert!(error.is::<NotLeading>(), "{error}");
        }
        assert_eq!(sent.load(Ordering::SeqCst), 1);
        assert!(
            send(&Claim::for_ever(), Method::PATCH, Duration::ZERO, &sent)
                .await
                .is_ok()
        );
    }

    #[tokio::test]
    async fn a_write_that_waits_past_the_deadline_is_not_sent() {
        let sent = Arc::default();
        let claim = Claim::none();
        claim.set(Moment::now() + Duration::from_millis(50));
        let error = send(&claim, Method::PATCH, Duration::from_millis(200), &sent)
            .await
            .unwrap_err();
        assert!(error.is::<NotLeading>(), "{error}");
        assert_eq!(sent.load(Ordering::SeqCst), 0);
    }

    #[tokio::test]
    async fn a_renewal_lets_a_slow_write_go_on() {
        let sent = Arc::default();
        let claim = Claim::none();
        claim.set(Moment::now() + Duration::from_millis(100));
        let renewed = async {
            tokio::time::sleep(Duration::from_millis(20)).await;
            claim.set(Moment::now() + Duration::from_secs(10));
        };
        let slow = send(&claim, Method::PATCH, Duration::from_millis(200), &sent);
        let (result, ()) = tokio::join!(slow, renewed);
        assert!(result.is_ok());
        assert_eq!(sent.load(Ordering::SeqCst), 1);
    }
}
