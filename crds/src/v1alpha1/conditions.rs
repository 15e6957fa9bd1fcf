//! Conditions of a HawkeyeDeployment: their types and every reason that the operator gives.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// One observation about an object, as in every Kubernetes API.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Condition {
    /// What is observed: Accepted, Placed, Available, DeviceVerified, Degraded or ImageVerified.
    #[serde(rename = "type")]
    #[schemars(length(max = 64))]
    pub type_: String,
    /// True, False or Unknown.
    pub status: ConditionStatus,
    /// The metadata.generation that this was observed for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub observed_generation: Option<i64>,
    /// When status last changed, RFC 3339.
    #[schemars(extend("format" = "date-time"))]
    pub last_transition_time: String,
    /// Why, in one word that programs can test.
    #[schemars(length(min = 1, max = 64))]
    pub reason: String,
    /// Why, and what to do about it, in a sentence.
    #[schemars(length(max = 4096))]
    pub message: String,
}

/// Status of a condition.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[allow(missing_docs)]
pub enum ConditionStatus {
    True,
    False,
    Unknown,
}

impl From<bool> for ConditionStatus {
    fn from(value: bool) -> Self {
        if value { Self::True } else { Self::False }
    }
}

macro_rules! words {
    ($(#[$doc:meta])* $name:ident { $($(#[doc = $text:literal])+ $variant:ident,)+ }) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub enum $name { $($(#[doc = $text])+ $variant,)+ }

        impl $name {
            /// Every value, in the order of their declaration.
            pub const ALL: &'static [Self] = &[$(Self::$variant,)+];

            /// The word as it stands in the status.
            pub const fn as_str(self) -> &'static str {
                match self { $(Self::$variant => stringify!($variant),)+ }
            }

            /// What it means, as the API reference says it.
            pub const fn meaning(self) -> &'static str {
                match self { $(Self::$variant => concat!($($text),+).trim_ascii(),)+ }
            }
        }

        impl std::fmt::Display for $name {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str(self.as_str())
            }
        }
    };
}

words! {
    /// What a condition of a HawkeyeDeployment is about. On the wire it is text, so that an older client reads newer types.
    ConditionType {
        /// The spec can be acted on. While it is False, what runs already is left as it is.
        Accepted,
        /// Every replica has a place.
        Placed,
        /// At least one pod answers.
        Available,
        /// Every ready pod was asked, and runs on the device of its pool with its number format and batch size.
        DeviceVerified,
        /// Some replicas run on a lesser device than the one asked for, or than the best that the cluster has.
        Degraded,
        /// The images were built for the architectures that they run on. Unknown blocks nothing.
        ImageVerified,
    }
}

impl ConditionType {
    /// The status that it has when all is as it should be.
    pub const fn good(self) -> ConditionStatus {
        match self {
            Self::Degraded => ConditionStatus::False,
            _ => ConditionStatus::True,
        }
    }
}

words! {
    /// What a condition of a HardwareClass is about.
    ClassConditionType {
        /// Another class admits some of the same nodes.
        Overlaps,
    }
}

words! {
    /// Why a condition or a pool is as it is. One list for all, so that each has one entry in the troubleshooting page.
    Reason {
        /// The spec is valid and complete.
        Accepted,
        /// Neither spec.model nor the chart's defaultModel is set.
        ModelMissing,
        /// spec.classes or spec.overrides names a HardwareClass that does not exist.
        UnknownClass,
        /// There is no HardwareClass in the cluster at all.
        NoHardwareClasses,
        /// The stored object does not decode: it was written under another version of the CRD.
        InvalidSpec,
        /// Every replica has a place.
        Placed,
        /// spec.replicas is 0.
        ScaledToZero,
        /// The classes that may be used have too little free capacity.
        NotEnoughCapacity,
        /// No node of the cluster belongs to a class that may be used.
        NoNodes,
        /// No node of the class can hold a pod, not even with batches of 1.
        MemoryDoesNotFit,
        /// A pod asks for more CPU than any node of the class has for pods.
        CpuDoesNotFit,
        /// Pods found no node for longer than spec.handOverAfter, so other classes have their replicas.
        HandedOver,
        /// The device asked for is not there and fallback is Deny.
        FallbackDenied,
        /// overrides.*.replicas give a place to fewer replicas than spec.replicas.
        PinnedBelowTotal,
        /// An object of the name that is needed belongs to someone else.
        NameConflict,
        /// The API server refused an object that the operator made; the message is the server's.
        ApplyFailed,
        /// Every pod is ready.
        AllReady,
        /// Some pods are ready.
        PartlyReady,
        /// No pod is ready yet.
        NotReady,
        /// Pods are being replaced by pods of the current spec.
        RollingOut,
        /// The cluster refuses to create the pods (quota, Pod Security, admission); the message is the cluster's.
        PodsRefused,
        /// Pods cannot be scheduled; the message is the scheduler's.
        Unschedulable,
        /// The container image cannot be pulled; the message is the kubelet's.
        ImagePullFailed,
        /// The container ends again and again.
        CrashLoop,
        /// The bundle of spec.model.http cannot be downloaded or is not what its sha256 says; the message is the pod's own.
        ModelFetchFailed,
        /// The cluster dropped the model's volume from the pods: it has no image volumes.
        ModelVolumeUnsupported,
        /// Replicas run on the next device, since the one asked for is not there.
        DeviceUnavailable,
        /// Everything runs on the device asked for.
        AsAsked,
        /// Every ready pod runs as its pool says.
        Verified,
        /// A pod came up on another device than its pool's, or without it and serves nothing.
        DeviceMismatch,
        /// A pod runs with another number format or batch size than its pool's.
        SettingsMismatch,
        /// What the ready pods run on is not known: there is none, or some give no answer.
        NotVerified,
        /// The registry says that the images were built for the architectures that they run on.
        ImageVerified,
        /// An image was not built for the architecture of the nodes that it would run on.
        ImageArchitectureMissing,
        /// A registry did not tell what an image was built for.
        ImageUnreadable,
        /// The chart's values do not allow the operator to ask that registry.
        RegistryNotAllowed,
        /// The chart's values turn off looking up images.
        VerificationDisabled,
        /// A node shows a GPU that it does not offer in a form that any class knows.
        UnsupportedGpuResource,
        /// No class takes a node of this operating system or architecture, or with these labels.
        NoClassMatches,
        /// No other class admits a node of this class.
        Disjoint,
        /// Classes of one priority admit the same nodes.
        EqualPriority,
        /// Nodes that match this class belong to one of higher priority.
        HigherPriorityHas,
        /// Nodes of this class match one of lower priority, too.
        LowerPriorityMatches,
    }
}

#[cfg(test)]
mod tests {
    use super::Reason;

    #[test]
    fn every_reason_is_a_valid_condition_reason() {
        for reason in Reason::ALL {
            assert!(reason.as_str().len() <= 64);
            assert!(reason.as_str().chars().all(char::is_alphanumeric));
        }
    }
}
