//! The architectures that images are built for.

use std::{fmt, str::FromStr};

use crate::error::Error;

/// An architecture, by Kubernetes' name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Arch {
    /// x86-64.
    Amd64,
    /// 64-bit Arm.
    Arm64,
}

impl Arch {
    /// This machine's.
    pub const HOST: Self = if cfg!(target_arch = "aarch64") {
        Self::Arm64
    } else {
        Self::Amd64
    };

    /// `amd64` or `arm64`.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Amd64 => "amd64",
            Self::Arm64 => "arm64",
        }
    }

    /// `linux/amd64` or `linux/arm64`.
    pub fn platform(self) -> String {
        format!("linux/{}", self.name())
    }

    /// The field `e_machine` of an ELF header: `EM_X86_64` or `EM_AARCH64` (System V ABI, `elf.h`).
    pub const fn elf_machine(self) -> u16 {
        match self {
            Self::Amd64 => 62,
            Self::Arm64 => 183,
        }
    }
}

impl fmt::Display for Arch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for Arch {
    type Err = Error;

    /// Takes `linux/arm64` and `arm64`.
    fn from_str(text: &str) -> Result<Self, Error> {
        match text.trim_start_matches("linux/") {
            "amd64" => Ok(Self::Amd64),
            "arm64" => Ok(Self::Arm64),
            _ => Err(Error::UnknownPlatform(text.to_owned())),
        }
    }
}

/// What an ELF header says the file is for; `None` where the bytes are no ELF file.
///
/// `head` needs the file's first 20 bytes.
pub fn elf_machine(head: &[u8]) -> Option<u16> {
    let (magic, order, machine) = (head.get(..4)?, *head.get(5)?, head.get(18..20)?);
    let machine = [machine[0], machine[1]];
    (magic == b"\x7fELF").then(|| match order {
        2 => u16::from_be_bytes(machine),
        _ => u16::from_le_bytes(machine),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn platforms_are_read_with_and_without_the_system() {
        assert_eq!("linux/arm64".parse::<Arch>().unwrap(), Arch::Arm64);
        assert_eq!("amd64".parse::<Arch>().unwrap(), Arch::Amd64);
        for other in ["linux/riscv64", "aarch64", "windows/amd64", ""] {
            assert!(other.parse::<Arch>().is_err(), "{other}");
        }
    }

    #[test]
    fn the_machine_is_read_from_the_header() {
        let own = std::fs::read(std::env::current_exe().unwrap()).unwrap();
        if cfg!(target_os = "linux") {
            assert_eq!(elf_machine(&own), Some(Arch::HOST.elf_machine()));
        }
        let mut header = [0; 20];
        header[..6].copy_from_slice(b"\x7fELF\x02\x01");
        header[18] = 183;
        assert_eq!(elf_machine(&header), Some(Arch::Arm64.elf_machine()));
        header[5] = 2;
        assert_eq!(elf_machine(&header), Some(183 << 8));
        assert_eq!(elf_machine(&header[..19]), None);
        assert_eq!(elf_machine(b"#!/bin/sh\nexit 0\nand more"), None);
    }
}
