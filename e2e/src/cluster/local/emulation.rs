//! arm64 programs on an x86-64 machine: the kernel hands them to qemu.
//!
//! Each cluster with an arm64 node has a registration of its own name in binfmt_misc, made and mounted within that node's
//! mount namespace. From Linux 6.7 on it ends with the last mount; where the machine has one of its own, and on older
//! kernels, [`unregister`] removes it.

use std::{fs, path::PathBuf, process::Command};

use super::node::Node;
use crate::{
    command,
    error::{Error, Result},
    images::Arch,
};

/// `e2e/setup.sh --arm64` installs it.
const PACKAGE: &str = "qemu-user-static";
const QEMU: &str = "qemu-aarch64-static";
/// An ELF header for Linux on AArch64, and which bits of it count; as `scripts/qemu-binfmt-conf.sh` of QEMU has it.
const MAGIC: &str = r"\x7fELF\x02\x01\x01\x00\x00\x00\x00\x00\x00\x00\x00\x00\x02\x00\xb7\x00";
const MASK: &str = r"\xff\xff\xff\xff\xff\xff\xff\x00\xff\xff\xff\xff\xff\xff\xff\xff\xfe\xff\xff\xff";

/// Whether arm64 programs need emulation on this machine.
pub(super) const NEEDED: bool = !matches!(Arch::HOST, Arch::Arm64);

/// The emulator's file name, as a process that it runs shows it.
pub(super) const PROGRAM: &str = QEMU;

/// Why there can be no arm64 node on this machine; `Ok` where there can.
pub(super) fn check() -> Result<()> {
    if !NEEDED {
        return Ok(());
    }
    qemu()?;
    let script = format!("{MOUNT} 2>&1");
    command::run(unshared().args(["sh", "-ec", &script]))
        .map(drop)
        .map_err(|error| Error::NoArm64Node(format!("this kernel has no binfmt_misc to mount: {error}")))
}

const MOUNT: &str = "mount -t binfmt_misc binfmt_misc /proc/sys/fs/binfmt_misc";

fn qemu() -> Result<PathBuf> {
    command::find(QEMU).ok_or_else(|| {
        Error::NoArm64Node(format!(
            "{QEMU} is not installed (Debian's {PACKAGE}; e2e/setup.sh --arm64)"
        ))
    })
}

/// A mount namespace that goes with the command.
fn unshared() -> Command {
    let mut command = Command::new("unshare");
    command.args(["--mount", "--propagation", "private", "--"]);
    command
}

/// Makes the kernel run arm64 programs, for as long as `node` is there.
pub(super) fn register(node: &Node, name: &str) -> Result<()> {
    if !NEEDED {
        return Ok(());
    }
    // O, C, F: the kernel opens the program and, once and for all, the emulator, which containers therefore need not hold.
    let line = format!(":{name}:M::{MAGIC}:{MASK}:{}:OCF", qemu()?.display());
    let script = format!("{MOUNT}\nprintf %s \"$1\" > /proc/sys/fs/binfmt_misc/register");
    let words = ["sh", "-ec", &script, "register", &line].map(str::to_owned);
    node.run(&words).map(drop)
}

/// Removes the registration if it is still there.
pub(super) fn unregister(name: &str) -> Result<()> {
    let known = fs::read_to_string("/proc/filesystems").unwrap_or_default();
    if !NEEDED || !known.contains("binfmt_misc") {
        return Ok(());
    }
    let script =
        format!("{MOUNT}\nentry=/proc/sys/fs/binfmt_misc/$1\nif [ -e \"$entry\" ]; then echo -1 > \"$entry\"; fi");
    command::run(unshared().args(["sh", "-ec", &script, "unregister", name])).map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::images::elf_machine;

    /// The bytes of a `\x..` text.
    fn bytes(text: &str) -> Vec<u8> {
        let text = text.replace("ELF", r"\x45\x4c\x46");
        let codes = text.split(r"\x").skip(1);
        codes.map(|code| u8::from_str_radix(code, 16).unwrap()).collect()
    }

    #[test]
    fn the_magic_is_that_of_arm64_programs() {
        assert_eq!(elf_machine(&bytes(MAGIC)), Some(Arch::Arm64.elf_machine()));
        assert_eq!(bytes(MAGIC).len(), bytes(MASK).len());
        // Executables and position independent ones differ in the lowest bit of e_type alone.
        assert_eq!((bytes(MAGIC)[16], bytes(MASK)[16]), (2, 0xfe));
    }
}
