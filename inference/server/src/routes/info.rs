//! `/`, `/health`, `/device`, `/models/status`: never wait for the device.

use super::App;
use crate::api::{API_VERSION, Health, ModelsStatus, SERVICE_INFO, ServiceInfo};
use crate::device::DeviceReport;
use crate::engine::ModelState;
use axum::Json;
use axum::extract::State;
use std::sync::Arc;

/// Name, version and routes
#[utoipa::path(get, path = "/", tag = "information", responses((status = 200, body = ServiceInfo, description = "Always.")))]
pub(super) async fn root() -> Json<ServiceInfo> {
    Json(SERVICE_INFO)
}

/// Whether parses are served
///
/// Always 200, as in the Python service: the status is in the body.
#[utoipa::path(get, path = "/health", tag = "information", responses((status = 200, body = Health, description = "Always.")))]
pub(super) async fn health(State(app): State<App>) -> Json<Health> {
    let (info, device_mismatch) = match app.engine.state() {
        ModelState::Ready(info) => (Some(Arc::clone(&info)), info.mismatch.clone()),
        ModelState::Denied(reason) => (None, Some(reason.to_string())),
        ModelState::Loading | ModelState::Failed(_) => (None, None),
    };
    let healthy = info.is_some() && app.engine.is_alive() && !app.hangs();
    Json(Health {
        status: if healthy { "healthy" } else { "unhealthy" },
        version: API_VERSION,
        models_loaded: info.is_some(),
        device: info.map_or_else(|| app.device_setting.to_string(), |info| info.device.name().to_owned()),
        device_mismatch,
    })
}

/// What the models run on, and whether that is what was asked for
///
/// Always 200: what is not known yet is null.
#[utoipa::path(get, path = "/device", tag = "information", responses((status = 200, body = DeviceReport, description = "Always.")))]
pub(super) async fn device(State(app): State<App>) -> Json<DeviceReport> {
    Json(DeviceReport::new(
        &app.engine.state(),
        app.engine.shrunk_batch(),
        &app.expectation,
    ))
}

/// What is loaded, from where, in which number format
#[utoipa::path(get, path = "/models/status", tag = "information", responses((status = 200, body = ModelsStatus, description = "Always.")))]
pub(super) async fn models_status(State(app): State<App>) -> Json<ModelsStatus> {
    Json(ModelsStatus::new(app.models().ok().as_deref()))
}
