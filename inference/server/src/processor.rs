//! What Linux says of the processor, and how the service computes on it.
//!
//! All but [`Seen::here`] is pure. Feature names are the kernel's: `Features` of arm64's `/proc/cpuinfo`
//! (Documentation/arch/arm64/elf_hwcaps.rst), `flags` of x86-64's.

use hawkeye_pipeline::bundle::DType;
use hawkeye_pipeline::device::DeviceKind;
use serde::Serialize;
use std::collections::BTreeSet;
use std::num::NonZero;
use utoipa::ToSchema;

/// Instructions that choices depend on or that explain a speed; reports name those that all cores have.
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
    /// Cores of the fastest kind, each counted once however many threads it runs. An operation that is split evenly waits for the
    /// slowest, so others are no help.
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
        let fast = blocks.iter().zip(&kinds).filter(|(_, kind)| !kind.slow);
        let fast = distinct(fast.map(|(block, _)| block));
        Self {
            name: if names.is_empty() {
                "unknown".to_owned()
            } else {
                names.join(" + ")
            },
            features: FEATURES.into_iter().filter(everywhere).collect(),
            even_cores: if fast == 0 { distinct(blocks.iter()) } else { fast },
            arm,
            page: seen.page,
            usable: seen.usable,
        }
    }

    /// The instructions for sums of bfloat16 products, if it has any: Arm's BF16, AVX512-BF16 or AMX.
    fn bfloat16(&self) -> Option<&'static str> {
        let names: &[&str] = if self.arm {
            &["bf16"]
        } else {
            &["amx_bf16", "avx512_bf16"]
        };
        self.features.iter().copied().find(|feature| names.contains(feature))
    }

    /// The number format that is fastest on a device without a loss that shows.
    pub fn dtype(&self, device: DeviceKind) -> DType {
        match device {
            DeviceKind::Cuda => DType::Float16,
            DeviceKind::Cpu if self.bfloat16().is_some() => DType::BFloat16,
            DeviceKind::Cpu | DeviceKind::Mps => DType::Float32,
        }
    }

    /// Threads of one operation: no more than CPUs that may be used, nor than cores of the fastest kind, nor than `default`, the
    /// library's own number.
    pub fn threads(&self, default: usize) -> usize {
        let even = if self.even_cores == 0 { default } else { self.even_cores };
        default.min(self.usable).min(even).max(1)
    }

    /// Numbers of threads that may be faster than that one: all CPUs that may be used, second threads of cores and slow cores included.
    pub fn more_threads(&self, default: usize) -> Option<usize> {
        Some(self.usable).filter(|&all| all > self.threads(default))
    }

    /// Variables that libtorch and oneDNN read when they are loaded, for a process that is asked for `dtype` (`None`: for the
    /// fastest). AWS' guide for Graviton recommends them; on x86-64 the libraries' own choices stand.
    pub fn variables(&self, dtype: Option<DType>) -> Vec<Variable> {
        if !self.arm {
            return Vec::new();
        }
        let (huge, why_huge) = if self.page == 4096 {
            (Some("1"), "large blocks of memory in huge pages of 2 MiB".to_owned())
        } else {
            let size = huge_page(self.page) >> 20;
            let page = self.page >> 10;
            (
                None,
                format!("a huge page has {size} MiB where a page has {page} KiB, too much to waste"),
            )
        };
        let (products, why_products) = match (self.bfloat16(), dtype) {
            (None, _) => (None, "the processor has no instructions for bfloat16"),
            (Some(_), None | Some(DType::BFloat16)) => {
                (Some("BF16"), "what is left in float32 is multiplied in bfloat16")
            }
            (Some(_), Some(DType::Int8)) => (None, "int8 is asked for, whose other sums are those of float32"),
            (Some(_), Some(_)) => (None, "another number format is asked for"),
        };
        vec![
            Variable {
                name: "LRU_CACHE_CAPACITY",
                alias: None,
                value: Some("1024"),
                reason: "what is prepared for single shapes is kept".to_owned(),
            },
            Variable {
                name: "THP_MEM_ALLOC_ENABLE",
                alias: None,
                value: huge,
                reason: why_huge,
            },
            Variable {
                name: "DNNL_DEFAULT_FPMATH_MODE",
                alias: Some("ONEDNN_DEFAULT_FPMATH_MODE"),
                value: products,
                reason: why_products.to_owned(),
            },
        ]
    }

    /// What it is, and what was chosen by it for a device. `asked` is the number format that the settings name, `default` the
    /// library's own number of threads, and `environment` the process's.
    pub fn report(
        &self,
        device: DeviceKind,
        asked: Option<DType>,
        default: usize,
        environment: impl Fn(&str) -> Option<String>,
    ) -> ProcessorReport {
        let mut chosen = vec![
            self.chosen_threads(default, environment(THREADS)),
            self.chosen_dtype(device, asked),
        ];
        let variables = self.variables(asked).into_iter();
        chosen.extend(variables.map(|variable| variable.chosen(&environment)));
        ProcessorReport {
            name: self.name.clone(),
            features: self.features.clone(),
            page_bytes: self.page,
            usable_cpus: self.usable,
            even_cores: self.even_cores,
            chosen,
        }
    }

    fn chosen_threads(&self, default: usize, set: Option<String>) -> Chosen {
        if let Some(set) = set {
            return Chosen::new("threads", set, format!("{THREADS} is set"));
        }
        let threads = self.threads(default);
        let reason = if threads == self.usable {
            "the CPUs that affinity and CPU limit allow"
        } else if threads == self.even_cores {
            "the cores of the fastest kind, each once"
        } else {
            "libtorch's own number"
        };
        Chosen::new("threads", threads.to_string(), reason.to_owned())
    }

    fn chosen_dtype(&self, device: DeviceKind, asked: Option<DType>) -> Chosen {
        let dtype = asked.unwrap_or_else(|| self.dtype(device));
        let reason = match (asked, device, self.bfloat16()) {
            (Some(_), ..) => "it is asked for".to_owned(),
            (None, DeviceKind::Cuda, _) => "the fastest on CUDA".to_owned(),
            (None, DeviceKind::Mps, _) => "the only one that was tried on MPS".to_owned(),
            (None, DeviceKind::Cpu, Some(feature)) => format!("the processor multiplies bfloat16 ({feature})"),
            (None, DeviceKind::Cpu, None) => "the processor has no instructions for bfloat16".to_owned(),
        };
        Chosen::new("dtype", dtype.to_string(), reason)
    }
}

/// Whoever sets it, as the operator does, chooses the number of threads.
pub const THREADS: &str = "OMP_NUM_THREADS";

/// Bytes of a huge page on arm64 where a page has `page`: what one table of the level above the last covers, in entries of 8 bytes.
const fn huge_page(page: usize) -> usize {
    page / 8 * page
}

/// A variable that libtorch or oneDNN reads when it is loaded.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Variable {
    /// Its name.
    pub name: &'static str,
    /// Another name that counts as well.
    alias: Option<&'static str>,
    /// What it should be; `None` where it should not be set.
    pub value: Option<&'static str>,
    /// Why.
    pub reason: String,
}

impl Variable {
    /// What somebody has set it to, under either name.
    pub fn set(&self, environment: impl Fn(&str) -> Option<String>) -> Option<String> {
        environment(self.name).or_else(|| environment(self.alias?))
    }

    /// What is set, or will be: the service starts itself anew with what nobody has set.
    fn chosen(self, environment: impl Fn(&str) -> Option<String>) -> Chosen {
        let (value, reason) = match self.set(environment) {
            Some(set) if self.value != Some(set.as_str()) => (Some(set), "the environment's".to_owned()),
            _ => (self.value.map(ToOwned::to_owned), self.reason),
        };
        Chosen {
            setting: self.name,
            value,
            reason,
        }
    }
}

/// A setting, what it was set to, and why.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, ToSchema)]
pub struct Chosen {
    /// `threads`, `dtype`, `batch_size` or a variable's name.
    pub setting: &'static str,
    /// Null: left unset.
    #[schema(required)]
    pub value: Option<String>,
    /// For people.
    pub reason: String,
}

impl Chosen {
    /// A value that was chosen.
    pub const fn new(setting: &'static str, value: String, reason: String) -> Self {
        Self {
            setting,
            value: Some(value),
            reason,
        }
    }
}

/// What the processor is, and what was chosen by it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, ToSchema)]
pub struct ProcessorReport {
    /// Names of its kinds of cores; `unknown` if it does not say.
    pub name: String,
    /// Instructions that matter here and that every core has, in the kernel's words.
    pub features: Vec<&'static str>,
    /// Size of a page of memory.
    pub page_bytes: usize,
    /// CPUs that affinity and CPU limit allow, the limit rounded down.
    pub usable_cpus: usize,
    /// Cores of the fastest kind in the machine, each counted once however many threads it runs; 0 if not known.
    pub even_cores: usize,
    /// What was chosen.
    pub chosen: Vec<Chosen>,
}

impl ProcessorReport {
    /// Replaces what was chosen before by what was measured.
    pub fn choose(&mut self, chosen: Chosen) {
        self.chosen.retain(|before| before.setting != chosen.setting);
        self.chosen.push(chosen);
    }

    /// Says in the log what it is.
    pub fn tell(&self) {
        tracing::info!(
            name = self.name,
            features = self.features.join(" "),
            page_bytes = self.page_bytes,
            usable_cpus = self.usable_cpus,
            even_cores = self.even_cores,
            "processor"
        );
        for Chosen { setting, value, reason } in &self.chosen {
            tracing::info!(setting, value = value.as_deref().unwrap_or("unset"), reason, "chosen");
        }
    }
}

/// Cores among these: threads of one core have the same ids. Where there are no ids, as on arm64, each is a core.
fn distinct<'a, 'b: 'a>(blocks: impl Iterator<Item = &'a Block<'b>>) -> usize {
    let (known, unknown): (Vec<_>, Vec<_>) = blocks.map(Block::core).partition(Option::is_some);
    known.into_iter().collect::<BTreeSet<_>>().len() + unknown.len()
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

    /// Socket and number within it.
    fn core(&self) -> Option<(&'a str, &'a str)> {
        Some((self.value("physical id")?, self.value("core id")?))
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
