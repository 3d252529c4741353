//! Prints what a QEMU tells of itself and its RAM blocks: `cargo run --example blocks -- SOCKET`.

use std::{error::Error, process::ExitCode};

use qmp::{
    Client,
    client::Options,
    commands::{QueryMemdev, QueryMemoryDevices, QueryRamblock, QueryStatus},
    hmp::parse_gpa2hva,
};

fn main() -> ExitCode {
    let Some(path) = std::env::args().nth(1) else {
        eprintln!("usage: blocks SOCKET");
        return ExitCode::FAILURE;
    };
    match print(&path) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{error}");
            ExitCode::FAILURE
        }
    }
}

fn print(path: &str) -> Result<(), Box<dyn Error>> {
    let (client, _events) = Client::connect(path, &Options::default())?;

    let version = client.version().qemu;
    let status = client.execute(&QueryStatus)?.status;
    println!(
        "pid {}, QEMU {}.{}, {status}",
        client.peer().pid,
        version.major,
        version.minor
    );
    for block in client.execute(&QueryRamblock)?.ramblocks()? {
        println!("{block:?}");
    }
    for memdev in client.execute(&QueryMemdev)? {
        println!("{memdev:?}");
    }
    for device in client.execute(&QueryMemoryDevices)? {
        println!("{device:?}");
    }
    for gpa in [1_u64 << 20, 1 << 40, 0xfee0_0000] {
        let answer = client.hmp(&format!("gpa2hva {gpa:#x}"))?;
        println!("{gpa:#x}: {:?}", parse_gpa2hva(&answer)?);
    }
    Ok(())
}
