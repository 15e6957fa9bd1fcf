//! What registries know of images: the digests behind their tags, and the platforms that they were built for.
//!
//! [`reference`], [`manifest`], [`auth`] and [`policy`] are pure; [`client`] asks one registry about one image, and
//! [`lookups`] decides what is asked when, and remembers the answers.

pub mod auth;
pub mod client;
pub mod lookups;
pub mod manifest;
pub mod policy;
pub mod reference;
pub mod settings;
pub mod source;

pub use client::RegistryClient;
pub use lookups::{Answer, Lookups, Source};
pub use manifest::{Found, Platform, Platforms};
pub use policy::{Policy, Subject};
pub use reference::ImageRef;
