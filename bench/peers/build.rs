//! Generates the gRPC service without a protocol compiler, and tells the program which versions of
//! the compared libraries it holds.

use std::path::Path;
use std::{env, fs, io};

/// Libraries whose versions are printed with their figures.
const LIBRARIES: [&str; 5] = ["async-nats", "quinn", "rustls", "tonic", "tokio"];

fn main() -> Result<(), io::Error> {
    println!("cargo:rerun-if-changed=build.rs");
    println!("cargo:rerun-if-changed=Cargo.lock");
    let lock = fs::read_to_string("Cargo.lock")?;
    for library in LIBRARIES {
        let version = locked_version(&lock, library).ok_or_else(|| {
            io::Error::other(format!(
                "Cargo.lock names no version of {library}; run `cargo generate-lockfile`"
            ))
        })?;
        let name = library.to_uppercase().replace('-', "_");
        println!("cargo:rustc-env=VERSION_{name}={version}");
    }
    let method = tonic_build::manual::Method::builder()
        .name("echo")
        .route_name("Echo")
        .input_type("crate::tonic_echo::Message")
        .output_type("crate::tonic_echo::Message")
        .codec_path("tonic_prost::ProstCodec")
        .build();
    let service = tonic_build::manual::Service::builder()
        .name("Echo")
        .package("peers")
        .method(method)
        .build();
    let folder = env::var_os("OUT_DIR").ok_or_else(|| io::Error::other("OUT_DIR is not set"))?;
    tonic_build::manual::Builder::new()
        .out_dir(Path::new(&folder))
        .compile(&[service]);
    Ok(())
}

/// The version that follows the line `name = "LIBRARY"`.
fn locked_version<'a>(lock: &'a str, library: &str) -> Option<&'a str> {
    let name = format!("name = \"{library}\"");
    let mut lines = lock.lines().skip_while(|line| *line != name);
    lines.next()?;
    lines
        .next()?
        .strip_prefix("version = \"")?
        .strip_suffix('"')
}
