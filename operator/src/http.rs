//! `/livez`, `/readyz` and `/metrics`.

use axum::{
    Router,
    http::{StatusCode, header},
    response::{IntoResponse, Response},
    routing::get,
};
use tokio::{net::TcpListener, sync::watch};

use crate::{controller::planner::Plans, metrics::Metrics};

/// Media type of the text that Prometheus reads.
const OPENMETRICS: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// Serves until `stop`. Ready means that every watch has been read once and the first plan is made.
///
/// # Errors
/// When the listener fails.
pub async fn serve(
    listener: TcpListener,
    metrics: Metrics,
    plans: watch::Receiver<Plans>,
    stop: impl Future<Output = ()> + Send + 'static,
) -> std::io::Result<()> {
    axum::serve(listener, router(metrics, plans))
        .with_graceful_shutdown(stop)
        .await
}

fn router(metrics: Metrics, plans: watch::Receiver<Plans>) -> Router {
    Router::new()
        .route("/livez", get(|| async { "ok\n" }))
        .route("/readyz", get(async move || ready(&plans)))
        .route("/metrics", get(async move || text(&metrics)))
}

fn ready(plans: &watch::Receiver<Plans>) -> Response {
    if plans.borrow().ready() {
        return "ok\n".into_response();
    }
    (StatusCode::SERVICE_UNAVAILABLE, "the cluster has not been read yet\n").into_response()
}

fn text(metrics: &Metrics) -> Response {
    match metrics.text() {
        Ok(text) => ([(header::CONTENT_TYPE, OPENMETRICS)], text).into_response(),
        Err(error) => (StatusCode::INTERNAL_SERVER_ERROR, error.to_string()).into_response(),
    }
}

#[cfg(test)]
mod tests {
    use axum::{body::Body, http::Request};
    use tower::ServiceExt;

    use super::*;

    async fn status(router: Router, path: &str) -> StatusCode {
        router
            .oneshot(Request::get(path).body(Body::empty()).unwrap())
            .await
            .unwrap()
            .status()
    }

    #[tokio::test]
    async fn it_is_ready_once_a_plan_is_made() {
        let (sender, plans) = watch::channel(Plans::default());
        let router = router(Metrics::default(), plans);
        assert_eq!(status(router.clone(), "/livez").await, StatusCode::OK);
        assert_eq!(status(router.clone(), "/readyz").await, StatusCode::SERVICE_UNAVAILABLE);
        sender.send(Plans::made(Vec::new())).unwrap();
        assert_eq!(status(router.clone(), "/readyz").await, StatusCode::OK);
        assert_eq!(status(router, "/metrics").await, StatusCode::OK);
    }
}
