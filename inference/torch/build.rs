//! Compiles the C++ shim against the headers of the libtorch that torch-sys links.

use std::{env, error::Error, path::PathBuf};

fn main() -> Result<(), Box<dyn Error>> {
    println!("cargo:rerun-if-changed=shim/shim.cpp");
    println!("cargo:rerun-if-env-changed=LIBTORCH_CXX11_ABI");
    // torch-sys says where the libraries lie; the headers are beside them.
    let lib = PathBuf::from(env::var("DEP_TCH_LIBTORCH_LIB")?);
    let torch = lib.parent().ok_or("libtorch's folder has no parent")?;
    let abi = env::var("LIBTORCH_CXX11_ABI").unwrap_or_else(|_| "1".to_owned());
    cc::Build::new()
        .cpp(true)
        .std("c++17")
        .file("shim/shim.cpp")
        .define("_GLIBCXX_USE_CXX11_ABI", abi.as_str())
        // A system folder, so that warnings are ours only.
        .flag(format!("-isystem{}", torch.join("include").display()))
        .try_compile("hawkeye_shim")?;
    Ok(())
}
