//! OmniParser-compatible inference service: HTTP, queue, settings and metrics around `hawkeye-pipeline`. Which backend
//! runs the models is decided by whoever passes a loader to [`engine::Engine::start`].

pub mod admission;
pub mod api;
pub mod bench;
pub mod config;
pub mod crop_cache;
pub mod detect;
pub mod device;
pub mod engine;
pub mod error;
pub mod fetch;
pub mod http;
pub mod input;
pub mod metrics;
pub mod one_shot;
pub mod openapi;
pub mod pool;
pub mod processor;
pub mod routes;
pub mod serve;
pub mod service;
pub mod shutdown;
pub mod stall;
pub mod steps;
pub mod table;
pub mod telemetry;
pub mod tune;
