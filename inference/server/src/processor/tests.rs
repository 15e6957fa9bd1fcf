//! Lines of `/proc/cpuinfo` as machines of each kind print them.
//!
//! Recorded: Graviton2 (c6g), Graviton3 (c7g), Grace, Ampere Altra, Azure Cobalt 100 (D4ps_v6), virtual machines on an M1 and on
//! a later Apple chip, Sapphire Rapids, a virtual machine on an AMD EPYC of family 25. Put together from the kernel's names, since no
//! recording was at hand: Graviton4 (Grace's core without `sm3`, `sm4`), GB10's features (those that Armv9.2 cores have in common).

use super::*;

const N1: &str =
    "fp asimd evtstrm aes pmull sha1 sha2 crc32 atomics fphp asimdhp cpuid asimdrdm lrcpc dcpop asimddp ssbs";
const V1: &str = "fp asimd evtstrm aes pmull sha1 sha2 crc32 atomics fphp asimdhp cpuid asimdrdm jscvt fcma lrcpc dcpop sha3 sm3 \
                  sm4 asimddp sha512 sve asimdfhm dit uscat ilrcpc flagm ssbs paca pacg dcpodp svei8mm svebf16 i8mm bf16 dgh rng";
const V2: &str = "fp asimd evtstrm aes pmull sha1 sha2 crc32 atomics fphp asimdhp cpuid asimdrdm jscvt fcma lrcpc dcpop sha3 \
                  asimddp sha512 sve asimdfhm dit uscat ilrcpc flagm ssbs sb paca pacg dcpodp sve2 sveaes svepmull svebitperm \
                  svesha3 flagm2 frint svei8mm svebf16 i8mm bf16 dgh rng bti";
const GRACE: &str = "fp asimd evtstrm aes pmull sha1 sha2 crc32 atomics fphp asimdhp cpuid asimdrdm jscvt fcma lrcpc dcpop sha3 \
                     sm3 sm4 asimddp sha512 sve asimdfhm dit uscat ilrcpc flagm sb paca pacg dcpodp sve2 sveaes svepmull \
                     svebitperm svesha3 svesm4 flagm2 frint svei8mm svebf16 i8mm bf16 dgh bti";
const COBALT: &str = "fp asimd evtstrm aes pmull sha1 sha2 crc32 atomics fphp asimdhp cpuid asimdrdm jscvt fcma lrcpc dcpop sha3 \
                      sm3 sm4 asimddp sha512 sve asimdfhm uscat ilrcpc flagm ssbs sb paca pacg dcpodp sve2 sveaes svebitperm \
                      svesha3 svesm4 flagm2 frint svei8mm svebf16 i8mm bf16";
const GB10: &str = "fp asimd evtstrm aes pmull sha1 sha2 crc32 atomics fphp asimdhp cpuid asimdrdm jscvt fcma lrcpc dcpop sha3 \
                    sm3 sm4 asimddp sha512 sve asimdfhm dit uscat ilrcpc flagm sb paca pacg dcpodp sve2 sveaes svepmull \
                    svebitperm svesha3 svesm4 flagm2 frint svei8mm svebf16 i8mm bf16 dgh bti ecv afp wfxt";
const APPLE_M1: &str = "fp asimd evtstrm aes pmull sha1 sha2 crc32 atomics fphp asimdhp cpuid asimdrdm jscvt fcma lrcpc dcpop \
                        sha3 asimddp sha512 asimdfhm dit uscat ilrcpc flagm sb paca pacg dcpodp flagm2 frint";
const APPLE_LATER: &str = "fp asimd evtstrm aes pmull sha1 sha2 crc32 atomics fphp asimdhp cpuid asimdrdm jscvt fcma lrcpc dcpop \
                           sha3 asimddp sha512 asimdfhm dit uscat ilrcpc flagm ssbs sb paca pacg dcpodp flagm2 frint bf16";
const EPYC_BF16: &str = "fpu vme sse4_2 avx avx2 bmi2 avx512f avx512dq avx512bw avx512vl avx512_bf16 avx512_vnni";
const SAPPHIRE_RAPIDS: &str = "fpu vme sse4_2 avx avx2 fma avx512f avx512dq avx512bw avx512vl avx_vnni avx512_bf16 avx512_vnni \
                               amx_bf16 avx512_fp16 amx_tile amx_int8";
const BROADWELL: &str = "fpu vme de pse tsc msr sse4_1 sse4_2 aes avx f16c rdrand bmi1 avx2 bmi2 fma";

fn arm(cores: &[(&str, u32, u32, usize)]) -> String {
    let kinds = cores.iter().flat_map(|&core| std::iter::repeat_n(core, core.3));
    let blocks = kinds.enumerate().map(|(number, (features, implementer, part, _))| {
        format!(
            "processor\t: {number}\nBogoMIPS\t: 2000.00\nFeatures\t: {features}\nCPU implementer\t: {implementer:#04x}\n\
             CPU architecture: 8\nCPU variant\t: 0x0\nCPU part\t: {part:#05x}\nCPU revision\t: 1\n\n"
        )
    });
    blocks.collect()
}

fn x86(name: &str, flags: &str, cores: usize) -> String {
    let blocks = (0..cores).map(|number| {
        format!("processor\t: {number}\nvendor_id\t: GenuineIntel\nmodel name\t: {name}\nflags\t\t: {flags}\nbogomips\t: 4589.21\n\n")
    });
    blocks.collect()
}

fn processor(arch: &'static str, cpuinfo: String, page: usize, usable: usize) -> Processor {
    Processor::new(&Seen {
        arch,
        cpuinfo,
        page,
        usable,
    })
}

/// What a processor is to come to on a machine whose cores may all be used.
struct Case {
    arch: &'static str,
    cpuinfo: String,
    name: &'static str,
    features: &'static [&'static str],
    threads: usize,
    dtype: DType,
}

fn cases() -> Vec<Case> {
    use DType::{BFloat16, Float32};
    let arm64 = |cores: &[(&str, u32, u32, usize)], name, features, threads, dtype| Case {
        arch: "aarch64",
        cpuinfo: arm(cores),
        name,
        features,
        threads,
        dtype,
    };
    let amd64 = |name: &'static str, flags, features, dtype| Case {
        arch: "x86_64",
        cpuinfo: x86(name, flags, 4),
        name,
        features,
        threads: 4,
        dtype,
    };
    let nine: &[&str] = &["bf16", "i8mm", "sve", "sve2"];
    vec![
        arm64(&[(N1, 0x41, 0xd0c, 4)], "Neoverse N1", &[], 4, Float32),
        arm64(
            &[(V1, 0x41, 0xd40, 8)],
            "Neoverse V1",
            &["bf16", "i8mm", "sve"],
            8,
            BFloat16,
        ),
        arm64(&[(V2, 0x41, 0xd4f, 16)], "Neoverse V2", nine, 16, BFloat16),
        arm64(&[(GRACE, 0x41, 0xd4f, 72)], "Neoverse V2", nine, 72, BFloat16),
        // Altra is a Neoverse N1 by its ids, and an older kernel leaves ssbs out.
        arm64(
            &[(N1.trim_end_matches(" ssbs"), 0x41, 0xd0c, 80)],
            "Neoverse N1",
            &[],
            80,
            Float32,
        ),
        arm64(&[(COBALT, 0x41, 0xd49, 4)], "Neoverse N2", nine, 4, BFloat16),
        arm64(&[(COBALT, 0x6d, 0xd49, 4)], "Azure Cobalt 100", nine, 4, BFloat16),
        // Slow cores come first, in groups of five.
        arm64(
            &[
                (GB10, 0x41, 0xd87, 5),
                (GB10, 0x41, 0xd85, 5),
                (GB10, 0x41, 0xd87, 5),
                (GB10, 0x41, 0xd85, 5),
            ],
            "Cortex-A725 + Cortex-X925",
            nine,
            10,
            BFloat16,
        ),
        arm64(&[(APPLE_M1, 0x61, 0x000, 4)], "Apple", &[], 4, Float32),
        arm64(&[(APPLE_LATER, 0x61, 0x000, 4)], "Apple", &["bf16"], 4, BFloat16),
        amd64("Intel(R) Xeon(R) CPU E5-2680 v4 @ 2.40GHz", BROADWELL, &[], Float32),
        amd64(
            "AMD EPYC 9R14",
            EPYC_BF16,
            &["avx512f", "avx512_bf16", "avx512_vnni"],
            BFloat16,
        ),
        amd64(
            "Intel(R) Xeon(R) Platinum 8481C CPU @ 2.70GHz",
            SAPPHIRE_RAPIDS,
            &["avx512f", "avx512_bf16", "avx512_vnni", "amx_bf16", "amx_int8"],
            BFloat16,
        ),
    ]
}

#[test]
fn every_processor_gets_its_number_format_and_threads() {
    for case in cases() {
        let found = processor(case.arch, case.cpuinfo, 4096, 256);
        assert_eq!(found.name, case.name);
        assert_eq!(found.features, case.features, "{}", case.name);
        assert_eq!(found.threads(256), case.threads, "{}", case.name);
        assert_eq!(found.dtype(DeviceKind::Cpu), case.dtype, "{}", case.name);
        assert_eq!(found.dtype(DeviceKind::Cuda), DType::Float16, "{}", case.name);
    }
}

#[test]
fn only_arm_gets_variables_and_products_in_bfloat16_only_who_does_not_ask_for_float32() {
    let names = |processor: &Processor, dtype| -> Vec<&str> {
        let variables = processor.variables(dtype).into_iter();
        variables
            .filter(|variable| variable.value.is_some())
            .map(|variable| variable.name)
            .collect()
    };
    let (cache, pages, products) = ("LRU_CACHE_CAPACITY", "THP_MEM_ALLOC_ENABLE", "DNNL_DEFAULT_FPMATH_MODE");
    for case in cases() {
        let found = processor(case.arch, case.cpuinfo, 4096, 4);
        let arm = case.arch == "aarch64";
        let base = if arm { vec![cache, pages] } else { vec![] };
        let fast = if arm && case.dtype == DType::BFloat16 {
            vec![cache, pages, products]
        } else {
            base.clone()
        };
        assert_eq!(names(&found, Some(DType::Float32)), base, "{}", case.name);
        assert_eq!(names(&found, Some(DType::BFloat16)), fast, "{}", case.name);
        assert_eq!(names(&found, None), fast, "{}", case.name);
    }
}

#[test]
fn large_pages_come_without_huge_ones() {
    let why = "a huge page has 32 MiB where a page has 16 KiB, too much to waste";
    let larger = why.replace("32", "512").replace("16", "64");
    for (page, value, reason) in [
        (4096, Some("1"), "large blocks of memory in huge pages of 2 MiB"),
        (16384, None, why),
        (65536, None, larger.as_str()),
    ] {
        let found = processor("aarch64", arm(&[(V2, 0x41, 0xd4f, 4)]), page, 4);
        let report = found.report(DeviceKind::Cpu, None, 4, |_| None);
        assert_eq!(report.page_bytes, page);
        let huge = report
            .chosen
            .iter()
            .find(|chosen| chosen.setting == "THP_MEM_ALLOC_ENABLE");
        assert_eq!(
            huge.map(|huge| (huge.value.as_deref(), huge.reason.as_str())),
            Some((value, reason))
        );
    }
}

/// Two threads of each core, as cloud providers sell them.
#[test]
fn second_threads_of_cores_are_no_cores() {
    let threads = (0..8).map(|number| {
        let core = number / 2 % 2;
        format!(
            "processor\t: {number}\nmodel name\t: Xeon\nphysical id\t: {}\ncore id\t\t: {core}\nflags\t: avx512f\n\n",
            number / 4
        )
    });
    let found = processor("x86_64", threads.collect(), 4096, 8);
    assert_eq!(
        (found.even_cores, found.threads(8), found.more_threads(8)),
        (4, 4, Some(8))
    );
    let limited = Processor { usable: 3, ..found };
    assert_eq!((limited.threads(8), limited.more_threads(8)), (3, None));
}

#[test]
fn the_report_says_what_was_chosen_and_why() {
    let lines = |report: &ProcessorReport| -> Vec<String> {
        let lines = report.chosen.iter().map(|Chosen { setting, value, reason }| {
            format!("{setting}={}: {reason}", value.as_deref().unwrap_or("unset"))
        });
        lines.collect()
    };
    let graviton3 = processor("aarch64", arm(&[(V1, 0x41, 0xd40, 64)]), 4096, 8);
    let mut report = graviton3.report(DeviceKind::Cpu, None, 64, |_| None);
    assert_eq!(
        lines(&report),
        [
            "threads=8: the CPUs that affinity and CPU limit allow",
            "dtype=bfloat16: the processor multiplies bfloat16 (bf16)",
            "LRU_CACHE_CAPACITY=1024: what is prepared for single shapes is kept",
            "THP_MEM_ALLOC_ENABLE=1: large blocks of memory in huge pages of 2 MiB",
            "DNNL_DEFAULT_FPMATH_MODE=BF16: what is left in float32 is multiplied in bfloat16",
        ]
    );
    report.choose(Chosen::new("threads", "16".to_owned(), "measured".to_owned()));
    assert_eq!(
        (report.chosen.len(), lines(&report)[4].as_str()),
        (5, "threads=16: measured")
    );

    let environment = |name: &str| match name {
        THREADS => Some("3".to_owned()),
        "ONEDNN_DEFAULT_FPMATH_MODE" => Some("STRICT".to_owned()),
        // As it is after the service has started itself anew.
        "LRU_CACHE_CAPACITY" => Some("1024".to_owned()),
        _ => None,
    };
    let set = graviton3.report(DeviceKind::Cpu, Some(DType::Float32), 64, environment);
    assert_eq!(
        lines(&set),
        [
            "threads=3: OMP_NUM_THREADS is set",
            "dtype=float32: it is asked for",
            "LRU_CACHE_CAPACITY=1024: what is prepared for single shapes is kept",
            "THP_MEM_ALLOC_ENABLE=1: large blocks of memory in huge pages of 2 MiB",
            "DNNL_DEFAULT_FPMATH_MODE=STRICT: the environment's",
        ]
    );
    let x86 = processor("x86_64", x86("Xeon", BROADWELL, 4), 4096, 8);
    assert_eq!(
        lines(&x86.report(DeviceKind::Cpu, None, 2, |_| None)),
        [
            "threads=2: libtorch's own number",
            "dtype=float32: the processor has no instructions for bfloat16",
        ]
    );
}

#[test]
fn a_pod_uses_no_more_threads_than_its_limit_allows() {
    let gb10 = || arm(&[(GB10, 0x41, 0xd87, 10), (GB10, 0x41, 0xd85, 10)]);
    for (usable, default, threads) in [(2, 20, 2), (20, 20, 10), (20, 4, 4), (1, 1, 1), (0, 0, 1)] {
        let found = processor("aarch64", gb10(), 4096, usable);
        assert_eq!(found.threads(default), threads, "{usable} usable, {default} by default");
    }
    // A pod of slow cores alone uses them.
    let slow = processor("aarch64", arm(&[(GB10, 0x41, 0xd87, 4)]), 4096, 4);
    assert_eq!(slow.threads(4), 4);
}

/// One core without an instruction is enough for the kernel to end a thread that was moved there.
#[test]
fn what_one_core_lacks_is_not_used() {
    let mixed = processor("aarch64", arm(&[(V1, 0x41, 0xd40, 3), (N1, 0x41, 0xd0c, 1)]), 4096, 4);
    assert_eq!(mixed.features, [""; 0]);
    assert_eq!(mixed.name, "Neoverse V1 + Neoverse N1");
    assert_eq!(mixed.dtype(DeviceKind::Cpu), DType::Float32);
}

#[test]
fn what_is_unknown_or_missing_changes_nothing() {
    let none = processor("aarch64", String::new(), 4096, 4);
    assert_eq!(
        (none.name.as_str(), none.threads(8), none.even_cores),
        ("unknown", 4, 0)
    );
    assert_eq!(none.dtype(DeviceKind::Cpu), DType::Float32);
    // Under qemu, which shows the machine's own file.
    let emulated = processor("aarch64", x86("AMD EPYC 9R14", EPYC_BF16, 2), 4096, 2);
    assert_eq!(emulated.dtype(DeviceKind::Cpu), DType::Float32);
    assert_eq!(emulated.threads(2), 2);
    let new = processor("aarch64", arm(&[(V2, 0x41, 0xd99, 2)]), 4096, 2);
    assert_eq!((new.name.as_str(), new.threads(2)), ("0x41/0xd99", 2));
    // Lines about the board, as some kernels add them, are not a core.
    let board = processor(
        "aarch64",
        arm(&[(N1, 0x41, 0xd0c, 2)]) + "Hardware\t: Some board\nRevision\t: 1\n",
        4096,
        2,
    );
    assert_eq!(board.even_cores, 2);
}

#[test]
fn this_machine_is_read() {
    let seen = Seen::here();
    assert!(seen.page >= 4096 && seen.page.is_power_of_two() && seen.usable >= 1);
    let found = Processor::new(&seen);
    if cfg!(target_os = "linux") {
        assert!(found.even_cores >= 1, "{found:?}");
    }
    #[cfg(target_arch = "x86_64")]
    assert_eq!(
        found.bfloat16().is_some(),
        std::arch::is_x86_feature_detected!("avx512bf16"),
        "{found:?}"
    );
}
