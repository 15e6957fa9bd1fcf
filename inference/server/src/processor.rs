//! What Linux says of the processor, and how the service computes on it.
//!
//! All but [`Seen::here`] is pure. Feature names are the kernel's: `Features` of arm64's `/proc/cpuinfo`
//! (Documentation/arch/arm64/elf_hwcaps.rst), `flags` of x86-64's.

use hawkeye_pipeline::bundle::DType;
use hawkeye_pipeline::device::DeviceKind;
use std::collections::BTreeSet;
use std::num::NonZero;

/// Instructions that choices depend on or that explain a speed; the log names those that all cores have.
const FEATURES: [&str; 9] = [
    "bf16",
    "i8mm",
    "sve",
    "sve2",
    "avx512f",
    "avx512_bf16",
    "avx512_vnni",
    "amx_bf16",
    "amx_int8",
];

/// Implementer and part of arm64 cores (`arch/arm64/include/asm/cputype.h`), their names, and whether they are the slow ones
/// where a chip has several kinds.
const CORES: [(u32, u32, &str, bool); 14] = [
    (0x41, 0xd0c, "Neoverse N1", false),
    (0x41, 0xd40, "Neoverse V1", false),
    (0x41, 0xd49, "Neoverse N2", false),
    (0x41, 0xd4f, "Neoverse V2", false),
    (0x41, 0xd83, "Neoverse V3AE", false),
    (0x41, 0xd84, "Neoverse V3", false),
    (0x41, 0xd8e, "Neoverse N3", false),
    (0x41, 0xd08, "Cortex-A72", false),
    (0x41, 0xd0b, "Cortex-A76", false),
    (0x41, 0xd85, "Cortex-X925", false),
    (0x41, 0xd87, "Cortex-A725", true),
    (0x6d, 0xd49, "Azure Cobalt 100", false),
    (0xc0, 0xac3, "AmpereOne", false),
    // Virtual machines on Apple's chips do not say which.
    (0x61, 0x000, "Apple", false),
];

/// What this process was told of the machine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Seen {
    /// `aarch64`, `x86_64`, as [`std::env::consts::ARCH`] has it.
    pub arch: &'static str,
    /// `/proc/cpuinfo`: the cores of the whole machine; empty where there is no such file.
    pub cpuinfo: String,
    /// Size of a page of memory in bytes.
    pub page: usize,
    /// CPUs that this process may use: its affinity and the CPU limits of its cgroups, rounded down, at least 1.
    pub usable: usize,
}

impl Seen {
    /// Asks the kernel.
    pub fn here() -> Self {
        Self {
            arch: std::env::consts::ARCH,
            cpuinfo: std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default(),
            page: rustix::param::page_size(),
            usable: std::thread::available_parallelism().map_or(1, NonZero::get),
        }
    }
}

/// A processor, as far as choices depend on it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Processor {
    /// Names of its kinds of cores, in order of appearance; `unknown` if it does not say.
    pub name: String,
    /// Those of [`FEATURES`] that every core has, in that order.
    pub features: Vec<&'static str>,
    /// Cores of the fastest kind. A sum that is split evenly waits for the slowest core, so others are no help.
    pub even_cores: usize,
    arm: bool,
    page: usize,
    usable: usize,
}

impl Processor {
    /// From what was seen.
    pub fn new(seen: &Seen) -> Self {
        let arm = seen.arch == "aarch64";
        let blocks: Vec<Block<'_>> = seen.cpuinfo.split("\n\n").filter_map(Block::read).collect();
        let key = if arm { "Features" } else { "flags" };
        let sets: Vec<BTreeSet<&str>> = blocks
            .iter()
            .map(|block| block.value(key).unwrap_or_default().split_whitespace().collect())
            .collect();
        let everywhere = |feature: &&str| !sets.is_empty() && sets.iter().all(|set| set.contains(feature));
        let kinds: Vec<Kind> = blocks.iter().map(|block| block.kind(arm)).collect();
        let mut names: Vec<&str> = Vec::new();
        for kind in &kinds {
            if !names.contains(&kind.name.as_str()) {
                names.push(&kind.name);
            }
        }
        let fast = kinds.iter().filter(|kind| !kind.slow).count();
        Self {
            name: if names.is_empty() {
                "unknown".to_owned()
            } else {
                names.join(" + ")
            },
            features: FEATURES.into_iter().filter(everywhere).collect(),
            even_cores: if fast == 0 { kinds.len() } else { fast },
            arm,
            page: seen.page,
            usable: seen.usable,
        }
    }

    /// Whether it has instructions for sums of bfloat16 products: Arm's BF16, AVX512-BF16 or AMX.
    pub fn multiplies_bfloat16(&self) -> bool {
        let any = |names: &[&str]| self.features.iter().any(|feature| names.contains(feature));
        if self.arm {
            any(&["bf16"])
        } else {
            any(&["avx512_bf16", "amx_bf16"])
        }
    }

    /// The number format that is fastest on a device without a loss that shows.
    pub fn dtype(&self, device: DeviceKind) -> DType {
        match device {
            DeviceKind::Cuda => DType::Float16,
            DeviceKind::Cpu if self.multiplies_bfloat16() => DType::BFloat16,
            DeviceKind::Cpu | DeviceKind::Mps => DType::Float32,
        }
    }

    /// Threads of one operation: no more than CPUs that may be used, nor than cores of the fastest kind, nor than `default`, the
    /// library's own number.
    pub fn threads(&self, default: usize) -> usize {
        let even = if self.even_cores == 0 { default } else { self.even_cores };
        default.min(self.usable).min(even).max(1)
    }

    /// Variables that libtorch and oneDNN read when they are loaded, for a process that is asked for `dtype` (`None`: for the
    /// fastest). AWS' guide for Graviton recommends them; on x86-64 the libraries' own choices stand.
    pub fn variables(&self, dtype: Option<DType>) -> Vec<(&'static str, &'static str)> {
        let mut variables = Vec::new();
        if !self.arm {
            return variables;
        }
        // How much of what was generated for single shapes is kept.
        variables.push(("LRU_CACHE_CAPACITY", "1024"));
        // Huge pages are 2 MiB where pages are 4 KiB, but 32 and 512 MiB where they are 16 and 64 KiB: too much to waste.
        if self.page == 4096 {
            variables.push(("THP_MEM_ALLOC_ENABLE", "1"));
        }
        // Products of float32 matrices in bfloat16. Who asks for float32 gets float32.
        if self.multiplies_bfloat16() && matches!(dtype, None | Some(DType::BFloat16)) {
            variables.push(("DNNL_DEFAULT_FPMATH_MODE", "BF16"));
        }
        variables
    }

    /// Says in the log what it is.
    pub fn tell(&self, threads: usize) {
        tracing::info!(
            name = self.name,
            features = self.features.join(" "),
            page_bytes = self.page,
            usable = self.usable,
            even_cores = self.even_cores,
            threads,
            "processor"
        );
    }
}

struct Kind {
    name: String,
    slow: bool,
}

/// What `/proc/cpuinfo` says of one core.
struct Block<'a>(Vec<(&'a str, &'a str)>);

impl<'a> Block<'a> {
    /// `None` where the text is not about a core: some kernels end with lines about the board.
    fn read(text: &'a str) -> Option<Self> {
        let lines = text.lines().filter_map(|line| line.split_once(':'));
        let block = Self(lines.map(|(key, value)| (key.trim(), value.trim())).collect());
        block.value("processor").is_some().then_some(block)
    }

    fn value(&self, wanted: &str) -> Option<&'a str> {
        self.0.iter().find(|(key, _)| *key == wanted).map(|(_, value)| *value)
    }

    fn kind(&self, arm: bool) -> Kind {
        if !arm {
            let name = self.value("model name").unwrap_or("unknown").to_owned();
            return Kind { name, slow: false };
        }
        let number = |key| {
            let text = self.value(key)?.strip_prefix("0x")?;
            u32::from_str_radix(text, 16).ok()
        };
        let (Some(implementer), Some(part)) = (number("CPU implementer"), number("CPU part")) else {
            return Kind {
                name: "unknown".to_owned(),
                slow: false,
            };
        };
        let known = CORES.iter().find(|core| (core.0, core.1) == (implementer, part));
        known.map_or_else(
            || Kind {
                name: format!("{implementer:#04x}/{part:#05x}"),
                slow: false,
            },
            |&(_, _, name, slow)| Kind {
                name: name.to_owned(),
                slow,
            },
        )
    }
}

#[cfg(test)]
mod tests;
